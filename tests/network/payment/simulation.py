"""Two nodes' payment services in a world where time, letters, blocks and power obey the test.

The services, their databases and everything they sign are the real ones. The event loop's time is a number: whoever sleeps
is woken at once when nothing else is to be done, so days pass in milliseconds, and every run of a script is the same.
The vault keeps the contract's rules (``contracts/Vault.vy``) over a state that can be taken back until it is final, and
keeps what nodes ask of it in their databases, as the chain side does.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import selectors
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import msgspec

from shem.node.db import MEMORY, Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import Balance, ChainUnreachable, DriverProblem, Platform
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.vault import ChannelKey, Vault, close_signer, voucher_signer
from shem.node.payment.drivers.vaults import ChainWord, Ended, Failed, Look, Opened, VaultTerms
from shem.node.payment.protocol import VoucherKey, method_of, seal
from shem.node.payment.service import PaymentConfig, Payments
from shem.node.peer.remote_errors import INTERNAL, PeerUnreachable, pack_error, unpack_error
from shem.terms.ids import NodeId
from shem.terms.pricing import LinearPricing
from shem.wire import payment as wire
from tests.network.payment.conftest import Deals, Market

_TASKS = ("shem.cogs.tasks", "asyncio")
START = datetime(2026, 1, 1, tzinfo=UTC)
TGLM = 10**18
PLATFORMS = ("channel-sim-tglm", "channel-alias-tglm")
"""Two names of one vault."""
BLOCK_S, FINAL_S = 2.0, 5.0
TERMS = VaultTerms(finality_s=FINAL_S, cover_timeout_s=30.0, settle_after_s=24 * 3600.0)
MARGIN_S = 3600
PRICE = LinearPricing((Decimal("0.001"),), Decimal(0), ("golem.usage.duration_sec",))
"""0.6 of cover for each agreement, 0.06 to start."""


T = TypeVar("T")


class PowerCut(BaseException):
    """The node is gone between one instruction and the next."""


# --- time


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Nobody waits for the real world: time goes on instead."""

    loop: TimelessLoop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            if timeout is None:
                raise RuntimeError("everybody waits, and for nothing")
            self.loop.passed_s += timeout
        return found


class TimelessLoop(asyncio.SelectorEventLoop):
    """Time passes when nothing else is to be done."""

    def __init__(self) -> None:
        self.passed_s = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.passed_s


class SimClock:
    """A node's clock, which may go wrong by ``skew_s``."""

    def __init__(self, loop: TimelessLoop) -> None:
        self._loop = loop
        self.skew_s = 0.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.passed_s + self.skew_s)

    def monotonic(self) -> float:
        return self._loop.passed_s

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


# --- power


class SimDatabase(Database):
    """In memory; may die around one of the next commits, and goes on with what was committed."""

    def __init__(self) -> None:
        super().__init__(MEMORY)
        self.dead = False
        self.die_in: int | None = None
        self.before = True

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[Any]:
        if self.dead:
            raise PowerCut
        if self._depth:
            with super().transaction(durable=durable) as connection:
                yield connection
            return
        fatal = False
        with super().transaction(durable=durable) as connection:
            yield connection
            if self.die_in is not None:
                self.die_in -= 1
                fatal = self.die_in <= 0
            if fatal and self.before:
                self.dead = True
                raise PowerCut
            if fatal:
                self._after_commit = []
        if fatal:
            self.dead = True
            raise PowerCut

    def snapshot(self) -> bytes:
        """A copy of it as it is now."""
        return self.connection.serialize()

    def restore(self, copied: bytes) -> None:
        """Somebody puts the copy back."""
        self.connection.deserialize(copied)

    def revive(self) -> None:
        """Power is back."""
        self.dead, self.die_in = False, None
        self._depth, self._after_commit, self._group = 0, [], []


# --- peers


class SimPeers:
    """One node's line to the other; see :class:`World` for what may go wrong on it."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self.handlers: dict[str, Callable[[NodeId, bytes], Awaitable[bytes]]] = {}
        self.callbacks: list[Callable[[NodeId], Awaitable[None]]] = []

    def serve(self, method: str, handler: Callable[[NodeId, bytes], Awaitable[bytes]], *, max_request: int = 0) -> None:
        self.handlers[method] = handler

    def on_connected(self, callback: Callable[[NodeId], Awaitable[None]]) -> None:
        self.callbacks.append(callback)

    async def call(self, node_id: NodeId, method: str, payload: bytes, *, timeout_s: float = 15.0) -> bytes:
        world, me = self._node.world, self._node
        fault = world.faults.pop(0) if world.faults else ""
        await asyncio.sleep(0.01)
        other = world.by_id(node_id)
        if me.db.dead or other is None or not (me.alive and other.alive and world.online) or fault == "lost":
            raise PeerUnreachable("the other is away")
        for _ in range(2 if fault == "twice" else 1):
            answer, error = await other.answer(me.id, method, payload)
        if fault == "unheard" or not me.alive:
            raise PeerUnreachable("no answer came")
        if error is not None:
            raise unpack_error(error)
        return answer


# --- the chain


class _State:
    """What a block knows."""

    def __init__(self) -> None:
        self.wallets: dict[str, int] = {}
        self.free: dict[str, int] = {}
        self.nonces: dict[str, int] = {}
        self.channels: dict[ChannelKey, tuple[int, int, int]] = {}
        """Open ones: reserved, claimed, valid until."""
        self.paid: dict[ChannelKey, tuple[int, str]] = {}
        """In all, and the last transaction; also of closed ones."""

    def total(self) -> int:
        channels = sum(reserved - claimed for reserved, claimed, _ in self.channels.values())
        return sum(self.wallets.values()) + sum(self.free.values()) + channels


class _Waits(Exception):
    """Not yet."""


class _Reverts(Exception):
    """Never."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it is kept."""

    request_id: str
    kind: str
    key: ChannelKey
    amount: int = 0
    valid_until: int = 0
    signature: bytes = b""
    receiver: str = ""


class SimVault:
    """One vault on one chain, for both nodes."""

    def __init__(self, loop: TimelessLoop) -> None:
        self.place = Vault(1337, "0x" + "5a" * 20)
        self._loop = loop
        self.latest = _State()
        self.final = _State()
        self.block = 1
        self.doors: list[SimChain] = []
        self.mined: dict[str, tuple[SimChain, ChainWord]] = {}
        """Executed and not final."""
        self.outcomes: dict[str, ChainWord] = {}
        """By request, final."""
        self.backwards = False
        """Whether blocks take the newest first."""
        self.away = False
        self.ahead_s = 0.0
        self._mining: asyncio.TimerHandle | None = None
        self._finishing: asyncio.TimerHandle | None = None

    def now(self) -> int:
        return int(START.timestamp() + self._loop.passed_s + self.ahead_s)

    def fund(self, address: str, units: int) -> None:
        for state in (self.latest, self.final):
            state.wallets[address] = state.wallets.get(address, 0) + units

    def wake(self) -> None:
        """Somebody asks for something."""
        if self._mining is None:
            self._mining = self._loop.call_later(BLOCK_S, self._mine)

    def _mine(self) -> None:
        self._mining = None
        self.block += 1
        again = False
        for door in self.doors:
            if door.locked:
                again = True  # it has no key to sign a transaction with
                continue
            for asked in reversed(door.waiting()) if self.backwards else door.waiting():
                if asked.request_id in self.mined or asked.request_id in self.outcomes:
                    continue
                try:
                    word = self._execute(asked)
                except _Waits:
                    again = True
                    continue
                self.mined[asked.request_id] = (door, word)
        if self.mined and self._finishing is None:
            self._finishing = self._loop.call_later(FINAL_S, self._finish)
        if again:
            self._mining = self._loop.call_later(60.0, self._mine)

    def _finish(self) -> None:
        self._finishing = None
        self.final = copy.deepcopy(self.latest)
        mined, self.mined = self.mined, {}
        for request_id, (_, word) in mined.items():
            self.outcomes[request_id] = word
        for door, word in mined.values():
            door.tell(word)

    def reorg(self) -> None:
        """What is not final was never there; it comes again, in another order."""
        self.latest = copy.deepcopy(self.final)
        self.mined.clear()
        self.backwards = not self.backwards
        if self._finishing is not None:
            self._finishing.cancel()
            self._finishing = None
        self.wake()

    def _execute(self, asked: Asked) -> ChainWord:
        before = copy.deepcopy(self.latest)
        tx_hash = f"0x{asked.request_id}:{self.block}"
        try:
            opened = getattr(self, f"_{asked.kind}")(asked, tx_hash)
        except _Reverts as error:
            self.latest = before
            return Failed(request_id=asked.request_id, code="reverted", message=str(error))
        except _Waits:
            self.latest = before
            raise
        said = {"request_id": asked.request_id, "tx_hash": tx_hash, "block_number": self.block, "block_hash": "0xb"}
        if opened is None:
            return Ended(**said, gas_used=1)
        reserved, _, until = self.latest.channels[opened]
        return Opened(**said, key=opened, reserved=reserved, valid_until=until, final=True)

    def _take_free(self, payer: str, amount: int) -> None:
        lacking = max(amount - self.latest.free.get(payer, 0), 0)
        if lacking > self.latest.wallets.get(payer, 0):
            raise _Waits
        if lacking:
            self.latest.wallets[payer] -= lacking
        self.latest.free[payer] = self.latest.free.get(payer, 0) + lacking - amount

    def _reserve(self, asked: Asked, tx_hash: str) -> ChannelKey:
        if asked.valid_until <= self.now():
            raise _Reverts("over already")
        self._take_free(asked.key.payer, asked.amount)
        nonce = self.latest.nonces.get(asked.key.payer, 0)
        self.latest.nonces[asked.key.payer] = nonce + 1
        key = msgspec.structs.replace(asked.key, nonce=nonce)
        self.latest.channels[key] = (asked.amount, 0, asked.valid_until)
        return key

    def _extend(self, asked: Asked, tx_hash: str) -> ChannelKey:
        found = self.latest.channels.get(asked.key)
        if found is None or asked.valid_until < found[2]:
            raise _Reverts("closed, or shorter")
        self._take_free(asked.key.payer, asked.amount)
        self.latest.channels[asked.key] = (found[0] + asked.amount, found[1], asked.valid_until)
        return asked.key

    def _pay(self, key: ChannelKey, amount: int, tx_hash: str, close: bool) -> int:
        reserved, claimed, until = self.latest.channels[key]
        total = max(min(amount, reserved), claimed)
        if total > claimed:
            self.latest.wallets[key.payee] = self.latest.wallets.get(key.payee, 0) + total - claimed
            self.latest.paid[key] = (total, tx_hash)
        if close:
            del self.latest.channels[key]
            self.latest.free[key.payer] = self.latest.free.get(key.payer, 0) + reserved - total
        else:
            self.latest.channels[key] = (reserved, total, until)
        return total - claimed

    def _settle(self, asked: Asked, tx_hash: str) -> None:
        if asked.key in self.latest.channels:
            self._pay(asked.key, asked.amount, tx_hash, False)

    def _close(self, asked: Asked, tx_hash: str) -> None:
        if asked.key not in self.latest.channels:
            return
        if close_signer(self.place, asked.key.id, asked.amount, asked.signature) != asked.key.payee:
            raise _Reverts("signature")
        self._pay(asked.key, asked.amount, tx_hash, True)

    def _release(self, asked: Asked, tx_hash: str) -> None:
        found = self.latest.channels.get(asked.key)
        if found is None:
            return
        if self.now() <= found[2]:
            raise _Waits
        self._pay(asked.key, 0, tx_hash, True)

    def _redeem(self, asked: Asked, tx_hash: str) -> None:
        if asked.key not in self.latest.channels:
            raise _Reverts("nothing")
        if voucher_signer(self.place, asked.key.id, asked.amount, asked.signature) != asked.key.signer:
            raise _Reverts("nothing")
        if not self._pay(asked.key, asked.amount, tx_hash, bool(asked.receiver)):
            raise _Reverts("nothing")


class SimChain:
    """The vault as one node has it: a :class:`~shem.node.payment.drivers.vaults.VaultChain`."""

    margin_s = MARGIN_S
    terms = TERMS

    def __init__(self, sim: SimVault, node: SimNode) -> None:
        self.sim = sim
        self.vault = sim.place
        self._node = node
        self._db = node.db
        self._listeners: list[Callable[[ChainWord], None]] = []
        self.looks = 0
        sim.doors.append(self)
        self._db.migrate(
            "sim",
            ["create table sim_request (seq integer primary key, request_id text unique, body blob, open integer);"],
        )

    def on_word(self, callback: Callable[[ChainWord], None]) -> None:
        self._listeners.append(callback)

    @property
    def locked(self) -> bool:
        return self._node.identity.locked

    async def start(self) -> None:
        for asked in self.waiting():
            outcome = self.sim.outcomes.get(asked.request_id)
            if outcome is not None:
                self.tell(outcome)
        self.sim.wake()

    async def stop(self) -> None:
        return None

    def problems(self) -> Sequence[DriverProblem]:
        return []

    def waiting(self) -> list[Asked]:
        rows = self._db.connection.execute("select body from sim_request where open = 1 order by seq").fetchall()
        return [msgspec.json.decode(row["body"], type=Asked) for row in rows]

    def tell(self, word: ChainWord) -> None:
        """The node hears of what is final, as soon as it can."""
        if not self._node.alive or self._node.db.dead:
            return  # it hears when it starts
        with suppress(PowerCut), self._db.transaction(durable=True) as connection:
            connection.execute("update sim_request set open = 0 where request_id = ?", (word.request_id,))
            for listener in self._listeners:
                listener(word)

    def unmined(self, payer: str, *kinds: str) -> int:
        waiting = [asked for asked in self.waiting() if asked.request_id not in self.sim.mined]
        return sum(asked.amount for asked in waiting if asked.key.payer == payer and asked.kind in kinds)

    def _ask(self, connection: sqlite3.Connection, asked: Asked) -> None:
        connection.execute(
            "insert or ignore into sim_request (request_id, body, open) values (?, ?, 1)",
            (asked.request_id, msgspec.json.encode(asked)),
        )
        self._db.after_commit(self.sim.wake)

    def deposit(self, connection: sqlite3.Connection, request_id: str, payer: str, amount: int) -> None:
        raise NotImplementedError

    def withdraw(self, connection: sqlite3.Connection, request_id: str, payer: str, receiver: str, amount: int) -> None:
        raise NotImplementedError

    def reserve(
        self,
        connection: sqlite3.Connection,
        request_id: str,
        *,
        payer: str,
        payee: str,
        signer: str,
        amount: int,
        valid_until: int,
    ) -> None:
        key = ChannelKey(payer, payee, signer, 0)
        asked = Asked(request_id=request_id, kind="reserve", key=key, amount=amount, valid_until=valid_until)
        self._ask(connection, asked)

    def extend(
        self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, add: int, valid_until: int
    ) -> None:
        asked = Asked(request_id=request_id, kind="extend", key=key, amount=add, valid_until=valid_until)
        self._ask(connection, asked)

    def settle(self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, amount: int) -> None:
        self._ask(connection, Asked(request_id=request_id, kind="settle", key=key, amount=amount))

    def close(
        self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, amount: int, signature: bytes
    ) -> None:
        asked = Asked(request_id=request_id, kind="close", key=key, amount=amount, signature=signature)
        self._ask(connection, asked)

    def release(self, connection: sqlite3.Connection, request_id: str, key: ChannelKey) -> None:
        self._ask(connection, Asked(request_id=request_id, kind="release", key=key))

    def redeem(
        self,
        connection: sqlite3.Connection,
        request_id: str,
        key: ChannelKey,
        amount: int,
        signature: bytes,
        *,
        sender: str = "",
    ) -> None:
        asked = Asked(request_id=request_id, kind="redeem", key=key, amount=amount, signature=signature)
        self._ask(connection, asked)

    async def look(self, key: ChannelKey) -> Look:
        self.looks += 1
        await asyncio.sleep(0.01)
        if self.sim.away:
            raise ChainUnreachable("no endpoint answers")
        state = self.sim.final
        reserved, claimed, until = state.channels.get(key, (0, 0, 0))
        total, tx_hash = state.paid.get(key, (0, ""))
        return Look(
            reserved=reserved,
            claimed=max(claimed, total),
            valid_until=until,
            opened=until != 0 or key.nonce < state.nonces.get(key.payer, 0),
            block_number=self.sim.block,
            block_hash="0xb",
            block_time=self.sim.now(),
            paid_tx=tx_hash,
        )

    async def free(self, payer: str) -> int:
        await asyncio.sleep(0.01)
        if self.sim.away:
            raise ChainUnreachable("no endpoint answers")
        return self.sim.latest.free.get(payer, 0)


class SimDriver(ChannelDriver):
    """The real driver over the vault of this world."""

    def __init__(self, chain: SimChain) -> None:
        self._chain = chain
        self._ordered = []
        self._settled = []

    def platforms(self) -> Sequence[Platform]:
        return [
            Platform(
                platform=name,
                driver="channel",
                network=name.split("-")[1],
                token="tGLM",
                chain_id=1337,
                alias_of=PLATFORMS[0] if name != PLATFORMS[0] else "",
            )
            for name in PLATFORMS
        ]

    def chain(self, platform: str) -> Any:
        return self._chain

    def _way(self, platform: str) -> Any:
        return self._chain, platform

    async def start(self) -> None:
        await self._chain.start()

    async def stop(self) -> None:
        return None

    async def parts(self, platform: str, address: str) -> tuple[Balance, int]:
        free = await self._chain.free(address)
        held = Balance(self._chain.sim.latest.wallets.get(address, 0), 10**18, self._chain.sim.block, None)
        return held, free

    async def fund(self, platform: str, address: str) -> str:
        raise NotImplementedError

    def problems(self) -> Sequence[DriverProblem]:
        return []


# --- nodes


class SimNode:
    """One node's payments, on and off."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.identity = Identity.generate()
        self.id = self.identity.node_id
        self.clock = SimClock(world.loop)
        self.db = SimDatabase()
        self.alive = False
        self.to_tell: list[tuple[str, str]] = []
        self.voucher_key: VoucherKey = self.identity
        self.peers: SimPeers
        self.payments: Payments
        self.chain: SimChain

    async def start(self) -> None:
        self.db.revive()
        self.peers = SimPeers(self)
        self.world.vault.doors = [door for door in self.world.vault.doors if door._node is not self]
        self.chain = SimChain(self.world.vault, self)
        config = PaymentConfig(retry_s=(0.5, 60.0), verify_s=(0.2, 15.0))
        self.payments = Payments(
            self.db,
            self.peers,
            self.identity,
            Market(self.world.deals, self.id),
            self.world.deals,
            [SimDriver(self.chain)],
            self.clock,
            config,
        )
        self.payments.sign_vouchers_with(self.voucher_key)
        self.alive = True
        try:
            await self.payments.start()
        except PowerCut:
            await self.stop()
            return
        self.flush()
        await self.world.connected()

    async def stop(self) -> None:
        self.alive = False
        with suppress(PowerCut):
            await self.payments.stop()

    def flush(self) -> None:
        """What the market has to say, each in a transaction of its own."""
        while self.to_tell and not self.db.dead:
            deal, state = self.to_tell[0]
            with suppress(PowerCut), self.db.transaction(durable=True):
                self.world.deals.hooks[self.id](self.world.deals.agreement(deal, self.id), state)
            if self.db.dead:
                return  # it says so again
            self.to_tell.pop(0)

    async def answer(self, issuer: NodeId, method: str, payload: bytes) -> tuple[bytes, bytes | None]:
        try:
            return await self.peers.handlers[method](issuer, payload), None
        except PowerCut:
            return b"", msgspec.msgpack.encode(("peer_failed", "peer_lost", "gone", ""))
        except Exception as error:  # noqa: BLE001  as the peer network does
            packed = pack_error(error)
            if packed is None:
                self.world.broken.found.append(f"{method}: {error!r}")
            return b"", packed or INTERNAL

    @property
    def store(self) -> Any:
        return self.payments.books.store

    @property
    def channels(self) -> Any:
        return self.payments.channels.shared.store

    def accounts(self) -> list[Any]:
        return list(self.store.accounts(self.id))

    def documents(self, state: str) -> list[Any]:
        rows = self.db.connection.execute(
            "select document_id from payment_document where state = ? order by created_at, document_id", (state,)
        ).fetchall()
        return [self.store.document(row["document_id"], self.id) for row in rows]


class _Broken(logging.Handler):
    """What services' tasks ended with, but for power cuts."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, PowerCut):
            self.found.append(self.format(record))


class World:
    """Alice pays bob."""

    def __init__(self, held: int = 100 * TGLM) -> None:
        self.broken = _Broken()
        for name in _TASKS:
            logging.getLogger(name).addHandler(self.broken)
        self.loop = TimelessLoop()
        self.deals = Deals()
        self.vault = SimVault(self.loop)
        self.online = True
        self.faults: list[str] = []
        """What becomes of the next calls: ``""``, ``lost``, ``unheard``, ``twice``."""
        self.alice, self.bob = SimNode(self), SimNode(self)
        self.held = held
        self.vault.fund(self.alice.id, held)
        for node in self.nodes:
            self.loop.run_until_complete(node.start())

    @property
    def nodes(self) -> tuple[SimNode, SimNode]:
        return self.alice, self.bob

    def by_id(self, node_id: str) -> SimNode | None:
        return next((node for node in self.nodes if node.id == node_id), None)

    async def connected(self) -> None:
        """Both are there: whoever waits for the other is told."""
        if self.online and all(node.alive for node in self.nodes):
            for node, other in (self.nodes, self.nodes[::-1]):
                for callback in list(node.peers.callbacks):
                    await callback(other.id)

    def do(self, work: Callable[[], T]) -> T:
        """Inside the loop, as a REST call would; a power cut gives ``None``."""

        async def run() -> T:
            return work()

        with suppress(PowerCut):
            return self.loop.run_until_complete(run())
        return None  # type: ignore[return-value]

    def run(self, seconds: float) -> None:
        """Let time pass; nodes that died stop."""
        self.loop.run_until_complete(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        for node in self.nodes:
            if node.alive:
                node.flush()
        end = self.loop.time() + seconds
        while self.loop.time() < end:
            await asyncio.sleep(min(end - self.loop.time(), 60.0))
            for node in self.nodes:
                if node.db.dead and node.alive:
                    await node.stop()

    def restart(self, node: SimNode) -> None:
        """Power off, if it is on, and on."""
        self.loop.run_until_complete(self._restart(node))

    async def _restart(self, node: SimNode) -> None:
        if node.alive:
            node.db.dead = True
            await node.stop()
        await node.start()

    def line(self, online: bool) -> None:
        self.online = online
        if online:
            self.loop.run_until_complete(self.connected())

    def say(self, sender: SimNode, receiver: SimNode, kind: Any, message: Any) -> bytes:
        """A message by hand, signed by whoever sends it. Raises what the receiver answers."""
        signed = msgspec.msgpack.encode(seal(kind, message, sender.identity))
        answer, error = self.loop.run_until_complete(receiver.answer(sender.id, method_of(kind), signed))
        if error is not None:
            raise unpack_error(error)
        return answer

    def agree(
        self,
        platform: str = PLATFORMS[0],
        life_s: float = 3600,
        pricing: LinearPricing = PRICE,
        payee: str | None = None,
        turned: bool = False,
    ) -> str:
        """``turned``: bob rents."""
        expires = int((START.timestamp() + self.loop.passed_s + life_s) * 1000)
        requestor, provider = self.nodes[::-1] if turned else self.nodes
        deal = self.deals.make(
            requestor.id,
            provider.id,
            platform=platform,
            pricing=pricing,
            payee=payee,
            demand={"golem.srv.comp.expiration": expires},
        )
        self.tell(deal, "Approved")
        return deal

    def tell(self, deal: str, state: str) -> None:
        for node in self.nodes:
            node.to_tell.append((deal, state))
            if node.alive:
                self.do(node.flush)

    def allocate(self, amount: str, platform: str = PLATFORMS[0], timeout: datetime | None = None) -> str:
        body = wire.NewAllocation(total_amount=amount, make_deposit=False, payment_platform=platform, timeout=timeout)
        made = self.loop.run_until_complete(self.alice.payments.allocations.create(self.alice.id, body))
        return made.allocation_id

    def close(self) -> None:
        """Both stop; the loop ends."""
        for node in self.nodes:
            if node.alive:
                self.loop.run_until_complete(node.stop())
            node.db.close()
        self.loop.close()
        for name in _TASKS:
            logging.getLogger(name).removeHandler(self.broken)

"""Payment channels on one chain: the only place that talks to a vault.

Requests are rows (:mod:`~shem.node.payment.drivers.evm.requests`). Those of one account and one kind that come within a
moment become one call, an intent of the account's transaction manager, which brings it onto the chain exactly once. What
the call did to each of them is told inside the manager's transaction: a reserve's channel gets its nonce from the
``Reserved`` event of the receipt, which is preliminary until the block is final, because after a reorg the same bytes may
get another nonce.

Nothing is repeated for ever. A call that finally reverted, and one that was never signed because the chain says that it
would revert, is halved, so that one bad entry cannot hold up the others; a single entry that fails is told as failed.
What the chain will take later (a term that is not over yet) just waits. Order needs no waiting for timers: a deposit goes
when the token's contract lets the vault take the money (it is asked to, once), a reserve when the free balance covers it
(what is lacking is deposited), each at the first look that shows it.

Before anything is sent, and before anything is believed, the code at the vault's address is compared with ours.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import Refused
from shem.node.db import Database
from shem.node.payment.drivers.base import ChainUnreachable, DriverProblem
from shem.node.payment.drivers.evm import erc20, requests, vault
from shem.node.payment.drivers.evm.eyes import Eyes
from shem.node.payment.drivers.evm.manager import TransactionManager
from shem.node.payment.drivers.evm.requests import Kind, Request, RequestStore
from shem.node.payment.drivers.evm.rpc import Receipt, RpcPool, RpcRefused, number
from shem.node.payment.drivers.evm.store import Intent, intent_of
from shem.node.payment.drivers.evm.vault import ChannelKey, Extended, Reserved, Vault
from shem.node.payment.drivers.networks import CHANNEL, Network
from shem.node.payment.drivers.vaults import ChainWord, Ended, Failed, Look, Opened, WrongVault
from shem.terms.amounts import format_amount
from shem.terms.ids import parse_node_id

log = logging.getLogger(__name__)

INTENTS = "vault:"
"""What the keys of our intents start with."""
REFUSALS = 3
"""After so many looks at which the chain would refuse a single entry, it has failed."""
TOP_UP_REST_S = 600.0
"""A deposit of our own that failed is not made again for so long."""
MAX_CATCH_UP_S = 600.0
SHORT = "money_short_in_vault"
_FILLING: tuple[Kind, ...] = ("deposit", "close", "release")
"""What brings money to the free balance."""
_ALONE: tuple[Kind, ...] = ("deposit", "withdraw", "extend")
_TOP_UP = "top-up:"
"""Requests of our own: deposits of what a reserve lacks."""
_POOR, _EARLY = "reverted: free", "reverted: not yet"
"""Reasons of the contract that time cures; the second is one entry's only."""
_EVERYTHING = 2**256 - 1


class ChannelChain:
    """The vault of one network, for all accounts of this node; a
    :class:`~shem.node.payment.drivers.vaults.VaultChain`."""

    def __init__(
        self,
        db: Database,
        network: Network,
        pool: RpcPool,
        managers: Mapping[tuple[str, str], TransactionManager],
        clock: Clock,
    ) -> None:
        """``managers`` are by network and account, and may be filled in later."""
        db.migrate("payment_vault", requests.MIGRATIONS)
        self.vault = Vault(network.chain_id, network.vault)
        self.margin_s = network.margin_s
        self.terms = network.vault_terms
        self._db = db
        self._network = network
        self._pool = pool
        self._managers = managers
        self._clock = clock
        self._rows = RequestStore(db.connection, self.vault)
        self._listeners: list[Callable[[ChainWord], None]] = []
        self._wake = asyncio.Event()
        self._scope: TaskScope | None = None
        self._eyes = Eyes(db, network, pool, self._rows)
        self._no_top_up_until = float("-inf")
        self._leave_asked: dict[str, list[float]] = {}

    def on_word(self, callback: Callable[[ChainWord], None]) -> None:
        """See the protocol. Register before :meth:`start`."""
        self._listeners.append(callback)

    async def start(self) -> None:
        """Gather requests into calls in the background; what was left is taken up."""
        self._scope = TaskScope("vault")
        self._wake.set()
        self._scope.start(self._run(), self._network.name)
        self._scope.start(self._catch_up(), f"{self._network.name}, unheard")

    async def stop(self) -> None:
        """Everything is on disk at any moment: this only stops the work."""
        if self._scope is not None:
            await self._scope.close()

    def problems(self) -> Sequence[DriverProblem]:
        """A contract at the vault's address that is not ours; what else holds up requests, the managers tell."""
        wrong = self._eyes.wrong
        return [] if wrong is None else [self._problem("TxStuck", wrong.message, more=wrong.code)]

    # Asking

    def deposit(self, connection: sqlite3.Connection, request_id: str, payer: str, amount: int) -> None:
        """See the protocol, as for all that follow. Raise :class:`Refused` for what can never be done."""
        payer = parse_node_id(payer)
        self._ask(connection, self._request(request_id, "deposit", payer, payer=payer, amount=_units(amount)))

    def withdraw(self, connection: sqlite3.Connection, request_id: str, payer: str, receiver: str, amount: int) -> None:
        payer, receiver = parse_node_id(payer), self._receiver(receiver)
        asked = self._request(request_id, "withdraw", payer, payer=payer, payee=receiver, amount=_units(amount))
        self._ask(connection, asked)

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
        payer = parse_node_id(payer)
        asked = self._request(
            request_id,
            "reserve",
            payer,
            payer=payer,
            payee=self._receiver(payee),
            signer=self._receiver(signer),
            amount=_units(amount),
            valid_until=valid_until,
        )
        self._ask(connection, asked)

    def extend(
        self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, add: int, valid_until: int
    ) -> None:
        self._about(connection, request_id, "extend", key.payer, key, _units(add, least=0), valid_until=valid_until)

    def settle(self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, amount: int) -> None:
        self._about(connection, request_id, "settle", key.payer, key, _units(amount))

    def close(
        self, connection: sqlite3.Connection, request_id: str, key: ChannelKey, amount: int, signature: bytes
    ) -> None:
        self._about(connection, request_id, "close", key.payer, key, _units(amount, least=0), signature)

    def release(self, connection: sqlite3.Connection, request_id: str, key: ChannelKey) -> None:
        self._about(connection, request_id, "release", key.payer, key, 0)

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
        account = parse_node_id(sender) if sender else key.payee
        self._about(connection, request_id, "redeem", account, key, _units(amount), signature)

    def _about(
        self,
        connection: sqlite3.Connection,
        request_id: str,
        kind: Kind,
        account: str,
        key: ChannelKey,
        amount: int,
        signature: bytes = b"",
        *,
        valid_until: int = 0,
    ) -> None:
        _check_key(key)
        if kind in ("close", "redeem") and (len(signature) != 65 or signature[64] not in (27, 28)):
            raise Refused("that is no signature", code="bad_signature")
        asked = self._request(
            request_id,
            kind,
            account,
            payer=key.payer,
            payee=key.payee,
            signer=key.signer,
            nonce=key.nonce,
            amount=amount,
            signature=signature,
            valid_until=valid_until,
        )
        self._ask(connection, asked)

    def _request(
        self,
        request_id: str,
        kind: Kind,
        account: str,
        *,
        payer: str,
        payee: str = "",
        signer: str = "",
        nonce: int = 0,
        amount: int = 0,
        signature: bytes = b"",
        valid_until: int = 0,
    ) -> Request:
        if not 0 <= valid_until < 1 << 63:
            raise Refused(f"{valid_until} is no moment", code="bad_term")
        return Request(
            request_id=request_id,
            account=account,
            kind=kind,
            payer=payer,
            payee=payee,
            signer=signer,
            nonce=nonce,
            amount=amount,
            signature=signature,
            valid_until=valid_until,
            made_at=self._clock.now().timestamp(),
            size=1 if kind in _ALONE else vault.MAX_BATCH,
        )

    def _receiver(self, address: str) -> str:
        address = parse_node_id(address)
        if int(address, 16) == 0 or address in (self._network.token, self.vault.address):
            raise Refused(f"{address} cannot be paid", code="bad_payee")
        return address

    def _ask(self, connection: sqlite3.Connection, request: Request) -> None:
        if (self._network.name, request.account) not in self._managers:
            raise Refused(f"this node does not hold the key of {request.account}", code="not_our_account")
        assert connection is self._db.connection
        if self._rows.add(request):
            self._db.after_commit(self._wake.set)

    # Gathering

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            await self._clock.sleep(self._network.gather_s)
            self._wake.clear()
            try:
                self.gather()
            except sqlite3.Error:  # a full disk: what waits is on it, and goes when there is room
                log.exception("requests on %s cannot be gathered now", self._network.name)
                self._wake.set()
                await self._clock.sleep(self._network.refused_s)

    async def _catch_up(self) -> None:
        """Hear of calls that ended unheard, as soon as the chain can be asked."""
        delay_s = self._network.refused_s
        while left := self._rows.unheard():
            for ended in left:
                intent = intent_of(self._db.connection, ended)
                try:
                    # What never happened, since the owner gave it up, has none.
                    asked = intent.tx_hash and self._pool.call("eth_getTransactionReceipt", [intent.tx_hash], Receipt)
                    found = await asked if asked else None
                    with self._db.transaction(durable=True):
                        self.receipt(intent, found)
                except (ChainUnreachable, RpcRefused) as error:
                    log.warning("what became of %s cannot be asked: %s", intent.key, error.message)
            if self._rows.unheard():
                await self._clock.sleep(delay_s)
                delay_s = min(2 * delay_s, MAX_CATCH_UP_S)

    def gather(self) -> None:
        """Make calls of what waits. The work of the background task; for tests that go step by step."""
        with self._db.transaction(durable=True) as connection:
            for _, group in itertools.groupby(self._rows.waiting(), key=lambda row: (row.account, row.kind)):
                for batch in _batches(list(group)):
                    self._call(connection, batch)

    def _call(self, connection: sqlite3.Connection, batch: Sequence[Request]) -> None:
        first = batch[0]
        manager = self._managers.get((self._network.name, first.account))
        if manager is None:
            return  # a key that this node had when it was asked: the rows wait for it
        intent = manager.submit(
            connection,
            f"{INTENTS}{first.kind}:{first.request_id}:{first.calls}",
            self.vault.address,
            requests.call_of(batch),
            urgent=first.kind == "deposit",
        )
        self._rows.give_call(batch, intent)

    # What the manager asks and tells

    def tokens_of(self, intent: Intent) -> int:
        """What a call takes out of the wallet."""
        if not intent.key.startswith(f"{INTENTS}deposit:"):
            return 0
        return sum(row.amount for row in self._rows.of([intent.id]))

    async def admit(
        self, payer: str, waiting: Sequence[Intent], in_flight: Sequence[Intent]
    ) -> tuple[list[Intent], DriverProblem | None]:
        """Those of our ``waiting`` that the vault would take now; wallets and gas are looked at by others."""
        try:
            await self._eyes.check()
            return await self._admit(payer, waiting, in_flight)
        except (WrongVault, ChainUnreachable) as error:
            # The account's other payments go on, if there is anybody to ask.
            more = error.code if isinstance(error, WrongVault | erc20.WrongToken) else ""
            return [], self._problem("TxStuck", error.message, payer, more=more)

    async def _admit(
        self, payer: str, waiting: Sequence[Intent], in_flight: Sequence[Intent]
    ) -> tuple[list[Intent], DriverProblem | None]:
        rows = self._entries([*waiting, *in_flight])
        if not {row.kind for intent in waiting for row in rows.get(intent.id, ())} & {*_ALONE, "reserve"}:
            return list(waiting), None
        allowed, wallet, free = await self._eyes.cover(payer)
        on_its_way = sum(_from_free(rows.get(intent.id, ())) for intent in in_flight)
        free -= on_its_way
        leave = True
        admitted: list[Intent] = []
        short: list[Request] = []
        for intent in waiting:
            entries = rows.get(intent.id, ())
            cost = _from_free(entries)
            if sum(row.amount for row in entries if row.kind == "deposit") > allowed:
                leave = self._ask_leave(payer)
            elif cost > max(free, 0):
                short += entries
            else:
                free -= cost
                admitted.append(intent)
        unsigned = {intent.id for intent in waiting}
        short = self._give_up_withdrawals(payer, short)
        dropped = set() if on_its_way else self._top_up(payer, short, max(free, 0), wallet, unsigned)
        problem = self._short(payer, short, max(free, 0))
        if problem is None and not leave:
            problem = self._problem("TxStuck", f"the token of {self._network.name} gives no leave to the vault", payer)
        return [intent for intent in admitted if intent.id not in dropped], problem

    def _give_up_withdrawals(self, payer: str, short: Sequence[Request]) -> list[Request]:
        """Somebody else took what was free when a withdrawal was asked for: it fails, unless more is under way to the
        vault. It would take the next money that comes there for something else. Gives the others."""
        lost = [row for row in short if row.kind == "withdraw"]
        if not lost or any(row.kind in _FILLING for row in self._rows.open_of(payer)):
            return list(short)
        with self._db.transaction(durable=True):
            for row in lost:
                self._drop([row])
                self._undone([row], SHORT, "the vault does not hold that much free any more")
        return [row for row in short if row not in lost]

    def _entries(self, intents: Sequence[Intent]) -> dict[int, list[Request]]:
        found: dict[int, list[Request]] = {}
        for row in self._rows.of([intent.id for intent in intents]):
            assert row.intent is not None
            found.setdefault(row.intent, []).append(row)
        return found

    def _ask_leave(self, payer: str) -> bool:
        """Once for ever: the vault takes from nobody but who calls it. It may be lost, but not again and again. Whether it
        is to come."""
        leave = erc20.approve(self.vault.address, _EVERYTHING)
        now = self._clock.monotonic()
        asked = [at for at in self._leave_asked.get(payer, ()) if now - at < erc20.LEAVE_PERIOD_S]
        if len(asked) >= erc20.MAX_LEAVES:
            return self._managers[self._network.name, payer].has_open_call(self._network.token, leave)
        manager = self._managers[self._network.name, payer]
        if manager.submit_once(f"{INTENTS}leave:{uuid.uuid4()}", self._network.token, leave, urgent=True):
            self._leave_asked[payer] = [*asked, now]
        return True

    def _top_up(self, payer: str, short: Sequence[Request], free: int, wallet: int, unsigned: set[int]) -> set[int]:
        """Deposit what reserves lack, or drop such a deposit that nothing needs any more, or that the wallet does not cover
        while it covers some of what is lacking; gives what was dropped."""
        under_way = [row for row in self._rows.open_of(payer) if row.kind == "deposit"]
        idle = [row for row in under_way if row.request_id.startswith(_TOP_UP) and row.intent in unsigned]
        lacking = [row for row in short if row.kind != "withdraw"]
        if sum(row.amount for row in lacking) > free + wallet:
            lacking = self._covered(lacking, free + wallet) or lacking
        missing = min(sum(row.amount for row in lacking) - free, vault.MAX_UNITS)
        useless = [row for row in idle if not short or row.amount > wallet >= missing > 0]
        rested = self._clock.monotonic() >= self._no_top_up_until
        wanted = missing > 0 and len(useless) == len(under_way) and rested
        if wanted or useless:
            with self._db.transaction(durable=True) as connection:
                for row in useless:
                    self._drop([row])
                    self._rows.end([row], "failed", "it was not needed any more")
                if wanted:
                    self.deposit(connection, f"{_TOP_UP}{uuid.uuid4()}", payer, missing)
                    self.gather()
        return {row.intent for row in useless if row.intent is not None}

    def _covered(self, lacking: Sequence[Request], reach: int) -> list[Request]:
        """Those for which there is enough, in their order. A call of many is halved when there is enough for some of it."""
        covered: list[Request] = []
        for _, entries in itertools.groupby(lacking, key=lambda row: row.intent):
            rows = list(entries)
            if sum(row.amount for row in rows) <= reach:
                covered += rows
                reach -= sum(row.amount for row in rows)
            elif len(rows) > 1 and min(row.amount for row in rows) <= reach:
                with self._db.transaction(durable=True):
                    self._drop(rows)
                    self._rows.take_back(rows, len(rows) // 2)
                    self.gather()
        return covered

    def _short(self, payer: str, short: Sequence[Request], free: int) -> DriverProblem | None:
        """Only what no deposit is going to cure."""
        missing = sum(row.amount for row in short) - free
        if missing <= 0 or any(row.kind == "deposit" for row in self._rows.open_of(payer)):
            return None
        needed = format_amount(missing, self._network.decimals)
        text = f"{needed} {self._network.symbol} are missing in the vault for what waits"
        return self._problem("InsufficientToken", text, payer, needed)

    def refused(self, intent: Intent, reason: str) -> float | None:
        """The chain says it would refuse a call that was never signed: when to try again, or ``None``: it is dropped."""
        rows = self._rows.of([intent.id])
        said = reason.lower()
        if not rows or "revert" not in said:
            return self._network.refused_s  # trouble of the endpoint, not of the call
        if _POOR in said:
            return self._network.refused_s
        if len(rows) == 1:
            if _EARLY in said:
                return self._network.refused_s
            if rows[0].refusals + 1 < REFUSALS:
                with self._db.transaction():
                    self._rows.note_refusal(rows[0])
                return self._network.refused_s
        with self._db.transaction(durable=True):
            self._drop(rows)
            self._undone(rows, "refused", f"the vault would refuse it: {reason[:200]}")
        return None

    def _drop(self, rows: Sequence[Request]) -> None:
        """Forget the call; the rows are another call's or ended next."""
        intent = rows[0].intent
        assert intent is not None
        self._rows.take_back(rows, rows[0].size)
        self._managers[self._network.name, rows[0].account].drop(intent)

    def _undone(self, rows: Sequence[Request], code: str, message: str) -> None:
        """Their call did not happen and never will: halves of it may; a single entry has failed."""
        if len(rows) > 1:
            log.warning("a call of %d entries is halved: %s", len(rows), message)
            self._rows.take_back(rows, len(rows) // 2)
            self._db.after_commit(self._wake.set)
            return
        self._rows.end(rows, "failed", message, rows[0].intent if code == "reverted" else None)
        if rows[0].request_id.startswith(_TOP_UP):
            self._no_top_up_until = self._clock.monotonic() + TOP_UP_REST_S
        self._tell(Failed(request_id=rows[0].request_id, code=code, message=message))

    def receipt(self, intent: Intent, receipt: Receipt | None) -> None:
        """What became of a call; inside the manager's transaction. No receipt: it never happened."""
        rows = self._rows.of([intent.id])
        if not rows:
            return
        if intent.state == "failed":
            why = f"the vault refused it in {intent.tx_hash}" if receipt else "another transaction took its place"
            self._undone(rows, "reverted", why)
        elif receipt is not None and receipt.succeeded:
            words = self._words(rows, intent, receipt)
            if intent.state == "final":
                self._rows.end(rows, "done", intent=intent.id)
                for row, units in _moved(rows, vault.events(receipt.logs, self.vault)):
                    self._rows.note_moved(row, units)
            for word in words:
                self._tell(word)

    def _tell(self, word: ChainWord) -> None:
        if not word.request_id.startswith(_TOP_UP):
            for listener in self._listeners:
                listener(word)

    def _words(self, rows: Sequence[Request], intent: Intent, receipt: Receipt) -> list[ChainWord]:
        block, final = number(receipt.block_number), intent.state == "final"
        said = vault.events(receipt.logs, self.vault)
        if rows[0].kind in ("reserve", "extend"):
            opened = _opened(rows, said)
            return [
                Opened(
                    request_id=row.request_id,
                    key=key,
                    reserved=reserved,
                    valid_until=until,
                    tx_hash=receipt.transaction_hash,
                    block_number=block,
                    block_hash=receipt.block_hash,
                    final=final,
                )
                for row, (key, reserved, until) in zip(rows, opened, strict=True)
            ]
        if not final:
            return []
        return [
            Ended(
                request_id=row.request_id,
                tx_hash=receipt.transaction_hash,
                block_number=block,
                block_hash=receipt.block_hash,
                gas_used=number(receipt.gas_used),
            )
            for row in rows
        ]

    # Looking

    async def look(self, key: ChannelKey) -> Look:
        """See the protocol. Raises :class:`Refused` for a key that names no channel."""
        _check_key(key)
        return await self._eyes.look(key)

    async def free(self, payer: str) -> int:
        """See the protocol; as of the last block."""
        return await self._eyes.free(payer)

    def unmined(self, account: str, *kinds: Kind) -> int:
        """What is asked for in these kinds and in no block yet, in all."""
        return self._rows.unmined(account, kinds)

    def _problem(
        self,
        code: Literal["TxStuck", "InsufficientToken"],
        message: str,
        address: str = "",
        needed: str = "",
        more: str = "",
    ) -> DriverProblem:
        return DriverProblem(
            code=code,
            message=message,
            driver=CHANNEL,
            network=self._network.name,
            address=address,
            platform=self._network.channel_platforms[0].platform,
            needed=needed,
            more=more,
        )


def _check_key(key: ChannelKey) -> None:
    addresses = (key.payer, key.payee, key.signer)
    if any(parse_node_id(address) != address for address in addresses) or not 0 <= key.nonce < 1 << 63:
        raise Refused("that names no channel", code="bad_channel")


def _units(amount: int, *, least: int = 1) -> int:
    if not least <= amount <= vault.MAX_UNITS:
        raise Refused(f"{amount} cannot be moved", code="bad_amount")
    return amount


def _batches(rows: Sequence[Request]) -> list[list[Request]]:
    """In their order; none is in company larger than it may have."""
    batches: list[list[Request]] = []
    for row in rows:
        last = batches[-1] if batches else []
        fits = last and (row.kind != "redeem" or row.payee == last[0].payee)  # such a call names one payee
        if fits and len(last) < min(row.size, *(other.size for other in last), vault.MAX_BATCH):
            last.append(row)
        else:
            batches.append([row])
    return batches


def _moved(rows: Sequence[Request], said: Sequence[vault.Event]) -> list[tuple[Request, int]]:
    """What went to the payee, or back to the payer, for each entry; two entries of one channel share its events."""
    kind = vault.Released if rows[0].kind == "release" else vault.Paid
    units: dict[bytes, int] = {}
    for event in said:
        if isinstance(event, kind):
            units[event.channel] = units.get(event.channel, 0) + event.amount
    if rows[0].kind in ("settle", "close", "redeem", "release"):
        return [(row, units.pop(row.key.id, 0)) for row in rows]
    return [(row, row.amount) for row in rows]


def _from_free(entries: Sequence[Request]) -> int:
    """What they take out of the free balance."""
    return sum(row.amount for row in entries if row.kind in ("reserve", "extend", "withdraw"))


def _opened(rows: Sequence[Request], said: Sequence[vault.Event]) -> list[tuple[ChannelKey, int, int]]:
    """(channel, reserved in all, term) of each entry. The contract speaks once for each, in their order."""
    if rows[0].kind == "extend":
        grown = [e for e in said if isinstance(e, Extended) and e.channel == rows[0].key.id]
        found = [(rows[0].key, e.reserved, e.valid_until) for e in grown]
    else:
        found = [(e.key, e.amount, e.valid_until) for e in said if isinstance(e, Reserved)]
        asked = [(row.payer, row.payee, row.signer, row.amount, row.valid_until) for row in rows]
        if [(key.payer, key.payee, key.signer, amount, until) for key, amount, until in found] != asked:
            found = []
    if len(found) != len(rows):
        raise ChainUnreachable("the endpoint's receipt lacks events of the vault")
    return found

"""Every vault call exactly once, whatever breaks and in whatever order.

The world of ``test_chaos`` (a line that breaks, a chain that reorganises, ``kill -9`` between storing and sending), with
two accounts: a payer that opens channels, extends, settles, closes and releases them, and a payee that redeems. What comes
next is asked for inside the transaction that tells the end of what was before, as the payment service does. At the end
the contract's own state is compared with what was asked: channels opened, sums extended and paid, everything else back
with the payer. A manager that sends before it stores runs through the same, and must fail.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.base import ChainUnreachable, Failure, PaymentOrder, Settlement
from shem.node.payment.drivers.evm import erc20, vault
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.evm.vault import ChannelKey
from shem.node.payment.drivers.vaults import ChainWord, Failed, Opened
from shem.testing.devchain import places
from tests.unit.evm.test_chaos import MAX_TICKS, Killed, World, WrongDriver

TERM_S = 3600
START = 10**24
STORY = {
    "settled and closed": [("settle", 100), ("close", 150)],
    "closed": [("close", 200)],
    "redeemed and closed": [("redeem", 300), ("close", 350)],
    "extended, settled, closed": [("extend", 50), ("settle", 1020), ("close", 1020)],
    "settled and released": [("settle", 70), ("release", 0)],
}
"""What happens to a channel of 1000 after it is open, and the sums so far (of an extension: what is added). Those that
are released have a short term, and some of them come too late for it: calls that hold one are refused or revert."""


class Channels(World):
    """One seed's run: ``payments`` channels."""

    def open(self) -> None:
        if not self.network.vault:
            self.network = msgspec.structs.replace(self.network, vault=places.VAULT_ADDRESS, refused_s=1.0)
            self.redeemer = Identity(b"\x08" * 32)
            self.chain.fund(bytes.fromhex(self.redeemer.address[2:]), 10**18, 0)
            self.until = self.chain.header(self.chain.head).timestamp + TERM_S
            self.late = False
            for _ in range(3):
                self.chain.mine()
        self.db = Database(self.directory / "node.sqlite")
        self.db.connection.execute(
            "create table if not exists told (request_id text primary key, kind text, nonce integer, reserved integer)"
        )
        signers = [self.identity, self.redeemer]
        self.driver = self.driver_type(self.db, [self.network], signers, clock=self.clock, transport=self.line)
        self.vault = self.driver.vaults["devnet"]
        self.vault.on_word(self.word)

    def story(self, place: int) -> list[tuple[str, int]]:
        return list(STORY.values())[place % len(STORY)]

    def payee(self, place: int) -> Identity:  # type: ignore[override]
        if self.story(place)[0][0] == "redeem":
            return self.redeemer
        return Identity(keccak256(b"payee %d" % place))

    def order(self, place: int) -> None:
        """Open it; now and then with money put in before."""
        me = self.identity.address
        with self.db.transaction(durable=True) as connection:
            if place % 7 == 3:
                self.vault.deposit(connection, f"{place}:deposit", me, 1000)
            self.vault.reserve(
                connection,
                f"{place}:reserve:0",
                payer=me,
                payee=self.payee(place).address,
                signer=me,
                amount=1000,
                valid_until=self.until if self.story(place)[-1][0] == "release" else self.until + 300 * 86400,
            )

    def word(self, word: ChainWord) -> None:
        """Notes it, and asks for what comes next, in the same transaction."""
        if isinstance(word, Opened) and not word.final:
            return
        kind = type(word).__name__
        opened = (word.key.nonce, word.reserved) if isinstance(word, Opened) else (None, None)
        self.db.connection.execute("insert into told values (?, ?, ?, ?)", (word.request_id, kind, *opened))
        place, _, done = word.request_id.rpartition(":")
        if isinstance(word, Failed) or not done.isdecimal():
            return
        self.go_on(int(place.partition(":")[0]), int(done))

    def key(self, place: int) -> ChannelKey:
        (nonce,) = self.db.connection.execute(
            "select nonce from told where request_id = ?", (f"{place}:reserve:0",)
        ).fetchone()
        me = self.identity.address
        return ChannelKey(me, self.payee(place).address, me, nonce)

    def go_on(self, place: int, done: int) -> None:
        if done == len(self.story(place)):
            return
        kind, amount = self.story(place)[done]
        name, connection, key = f"{place}:{kind}:{done + 1}", self.db.connection, self.key(place)
        if kind == "extend":
            self.vault.extend(connection, name, key, amount, self.until + 301 * 86400)
        elif kind == "settle":
            self.vault.settle(connection, name, key, amount)
        elif kind == "release":
            self.vault.release(connection, name, key)
        elif kind == "close":
            said = self.payee(place).sign_digest(vault.close_digest(self.vault.vault, key.id, amount))
            self.vault.close(connection, name, key, amount, said)
        else:
            said = self.identity.sign_digest(vault.voucher_digest(self.vault.vault, key.id, amount))
            self.vault.redeem(connection, name, key, amount, said)

    async def step(self) -> None:
        try:
            if self.rng.random() < 0.5:
                self.vault.gather()
            for manager in self.driver.managers.values():
                await manager.step()
        except ChainUnreachable:
            pass
        except Killed:
            self.db.close()
            self.open()

    async def run(self) -> str:
        for _ in range(MAX_TICKS):
            while self.ordered < self.payments and self.rng.random() < 0.4:
                self.order(self.ordered)
                self.ordered += 1
            if self.ordered and self.rng.random() < 0.2:
                self.order(self.rng.randrange(self.ordered))  # the same request again is the same request
            await self.step()
            self.shake()
            await self.clock.advance(0.5)
            told = self._told("%")
            total = sum(1 + (place % 7 == 3) + len(self.story(place)) for place in range(self.payments))
            total -= sum(len(self.story(place)) for place in self.too_late())
            if not self.late and self._told("%:settle:1") >= self.payments // len(STORY):
                self.chain.advance_time(2 * TERM_S)  # until now the chain said "not yet" to releases
                self.late = True
            if told == total and not self._count("state not in ('final', 'failed')"):
                break
        return self._judge()

    def too_late(self) -> list[int]:
        rows = self.db.connection.execute(
            "select request_id from told where kind = 'Failed' and request_id like '%:reserve:0'"
        )
        places = [int(name.partition(":")[0]) for (name,) in rows]
        return [place for place in places if self.story(place)[-1][0] == "release"]

    def _told(self, like: str) -> int:
        return int(
            self.db.connection.execute("select count(*) from told where request_id like ?", (like,)).fetchone()[0]
        )

    def _view(self, to: str, data: bytes) -> str:
        return str(self.rpc.call("eth_call", [{"to": to, "data": "0x" + data.hex()}, "latest"]))

    def _held(self, owner: str) -> int:
        return int(self._view(places.TOKEN_ADDRESS, erc20.balance_of(owner)), 16)

    def _judge(self) -> str:
        wrong = []
        said = {row["request_id"]: row for row in self.db.connection.execute("select * from told")}
        due: Counter[str] = Counter()
        opened = [place for place in range(self.payments) if place not in self.too_late()]
        for place in opened:
            due[self.payee(place).address] += max(amount for kind, amount in self.story(place) if kind != "extend")
            names = [f"{place}:reserve:0", *(f"{place}:{kind}:{n}" for n, (kind, _) in enumerate(self.story(place), 1))]
            for name in names:
                if name not in said or said[name]["kind"] == "Failed":
                    wrong.append(f"{name} was not done")
                elif "extend" in name and said[name]["reserved"] != 1050:
                    wrong.append(f"{name}: {said[name]['reserved']} reserved")
                elif "reserve" in name and int(
                    self._view(self.vault.vault.address, vault.channel(self.key(place).id)), 16
                ):
                    wrong.append(f"{place}: still open")
        wrong += [
            f"{owner} has {self._held(owner)}, not {units}"
            for owner, units in due.items()
            if self._held(owner) != units
        ]
        free, nonce = vault.read_account(self._view(self.vault.vault.address, vault.account(self.identity.address)))
        if nonce != len(opened):
            wrong.append(f"{nonce} channels were opened instead of {len(opened)}")
        deposits = self.db.connection.execute(
            "select amount from vault_request where kind = 'deposit' and state = 'done'"
        )
        put_in = sum(int(amount) for (amount,) in deposits)
        if (self._held(self.identity.address), free) != (START - put_in, put_in - sum(due.values())):
            wrong.append(f"{put_in} were deposited, {free} are free: not what was asked for")
        return "; ".join(wrong)


class Both(Channels):
    """The same account also pays by transfer, many at a time: one sequence of nonces, one wallet, two contracts."""

    def open(self) -> None:
        self.network = msgspec.structs.replace(self.network, multi_transfer=places.MULTI_TRANSFER_ADDRESS, multi_max=10)
        super().open()
        self.db.connection.execute("create table if not exists paid (order_id text, kind text)")
        self.driver.on_settled(self.tell)

    def tell(self, outcome: Settlement | Failure) -> None:
        self.db.connection.execute("insert into paid values (?, ?)", (outcome.order_id, type(outcome).__name__))

    def receiver(self, place: int) -> str:
        return f"0x{0xF00000 + place:040x}"

    def order(self, place: int) -> None:
        super().order(place)
        with self.db.transaction(durable=True) as connection:
            for part in range(2):
                order = PaymentOrder(
                    f"t{place}.{part}", "erc20-devnet-tglm", self.identity.address, self.receiver(place), 7 + place
                )
                self.driver.pay(connection, order)

    async def step(self) -> None:
        if self.rng.random() < 0.2:
            self.driver.payouts["devnet"].gather()
        await super().step()

    def _count(self, where: str) -> int:
        waiting = self.db.connection.execute("select count(*) from evm_order where intent is null").fetchone()[0]
        return super()._count(where) + int(waiting)

    def _held(self, owner: str) -> int:
        """What was paid by transfer put back: that is looked at apart."""
        sent = sum(2 * (7 + place) for place in range(self.payments)) if owner == self.identity.address else 0
        return super()._held(owner) + sent

    def _judge(self) -> str:
        wrong = [super()._judge()]
        wrong += [
            f"{self.receiver(place)} has {self._held(self.receiver(place))}"
            for place in range(self.payments)
            if self._held(self.receiver(place)) != 2 * (7 + place)
        ]
        told = [tuple(row) for row in self.db.connection.execute("select order_id, kind from paid")]
        if sorted(told) != sorted((f"t{n}.{part}", "Settlement") for n in range(self.payments) for part in range(2)):
            wrong.append(f"{len(told)} settlements were told")
        return "; ".join(filter(None, wrong))


async def run(
    seed: int,
    channels: int,
    directory: Path,
    driver_type: type[EvmDriver] = EvmDriver,
    world_type: type[Channels] = Channels,
) -> tuple[str, Any]:
    world = world_type(seed, channels, directory, driver_type)
    try:
        async with asyncio.timeout(100):
            return await world.run(), world.faults
    except sqlite3.IntegrityError as error:
        return f"the tables say no: {error}", world.faults
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(4))
async def test_exactly_once(seed: int, tmp_path: Path) -> None:
    wrong, faults = await run(seed, 10, tmp_path)
    assert not wrong, f"{wrong} after {dict(faults)}"


@pytest.mark.parametrize("seed", [20])
async def test_exactly_once_beside_transfers(seed: int, tmp_path: Path) -> None:
    wrong, faults = await run(seed, 8, tmp_path, world_type=Both)
    assert not wrong, f"{wrong} after {dict(faults)}"


async def test_the_control_fails(tmp_path: Path) -> None:
    """A manager that sends first must be caught, or the test above shows nothing."""
    caught = ""
    for seed in range(3, 15):
        directory = tmp_path / str(seed)
        directory.mkdir()
        caught += (await run(seed, 12, directory, WrongDriver))[0]
        if caught:
            return
    pytest.fail("nothing was wrong")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200, 230))
async def test_exactly_once_beside_transfers_many_seeds(seed: int, tmp_path: Path) -> None:
    wrong, faults = await run(seed, 15, tmp_path, world_type=Both)
    assert not wrong, f"{wrong} after {dict(faults)}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 160))
async def test_exactly_once_many_seeds(seed: int, tmp_path: Path) -> None:
    wrong, faults = await run(seed, 20, tmp_path)
    assert not wrong, f"{wrong} after {dict(faults)}"

"""The vault's requests, one step at a time: what is gathered, in which order it goes, what is halved, and what is seen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shem.cogs.clock import ManualClock
from shem.errors import Refused
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import ChainUnreachable, Failure, PaymentOrder
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm import erc20, vault
from shem.node.payment.drivers.evm.channels import REFUSALS
from shem.node.payment.drivers.evm.transaction import Transaction
from shem.node.payment.drivers.evm.vault import ChannelKey
from shem.node.payment.drivers.vaults import ChainWord, Ended, Failed, Opened, WrongVault
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

PLATFORM = "channel-devnet-tglm"
TOKEN = 10**18
PEOPLE = [Identity(bytes([n]) * 32) for n in range(40, 48)]


class Bench:
    """A payer whose managers and gathering are stepped by hand; the clock stands unless it is moved."""

    def __init__(self, payer: Any, chain: DevChain) -> None:
        self.payer, self.chain, self.chain_rpc = payer, chain.chain, chain.rpc
        self.clock = ManualClock()
        self.me = payer.identity.address
        self.until = self.chain.header(self.chain.head).timestamp + 86400
        self.open()

    def open(self) -> None:
        self.driver = self.payer.open(clock=self.clock)
        self.vault = self.driver.vaults["devnet"]
        self.told: list[ChainWord] = []
        self.vault.on_word(self.told.append)

    async def reopen(self) -> None:
        """As after ``kill -9``: only the disk is left."""
        await self.payer.close()
        self.open()

    def reserve(self, name: str, payee: Identity, amount: int, until: int = 0) -> None:
        with self.payer.db.transaction() as connection:
            self.vault.reserve(
                connection,
                name,
                payer=self.me,
                payee=payee.address,
                signer=self.me,
                amount=amount,
                valid_until=until or self.until,
            )

    def ask(self, kind: str, name: str, *what: Any) -> None:
        with self.payer.db.transaction() as connection:
            getattr(self.vault, kind)(connection, name, *what)

    def key(self, payee: Identity, nonce: int = 0) -> ChannelKey:
        return ChannelKey(self.me, payee.address, self.me, nonce)

    def close_word(self, payee: Identity, key: ChannelKey, amount: int) -> bytes:
        return payee.sign_digest(vault.close_digest(self.vault.vault, key.id, amount))

    async def steps(self, count: int, *, mine: bool = True) -> None:
        for _ in range(count):
            self.vault.gather()
            for manager in self.driver.managers.values():
                await manager.step()
            if mine:
                self.chain.mine()

    @property
    def final(self) -> list[ChainWord]:
        return [word for word in self.told if not isinstance(word, Opened) or word.final]

    def calls(self) -> list[str]:
        """Kinds of our intents in the order of their nonces."""
        rows = self.payer.db.connection.execute("select key from evm_intent where nonce is not null order by nonce")
        return [key.split(":")[1] for (key,) in rows]

    def codes(self) -> list[str]:
        return [problem.code for problem in self.driver.problems()]


@pytest.fixture
async def make(chain: DevChain, new_payer: Callable[..., Any]) -> AsyncIterator[Callable[..., Bench]]:
    chain.rpc.call("shem_setAutomine", [False])
    made: list[Bench] = []

    def build(**changes: Any) -> Bench:
        made.append(Bench(new_payer(**({"vault": places.VAULT_ADDRESS} | changes)), chain))
        return made[-1]

    yield build
    for bench in made:
        await bench.payer.close()


async def test_reserves_become_one_call_and_bring_their_own_deposit(make: Callable[..., Bench]) -> None:
    """Also: each of the three transactions goes at the first look after the one before; no timer is waited for."""
    bench = make()
    for place, person in enumerate(PEOPLE[:3]):
        bench.reserve(f"r{place}", person, 100 + place)
    await bench.steps(9)
    assert bench.calls() == ["leave", "deposit", "reserve"]
    assert bench.clock.monotonic() == 0
    assert bench.final == [
        Opened(
            request_id=f"r{place}",
            key=bench.key(person, place),
            reserved=100 + place,
            valid_until=bench.until,
            tx_hash=bench.final[0].tx_hash,
            block_number=bench.final[0].block_number,
            block_hash=bench.final[0].block_hash,
            final=True,
        )
        for place, person in enumerate(PEOPLE[:3])
    ]
    assert await bench.vault.free(bench.me) == 0
    bench.reserve("r3", PEOPLE[3], 7)
    await bench.steps(9)
    assert bench.calls()[3:] == ["deposit", "reserve"], "leave is asked for once"
    bench.reserve("r3", PEOPLE[3], 7)
    await bench.steps(3)
    assert len(bench.calls()) == 5, "the same request again is the same request"


async def test_a_deposit_by_hand_is_used_and_the_rest_comes_back(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.ask("deposit", "d", bench.me, 1000)
    bench.reserve("r", PEOPLE[0], 300)
    await bench.steps(9)
    assert bench.calls() == ["leave", "deposit", "reserve"]
    assert await bench.vault.free(bench.me) == 700
    bench.ask("withdraw", "w", bench.me, PEOPLE[5].address, 700)
    bench.ask("withdraw", "too much", bench.me, PEOPLE[5].address, 1)
    await bench.steps(5)
    assert [word.request_id for word in bench.final] == ["d", "r", "too much", "w"]
    assert [word.code for word in bench.final if isinstance(word, Failed)] == ["money_short_in_vault"]
    assert bench.codes() == [], "nothing is deposited to be withdrawn, and nothing waits for it"
    held = bench.chain.state(bench.chain.head)
    assert held is not None
    assert (await bench.driver.balance("erc20-devnet-tglm", PEOPLE[5].address)).token_units == 700


async def test_a_reorg_is_followed(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.ask("deposit", "d", bench.me, 1000)
    await bench.steps(6)
    bench.reserve("r", PEOPLE[0], 300)
    await bench.steps(1)
    await bench.steps(1, mine=False)
    assert isinstance(bench.told[-1], Opened)
    assert not bench.told[-1].final
    assert not (await bench.vault.look(bench.key(PEOPLE[0]))).opened, "what may vanish is not seen"
    bench.chain.reorg(1, requeue=False)
    await bench.steps(6)
    assert [word.request_id for word in bench.final] == ["d", "r"]
    assert bench.calls() == ["leave", "deposit", "reserve"]


async def test_the_life_of_a_channel_as_it_is_seen(make: Callable[..., Bench]) -> None:
    bench = make()
    person = PEOPLE[0]
    key = bench.key(person)
    nothing = await bench.vault.look(key)
    assert (nothing.opened, nothing.is_open, nothing.claimed, nothing.paid_tx) == (False, False, 0, "")
    bench.reserve("r", person, 300)
    await bench.steps(9)
    seen = await bench.vault.look(key)
    assert (seen.opened, seen.reserved, seen.claimed, seen.valid_until) == (True, 300, 0, bench.until)
    assert seen.block_number == bench.chain.finalized
    bench.ask("extend", "e", key, 50, bench.until + 9)
    bench.ask("settle", "s", key, 120)
    await bench.steps(6)
    seen = await bench.vault.look(key)
    assert (seen.reserved, seen.claimed, seen.valid_until) == (350, 120, bench.until + 9)
    opened = [word for word in bench.final if isinstance(word, Opened)]
    assert [(word.request_id, word.reserved) for word in opened] == [("r", 300), ("e", 350)]
    settled = next(word for word in bench.final if word.request_id == "s")
    assert isinstance(settled, Ended)
    assert seen.paid_tx == settled.tx_hash
    bench.ask("close", "c", key, 200, bench.close_word(person, key, 200))
    await bench.steps(6)
    closed = await bench.vault.look(key)
    assert (closed.opened, closed.is_open, closed.reserved, closed.claimed) == (True, False, 0, 200)
    assert closed.paid_tx == next(word.tx_hash for word in bench.final if word.request_id == "c")  # type: ignore[union-attr]
    assert await bench.vault.free(bench.me) == 150
    never = await bench.vault.look(bench.key(person, 1))
    assert not never.opened


async def test_another_node_sees_what_was_paid_before_it_looked(make: Callable[..., Bench]) -> None:
    bench = make()
    key = bench.key(PEOPLE[0])
    bench.reserve("r", PEOPLE[0], 300)
    await bench.steps(9)
    bench.ask("settle", "s", key, 120)
    await bench.steps(5)
    bench.payer.db.connection.execute("delete from vault_seen")
    assert (await bench.vault.look(key)).claimed == 120
    bench.ask("close", "c", key, 0, bench.close_word(PEOPLE[0], key, 0))
    await bench.steps(5)
    seen = await bench.vault.look(key)
    assert (seen.opened, seen.is_open, seen.claimed) == (True, False, 120)


async def test_one_bad_entry_holds_up_no_other(make: Callable[..., Bench]) -> None:
    bench = make()
    keys = [bench.key(person, place) for place, person in enumerate(PEOPLE[:5])]
    for place, person in enumerate(PEOPLE[:5]):
        bench.reserve(f"r{place}", person, 100)
    await bench.steps(9)
    for place, person in enumerate(PEOPLE[:5]):
        bench.ask(
            "close", f"c{place}", keys[place], 10, bench.close_word(person, keys[place], 11 if place == 2 else 10)
        )
    for _ in range(12):
        await bench.steps(1)
        await bench.clock.advance(1)
    await bench.steps(4)
    told = {word.request_id: type(word) for word in bench.final if word.request_id[0] == "c"}
    assert told == {"c0": Ended, "c1": Ended, "c2": Failed, "c3": Ended, "c4": Ended}
    failed = next(word for word in bench.final if isinstance(word, Failed))
    assert failed.code == "refused"
    assert "signature" in failed.message
    before = len(bench.calls())
    await bench.clock.advance(100)
    await bench.steps(5)
    assert len(bench.calls()) == before, "and is not tried again"
    assert bench.codes() == []


async def test_what_reverts_on_chain_is_halved_and_then_told(make: Callable[..., Bench]) -> None:
    """The term of one of two passes between signing and mining."""
    bench = make()
    bench.ask("deposit", "d", bench.me, 1000)
    await bench.steps(6)
    bench.reserve("short", PEOPLE[0], 10, bench.until - 86400 + 3600)
    bench.reserve("long", PEOPLE[1], 10)
    await bench.steps(1, mine=False)
    assert bench.calls()[-1] == "reserve"
    bench.chain.advance_time(7200)
    for _ in range(12):
        await bench.steps(1)
        await bench.clock.advance(1)
    await bench.steps(4)
    told = {word.request_id: type(word) for word in bench.final}
    assert told == {"d": Ended, "short": Failed, "long": Opened}
    assert bench.calls() == ["leave", "deposit", "reserve", "reserve"], "one that failed, one for who is left"


async def test_a_single_call_that_reverts_is_told(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.ask("deposit", "d", bench.me, 1000)
    await bench.steps(6)
    bench.reserve("short", PEOPLE[0], 10, bench.until - 86400 + 3600)
    await bench.steps(1, mine=False)
    bench.chain.advance_time(7200)
    await bench.steps(6)
    (failed,) = [word for word in bench.final if isinstance(word, Failed)]
    assert (failed.request_id, failed.code) == ("short", "reverted")


def in_other_words(answer: Callable[[Any], Any], message: str, code: int, data: str) -> Callable[[Any], Any]:
    """An endpoint that leaves a contract's reason in the data, as several kinds do."""

    def told(asked: Any) -> Any:
        if isinstance(asked, list):
            return [told(one) for one in asked]
        reply = answer(asked)
        if "error" in reply and "revert" in reply["error"]["message"]:
            reply["error"] = {"code": code, "message": message, "data": data + reply["error"]["data"]}
        return reply

    return told


@pytest.mark.parametrize(
    "words", [None, ("execution reverted", 3, ""), ("VM execution error.", -32015, "Reverted ")], ids=str
)
async def test_what_time_cures_waits(make: Callable[..., Bench], words: tuple[str, int, str] | None) -> None:
    bench = make()
    if words:
        bench.chain_rpc.answer = in_other_words(bench.chain_rpc.answer, *words)
    key = bench.key(PEOPLE[0])
    bench.reserve("r", PEOPLE[0], 10)
    await bench.steps(9)
    bench.ask("release", "x", key)
    for _ in range(3 * REFUSALS):
        await bench.steps(1)
        await bench.clock.advance(1)
    assert [word.request_id for word in bench.final] == ["r"]
    bench.chain.advance_time(90000)
    await bench.clock.advance(1)
    await bench.steps(5)
    assert [word.request_id for word in bench.final] == ["r", "x"]
    assert await bench.vault.free(bench.me) == 10


async def test_the_payee_collects_alone_once(make: Callable[..., Bench], chain: DevChain) -> None:
    """From the payer's own account here, which is somebody else's right too."""
    bench = make()
    me = bench.payer.identity
    key = ChannelKey(bench.me, bench.me, bench.me, 0)
    bench.reserve("r", me, 100)
    await bench.steps(9)
    voucher = me.sign_digest(vault.voucher_digest(bench.vault.vault, key.id, 60))
    bench.ask("redeem", "v", key, 60, voucher)
    await bench.steps(5)
    assert (await bench.vault.look(key)).claimed == 60
    bench.ask("redeem", "again", key, 60, voucher)
    for _ in range(6):
        await bench.steps(1)
        await bench.clock.advance(1)
    assert isinstance(bench.final[-1], Failed)
    assert bench.final[-1].request_id == "again"


async def test_who_collects_for_others_makes_a_call_for_each_of_them(make: Callable[..., Bench]) -> None:
    """The keys of those who are paid are not here."""
    bench = make()
    me = bench.payer.identity
    for place, person in enumerate([PEOPLE[0], PEOPLE[1], PEOPLE[0]]):
        bench.reserve(f"r{place}", person, 100)
    await bench.steps(9)
    keys = [bench.key(PEOPLE[0]), bench.key(PEOPLE[1], 1), bench.key(PEOPLE[0], 2)]
    for place, key in enumerate(keys):
        voucher = me.sign_digest(vault.voucher_digest(bench.vault.vault, key.id, 60 + place))
        with bench.payer.db.transaction() as connection:
            bench.vault.redeem(connection, f"v{place}", key, 60 + place, voucher, sender=bench.me)
    await bench.steps(6)
    assert [(await bench.vault.look(key)).claimed for key in keys] == [60, 61, 62]
    assert bench.calls()[3:] == ["redeem"] * 3, "in their order, and a call names one payee"
    assert [word.request_id for word in bench.final if isinstance(word, Ended)] == ["v0", "v1", "v2"]


async def test_requests_outlive_the_process(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.reserve("r", PEOPLE[0], 10)
    await bench.reopen()
    await bench.steps(9)
    assert [word.request_id for word in bench.final] == ["r"]


async def test_a_top_up_that_nobody_needs_any_more_is_dropped(make: Callable[..., Bench], chain: DevChain) -> None:
    bench = make(token_units=50)
    bench.reserve("r", PEOPLE[0], 100)
    await bench.steps(6)
    assert bench.codes() == ["InsufficientToken"]
    assert bench.calls() == ["leave"]
    friend = Identity(b"\x55" * 32)
    chain.fund(friend.address, wei=TOKEN, token_units=1000)
    # somebody puts it in for us
    for nonce, (to, data) in enumerate(
        [
            (places.TOKEN_ADDRESS, erc20.approve(places.VAULT_ADDRESS, 1000)),
            (places.VAULT_ADDRESS, vault.deposit(bench.me, 100)),
        ]
    ):
        fields: dict[str, Any] = {"chain_id": 1337, "nonce": nonce, "max_tip": 1, "max_fee": 10**10, "gas": 200_000}
        chain.chain.submit(Transaction(**fields, to=to, data=data).sign(friend).raw)
    await bench.steps(9)
    assert bench.calls() == ["leave", "reserve"]
    assert bench.codes() == []
    assert [word.request_id for word in bench.told if isinstance(word, Failed)] == []


async def test_nothing_is_sent_to_a_contract_that_is_not_ours(make: Callable[..., Bench]) -> None:
    bench = make(vault=places.MULTI_TRANSFER_ADDRESS)
    bench.reserve("r", PEOPLE[0], 10)
    await bench.steps(5)
    assert bench.calls() == []
    assert bench.codes() == ["TxStuck"], "Golem's API knows no better word"
    assert {one.more for one in (*bench.driver.problems(), *bench.vault.problems())} == {"wrong_vault"}
    with pytest.raises(WrongVault):
        await bench.vault.look(bench.key(PEOPLE[0]))
    with pytest.raises(WrongVault):
        await bench.vault.free(bench.me)


async def test_what_can_never_be_done_is_refused(make: Callable[..., Bench]) -> None:
    bench = make()
    key, other = bench.key(PEOPLE[0]), ChannelKey(PEOPLE[1].address, bench.me, bench.me, 0)
    said = bench.close_word(PEOPLE[0], key, 1)
    for kind, what, code in [
        ("deposit", (PEOPLE[0].address, 1), "not_our_account"),
        ("deposit", (bench.me, 0), "bad_amount"),
        ("deposit", (bench.me, 1 << 96), "bad_amount"),
        ("deposit", ("0x12", 1), "bad_node_id"),
        ("withdraw", (bench.me, "0x" + "00" * 20, 1), "bad_payee"),
        ("settle", (other, 1), "not_our_account"),
        ("settle", (key, 0), "bad_amount"),
        ("close", (key, 1, b"x"), "bad_signature"),
        ("close", (key, 1, said[:64] + b"\x00"), "bad_signature"),
        ("redeem", (key, 1, said), "not_our_account"),
        ("extend", (key, 1, -1), "bad_term"),
        ("extend", (key, -1, 1), "bad_amount"),
        ("release", (other,), "not_our_account"),
        ("release", (ChannelKey(bench.me, PEOPLE[0].address.upper(), bench.me, 0),), "bad_channel"),
        ("release", (ChannelKey(bench.me, PEOPLE[0].address, bench.me, -1),), "bad_channel"),
        ("release", (ChannelKey(bench.me, PEOPLE[0].address, bench.me, 1 << 63),), "bad_channel"),
    ]:
        with pytest.raises(Refused) as caught:
            bench.ask(kind, "x", *what)
        assert caught.value.code == code
    with pytest.raises(Refused):
        await bench.vault.look(ChannelKey("0x12", PEOPLE[0].address, bench.me, 0))
    for payee in (places.TOKEN_ADDRESS, places.VAULT_ADDRESS):
        with pytest.raises(Refused, match="cannot be paid"):
            bench.ask("withdraw", "x", bench.me, payee, 1)


async def test_the_driver_by_channel(make: Callable[..., Bench]) -> None:
    bench = make(aliases=("holesky",))
    driver = ChannelDriver(bench.driver)
    assert [platform.platform for platform in driver.platforms()] == [PLATFORM, "channel-holesky-tglm"]
    assert driver.chain(PLATFORM) is driver.chain("channel-holesky-tglm") is bench.vault
    bench.ask("deposit", "d", bench.me, 1000)
    await bench.steps(6)
    balance = await driver.balance(PLATFORM, bench.me)
    assert (await bench.vault.free(bench.me), balance.token_units) == (1000, 1000 * TOKEN)
    orders: list[PaymentOrder] = []
    ends: list[Any] = []
    driver.on_order(orders.append)
    driver.on_settled(ends.append)
    order = PaymentOrder("o", PLATFORM, bench.me, PEOPLE[0].address, 5)
    with bench.payer.db.transaction() as connection:
        driver.pay(connection, order)
    end = Failure("o", "x", "y")
    driver.finish(end)
    assert (orders, ends) == ([order], [end])
    for amount, platform in [(0, PLATFORM), (5, "channel-mars-glm")]:
        with bench.payer.db.transaction() as connection, pytest.raises(Refused):
            driver.pay(connection, PaymentOrder("p", platform, bench.me, PEOPLE[0].address, amount))
    with pytest.raises(Refused, match="by channel"):
        await driver.verify(PLATFORM, "0x" + "00" * 32, bench.me, PEOPLE[0].address, 1)
    assert driver.problems() == []


async def test_on_a_running_chain_a_reserve_is_there_in_a_moment(
    chain: DevChain, new_payer: Callable[..., Any]
) -> None:
    payer = new_payer(vault=places.VAULT_ADDRESS)
    payer.open()
    driver = ChannelDriver(payer.driver)
    waiter = driver.chain(PLATFORM)
    waiter.on_word(payer._tell)
    await payer.driver.start()
    await driver.start()
    with payer.db.transaction() as connection:
        waiter.reserve(
            connection,
            "r",
            payer=payer.identity.address,
            payee=PEOPLE[0].address,
            signer=payer.identity.address,
            amount=5,
            valid_until=chain.chain.header(chain.chain.head).timestamp + 3600,
        )
    try:
        while not any(word.final for word in payer.told):
            await payer.wait_told(len(payer.told) + 1)
        assert (await waiter.look(payer.told[-1].key)).reserved == 5
    finally:
        await driver.stop()
        await payer.close()


async def test_what_was_done_can_be_read(make: Callable[..., Bench]) -> None:
    bench = make()
    for place, person in enumerate(PEOPLE[:2]):
        bench.reserve(f"r{place}", person, 100)
    assert [(deed.kind, deed.state) for deed in bench.driver.history(bench.me, 10)] == [("reserve", "new")] * 2
    await bench.steps(9)
    for place, person in enumerate(PEOPLE[:2]):
        bench.ask("settle", f"s{place}", bench.key(person, place), 30)
    await bench.steps(5)
    for place, person in enumerate(PEOPLE[:2]):
        bench.ask("settle", f"t{place}", bench.key(person, place), 40)
    bench.payer.order("plain", PEOPLE[0].address, 7)
    await bench.steps(1)
    told = [(deed.kind, deed.state, deed.amount, deed.entries) for deed in bench.driver.history(bench.me, 10)]
    assert sorted(told) == [
        ("approve", "final", 0, 1),
        ("deposit", "final", 200, 1),
        ("reserve", "final", 200, 2),
        ("settle", "final", 60, 2),
        ("settle", "sent", 80, 2),
        ("transfer", "sent", 7, 1),
    ]
    sent = [deed for deed in bench.driver.history(bench.me, 10) if deed.state == "sent"]
    assert all(bench.chain.transaction(bytes.fromhex(deed.tx_hash[2:])) for deed in sent)
    assert {(deed.kind, deed.receiver) for deed in sent} == {("settle", ""), ("transfer", PEOPLE[0].address)}
    await bench.steps(5)
    (settled,) = [deed for deed in bench.driver.history(bench.me, 10) if deed.kind == "settle" and deed.amount == 20]
    assert settled.tx_hash.startswith("0x")
    assert settled.gas_used
    assert len(bench.driver.history(bench.me, 2)) == 2
    assert bench.driver.history(PEOPLE[0].address, 10) == []


async def test_calls_cost_what_the_table_says(make: Callable[..., Bench]) -> None:
    """As made by the node: batches of one and of ten, payees that hold tokens already."""
    bench = make()
    people = [Identity(bytes([n]) * 32) for n in range(60, 70)]
    bench.ask("deposit", "d0", bench.me, 10**6)
    await bench.steps(6)
    bench.ask("deposit", "d1", bench.me, 10**6)
    for person in people:
        bench.payer.order(f"before {person.address}", person.address, 1)
        bench.reserve(f"r{person.address}", person, 100)
    await bench.steps(6)
    keys = [bench.key(person, place) for place, person in enumerate(people)]
    for key in keys:
        bench.ask("settle", f"s{key.nonce}", key, 20)
    await bench.steps(5)
    for person, key in zip(people, keys, strict=True):
        bench.ask("close", f"c{key.nonce}", key, 30, bench.close_word(person, key, 30))
    await bench.steps(5)
    table = json.loads((Path(__file__).parents[1] / "vault" / "gas.json").read_text())
    other_payees = 10 * 4300  # the table's closes are all of one payee, whose balance is written once
    limits = {
        ("deposit", 1): table["deposit, again"],
        ("reserve", 10): table["reserve 10"],
        ("settle", 10): table["settle 10"],
        ("close", 10): table["close with the payee's word 10"] + other_payees,
    }
    found = {(deed.kind, deed.entries): deed.gas_used for deed in reversed(bench.driver.history(bench.me, 100))}
    assert [bench.calls().count(kind) for kind in ("reserve", "settle", "close")] == [1, 1, 1]
    dearer = {what: (found[what], limit) for what, limit in limits.items() if found[what] > limit * 1.02}
    assert dearer == {}


async def test_an_endpoint_that_hides_the_vault_holds_up_no_other_payment(make: Callable[..., Bench]) -> None:
    bench = make()
    answer = bench.chain_rpc.answer

    def refuse(asked: Any) -> Any:
        many = asked if isinstance(asked, list) else [asked]
        told = answer(many)
        for one, reply in zip(many, told, strict=True):
            if one["method"] == "eth_getCode":
                reply.pop("result", None)
                reply["error"] = {"code": -32601, "message": "not offered here"}
        return told if isinstance(asked, list) else told[0]

    bench.chain_rpc.answer = refuse
    bench.reserve("r", PEOPLE[0], 10)
    bench.payer.order("plain", PEOPLE[1].address, 7)
    await bench.steps(5)
    assert [type(told).__name__ for told in bench.payer.told] == ["Settlement"]
    assert bench.codes() == ["TxStuck"]
    bench.chain_rpc.answer = answer
    await bench.steps(9)
    assert [word.request_id for word in bench.final] == ["r"]


async def test_a_vault_that_was_out_of_the_configuration_hears_what_it_missed(
    chain: DevChain, new_payer: Callable[..., Any], until: Callable[..., Awaitable[None]]
) -> None:
    payer = new_payer(vault=places.VAULT_ADDRESS)
    payer.open()
    me, end = payer.identity.address, chain.chain.header(chain.chain.head).timestamp + 3600
    with payer.db.transaction() as connection:
        payer.driver.vaults["devnet"].deposit(connection, "d", me, 10)
        payer.driver.vaults["devnet"].reserve(
            connection, "r", payer=me, payee=PEOPLE[0].address, signer=me, amount=5, valid_until=end
        )
    payer.driver.vaults["devnet"].gather()
    (manager,) = payer.driver.managers.values()
    async with asyncio.timeout(20):
        while not payer.db.connection.execute(
            "select 1 from evm_intent where key like '%reserve%' and state = 'sent'"
        ).fetchone():
            await manager.step()
            await asyncio.sleep(0.01)
    await payer.close()
    with_it = payer.network
    payer.network = msgspec.structs.replace(with_it, vault="")
    payer.open()
    await payer.driver.start()
    query = "select count(*) from evm_intent where state = 'final'"
    await until(lambda: payer.db.connection.execute(query).fetchone()[0] == 3)
    await payer.close()
    payer.network = with_it
    payer.open()
    driver = ChannelDriver(payer.driver)
    driver.chain(PLATFORM).on_word(payer._tell)
    await payer.driver.start()
    await driver.start()
    try:
        told = await payer.wait_told(2)
    finally:
        await driver.stop()
        await payer.close()
    assert sorted((word.request_id, type(word)) for word in told) == [("d", Ended), ("r", Opened)]


async def test_a_vault_that_was_out_of_the_configuration_hears_of_what_never_happened(
    make: Callable[..., Bench], until: Callable[..., Awaitable[None]]
) -> None:
    """What another program displaced was given up by the owner meanwhile: there is no receipt of it."""
    bench = make(rebroadcast_s=0.0)
    bench.ask("deposit", "d", bench.me, 1000)
    await bench.steps(4)
    bench.ask("withdraw", "w", bench.me, bench.me, 10)
    await bench.steps(1, mine=False)
    (name, nonce) = bench.payer.db.connection.execute(
        "select id, nonce from evm_intent where state = 'sent'"
    ).fetchone()
    bench.chain.pool.clear()
    other = Transaction(chain_id=1337, nonce=nonce, max_tip=1, max_fee=10**10, gas=21_000, to=bench.me, value=1)
    bench.chain.submit(other.sign(bench.payer.identity).raw)
    for _ in range(4):
        bench.chain.mine()
    await bench.payer.close()
    with_it = bench.payer.network
    bench.payer.network = msgspec.structs.replace(with_it, vault="")
    await bench.payer.open(clock=bench.clock).retry(bench.me, str(name))
    await bench.payer.close()
    bench.payer.network = with_it
    bench.open()
    await bench.vault.start()
    await until(lambda: any(word.request_id == "w" for word in bench.told))
    await bench.vault.stop()
    assert [(type(word), word.request_id) for word in bench.told] == [(Failed, "w")]


async def test_one_reserve_that_is_too_dear_holds_up_no_other(make: Callable[..., Bench]) -> None:
    """The wallet covers the one, and not both together."""
    bench = make(token_units=10)
    bench.reserve("dear", PEOPLE[0], 1000)
    bench.reserve("cheap", PEOPLE[1], 8)
    for _ in range(16):
        await bench.steps(1)
        await bench.clock.advance(1)
    assert [word.request_id for word in bench.final] == ["cheap"]
    bench.reserve("another", PEOPLE[2], 2)
    await bench.steps(9)
    assert [word.request_id for word in bench.final] == ["cheap", "another"]
    assert bench.codes() == ["InsufficientToken"]
    bench.chain_rpc.call("shem_fund", [bench.me, "0x0", 1000])
    await bench.steps(9)
    assert [word.request_id for word in bench.final] == ["cheap", "another", "dear"]
    assert bench.codes() == []


def behind(answer: Callable[[Any], Any], asked: Any) -> Any:
    """An endpoint that knows the first blocks only, and is asked about later ones."""
    many = asked if isinstance(asked, list) else [asked]
    told = answer(many)
    for one, reply in zip(many, told, strict=True):
        if one["method"] in ("eth_getLogs", "eth_blockNumber"):
            reply["result"] = [] if one["method"] == "eth_getLogs" else "0x2"
    return told if isinstance(asked, list) else told[0]


@pytest.mark.parametrize("silent", [False, True])
async def test_what_was_paid_long_ago_is_found_where_few_blocks_are_searched_at_a_time(
    make: Callable[..., Bench], silent: bool
) -> None:
    """Or where a search of more takes longer than we wait."""
    bench = make()
    bench.reserve("r", PEOPLE[0], 10)
    await bench.steps(9)
    key = bench.key(PEOPLE[0])
    assert (await bench.vault.look(key)).reserved == 10
    bench.ask("close", "c", key, 7, bench.close_word(PEOPLE[0], key, 7))
    await bench.steps(5)
    for _ in range(320):
        bench.chain.mine()
    answer, searched = bench.chain_rpc.answer, []

    def few(asked: Any) -> Any:
        many = asked if isinstance(asked, list) else [asked]
        told = answer(many)
        for one, reply in zip(many, told, strict=True):
            if one["method"] == "eth_getLogs":
                blocks = int(one["params"][0]["toBlock"], 16) - int(one["params"][0]["fromBlock"], 16) + 1
                searched.append(blocks)
                if blocks > 100 and silent:
                    return []  # it closes the line
                if blocks > 100:
                    reply.pop("result", None)
                    reply["error"] = {"code": -32005, "message": "query exceeds max block range 100"}
        return told if isinstance(asked, list) else told[0]

    bench.chain_rpc.answer = few
    found = await bench.vault.look(key)
    assert (found.claimed, found.opened, found.reserved) == (7, True, 0)
    assert found.paid_tx == next(word.tx_hash for word in bench.final if word.request_id == "c")
    assert max(searched[-4:]) == 100
    assert len(searched) <= 8
    bench.chain_rpc.answer = lambda asked: behind(answer, asked)
    with pytest.raises(ChainUnreachable, match="is behind the others"):
        await bench.vault.look(key)
    bench.chain_rpc.answer = few
    searched.clear()
    if silent:  # the whole chain can be searched, when the endpoint is well again: nobody says "never" before that
        with pytest.raises(ChainUnreachable):
            await bench.vault.look(ChannelKey(PEOPLE[1].address, PEOPLE[2].address, PEOPLE[1].address, 5))
        return
    stranger = await bench.vault.look(ChannelKey(PEOPLE[1].address, PEOPLE[2].address, PEOPLE[1].address, 5))
    assert not stranger.opened
    assert len(searched) <= 8, "a name that nobody knows is not worth a search of the whole chain"


async def test_a_call_whose_place_was_taken_is_made_anew_in_parts(make: Callable[..., Bench]) -> None:
    bench = make(rebroadcast_s=0.0)
    bench.ask("deposit", "d", bench.me, 1000)
    await bench.steps(6)
    for place in range(2):
        bench.reserve(f"r{place}", PEOPLE[place], 10)
    await bench.steps(1, mine=False)
    (name, nonce) = bench.payer.db.connection.execute(
        "select id, nonce from evm_intent where state = 'sent'"
    ).fetchone()
    bench.chain.pool.clear()
    other = Transaction(chain_id=1337, nonce=nonce, max_tip=1, max_fee=10**10, gas=21_000, to=bench.me, value=1)
    bench.chain.submit(other.sign(bench.payer.identity).raw)
    bench.chain.mine()
    await bench.steps(5)
    assert bench.codes() == ["TxStuck"]
    assert not any(word.request_id.startswith("r") for word in bench.told)
    await bench.driver.retry(bench.me, str(name))
    await bench.steps(7)
    assert {word.request_id: type(word) for word in bench.final} == {"d": Ended, "r0": Opened, "r1": Opened}
    assert bench.codes() == []

"""The transaction manager, one step at a time, under a clock that the test moves. Nothing is mined unless it says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shem.cogs.clock import ManualClock
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import ChainUnreachable, Failure, Settlement
from shem.node.payment.drivers.evm import erc20
from shem.node.payment.drivers.evm.manager import MAX_ATTEMPTS, MAX_GAS, NotStuck
from shem.node.payment.drivers.evm.transaction import Transaction
from shem.testing.devchain import places
from shem.testing.devchain.node import DevChain

PAYEE = "0x" + "22" * 20
GWEI = 10**9


class Bench:
    """A payer whose manager is stepped by hand."""

    def __init__(self, payer: Any, chain: DevChain) -> None:
        self.payer = payer
        self.chain = chain
        self.clock = ManualClock()
        (self.manager,) = payer.open(clock=self.clock).managers.values()

    async def reopen(self) -> None:
        """As after ``kill -9``: only the disk is left."""
        await self.payer.close()
        (self.manager,) = self.payer.open(clock=self.clock).managers.values()

    def rows(self, query: str) -> list[Any]:
        return [tuple(row) for row in self.payer.db.connection.execute(query)]

    @property
    def states(self) -> list[str]:
        return [state for (state,) in self.rows("select state from evm_intent order by id")]

    @property
    def codes(self) -> list[str]:
        return [problem.code for problem in self.manager.problems()]

    async def steps(self, count: int, *, mine: bool = False) -> None:
        for _ in range(count):
            await self.manager.step()
            if mine:
                self.chain.chain.mine()


@pytest.fixture
async def make(chain: DevChain, new_payer: Callable[..., Any]) -> Any:
    chain.rpc.call("shem_setAutomine", [False])
    made: list[Bench] = []

    def build(**changes: Any) -> Bench:
        made.append(Bench(new_payer(**changes), chain))
        return made[-1]

    yield build
    for bench in made:
        await bench.payer.close()


async def test_the_life_of_an_intent(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.payer.order("a", PAYEE, 1)
    assert bench.states == ["new"]
    await bench.steps(1)
    assert bench.states == ["sent"]
    bench.chain.chain.mine()
    await bench.steps(1)
    assert bench.states == ["mined"]
    assert not bench.payer.told
    bench.chain.chain.mine()
    bench.chain.chain.mine()
    await bench.steps(1)
    assert bench.states == ["final"]
    assert [type(told) for told in bench.payer.told] == [Settlement]


async def test_bytes_are_on_disk_before_they_are_sent(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.payer.order("a", PAYEE, 1)
    submit, seen = bench.chain.chain.submit, []

    def look(raw: bytes) -> bytes:
        seen.append((raw, [bytes(row[0]) for row in bench.rows("select raw from evm_attempt")]))
        assert not bench.payer.db.connection.in_transaction
        return submit(raw)

    bench.chain.chain.submit = look  # type: ignore[method-assign]
    await bench.steps(1)
    ((raw, stored),) = seen
    assert stored == [raw]


async def test_after_a_crash_the_same_bytes_are_sent_again(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    before = bench.rows("select tx_hash, raw from evm_attempt")
    bench.chain.chain.pool.clear()
    await bench.reopen()
    await bench.steps(1)
    assert bench.rows("select tx_hash, raw from evm_attempt") == before
    assert len(bench.chain.chain.pool) == 1


async def test_a_lost_mempool_is_filled_again(make: Callable[..., Bench]) -> None:
    bench = make(rebroadcast_s=1.0)
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    bench.chain.chain.pool.clear()
    await bench.steps(1)
    assert len(bench.chain.chain.pool) == 0, "too early"
    await bench.clock.advance(1.0)
    await bench.steps(1)
    assert len(bench.chain.chain.pool) == 1


@pytest.mark.parametrize("requeue", [True, False])
@pytest.mark.parametrize("depth", [1, 2])
async def test_a_reorg_puts_it_back_under_way(make: Callable[..., Bench], depth: int, requeue: bool) -> None:
    bench = make()
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    for _ in range(depth):
        bench.chain.chain.mine()
    if depth == 2:  # not final yet: the finalised block is the one below
        assert bench.chain.chain.finalized < bench.chain.chain.head - 1
    await bench.steps(1)
    assert bench.states == ["mined"]
    bench.chain.chain.reorg(depth, requeue=requeue)
    await bench.steps(1)
    assert bench.states == ["sent"]
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]
    assert len(bench.payer.told) == 1


async def test_a_stuck_payment_is_offered_at_a_higher_price(make: Callable[..., Bench]) -> None:
    bench = make(replace_after_s=60.0, rebroadcast_s=10.0)
    bench.payer.order("a", PAYEE, 1)
    bench.payer.order("b", PAYEE, 1)
    await bench.steps(1)
    await bench.clock.advance(59)
    await bench.steps(1)
    assert len(bench.rows("select 1 from evm_attempt")) == 2
    await bench.clock.advance(1)
    await bench.steps(1)
    (first, second), other = (
        bench.rows(f"select max_fee, max_tip from evm_attempt where intent = {i} order by max_fee") for i in (1, 2)
    )
    assert len(other) == 1, "only the one that holds up the others"
    assert all(new * 8 >= old * 9 for old, new in zip(first, second, strict=True))
    assert bench.rows("select count(distinct nonce), count(*) from evm_intent") == [(2, 2)]
    assert len(bench.chain.chain.pool) == 2, "the pool took it for a replacement"
    await bench.steps(4, mine=True)
    assert bench.states == ["final", "final"]
    newest = bench.rows("select tx_hash from evm_attempt where intent = 1 order by max_fee desc")[0][0]
    assert bench.rows("select tx_hash from evm_intent where id = 1") == [(newest,)]


async def test_the_older_attempt_may_be_the_one_that_is_mined(make: Callable[..., Bench]) -> None:
    bench = make(replace_after_s=60.0)
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    for _ in range(3):
        await bench.clock.advance(60)
        await bench.steps(1)
    attempts = bench.rows("select tx_hash, raw from evm_attempt order by max_fee")
    assert len(attempts) == 4
    bench.chain.chain.pool.clear()
    bench.chain.chain.submit(attempts[1][1])
    bench.chain.chain.mine()
    await bench.steps(3, mine=True)
    assert [told.tx_hash for told in bench.payer.told] == [attempts[1][0]]


async def test_replacements_stop_at_the_limit(make: Callable[..., Bench]) -> None:
    bench = make(replace_after_s=60.0, max_fee_wei=5 * GWEI, rebroadcast_s=10.0)
    bench.payer.order("a", PAYEE, 1)
    for _ in range(40):
        await bench.steps(1)
        await bench.clock.advance(60)
    fees = [fee for (fee,) in bench.rows("select max_fee from evm_attempt order by max_fee")]
    assert 2 < len(fees) < 20
    assert fees[-1] <= 5 * GWEI
    assert bench.codes == ["TxStuck"]
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]


async def test_tips_stay_within_their_limit(make: Callable[..., Bench]) -> None:
    """What nobody takes at that tip, and at a price that is high enough, waits; a price that rises is followed."""
    bench = make(replace_after_s=60.0, rebroadcast_s=10.0, wei=10**20, max_fee_wei=1000 * GWEI, max_tip_wei=2 * GWEI)
    bench.payer.order("a", PAYEE, 1)
    for _ in range(15):
        await bench.steps(1)
        await bench.clock.advance(60)
    tips = [tip for (tip,) in bench.rows("select max_tip from evm_attempt order by max_tip")]
    assert len(tips) > 3
    assert tips[-1] <= 2 * GWEI
    assert bench.codes == ["TxStuck"]
    bench.chain.fund(SPENDER.address, wei=100_000 * 10**18)
    fill_blocks(bench.chain, 24)
    (offer,) = bench.rows("select max(max_fee) from evm_attempt")[0]
    assert offer < bench.chain.chain.header(bench.chain.chain.head).base_fee_per_gas
    await bench.steps(5, mine=True)
    assert bench.states == ["final"]


async def test_nothing_is_sent_while_fees_are_above_the_limit(make: Callable[..., Bench]) -> None:
    bench = make(max_fee_wei=GWEI // 2)  # the young chain asks for nearly 1 gwei
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    assert (bench.states, bench.codes) == (["new"], ["TxStuck"])
    for _ in range(10):
        bench.chain.chain.mine()  # empty blocks: the price falls
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]


SPENDER = Identity(b"\x0b" * 32)


def fill_blocks(chain: DevChain, count: int) -> None:
    """Blocks full of somebody else's transactions, each of which fails with all its gas: the price of gas rises. What
    waited is not in them, and is forgotten by the pool."""
    chain.chain.pool.clear()
    for nonce in range(0, 2 * count, 2):
        for more, gas in enumerate((16_000_000, 13_900_000)):
            fields = {"chain_id": 1337, "nonce": nonce + more, "max_tip": 50 * GWEI, "max_fee": 1000 * GWEI, "gas": gas}
            chain.chain.submit(Transaction(**fields, to="", data=b"\xfe").sign(SPENDER).raw)  # type: ignore[arg-type]
        chain.chain.mine(limit=2)


async def test_a_rise_of_the_base_fee_is_followed(make: Callable[..., Bench]) -> None:
    bench = make(replace_after_s=60.0, rebroadcast_s=10.0, wei=10**20)
    bench.chain.fund(SPENDER.address, wei=1000 * 10**18)
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    fill_blocks(bench.chain, 14)
    base = bench.chain.chain.header(bench.chain.chain.head).base_fee_per_gas
    [(first, tip)] = bench.rows("select max_fee, max_tip from evm_attempt")
    assert first < base, "the block that comes takes it no more"
    await bench.steps(1, mine=True)
    assert bench.states == ["sent"]
    await bench.clock.advance(60)
    await bench.steps(1)
    second, second_tip = bench.rows("select max_fee, max_tip from evm_attempt order by max_fee")[1]
    assert second > base
    assert second * 8 >= first * 9
    assert second_tip * 8 >= tip * 9
    await bench.steps(4, mine=True)
    assert (bench.states, bench.rows("select count(distinct nonce) from evm_intent")) == (["final"], [(1,)])
    assert len(bench.payer.told) == 1


async def test_a_rise_above_the_limit_is_waited_out(make: Callable[..., Bench]) -> None:
    bench = make(replace_after_s=60.0, rebroadcast_s=10.0, max_fee_wei=3 * GWEI)
    bench.chain.fund(SPENDER.address, wei=1000 * 10**18)
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    fill_blocks(bench.chain, 13)
    for _ in range(5):
        await bench.clock.advance(60)
        await bench.steps(1, mine=False)
    assert (bench.states, bench.codes) == (["sent"], ["TxStuck"])
    assert len(bench.rows("select 1 from evm_attempt")) <= 3, "no loop of offers that nobody takes"
    for _ in range(12):
        bench.chain.chain.mine()
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]


async def test_too_little_gas_ends_as_a_failure_that_is_told(make: Callable[..., Bench]) -> None:
    """An endpoint that estimates too little: the transaction is mined, and does nothing."""
    bench = make()
    ours = bench.chain.rpc.answer

    def answer(request: Any) -> Any:
        if isinstance(request, dict):
            return answer([request])[0]
        told = ours(request)
        for asked, reply in zip(request, told, strict=True):  # type: ignore[arg-type]
            if asked["method"] == "eth_estimateGas":
                reply["result"] = "0x1000"
        return told

    bench.chain.rpc.answer = answer  # type: ignore[method-assign]
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(4, mine=True)
    assert bench.states == ["failed"]
    [(used, gas)] = bench.rows("select gas_used, gas from evm_intent i join evm_attempt a on a.intent = i.id")
    assert used == gas
    assert [type(told) for told in bench.payer.told] == [Failure]


async def test_what_needs_more_gas_than_a_transaction_may_use_is_never_signed(make: Callable[..., Bench]) -> None:
    """Its nonce would hold up all that come after: no chain takes it, and at no price."""
    bench = make()
    ours = bench.chain.rpc.answer
    estimates = {"order:much": hex(MAX_GAS + 1), "order:near": hex(MAX_GAS)}

    def answer(request: Any) -> Any:
        if isinstance(request, list):
            return [answer(one) for one in request]
        told: Any = ours(request)
        if request["method"] == "eth_estimateGas":
            (key,) = bench.rows(f"select key from evm_intent where data = x'{request['params'][0]['data'][2:]}'")[0]
            told["result"] = estimates.get(key, told["result"])
        return told

    bench.chain.rpc.answer = answer  # type: ignore[method-assign]
    for units, name in enumerate(("much", "near", "usual")):
        bench.payer.order(name, PAYEE, units + 1)
    await bench.steps(1)
    assert bench.states == ["new", "sent", "sent"]
    assert bench.rows("select max(gas) from evm_attempt") == [(MAX_GAS,)]
    assert "more gas than a transaction may use" in bench.manager.problems()[0].message
    await bench.steps(4, mine=True)
    assert bench.states == ["new", "final", "final"]


def foreign(identity: Identity, nonce: int) -> bytes:
    tx = Transaction(chain_id=1337, nonce=nonce, max_tip=1, max_fee=10 * GWEI, gas=21_000, to=PAYEE, value=1)
    return tx.sign(identity).raw


async def test_a_nonce_that_somebody_else_used_is_left_to_a_human(
    make: Callable[..., Bench], token_balance: Callable[[str], int]
) -> None:
    bench = make(rebroadcast_s=0.0)
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    bench.chain.chain.pool.clear()
    bench.chain.chain.submit(foreign(bench.payer.identity, 0))
    bench.chain.chain.mine()
    await bench.steps(6, mine=True)
    assert (bench.states, bench.codes) == (["sent"], ["TxStuck"])
    assert token_balance(PAYEE) == 0
    bench.payer.order("b", PAYEE, 2)
    await bench.steps(4, mine=True)
    assert bench.states == ["sent", "final"], "others go on"
    assert token_balance(PAYEE) == 2


async def test_what_was_displaced_is_done_anew_when_the_owner_says_so(
    make: Callable[..., Bench], token_balance: Callable[[str], int]
) -> None:
    bench = make(rebroadcast_s=0.0)
    bench.payer.order("a", PAYEE, 1)
    driver, me = bench.payer.driver, bench.payer.identity.address
    await bench.steps(1)
    with pytest.raises(NotStuck, match="no final block"):  # it waits in the pool
        await driver.retry(me, "1")
    bench.chain.chain.pool.clear()
    bench.chain.chain.submit(foreign(bench.payer.identity, 0))
    bench.chain.chain.mine()
    with pytest.raises(NotStuck, match="no final block"):  # a reorg may still give the place back
        await driver.retry(me, "1")
    await bench.steps(6, mine=True)
    assert "shem payment retry 1" in bench.manager.problems()[0].message
    await driver.retry(me, "1")
    assert bench.states == ["failed"]
    assert [(type(told), told.order_id, told.code) for told in bench.payer.told] == [(Failure, "a", "displaced")]
    assert "took its place" in driver.history(me, 1)[0].detail
    bench.payer.order("a, again", PAYEE, 1)
    await bench.steps(4, mine=True)
    assert (bench.states, token_balance(PAYEE), bench.codes) == (["failed", "final"], 1, [])
    for name in ("1", "2", "99"):
        with pytest.raises(NotStuck):
            await driver.retry(me, name)


async def test_what_was_mined_is_never_done_anew(
    make: Callable[..., Bench], token_balance: Callable[[str], int]
) -> None:
    """The node has not looked since: the chain knows better than it."""
    bench = make()
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    for _ in range(4):
        bench.chain.chain.mine()
    with pytest.raises(NotStuck):
        await bench.payer.driver.retry(bench.payer.identity.address, "1")
    await bench.steps(1)
    assert (bench.states, token_balance(PAYEE)) == (["final"], 1)


async def test_a_nonce_that_nobody_uses_any_more_is_told(
    make: Callable[..., Bench], token_balance: Callable[[str], int]
) -> None:
    """A reorg forgets the transaction of another program that ours came after."""
    bench = make(rebroadcast_s=0.0)
    bench.chain.chain.submit(foreign(bench.payer.identity, 0))
    bench.chain.chain.mine()
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(1)
    bench.chain.chain.reorg(1, requeue=False)
    await bench.steps(4, mine=True)
    assert (bench.states, bench.codes) == (["sent"], ["TxStuck"])
    assert "nonce 0" in bench.manager.problems()[0].message
    bench.chain.chain.submit(foreign(bench.payer.identity, 0))
    await bench.steps(5, mine=True)
    assert (bench.states, bench.codes, token_balance(PAYEE)) == (["final"], [], 1)


async def test_nonces_used_before_us_are_passed_over(make: Callable[..., Bench]) -> None:
    bench = make()
    for nonce in range(3):
        bench.chain.chain.submit(foreign(bench.payer.identity, nonce))
    bench.chain.chain.mine()
    bench.payer.order("a", PAYEE, 1)
    await bench.steps(4, mine=True)
    assert bench.rows("select nonce, state from evm_intent") == [(3, "final")]


async def test_a_burst_stays_within_what_a_pool_holds(make: Callable[..., Bench]) -> None:
    bench = make()
    for place in range(150):
        bench.payer.order(f"o{place}", PAYEE, 1)
    await bench.steps(1)
    assert len(bench.chain.chain.pool) == 64
    await bench.steps(12, mine=True)
    assert set(bench.states) == {"final"}


async def test_one_that_cannot_go_does_not_hold_up_the_others(make: Callable[..., Bench]) -> None:
    bench = make()
    with bench.payer.db.transaction() as connection:
        for place in range(70):
            bench.manager.submit(connection, f"bad{place}", "0x" + "5e" * 20, b"", value=10**30)
    bench.payer.order("good", PAYEE, 1)
    await bench.steps(6, mine=True)
    assert bench.states[-1] == "final"
    assert set(bench.states[:-1]) == {"new"}


@pytest.mark.parametrize("refused", [True, False])
async def test_any_number_that_cannot_go_holds_up_nobody(make: Callable[..., Bench], refused: bool) -> None:
    """Time goes on between the looks; those at the head are refused again each time, or wait for tokens."""
    bench = make(refused_s=10.0)
    with bench.payer.db.transaction() as connection:
        for place in range(70 if refused else 0):
            bench.manager.submit(connection, f"bad{place}", places.TOKEN_ADDRESS, erc20.transfer(PAYEE, 10**30))
    for place in range(0 if refused else 70):
        bench.payer.order(f"bad{place}", PAYEE, 10**30)
    bench.payer.order("good", PAYEE, 1)
    for _ in range(6):
        await bench.steps(1, mine=True)
        await bench.clock.advance(12)
    assert bench.states[-1] == "final"
    assert set(bench.states[:-1]) == {"new"}


async def test_what_lacks_coins_holds_up_nothing_cheaper(make: Callable[..., Bench]) -> None:
    bench = make(wei=5 * 10**14)
    with bench.payer.db.transaction() as connection:
        for place in range(70):
            bench.manager.submit(connection, f"dear{place}", PAYEE, b"", value=46 * 10**13)
    bench.payer.order("good", PAYEE, 1)
    for _ in range(6):
        await bench.steps(1, mine=True)
        await bench.clock.advance(12)
    assert bench.states[-1] == "final"
    assert set(bench.states[:-1]) == {"new"}


async def test_a_price_that_rises_after_the_last_offer_is_followed(make: Callable[..., Bench]) -> None:
    """What an endpoint took and never gave away has been offered as often as is usual. Then the price rises."""
    bench = make(replace_after_s=60.0, rebroadcast_s=10.0, wei=10**20, max_fee_wei=1000 * GWEI, max_tip_wei=50 * GWEI)
    bench.payer.order("a", PAYEE, 1)
    for _ in range(30):
        await bench.steps(1)
        await bench.clock.advance(60)
    offers = [fee for (fee,) in bench.rows("select max_fee from evm_attempt order by max_fee")]
    assert len(offers) == MAX_ATTEMPTS
    bench.chain.fund(SPENDER.address, wei=100_000 * 10**18)
    fill_blocks(bench.chain, 36)
    base = bench.chain.chain.header(bench.chain.chain.head).base_fee_per_gas
    assert offers[-1] < base < bench.payer.network.max_fee_wei
    for _ in range(4):
        await bench.steps(1)
        await bench.clock.advance(60)
    assert len(bench.rows("select 1 from evm_attempt")) == MAX_ATTEMPTS + 1, "and no more than it takes"
    await bench.steps(4, mine=True)
    assert bench.states == ["final"]


async def test_time_that_passes_is_nothing_new_to_who_only_waits(make: Callable[..., Bench]) -> None:
    """On a chain with a block every two seconds an order that waits for tokens is no reason to look as often."""
    bench = make(token_units=0)
    bench.payer.order("a", PAYEE, 1)
    await bench.manager.step()
    bench.chain.chain.mine()
    assert not await bench.manager.step()
    bench.chain.fund(bench.payer.identity.address, token_units=1)
    for _ in range(3):
        assert await bench.manager.step()
        bench.chain.chain.mine()


async def test_a_lost_line_leaves_everything_in_its_place(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.payer.order("a", PAYEE, 1)
    answer = bench.chain.rpc.answer
    bench.chain.rpc.answer = lambda request: "down"  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(ChainUnreachable):
            await bench.steps(1)
    assert bench.codes == ["RpcError"]
    bench.chain.rpc.answer = answer  # type: ignore[method-assign]
    await bench.steps(4, mine=True)
    assert (bench.states, bench.codes) == (["final"], [])
    assert not any(isinstance(told, Failure) for told in bench.payer.told)


async def test_a_listener_that_fails_is_told_again_and_holds_up_nobody(make: Callable[..., Bench]) -> None:
    bench = make()
    mood = {"bad": True}

    def fail(outcome: Settlement | Failure) -> None:
        if mood["bad"] and outcome.order_id == "a":
            raise ZeroDivisionError

    bench.payer.driver.on_settled(fail)
    bench.payer.order("a", PAYEE, 1)
    bench.payer.order("b", PAYEE, 1)
    await bench.steps(5, mine=True)
    assert bench.states == ["mined", "final"]
    mood["bad"] = False
    await bench.steps(1)
    assert bench.states == ["final", "final"]

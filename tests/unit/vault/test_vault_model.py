"""Every order of calls, lawful and not, against a model in twenty lines; and that the model would notice a wrong vault.

After every step: what the vault holds is what it owes (I1), claimed never falls nor passes reserved (I2), reserved falls
only when a channel closes as it may (I3), no id comes twice (I4). What each call pays and refuses is compared with the
model (I5, I6), and in the end everybody takes out everything (I7).
"""

from __future__ import annotations

import base64
import json
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shem.node.identity.keys import Identity
from shem.node.payment.drivers.evm import vault
from shem.node.payment.drivers.evm.vault import ChannelKey, Claim, OnChain, Reservation

MUTANTS: dict[str, str] = json.loads((Path(__file__).parent / "mutants.json").read_text())["mutants"]
"""Name → deflated bytecode. ``tools/build_contracts.py`` makes them from ``contracts/mutants.json``."""

PAYERS = st.integers(0, 2)
PAYEES = st.integers(2, 5)  # the third person is both
SMALL = st.integers(0, 400)
PICK = st.integers(0, 10**6)
TERM = st.integers(-20, 300)


class Channel(msgspec.Struct):
    key: ChannelKey
    payer: int
    payee: int
    signer: int
    reserved: int
    valid_until: int
    claimed: int = 0
    is_open: bool = True

    def pay(self, amount: int) -> int:
        """What a voucher for ``amount`` brings."""
        brings = max(0, min(amount, self.reserved) - self.claimed) if self.is_open else 0
        self.claimed += brings
        return brings

    def on_chain(self) -> OnChain:
        return OnChain(self.reserved, self.claimed, self.valid_until) if self.is_open else OnChain()


class Model(RuleBasedStateMachine):
    """``worlds`` and ``code`` are set by the test."""

    worlds: Any = None
    code: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.world = self.stack.enter_context(type(self).worlds())
        if type(self).code is not None:
            self.world.stand_on(type(self).code)
        self.free = [0] * 7
        self.nonces = [0] * 7
        self.channels: list[Channel] = []
        self.seen: dict[bytes, OnChain] = {}

    @initialize()
    def begin(self) -> None:
        """Something to work on."""
        self.do_reserve(0, [(3, 0, 100, 200), (4, 1, 50, 100)], deposit=300)

    def teardown(self) -> None:
        try:
            self.take_out_everything()
        finally:
            self.stack.close()

    def who(self, number: int) -> Identity:
        person: Identity = self.world.people[number]
        return person

    def pick(self, number: int) -> Channel:
        return self.channels[number % len(self.channels)]

    # the payer

    @rule(payer=PAYERS, to=PAYERS, amount=SMALL)
    def deposit(self, payer: int, to: int, amount: int) -> None:
        done = self.world.do(self.who(payer), vault.deposit(self.who(to).address, amount))
        assert done.ok
        self.free[to] += amount

    @rule(payer=PAYERS, amount=SMALL, over=st.booleans())
    def withdraw(self, payer: int, amount: int, over: bool) -> None:
        amount = self.free[payer] + amount if over else min(amount, self.free[payer])
        before = self.world.balance(self.who(6).address)
        done = self.world.do(self.who(payer), vault.withdraw(self.who(6).address, amount))
        assert done.ok == (amount <= self.free[payer])
        if done.ok:
            self.free[payer] -= amount
            assert self.world.balance(self.who(6).address) == before + amount

    @rule(
        payer=PAYERS,
        items=st.lists(st.tuples(PAYEES, PAYERS, SMALL, TERM), min_size=1, max_size=3),
        deposit=st.one_of(st.none(), SMALL),
        edge=st.sampled_from([None, None, 0, 1]),
    )
    def reserve(
        self, payer: int, items: list[tuple[int, int, int, int]], deposit: int | None, edge: int | None
    ) -> None:
        if edge is not None:  # all that is free, or one more
            payee, signer, _, _ = items[-1]
            room = self.free[payer] + (deposit or 0) - sum(amount for _, _, amount, _ in items[:-1])
            items = [*items[:-1], (payee, signer, max(0, room + edge), 100)]
        self.do_reserve(payer, items, deposit)

    def do_reserve(self, payer: int, items: list[tuple[int, int, int, int]], deposit: int | None) -> None:
        now = self.world.now()
        wanted = [
            Reservation(self.who(payee).address, self.who(signer).address, amount, now + term)
            for payee, signer, amount, term in items
        ]
        data = vault.reserve(wanted) if deposit is None else vault.deposit_and_reserve(deposit, wanted)
        done = self.world.do(self.who(payer), data)
        room = self.free[payer] + (deposit or 0)
        lawful = all(one.amount > 0 and one.valid_until > done.now for one in wanted)
        assert done.ok == (lawful and sum(one.amount for one in wanted) <= room)
        if not done.ok:
            return
        self.free[payer] = room - sum(one.amount for one in wanted)
        for (payee, signer, _, _), one in zip(items, wanted, strict=True):
            key = ChannelKey(self.who(payer).address, one.payee, one.signer, self.nonces[payer])
            self.nonces[payer] += 1
            assert all(other.key.id != key.id for other in self.channels)
            self.channels.append(Channel(key, payer, payee, signer, one.amount, one.valid_until))

    @rule(pick=PICK, add=SMALL, longer=st.integers(-30, 100), edge=st.sampled_from([None, None, 0, 1]))
    def extend(self, pick: int, add: int, longer: int, edge: int | None) -> None:
        one = self.pick(pick)
        add = add if edge is None else self.free[one.payer] + edge
        done = self.world.do(self.who(one.payer), vault.extend(one.key, add, max(0, one.valid_until + longer)))
        assert done.ok == (one.is_open and longer >= 0 and add <= self.free[one.payer])
        if done.ok:
            one.reserved += add
            one.valid_until += longer
            self.free[one.payer] -= add

    @rule(picks=st.lists(PICK, min_size=1, max_size=3), amount=SMALL)
    def settle(self, picks: list[int], amount: int) -> None:
        payer = self.pick(picks[0]).payer
        mine = [one for one in map(self.pick, picks) if one.payer == payer]
        before = {one.payee: self.world.balance(self.who(one.payee).address) for one in mine}
        done = self.world.do(self.who(payer), vault.settle([(one.key, amount) for one in mine]))
        assert done.ok
        for one in mine:
            before[one.payee] += one.pay(amount)
        for payee, balance in before.items():
            assert self.world.balance(self.who(payee).address) == balance

    @rule(picks=st.lists(PICK, min_size=1, max_size=3), amount=SMALL, honest=st.integers(0, 9))
    def cooperative_close(self, picks: list[int], amount: int, honest: int) -> None:
        payer = self.pick(picks[0]).payer
        mine = [one for one in map(self.pick, picks) if one.payer == payer]
        signers = [one.payer if honest == 0 else one.payee for one in mine]
        wrong = [one for one, signer in zip(mine, signers, strict=True) if one.is_open and signer != one.payee]
        data = [
            (one.key, amount, self.world.close(self.who(signer), one.key.id, amount))
            for one, signer in zip(mine, signers, strict=True)
        ]
        before = {one.payee: self.world.balance(self.who(one.payee).address) for one in mine}
        done = self.world.do(self.who(payer), vault.cooperative_close(data))
        assert done.ok == (not wrong)
        if not done.ok:
            return
        for one in mine:
            before[one.payee] += one.pay(amount)
            self.close(one)
        for payee, balance in before.items():
            assert self.world.balance(self.who(payee).address) == balance

    def close(self, one: Channel) -> None:
        if one.is_open:
            self.free[one.payer] += one.reserved - one.claimed
            one.is_open = False

    @rule(picks=st.lists(PICK, min_size=1, max_size=3))
    def release(self, picks: list[int]) -> None:
        payer = self.pick(picks[0]).payer
        mine = [one for one in map(self.pick, picks) if one.payer == payer]
        done = self.world.do(self.who(payer), vault.release([one.key for one in mine]))
        assert done.ok == all(done.now > one.valid_until for one in mine if one.is_open)
        if done.ok:
            for one in mine:
                self.close(one)

    # the payee

    @rule(
        picks=st.lists(PICK, min_size=1, max_size=4),
        amounts=st.lists(SMALL, min_size=4, max_size=4),
        closing=st.lists(st.booleans(), min_size=4, max_size=4),
        helper=st.booleans(),
    )
    def redeem(self, picks: list[int], amounts: list[int], closing: list[bool], helper: bool) -> None:
        payee = self.pick(picks[0]).payee
        mine = [one for one in map(self.pick, picks) if one.payee == payee]
        claims = [
            Claim(one.key, amount, self.world.voucher(self.who(one.signer), one.key.id, amount), close)
            for one, amount, close in zip(mine, amounts, closing, strict=False)
        ]
        sender, receiver = self.who(6 if helper else payee), self.who(payee).address
        before = self.world.balance(receiver)
        after = msgspec.convert(msgspec.to_builtins(self.channels), list[Channel])
        brings, back = 0, [0] * 7
        for claim in claims:
            one = next(one for one in after if one.key == claim.key)
            brings += one.pay(claim.amount)
            if claim.close and not helper and one.is_open:
                back[one.payer] += one.reserved - one.claimed
                one.is_open = False
        done = self.world.do(sender, vault.redeem(receiver, claims))
        assert done.ok == (brings > 0)
        if done.ok:
            self.channels = after
            self.free = [free + more for free, more in zip(self.free, back, strict=True)]
        assert self.world.balance(receiver) == before + (brings if done.ok else 0)

    # luck and malice

    @rule(seconds=st.integers(1, 150))
    def time_passes(self, seconds: int) -> None:
        self.world.advance(seconds)
        # a block in which nothing happens, so that the clock is seen by those who look
        assert self.world.do(self.who(0), vault.deposit(self.who(0).address, 0)).ok

    @precondition(lambda self: any(one.is_open and one.claimed < one.reserved for one in self.channels))
    @rule(pick=PICK, kind=st.sampled_from(["signer", "thief", "channel", "chain", "zero", "close"]))
    def steal(self, pick: int, kind: str) -> None:
        live = [one for one in self.channels if one.is_open and one.claimed < one.reserved]
        one = live[pick % len(live)]
        signer, payee, channel = self.who(one.signer), self.who(one.payee), one.key.id
        digest = vault.voucher_digest(self.world.vault, channel, one.reserved)
        if kind == "signer":
            signer = self.who(6)
        elif kind == "channel":
            other = msgspec.structs.replace(one.key, nonce=one.key.nonce + 1)
            digest = vault.voucher_digest(self.world.vault, other.id, one.reserved)
        elif kind == "chain":
            fork = vault.Vault(self.world.vault.chain_id + 1, self.world.vault.address)
            digest = vault.voucher_digest(fork, channel, one.reserved)
        elif kind == "close":
            digest = vault.close_digest(self.world.vault, channel, one.reserved)
        said = bytes(64) + b"\x1b" if kind == "zero" else signer.sign_digest(digest)
        thief = self.who(6) if kind == "thief" else payee
        done = self.world.do(thief, vault.redeem(thief.address, [Claim(one.key, one.reserved, said)]))
        assert not done.ok, kind

    # always

    @invariant()
    def it_holds_what_it_owes(self) -> None:
        owed = sum(self.free) + sum(one.reserved - one.claimed for one in self.channels if one.is_open)
        assert self.world.balance(self.world.vault.address) == owed

    @invariant()
    def it_knows_what_the_model_knows(self) -> None:
        for one in self.channels:
            found = self.world.channel(one.key)
            assert found == one.on_chain()
            before = self.seen.get(one.key.id, found)
            assert found.claimed <= found.reserved
            if found.is_open:
                assert before.is_open, "a closed channel never opens again"
                assert found.claimed >= before.claimed
                assert found.reserved >= before.reserved
                assert found.valid_until >= before.valid_until
            self.seen[one.key.id] = found
        for payer in range(3):
            assert self.world.account(self.who(payer)) == (self.free[payer], self.nonces[payer])

    def take_out_everything(self) -> None:
        for one in self.channels:
            left = one.reserved - one.claimed
            if one.is_open and left:
                said = self.world.voucher(self.who(one.signer), one.key.id, one.reserved)
                before = self.world.balance(self.who(one.payee).address)
                claim = Claim(one.key, one.reserved, said)
                assert self.world.do(self.who(one.payee), vault.redeem(self.who(one.payee).address, [claim])).ok
                assert self.world.balance(self.who(one.payee).address) == before + left
        for payer in range(3):
            person = self.who(payer)
            if self.free[payer]:
                assert self.world.do(person, vault.withdraw(person.address, self.free[payer])).ok
        assert self.world.balance(self.world.vault.address) == 0


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def run(worlds: Any, code: str | None, **how: Any) -> None:
    machine = type("Run", (Model,), {"worlds": staticmethod(worlds), "code": code})
    run_state_machine_as_test(machine, settings=settings(**QUIET, **how))  # type: ignore[arg-type]


def test_the_vault_keeps_its_promises(worlds: Any) -> None:
    run(worlds["devchain"], None, max_examples=8, stateful_step_count=30, derandomize=True)


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["devchain", pytest.param("anvil", marks=pytest.mark.interop)])
def test_the_vault_keeps_its_promises_for_long(worlds: Any, chain: str) -> None:
    with worlds[chain]():
        pass  # says so, where it is not installed
    run(worlds[chain], None, max_examples=100, stateful_step_count=60)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_vault_is_caught(worlds: Any, mutant: str) -> None:
    code = zlib.decompress(base64.b64decode(MUTANTS[mutant])).hex()
    with pytest.raises(AssertionError):
        run(
            worlds["devchain"],
            code,
            max_examples=400,  # ends with the first that catches it; which that is depends on what else was imported
            stateful_step_count=50,
            derandomize=True,
            phases=[Phase.generate],
            report_multiple_bugs=False,
        )

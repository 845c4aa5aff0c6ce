"""What each operation costs, to the unit of gas, on both chains; none may become dearer by more than two in a hundred.

``gas.json`` is the table as it was last written (``SHEM_WRITE_GAS=tests/unit/vault/gas.json pytest
tests/unit/vault/test_vault_gas.py`` writes it anew, after a change that was meant). ``make bench`` has it written elsewhere,
and shows it beside what the design was measured with.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.evm import erc20, vault
from shem.node.payment.drivers.evm.vault import ChannelKey, Claim, Reservation
from shem.testing.devchain import places

TABLE = Path(__file__).parent / "gas.json"
WORSE = 1.02
E = 10**5


def fresh(tag: str, count: int) -> list[str]:
    return ["0x" + keccak256(f"{tag} {n}".encode())[-20:].hex() for n in range(count)]


class Meter:
    def __init__(self, world: Any) -> None:
        self.world = world
        self.payer, self.payee = world.people[0], world.people[3]
        self.until = world.now() + 86400
        self.nonce = 0
        self.gas: dict[str, int] = {}

    def do(self, name: str, who: Any, data: bytes) -> None:
        done = self.world.do(who, data)
        assert done.ok, name
        if name:
            self.gas[name] = done.gas

    def open(self, name: str, payees: list[str], amount: int = 100) -> list[ChannelKey]:
        me = self.payer.address
        self.do(name, self.payer, vault.reserve([Reservation(payee, me, amount, self.until) for payee in payees]))
        keys = [ChannelKey(me, payee, me, self.nonce + place) for place, payee in enumerate(payees)]
        self.nonce += len(payees)
        return keys

    def claims(self, keys: list[ChannelKey], amount: int, *, close: bool = False) -> bytes:
        said = [Claim(key, amount, self.world.voucher(self.payer, key.id, amount), close) for key in keys]
        return vault.redeem(self.payee.address, said)


def measure(world: Any) -> dict[str, int]:
    """The table: operation → gas of its transaction."""
    meter = Meter(world)
    payer, payee = meter.payer, meter.payee
    _, meter.gas["deploy"] = world.deploy(world.people[1], places.artifact("Vault")["bytecode"], world.token)
    one = fresh("transfer", 1)[0]
    meter.gas["transfer, new holder"] = world.send(payer, erc20.transfer(one, 5), world.token).gas
    meter.gas["transfer, holder"] = world.send(payer, erc20.transfer(one, 5), world.token).gas
    meter.do("deposit, first", payer, vault.deposit(payer.address, 50 * E))
    meter.do("deposit, again", payer, vault.deposit(payer.address, 50 * E))
    meter.do("withdraw", payer, vault.withdraw(payer.address, 5))
    ten, hundred = fresh("ten", 10), fresh("hundred", 100)
    (first,) = meter.open("reserve 1", [payee.address])
    tens = meter.open("reserve 10", ten)
    hundreds = meter.open("reserve 100", hundred)
    item = Reservation(payee.address, payer.address, 5, meter.until)
    meter.do("deposit and reserve 1", payer, vault.deposit_and_reserve(50, [item]))
    meter.nonce += 1
    meter.do("extend, time", payer, vault.extend(first, 0, meter.until + 1))
    meter.do("extend, time and amount", payer, vault.extend(first, 100, meter.until + 2))
    for key in (*tens, *hundreds):  # they hold tokens already, as most payees do
        assert world.send(payer, erc20.transfer(key.payee, 1), world.token).ok
    meter.do("", payee, meter.claims([first], 5))
    meter.do("redeem 1", payee, meter.claims([first], 9))
    meter.do("redeem 1, by anybody", world.people[5], meter.claims([first], 11))
    meter.do("settle 1", payer, vault.settle([(first, 20)]))
    meter.do("settle 10", payer, vault.settle([(key, 20) for key in tens]))
    meter.do("settle 100", payer, vault.settle([(key, 20) for key in hundreds]))
    for count in (10, 100):
        many = meter.open("", [payee.address] * count)
        meter.do(f"redeem {count}", payee, meter.claims(many, 5))
        meter.do(f"redeem and close {count}", payee, meter.claims(many, 7, close=True))
    closing = [(first, 30, world.close(payee, first.id, 30))]
    meter.do("close with the payee's word 1", payer, vault.cooperative_close(closing))
    many = meter.open("", [payee.address] * 10)
    closing = [(key, 30, world.close(payee, key.id, 30)) for key in many]
    meter.do("close with the payee's word 10", payer, vault.cooperative_close(closing))
    world.advance(2 * 86400)
    meter.do("release 1", payer, vault.release(tens[:1]))
    meter.do("release 9", payer, vault.release(tens[1:]))
    meter.do("release 100", payer, vault.release(hundreds))
    meter.gas |= measure_many(world)
    return meter.gas


def measure_many(world: Any) -> dict[str, int]:
    """Transfers that go together, for comparison."""
    payer = world.people[2]
    multi, _ = world.deploy(world.people[1], places.artifact("MultiTransfer")["bytecode"], world.token)
    assert world.send(payer, erc20.approve(multi, 2**256 - 1), world.token).ok
    gas = {}
    for count in (10, 100):
        payments = [(place, 5) for place in fresh(f"many {count}", count)]
        for who in ("new holders", "holders"):
            done = world.send(payer, erc20.transfer_many(payments), multi)
            assert done.ok
            gas[f"transfer to {count} {who}"] = done.gas
    return gas


def test_nothing_has_become_dearer(world: Any) -> None:
    found = measure(world)
    if place := os.environ.get("SHEM_WRITE_GAS"):
        Path(place).write_text(json.dumps(found, indent=1) + "\n")
    known = json.loads(TABLE.read_text())
    assert found.keys() == known.keys()
    worse = {name: (known[name], gas) for name, gas in found.items() if gas > known[name] * WORSE}
    assert worse == {}

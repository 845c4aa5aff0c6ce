"""The contracts do what they say, and the committed bytecode is what the sources compile to."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shem.node.identity.signing import keccak256
from shem.testing.devchain import places

ROOT = Path(__file__).resolve().parents[3]
TO = "0x" + "99" * 20
MAX = (1 << 256) - 1


def words(signature: str, *values: int | str) -> str:
    """Call data of static arguments."""
    numbers = [int(value, 16) if isinstance(value, str) else value for value in values]
    return "0x" + keccak256(signature.encode())[:4].hex() + "".join(f"{number:064x}" for number in numbers)


def packed(function: str, payments: list[tuple[str, int]], *more: int) -> str:
    head = 32 * (1 + len(more))
    body = "".join(f"{to[2:]}{units:024x}" for to, units in payments)
    tail = "".join(f"{number:064x}" for number in more)
    selector = keccak256(f"{function}(bytes32[]{',uint256' * len(more)})".encode())[:4].hex()
    return f"0x{selector}{head:064x}{tail}{len(payments):064x}{body}"


class Contracts:
    def __init__(self, call: Any) -> None:
        self.call = call
        self.nonce = 0

    def do(self, data: str, at: str = places.TOKEN_ADDRESS, gas: int = 5_000_000) -> bool:
        """Whether the transaction succeeded."""
        tx_hash = self.call.send(self.nonce, to=at, value=0, gas=gas, data=data)
        self.nonce += 1
        self.call.chain.mine()
        return str(self.call("eth_getTransactionReceipt", tx_hash)["status"]) == "0x1"

    def ask(self, signature: str, *values: int | str, at: str = places.TOKEN_ADDRESS) -> int:
        return int(self.call("eth_call", {"to": at, "data": words(signature, *values)}, "latest"), 16)

    def balance(self, owner: str) -> int:
        return self.ask("balanceOf(address)", owner)


@pytest.fixture
def contracts(call: Any) -> Contracts:
    return Contracts(call)


@pytest.mark.parametrize("source", sorted((ROOT / "contracts").glob("*.vy")), ids=lambda path: path.stem)
def test_the_artifact_is_of_this_source(source: Path) -> None:
    artifact = places.artifact(source.stem)
    assert artifact["sourceSha256"] == hashlib.sha256(source.read_bytes()).hexdigest(), "run tools/build_contracts.py"
    assert artifact["compiler"] == {"name": "vyper", "version": "0.4.3"}
    assert artifact["bytecode"].startswith("0x")
    assert places.runtime_code(source.stem).hex() in artifact["bytecode"]


@pytest.mark.slow
def test_recompiling_gives_the_same_bytes() -> None:
    compilers = ROOT / ".build" / "bin" / "python"
    if not compilers.exists():
        pytest.skip("the compiler is not installed (tools/builders.sh does it, and so does make slow)")
    done = subprocess.run([str(compilers), str(ROOT / "tools" / "build_contracts.py"), "--compare"], check=False)
    assert done.returncode == 0


def test_what_is_made_says_what_it_was_made_from() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "build_contracts.py"), "--check"], check=False)
    assert done.returncode == 0


def test_the_token_tells_its_name(contracts: Contracts) -> None:
    data = {"to": places.TOKEN_ADDRESS, "data": words("symbol()")}
    assert bytes.fromhex(contracts.call("eth_call", data, "latest")[2:])[64:68] == places.TOKEN_SYMBOL.encode()
    assert contracts.ask("decimals()") == places.TOKEN_DECIMALS


def test_transfer(contracts: Contracts) -> None:
    me = contracts.call.address
    held = contracts.balance(me)
    assert contracts.do(words("transfer(address,uint256)", TO, 5))
    assert contracts.do(words("transfer(address,uint256)", me, 7)), "to oneself changes nothing"
    assert (contracts.balance(me), contracts.balance(TO)) == (held - 5, 5)
    assert not contracts.do(words("transfer(address,uint256)", TO, held))
    assert not contracts.do(words("transfer(address,uint256)", 0, 1))
    assert not contracts.do(words("transfer(address,uint256)", places.TOKEN_ADDRESS, 1))
    assert contracts.do(words("transfer(address,uint256)", TO, held - 5))
    assert contracts.ask("totalSupply()") == places.FAUCET_TOKENS


def test_allowance(contracts: Contracts) -> None:
    me = contracts.call.address
    pull = "transferFrom(address,address,uint256)"
    assert not contracts.do(words(pull, me, TO, 1))
    assert contracts.do(words("approve(address,uint256)", me, 5))
    assert contracts.do(words(pull, me, TO, 4))
    assert contracts.ask("allowance(address,address)", me, me) == 1
    assert not contracts.do(words(pull, me, TO, 2))
    assert contracts.do(words("approve(address,uint256)", me, MAX))
    assert contracts.do(words(pull, me, TO, 2))
    assert contracts.ask("allowance(address,address)", me, me) == MAX
    assert contracts.balance(TO) == 6


def test_the_faucet_has_a_limit(contracts: Contracts) -> None:
    limit = contracts.ask("FAUCET_LIMIT()")
    assert contracts.do(words("mint(address,uint256)", TO, limit))
    assert not contracts.do(words("mint(address,uint256)", TO, limit + 1))
    assert not contracts.do(words("mint(address,uint256)", 0, 1))
    assert contracts.balance(TO) == limit
    assert contracts.ask("totalSupply()") == places.FAUCET_TOKENS + limit


def test_multi_transfer(contracts: Contracts) -> None:
    multi = places.MULTI_TRANSFER_ADDRESS
    payees = [(f"0x{0xAA00 + place:040x}", place + 1) for place in range(100)]
    total = sum(units for _, units in payees)
    direct = packed("golemTransferDirectPacked", payees)
    assert not contracts.do(direct, at=multi), "nothing without an allowance"
    assert contracts.do(words("approve(address,uint256)", multi, MAX))
    assert contracts.do(direct, at=multi)
    assert [contracts.balance(to) for to, _ in payees] == [units for _, units in payees]
    assert contracts.do(packed("golemTransferIndirectPacked", payees, total), at=multi)
    assert [contracts.balance(to) for to, _ in payees] == [2 * units for _, units in payees]
    for wrong in (total - 1, total + 1):
        assert not contracts.do(packed("golemTransferIndirectPacked", payees, wrong), at=multi)
    assert not contracts.do(packed("golemTransferDirectPacked", [*payees[:3], ("0x" + "00" * 20, 1)]), at=multi)
    assert not contracts.do(packed("golemTransferDirectPacked", payees + payees[:29]), at=multi), "129 payments"
    assert [contracts.balance(to) for to, _ in payees] == [2 * units for _, units in payees]
    assert contracts.balance(multi) == 0

"""A chain without HTTP, called as HTTP would call it; and somebody with money who signs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from shem.testing.devchain.chain import Chain
from shem.testing.devchain.rpc import Rpc

GWEI = 10**9


class Caller:
    """Calls methods; signs with the library that everybody uses."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.automine: list[bool] = []
        self.rpc = Rpc(chain, changed=lambda: None, automine=self.automine.append)
        self.account = Account.from_key(b"\x05" * 32)
        self.address = self.account.address.lower()

    def __call__(self, method: str, *params: object) -> Any:
        return self.rpc.call(method, params)

    def error(self, method: str, *params: object) -> dict[str, Any]:
        """The error object of a call that must fail."""
        answer: Any = self.rpc.answer({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        assert "result" not in answer
        return dict(answer["error"])

    def sign(self, nonce: int, **fields: Any) -> str:
        """Raw hex of a transaction; ``type=2`` and harmless fees unless told otherwise."""
        tx: dict[str, Any] = {"chainId": 1337, "nonce": nonce, "to": "0x" + "99" * 20, "value": 1, "gas": 21_000}
        if "gasPrice" not in fields:
            tx |= {"type": 2, "maxFeePerGas": 10 * GWEI, "maxPriorityFeePerGas": GWEI}
        tx |= fields
        tx["to"] = bytes.fromhex(tx["to"].removeprefix("0x"))
        return "0x" + bytes(self.account.sign_transaction(tx).raw_transaction).hex()

    def send(self, nonce: int, **fields: Any) -> str:
        return str(self("eth_sendRawTransaction", self.sign(nonce, **fields)))

    def number(self, method: str, *params: object) -> int:
        return int(self(method, *params), 16)


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    running = Chain(tmp_path)
    yield running
    running.close()


@pytest.fixture
def call(chain: Chain) -> Caller:
    """Its account has 10 coins and 100 tokens, in block 1."""
    made = Caller(chain)
    chain.fund(bytes.fromhex(made.address[2:]), 10 * 10**18, 100 * 10**18)
    return made


@pytest.fixture
def caller_of() -> Callable[[Chain], Caller]:
    return Caller

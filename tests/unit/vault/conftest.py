"""A chain with the vault on it, people with keys and tokens, and one call for a transaction's whole life."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shem.node.identity.keys import Identity
from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.evm import erc20, vault
from shem.node.payment.drivers.evm.transaction import Transaction, encode_rlp
from shem.testing.devchain import places
from shem.testing.devchain.chain import Chain
from shem.testing.devchain.rpc import Rpc
from tests.anvil import anvil_path

GWEI = 10**9
TOKENS = 10**9
"""What everybody who pays starts with, in base units: small, so that sums come near it."""
CHAIN_ID = 1337
ANVIL_KEY = bytes.fromhex("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80")
"""The first account that anvil gives coins to on every start."""

Call = Callable[..., Any]


class World:
    """One chain, seen through JSON-RPC alone; blocks come when told."""

    def __init__(self, rpc: Call, mine: Callable[[], None], advance: Callable[[int], None]) -> None:
        self.rpc = rpc
        self._mine = mine
        self.advance = advance
        self.people = [Identity(keccak256(b"person %d" % n)) for n in range(7)]
        self._nonces: dict[str, int] = {}
        self.token = places.TOKEN_ADDRESS
        self.vault = vault.Vault(CHAIN_ID, places.VAULT_ADDRESS)

    def send(self, who: Identity, data: bytes, to: str, *, gas: int = 8_000_000, value: int = 0) -> SimpleNamespace:
        """A transaction, mined alone: ``ok``, ``gas``, ``now`` (its block's time), ``events``, ``created``."""
        nonce = self._nonces.get(who.address, 0)
        self._nonces[who.address] = nonce + 1
        fields = {"chain_id": CHAIN_ID, "nonce": nonce, "max_tip": 1, "max_fee": 20 * GWEI, "gas": gas}
        signed = Transaction(**fields, to=to, value=value, data=data).sign(who)  # type: ignore[arg-type]
        tx_hash = self.rpc("eth_sendRawTransaction", "0x" + signed.raw.hex())
        self._mine()
        receipt = self.rpc("eth_getTransactionReceipt", tx_hash)
        block = self.rpc("eth_getBlockByNumber", receipt["blockNumber"], False)
        logs = [SimpleNamespace(**log) for log in receipt["logs"]]
        return SimpleNamespace(
            ok=receipt["status"] == "0x1",
            gas=int(receipt["gasUsed"], 16),
            now=int(block["timestamp"], 16),
            events=vault.events(logs, self.vault),
            created=receipt.get("contractAddress"),
        )

    def do(self, who: Identity, data: bytes) -> SimpleNamespace:
        """A call of the vault."""
        return self.send(who, data, self.vault.address)

    def view(self, data: bytes, to: str = "") -> str:
        """An answer, as hex."""
        return str(self.rpc("eth_call", {"to": to or self.vault.address, "data": "0x" + data.hex()}, "latest"))

    def balance(self, owner: str) -> int:
        return int(self.view(erc20.balance_of(owner), self.token), 16)

    def account(self, payer: Identity) -> tuple[int, int]:
        return vault.read_account(self.view(vault.account(payer.address)))

    def channel(self, key: vault.ChannelKey) -> vault.OnChain:
        return vault.read_channel(self.view(vault.channel(key.id)))

    def now(self) -> int:
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def deploy(self, who: Identity, code: str, *words: int | str) -> tuple[str, int]:
        """A contract's address, and the gas of its creation."""
        nonce = self._nonces.get(who.address, 0)
        values = (int(word, 16) if isinstance(word, str) else word for word in words)
        data = bytes.fromhex(code.removeprefix("0x") + "".join(f"{value:064x}" for value in values))
        done = self.send(who, data, "0x")
        assert done.ok
        made = keccak256(
            encode_rlp([bytes.fromhex(who.address[2:]), nonce.to_bytes((nonce.bit_length() + 7) // 8, "big")])
        )
        assert done.created.lower() == "0x" + made[-20:].hex()
        return str(done.created).lower(), done.gas

    def stand_on(self, code: str) -> None:
        """Use another vault from now on: what is deployed from ``code``."""
        address, _ = self.deploy(self.people[0], code, self.token)
        self.vault = vault.Vault(CHAIN_ID, address)
        for person in self.people[:3]:
            assert self.send(person, erc20.approve(address, 2**256 - 1), self.token).ok

    def voucher(self, signer: Identity, channel: bytes, amount: int) -> bytes:
        return signer.sign_digest(vault.voucher_digest(self.vault, channel, amount))

    def close(self, payee: Identity, channel: bytes, amount: int) -> bytes:
        return payee.sign_digest(vault.close_digest(self.vault, channel, amount))


@contextmanager
def devchain() -> Iterator[World]:
    """Our own chain, in this process."""
    with tempfile.TemporaryDirectory() as directory:
        chain = Chain(Path(directory), chain_id=CHAIN_ID)
        rpc = Rpc(chain, changed=lambda: None, automine=lambda on: None)
        try:
            world = World(lambda method, *params: rpc.call(method, params), chain.mine, chain.advance_time)
            for number, person in enumerate(world.people):
                chain.fund(bytes.fromhex(person.address[2:]), 10**20, TOKENS if number < 3 else 0)
            for person in world.people[:3]:
                assert world.send(person, erc20.approve(world.vault.address, 2**256 - 1), world.token).ok
            yield world
        finally:
            chain.close()


@contextmanager
def anvil_process() -> Iterator[Call]:
    """A real node that mines when told; called with JSON-RPC (one request, or several) it gives the answer."""
    path = anvil_path()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [path, "--port", str(port), "--silent", "--chain-id", str(CHAIN_ID), "--no-mining"]
    with ExitStack() as stack:
        process = subprocess.Popen([*command, "--hardfork", "prague", "--gas-limit", "30000000"])
        stack.callback(process.wait)
        stack.callback(process.kill)

        def ask(asked: object) -> Any:
            body = json.dumps(asked).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)

        deadline = time.monotonic() + 20
        while True:
            try:
                ask({"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []})
                break
            except OSError:
                assert time.monotonic() < deadline, "anvil does not answer"
                time.sleep(0.02)  # a child that has no way to say that it is ready
        yield ask


@contextmanager
def anvil() -> Iterator[World]:
    """A real node, with our contracts deployed by their constructors."""
    with anvil_process() as ask:

        def rpc(method: str, *params: object) -> Any:
            told = ask({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            assert "error" not in told, told["error"]
            return told["result"]

        world = World(rpc, lambda: rpc("evm_mine"), lambda seconds: rpc("evm_increaseTime", seconds))
        rich = Identity(ANVIL_KEY)
        for person in world.people:
            world.send(rich, b"", person.address, value=10**20, gas=21_000)
        world.token, _ = world.deploy(rich, places.artifact("Token")["bytecode"], 10**27)
        for person in world.people[:3]:
            assert world.send(rich, erc20.transfer(person.address, TOKENS), world.token).ok
        world.stand_on(places.artifact("Vault")["bytecode"])
        yield world


WORLDS = {"devchain": devchain, "anvil": anvil}


@pytest.fixture(params=["devchain", pytest.param("anvil", marks=pytest.mark.interop)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The same on the devnet's chain and on a real node."""
    with WORLDS[request.param]() as made:
        yield made


@pytest.fixture(scope="session")
def worlds() -> dict[str, Callable[[], Any]]:
    """For tests that make several."""
    return dict(WORLDS)

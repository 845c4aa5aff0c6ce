"""The standard vault: where everybody who knows a network's token looks for its vault, and how it gets there.

CREATE2 makes a contract's address from who creates it, a salt and the code that creates it. The creator is a small contract
that stands at one address on nearly every chain, :data:`DEPLOYER`; it does what anybody asks, so that it does not matter who
does: what it puts at the address can be this vault over this token and nothing else. Two operators need not tell each other
anything, and nobody can be there first with something else.

The address is as old as the vault's code: another compiler, or a changed contract, has another one. Then the version in the
salt changes with it, and a test that knows published addresses by heart.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from shem.node.identity.signing import keccak256

STANDARD = "standard"
"""What an operator writes for the address."""
DEPLOYER = "0x4e59b44847b379578588920ca78fbf26c0b4956c"
"""The deterministic deployment proxy. Its call is a salt of 32 bytes and then the code that creates; the answer is the new
contract's address, 20 bytes. It was made by a transaction that is valid on every chain and whose key nobody has."""
SALT = keccak256(b"The vault of payment channels of Shem, version 1")


@cache
def artifact() -> dict[str, Any]:
    """The compiled vault, as ``tools/build_contracts.py`` wrote it."""
    text = files(__package__).joinpath("artifacts", "Vault.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def creation(token: str) -> bytes:
    """The code that creates a vault over ``token``: what the compiler made, and the constructor's argument."""
    code = bytes.fromhex(str(artifact()["bytecode"]).removeprefix("0x"))
    return code + bytes.fromhex(token.removeprefix("0x")).rjust(32, b"\0")


@cache
def standard_vault(token: str) -> str:
    """The address of the standard vault over ``token``: ``0x`` and 40 lower-case hex digits, as is ``token``."""
    creator = bytes.fromhex(DEPLOYER.removeprefix("0x"))
    return "0x" + keccak256(b"\xff" + creator + SALT + keccak256(creation(token)))[-20:].hex()


def deployment(token: str) -> bytes:
    """The call of :data:`DEPLOYER` that puts it there."""
    return SALT + creation(token)


def is_address(answer: bytes, address: str) -> bool:
    """Whether the answer to :func:`deployment` is that address, as the deployer writes it."""
    return answer == bytes.fromhex(address.removeprefix("0x"))

"""What the genesis block holds, and where: fixed addresses that peers can pin.

The faucet is an ordinary account whose key everybody knows. It exists on devnets only; the chain itself uses it to
serve ``shem_fund``.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from shem.node.payment.drivers.evm import standard

CHAIN_ID = 1337
TOKEN_ADDRESS = "0x5e11000000000000000000000000000000000001"  # noqa: S105 - a place, not a secret
TOKEN_SYMBOL = "tGLM"  # noqa: S105
TOKEN_DECIMALS = 18
MULTI_TRANSFER_ADDRESS = "0x5e11000000000000000000000000000000000002"
VAULT_ADDRESS = "0x5e11000000000000000000000000000000000003"
"""The vault of payment channels."""

DEPLOYER_CODE = bytes.fromhex(
    "6020 36 03"  # PUSH 32, CALLDATASIZE, SUB: the length of the code that creates, which follows a salt of 32 bytes
    "80 6020 5f 37"  # DUP1, PUSH 32, PUSH 0, CALLDATACOPY: that code to the start of the memory
    "5f 35 90"  # PUSH 0, CALLDATALOAD, SWAP1: the salt below the length
    "5f 34 f5"  # PUSH 0, CALLVALUE, CREATE2: what was made, or nobody
    "80 6016 57"  # DUP1, PUSH 22, JUMPI: over what follows if it was made
    "5f 5f fd"  # PUSH 0, PUSH 0, REVERT
    "5b 5f 52"  # JUMPDEST, PUSH 0, MSTORE: the address into the last 20 bytes of a word
    "6014 600c f3"  # PUSH 20, PUSH 12, RETURN: those
)
"""Stands at :data:`~shem.node.payment.drivers.evm.standard.DEPLOYER`, where public chains have another with the same words."""

FAUCET_KEY = bytes.fromhex("5e11fa0ce7000000000000000000000000000000000000000000000000000001")
FAUCET_TOKENS = 10**9 * 10**18
FAUCET_WEI = 10**9 * 10**18


@cache
def artifact(contract: str) -> dict[str, Any]:
    """The compiled contract, as ``tools/build_contracts.py`` wrote it."""
    if contract == "Vault":
        return standard.artifact()
    text = files(__package__).joinpath("artifacts", f"{contract}.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def runtime_code(contract: str) -> bytes:
    """What stands at the contract's address once it is deployed (before immutables are appended)."""
    return bytes.fromhex(str(artifact(contract)["runtimeBytecode"]).removeprefix("0x"))

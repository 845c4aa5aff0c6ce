"""What the genesis block holds, and where: fixed addresses that peers can pin.

The faucet is an ordinary account whose key everybody knows. It exists on devnets only; the chain itself uses it to
serve ``shem_fund``.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

CHAIN_ID = 1337
TOKEN_ADDRESS = "0x5e11000000000000000000000000000000000001"  # noqa: S105 - a place, not a secret
TOKEN_SYMBOL = "tGLM"  # noqa: S105
TOKEN_DECIMALS = 18
MULTI_TRANSFER_ADDRESS = "0x5e11000000000000000000000000000000000002"
VAULT_ADDRESS = "0x5e11000000000000000000000000000000000003"
"""The vault of payment channels."""

FAUCET_KEY = bytes.fromhex("5e11fa0ce7000000000000000000000000000000000000000000000000000001")
FAUCET_TOKENS = 10**9 * 10**18
FAUCET_WEI = 10**9 * 10**18


@cache
def artifact(contract: str) -> dict[str, Any]:
    """The compiled contract, as ``tools/build_contracts.py`` wrote it."""
    text = files(__package__).joinpath("artifacts", f"{contract}.json").read_text()
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def runtime_code(contract: str) -> bytes:
    """What stands at the contract's address once it is deployed (before immutables are appended)."""
    return bytes.fromhex(str(artifact(contract)["runtimeBytecode"]).removeprefix("0x"))

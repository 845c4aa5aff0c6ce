"""What the vault's operations cost in gas, beside what the design was measured with.

The measurement is the test's that forbids them to become dearer; it writes its table where it is told.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MEASURED_BY = "tests/unit/vault/test_vault_gas.py"
DESIGN = {
    "deploy": 1_481_823,
    "transfer, new holder": 51_022,
    "transfer, holder": 33_922,
    "deposit, first": 80_174,
    "deposit, again": 45_974,
    "withdraw": 43_580,
    "reserve 1": 56_193,
    "reserve 10": 300_040,
    "reserve 100": 2_738_980,
    "deposit and reserve 1": 78_422,
    "extend, time": 32_009,
    "extend, time and amount": 35_096,
    "settle 1": 48_167,
    "settle 10": 201_710,
    "settle 100": 1_737_332,
    "redeem 1": 56_275,
    "redeem 10": 187_771,
    "redeem 100": 1_502_491,
    "redeem 1, by anybody": 51_007,
    "redeem and close 10": 168_075,
    "redeem and close 100": 1_345_980,
    "release 1": 31_532,
    "transfer to 10 new holders": 289_538,
    "transfer to 10 holders": 118_646,
    "transfer to 100 new holders": 2_608_796,
    "transfer to 100 holders": 899_984,
}
"""Of the prototype, which had neither closes with the payee's word, nor a longest term, nor locks against re-entry."""


async def gas(root: Path) -> dict[str, Any]:
    """Operation to ``{"gas", "design", "ratio"}``, the latter two where the design has it; or ``{"failed": why}``."""
    table = root / "gas.json"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", MEASURED_BY]
    environment = os.environ | {"SHEM_WRITE_GAS": str(table)}
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, check=False
    )
    if not table.exists():
        return {"failed": done.stdout[-500:] + done.stderr[-500:]}
    return {name: _beside(used, DESIGN.get(name)) for name, used in json.loads(table.read_text()).items()}


def _beside(used: int, design: int | None) -> dict[str, float]:
    return {"gas": used} if design is None else {"gas": used, "design": design, "ratio": round(used / design, 3)}

"""Compile the contracts and write (or, with ``--check``, compare) their artifacts.

An artifact holds what a caller needs (ABI, bytecode, runtime bytecode, storage layout) and what a reader needs to trust
it: compiler and version, settings, SHA-256 of the source. The compiler gives the same bytes on every machine, so the
check is a plain comparison. Needs the compiler (dependency group ``build``); nothing at run time does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "contracts"
ARTIFACTS = ROOT / "src" / "shem" / "testing" / "devchain" / "artifacts"

EVM_VERSION = "cancun"  # deployable on more chains than the newest, at the same code size
OPTIMIZE = "gas"


def compile_contract(source: Path) -> dict[str, Any]:
    """The artifact of one contract, JSON-able."""
    import vyper

    text = source.read_text()
    out = vyper.compile_code(text, output_formats=["abi", "bytecode", "bytecode_runtime", "layout"])
    return {
        "contract": source.stem,
        "compiler": {"name": "vyper", "version": vyper.__version__.split("+")[0]},
        "settings": {"evmVersion": EVM_VERSION, "optimize": OPTIMIZE},
        "sourceSha256": hashlib.sha256(text.encode()).hexdigest(),
        "abi": out["abi"],
        "bytecode": out["bytecode"],
        "runtimeBytecode": out["bytecode_runtime"],
        "storageLayout": {name: entry["slot"] for name, entry in out["layout"].get("storage_layout", {}).items()},
    }


def render(artifact: dict[str, Any]) -> str:
    """The bytes of an artifact file."""
    return json.dumps(artifact, indent=1) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 when an artifact is stale or missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 on a difference")
    check = parser.parse_args(arguments).check
    stale = 0
    for source in sorted(SOURCES.glob("*.vy")):
        target = ARTIFACTS / f"{source.stem}.json"
        fresh = render(compile_contract(source))
        if target.exists() and target.read_text() == fresh:
            continue
        stale += 1
        if check:
            print(f"{target.relative_to(ROOT)} is not what {source.name} compiles to")
        else:
            target.write_text(fresh)
            print(f"wrote {target.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

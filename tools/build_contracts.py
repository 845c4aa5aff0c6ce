"""Compile the contracts and write their artifacts; ``--compare`` compiles and compares, ``--check`` only looks at hashes.

So with the mutants of the vault: ``contracts/mutants.json`` says what to replace with what, each a mistake that the tests
must notice.

An artifact holds what a caller needs (ABI, bytecode, runtime bytecode, storage layout) and what a reader needs to trust
it: compiler and version, settings, SHA-256 of the source. The compiler gives the same bytes on every machine, so the
comparison is a plain one. All but ``--check`` need the compiler (dependency group ``build``); nothing at run time does.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import zlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "contracts"
ARTIFACTS = ROOT / "src" / "shem" / "testing" / "devchain" / "artifacts"

MUTATIONS = SOURCES / "mutants.json"
MUTANTS = ROOT / "tests" / "unit" / "vault" / "mutants.json"

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


def is_current(source: Path, target: Path) -> bool:
    """Whether the artifact was made from this very source, by this tool's settings. Needs no compiler."""
    if not target.exists():
        return False
    artifact = json.loads(target.read_text())
    settings = {"evmVersion": EVM_VERSION, "optimize": OPTIMIZE}
    digest = hashlib.sha256(source.read_text().encode()).hexdigest()
    return bool(artifact["sourceSha256"] == digest and artifact["settings"] == settings)


def build_mutants() -> str:
    """The file of mutants: name → deflated creation code, and the hash of what they were made from."""
    import vyper

    text = (SOURCES / "Vault.vy").read_text()
    built = {}
    for name, (before, after) in json.loads(MUTATIONS.read_text()).items():
        if text.count(before) != 1:
            raise SystemExit(f"mutant {name!r}: its text is in the source {text.count(before)} times")
        code = vyper.compile_code(text.replace(before, after), output_formats=["bytecode"])["bytecode"]
        built[name] = base64.b64encode(zlib.compress(bytes.fromhex(code[2:]), 9)).decode()
    return json.dumps({"made_from": mutants_source(), "mutants": built}, indent=1) + "\n"


def mutants_source() -> str:
    """SHA-256 of what mutants are made from."""
    return hashlib.sha256((SOURCES / "Vault.vy").read_bytes() + MUTATIONS.read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 when an artifact is stale or missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="compare hashes of sources only; exit 1 on a difference")
    how.add_argument("--compare", action="store_true", help="compile and compare; exit 1 on a difference")
    options = parser.parse_args(arguments)
    stale = 0
    for source in sorted(SOURCES.glob("*.vy")):
        target = ARTIFACTS / f"{source.stem}.json"
        if options.check:
            current = is_current(source, target)
        else:
            fresh = render(compile_contract(source))
            current = target.exists() and target.read_text() == fresh
        if current:
            continue
        stale += 1
        if options.check or options.compare:
            print(f"{target.relative_to(ROOT)} is not what {source.name} compiles to: run tools/build_contracts.py")
        else:
            target.write_text(fresh)
            print(f"wrote {target.relative_to(ROOT)}")
    if options.check:
        current = MUTANTS.exists() and json.loads(MUTANTS.read_text())["made_from"] == mutants_source()
    else:
        fresh = build_mutants()
        current = MUTANTS.exists() and MUTANTS.read_text() == fresh
        if not current and not options.compare:
            MUTANTS.write_text(fresh)
            print(f"wrote {MUTANTS.relative_to(ROOT)}")
    if not current:
        stale += 1
        if options.check or options.compare:
            print(f"{MUTANTS.relative_to(ROOT)} is not made from this vault: run tools/build_contracts.py")
    return 1 if stale and (options.check or options.compare) else 0


if __name__ == "__main__":
    sys.exit(main())

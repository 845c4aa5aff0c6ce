"""Compile the contracts and write their artifacts; ``--compare`` compiles and compares, ``--check`` only looks at hashes.

So with contracts that are wrong on purpose (``contracts/mutants.json`` says what to replace with what): mistakes of the vault
that its tests must notice, and a token that payments must live with.

What is written holds what a caller needs (ABI, bytecode, runtime bytecode, storage layout) and what a reader needs to trust
it: compiler and version, settings, SHA-256 of the source. The compiler gives the same bytes on every machine, so the
comparison is a plain one. All but ``--check`` need the compiler (``tools/builders.sh`` brings it); nothing at run time does.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "contracts"
ARTIFACTS = ROOT / "src" / "shem" / "testing" / "devchain" / "artifacts"
OF_NODES = {"Vault": ROOT / "src" / "shem" / "node" / "payment" / "drivers" / "evm" / "artifacts"}
"""A node puts the vault on chains itself, and may not know what is made for tests."""

MUTATIONS = SOURCES / "mutants.json"
MUTANTS = {
    "Vault": ROOT / "tests" / "unit" / "vault" / "mutants.json",
    "Token": ROOT / "tests" / "unit" / "evm" / "tokens.json",
}

EVM_VERSION = "cancun"  # deployable on more chains than the newest, at the same code size
OPTIMIZE = "gas"


@dataclass(frozen=True)
class Product:
    """One file that is made from others."""

    target: Path
    stamp: dict[str, Any]
    """What the file must say about what it was made from; known without the compiler."""
    build: Callable[[], dict[str, Any]]
    """Its whole content; needs the compiler."""

    def is_stamped(self) -> bool:
        """Whether it says so."""
        if not self.target.exists():
            return False
        said = json.loads(self.target.read_text())
        return all(said.get(name) == value for name, value in self.stamp.items())

    def render(self) -> str:
        """The bytes of the file."""
        return json.dumps(self.build(), indent=1) + "\n"


def products() -> Iterator[Product]:
    """All that this tool writes."""
    mutations = json.loads(MUTATIONS.read_text())
    for source in sorted(SOURCES.glob("*.vy")):
        stamp = {
            "sourceSha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "settings": {"evmVersion": EVM_VERSION, "optimize": OPTIMIZE},
        }
        target = OF_NODES.get(source.stem, ARTIFACTS) / f"{source.stem}.json"
        yield Product(target, stamp, partial(artifact, source, stamp))
    for contract, target in MUTANTS.items():
        source, wanted = SOURCES / f"{contract}.vy", mutations[contract]
        made_from = hashlib.sha256(source.read_bytes() + json.dumps(wanted).encode()).hexdigest()
        yield Product(target, {"made_from": made_from}, partial(mutants, source, wanted, made_from))


def artifact(source: Path, stamp: dict[str, Any]) -> dict[str, Any]:
    """The artifact of one contract, JSON-able."""
    import vyper

    out = vyper.compile_code(source.read_text(), output_formats=["abi", "bytecode", "bytecode_runtime", "layout"])
    return {
        "contract": source.stem,
        "compiler": {"name": "vyper", "version": vyper.__version__.split("+")[0]},
        "settings": stamp["settings"],
        "sourceSha256": stamp["sourceSha256"],
        "abi": out["abi"],
        "bytecode": out["bytecode"],
        "runtimeBytecode": out["bytecode_runtime"],
        "storageLayout": {name: entry["slot"] for name, entry in out["layout"].get("storage_layout", {}).items()},
    }


def mutants(source: Path, wanted: dict[str, list[str]], made_from: str) -> dict[str, Any]:
    """Name → deflated creation code, and what they were made from."""
    import vyper

    text = source.read_text()
    built = {}
    for name, (before, after) in wanted.items():
        if text.count(before) != 1:
            raise SystemExit(f"mutant {name!r}: its text is in {source.name} {text.count(before)} times")
        code = vyper.compile_code(text.replace(before, after), output_formats=["bytecode"])["bytecode"]
        built[name] = base64.b64encode(zlib.compress(bytes.fromhex(code[2:]), 9)).decode()
    return {"made_from": made_from, "mutants": built}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 1 when something is stale or missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="compare hashes of sources only; exit 1 on a difference")
    how.add_argument("--compare", action="store_true", help="compile and compare; exit 1 on a difference")
    options = parser.parse_args(arguments)
    stale = 0
    for product in products():
        if options.check:
            current = product.is_stamped()
        else:
            fresh = product.render()
            current = product.target.exists() and product.target.read_text() == fresh
        if current:
            continue
        place = product.target.relative_to(ROOT)
        if options.check or options.compare:
            stale += 1
            print(f"{place} is not what its source compiles to: run tools/build_contracts.py")
        else:
            product.target.write_text(fresh)
            print(f"wrote {place}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

"""Build the guest agent for every architecture, or check that the committed binaries are of the committed source.

The binaries are package data: a user needs no compiler. The compiler is the ``ziglang`` package of exactly the version
in the manifest; with it the same source gives the same bytes on every machine.

    python tools/build_guest.py            rebuild, write binaries and manifest
    python tools/build_guest.py --check    compare the hashes of sources and binaries with the manifest (no compiler)
    python tools/build_guest.py --compare  rebuild elsewhere and compare the bytes
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "guest-agent"
BINARIES = ROOT / "src/shem/runtimes/guest/bin"
MANIFEST = BINARIES / "manifest.json"
ARCHITECTURES = ("x86_64", "aarch64")
COMPILER = "0.17.1"
FLAGS = ("-static", "-Os", "-s", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sources() -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(SOURCE.glob("*.[ch]"))}


def missing_compiler() -> str:
    """Why we cannot compile here; empty when we can."""
    try:
        found = importlib.metadata.version("ziglang")
    except importlib.metadata.PackageNotFoundError:
        return f"the package ziglang {COMPILER} is not installed"
    return "" if found == COMPILER else f"ziglang is {found}, the manifest wants {COMPILER}"


def build(into: Path) -> dict[str, str]:
    """Compile for every architecture; file name to sha256."""
    built = {}
    files = [path.name for path in sorted(SOURCE.glob("*.c"))]
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "ZIG_LOCAL_CACHE_DIR": cache}
        for architecture in ARCHITECTURES:
            target = into / f"agent-{architecture}"
            command = [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-musl", *FLAGS]
            subprocess.run([*command, "-o", str(target), *files], cwd=SOURCE, env=environment, check=True)
            target.chmod(0o755)
            built[target.name] = sha256(target)
    return built


def check() -> list[str]:
    """What is wrong with the committed binaries; empty when nothing is."""
    manifest = json.loads(MANIFEST.read_text())
    problems = [] if manifest["sources"] == sources() else ["the sources have changed: run tools/build_guest.py"]
    for name, digest in manifest["binaries"].items():
        path = BINARIES / name
        if not path.is_file() or sha256(path) != digest:
            problems.append(f"{name} is not the binary of the manifest")
    return problems


def compare() -> list[str]:
    """Rebuild and name every binary that comes out different."""
    wanted = json.loads(MANIFEST.read_text())["binaries"]
    with tempfile.TemporaryDirectory() as directory:
        built = build(Path(directory))
    return [f"{name} comes out different" for name in wanted if built.get(name) != wanted[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        problems = check()
    elif reason := missing_compiler():
        problems = [reason]
    elif arguments.compare:
        problems = compare()
    else:
        BINARIES.mkdir(parents=True, exist_ok=True)
        manifest = {"compiler": f"ziglang {COMPILER}", "flags": list(FLAGS), "sources": sources()}
        MANIFEST.write_text(json.dumps({**manifest, "binaries": build(BINARIES)}, indent=1) + "\n")
        problems = []
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

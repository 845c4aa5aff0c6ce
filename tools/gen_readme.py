"""Put programs into the README between ``<!-- program: PATH -->`` and ``<!-- end -->``; ``--check`` compares instead."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
_BLOCK = re.compile(r"(<!-- program: (\S+) -->\n)```python\n.*?```\n(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The README with each program as it is in its file."""
    return _BLOCK.sub(lambda m: f"{m[1]}```python\n{(ROOT / m[2]).read_text()}```\n{m[3]}", text)


def main() -> int:
    """Exit status 1 when ``--check`` finds a difference."""
    text = README.read_text()
    wanted = filled(text)
    if "--check" in sys.argv:
        if text != wanted:
            print("README.md does not show the programs as they are: run make sync", file=sys.stderr)
        return int(text != wanted)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``python -m shem`` is ``shem``."""

from shem.cli import main

main()

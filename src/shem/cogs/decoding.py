"""What decoding hostile bytes with msgspec may raise."""

from __future__ import annotations

import msgspec

DECODE_ERRORS: tuple[type[Exception], ...] = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""``MsgspecError`` for what is not of the shape; but text that is not UTF-8 and nesting without end raise Python's own."""

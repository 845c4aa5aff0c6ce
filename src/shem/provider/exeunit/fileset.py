"""Which files of a directory travel: patterns and a depth, as the ``transfer`` command names them.

Patterns are Ant's: ``*`` and ``?`` stay within one part of a path, ``**`` spans parts, a trailing ``/`` means everything below.
A depth of 0 takes what lies in the directory itself and nothing of its subdirectories. Patterns come from strangers: they
become expressions that never look back further than one name, so no pattern takes long.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from shem.provider.exeunit.failures import TRANSFER_FAILED, CommandFailed
from shem.terms.script import Fileset

MAX_PATTERNS = 64
MAX_PATTERN = 1024
_EVERYTHING = "**/*"

Rules = Fileset | str | Sequence[Fileset | str] | None


class Selection:
    """Decides about paths relative to the directory. Several filesets: what any of them takes."""

    def __init__(self, rules: Rules, depth: int | None) -> None:
        """Raises :class:`CommandFailed` for too many or too long patterns."""
        listed = [] if rules is None else [rules] if isinstance(rules, str | Fileset) else list(rules)
        self._sets = [_compile(rule) for rule in listed]
        self._depth = depth
        count = sum(len(includes) + len(excludes) for includes, excludes in self._sets)
        if count > MAX_PATTERNS:
            raise CommandFailed(TRANSFER_FAILED, f"{count} patterns are more than {MAX_PATTERNS}")

    def takes(self, path: str, *, directory: bool = False) -> bool:
        """Whether this path travels. A directory that does not may still come to be, as the parent of one that does."""
        if self._depth is not None and path.count("/") + directory > self._depth:
            return False
        if not self._sets or not path:
            return True
        return any(_any(includes, path) and not _any(excludes, path) for includes, excludes in self._sets)


def _compile(rule: Fileset | str) -> tuple[list[re.Pattern[str]], list[re.Pattern[str]]]:
    if isinstance(rule, str):
        return [_pattern(rule)], []
    includes = _EVERYTHING if rule.includes is None else rule.includes
    return _patterns(includes), _patterns([] if rule.excludes is None else rule.excludes)


def _patterns(texts: Sequence[str] | str) -> list[re.Pattern[str]]:
    return [_pattern(text) for text in ([texts] if isinstance(texts, str) else texts)]


def _any(patterns: Sequence[re.Pattern[str]], path: str) -> bool:
    return any(pattern.fullmatch(path) for pattern in patterns)


def _pattern(text: str) -> re.Pattern[str]:
    """Between two wildcards the first place that fits is as good as any later one, so the choice is made for good (an
    atomic group), among parts and within a part."""
    if len(text) > MAX_PATTERN:
        raise CommandFailed(TRANSFER_FAILED, f"a pattern is longer than {MAX_PATTERN} characters")
    if text.endswith("/"):
        text += "**"
    runs: list[list[str]] = [[]]
    for part in text.split("/"):
        if part == "**":
            runs.append([])
        elif part not in ("", "."):
            runs[-1].append(_part(part))
    first, *middle = runs
    if not middle:
        return _expression("/".join(first))
    last = middle.pop()
    made = "".join(part + "/" for part in first)
    for run in middle:
        if run:
            made += "(?>(?:[^/]+/)*?" + "".join(part + "/" for part in run) + ")"
    return _expression(made + ("(?:[^/]+/)*?" + "/".join(last) if last else ".+"))


def _part(part: str) -> str:
    first, *rest = (_letters(piece) for piece in re.split(r"\*+", part))
    if not rest:
        return first
    return first + "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1] if piece) + f"[^/]*{rest[-1]}(?=/|\\Z)"


def _letters(text: str) -> str:
    return "".join("[^/]" if letter == "?" else re.escape(letter) for letter in text)


def _expression(text: str) -> re.Pattern[str]:
    return re.compile(text, re.DOTALL)

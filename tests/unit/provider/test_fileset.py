"""Which paths a pattern takes."""

from __future__ import annotations

import pytest

from shem.provider.exeunit.failures import CommandFailed
from shem.provider.exeunit.fileset import MAX_PATTERN, MAX_PATTERNS, Selection
from shem.terms.script import Fileset


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("**/*", "a", True),
        ("**/*", "a/b/c", True),
        ("**", "a/b", True),
        ("*", "a\nb", True),
        ("*", "a/b", False),
        ("*.txt", "a.txt", True),
        ("*.txt", "d/a.txt", False),
        ("**/*.txt", "a.txt", True),
        ("**/*.txt", "d/e/a.txt", True),
        ("**/*.txt", "d/a.txt.gz", False),
        ("d/**", "d/x/y", True),
        ("d/**", "dd/x", False),
        ("d/", "d/x", True),
        ("./d//x", "d/x", True),
        ("/d/x", "d/x", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a?c", "ac", False),
        ("**/test/**", "a/test/b", True),
        ("**/test/**", "test/b", True),
        ("**/test/**", "a/tests/b", False),
        ("a/**/b/**/c", "a/b/c", True),
        ("a/**/b/**/c", "a/x/b/y/z/c", True),
        ("a/**/b/**/c", "a/x/c", False),
        ("*a*b", "xaxbyb", True),
        ("*a*b", "xbxa", False),
        ("a[b].(c)", "a[b].(c)", True),
        ("a[b]", "ab", False),
        ("", "a", False),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert Selection(pattern, None).takes(path) is expected


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        (None, "a.c a.h d/b.c d/e/f.h"),
        ("**/*.c", "a.c d/b.c"),
        (["*.c", "*.h"], "a.c a.h"),
        (Fileset(excludes="**/*.h"), "a.c d/b.c"),
        (Fileset(desc="x", includes=["**/*.c", "**/*.h"], excludes=["d/e/**", "a.*"]), "d/b.c"),
        ([Fileset(includes="*.c"), "d/e/*"], "a.c d/e/f.h"),
        ([], "a.c a.h d/b.c d/e/f.h"),
    ],
)
def test_filesets(rules: Fileset | str | list[Fileset | str] | None, taken: str) -> None:
    selection = Selection(rules, None)
    assert " ".join(path for path in ("a.c", "a.h", "d/b.c", "d/e/f.h") if selection.takes(path)) == taken


@pytest.mark.parametrize(
    ("depth", "taken"), [(0, "a"), (1, "a d/ d/b"), (2, "a d/ d/b d/e/ d/e/f"), (None, "a d/ d/b d/e/ d/e/f")]
)
def test_depth(depth: int | None, taken: str) -> None:
    selection = Selection(None, depth)
    paths = ("a", "d/", "d/b", "d/e/", "d/e/f")
    assert " ".join(p for p in paths if selection.takes(p.rstrip("/"), directory=p.endswith("/"))) == taken


@pytest.mark.timeout(30)
def test_no_pattern_takes_long() -> None:
    for pattern, path in (
        ("*a" * 500 + "b", "a" * 255),
        ("**/a/" * 200 + "b", "a/" * 2000 + "c"),
        ("**/" + "*a" * 50 + "b/" + "**/x", ("a" * 250 + "/") * 16 + "c"),
    ):
        selection = Selection([pattern] * MAX_PATTERNS, None)
        assert not any(selection.takes(path) for _ in range(20))


def test_limits() -> None:
    for rules in (["*"] * (MAX_PATTERNS + 1), "x" * (MAX_PATTERN + 1), Fileset(excludes=["x"] * (MAX_PATTERNS + 1))):
        with pytest.raises(CommandFailed):
            Selection(rules, None)  # type: ignore[arg-type]

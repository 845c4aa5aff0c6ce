"""Which volumes a sandbox gets."""

from __future__ import annotations

from typing import Any

import pytest

from shem.provider.exeunit.failures import CommandFailed
from shem.provider.exeunit.volumes import MAX_VOLUMES, is_within, parse_size, plan_volumes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (512, 512),
        ("512", 512),
        ("100k", 100 << 10),
        ("100 KB", 100_000),
        ("1.5GiB", 3 << 29),
        ("2 gb", 2_000_000_000),
        ("10m", 10 << 20),
        ("1B", 1),
        (" 3 tib ", 3 << 40),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9", "1.2.3", "1 qb", True, None, -5, 1.5, [], "9" * 40])
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(CommandFailed):
        parse_size(text)


@pytest.mark.parametrize(
    ("declared", "wanted", "paths"),
    [
        ([], [], []),
        (["/b", "/a/"], ["/a", "//c/./d"], ["/a", "/b", "/c/d"]),
        (["/a/b"], {"/a": {"host": {}}}, ["/a", "/a/b"]),
        (["/"], {"/": {"ram": {"size": "100"}}}, ["/"]),
        (["/"], [], []),
        ([], {"/x": {"storage": {"size": "1k", "preallocate": True, "errors": "continue"}}}, ["/x"]),
    ],
)
def test_plans(declared: list[str], wanted: Any, paths: list[str]) -> None:
    assert plan_volumes(declared, wanted, disk_bytes=1024) == paths


@pytest.mark.parametrize(
    "wanted", [["a"], [""], ["/a\0"], ["/x" * 3000], [f"/{n}" for n in range(MAX_VOLUMES + 1)], {"/a": {}}]
)
def test_what_cannot_be(wanted: Any) -> None:
    with pytest.raises(CommandFailed) as failure:
        plan_volumes([], wanted, disk_bytes=1024)
    assert failure.value.code == "bad_volume"


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a", True), ("/a/", True), ("/a/b/c", True), ("//a/./b", True), ("/ab", False), ("/", False), ("/c", False)],
)
def test_within(path: str, expected: bool) -> None:
    assert is_within(path, ["/a", "/b/c"]) is expected
    assert is_within(path, ["/"])
    assert not is_within(path, [])

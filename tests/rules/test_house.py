"""House rules that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from shem import errors
from shem.errors import ShemError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listed.splitlines()]


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(p.relative_to(ROOT))
        for p in SOURCES
        if p.stat().st_size and not ast.get_docstring(ast.parse(p.read_text()))
    ]
    assert silent == []


def test_every_error_belongs_to_a_family_and_has_a_code_of_its_own_form() -> None:
    families = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, ShemError)}

    def leaves(kind: type[ShemError]) -> list[type[ShemError]]:
        return [kind, *(leaf for sub in kind.__subclasses__() for leaf in leaves(sub))]

    for kind in leaves(ShemError):
        assert re.fullmatch(r"[a-z][a-z0-9_]*", kind.default_code), kind
        assert (
            any(kind is f or issubclass(kind, f) for f in families - {ShemError})
            or kind is ShemError
            or kind.__mro__[1] is ShemError
        )


def test_no_mocks() -> None:
    mocks = re.compile(r"unittest\s*\.\s*mock|MagicMock|mocker")
    here = Path(__file__).resolve()
    assert [str(p.relative_to(ROOT)) for p in TESTS if p.resolve() != here and mocks.search(p.read_text())] == []


def test_nobody_waits_by_sleeping() -> None:
    """A sleep of a tenth of a second or more in a test is somebody hoping. Where the claim is about time itself, or somebody
    plays dead, a comment on the line says so."""
    naps = []
    for path in TESTS:
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep"):
                continue
            first = node.args[0] if node.args else None
            long = isinstance(first, ast.Constant) and isinstance(first.value, int | float) and first.value >= 0.1
            if long and "#" not in lines[node.lineno - 1]:
                naps.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert naps == []


def test_no_package_index_is_named() -> None:
    index = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs|deb\.debian\.org|security\.debian\.org")
    here = Path(__file__).resolve()
    named = []
    for path in tracked():
        if path.resolve() == here or not path.is_file():
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        if index.search(text):
            named.append(str(path.relative_to(ROOT)))
    assert named == []


def test_the_version_is_one() -> None:
    import tomllib

    from shem.version import VERSION

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION


def test_money_is_never_a_float() -> None:
    """In the rooms of money no float() is called and no float literal stands, but for waiting times."""
    rooms = [ROOT / "src/shem/terms/amounts.py", ROOT / "src/shem/node/payment/ledger.py"]
    for room in rooms:
        for node in ast.walk(ast.parse(room.read_text())):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), (room, node.lineno)
            assert not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float"), (
                room
            )


def test_any_exception_is_caught_at_the_doors_alone() -> None:
    """A new ``except Exception`` fails here, and so does a door that is no more: ARCHITECTURE lists them."""
    section = (ROOT / "ARCHITECTURE.md").read_text().split("| door |", 1)[1].split("## ", 1)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)}

    def catches_all(handler: ast.ExceptHandler) -> bool:
        kinds = {n.id for n in ast.walk(handler.type) if isinstance(n, ast.Name)} if handler.type else {"BaseException"}
        # who cleans up and lets it pass is no door
        passes = any(isinstance(n, ast.Raise) for statement in handler.body for n in ast.walk(statement))
        return "Exception" in kinds or ("BaseException" in kinds and not passes)

    found = {
        str(path.relative_to(ROOT / "src/shem"))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and catches_all(node)
    }
    assert found == listed


def test_tasks_have_owners() -> None:
    """The linter knows ``asyncio.create_task``; this knows the loop's own, and who may use it, as ARCHITECTURE says."""
    row = next(line for line in (ROOT / "ARCHITECTURE.md").read_text().splitlines() if line.startswith("| concurrency"))
    found = {
        str(path.relative_to(ROOT / "src/shem"))
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "create_task" and "loop" in ast.unparse(node.value)
    }
    assert found == set(re.findall(r"`([\w/]+\.py)`", row))


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "CRITIQUES.md"])
def test_links_in_the_front_room_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    dead = [target for target in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / target).exists()]
    assert dead == []


def test_the_settings_that_the_readme_shows_make_a_node_be_paid(tmp_path: Path) -> None:
    from shem.node.config import load_config
    from shem.node.payment.drivers.networks import PUBLISHED, networks_from

    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    (tmp_path / "config.toml").write_text("".join(blocks))
    served = networks_from(load_config(tmp_path, {}, {}).networks)
    assert [network.platform.platform for network in served] == ["erc20-polygon-glm"]
    published = next(network for network in PUBLISHED if network.name == "polygon")
    assert (served[0].chain_id, served[0].token) == (published.chain_id, published.token)
    assert served[0].multi_transfer

"""The parts of ``yagna`` that need no node: words in any order, output in both forms, statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shem.cli.owner import Place
from shem.cli.yagna import arrange, run
from shem.cli.yagna_output import Speech, to_yaml
from shem.cogs.places import KEY_FILE, URL_FILE
from shem.errors import Misconfigured, Refused


@pytest.mark.parametrize(
    ("argv", "words", "as_json", "data_dir"),
    [
        (["id", "list", "--json"], ["id", "list"], True, None),
        (["--json", "id", "list"], ["id", "list"], True, None),
        (["id", "--json", "-d", "/x", "list"], ["id", "list"], True, Path("/x")),
        (["id", "list", "--datadir=/y", "--gsb-url", "unix:/tmp/a"], ["id", "list"], False, Path("/y")),
        (["-g", "tcp://a:1", "id", "list"], ["id", "list"], False, None),
        (
            ["app-key", "create", "n", "--allow-origins", "a", "b", "--id", "x"],
            ["app-key", "create", "n", "--allow-origins", "a", "--allow-origins", "b", "--id", "x"],
            False,
            None,
        ),
        (["app-key", "create", "--allow-origins=a", "n"], ["app-key", "create", "--allow-origins=a", "n"], False, None),
        (["x", "--", "--json", "-d"], ["x", "--", "--json", "-d"], False, None),
    ],
)
def test_some_options_stand_anywhere(argv: list[str], words: list[str], as_json: bool, data_dir: Path | None) -> None:
    assert arrange(argv) == (words, as_json, data_dir)


def test_an_option_without_its_value_is_refused() -> None:
    with pytest.raises(Refused, match="--datadir needs a value"):
        arrange(["id", "list", "--datadir"])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"Ok": None}, "Ok: null"),
        ({"b": True, "a": {"z": 1, "y": "0"}}, 'a:\n  y: "0"\n  z: 1\nb: true'),
        ({"a": ["x", "y"], "b": [], "c": {}}, "a:\n- x\n- y\nb: []\nc: {}"),
        ([{"a": 1, "b": 2}, {"a": 3}], "- a: 1\n  b: 2\n- a: 3"),
        ({"id": "0x" + "ab" * 20}, "id: 0x" + "ab" * 20),
        (
            {"a": "no", "b": "12", "c": "1e5", "d": "a: b", "e": "", "f": "- x", "g": "x\ny", "h": "#"},
            'a: "no"\nb: "12"\nc: "1e5"\nd: "a: b"\ne: ""\nf: "- x"\ng: "x\\ny"\nh: "#"',
        ),
    ],
)
def test_objects_are_yaml_for_people(value: Any, text: str) -> None:
    assert to_yaml(value) == text


def said(capsys: pytest.CaptureFixture[str], as_json: bool, speak: Any) -> str:
    speak(Speech(as_json=as_json, place=Place(Path("/nowhere"))))
    return capsys.readouterr().out


def test_a_table_is_a_list_of_its_rows_for_tools(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "a", "on": True, "off": False, "none": None}, {"name": "b" * 300, "on": 1, "off": 0, "none": ""}]

    def speak(say: Speech) -> None:
        say.table(("name", "on", "off", "none"), rows)

    assert json.loads(said(capsys, True, speak)) == rows
    text = said(capsys, False, speak)
    assert "b" * 300 in text  # nothing is cut, however narrow the terminal
    assert " X " in text
    assert "\x1b" not in text


def test_nothing_is_null_for_tools(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, True, Speech.nothing) == "null\n"
    assert said(capsys, False, Speech.nothing) == ""
    assert said(capsys, True, lambda say: say.text("k")) == '"k"\n'
    assert said(capsys, False, lambda say: say.text("k")) == "k\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["id"],
        ["id", "nonsense"],
        ["id", "list", "--nonsense"],
        ["app-key", "create"],
        ["--datadir"],
        ["id", "create", "x", "--no-password"],
        ["id", "drop", "x"],
        ["id", "lock"],
        ["id", "unlock"],
        ["payment", "transfer", "--amount", "1", "--to-address", "0x0"],
        ["payment", "enter"],
        ["payment", "exit"],
        ["payment", "process", "set", "--x"],
        ["payment", "status", "--last", "1d"],
        ["net", "ping"],
        ["net", "connect", "0x0", "--keep-alive"],
        ["version", "check"],
        ["db", "vacuum"],
        ["extension", "register", "x"],
        ["service", "run", "--api-url", "https://x"],
    ],
)
def test_what_cannot_be_done_is_said_on_stderr_and_ends_with_one(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = argv if "--datadir" in argv else [*argv, "--datadir", str(tmp_path / "none")]
    for more in ([], ["--json"]):
        assert run([*more, *words]) == 1
        told = capsys.readouterr()
        assert told.out == "" or argv == ["id"]  # a noun alone is a question for help
        assert told.err or argv == ["id"]
        assert "Traceback" not in told.err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("argv", [["app-key", "list"], ["service", "shutdown"], ["id", "pub-key"], ["id", "export"]])
def test_where_no_node_was_it_says_so(argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*argv, "-d", str(tmp_path)]) == 1
    assert str(tmp_path) in capsys.readouterr().err


def test_help_and_version_are_no_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["payment", "--help"], ["payment", "status", "--help"], ["--version"], ["-V"]):
        assert run(argv) == 0
        assert capsys.readouterr().out


def test_a_directory_that_is_named_goes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE).write_text("a-key-of-the-owner\n")
    (tmp_path / URL_FILE).write_text("http://127.0.0.1:1\n")
    place = Place.of(tmp_path)
    assert (place.url, place.key(), place.owners_key()) == (
        "http://127.0.0.1:1",
        "a-key-of-the-owner",
        "a-key-of-the-owner",
    )
    with pytest.raises(Misconfigured, match="only the owner"):
        Place.of(tmp_path / "empty").owners_key()

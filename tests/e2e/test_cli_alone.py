"""The command line where nothing runs yet: help, settings, a node by itself, and a network brought up and ended."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import resource
import signal
import socket
import sys
import time
import typing
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.main import get_command

from shem.cli import main
from shem.cli.app import app
from shem.cli.payment_move import RESTART_S
from shem.testing.small_image import make_small_image
from tests.e2e.conftest import processes_of, until

pytestmark = pytest.mark.timeout(180)

SHEM = [sys.executable, "-m", "shem"]
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("YAGNA_", "SHEM_")) and name != "XDG_DATA_HOME"
}


class Done(NamedTuple):
    """How a command ended."""

    status: object
    out: str
    err: str


def inside(*argv: str) -> Done:
    """A command in this process: all but the start of the interpreter, which is most of the time."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(argv))
    return Done(ended.value.code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


async def shem(*argv: str, cwd: Path | None = None, **env: str) -> Done:
    """A command as a process, with an environment of its own."""
    process = await asyncio.create_subprocess_exec(
        *SHEM,
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env={**CLEAN, "COLUMNS": "80", **env},
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        raise
    return Done(process.returncode, out.decode(), err.decode())


def commands() -> list[list[str]]:
    """Every command there is; a new one is among them by itself."""

    def below(command: typing.Any, path: list[str]) -> list[list[str]]:
        children = getattr(command, "commands", {})
        return [path] + [found for name, child in children.items() for found in below(child, [*path, name])]

    return below(get_command(app), [])


def test_every_command_explains_itself_in_80_columns() -> None:
    found = commands()
    assert ["devnet", "run"] in found
    for command in found:
        done = inside(*command, "--help")
        assert (done.status, done.err) == (0, ""), command
        assert f"Usage: {' '.join(['shem', *command])} " in done.out
        assert max(len(line) for line in done.out.splitlines()) <= 80, command


async def test_help_takes_less_than_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (await shem("provider", "run", "--help")).status == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # processor time: what else the machine does meanwhile is not ours
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_the_version_is_told() -> None:
    done = inside("--version")
    assert done.status == 0
    assert re.fullmatch(r"shem \d+\.\d+\.\d+\S*\n", done.out)


@pytest.mark.parametrize(
    "argv",
    [
        ["nonsense"],
        ["run"],
        ["market", "scan", "a", "b"],
        ["--nonsense"],
        ["devnet", "run", "--providers", "0"],
        ["devnet", "run", "--driver", "nonsense"],
    ],
)
def test_a_wrong_command_is_answered_with_its_usage(argv: list[str]) -> None:
    done = inside(*argv)
    assert (done.status, done.out) == (2, "")
    assert "Usage: shem" in done.err


# --- settings of a node -----------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[bytes, list[str], str]] = {
    "no toml": (b'api_port = "x', [], r"{dir}/config\.toml cannot be read: Unterminated"),
    "no text": (b"\xff\xfe", [], r"{dir}/config\.toml cannot be read: "),
    "an unknown field": (b"api_prt = 1", [], r"{dir}/config\.toml: api_prt is no setting"),
    "a wrong type": (b'api_port = "lots"', [], r"{dir}/config\.toml: api_port: "),
    "a wrong type inside": (b'[networks.x]\nchain_id = "a"', [], r"{dir}/config\.toml: networks\S*\.chain_id: "),
    "an unknown field inside": (b"[networks.x]\nchain_di = 5", [], r"{dir}/config\.toml: networks\S*\.chain_di "),
    "a port that is none": (b"", ["--api-port", "70000"], r"--api-port: .*65535"),
    "a host that is none": (b"", ["--api-host", "no-such-host.invalid"], r"cannot listen on no-such-host\.invalid"),
    "a peer address that is none": (b"", ["--peer-bind", "nonsense"], r"'nonsense' is not an address"),
    "a bootstrap that is none": (b"", ["--bootstrap", "nonsense"], r"'nonsense' is not the address of a node"),
    "a log level that is none": (b'log_level = "LOUD"', [], r"{dir}/config\.toml: log_level: .*LOUD"),
    "a key that is too short": (b'app_key = "sesame!"', [], r"{dir}/config\.toml: app_key: "),
    "no database": (b"", [], r"database .*node\.db"),
    "no key file": (b"", [], r"key file"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_a_wrong_setting_is_named_with_who_said_it(case: str, tmp_path: Path) -> None:
    config, argv, words = SETTINGS[case]
    (tmp_path / "config.toml").write_bytes(config)
    if case == "no database":
        (tmp_path / "node.db").write_bytes(b"garbage" * 1000)
    if case == "no key file":
        (tmp_path / "identity.json").write_bytes(b"{}")
        (tmp_path / "identity.json").chmod(0o600)
    port = [] if b"api_port" in config or "--api-port" in argv else ["--api-port", "0"]
    done = inside("node", "run", "--data-dir", str(tmp_path), *argv, *port)
    assert (done.status, done.out) == (6, ""), done
    assert done.err.startswith("error: ")
    assert re.search(words.replace("{dir}", re.escape(str(tmp_path))), done.err), done
    assert done.err.splitlines()[-1].startswith("  code: ")
    assert "sesame" not in done.err


async def test_a_wrong_variable_is_named_and_its_secret_is_not_told(tmp_path: Path) -> None:
    argv = ["node", "run", "--data-dir", str(tmp_path), "--api-port", "0"]
    done = await shem(*argv, YAGNA_AUTOCONF_APPKEY="sesame!")
    assert (done.status, done.out) == (6, ""), done
    assert done.err.startswith("error: YAGNA_AUTOCONF_APPKEY: ")
    assert "sesame" not in done.err
    assert "Traceback" not in done.err


def test_a_data_directory_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        done = inside("node", "run", "--data-dir", str(place), "--api-port", "0")
        assert done.status == 6, done
        assert done.err.startswith(f"error: the data directory {place} cannot be used")


def test_a_port_that_somebody_has(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = inside("node", "run", "--data-dir", str(tmp_path), "--api-port", port)
    assert (done.status, done.out) == (6, "")
    assert f"127.0.0.1:{port}: Address already in use" in done.err
    assert "--api-port" in done.err


@pytest.mark.parametrize("argv", [["deposit", "1"], ["withdraw", "all"], ["exit"]])
def test_money_is_not_moved_where_no_node_runs_and_that_is_told_at_once(argv: list[str]) -> None:
    """Only a node that was there is waited for while it starts again."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        began = time.monotonic()
        done = inside("payment", *argv, "--api-url", url, "--app-key", "k" * 32)
    assert (done.status, done.out) == (3, "")
    assert "code: node_unreachable" in done.err
    assert time.monotonic() - began < RESTART_S / 2


@pytest.mark.parametrize("option", ["--price-start", "--price-hourly", "--price-cpu-hourly"])
def test_a_wrong_price_is_refused(option: str, tmp_path: Path) -> None:
    done = inside("provider", "run", "--data-dir", str(tmp_path), "--app-key", "k" * 32, option, "-0.1")
    assert done.status == 6, done
    assert "is not a price: '-0.1'" in done.err


# --- a node by itself -------------------------------------------------------------------------------------------------


async def test_a_node_says_one_line_and_ends_on_a_signal(tmp_path: Path) -> None:
    told: list[dict[str, str]] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # the second time with the data of the first
        process = await asyncio.create_subprocess_exec(
            *SHEM,
            *("node", "run", "--json", "--data-dir", "node", "--api-port", "0", "--peer-bind", "127.0.0.1:0"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path,
            env={**CLEAN, "YAGNA_AUTOCONF_APPKEY": "k" * 32},
        )
        assert process.stdout is not None
        told.append(json.loads(await asyncio.wait_for(process.stdout.readline(), 30)))
        process.send_signal(number)
        rest, err = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, rest) == (0, b""), err
        assert b"Traceback" not in err
    assert [set(line) for line in told] == [{"api_url", "node_id", "address"}] * 2
    assert told[0]["node_id"] == told[1]["node_id"]
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700


# --- a network --------------------------------------------------------------------------------------------------------


async def test_a_network_in_one_line_used_and_ended(tmp_path: Path) -> None:
    """From an empty directory, by relative names, as the README does it."""
    image = make_small_image(tmp_path / "image")
    running = await asyncio.create_subprocess_exec(
        *SHEM,
        *("devnet", "run", "--json", "--providers", "1", "--data-dir", "net", "--env-file", "net.env"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env=CLEAN,
    )
    assert running.stdout is not None
    told = json.loads(await asyncio.wait_for(running.stdout.readline(), 60))
    try:
        assert set(told) == {"requestor", "providers", "chain"}
        assert [set(node) for node in (told["requestor"], *told["providers"])] == [
            {"api_url", "app_key", "node_id"}
        ] * 2
        assert set(told["chain"]) == {"rpc_url", "chain_id", "token"}
        env_file = tmp_path / "net.env"
        assert env_file.stat().st_mode & 0o777 == 0o600
        assert env_file.read_text() == (
            f"YAGNA_API_URL={told['requestor']['api_url']}\nYAGNA_APPKEY={told['requestor']['app_key']}\n"
        )
        env = dict(line.split("=", 1) for line in env_file.read_text().splitlines())
        argv = [
            "run",
            os.path.relpath(image, tmp_path),
            "--output",
            "made/",
            "--",
            "sh",
            "-c",
            "mkdir made; echo 1 >made/x",
        ]
        done = await shem(*argv, cwd=tmp_path, **env)
        assert done.status == 0, done
        assert (tmp_path / "made" / "x").read_text() == "1\n"
        assert len(processes_of(tmp_path)) >= 4
    finally:
        running.send_signal(signal.SIGINT)
        rest, err_bytes = await asyncio.wait_for(running.communicate(), 60)
    assert (running.returncode, rest) == (0, b""), err_bytes
    assert b"Traceback" not in err_bytes
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("parts", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_a_network_that_is_told_to_end_before_it_is_up(tmp_path: Path, parts: int) -> None:
    running = await asyncio.create_subprocess_exec(
        *SHEM,
        *("devnet", "run", "--json", "--providers", "2", "--data-dir", str(tmp_path / "net")),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=CLEAN,
    )
    await until(lambda: len(processes_of(tmp_path)) > parts, 60)
    running.send_signal(signal.SIGTERM)
    _, err = await asyncio.wait_for(running.communicate(), 60)
    assert (running.returncode, err) == (0, b"")
    assert processes_of(tmp_path) == []

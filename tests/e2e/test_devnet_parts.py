"""Networks on this machine that cannot start, or must not: nothing is left behind, nobody's data is touched."""

from __future__ import annotations

import asyncio
import json
import stat
import sys
from pathlib import Path

import pytest

from shem.cogs.process import Child, start_child
from shem.errors import Misconfigured
from shem.testing.devnet import Devnet, DevnetRunning
from tests.e2e.conftest import processes_of, until

pytestmark = pytest.mark.timeout(120)

SHEM = [sys.executable, "-m", "shem"]
PAUSE = "import signal; print('ready', flush=True); signal.pause()"


async def shem(*argv: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *SHEM, *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


# --- one network per directory ----------------------------------------------------------------------------------------


async def test_a_second_demo_touches_nothing_of_the_first(tmp_path: Path) -> None:
    first = Devnet(tmp_path / "network", chain=False)
    first.reserve()
    books = tmp_path / "network" / "requestor" / "node.db"
    books.parent.mkdir()
    books.write_text("money")
    status, out, err = await shem("demo", "--out", str(tmp_path))
    assert (status, out) == (2, "")
    assert "code: demo_running" in err
    assert "wait until it has ended, or choose another --out" in err
    assert "Traceback" not in err
    assert books.read_text() == "money"
    assert not (tmp_path / "image").exists()
    await first.stop()


async def test_a_second_network_in_a_directory_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    first = Devnet(tmp_path, providers=1, chain=False)
    first.reserve()
    with pytest.raises(DevnetRunning, match="another network runs in"):
        await Devnet(tmp_path, chain=False).__aenter__()
    status, _, err = await shem("devnet", "run", "--data-dir", str(tmp_path))
    assert status == 2
    assert "code: devnet_running" in err
    await first.stop()
    second = Devnet(tmp_path, chain=False)
    second.reserve()
    await second.stop()


# --- starts that fail -------------------------------------------------------------------------------------------------


async def test_a_start_that_fails_leaves_no_process_and_no_lock(tmp_path: Path) -> None:
    (tmp_path / "provider-2").touch()
    net = Devnet(tmp_path, providers=2)
    with pytest.raises(Misconfigured, match=r"provider-2 cannot be used for the network's data: ") as refused:
        await net.__aenter__()
    assert refused.value.code == "data_dir_unusable"
    assert processes_of(tmp_path) == []
    again = Devnet(tmp_path)
    again.reserve()
    await again.stop()


async def test_a_start_that_fails_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "provider-1").touch()
    status, out, err = await shem("devnet", "run", "--data-dir", str(tmp_path), "--providers", "1")
    assert (status, out) == (6, "")
    assert "provider-1 cannot be used" in err
    assert "Traceback" not in err
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("argv", [["devnet", "run", "--data-dir"], ["demo", "--out"]])
async def test_a_directory_that_is_none_is_told_in_a_sentence(argv: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, _, err = await shem(*argv, str(tmp_path / "file"))
    assert status == 6
    assert "cannot be used" in err
    assert "Traceback" not in err


async def test_a_start_that_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    net = Devnet(tmp_path, providers=1, chain=False)
    starting = asyncio.get_running_loop().create_task(net.__aenter__())
    await until(lambda: processes_of(tmp_path))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert processes_of(tmp_path) == []


# --- ends that fail ---------------------------------------------------------------------------------------------------


class Stubborn(Child):
    """A part whose end goes wrong."""

    async def stop(self, grace_s: float = 15.0) -> int:
        raise OSError("no such luck")


async def test_parts_that_end_badly_keep_no_other_from_ending(tmp_path: Path) -> None:
    net = Devnet(tmp_path, providers=1)
    net.reserve()
    argv = [sys.executable, "-c", PAUSE]
    agent, node, chain = [
        (await start_child(n, argv, log_path=tmp_path / "log"))[0] for n in ("agent", "node", "chain")
    ]
    net.providers[0].agent = Stubborn(agent.name, agent.process, agent.log_path)
    net.requestor.node, net.chain = node, chain
    with pytest.raises(OSError, match="no such luck"):
        await net.stop()
    assert not node.running
    assert not chain.running
    await agent.wait()
    again = Devnet(tmp_path)
    again.reserve()
    await again.stop()


# --- what programs read -----------------------------------------------------------------------------------------------


async def test_the_file_with_the_key_is_for_its_owner_even_where_an_open_one_stood(tmp_path: Path) -> None:
    env_file = tmp_path / "devnet.env"
    env_file.touch(mode=0o644)
    env_file.chmod(0o644)
    argv = [*SHEM, "devnet", "run", "--json", "--providers", "1", "--env-file", str(env_file)]
    argv += ["--data-dir", str(tmp_path / "net")]
    child, line = await start_child("devnet", argv, log_path=tmp_path / "log")
    try:
        assert stat.S_IMODE(env_file.stat().st_mode) == 0o600
        told = json.loads(line)["requestor"]
        assert env_file.read_text() == f"YAGNA_API_URL={told['api_url']}\nYAGNA_APPKEY={told['app_key']}\n"
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    finally:
        assert await child.stop() == 0
    assert processes_of(tmp_path / "net") == []

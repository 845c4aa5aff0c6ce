"""The ground that tests with Golem's clients stand on: nothing survives a test, and names lead elsewhere for one process only."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from tests.interop.support import Clients, marked, until

pytestmark = pytest.mark.interop

RUNAWAY = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    print("away", flush=True)
    time.sleep(1000)
os._exit(0)
"""


async def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    clients = Clients({}, tmp_path)
    program = await clients.start([sys.executable, "-c", RUNAWAY])
    try:
        await program.line("away", 20)
        await program.process.wait()
        assert len(marked(program.mark)) == 2
    finally:
        await clients.close()
    await until(lambda: not marked(program.mark), "nobody left", 20)


async def test_a_program_that_says_nothing_fails_the_test_with_its_words(tmp_path: Path) -> None:
    clients = Clients({}, tmp_path)
    try:
        program = await clients.start([sys.executable, "-c", "import sys; sys.exit('no luck')"])
        with pytest.raises(AssertionError, match="no luck"):
            await program.finish(20)
        silent = await clients.start([sys.executable, "-c", "print('other')"])
        with pytest.raises(AssertionError, match="ended without 'wanted'"):
            await silent.line("wanted", 20)
    finally:
        await clients.close()


async def test_names_lead_elsewhere_for_one_process_only(tmp_path: Path) -> None:
    clients = Clients({}, tmp_path)
    try:
        code = "import socket; print(socket.gethostbyname('registry.golem.network'))"
        program = await clients.start([sys.executable, "-c", code], hosts={"registry.golem.network": "127.1.2.3"})
        assert (await program.finish(20)).out.strip() == "127.1.2.3"
        assert "127.1.2.3" not in Path("/etc/hosts").read_text()
        assert socket.gethostbyname("localhost").startswith("127.")
    finally:
        await clients.close()

"""How the command line ends when what it talks to is no node, or not well."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from shem.cli import exit_status, report
from shem.client.http import BadAnswer, NodeSilent

CALL = """
import asyncio
from shem import cli
from shem.cli import app
from shem.client.http import ApiClient

@app.app.command()
def ask(url: str):
    async def call():
        async with ApiClient(url, "sesame") as http:
            await http.call("GET", "/x", timeout_s=0.2)
    asyncio.run(call())

@app.app.command()
def wait(url: str):
    async def both():
        async with asyncio.TaskGroup() as group:
            group.create_task(late())
    async def late():
        raise TimeoutError
    asyncio.run(both())

cli.main()
"""


@pytest_asyncio.fixture
async def silent() -> AsyncIterator[str]:
    """A server that takes connections and never says a word."""
    gone = asyncio.Event()

    async def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    yield "http://{}:{}".format(*server.sockets[0].getsockname())
    gone.set()
    server.close()
    await server.wait_closed()


@pytest_asyncio.fixture
async def website() -> AsyncIterator[str]:
    """A web server that is no node."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="<html>welcome</html>", content_type="text/html")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def python(*argv: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(sys.executable, *argv, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        _, err = await process.communicate()
    return process.returncode, err.decode()


async def test_a_node_that_never_answers_ends_the_command_with_3_and_a_sentence(silent: str) -> None:
    status, err = await python("-c", CALL, "ask", silent)
    assert status == 3
    assert re.search(r"error: the node at http://127\.0\.0\.1:\d+ did not answer within 0\.2 s\n", err)
    assert "code: node_silent" in err
    assert "Traceback" not in err


async def test_a_deadline_that_nobody_caught_is_told_in_a_sentence_too() -> None:
    status, err = await python("-c", CALL, "wait", "x")
    assert (status, err) == (3, "error: there was no answer in time\n  code: timeout\n")


@pytest.mark.parametrize("command", [["market", "scan"], ["payment", "status"], ["identity", "show"]])
async def test_a_website_is_no_node(command: list[str], website: str) -> None:
    status, err = await python("-m", "shem", *command, "--api-url", website, "--app-key", "sesame")
    assert status == 3
    assert "gave an answer that no node gives" in err
    assert "code: bad_answer" in err
    assert "Traceback" not in err


def test_statuses() -> None:
    assert exit_status(NodeSilent("x")) == exit_status(BadAnswer("x")) == exit_status(TimeoutError()) == 3


def test_a_timeout_with_words_keeps_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(TimeoutError("nothing came")) == 3
    assert capsys.readouterr().err == "error: nothing came\n  code: timeout\n"

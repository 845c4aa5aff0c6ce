"""``gftp`` as Golem's clients start it: a process, a node, and another node that fetches and fills."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shem.errors import NotFound, PeerFailed, ShemError
from shem.wire.files import parse_gftp_url
from shem.wire.gsb import CHUNK_BYTES
from tests.network.files.gftp import COMMAND, Talk, gftp, surroundings
from tests.network.files.programs import sha3


@pytest.fixture
async def talk(nodes: Any, tmp_path: Path) -> AsyncIterator[Talk]:
    async with gftp(nodes[0], tmp_path) as made:
        yield made


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


async def fetched(node: Any, url: str) -> bytes:
    async with node.api.open(*parse_gftp_url(url)) as source:
        return b"".join([chunk async for chunk in source.chunks()])


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


class TestTheWire:
    """What goes over the pipe. None of it needs a node."""

    @pytest.fixture
    async def talk(self, tmp_path: Path) -> AsyncIterator[Talk]:
        async with gftp(None, tmp_path) as made:
            yield made

    @pytest.mark.parametrize(
        "id_",
        [
            "1109055965419325287",
            "18446744073709551616000000000000000001",
            '"text"',
            '"\\ud800"',
            "0",
            "-5",
            "null",
            "1.5",
        ],
    )
    async def test_ids_come_back_as_they_went(self, talk: Talk, id_: str) -> None:
        await talk.send(f'{{"jsonrpc":"2.0","id":{id_},"method":"version","params":{{}}}}\n'.encode())
        line = await talk.line()
        assert line.endswith(b"\r\n")
        assert f'"id": {id_},'.encode() in line
        major, minor, _ = json.loads(line)["result"].split()[0].split(".")
        assert (int(major), int(minor)) >= (0, 8)  # from 0.7.3 on, clients close what they published

    async def test_lines_that_are_no_request(self, talk: Talk) -> None:
        deep = b"[" * 100_000
        for line, code in (
            (b"{", -32700),
            (b"\xff\xfe", -32700),
            (b'{"jsonrpc":"2.0","id":NaN,"method":"version"}', -32700),
            (b'{"jsonrpc":"2.0","id":' + b"9" * 10_000 + b',"method":"version"}', -32700),
            (deep, -32700),
            (b'"text"', -32600),
            (b'[{"jsonrpc":"2.0","id":1,"method":"version"}]', -32600),
            (b"{}", -32600),
            (b'{"jsonrpc":"1.0","id":1,"method":"version"}', -32600),
            (b'{"jsonrpc":"2.0","id":1,"method":5}', -32600),
            (b'{"jsonrpc":"2.0","id":{},"method":"version"}', -32600),
            (b'{"jsonrpc":"2.0","id":true,"method":"version"}', -32600),
            (b'{"jsonrpc":"2.0","id":1e999,"method":"version"}', -32600),
            (b'{"jsonrpc":"2.0","id":1,"method":"nothing"}', -32601),
            (b'{"jsonrpc":"2.0","id":1,"method":"publish","params":[]}', -32602),
            (b'{"jsonrpc":"2.0","id":1,"method":"publish","params":{}}', -32602),
            (b'{"jsonrpc":"2.0","id":1,"method":"publish","params":{"files":"a"}}', -32602),
            (b'{"jsonrpc":"2.0","id":1,"method":"publish","params":{"files":[1]}}', -32602),
            (b'{"jsonrpc":"2.0","id":1,"method":"receive","params":{"output_file":null}}', -32602),
        ):
            await talk.send(line + b"\n\n  \r\n")
            answer = await talk.answer()
            assert answer["error"]["code"] == code, line[:100]
            assert isinstance(answer["error"]["message"], str)
            assert "result" not in answer
        assert (await talk.ask("version"))["result"]

    async def test_a_line_without_an_end(self, talk: Talk) -> None:
        sending = asyncio.gather(talk.send(b"x" * (9 << 20) + b"\n"))
        assert (await talk.answer())["error"]["code"] == -32700
        await sending
        assert (await talk.ask("version"))["result"]

    async def test_notifications_get_no_answer(self, talk: Talk) -> None:
        await talk.send(b'{"jsonrpc":"2.0","method":"version"}\n')
        assert (await talk.ask("version"))["result"]

    async def test_a_request_in_two_parts_and_two_in_one(self, talk: Talk) -> None:
        request = b'{"jsonrpc":"2.0","id":1,"method":"version","params":{}}\r\n'
        await talk.send(request[:20])
        await talk.send(request[20:] + request * 2)
        assert [(await talk.answer())["id"] for _ in range(3)] == [1, 1, 1]

    async def test_the_last_line_needs_no_end(self, talk: Talk) -> None:
        await talk.send(b'{"jsonrpc":"2.0","id":7,"method":"version","params":{}}')
        assert await talk.end() == 0
        assert (await talk.answer())["id"] == 7

    async def test_shutdown(self, talk: Talk) -> None:
        assert await talk.result("shutdown") == "ok"
        assert await talk.ended() == 0

    async def test_without_a_key_the_request_fails_and_the_program_does_not(self, talk: Talk, tmp_path: Path) -> None:
        answer = await talk.ask("publish", files=[str(write(tmp_path / "a", b"a"))])
        assert answer["error"]["code"] == -32000
        assert "app key" in answer["error"]["message"]
        assert await talk.result("version")
        assert await talk.end() == 0

    def test_saying_the_version_loads_next_to_nothing(self, tmp_path: Path) -> None:
        """Every program of yapapi waits for it, also when no file will ever move."""
        ran = subprocess.run(
            [sys.executable, "-X", "importtime", *COMMAND[1:], "server"],
            input=b'{"jsonrpc":"2.0","id":1,"method":"version","params":{}}\n',
            env=surroundings(None, tmp_path),
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert b'"id": 1' in ran.stdout
        loaded = {line.rpartition(b"|")[2].strip().decode() for line in ran.stderr.splitlines()}
        assert "json" in loaded
        assert not loaded & {"asyncio", "aiohttp", "msgspec", "typer", "argparse", "ssl"}


async def test_published_here_read_there(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    alice, bob = nodes
    contents = [b"", b"x", secrets.token_bytes(CHUNK_BYTES), secrets.token_bytes(3_000_001)]
    paths = [write(tmp_path / f"ö {size}", content) for size, content in enumerate(contents)]
    urls = await talk.publish(*paths)
    assert urls == [f"gftp://{alice.node_id}/{sha3(content)}" for content in contents]
    for url, content in zip(urls, contents, strict=True):
        assert await fetched(bob, url) == content
        assert await fetched(alice, url) == content
    assert alice.on_disk() == []
    assert await talk.end() == 0
    with pytest.raises(NotFound):
        await fetched(bob, urls[0])


async def test_references_are_counted(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    _, bob = nodes
    first, twin = write(tmp_path / "first", b"same"), write(tmp_path / "twin", b"same")
    urls = [*await talk.publish(first, twin), *await talk.publish(first)]
    assert len(set(urls)) == 1
    twin.write_bytes(b"other")  # the first still holds the content
    assert await talk.result("close", urls=[urls[0], urls[0], "gftp://0x0/none", ""]) == ["ok", "ok", "error", "error"]
    assert await fetched(bob, urls[0]) == b"same"
    assert await talk.result("close", urls=[urls[0], urls[0]]) == ["ok", "error"]
    with pytest.raises(NotFound):
        await fetched(bob, urls[0])
    assert await talk.publish(first) == urls[:1]
    assert await fetched(bob, urls[0]) == b"same"


async def test_a_file_that_is_not_what_it_was(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    alice, bob = nodes
    names = ("changed", "grown", "cut", "touched")
    urls = dict(zip(names, await talk.publish(*[write(tmp_path / n, n.encode() * 100) for n in names]), strict=True))
    (tmp_path / "changed").write_bytes(b"CHANGED" * 100)
    os.utime(tmp_path / "changed", (1, 1))
    with (tmp_path / "grown").open("ab") as file:
        file.write(b"more")
    os.truncate(tmp_path / "cut", 5)
    os.utime(tmp_path / "touched", (1, 1))
    for name, url in urls.items():
        for node in (alice, bob):
            with pytest.raises(ShemError, match=f"ReadError: .*{name}.* has changed"):
                await fetched(node, url)


async def test_a_file_whose_content_changes_unseen_does_not_pass(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    """Size and times as they were: the reader finds out, by the name, which is the hash."""
    alice, bob = nodes
    path = write(tmp_path / "file", b"a" * 200_000)
    before = path.stat()
    (url,) = await talk.publish(path)
    path.write_bytes(b"a" * 199_999 + b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for node in (alice, bob):
        with pytest.raises(PeerFailed):
            await node.api.download(*parse_gftp_url(url), tmp_path / "target")
    assert not (tmp_path / "target").exists()


async def test_names_may_go_while_content_stays(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    _, bob = nodes
    gone, replaced = write(tmp_path / "gone", b"gone"), write(tmp_path / "replaced", b"replaced")
    urls = await talk.publish(gone, replaced)
    gone.unlink()
    write(tmp_path / "new", b"something else").replace(replaced)
    assert [await fetched(bob, url) for url in urls] == [b"gone", b"replaced"]


async def test_files_that_cannot_be_published(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    alice, _ = nodes
    good = write(tmp_path / "good", b"good")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for bad in (tmp_path / "missing", tmp_path, Path("/dev/null/x"), Path("a\0b"), Path("\ud800"), Path("x" * 5000)):
        answer = await talk.ask("publish", files=[str(good), str(bad)])
        assert answer["error"]["code"] == -32000, bad
        assert alice.bus._services == {}  # what was published before the bad one is not
    assert (await talk.ask("publish", files=[]))["result"] == []
    for bad in (tmp_path, tmp_path / "no" / "where", Path("a\0b")):
        assert (await talk.ask("receive", output_file=str(bad)))["error"]["code"] == -32000
    answer = await talk.ask("upload", url=f"gftp://{alice.node_id}/{'1' * 48}", file=str(tmp_path / "missing"))
    assert answer["error"]["code"] == -32000
    for url in (
        "",
        "http://x/y",
        f"gftp://{alice.node_id}/..",
        "gftp://x/" + "1" * 48,
        f"gftp://{alice.node_id}/{'1' * 48}",
    ):
        answer = await talk.ask("download", url=url, output_file=str(tmp_path / "target"))
        assert answer["error"]["code"] == -32000
        assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, 3_000_001])
async def test_received_here_sent_there(nodes: Any, talk: Talk, tmp_path: Path, size: int) -> None:
    alice, bob = nodes
    target = tmp_path / "target"
    link = await talk.result("receive", output_file=str(target))
    assert link["file"] == str(target)
    assert target.read_bytes() == b""
    for node, content in ((bob, secrets.token_bytes(size)), (alice, secrets.token_bytes(size // 2)), (bob, b"")):
        received = await node.api.send(*parse_gftp_url(link["url"]), pieces(content))
        assert target.read_bytes() == content
        assert received.sha3 == sha3(content)


async def test_an_attempt_after_one_that_broke(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    _, bob = nodes
    link = await talk.result("receive", output_file=str(tmp_path / "target"))

    async def breaks() -> AsyncIterator[bytes]:
        yield b"x" * (CHUNK_BYTES + 5)
        raise OSError("the disk of the sender broke")

    with pytest.raises((OSError, PeerFailed)):
        await bob.api.send(*parse_gftp_url(link["url"]), breaks())
    await bob.api.send(*parse_gftp_url(link["url"]), pieces(b"whole"))
    assert (tmp_path / "target").read_bytes() == b"whole"


async def test_a_full_disk_is_said_to_be_full(nodes: Any, talk: Talk) -> None:
    _, bob = nodes
    link = await talk.result("receive", output_file="/dev/full")
    with pytest.raises(ShemError, match="WriteError"):
        await bob.api.send(*parse_gftp_url(link["url"]), pieces(b"x"))


async def test_between_two_programs(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    _, bob = nodes
    content = secrets.token_bytes(1_000_000)
    source = write(tmp_path / "source", content)
    (url,) = await talk.publish(source)
    receiving = await talk.result("receive", output_file=str(tmp_path / "received"))
    async with gftp(bob, tmp_path) as other:
        target = str(tmp_path / "target")
        assert await other.result("download", url=url, output_file=target) == {"file": target, "url": url}
        assert Path(target).read_bytes() == content
        sent = await other.result("upload", url=receiving["url"], file=target)
        assert sent == {"file": target, "url": receiving["url"]}
        assert (tmp_path / "received").read_bytes() == content


async def test_the_same_content_from_two_programs(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    """One may end, even be killed, while the other still gives it."""
    _, bob = nodes
    content = secrets.token_bytes(CHUNK_BYTES)
    urls = await talk.publish(write(tmp_path / "one", content))
    async with gftp(nodes[0], tmp_path) as second:
        assert await second.publish(write(tmp_path / "two", content)) == urls
        async with gftp(nodes[0], tmp_path) as third:
            assert await third.publish(tmp_path / "one") == urls
            assert await fetched(bob, urls[0]) == content
            third.process.kill()
            await third.ended()
        assert await fetched(bob, urls[0]) == content
        assert await talk.result("close", urls=urls) == ["ok"]
        assert await fetched(bob, urls[0]) == content
        assert await second.end() == 0
    with pytest.raises(NotFound):
        await fetched(bob, urls[0])


async def test_many_requests_at_once(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    _, bob = nodes
    count = 100  # more than it works on at a time
    for n in range(count):
        path = write(tmp_path / f"f{n}", f"content {n}".encode())
        method, params = ("publish", {"files": [str(path)]}) if n % 2 else ("receive", {"output_file": str(path)})
        call = {"jsonrpc": "2.0", "id": n, "method": method, "params": params}
        await talk.send(json.dumps(call).encode() + b"\n")
    answers = {a["id"]: a["result"] for a in [await talk.answer() for _ in range(count)]}
    assert set(answers) == set(range(count))
    async with asyncio.TaskGroup() as tasks:
        for n in range(0, count, 2):
            tasks.create_task(bob.api.send(*parse_gftp_url(answers[n]["url"]), pieces(f"sent {n}".encode())))
        got = [tasks.create_task(fetched(bob, answers[n][0]["url"])) for n in range(1, count, 2)]
    assert [task.result() for task in got] == [f"content {n}".encode() for n in range(1, count, 2)]
    assert all((tmp_path / f"f{n}").read_bytes() == f"sent {n}".encode() for n in range(0, count, 2))


async def test_a_node_that_restarts(nodes: Any, talk: Talk, tmp_path: Path) -> None:
    alice, bob = nodes
    (url,) = await talk.publish(write(tmp_path / "file", b"content"))
    link = await talk.result("receive", output_file=str(tmp_path / "target"))
    await alice.stop()
    alice.bootstraps = [bob.peers.address()]
    await alice.start()
    async with asyncio.timeout(20):
        while len(alice.bus._services) < 2 or not alice.peers.connected():  # noqa: ASYNC110 - of two parts
            await asyncio.sleep(0.01)
    assert await fetched(bob, url) == b"content"
    await bob.api.send(*parse_gftp_url(link["url"]), pieces(b"sent"))
    assert (tmp_path / "target").read_bytes() == b"sent"
    assert await talk.publish(write(tmp_path / "more", b"more"))


async def test_signals_and_ends(nodes: Any, tmp_path: Path) -> None:
    alice, _ = nodes
    path = write(tmp_path / "file", b"content")
    async with gftp(alice, tmp_path) as talk:
        await talk.publish(path)
        talk.process.send_signal(signal.SIGINT)  # meant for who has started it
        assert await talk.publish(path)
        talk.process.send_signal(signal.SIGTERM)
        assert await talk.ended() == 0
    async with gftp(alice, tmp_path) as talk:
        await talk.publish(path)
        assert await talk.result("shutdown") == "ok"
        assert await talk.ended() == 0
    assert alice.bus._services == {}


async def refused(node: Any, tmp_path: Path, reason: str, **changed: str) -> None:
    async with gftp(node, tmp_path, **changed) as talk:
        answer = await talk.ask("publish", files=[str(write(tmp_path / "file", b"content"))])
        assert answer["error"]["code"] == -32000
        assert reason in answer["error"]["message"].lower()
        assert node.key not in json.dumps(answer)
        assert await talk.end() == 0


async def test_a_key_that_is_wrong(nodes: Any, tmp_path: Path) -> None:
    await refused(nodes[0], tmp_path, "key", YAGNA_APPKEY="wrong")


@pytest.mark.slow  # it waits for a node that may be just starting
async def test_a_node_that_is_not_there(nodes: Any, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        await refused(nodes[0], tmp_path, "no answer", YAGNA_API_URL=f"http://127.0.0.1:{closed.getsockname()[1]}")


class TestOnce:
    """Commands for people."""

    async def test_publish_and_download(self, nodes: Any, tmp_path: Path) -> None:
        alice, bob = nodes
        path = write(tmp_path / "file", b"content")
        async with gftp(alice, tmp_path, "publish", str(path), str(path)) as publishing:
            shown = await publishing.answer()
            assert list(shown) == ["result"]
            assert [link["file"] for link in shown["result"]] == [str(path)] * 2
            url = shown["result"][0]["url"]
            for arguments in (("-o", str(tmp_path / "one")), (str(tmp_path / "two"),)):
                async with gftp(bob, tmp_path, "download", url, *arguments) as downloading:
                    assert (await downloading.answer())["result"]["url"] == url
                    assert await downloading.ended() == 0
            assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == b"content"
            publishing.process.send_signal(signal.SIGINT)
            assert await publishing.ended() == 0
        assert alice.bus._services == {}

    async def test_receive_and_upload(self, nodes: Any, tmp_path: Path) -> None:
        alice, bob = nodes
        async with gftp(alice, tmp_path, "receive", "-v", str(tmp_path / "target")) as receiving:
            shown = await receiving.answer()
            assert (shown["jsonrpc"], shown["id"]) == ("2.0", None)
            path = write(tmp_path / "file", b"content")
            async with gftp(bob, tmp_path, "upload", str(path), shown["result"]["url"]) as uploading:
                assert await uploading.ended() == 0
            assert (tmp_path / "target").read_bytes() == b"content"
            receiving.process.terminate()
            assert await receiving.ended() == 0

    @pytest.mark.parametrize(
        ("arguments", "status"),
        [
            ((), 2),
            (("publish",), 2),
            (("nonsense", "x"), 2),
            (("download", "gftp://x"), 2),
            (("publish", "/missing"), 1),
        ],
    )
    async def test_what_it_does_not_take(
        self, nodes: Any, tmp_path: Path, arguments: tuple[str, ...], status: int
    ) -> None:
        ran = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, env=surroundings(nodes[0], tmp_path), stdout=-1, stderr=-1
        )
        out, err = await asyncio.wait_for(ran.communicate(), 30)
        assert (ran.returncode, out) == (status, b"")
        assert err.startswith(b"usage: " if status == 2 else b"gftp: ")

    async def test_help_and_version(self, tmp_path: Path) -> None:
        for option, said in (("--help", b"usage: gftp"), ("--version", b"gftp 0.17")):
            ran = await asyncio.create_subprocess_exec(*COMMAND, option, env=surroundings(None, tmp_path), stdout=-1)
            out, _ = await asyncio.wait_for(ran.communicate(), 30)
            assert ran.returncode == 0
            assert out.startswith(said)


def peak_kib(pid: int) -> int:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_both_ways_in_constant_memory(nodes: Any, talk: Talk, tmp_path: Path, capsys: Any) -> None:
    """256 MiB through a program and two nodes, beside the same through the node's own store."""
    alice, bob = nodes
    size, block = 256 << 20, secrets.token_bytes(1 << 20)
    path = tmp_path / "large"
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(block)

    async def source() -> AsyncIterator[bytes]:
        for _ in range(size >> 20):
            yield block

    async def discard(node_id: str, file_id: str) -> None:
        async with bob.api.open(node_id, file_id) as incoming:
            async for _ in incoming.chunks():
                pass

    async def rounds(small: bool) -> dict[str, float]:
        chosen = write(tmp_path / "small", block) if small else path
        count = (1 << 20) if small else size
        (url,) = await talk.publish(chosen)
        receiving = await talk.result("receive", output_file=str(tmp_path / "out"))
        stored, inbox = await alice.api.upload(chosen), await alice.api.create_inbox()
        speeds = {}
        for name, work in (
            ("gftp fetch", discard(*parse_gftp_url(url))),
            ("gftp send", bob.api.send(*parse_gftp_url(receiving["url"]), pieces(block) if small else source())),
            ("own fetch", discard(alice.node_id, stored.file_id)),
            ("own send", bob.api.send(alice.node_id, inbox.file_id, pieces(block) if small else source())),
        ):
            started = time.monotonic()
            await work
            speeds[name] = count / (time.monotonic() - started) / 1e6
        assert os.path.getsize(tmp_path / "out") == count
        return speeds

    await rounds(small=True)
    before = peak_kib(os.getpid()), peak_kib(talk.process.pid)
    speeds = await rounds(small=False)
    grown = [
        (now - then) / 1024
        for now, then in zip((peak_kib(os.getpid()), peak_kib(talk.process.pid)), before, strict=True)
    ]
    with capsys.disabled():
        print(
            {n: f"{s:.0f} MB/s" for n, s in speeds.items()},
            f"memory grew {grown[0]:.1f} (nodes), {grown[1]:.1f} MiB (gftp)",
        )
    assert max(grown) < 32

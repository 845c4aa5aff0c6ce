"""Scripts on a real sandbox: what they can do, and how each failure reads."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from shem.wire.activity import CommandResult
from shem.wire.market import ProposalRejectedEvent
from tests.network.provider.conftest import Rental, World, run, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rental(shop: World) -> AsyncIterator[Rental]:
    """A ready activity that the tests of this module share; each leaves it alive."""
    rented = await shop.requestor.rent(shop.package)
    await rented.open()
    yield rented
    await shop.requestor.end(rented)


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(shop: World) -> AsyncIterator[Rental]:
    """An activity of one's own, ready."""
    rented = await shop.requestor.rent(shop.package)
    await rented.open()
    yield rented
    await shop.requestor.end(rented)


def failed(result: CommandResult, code: str) -> str:
    assert result.result == "Error", result
    assert result.message is not None
    words = {"nonzero_exit": "ExeScript command exited with code ", "path_not_found": "path not found in container: "}
    assert result.message.startswith(words.get(code, f"{code}: ")), result.message
    assert result.is_batch_finished
    return result.message


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"golem.srv.comp.task_package": "oci:docker:///library/x:y"}, "no_default_registry"),
        ({"golem.!exp.shem.v1.require.mem.gib": 5}, "too_big"),
        ({"golem.com.payment.debit-notes.accept-timeout?": 1000}, "accept_timeout"),
    ],
)
async def test_demands_that_are_refused_say_why(shop: World, change: dict[str, object], code: str) -> None:
    _, refusal = await shop.requestor.negotiate(shop.package, **change)
    assert isinstance(refusal, ProposalRejectedEvent)
    assert refusal.reason is not None
    assert (refusal.reason["code"], refusal.reason["golem.proposal.rejection.is-final"]) == (code, True)
    assert refusal.reason["message"]


# --- running ---------------------------------------------------------------------------------------------------------


async def test_output_of_both_streams(rental: Rental) -> None:
    result = await rental.shell("echo out; echo err >&2; echo ünïcode")
    assert (result.stdout, result.stderr) == ("out\nünïcode\n", "err\n")


async def test_binary_output_comes_as_bytes(rental: Rental) -> None:
    result = await rental.shell("printf '\\377\\000x'")
    assert result.stdout == [255, 0, 120]


async def test_what_is_not_captured_is_dropped(rental: Rental) -> None:
    (result,) = await rental.script({"run": {"entry_point": "/bin/echo", "args": ["x"]}})
    assert (result.result, result.stdout) == ("Ok", None)


async def test_a_head_and_a_tail(rental: Rental) -> None:
    capture = {"stdout": {"atEnd": {"head": 3}}, "stderr": {"atEnd": {"tail": 3}}}
    command = run("/bin/sh", "-c", "echo abcdef; echo uvwxyz >&2")
    command["run"]["capture"] = capture
    (result,) = await rental.script(command)
    assert (result.stdout, result.stderr) == ("abc", "yz\n")


async def test_a_large_output_is_complete(rental: Rental) -> None:
    result = await rental.shell("seq 1 100000")
    assert result.stdout == "".join(f"{number}\n" for number in range(1, 100_001))


async def test_environment_and_working_directory_of_the_image(rental: Rental) -> None:
    result = await rental.run("/bin/sh", "-c", "echo $GREETING $PATH; pwd")
    assert result.stdout == "hello /bin:/usr/bin\n/work\n"


async def test_the_number_of_a_failure(rental: Rental) -> None:
    result = await rental.shell("echo so far; exit 7")
    assert failed(result, "nonzero_exit") == "ExeScript command exited with code 7"
    assert result.stdout == "so far\n"


async def test_a_failure_ends_its_batch_and_only_it(rental: Rental) -> None:
    results = await rental.script(run("/bin/true"), run("/bin/false"), run("/bin/true"))
    assert [result.result for result in results] == ["Ok", "Error"]
    assert (await rental.run("/bin/true")).result == "Ok"


async def test_a_program_that_is_not_there(rental: Rental) -> None:
    assert "'/no/such/program'" in failed(await rental.run("/no/such/program"), "command_not_found")


async def test_a_file_that_is_no_program(rental: Rental) -> None:
    failed(await rental.run("/etc/passwd"), "not_executable")


async def test_a_time_limit(rental: Rental) -> None:
    began = asyncio.get_running_loop().time()
    result = await rental.run("/bin/sleep", "60", timeoutSec=0.3)
    assert "0.3 s" in failed(result, "timed_out")
    assert asyncio.get_running_loop().time() - began < 10
    assert (await rental.run("/bin/true")).result == "Ok"


@pytest.mark.parametrize("value", ["5", 0, -1, True])
async def test_a_time_limit_that_is_none(rental: Rental, value: object) -> None:
    failed(await rental.run("/bin/true", timeoutSec=value), "bad_timeout")


async def test_too_much_memory_is_said_so(rental: Rental) -> None:
    result = await rental.run("/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1")
    assert "128 MiB" in failed(result, "out_of_memory")
    assert (await rental.run("/bin/true")).result == "Ok", "the sandbox lives on"


async def test_a_full_disk_is_said_so(rental: Rental) -> None:
    result = await rental.shell("dd if=/dev/zero of=/work/big bs=1M count=400")
    failed(result, "disk_full")
    assert (await rental.shell("rm /work/big")).result == "Ok"


async def test_no_network(rental: Rental) -> None:
    result = await rental.shell("cat /proc/net/dev | tail -n +3 | grep -v lo: | wc -l 2>/dev/null || true")
    assert result.result in {"Ok", "Error"}
    interfaces = await rental.shell("ls /sys/class/net 2>/dev/null || echo lo")
    assert isinstance(interfaces.stdout, str)
    assert set(interfaces.stdout.split()) <= {"lo"}


# --- the order of commands --------------------------------------------------------------------------------------------


async def test_commands_out_of_order(shop: World) -> None:
    rented = await shop.requestor.rent(shop.package)
    try:
        await rented.create()
        for commands, text in (
            ([{"start": {}}], "Activity is initialized - deploy() command is expected now"),
            ([run("/bin/true")], "Activity is initialized - deploy() command is expected now"),
            ([{"deploy": {}}, {"deploy": {}}], "Activity is deployed - start() command is expected now"),
            ([run("/bin/true")], "Activity is deployed - start() command is expected now"),
            ([{"start": {}}, {"start": {}}], "Cannot send command after a successful start()"),
        ):
            results = await rented.script(*commands)
            assert results[-1].message == f"Local service error: State error: {text}"
        assert await rented.state() == "Ready"
    finally:
        await shop.requestor.end(rented)


async def test_terminate_and_deploy_again(fresh: Rental) -> None:
    assert (await fresh.shell("echo x > /work/mark")).result == "Ok"
    (result,) = await fresh.script({"terminate": {}})
    assert result.result == "Ok"
    assert await fresh.state() == "Initialized"
    results = await fresh.script({"deploy": {}}, {"start": {}}, run("/bin/ls", "/work"))
    assert [one.result for one in results] == ["Ok"] * 3
    assert results[2].stdout == ""


async def test_terminate_stops_what_runs(shop: World, fresh: Rental) -> None:
    activities = shop.requestor.activities
    slow = await activities.exec(fresh.activity_id, [run("/bin/sleep", "60")])
    queued = await activities.exec(fresh.activity_id, [run("/bin/echo", "never")])
    await until(lambda: activities.running(fresh.activity_id))
    (result,) = await fresh.script({"terminate": {}})
    assert result.result == "Ok"
    for batch in (slow, queued):
        failed((await fresh.finish(batch))[-1], "cancelled")
    assert await fresh.state() == "Initialized"


async def test_the_deploy_answer(shop: World) -> None:
    rented = await shop.requestor.rent(shop.package)
    await rented.create()
    (result,) = await rented.script({"deploy": {"volumes": ["/data/a", "/b"], "env": {"MINE": "1", "GREETING": "2"}}})
    assert isinstance(result.stdout, str)
    assert '"startMode": "blocking"' in result.stdout
    assert '"path": "/data/a"' in result.stdout
    results = await rented.script({"start": {}}, run("/bin/sh", "-c", "touch /data/a/x /b/y; echo $MINE $GREETING"))
    assert results[-1].stdout == "1 2\n"
    await shop.requestor.end(rented)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"deploy": {"net": [{"id": "n", "ip": "10.0.0.0/24", "nodeIp": "10.0.0.2"}]}}, "unsupported"),
        ({"deploy": {"env": {"A=B": "x"}}}, "bad_env"),
    ],
)
async def test_what_a_deploy_cannot_do(shop: World, command: dict[str, Any], code: str) -> None:
    rented = await shop.requestor.rent(shop.package)
    try:
        await rented.create()
        (result,) = await rented.script(command)
        failed(result, code)
    finally:
        await shop.requestor.end(rented)


# --- transfers --------------------------------------------------------------------------------------------------------


async def chunks(data: bytes, size: int = 70_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def bring(shop: World, rental: Rental, data: bytes, to: str, **more: Any) -> CommandResult:
    stored = await shop.requestor.files.upload(chunks(data))
    try:
        return (await rental.script({"transfer": {"from": stored.url, "to": f"container:{to}", **more}}))[-1]
    finally:
        await shop.requestor.files.delete(shop.alice.id, stored.file_id)


async def fetch(shop: World, rental: Rental, path: str, **more: Any) -> tuple[CommandResult, bytes]:
    files = shop.requestor.files
    inbox = await files.create_inbox()
    (result,) = await rental.script({"transfer": {"from": f"container:{path}", "to": inbox.url, **more}})
    content = b""
    if result.result == "Ok":
        assert (await files.wait_inbox(inbox.file_id, timeout_s=10)).state == "complete"
        async with files.open(shop.alice.id, inbox.file_id) as download:
            content = b"".join([chunk async for chunk in download.chunks()])
    await files.delete(shop.alice.id, inbox.file_id)
    return result, content


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
async def test_a_file_there_and_back(shop: World, rental: Rental, size: int) -> None:
    data = hashlib.shake_128(b"seed").digest(size)
    assert (await bring(shop, rental, data, "/work/new/dir/file")).result == "Ok"
    listed = await rental.shell("sha256sum /work/new/dir/file")
    assert isinstance(listed.stdout, str)
    assert listed.stdout.split()[0] == hashlib.sha256(data).hexdigest()
    result, content = await fetch(shop, rental, "/work/new/dir/file")
    assert (result.result, content) == ("Ok", data)


async def test_a_transfer_between_deploy_and_start(shop: World) -> None:
    rented = await shop.requestor.rent(shop.package)
    await rented.create()
    assert (await rented.script({"deploy": {}}))[-1].result == "Ok"
    assert (await bring(shop, rented, b"early", "/work/f")).result == "Ok"
    results = await rented.script({"start": {}}, run("/bin/cat", "/work/f"))
    assert results[-1].stdout == "early"
    await shop.requestor.end(rented)


async def test_the_hash_of_a_source_is_checked(shop: World, rental: Rental) -> None:
    stored = await shop.requestor.files.upload(chunks(b"content"))
    right = hashlib.sha3_224(b"content").hexdigest()
    for digest, outcome in ((right, "Ok"), (right.replace(right[0], "f" if right[0] == "0" else "0"), "Error")):
        (result,) = await rental.script(
            {"transfer": {"from": f"hash:sha3:{digest}:{stored.url}", "to": "container:/work/h"}}
        )
        assert result.result == outcome, result.message


@pytest.mark.parametrize(
    ("source", "target", "code"),
    [
        ("container:/no/such", "INBOX", "path_not_found"),
        ("container:/work", "INBOX", "transfer_failed"),
        ("container:relative", "INBOX", "path_not_found"),
        ("container:/a/../b", "INBOX", "path_not_found"),
        ("gftp://0x" + "00" * 20 + "/" + "ab" * 32, "container:/work/x", "transfer_failed"),
        ("MISSING", "container:/work/x", "transfer_failed"),
        ("gftp://nonsense", "container:/work/x", "transfer_failed"),
        ("ftp://example.org/x", "container:/work/x", "unsupported"),
        ("http://127.0.0.1:1/x", "container:/work/x", "transfer_failed"),
        ("container:/etc/passwd", "http://user:secret@169.254.169.254/x", "transfer_failed"),
        ("https://", "container:/work/x", "transfer_failed"),
        ("MISSING", "INBOX", "unsupported"),
        ("container:/work/x", "container:/work/./x", "transfer_failed"),
        ("container:/no/such", "container:/work/x", "path_not_found"),
        ("hash:md5:abc:gftp://x/y", "container:/work/x", "unsupported"),
    ],
)
async def test_transfers_that_fail(shop: World, rental: Rental, source: str, target: str, code: str) -> None:
    inbox = await shop.requestor.files.create_inbox()
    places = {"INBOX": inbox.url, "MISSING": f"gftp://{shop.alice.id}/{'ab' * 32}"}
    command = {"transfer": {"from": places.get(source, source), "to": places.get(target, target)}}
    (result,) = await rental.script(command, timeout_s=60)
    failed(result, code)
    assert (await rental.run("/bin/true")).result == "Ok"


@pytest.mark.parametrize("more", [{"format": "rar"}, {"fileset": "*.txt"}, {"depth": 1}])
async def test_transfer_options_that_are_not_offered(shop: World, rental: Rental, more: dict[str, Any]) -> None:
    failed(await bring(shop, rental, b"x", "/work/x", **more), "unsupported")


async def test_a_file_larger_than_the_disk(shop: World) -> None:
    rented = await shop.requestor.rent(shop.package, **{"golem.!exp.shem.v1.require.storage.gib": 0.0625})
    await rented.open()
    failed(await bring(shop, rented, bytes(65 << 20), "/work/large"), "disk_full")
    assert (await rented.shell("test ! -s /work/large")).result == "Ok"
    await shop.requestor.end(rented)


async def test_an_archive_that_climbs_out(shop: World, rental: Rental) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../escaped"))
    failed(await bring(shop, rental, packed.getvalue(), "/work/t", format="tar"), "transfer_failed")


# --- usage, progress, the image's own program ---------------------------------------------------------------------------


async def test_usage_is_measured_from_outside(shop: World, fresh: Rental) -> None:
    await fresh.shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")

    async def used() -> list[float] | None:
        usage = (await shop.requestor.activities.usage(fresh.activity_id)).current_usage or [0.0, 0.0]
        return usage if usage[1] > 0.1 else None

    seconds, cpu = await until(used)
    assert 0 < cpu <= seconds * 2 + 0.5


async def test_progress_when_it_is_asked_for(shop: World, rental: Rental) -> None:
    stored = await shop.requestor.files.upload(chunks(bytes(5 << 20)))
    command = {"transfer": {"from": stored.url, "to": "container:/work/p", "progress": {"updateInterval": "50ms"}}}
    batch = await shop.requestor.activities.exec(rental.activity_id, [command])
    seen = [
        event.kind.progress
        async for event in shop.requestor.activities.stream(rental.activity_id, batch)
        if event.kind.progress is not None
    ]
    assert seen
    assert seen[-1].progress == (5 << 20, 5 << 20)
    assert seen[-1].unit == "Bytes"


async def test_an_image_that_cannot_be_had(shop: World) -> None:
    package = f"oci:sha256:{'ab' * 32}:gftp://{shop.alice.id}/{'cd' * 32}"
    rented = await shop.requestor.rent(package)
    await rented.create()
    (result,) = await rented.script({"deploy": {}})
    assert result.result == "Error"
    assert result.message is not None
    failed(result, "image_not_found")
    assert await rented.state() == "Initialized"
    await shop.requestor.end(rented)


async def test_an_image_that_is_not_what_its_name_says(shop: World) -> None:
    digest, url = shop.package.removeprefix("oci:").rsplit(":gftp://", 1)
    async with shop.requestor.files.open(*url.split("/")) as download:
        blobs = json.loads(b"".join([chunk async for chunk in download.chunks()]))["blobs"]
    forged = "sha256:" + "0123456789abcdef" * 4
    lie = await shop.requestor.files.upload(chunks(json.dumps({"blobs": {forged: blobs[digest]}}).encode()))
    rented = await shop.requestor.rent(f"oci:{forged}:{lie.url}")
    await rented.create()
    (result,) = await rented.script({"deploy": {}})
    assert result.message is not None
    failed(result, "image_digest_mismatch")
    await shop.requestor.end(rented)


async def test_the_images_own_program_user_and_directory(shop: World) -> None:
    package = await shop.publish(
        "service",
        Entrypoint=["/bin/sh", "-c"],
        Cmd=["echo $GREETING > /tmp/started; exec sleep 5000"],
        User="worker",
        WorkingDir="/tmp",
    )
    rented = await shop.requestor.rent(package)
    await rented.create()
    results = await rented.script({"deploy": {}}, {"start": {"args": ["start-entrypoint"]}})
    assert [result.result for result in results] == ["Ok", "Ok"]

    async def started() -> bool:
        return (await rented.shell("cat /tmp/started")).stdout == "hello\n"

    await until(started)
    assert (await rented.shell("id -u; pwd")).stdout == "1000\n/tmp\n", "what is run is not given to the entrypoint"
    assert "sleep 5000" in str((await rented.run("/bin/ps")).stdout)
    await shop.requestor.end(rented)


@pytest.mark.parametrize(
    ("config", "arguments", "printed"),
    [
        ({"Entrypoint": ["/bin/echo", "it says"], "Cmd": ["by default"]}, [], "it says by default"),
        ({"Entrypoint": ["/bin/echo", "it says"], "Cmd": ["by default"]}, ["this", "that"], "it says this that"),
        ({"Entrypoint": ["/bin/echo", "alone"]}, [], "alone"),
        ({"Cmd": ["/bin/echo", "only", "cmd"]}, [], "only cmd"),
        ({"Cmd": ["/bin/echo", "only", "cmd"]}, ["/bin/echo", "other"], "other"),
        ({}, ["/bin/echo", "bare"], "bare"),
    ],
)
async def test_an_empty_entry_point_is_the_images(
    shop: World, tmp_path: Path, config: dict[str, Any], arguments: list[str], printed: str
) -> None:
    package = await shop.publish(f"image-{tmp_path.name}", **config)
    rented = await (await shop.requestor.rent(package)).open()
    result = await rented.run("", *arguments)
    assert (result.result, result.stdout) == ("Ok", printed + "\n"), result
    await shop.requestor.end(rented)


async def test_an_empty_entry_point_with_nothing_to_run(rental: Rental) -> None:
    failed(await rental.run(""), "no_entrypoint")


async def test_start_without_a_program_in_the_image(shop: World) -> None:
    rented = await shop.requestor.rent(shop.package)
    await rented.create()
    results = await rented.script({"deploy": {}}, {"start": {"args": ["start-entrypoint"]}})
    failed(results[-1], "no_entrypoint")
    await shop.requestor.end(rented)


class Process(NamedTuple):
    """A process of this machine: its number outside and inside its pid namespace (``world``)."""

    pid: int
    inner: int
    world: str
    command: bytes


def processes() -> list[Process]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                status = (entry / "status").read_text()
                inner = int(status.split("NSpid:")[1].split("\n")[0].split()[-1])
                world = str((entry / "ns/pid").readlink())
                found.append(Process(int(entry.name), inner, world, (entry / "cmdline").read_bytes()))
        except OSError:
            continue
    return found


async def test_a_sandbox_that_dies_ends_its_activity(shop: World) -> None:
    rented = await (await shop.requestor.rent(shop.package)).open()
    batch = await shop.requestor.activities.exec(rented.activity_id, [run("/bin/sleep", "31415")])

    async def guest() -> int | None:
        for process in processes():
            if b"sleep\x0031415" in process.command:
                (first,) = [other.pid for other in processes() if other.world == process.world and other.inner == 1]
                return first
        return None

    os.kill(await until(guest), signal.SIGKILL)
    failed((await rented.finish(batch))[-1], "sandbox_died")

    async def over() -> bool:
        return await rented.state() == "Terminated"

    await until(over)
    state = await shop.requestor.activities.state(rented.activity_id)
    assert (state.reason, (state.error_message or "").partition(":")[0]) == ("SandboxDied", "sandbox_died")
    again = Rental(shop.requestor, rented.agreement_id)
    assert (await (await again.open()).run("/bin/true")).result == "Ok", "the agreement lives on"
    await shop.requestor.end(again)


@pytest.mark.slow
async def test_output_without_end(shop: World) -> None:
    rented = await (await shop.requestor.rent(shop.package)).open()
    failed(await rented.run("/bin/yes", timeout_s=100), "output_limit")
    assert (await rented.run("/bin/true")).result == "Ok"
    await shop.requestor.end(rented)

"""Running commands: what goes in, what comes out, and how it ends."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import time

import pytest

from shem.runtimes.base import CommandNotStarted


async def test_output_and_exit_codes_come_back(box) -> None:
    result = await box.sh("echo out; echo err >&2; exit 3")
    assert (result.out, result.err, result.code, result.status.signal) == ("out\n", "err\n", 3, 0)


async def test_environment_is_exactly_what_was_given(box) -> None:
    result = await box.run("env", env={"NAME": "value with = and spaces", "UMLAUT": "ü"})
    given = dict(line.split("=", 1) for line in result.out.splitlines())
    assert given.pop("PATH").startswith("/usr/local/sbin")
    assert given == {"NAME": "value with = and spaces", "UMLAUT": "ü", "HOME": "/root"}


async def test_working_directory(box) -> None:
    assert (await box.run("pwd", cwd="/work")).out == "/work\n"
    with pytest.raises(CommandNotStarted) as caught:
        await box.run("pwd", cwd="/nowhere")
    assert caught.value.details == {"errno": 2, "stage": "enter the directory"}


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0 0 0"),
        ("worker", "1000 1001 1001 1002"),
        ("1000", "1000 1001 1001 1002"),
        ("worker:root", "1000 0 0"),
        ("4321:8765", "4321 8765 8765"),
    ],
)
async def test_users(box, many_users, user, expected) -> None:
    result = await box.sh("echo $(id -u) $(id -g) $(id -G); echo $HOME", user=user)
    ids, home = result.out.splitlines()
    assert ids == (expected if many_users else "0 0 0" if ids == "0 0 0" else "0 0 0 65534")
    assert home == ("/home/worker" if "worker" in user or user == "1000" else "/root" if not user else "/")


async def test_unknown_user_is_an_error(box) -> None:
    with pytest.raises(CommandNotStarted) as caught:
        await box.run("true", user="nobody-of-this-name")
    assert caught.value.details["stage"] == "find the user"


async def test_command_not_found(box) -> None:
    with pytest.raises(CommandNotStarted) as caught:
        await box.run("no-such-program")
    assert caught.value.details == {"errno": 2, "stage": "run"}
    with pytest.raises(CommandNotStarted) as caught:
        await box.run("/etc/passwd")
    assert caught.value.details["errno"] == 13


async def test_standard_input_is_passed_whole(box) -> None:
    data = bytes(range(256)) * 20_000
    result = await box.python(
        "import sys, hashlib; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())", stdin=data
    )
    assert result.out.strip() == hashlib.sha256(data).hexdigest()


async def test_input_that_nobody_reads_is_no_obstacle(box) -> None:
    assert (await box.run("true", stdin=b"x" * 5_000_000)).code == 0


async def test_no_input_means_an_empty_one(box) -> None:
    assert (await box.run("cat")).out == ""


async def test_binary_output_is_untouched(box) -> None:
    got = bytearray()

    async def keep(_: int, data: bytes) -> None:
        got.extend(data)

    await box.guest.run(
        ["python3", "-I", "-S", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)"], on_output=keep
    )
    assert bytes(got) == bytes(range(256)) * 1000


async def test_a_hundred_megabytes_arrive_in_order(box) -> None:
    """A counter of 8 bytes repeated: any loss or swap would show in the hash."""
    script = (
        "import sys, array\nfor i in range(100):\n"
        "  sys.stdout.buffer.write(array.array('Q', range(i << 17, i + 1 << 17)).tobytes())"
    )
    seen = hashlib.sha256()

    async def eat(_: int, data: bytes) -> None:
        seen.update(data)

    status = await box.guest.run(["python3", "-I", "-S", "-c", script], on_output=eat)
    assert status.code == 0
    expected = hashlib.sha256()
    for i in range(100):
        import array

        expected.update(array.array("Q", range(i << 17, (i + 1) << 17)).tobytes())
    assert seen.digest() == expected.digest()


async def test_death_by_signal(box) -> None:
    result = await box.sh("kill -TERM $$")
    assert (result.code, result.status.signal) == (128 + signal.SIGTERM, signal.SIGTERM)


async def test_usage_of_a_command(box) -> None:
    result = await box.python("import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass")
    assert 0.25 < result.status.cpu_s < 3
    assert result.status.max_rss > 1 << 20


async def test_timeout_kills_everything_that_was_started(box) -> None:
    """Children in sessions of their own, orphans of orphans: all go."""
    started = time.monotonic()
    result = await box.sh(
        "sleep 1001 & setsid sleep 1002 & (setsid sh -c 'setsid sleep 1003 & sleep 1004' &) ; sleep 1005", timeout_s=0.4
    )
    assert result.status.timed_out
    assert result.status.signal == signal.SIGKILL
    assert time.monotonic() - started < 8
    assert "sleep" not in (await box.sh("cat /proc/[0-9]*/comm")).out


async def test_a_timeout_leaves_other_commands_alone(background, box) -> None:
    other = background.start(box.sh("setsid sleep 0.5; echo still here"), "work")
    await box.sh("sleep 1000", timeout_s=0.2)
    assert (await other).out == "still here\n"


async def test_cancelling_a_command_kills_it(box) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await box.sh("sleep 1006")
    async with asyncio.timeout(10):
        while "sleep" in (await box.sh("cat /proc/[0-9]*/comm")).out:
            pass


async def test_a_background_child_does_not_delay_the_end(box) -> None:
    started = time.monotonic()
    result = await box.sh("sleep 1007 & echo started")
    assert result.out == "started\n"
    assert time.monotonic() - started < 5
    assert "sleep" in (await box.sh("cat /proc/[0-9]*/comm")).out  # it lives on, as a daemon may


async def test_many_commands_at_once(box) -> None:
    results = await asyncio.gather(*(box.sh(f"sleep 0.1; echo {n}") for n in range(12)))
    assert [r.out for r in results] == [f"{n}\n" for n in range(12)]


async def test_kill_ends_every_command(box) -> None:
    running = asyncio.gather(box.sh("sleep 1008"), box.sh("setsid sleep 1009 & wait"))
    async with asyncio.timeout(10):
        while (await box.sh("cat /proc/[0-9]*/comm")).out.count("sleep") < 2:
            pass
    await box.guest.kill()
    for result in await running:
        assert result.status.signal == signal.SIGKILL
    assert (await box.sh("echo alive")).out == "alive\n"


async def test_a_command_that_ignores_signals_is_killed(box) -> None:
    result = await box.sh("trap '' TERM INT HUP; while :; do sleep 0.01; done", timeout_s=0.3)
    assert result.status.timed_out

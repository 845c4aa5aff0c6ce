"""A hostile program finds nothing, and ordinary ones find what they need. The probes are ``tests/seams/probes/attack.py``."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from pathlib import Path

PROBES = Path(__file__).parent.parent / "probes/attack.py"

HARMLESS = {
    # the agent can be made the kernel's first victim, which ends the attacker's own sandbox
    "write /proc/1/oom_score_adj",
}
"""Attacks that may work, each with the reason why that is no harm. A new one fails the test."""


async def attack(box, tmp_path) -> dict[str, list]:
    mark = f"canary-{secrets.token_hex(8)}"
    canary = tmp_path / "canary"
    canary.write_text(mark)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + mark)
        abstract.listen()
        await box.guest.put_file("/work/attack.py", PROBES.read_bytes())
        port = server.getsockname()[1]
        result = await box.run("python3", "-I", "-S", "/work/attack.py", str(canary), mark, str(port), timeout_s=60)
    assert result.code == 0, result.err
    return json.loads(result.out)


async def test_probes(box, tmp_path) -> None:
    results = await attack(box, tmp_path)
    attacks = {name: found for name, found in results.items() if not name.startswith("works: ")}
    assert len(attacks) > 150
    worked = {name: detail for name, (success, detail) in attacks.items() if success and name not in HARMLESS}
    assert worked == {}
    needed = {name: detail for name, (success, detail) in results.items() if name.startswith("works: ") and not success}
    assert needed == {}


async def test_identity(box) -> None:
    status = dict(
        line.split(":\t", 1) for line in (await box.run("cat", "/proc/self/status")).out.splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    powers = int(status["CapEff"], 16)
    for name, bit in {
        "SYS_ADMIN": 21,
        "NET_ADMIN": 12,
        "NET_RAW": 13,
        "SYS_PTRACE": 19,
        "MKNOD": 27,
        "SETPCAP": 8,
    }.items():
        assert not powers >> bit & 1, name


async def test_root_inside_is_nobody_outside(background, box) -> None:
    """Looked at from the host: the uid of a process in the sandbox is not the host's root."""
    token = secrets.token_hex(8)
    ready = asyncio.Event()

    async def said(*_: object) -> None:
        ready.set()

    running = background.start(
        box.guest.run(["sh", "-c", "echo ready; read _", token], stdin=never(), on_output=said), "work"
    )
    async with asyncio.timeout(10):
        await ready.wait()
    inside = [process for process in Path("/proc").glob("[0-9]*") if _runs(process, token.encode())]
    assert inside
    for process in inside:
        status = (process / "status").read_text()
        ids = [line.split()[1:] for line in status.splitlines() if line.startswith(("Uid:", "Gid:", "Groups:"))]
        assert len(ids) == 3
        assert not any("0" in row for row in ids)
    running.cancel()


async def never():
    """Standard input that does not come."""
    await asyncio.Event().wait()
    yield b""


async def test_programs_of_one_uid_cannot_read_the_agent(box) -> None:
    result = await box.sh("cat /proc/1/environ /proc/1/maps; ls -l /proc/1/fd/ | grep socket; echo end")
    assert result.out == "end\n"


async def test_setuid_programs_gain_nothing(box) -> None:
    result = await box.sh("cp /bin/id /work/id; chmod 6755 /work/id; /work/id -u", user="worker")
    assert result.out.strip() in ("", "1000", "0")
    copy = await box.sh("cp /bin/id /work/id2; chown 0:0 /work/id2; chmod 6755 /work/id2")
    assert copy.code == 0
    who = (await box.sh("id -u; /work/id2 -u", user="worker")).out.split()
    assert len(set(who)) == 1


def _runs(process: Path, command: bytes) -> bool:
    try:
        return command in (process / "cmdline").read_bytes()
    except OSError:
        return False

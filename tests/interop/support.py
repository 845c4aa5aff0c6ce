"""What tests with Golem's own clients stand on: their environments, their programs as processes, and books to check after them.

A client's program is a process group of its own. Every process that it starts inherits one variable with a name of the
run; at the end of the test whatever still carries that name is killed, in whichever group or session it went.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import secrets
import shutil
import signal
import sys
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from shem.cogs.tasks import TaskScope
from shem.runtimes.bwrap.binary import find_bwrap
from shem.testing.devnet import Devnet, DevNode

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ENVIRONMENTS = ROOT / ".interop"
MARK = "SHEM_INTEROP_RUN"
OUTPUT_LIMIT = 4_000_000
TAIL = 6000
SETTLE_S = 60.0
KILL_ROUNDS = 20


def needs(name: str) -> pytest.MarkDecorator:
    """A mark for tests with a client, which are skipped before a network is started for them."""
    missing = not (ENVIRONMENTS / name / ".ready").exists()
    return pytest.mark.skipif(
        missing, reason=f"{name} is not installed below {ENVIRONMENTS.name}/ (tools/interop.sh does it)"
    )


def client_of(name: str) -> Path:
    """The directory of a client's environment (``yapapi``, ``golem-core``, ``golem-js``), or the test is skipped."""
    place = ENVIRONMENTS / name
    if not (place / ".ready").exists():
        pytest.skip(f"{name} is not installed below {ENVIRONMENTS.name}/ (tools/interop.sh installs it)")
    return place


@dataclass(frozen=True)
class Ran:
    """What a program left: its exit code (negative: the signal), its output, and how long it took."""

    name: str
    code: int
    out: str
    err: str
    seconds: float

    @property
    def result(self) -> Any:
        """The last line of its output that is JSON: what our programs print for the test."""
        for line in reversed(self.out.splitlines()):
            with contextlib.suppress(ValueError):
                return json.loads(line)
        raise AssertionError(f"{self.name} printed no result\n{self.words}")

    @property
    def words(self) -> str:
        """Its output, for the message of a failing test."""
        return f"--- {self.name}: stdout\n{self.out[-TAIL:]}\n--- stderr\n{self.err[-TAIL:]}\n---"


@dataclass
class Program:
    """A client's program that runs. ``lines`` are those of its stdout so far."""

    name: str
    process: asyncio.subprocess.Process
    mark: str
    started: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    errors: bytearray = field(default_factory=bytearray)
    pumps: list[asyncio.Task[None]] = field(default_factory=list)
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def pump_out(self) -> None:
        """Keep what it prints, and tell who waits for a line."""
        assert self.process.stdout is not None
        kept = 0
        while line := await self.process.stdout.readline():
            kept += len(line)
            async with self.news:
                if kept < OUTPUT_LIMIT:
                    self.lines.append(line.decode(errors="replace").rstrip("\n"))
                self.news.notify_all()
        async with self.news:
            self.lines.append("")
            self.news.notify_all()

    async def pump_err(self) -> None:
        """Keep what it complains of."""
        assert self.process.stderr is not None
        while chunk := await self.process.stderr.read(65536):
            if len(self.errors) < OUTPUT_LIMIT:
                self.errors += chunk

    async def line(self, holds: Callable[[str], bool] | str, deadline_s: float = 60.0) -> str:
        """The first line of its output that contains the text, or for which the function holds."""
        fits = (lambda line: holds in line) if isinstance(holds, str) else holds
        try:
            async with asyncio.timeout(deadline_s), self.news:
                await self.news.wait_for(lambda: any(map(fits, self.lines)) or self.pumps[0].done())
        except TimeoutError:
            raise AssertionError(f"{self.name} did not print {holds!r}\n{self.words}") from None
        found = next(filter(fits, self.lines), None)
        assert found is not None, f"{self.name} ended without {holds!r}\n{self.words}"
        return found

    def interrupt(self) -> None:
        """What Ctrl-C in a terminal does: everyone in the program's group hears of it."""
        os.killpg(self.process.pid, signal.SIGINT)

    async def finish(self, deadline_s: float = 60.0, *, expect: int | None = 0) -> Ran:
        """Wait for its end. ``expect``: its exit code; None is any."""
        try:
            async with asyncio.timeout(deadline_s):
                code = await self.process.wait()
                await asyncio.gather(*self.pumps)
        except TimeoutError:
            raise AssertionError(f"{self.name} did not end within {deadline_s:g} s\n{self.words}") from None
        ran = Ran(self.name, code, "\n".join(self.lines), self.errors.decode(errors="replace"), self.seconds)
        assert expect is None or code == expect, f"{self.name} ended with {code}\n{ran.words}"
        print(f"{self.name}: {ran.seconds:.1f} s", file=sys.stderr)
        return ran

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    @property
    def words(self) -> str:
        """What it said so far."""
        return Ran(self.name, 0, "\n".join(self.lines), self.errors.decode(errors="replace"), 0).words

    def kill(self) -> None:
        """It, its group, and all that carry its name."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for _ in range(KILL_ROUNDS):  # one may have started another while we looked
            alive = marked(self.mark)
            for pid in alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not alive:
                break


def marked(mark: str) -> list[int]:
    """Live processes of one run."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


class Clients:
    """Starts clients' programs for one test, and leaves none of them behind."""

    def __init__(self, env: Mapping[str, str], scratch: Path) -> None:
        self.env = dict(env)
        self.scratch = scratch
        self._programs: list[Program] = []
        self._copies: list[Path] = []
        self._pumps = TaskScope("interop")

    async def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        hosts: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Program:
        """Start a program on the network. ``hosts``: names that lead elsewhere for this process only, name to address."""
        mark = secrets.token_hex(8)
        everything = {**os.environ, **self.env, MARK: mark, **(env or {})}
        everything["PATH"] = f"{ROOT / '.venv' / 'bin'}:{everything.get('PATH', '')}"
        command = [*(self._elsewhere(hosts) if hosts else ()), *map(os.fspath, argv)]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=everything,
            cwd=cwd or self.scratch,
            start_new_session=True,
            limit=OUTPUT_LIMIT,
        )
        program = Program(name or Path(os.fspath(argv[-1])).name, process, mark)
        self._programs.append(program)
        program.pumps = [
            self._pumps.start(program.pump_out(), "stdout"),
            self._pumps.start(program.pump_err(), "stderr"),
        ]
        return program

    async def start_python(self, client: str, *argv: str, **options: Any) -> Program:
        """Start Python with a client: a program of ours (relative to this directory), or ``-m`` and a module, ``-c`` and code."""
        python = client_of(client) / "bin" / "python"
        script, *args = argv
        program = [script, *args] if script.startswith("-") else [HERE / script, *args]
        name = " ".join([client, Path(script).name, *args[:1]])
        env = {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "default", **options.pop("env", {})}
        return await self.start([python, *program], name=name, env=env, **options)

    async def run_python(
        self,
        client: str,
        script: str | Path,
        *args: str,
        deadline_s: float = 90.0,
        expect: int | None = 0,
        **options: Any,
    ) -> Ran:
        """Run it to its end."""
        program = await self.start_python(client, script, *args, **options)
        return await program.finish(deadline_s, expect=expect)

    async def start_node(self, script: str | Path, *args: str, **options: Any) -> Program:
        """Start a JavaScript program of ours with golem-js, found as an import from the environment's directory."""
        place = client_of("golem-js")
        node = shutil.which("node")
        if node is None:
            pytest.skip("node is not installed")
        path = HERE / script
        copy = place / "programs" / secrets.token_hex(4)
        copy.mkdir(parents=True)
        self._copies.append(copy)
        for sibling in path.parent.glob("*.mjs"):  # what it imports from beside it
            (copy / sibling.name).write_bytes(sibling.read_bytes())
        return await self.start([node, copy / path.name, *args], name=f"golem-js {path.name}", **options)

    async def run_node(
        self, script: str | Path, *args: str, deadline_s: float = 90.0, expect: int | None = 0, **options: Any
    ) -> Ran:
        """Run it to its end."""
        program = await self.start_node(script, *args, **options)
        return await program.finish(deadline_s, expect=expect)

    def _elsewhere(self, hosts: Mapping[str, str]) -> list[str]:
        """A private /etc/hosts for the program; and no resolver, so that no name is asked for outside."""
        bwrap = find_bwrap()
        if bwrap is None:
            pytest.skip("bwrap is not installed: names cannot be redirected for one process")
        private = self.scratch / f"hosts-{secrets.token_hex(4)}"
        private.write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in hosts.items()))
        resolver = self.scratch / "resolv.conf"
        resolver.write_text("options timeout:1 attempts:1\n")
        bind = [str(bwrap), "--dev-bind", "/", "/", "--ro-bind", str(private), "/etc/hosts"]
        return [*bind, "--ro-bind", str(resolver), str(Path("/etc/resolv.conf").resolve()), "--"]

    async def close(self) -> None:
        """End everything."""
        for program in self._programs:
            program.kill()
        for program in self._programs:
            await program.process.wait()
        await self._pumps.close()
        for copy in self._copies:
            shutil.rmtree(copy, ignore_errors=True)


async def until(condition: Callable[[], Any | Awaitable[Any]], what: str, deadline_s: float = 30.0) -> Any:
    """Wait for ``condition()`` (plain or async) to give something true, and return that."""
    found: Any = None
    try:
        async with asyncio.timeout(deadline_s):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{what}: not within {deadline_s:g} s; last seen: {found!r}") from None


@dataclass(frozen=True)
class Deal:
    """One agreement with its bill."""

    agreement: dict[str, Any]
    invoice: dict[str, Any]

    @property
    def provider_id(self) -> str:
        """Who worked."""
        return str(self.agreement["offer"]["providerId"])

    @property
    def amount(self) -> Decimal:
        """What the invoice asked, in tokens."""
        return Decimal(self.invoice["amount"])


class Books:
    """The requestor's node as an owner looks at it: what was agreed, billed, paid and given back since a moment."""

    def __init__(self, net: Devnet, session: aiohttp.ClientSession) -> None:
        self.net = net
        self._session = session
        self.since = ""
        self._allocations: set[str] = set()

    async def open(self) -> None:
        """Remember where the test starts."""
        self.since = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        self._allocations = {a["allocationId"] for a in await self.get("/payment-api/v1/allocations")}

    async def clear(self) -> None:
        """After a failure too, the next test finds nothing of this one: agreements are ended, allocations given back."""
        for agreement in await self.agreements():
            if agreement["state"] == "Approved":
                with contextlib.suppress(AssertionError):
                    await self.call("POST", f"/market-api/v1/agreements/{agreement['agreementId']}/terminate", json={})
        for allocation in await self.get("/payment-api/v1/allocations"):
            if allocation["allocationId"] not in self._allocations:
                with contextlib.suppress(AssertionError):
                    await self.call("DELETE", f"/payment-api/v1/allocations/{allocation['allocationId']}")

    async def get(self, path: str, node: DevNode | None = None, **query: str) -> Any:
        """A GET on the requestor's node, or on another."""
        return await self.call("GET", path, node, params=query)

    async def call(self, method: str, path: str, node: DevNode | None = None, **options: Any) -> Any:
        """A call with JSON, of which the answer must be a success."""
        at = node or self.net.requestor
        headers = {"Authorization": f"Bearer {at.app_key}"}
        async with self._session.request(method, at.api_url + path, headers=headers, **options) as answer:
            text = await answer.text()
            assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
            return json.loads(text) if text else None

    async def agreements(self) -> list[dict[str, Any]]:
        """What the requestor agreed to since the test began."""
        listed = await self.get("/market-api/v1/agreements", afterDate=self.since)
        return [await self.get(f"/market-api/v1/agreements/{a['id']}") for a in listed if a["role"] == "Requestor"]

    async def invoices(self) -> list[dict[str, Any]]:
        """What the requestor was billed since the test began."""
        found: list[dict[str, Any]] = await self.get("/payment-api/v1/invoices", afterTimestamp=self.since)
        return found

    async def debit_notes(self) -> list[dict[str, Any]]:
        """Notes that the requestor got since the test began."""
        found: list[dict[str, Any]] = await self.get("/payment-api/v1/debitNotes", afterTimestamp=self.since)
        return found

    async def settled(self, *, status: str = "SETTLED", allocations: int = 0) -> list[Deal]:
        """Everything agreed since the test began, when it has ended well: every agreement that came to be is over, with
        exactly one invoice, in ``status``; what is settled was paid on the chain, to the last wei; no activity runs;
        no more allocations are held than ``allocations``.
        """
        agreements = [a for a in await self.agreements() if "approvedDate" in a]
        over = await until(self._over, "agreements that ended", SETTLE_S) if agreements else []
        found = (
            await until(lambda: self._billed(status), f"an invoice {status} for each agreement", SETTLE_S)
            if over
            else []
        )
        deals = [Deal(a, next(i for i in found if i["agreementId"] == a["agreementId"])) for a in over]
        for deal in deals:
            for activity in deal.invoice["activityIds"]:
                state = await self.get(f"/activity-api/v1/activity/{activity}/state")
                assert state["state"][0] == "Terminated", state
        if status == "SETTLED" and deals:
            await self._paid(deals)
        held = [a for a in await self.get("/payment-api/v1/allocations") if a["allocationId"] not in self._allocations]
        assert len(held) == allocations, f"allocations still held: {held}"
        return deals

    async def _over(self) -> list[dict[str, Any]]:
        agreements = [a for a in await self.agreements() if "approvedDate" in a]
        return agreements if all(a["state"] in {"Terminated", "Expired"} for a in agreements) else []

    async def _billed(self, status: str) -> list[dict[str, Any]]:
        agreements = {a["agreementId"] for a in await self.agreements() if "approvedDate" in a}
        invoices = [i for i in await self.invoices() if i["agreementId"] in agreements]
        asked = [i["agreementId"] for i in invoices]
        assert len(asked) == len(set(asked)), f"more than one invoice for an agreement: {invoices}"
        return invoices if len(invoices) == len(agreements) and all(i["status"] == status for i in invoices) else []

    async def _paid(self, deals: list[Deal]) -> None:
        payments = await self.get("/payment-api/v1/payments", afterTimestamp=self.since)
        for payment in payments:
            receipt = await self.net.rpc("eth_getTransactionReceipt", "0x" + b64decode(payment["details"]).hex())
            assert receipt, payment
            assert receipt["status"] == "0x1", (payment, receipt)
        for deal in deals:
            wanted = deal.agreement["agreementId"]
            parts = [p for payment in payments for p in payment["agreementPayments"] if p["agreementId"] == wanted]
            activities = set(deal.invoice["activityIds"])
            parts += [p for payment in payments for p in payment["activityPayments"] if p["activityId"] in activities]
            assert sum(Decimal(p["amount"]) for p in parts) == deal.amount, (deal.invoice, parts)


async def balance(net: Devnet, address: str) -> int:
    """Tokens of an address on the chain, in wei."""
    call = {"to": net.token, "data": "0x70a08231" + address.removeprefix("0x").rjust(64, "0")}
    return int(await net.rpc("eth_call", call, "latest"), 16)

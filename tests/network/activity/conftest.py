"""Alice rents, Bob provides, Mallory would like to: whole nodes (database, peers, activities, REST) in one process,
joined by the loopback transport, each with a scripted exe unit on the real WebSocket."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from shem.client.activity import ActivityApi, ProviderActivityApi
from shem.client.exeunit import ExeUnitLink
from shem.client.http import ApiClient
from shem.cogs.clock import SystemClock
from shem.errors import NotFound, ShemError
from shem.node.activity.service import Activities
from shem.node.activity.settings import Settings
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.rest import activity as rest_activity
from shem.node.rest import exeunit as rest_exeunit
from shem.node.rest.server import build_app
from shem.wire.exeunit import Cancel, Destroy, Execute, Finished, Progress, Started, Stderr, Stdout


class Deal(msgspec.Struct, kw_only=True):
    """An agreement, as far as activities look at it."""

    agreement_id: str
    requestor_id: str
    provider_id: str
    state: str = "Approved"
    app_session_id: str | None = None


class Book:
    """The agreements one node knows."""

    def __init__(self) -> None:
        self.deals: dict[str, Deal] = {}
        self._handlers: list[Callable[[Any, str], None]] = []

    def agreement(self, agreement_id: str, owner: str | None = None) -> Deal:
        deal = self.deals.get(agreement_id)
        if deal is None or (owner is not None and owner not in (deal.requestor_id, deal.provider_id)):
            raise NotFound("no such agreement", code="agreement_not_found")
        return deal

    def on_agreement(self, handler: Callable[[Any, str], None]) -> None:
        self._handlers.append(handler)

    def change(self, db: Database, agreement_id: str, state: str) -> None:
        with db.transaction():
            self.deals[agreement_id].state = state
            for handler in self._handlers:
                handler(self.deals[agreement_id], state)


class Node:
    """One node with its REST server. ``stop`` and ``start`` are a restart; the files stay."""

    def __init__(self, name: str, world: Loopback, directory: Path, settings: Settings) -> None:
        self.name = name
        self.world = world
        self.identity = Identity.generate()
        self.node_id = self.identity.node_id
        self.settings = settings
        self.key = secrets.token_hex(8)
        self.path = directory / f"{name}.db"
        self.deals: dict[str, Deal] = {}
        self.bootstraps: list[str] = []
        self.changes: list[tuple[str, str]] = []
        self.port = 0
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        self.db = Database(self.path)
        self.peers = PeerNetwork(self.identity, self.world.transport)
        for address in self.bootstraps:
            self.peers.add_bootstrap(address)
        self.book = Book()
        self.book.deals = self.deals
        self.activities = Activities(self.db, self.peers, self.book, SystemClock(), self.settings)
        self.activities.on_activity(lambda a, state: self.changes.append((a.activity_id, state)))
        await self.peers.__aenter__()
        await self.activities.start()
        app = build_app(
            [*rest_activity.routes(self.activities), *rest_exeunit.routes(self.activities)],
            keys=lambda key: (self.node_id, "test") if key == self.key else None,
        )
        self.runner = web.AppRunner(app, shutdown_timeout=0.02, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self.runner.addresses[0][1]

    async def stop(self) -> None:
        await self.activities.stop()
        await self.runner.cleanup()
        await self.peers.__aexit__(None, None, None)
        self.db.close()

    async def crash(self) -> None:
        """Gone without a word to anybody."""
        self.world.vanish(self.identity.transport_id)
        await self.stop()

    def http(self) -> ApiClient:
        return ApiClient(f"http://127.0.0.1:{self.port}", self.key)


class Unit:
    """A scripted exe unit: ``run`` commands name what happens. Every command it begins is in ``begun``."""

    def __init__(self, http: ApiClient, activity_id: str) -> None:
        self.activity_id = activity_id
        self.link = ExeUnitLink(http, activity_id)
        self.begun: list[tuple[str, int]] = []
        self.cancelled: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.usage = [0.0, 0.0]
        self.state = "New"

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    def become(self, state: str, **more: Any) -> None:
        self.state = state
        self.link.state(state, **more)

    async def serve(self) -> None:
        async with self.link, asyncio.TaskGroup() as tasks:
            self.become("Initialized")
            batches: asyncio.Queue[Execute] = asyncio.Queue()
            worker = tasks.create_task(self._work(batches))
            async for instruction in self.link.instructions():
                match instruction:
                    case Execute():
                        batches.put_nowait(instruction)
                    case Cancel(batch_id=batch_id):
                        self.cancelled.append(batch_id)
                    case Destroy():
                        break
            worker.cancel()
            self.link.usage([99.0, 9.0])
            self.become("Terminated", reason="destroyed")
            await self.link.drained(timeout_s=5)

    async def _work(self, batches: asyncio.Queue[Execute]) -> None:
        while True:
            batch = await batches.get()
            for index, command in enumerate(batch.script):
                self.begun.append((batch.batch_id, index))
                await self.link.emit(batch.batch_id, index, Started(command=command))
                code = await self._command(batch.batch_id, index, command)
                await self.link.emit(batch.batch_id, index, Finished(return_code=code))
                if code:
                    break

    async def _command(self, batch_id: str, index: int, command: dict[str, Any]) -> int:
        if "deploy" in command:
            self.become("Deployed")
            await self._out(batch_id, index, Stdout, b'{"valid": true}')
            return 0
        if "start" in command:
            self.become("Ready")
            return 0
        if "transfer" in command:
            await self.link.emit(batch_id, index, Progress(step=(0, 1), message="half", progress=(5, 10), unit="Bytes"))
            return 0
        if "terminate" in command:
            self.become("Initialized")
            return 0
        run = command["run"]
        match run["entry_point"], run.get("args", []):
            case "echo", [text]:
                await self._out(batch_id, index, Stdout, text.encode())
            case "err", [text]:
                await self._out(batch_id, index, Stderr, text.encode())
            case "bytes", [text]:
                await self._out(batch_id, index, Stdout, bytes.fromhex(text))
            case "pieces", pieces:
                for piece in pieces:
                    await self._out(batch_id, index, Stdout, bytes.fromhex(piece))
                    await self.link.drained(timeout_s=5)
            case "count", [last]:
                for number in range(int(last)):
                    await self._out(batch_id, index, Stdout, b"%d\n" % number)
            case "wait", [name]:
                await self.gate(name).wait()
            case "exit", [code]:
                return int(code)
        self.usage = [self.usage[0] + 1, self.usage[1] + 0.5]
        self.link.usage(self.usage)
        return 0

    async def _out(self, batch_id: str, index: int, kind: type[Stdout] | type[Stderr], data: bytes) -> None:
        await self.link.emit_output(batch_id, index, kind, data)


class Provider:
    """A provider agent that starts a :class:`Unit` for each new activity."""

    def __init__(self, node: Node, http: ApiClient, tasks: asyncio.TaskGroup) -> None:
        self.node = node
        self.http = http
        self.api = ProviderActivityApi(http)
        self.units: dict[str, Unit] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.paused = False
        """It sees events and does nothing."""
        self._group = tasks

    def unit(self, activity_id: str) -> Unit:
        """A unit for this activity, running."""
        unit = Unit(self.http, activity_id)
        self.units[activity_id] = unit
        self.tasks[activity_id] = self._group.create_task(unit.serve())
        return unit

    async def kill(self, activity_id: str) -> None:
        """The unit dies on the spot."""
        task = self.tasks[activity_id]
        task.cancel()
        await asyncio.wait({task})

    async def run(self) -> None:
        after = SystemClock().now().replace(year=2020)
        while True:
            try:
                events = await self.api.events(after=after, timeout_s=5)
            except ShemError:  # the node is being restarted
                await asyncio.sleep(0.02)
                continue
            for event in [] if self.paused else events:
                after = max(after, event.event_date)
                if event.event_type.create is not None and event.activity_id not in self.units:
                    self.unit(event.activity_id)
                elif event.event_type.destroy is not None and event.activity_id not in self.units:
                    await self.api.set_state(event.activity_id, "Terminated")


class Pair:
    """Alice and Bob with an agreement between them."""

    def __init__(self, alice: Node, bob: Node, provider: Provider, rent: ActivityApi, world: Loopback) -> None:
        self.alice, self.bob, self.provider, self.rent, self.world = alice, bob, provider, rent, world

    def agree(self, state: str = "Approved", session: str | None = None) -> str:
        deal = Deal(
            agreement_id=secrets.token_hex(32),
            requestor_id=self.alice.node_id,
            provider_id=self.bob.node_id,
            state=state,
            app_session_id=session,
        )
        self.alice.deals[deal.agreement_id] = deal
        self.bob.deals[deal.agreement_id] = msgspec.structs.replace(deal)
        return deal.agreement_id

    async def activity(self) -> tuple[str, Unit]:
        """A new activity, deployed and started."""
        activity_id = await self.rent.create(self.agree(), timeout_s=5)
        batch = await self.rent.exec(activity_id, [{"deploy": {}}, {"start": {}}])
        await self.rent.results(activity_id, batch, timeout_s=5)
        return activity_id, self.provider.units[activity_id]


def run(entry_point: str, *args: str, capture: Any = "stream") -> dict[str, Any]:
    """A ``run`` command; both streams captured unless told otherwise."""
    if capture == "stream":
        capture = {"stdout": {"stream": {}}, "stderr": {"stream": {}}}
    return {"run": {"entry_point": entry_point, "args": list(args), "capture": capture}}


async def until(condition: Callable[[], Any], within_s: float = 5.0) -> Any:
    """Wait for a condition under a deadline."""
    async with asyncio.timeout(within_s):
        while True:
            found = condition()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.005)


@pytest.fixture
def settings() -> Settings:
    """Patience for tests: short, but with room for a busy machine."""
    return Settings(
        unit_grace_s=0.3, unit_lost_s=1.0, destroy_grace_s=1.0, peer_grace_s=0.6, retry_first_s=0.02, retry_last_s=0.2
    )


@pytest.fixture
async def pair(tmp_path: Path, settings: Settings) -> AsyncIterator[Pair]:
    world = Loopback()
    alice, bob = Node("alice", world, tmp_path, settings), Node("bob", world, tmp_path, settings)
    await bob.start()
    alice.bootstraps = [bob.peers.address()]
    await alice.start()
    await until(alice.peers.connected)
    bob.bootstraps = [alice.peers.address()]
    async with alice.http() as ours, bob.http() as theirs, asyncio.TaskGroup() as tasks:
        provider = Provider(bob, theirs, tasks)
        agent = tasks.create_task(provider.run())
        try:
            yield Pair(alice, bob, provider, ActivityApi(ours), world)
        finally:
            agent.cancel()
            for task in provider.tasks.values():
                task.cancel()
            for node in (alice, bob):
                await node.stop()


@pytest.fixture
def tools() -> Any:
    """``run`` and ``until`` for the tests of this directory."""

    class Tools:
        pass

    bag = Tools()
    bag.run, bag.until, bag.json = run, until, json  # type: ignore[attr-defined]
    return bag

"""Two or three nodes' payment services over real peer networks (loopback transport), with test money.

Agreements and activities are values that all nodes know: how they come about is the market's and the activity
service's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from shem.cogs.clock import SystemClock
from shem.errors import NotFound
from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.appkeys import LOCAL
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import PaymentDriver
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.free import FreeDriver
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.drivers.testmoney import PLATFORM, Bank, TestMoneyDriver
from shem.node.payment.service import PaymentConfig, Payments
from shem.node.payment.store import Document, Kind
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.rest import status
from shem.node.rest.payment import routes
from shem.node.rest.server import build_app
from shem.terms.pricing import LinearPricing
from shem.testing.devchain import places
from shem.wire import payment as wire

TGLM = 10**18
FAST = PaymentConfig(retry_s=(0.02, 0.2), verify_s=(0.01, 0.1))
DUE = datetime(2030, 1, 1, tzinfo=UTC)


class PowerCut(BaseException):
    """The node is gone between one instruction and the next."""


class FragileDatabase(Database):
    """Dies around its N-th commit: just before it (the transaction is lost) or just after (nobody is told)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.commits = 0
        self.die_at: int | None = None
        self.before = True
        self.dead = False
        self.on_death: Callable[[], None] = lambda: None

    @contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[Any]:
        if self.dead:
            raise PowerCut
        if self._depth:
            with super().transaction(durable=durable) as connection:
                yield connection
            return
        with super().transaction(durable=durable) as connection:
            yield connection
            self.commits += 1
            fatal = self.commits == self.die_at
            if fatal and self.before:
                self._die()
            if fatal:
                self._after_commit = []
        if fatal:
            self._die()

    def _die(self) -> None:
        self.dead = True
        self.on_death()
        raise PowerCut


class Agreement(msgspec.Struct, frozen=True):
    agreement_id: str
    requestor_id: str
    provider_id: str
    role: str
    demand_properties: dict[str, Any]
    offer_properties: dict[str, Any]
    approved_at: datetime | None
    app_session_id: str | None


class Deals:
    """The market and the activity service of everybody."""

    def __init__(self) -> None:
        self._agreements: dict[str, Agreement] = {}
        self._sessions: dict[tuple[str, str], str] = {}
        self._activities: dict[str, str] = {}
        self._usage: dict[str, list[float]] = {}
        self.hooks: dict[str, Callable[[Any, str], None]] = {}
        """By node: who is told of agreements."""

    def make(
        self,
        requestor: str,
        provider: str,
        *,
        platform: str = PLATFORM.platform,
        pricing: LinearPricing | None = None,
        approved: bool = True,
        payer: str | None = None,
        payee: str | None = None,
        sessions: tuple[str, str] | None = None,
        demand: dict[str, Any] | None = None,
    ) -> str:
        agreement_id = secrets.token_hex(32)
        address = f"golem.com.payment.platform.{platform}.address"
        self._agreements[agreement_id] = Agreement(
            agreement_id=agreement_id,
            requestor_id=requestor,
            provider_id=provider,
            role="",
            demand_properties={"golem.com.payment.chosen-platform": platform, address: payer or requestor},
            offer_properties={address: payee or provider} | (pricing.to_properties() if pricing else {}),
            approved_at=datetime.now(UTC) if approved else None,
            app_session_id=None,
        )
        if demand:
            self._agreements[agreement_id].demand_properties.update(demand)
        for owner, session in zip((requestor, provider), sessions or (), strict=False):
            self._sessions[owner, agreement_id] = session
        return agreement_id

    def tell(self, agreement_id: str, state: str) -> None:
        """Both sides' markets say what became of an agreement."""
        found = self._agreements[agreement_id]
        for owner in (found.requestor_id, found.provider_id):
            if owner in self.hooks:
                self.hooks[owner](self.agreement(agreement_id, owner), state)

    def activity(self, agreement_id: str, usage: list[float] | None = None) -> str:
        activity_id = secrets.token_hex(16)
        self._activities[activity_id] = agreement_id
        self._usage[activity_id] = usage or []
        return activity_id

    # what payment asks

    def agreement(self, agreement_id: str, owner: str | None = None) -> Agreement:
        found = self._agreements.get(agreement_id)
        if found is None or owner not in (found.requestor_id, found.provider_id):
            raise NotFound(f"no agreement {agreement_id}")
        return msgspec.structs.replace(
            found,
            role="Requestor" if owner == found.requestor_id else "Provider",
            app_session_id=self._sessions.get((owner, agreement_id)),
        )

    def agreement_of(self, activity_id: str) -> str:
        if activity_id not in self._activities:
            raise NotFound(f"no activity {activity_id}")
        return self._activities[activity_id]

    def usage(self, activity_id: str) -> list[float]:
        return self._usage[activity_id]

    def of_agreement(self, agreement_id: str) -> list[str]:
        return [a for a, agreement in self._activities.items() if agreement == agreement_id]


class Market:
    """The market as one node has it."""

    def __init__(self, deals: Deals, node_id: str) -> None:
        self._deals = deals
        self._node_id = node_id
        self.agreement = deals.agreement

    def on_agreement(self, handler: Callable[[Any, str], None]) -> None:
        self._deals.hooks[self._node_id] = handler


class Node:
    """One node's payments; can be cut off its power and started again on the same file."""

    def __init__(self, world: World, identity: Identity, path: Path) -> None:
        self.world = world
        self.identity = identity
        self.id = identity.node_id
        self.path = path
        self.address = ""
        self.bootstrap: list[Node] = []
        self.died = asyncio.Event()
        self.db: FragileDatabase
        self.network: PeerNetwork
        self.payments: Payments

    async def start(self) -> None:
        self.db = FragileDatabase(self.path)
        self.died = asyncio.Event()
        self.db.on_death = self.died.set
        self.network = PeerNetwork(self.identity, self.world.loopback.transport)
        drivers = self.world.drivers(self)
        market = Market(self.world.deals, self.id)
        self.payments = Payments(
            self.db, self.network, self.identity, market, self.world.deals, drivers, SystemClock(), self.world.config
        )
        await self.network.__aenter__()
        self.address = self.network.address()
        for other in self.bootstrap:
            self.network.add_bootstrap(other.address)
        await self.payments.start()

    async def stop(self) -> None:
        with contextlib.suppress(PowerCut):
            await self.payments.stop()
        await self.network.__aexit__(None, None, None)
        self.db.close()

    # what agents do

    async def allocate(self, amount: str = "10", platform: str = PLATFORM.platform, **extra: Any) -> str:
        body = wire.NewAllocation(total_amount=amount, make_deposit=False, payment_platform=platform, **extra)
        return (await self.payments.allocations.create(self.id, body)).allocation_id

    def note(self, activity_id: str, amount: str, *, due: bool = False, usage: list[float] | None = None) -> str:
        body = wire.NewDebitNote(
            activity_id=activity_id,
            total_amount_due=amount,
            payment_due_date=DUE if due else None,
            usage_counter_vector=usage,
        )
        return self.payments.provider.issue_note(self.id, body).document_id

    def invoice(self, agreement_id: str, amount: str) -> str:
        body = wire.NewInvoice(agreement_id=agreement_id, amount=amount, payment_due_date=DUE)
        return self.payments.provider.issue_invoice(self.id, body).document_id

    async def send(self, kind: Kind, document_id: str, timeout_s: float = 5.0) -> None:
        await self.payments.provider.send(self.id, kind, document_id, timeout_s)

    async def bill(self, agreement_id: str, amount: str) -> str:
        invoice = self.invoice(agreement_id, amount)
        await self.send("invoice", invoice)
        return invoice

    async def bill_note(
        self, activity_id: str, amount: str, *, due: bool = False, usage: list[float] | None = None
    ) -> str:
        note = self.note(activity_id, amount, due=due, usage=usage)
        await self.send("debit-note", note)
        return note

    def accept(self, kind: Kind, document_id: str, amount: str, allocation_id: str) -> None:
        body = wire.Acceptance(total_amount_accepted=amount, allocation_id=allocation_id)
        self.payments.requestor.accept(self.id, kind, document_id, body)

    # what tests look at

    def document(self, document_id: str) -> Document:
        found = self.payments.books.store.document(document_id, self.id)
        assert found is not None
        return found

    def state(self, document_id: str) -> str:
        found = self.payments.books.store.document(document_id, self.id)
        return "" if found is None else found.state.value

    def account(self, agreement_id: str) -> Any:
        return self.payments.books.store.account(agreement_id, self.id)

    def events(self, kind: Kind) -> list[str]:
        rows = self.db.connection.execute(
            "select type from payment_event where owner = ? and kind = ? order by at", (self.id, kind)
        )
        prefix = "DebitNote" if kind == "debit-note" else "Invoice"
        return [row["type"].removeprefix(prefix).removesuffix("Event") for row in rows]


class World:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loopback = Loopback()
        self.bank = Bank()
        self.deals = Deals()
        self.nodes: dict[str, Node] = {}
        self.config = FAST
        self.chain: Any = None

    def drivers(self, node: Node) -> list[PaymentDriver]:
        """What each node pays with; a test may put in others before nodes start."""
        return [TestMoneyDriver(node.db, self.bank, [node.id]), FreeDriver()]

    async def add(self, name: str) -> Node:
        node = Node(self, Identity.generate(), self.directory / f"{name}-{uuid.uuid4().hex[:8]}.db")
        node.bootstrap = list(self.nodes.values())
        self.nodes[name] = node
        await node.start()
        return node


@asynccontextmanager
async def world_of(directory: Path, *names: str) -> AsyncIterator[World]:
    world = World(directory)
    try:
        for name in names:
            await world.add(name)
        for node in world.nodes.values():
            await eventually(lambda node=node: len(node.network.connected()) == len(names) - 1, "the network")
        yield world
    finally:
        for node in world.nodes.values():
            await node.stop()


@asynccontextmanager
async def channel_world_of(
    directory: Path, *more: str, gather_s: float = 0.03, **network_is: Any
) -> AsyncIterator[World]:
    """Alice, bob and whoever else, with money on a chain of their own that has a vault. ``network_is``: fields of
    :class:`~shem.node.payment.drivers.networks.Network` that differ."""
    from shem.testing.devchain.node import DevChain  # dear to import: only these tests need a chain

    async with DevChain(directory=directory / "chain", block_time_s=0.02) as chain, world_of(directory) as made:
        config = NetworkConfig(
            chain_id=places.CHAIN_ID,
            rpc_urls=(chain.rpc_url,),
            token=places.TOKEN_ADDRESS,
            token_symbol="tGLM",
            vault=places.VAULT_ADDRESS,
        )
        [network] = networks_from({"devnet": config})
        quick = msgspec.structs.replace(network, poll_s=0.01, max_poll_s=0.05, gather_s=gather_s, **network_is)

        def drivers(node: Node) -> list[PaymentDriver]:
            erc20 = EvmDriver(node.db, [quick], [node.identity])
            return [erc20, ChannelDriver(erc20)]

        made.drivers = drivers  # type: ignore[method-assign]
        made.chain = chain
        made.config = msgspec.structs.replace(FAST, cover_timeout_s=4.0)
        for name in ("alice", "bob", *more):
            node = await made.add(name)
            chain.fund(node.id, wei=TGLM, token_units=100 * TGLM)
        yield made


async def eventually(check: Callable[[], Any], what: str = "it", timeout_s: float = 5.0) -> None:
    """Until ``check()`` holds; turns of the loop, no fixed sleeps in the way of a quick answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not check():
        assert loop.time() < deadline, f"{what} did not come about in {timeout_s} s"
        await asyncio.sleep(0.002)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """alice rents, bob provides, mallory does both badly."""
    async with world_of(tmp_path, "alice", "bob", "mallory") as made:
        made.bank.fund(made.nodes["alice"].id, 100 * TGLM)
        made.bank.fund(made.nodes["mallory"].id, 100 * TGLM)
        yield made


@pytest.fixture
def alice(world: World) -> Node:
    return world.nodes["alice"]


@pytest.fixture
def bob(world: World) -> Node:
    return world.nodes["bob"]


@pytest.fixture
def mallory(world: World) -> Node:
    return world.nodes["mallory"]


@pytest.fixture
def wait() -> Callable[..., Any]:
    return eventually


@pytest.fixture
def open_channels() -> Callable[..., Any]:
    return channel_world_of


@pytest.fixture
def open_world() -> Callable[..., Any]:
    return world_of


class Caller:
    """One agent's HTTP: plain, to see exactly what goes over the wire."""

    def __init__(self, node: Node, base: str, session: aiohttp.ClientSession) -> None:
        self.node = node
        self.base = base
        self.session = session

    async def __call__(
        self, method: str, path: str, body: Any = ..., *, headers: dict[str, str] | None = None, raw: str | None = None
    ) -> tuple[int, Any, str]:
        """(status, JSON or text, content type)."""
        data = raw if raw is not None else None if body is ... else msgspec.json.encode(body)
        sent = {"Authorization": f"Bearer {self.node.id}", "Content-Type": "application/json"} | (headers or {})
        root = "" if path.startswith("/shem-api") else "/payment-api/v1"
        async with self.session.request(method, self.base + root + path, data=data, headers=sent) as answer:
            content = await answer.read()
            kind = answer.content_type
            return answer.status, msgspec.json.decode(content) if "json" in kind else content.decode(), kind


@asynccontextmanager
async def door_of(node: Node) -> AsyncIterator[Caller]:
    names = {node.id: LOCAL, f"{node.id}-program": "a program"}
    app = build_app(
        [*routes(node.payments), *status.routes(dict)], keys=lambda key: (node.id, names[key]) if key in names else None
    )
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        async with aiohttp.ClientSession() as session:
            yield Caller(node, f"http://{host}:{port}", session)
    finally:
        await runner.cleanup()


@pytest.fixture
async def requestor(alice: Node) -> AsyncIterator[Caller]:
    async with door_of(alice) as caller:
        yield caller


@pytest.fixture
async def provider(bob: Node) -> AsyncIterator[Caller]:
    async with door_of(bob) as caller:
        yield caller

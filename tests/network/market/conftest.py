"""Alice rents, Bob provides, Carol too, Mallory would like to: whole markets (database, peers, REST), one process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.cogs.clock import Clock, SystemClock
from shem.cogs.tasks import TaskScope
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.market import Agreement, Market, MarketConfig, documents, protocol
from shem.node.market.offers import SignedOffer
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.peer.remote_errors import PeerUnreachable
from shem.node.peer.transport import TransportFactory
from shem.node.rest import market as rest_market
from shem.node.rest.server import build_app
from shem.terms.ids import NodeId
from shem.wire.market import ProposalEvent

T = TypeVar("T")

OFFER: dict[str, Any] = {
    "golem.inf.cpu.threads": 2,
    "golem.inf.mem.gib": 4.0,
    "golem.node.id.name": "prov",
    "golem.runtime.name": "vm",
    "golem.x": {"@tag": "v", "y": 1},
    "list": ["a", "b"],
    "nul": None,
}
OFFER_CONSTRAINTS = "(&(golem.srv.comp.expiration>1))"
DEMAND_CONSTRAINTS = "(&(golem.inf.mem.gib>=0.5)(golem.inf.cpu.threads>=1)(golem.runtime.name=vm))"


def demand_properties() -> dict[str, Any]:
    ends = datetime.now(UTC) + timedelta(hours=1)
    return {"golem.node.debug.subnet": "public", "golem.srv.comp.expiration": int(ends.timestamp() * 1000)}


async def eventually(read: Callable[[], T | None] | Callable[[], Awaitable[T | None]], seconds: float = 5.0) -> T:
    """What ``read`` gives once that is true; fails after some seconds."""
    async with asyncio.timeout(seconds):
        while True:
            found = read()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found  # type: ignore[return-value]
            await asyncio.sleep(0.002)


class Lossy:
    """The real network, which loses the answers of some calls: what was asked has happened, and nobody knows."""

    def __init__(self, network: PeerNetwork) -> None:
        self._network = network
        self.lose: dict[str, int] = {}
        """Method and how many answers get lost."""
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    async def call(self, node_id: NodeId, method: str, payload: bytes, *, timeout_s: float = 10.0) -> bytes:
        self.calls.append(method)
        answer = await self._network.call(node_id, method, payload, timeout_s=timeout_s)
        if self.lose.get(method, 0) > 0:
            self.lose[method] -= 1
            raise PeerUnreachable("the connection broke", code="peer_lost")
        return answer


class Node:
    """One node with its REST server. ``stop`` and ``start`` are a restart; the file stays."""

    def __init__(self, name: str, transport: TransportFactory, directory: Path) -> None:
        self.name = name
        self.identity = Identity.generate()
        self.node_id = self.identity.node_id
        self.path = directory / f"{name}.db"
        self.transport = transport
        self.key = secrets.token_hex(8)
        self.clock: Clock = SystemClock()
        self.config = MarketConfig(retry_first_s=0.02, rpc_timeout_s=5.0)
        self.bootstraps: list[str] = []
        self.changes: list[tuple[str, str]] = []
        self.running = False
        self.online = True

    async def start(self) -> None:
        self._stack = AsyncExitStack()
        self.db = Database(self.path)
        self._stack.callback(self.db.close)
        self.peers = PeerNetwork(self.identity, self.transport)
        self.lossy = Lossy(self.peers)
        self.market = Market(self.db, self.lossy, {self.node_id: self.identity}, self.clock, self.config)
        self.market.on_agreement(self._changed)
        await self.market.start()
        if self.online:
            await self._stack.enter_async_context(self.peers)
        self._stack.push_async_callback(self.market.stop)
        for address in self.bootstraps:
            self.peers.add_bootstrap(address)
        app = build_app(
            rest_market.routes(self.market), keys=lambda key: (self.node_id, "test") if key == self.key else None
        )
        runner = web.AppRunner(app, shutdown_timeout=0.2)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        self.http = await self._stack.enter_async_context(ApiClient(f"http://127.0.0.1:{port}", self.key))
        self.api = MarketApi(self.http)
        self.running = True

    async def stop(self) -> None:
        if self.running:
            self.running = False
            await self._stack.aclose()

    async def crash(self) -> None:
        """Gone without a farewell."""
        await self.peers.__aexit__(None, None, None)
        await self.stop()

    def _changed(self, agreement: Agreement, state: str) -> None:
        assert self.db.connection.in_transaction
        self.changes.append((agreement.agreement_id, state))

    # things that tests do often

    async def offer(self, **more: Any) -> str:
        return await self.api.subscribe_offer(OFFER | more, OFFER_CONSTRAINTS)

    async def demand(self, constraints: str = DEMAND_CONSTRAINTS) -> str:
        return await self.api.subscribe_demand(demand_properties(), constraints)

    async def next_proposal(self, subscription_id: str) -> ProposalEvent:
        """The next event, which is a proposal."""
        side = "demand" if subscription_id in {d.demand_id for d in await self.api.demands()} else "offer"
        collect = self.api.collect_demand_events if side == "demand" else self.api.collect_offer_events
        found = await collect(subscription_id, timeout_s=5, max_events=1)
        assert found, f"{self.name} got no proposal"
        assert isinstance(found[0], ProposalEvent)
        return found[0]

    def knows(self, offer_id: str) -> bool:
        return self.market.core.book.get(offer_id) is not None


class Mallory:
    """A key, a connection, and the will to send anything."""

    def __init__(self, transport: TransportFactory) -> None:
        self.identity = Identity.generate()
        self.node_id = self.identity.node_id
        self.peers = PeerNetwork(self.identity, transport)

    async def call(self, node: Node, method: str, payload: bytes) -> bytes:
        return await self.peers.call(node.node_id, method, payload)

    async def send(
        self, node: Node, method: str, purpose: str, document: Any, *, signer: Identity | None = None
    ) -> bytes:
        """A document, signed by whoever's key she has."""
        raw = documents.encode(document)
        return await self.call(node, method, protocol.pack(protocol.sign(signer or self.identity, purpose, raw)))

    def offer(
        self,
        *,
        signer: Identity | None = None,
        body: documents.SubscriptionBody | None = None,
        properties: dict[str, Any] | None = None,
        **statement: Any,
    ) -> SignedOffer:
        """An offer as it travels; right in everything that is not given."""
        now = datetime.now(UTC)
        body = body or documents.SubscriptionBody(
            nonce=secrets.token_hex(16),
            issuer=self.node_id,
            created_at=now,
            properties=properties or {"golem.runtime.name": "vm"},
            constraints="()",
        )
        raw = documents.encode(body)
        values: dict[str, Any] = {
            "offer_id": documents.subscription_id(body, raw),
            "sequence": 1,
            "expires_at": now + timedelta(hours=1),
            "withdrawn": False,
        }
        stated = documents.Statement(**values | statement)
        signed = protocol.sign_statement(signer or self.identity, raw, stated)
        return SignedOffer(body.issuer, b"" if stated.withdrawn else raw, signed.statement, signed.signature)

    async def spread(self, node: Node, *offers: SignedOffer) -> None:
        await self.call(node, protocol.OFFERS, protocol.pack(protocol.OffersPage(list(offers))))


class Town:
    """All nodes of a test."""

    OFFER = OFFER
    OFFER_CONSTRAINTS = OFFER_CONSTRAINTS
    DEMAND_CONSTRAINTS = DEMAND_CONSTRAINTS
    demand_properties = staticmethod(demand_properties)
    eventually = staticmethod(eventually)

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.world = Loopback()
        self.nodes: list[Node] = []
        self._tasks = TaskScope("test")
        self._stack = AsyncExitStack()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run beside the test."""
        return self._tasks.start(work, "beside")

    async def close(self) -> None:
        await self._tasks.close()
        await self._stack.aclose()
        for node in reversed(self.nodes):
            await node.stop()

    async def node(
        self, name: str, *, knows: Node | None = None, prepare: Callable[[Node], None] = lambda node: None
    ) -> Node:
        node = Node(name, self.world.transport, self.directory)
        prepare(node)
        if knows is not None:
            node.bootstraps.append(knows.peers.address())
        self.nodes.append(node)
        await node.start()
        return node

    async def mallory(self, *knows: Node) -> Mallory:
        """Connected with these nodes."""
        mallory = Mallory(self.world.transport)
        await self._stack.enter_async_context(mallory.peers)
        for node in knows:
            mallory.peers.add_bootstrap(node.peers.address())
            await eventually(lambda node=node: node.node_id in mallory.peers.connected())
        return mallory

    async def pair(self) -> tuple[Node, Node]:
        """Alice and Bob, connected."""
        bob = await self.node("bob")
        alice = await self.node("alice", knows=bob)
        await eventually(lambda: alice.node_id in bob.peers.connected() and bob.node_id in alice.peers.connected())
        return alice, bob

    async def negotiated(self, alice: Node, bob: Node) -> tuple[str, str, str]:
        """Up to the provider's counter: ``(demand id, offer id, the proposal that an agreement can be made of)``."""
        offer_id = await bob.offer()
        demand_id = await alice.demand()
        proposal_id = await self.negotiate(alice, bob, demand_id, offer_id)
        return demand_id, offer_id, proposal_id

    async def negotiate(self, alice: Node, bob: Node, demand_id: str, offer_id: str) -> str:
        initial = await alice.next_proposal(demand_id)
        chosen = demand_properties() | {"golem.com.payment.chosen-platform": "erc20-holesky-tglm"}
        await alice.api.counter_as_requestor(demand_id, initial.proposal.proposal_id, chosen, DEMAND_CONSTRAINTS)
        draft = await bob.next_proposal(offer_id)
        await bob.api.counter_as_provider(offer_id, draft.proposal.proposal_id, OFFER, OFFER_CONSTRAINTS)
        return (await alice.next_proposal(demand_id)).proposal.proposal_id

    async def confirmed(self, alice: Node, bob: Node, *, valid_s: float = 3600.0) -> tuple[str, str, str]:
        """``(agreement id, demand id, offer id)``; Bob has it and has not answered."""
        demand_id, offer_id, proposal_id = await self.negotiated(alice, bob)
        valid_to = alice.clock.now() + timedelta(seconds=valid_s)
        agreement_id = await alice.api.create_agreement(proposal_id, valid_to)
        await alice.api.confirm(agreement_id)
        return agreement_id, demand_id, offer_id

    async def approved(self, alice: Node, bob: Node) -> tuple[str, str, str]:
        agreement_id, demand_id, offer_id = await self.confirmed(alice, bob)
        await bob.api.approve(agreement_id)
        return agreement_id, demand_id, offer_id


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    made = Town(tmp_path)
    yield made
    await made.close()

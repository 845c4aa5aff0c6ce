"""A requestor's and a provider's node in one process (loopback peers, REST on 127.0.0.1), and a real provider agent.

Everything is the product: market, activities, files, payments, the agent, the sandbox. Only the chain is test money, or a
devnet's in this process (``ChainWorld``). The requestor is driven call by call, so that tests see every step.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import pytest
import pytest_asyncio
from aiohttp import web

from shem.client.activity import ActivityApi
from shem.client.files import FilesApi
from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.cogs.clock import SystemClock
from shem.node.activity.service import Activities
from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.files.service import Files
from shem.node.identity.keys import Identity
from shem.node.market.service import Market
from shem.node.payment.drivers.base import PaymentDriver
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.free import FreeDriver
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.drivers.testmoney import PLATFORM, Bank, TestMoneyDriver
from shem.node.payment.service import PaymentConfig, Payments
from shem.node.peer.loopback import Loopback
from shem.node.peer.network import PeerNetwork
from shem.node.rest import activity as rest_activity
from shem.node.rest import cover as rest_cover
from shem.node.rest import exeunit as rest_exeunit
from shem.node.rest import files as rest_files
from shem.node.rest import market as rest_market
from shem.node.rest import payment as rest_payment
from shem.node.rest.server import build_app, caller, respond
from shem.provider.agent import ProviderAgent
from shem.provider.config import ProviderConfig, ResourceLimits, Rules
from shem.provider.presets import Preset
from shem.sdk.images import publish_image
from shem.sdk.transfer import Courier
from shem.terms.amounts import parse_amount
from shem.testing.devchain import places
from shem.testing.small_image import make_small_image
from shem.wire.activity import CommandResult
from shem.wire.market import Agreement, AgreementApprovedEvent, ProposalEvent, ProposalRejectedEvent
from shem.wire.payment import Acceptance, Invoice, NewAllocation

if TYPE_CHECKING:
    from shem.testing.devchain.node import DevChain

T = TypeVar("T")
TGLM = 10**18
PRESET = Preset(name="test", start="0.1", env_per_hour="3.6", cpu_per_hour="36")


async def until(read: Callable[[], Awaitable[T | None]], timeout_s: float = 15.0) -> T:
    """Ask until there is an answer, under a deadline."""
    async with asyncio.timeout(timeout_s):
        while True:
            found = await read()
            if found:
                return found
            await asyncio.sleep(0.02)


class TestNode:
    """One node; can be stopped and started again on the same data and the same port."""

    __test__ = False

    def __init__(self, name: str, root: Path, loopback: Loopback, bank: Bank) -> None:
        self.name = name
        self.root = root
        self.key = secrets.token_hex(8)
        self.identity = Identity.generate()
        self.id = self.identity.node_id
        self.bootstrap: list[TestNode] = []
        self.moves_money = True
        self.chain_drivers: Callable[[TestNode, Database], list[PaymentDriver]] | None = None
        self.payment_config: PaymentConfig | None = None
        self.url = ""
        self._loopback = loopback
        self._bank = bank
        self._port = 0
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        clock = SystemClock()
        self.root.mkdir(exist_ok=True, parents=True)
        db = Database(self.root / "node.db")
        self._stack.callback(db.close)
        self.peers = PeerNetwork(self.identity, self._loopback.transport)
        self.market = Market(db, self.peers, {self.id: self.identity}, clock)
        self.files = Files(db, self.peers, self.root / "files", clock)
        self.activities = Activities(db, self.peers, self.market, clock, admit=self._admit)
        drivers: list[PaymentDriver] = [FreeDriver()]
        if self.chain_drivers is not None:
            drivers[:0] = self.chain_drivers(self, db)
        elif self.moves_money:
            drivers.insert(0, TestMoneyDriver(db, self._bank, [self.id]))
        self.payments = Payments(
            db, self.peers, self.identity, self.market, self.activities, drivers, clock, self.payment_config
        )
        for service in (self.market, self.files, self.activities, self.payments):
            await _now(service.start())
            self._stack.push_async_callback(_later(service.stop))
        await self._stack.enter_async_context(self.peers)
        for other in self.bootstrap:
            self.peers.add_bootstrap(other.peers.address())
        await self._serve()

    async def _admit(self, owner: str, agreement_id: str) -> None:
        await self.payments.admit(owner, agreement_id)

    async def _serve(self) -> None:
        async def me(request: web.Request) -> web.Response:
            return respond({"identity": caller(request), "name": "test", "role": "manager"})

        routes = [
            web.get("/me", me),
            *rest_market.routes(self.market),
            *rest_activity.routes(self.activities),
            *rest_exeunit.routes(self.activities),
            *rest_files.routes(self.files),
            *rest_payment.routes(self.payments),
            *rest_cover.routes(self.payments.channels.gate),
        ]
        keys = {self.key: (self.id, "test")}
        runner = web.AppRunner(
            build_app(routes, keys=keys.get), access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", self._port).start()
        self._port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()


async def _now(result: object) -> None:
    if inspect.isawaitable(result):
        await result


def _later(stop: Callable[[], object]) -> Callable[[], Awaitable[None]]:
    async def call() -> None:
        await _now(stop())

    return call


class Rental:
    """What the requestor holds: an agreement and, after :meth:`open`, an activity that is ready."""

    def __init__(self, requestor: Requestor, agreement_id: str) -> None:
        self._requestor = requestor
        self.agreement_id = agreement_id
        self.activity_id = ""

    async def create(self) -> str:
        self.activity_id = await self._requestor.activities.create(self.agreement_id, timeout_s=20)
        return self.activity_id

    async def open(self, **deploy: Any) -> Rental:
        await self.create()
        results = await self.script({"deploy": deploy}, {"start": {}}, timeout_s=60)
        assert [result.result for result in results] == ["Ok", "Ok"], results
        return self

    async def script(self, *commands: dict[str, Any], timeout_s: float = 30.0) -> list[CommandResult]:
        batch = await self._requestor.activities.exec(self.activity_id, commands)
        return await self.finish(batch, timeout_s)

    async def finish(self, batch: str, timeout_s: float = 30.0) -> list[CommandResult]:
        async def finished() -> Sequence[CommandResult] | None:
            found = await self._requestor.activities.results(self.activity_id, batch, timeout_s=5)
            return found if found and found[-1].is_batch_finished else None

        return list(await until(finished, timeout_s))

    async def run(self, *argv: str, timeout_s: float = 30.0, **more: Any) -> CommandResult:
        return (await self.script(run(*argv, **more), timeout_s=timeout_s))[-1]

    async def shell(self, text: str, **more: Any) -> CommandResult:
        return await self.run("/bin/sh", "-c", text, **more)

    async def state(self) -> str:
        return (await self._requestor.activities.state(self.activity_id)).state[0]


def run(*argv: str, **more: Any) -> dict[str, Any]:
    """A run command that captures everything."""
    capture = {"stdout": {"atEnd": {"format": "string"}}, "stderr": {"atEnd": {"format": "string"}}}
    return {"run": {"entry_point": argv[0], "args": list(argv[1:]), "capture": capture, **more}}


class Requestor:
    """A requestor program, step by step."""

    def __init__(self, http: ApiClient, node: TestNode, provider: TestNode) -> None:
        self.node = node
        self.provider = provider
        self.http = http
        self.market = MarketApi(http)
        self.activities = ActivityApi(http)
        self.files = FilesApi(http)
        self.payment = PaymentApi(http)
        self.allocation = ""
        self.platform = PLATFORM.platform
        self.budget = "100"

    async def demand(self, package: str, **changes: Any) -> tuple[str, dict[str, Any], str]:
        """Publish a demand: for runtime ``vm`` when the package is a Golem image, else ``oci``. ``changes`` are properties;
        ``None`` removes one."""
        runtime, small = ("vm", "(golem.inf.mem.gib<=0.5)") if package.startswith("hash:") else ("oci", "")
        if not self.allocation:
            made = await self.payment.create_allocation(
                NewAllocation(total_amount=self.budget, make_deposit=False, payment_platform=self.platform)
            )
            self.allocation = made.allocation_id
        decorations = await self.payment.demand_decorations([self.allocation])
        properties: dict[str, Any] = {
            "golem.node.debug.subnet": "test",
            "golem.srv.comp.expiration": int((datetime.now(UTC) + timedelta(minutes=20)).timestamp() * 1000),
            "golem.srv.comp.task_package": package,
            "golem.srv.caps.multi-activity": True,
            "golem.!exp.shem.v1.require.mem.gib": 0.125,
            "golem.!exp.shem.v1.require.cpu.threads": 1,
            "golem.!exp.shem.v1.require.storage.gib": 0.25,
            "golem.!exp.shem.v1.require.pids": 64,
            **{decoration.key: decoration.value for decoration in decorations.properties},
            "golem.com.payment.chosen-platform": self.platform,
        }
        properties = {name: value for name, value in (properties | changes).items() if value is not None}
        constraints = (
            f"(&(golem.node.debug.subnet=test)(golem.runtime.name={runtime}){small}{''.join(decorations.constraints)})"
        )
        demand_id = await self.market.subscribe_demand(properties, constraints)
        return demand_id, properties, constraints

    async def next_event(self, demand_id: str, timeout_s: float = 15.0) -> ProposalEvent | ProposalRejectedEvent:
        async with asyncio.timeout(timeout_s):
            while True:
                for event in await self.market.collect_demand_events(demand_id, timeout_s=5, max_events=1):
                    assert isinstance(event, ProposalEvent | ProposalRejectedEvent)
                    return event

    async def negotiate(self, package: str, **changes: Any) -> tuple[str, ProposalEvent | ProposalRejectedEvent]:
        """Counter the first initial proposal; the demand's id and the provider's answer."""
        demand_id, properties, constraints = await self.demand(package, **changes)
        event = await self.next_event(demand_id)
        assert isinstance(event, ProposalEvent)
        assert event.proposal.state == "Initial"
        await self.market.counter_as_requestor(demand_id, event.proposal.proposal_id, properties, constraints)
        return demand_id, await self.next_event(demand_id)

    async def rent(self, package: str, **changes: Any) -> Rental:
        """An approved agreement."""
        demand_id, answer = await self.negotiate(package, **changes)
        assert isinstance(answer, ProposalEvent), answer
        rental = await self.agree(answer.proposal.proposal_id)
        await self.market.unsubscribe_demand(demand_id)
        return rental

    async def agree(self, proposal_id: str) -> Rental:
        """Make an agreement of a proposal."""
        agreement_id = await self.market.create_agreement(proposal_id, datetime.now(UTC) + timedelta(minutes=1))
        await self.market.confirm(agreement_id)
        await self.market.wait_agreement(agreement_id, timeout_s=15)
        return Rental(self, agreement_id)

    async def end(self, rental: Rental) -> None:
        """Destroy the activity and end the agreement."""
        if rental.activity_id:
            await self.activities.destroy(rental.activity_id, timeout_s=15)
        await self.market.terminate(rental.agreement_id, {"message": "done", "golem.requestor.code": "Success"})

    async def agreement_state(self, agreement_id: str) -> str:
        return (await self.market.agreement(agreement_id)).state

    async def invoices(self, agreement_id: str) -> list[Invoice]:
        return [invoice for invoice in await self.payment.invoices() if invoice.agreement_id == agreement_id]

    async def invoice(self, agreement_id: str, timeout_s: float = 15.0) -> Invoice:
        """The invoice, once it is here."""

        async def received() -> Invoice | None:
            found = [one for one in await self.invoices(agreement_id) if one.status == "RECEIVED"]
            return found[0] if found else None

        return await until(received, timeout_s)

    async def accept(self, invoice: Invoice) -> None:
        await self.payment.accept_invoice(
            invoice.invoice_id, Acceptance(total_amount_accepted=invoice.amount, allocation_id=self.allocation)
        )

    async def ended(self, agreement_id: str, timeout_s: float = 15.0) -> dict[str, Any]:
        """The reason with which the provider ended the agreement."""

        async def reason() -> dict[str, Any] | None:
            for event in await self.market.agreement_events(timeout_s=5, max_events=100):
                if event.agreement_id == agreement_id and not isinstance(event, AgreementApprovedEvent):
                    return {"kind": type(event).__name__, **(getattr(event, "reason", None) or {})}
            return None

        return await until(reason, timeout_s)


class World:
    """Both nodes and what runs on them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.loopback = Loopback()
        self.bank = Bank()
        self.alice = TestNode("alice", root / "alice", self.loopback, self.bank)
        self.bob = TestNode("bob", root / "bob", self.loopback, self.bank)
        self.bob.bootstrap = [self.alice]
        self.requestor: Requestor
        self.provider_http: ApiClient
        self.package = ""
        self._stack = AsyncExitStack()

    def config(self, **changes: Any) -> ProviderConfig:
        values: dict[str, Any] = {
            "data_dir": self.root / "agent",
            "name": "bob",
            "subnet": "test",
            "presets": (PRESET,),
            "drivers": ("bwrap",),
            "runtimes": ("oci",),
            "limits": ResourceLimits(cpu_threads=2, memory_gib=1.0, storage_gib=2.0, max_agreements=2),
            "rules": Rules(),
        }
        return ProviderConfig(**(values | changes))

    def agent(self, **changes: Any) -> ProviderAgent:
        return ProviderAgent(self.config(**changes), self.provider_http)

    async def __aenter__(self) -> World:
        await self.alice.start()
        await self.bob.start()
        self.bank.fund(self.alice.id, 1000 * TGLM)
        http = await self._stack.enter_async_context(ApiClient(self.alice.url, self.alice.key))
        self.provider_http = await self._stack.enter_async_context(ApiClient(self.bob.url, self.bob.key))
        self.requestor = Requestor(http, self.alice, self.bob)
        self._courier = await self._stack.enter_async_context(Courier(self.requestor.files, self.alice.id))
        self.package = await self.publish("image")
        return self

    async def publish(self, name: str, **config: object) -> str:
        """The package of a small image with ``config`` in its configuration."""
        image = make_small_image(self.root / name, config)
        return (await publish_image(image, self._courier)).package

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        await self.alice.stop()
        await self.bob.stop()

    async def agreement(self, agreement_id: str) -> Agreement:
        return await MarketApi(self.provider_http).agreement(agreement_id)


class ChainWorld(World):
    """The same on a chain of their own with a vault: deals are paid by transfer or by channel."""

    def __init__(self, root: Path, platform: str, payments: PaymentConfig | None = None, *, credit: str = "0") -> None:
        super().__init__(root)
        self.platform = platform
        self._payments = payments
        self._credit = credit
        self.chain: DevChain
        self._ground = AsyncExitStack()

    async def __aenter__(self) -> ChainWorld:
        from shem.testing.devchain.node import DevChain  # dear to import: only these tests need a chain

        self.chain = await self._ground.enter_async_context(DevChain(directory=self.root / "chain", block_time_s=0.02))
        config = NetworkConfig(
            chain_id=places.CHAIN_ID,
            rpc_urls=(self.chain.rpc_url,),
            token=places.TOKEN_ADDRESS,
            token_symbol="tGLM",
            vault=places.VAULT_ADDRESS,
            credit=self._credit,
        )
        [network] = networks_from({"devnet": config})
        quick = msgspec.structs.replace(network, poll_s=0.01, max_poll_s=0.05, gather_s=0.03)

        def drivers(node: TestNode, db: Database) -> list[PaymentDriver]:
            erc20 = EvmDriver(db, [quick], [node.identity])
            return [erc20, ChannelDriver(erc20)]

        for node in (self.alice, self.bob):
            node.chain_drivers, node.payment_config = drivers, self._payments
        self.chain.fund(self.alice.id, wei=TGLM, token_units=1000 * TGLM)
        self.chain.fund(self.bob.id, wei=TGLM, token_units=0)
        await super().__aenter__()
        self.requestor.platform = self.platform
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await super().__aexit__()
        finally:
            await self._ground.aclose()

    async def paid_to(self, owner: str, amount: str) -> bool:
        """Whether exactly so much is in a wallet that was empty."""
        return self.tokens(owner) == parse_amount(amount)

    def tokens(self, owner: str) -> int:
        """What an address has in its wallet."""
        call = {"to": places.TOKEN_ADDRESS, "data": "0x70a08231" + owner.removeprefix("0x").rjust(64, "0")}
        return int(str(self.chain.rpc.call("eth_call", [call, "latest"])), 16)


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Two nodes, no agent."""
    async with World(tmp_path) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Two nodes and a running agent, for all tests of a module."""
    async with World(tmp_path_factory.mktemp("shop")) as made, made.agent():
        yield made


logging.getLogger("shem").setLevel(logging.DEBUG)

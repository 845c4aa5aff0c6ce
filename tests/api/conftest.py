"""Two whole nodes in this process, joined by the loopback transport, and what their agents have made of each other: a deal
whose every id is known, so that junk gets past "there is no such thing" and into the handlers."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from shem.client.activity import ActivityApi, ProviderActivityApi
from shem.client.exeunit import ExeUnitLink
from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.node.app import Node
from shem.node.config import NodeConfig
from shem.node.peer.loopback import Loopback
from shem.terms.pricing import LinearPricing
from shem.wire.exeunit import Cancel, Destroy, Execute, Finished, Started, Stdout
from tests.api.answers import Answer
from tests.api.conversation import Conversation
from tests.api.networks import Network, original, original_is_missing, ours

DURATION, CPU = "golem.usage.duration_sec", "golem.usage.cpu_sec"
MARKET, ACTIVITY, PAYMENT, OURS = "/market-api/v1", "/activity-api/v1", "/payment-api/v1", "/shem-api/v1"
NET, GSB = "/net-api/v1", "/gsb-api/v1"
QUICK_S = 10.0
"""No call of these tests may take longer: a hang is a failure."""


@dataclass(frozen=True)
class Call:
    """One route of a node's application."""

    method: str
    template: str

    @property
    def variables(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.template)

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


class Door:
    """A node's REST door as a client without manners sees it: bytes in, status and bytes out."""

    def __init__(self, node: Node, key: str, session: aiohttp.ClientSession) -> None:
        self.node, self.key, self.session = node, key, session

    @property
    def calls(self) -> list[Call]:
        """Every call that the node offers."""
        found = {(r.method, r.resource.canonical) for r in self.node.rest.router.routes() if r.resource}
        return [Call(method, path) for method, path in sorted(found) if method != "HEAD"]

    async def __call__(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        headers: dict[str, str] | None = None,
        auth: str | None = "",
        within_s: float = QUICK_S,
    ) -> Answer:
        """``path`` goes out as it is, already escaped. ``auth``: another Authorization header; ``None`` for none."""
        sent = {"Content-Type": "application/json"} if body is not None else {}
        sent |= headers or {}
        if auth is not None:
            sent["Authorization"] = auth or f"Bearer {self.key}"
        async with (
            asyncio.timeout(within_s),
            self.session.request(
                method,
                URL(self.node.api_url + path, encoded=True),
                data=None if body is None else io.BytesIO(body),
                headers=sent,
                allow_redirects=False,
            ) as answer,
        ):
            return Answer(answer.status, answer.content_type, await answer.read(), answer.headers)

    async def raw(self, request: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of one's own, with these bytes written."""
        url = URL(self.node.api_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(request)
        await writer.drain()
        return reader, writer

    def head(self, method: str, path: str, *more: str) -> bytes:
        """The first lines of a request, for :meth:`raw`."""
        lines = [f"{method} {path} HTTP/1.1", "Host: node", f"Authorization: Bearer {self.key}", *more]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


@dataclass
class Deal:
    """Ids of one deal, by route template's variable and the side that knows them."""

    demand_id: str = ""
    offer_id: str = ""
    proposals: dict[str, str] = field(default_factory=dict)
    agreement_id: str = ""
    activity_id: str = ""
    batch_id: str = ""
    allocation_id: str = ""
    scan_id: str = ""
    note_id: str = ""
    invoice_id: str = ""
    payment_id: str = ""
    file_id: str = ""
    inbox_id: str = ""
    network_id: str = ""
    service_id: str = ""
    node_id: str = ""

    def fill(self, call: Call) -> str:
        """The call's path with this deal's ids."""
        values = {
            "activity_id": self.activity_id,
            "batch_id": self.batch_id,
            "node_id": self.node_id,
            "file_id": self.inbox_id if call.method == "PUT" or "/inbox/" in call.template else self.file_id,
            "id": self._id(call.template),
            "proposal": self.proposals["offer" if "/offers/" in call.template else "demand"],
            "node": self.node_id,
            **dict.fromkeys(("ip", "source", "target"), "192.168.0.1"),
            "port": "22",
            "address": "public/gftp/nobody/GetChunk",
        }
        return re.sub(r"{(\w+)}", lambda found: values.get(found[1], "something"), call.template)

    def _id(self, template: str) -> str:
        by_noun = {
            "demands": self.demand_id,
            "offers": self.offer_id,
            "agreements": self.agreement_id,
            "scan": self.scan_id,
            "allocations": self.allocation_id,
            "debitNotes": self.note_id,
            "invoices": self.invoice_id,
            "payments": self.payment_id,
            "net": self.network_id,
            "services": self.service_id,
        }
        noun = template.split("/{id}")[0].rsplit("/", 1)[-1]
        return by_noun.get(noun, "")


class Unit:
    """An exe unit that says yes to everything; ``flood`` prints as many kibibytes as it is told."""

    def __init__(self, http: ApiClient, activity_id: str) -> None:
        self.link = ExeUnitLink(http, activity_id)

    async def serve(self) -> None:
        async with self.link:
            self.link.state("Initialized")
            async for instruction in self.link.instructions():
                match instruction:
                    case Execute(batch_id=batch_id, script=script):
                        for index, command in enumerate(script):
                            await self._command(batch_id, index, command)
                    case Destroy():
                        break
                    case Cancel():
                        pass
            self.link.state("Terminated", reason="destroyed")
            await self.link.drained(timeout_s=5)

    async def _command(self, batch_id: str, index: int, command: dict[str, Any]) -> None:
        await self.link.emit(batch_id, index, Started(command=command))
        if "deploy" in command:
            self.link.state("Deployed")
        if "start" in command:
            self.link.state("Ready")
        args = command.get("run", {}).get("args") or []
        if command.get("run", {}).get("entry_point") == "flood":
            piece = (b"x" * 1023 + b"\n") * 32
            for _ in range(int(args[0]) // 32):
                await self.link.emit_output(batch_id, index, Stdout, piece)
        await self.link.emit(batch_id, index, Finished(return_code=0))


class World:
    """Alice rents, Bob provides."""

    def __init__(self, alice: Door, bob: Door, http: tuple[ApiClient, ApiClient], tasks: asyncio.TaskGroup) -> None:
        self.alice, self.bob = alice, bob
        self.rent, self.host = http
        self.demand, self.offer = MarketApi(http[0]), MarketApi(http[1])
        self.activities = ActivityApi(http[0])
        self.units: list[asyncio.Task[None]] = []
        self._tasks = tasks
        self._deal: Deal | None = None

    async def deal(self, *, fresh: bool = False) -> Deal:
        """A deal with everything in it; the last one unless a fresh one is wanted."""
        if fresh or self._deal is None:
            self._deal = await self._make()
        return self._deal

    async def _clear(self) -> None:
        """What earlier deals, and the junk of tests, left on the market: a node takes only so many."""
        for market in (self.demand, self.offer):
            for offer in await market.offers():
                await market.unsubscribe_offer(offer.offer_id)
            for demand in await market.demands():
                await market.unsubscribe_demand(demand.demand_id)
        if self._deal is not None:
            await self.alice("DELETE", f"{MARKET}/scan/{self._deal.scan_id}")
            await self.alice("DELETE", f"{NET}/net/{self._deal.network_id}")
            await self.alice("DELETE", f"{GSB}/services/{self._deal.service_id}")

    async def _make(self) -> Deal:
        await self._clear()
        deal = Deal(node_id=self.alice.node.identity.node_id)
        body = {"totalAmount": "1", "makeDeposit": False, "paymentPlatform": "free"}
        deal.allocation_id = (await self.rent.call("POST", f"{PAYMENT}/allocations", json=body))["allocationId"]
        await self._agree(deal)
        await self._work(deal)
        await self._bill(deal)
        deal.scan_id = await self.rent.call("POST", f"{MARKET}/scan", json={"type": "offer", "timeout": 60})
        async with self.rent.session.post(self.rent.url(f"{OURS}/files"), data=secrets.token_bytes(100)) as answer:
            deal.file_id = (await answer.json())["fileId"]
        deal.inbox_id = (await self.rent.call("POST", f"{OURS}/files/inbox"))["fileId"]
        deal.network_id = (await self.rent.call("POST", f"{NET}/net", json={"ip": "192.168.0.0/24"}))["id"]
        listen = {"on": f"/public/gftp/{secrets.token_hex(8)}", "components": ["GetChunk"]}
        deal.service_id = (await self.rent.call("POST", f"{GSB}/services", json={"listen": listen}))["servicesId"]
        return deal

    async def _agree(self, deal: Deal) -> None:
        ends = datetime.now(UTC) + timedelta(hours=1)
        mark = secrets.token_hex(8)
        wanted = {
            "golem.srv.comp.expiration": int(ends.timestamp() * 1000),
            "golem.com.payment.chosen-platform": "free",
            "golem.com.payment.platform.free.address": self.alice.node.identity.node_id,
        }
        offered = {"mark": mark, "golem.com.payment.platform.free.address": self.bob.node.identity.node_id}
        offered |= LinearPricing((Decimal(0), Decimal(0)), Decimal(0), (DURATION, CPU)).to_properties()
        deal.offer_id = await self.offer.subscribe_offer(offered, "()")
        deal.demand_id = await self.demand.subscribe_demand(wanted, f"(mark={mark})")
        (found,) = await self.demand.collect_demand_events(deal.demand_id)
        await self.demand.counter_as_requestor(deal.demand_id, found.proposal.proposal_id, wanted, f"(mark={mark})")
        (theirs,) = await self.offer.collect_offer_events(deal.offer_id)
        await self.offer.counter_as_provider(deal.offer_id, theirs.proposal.proposal_id, offered, "()")
        (final,) = await self.demand.collect_demand_events(deal.demand_id)
        deal.proposals = {"demand": final.proposal.proposal_id, "offer": theirs.proposal.proposal_id}
        deal.agreement_id = await self.demand.create_agreement(final.proposal.proposal_id, ends)
        await self.demand.confirm(deal.agreement_id)
        (asked,) = await self.offer.collect_offer_events(deal.offer_id)
        await self.offer.approve(asked.agreement.agreement_id)

    async def _work(self, deal: Deal) -> None:
        provider = ProviderActivityApi(self.host)
        after = datetime.now(UTC) - timedelta(seconds=1)

        async def attend() -> None:
            while True:
                for event in await provider.events(after=after):
                    if event.agreement_id == deal.agreement_id:
                        unit = Unit(self.host, event.activity_id)
                        self.units.append(self._tasks.create_task(unit.serve()))
                        return

        agent = self._tasks.create_task(attend())
        deal.activity_id = await self.activities.create(deal.agreement_id)
        await agent
        deal.batch_id = await self.activities.exec(deal.activity_id, [{"deploy": {}}, {"start": {}}])
        await self.activities.results(deal.activity_id, deal.batch_id)

    async def _bill(self, deal: Deal) -> None:
        note = {"activityId": deal.activity_id, "totalAmountDue": "0", "usageCounterVector": [0.0, 0.0]}
        due = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        invoice = {"agreementId": deal.agreement_id, "amount": "0", "paymentDueDate": due}
        deal.note_id = (await self.host.call("POST", f"{PAYMENT}/debitNotes", json=note))["debitNoteId"]
        deal.invoice_id = (await self.host.call("POST", f"{PAYMENT}/invoices", json=invoice))["invoiceId"]
        for noun, document in (("debitNotes", deal.note_id), ("invoices", deal.invoice_id)):
            await self.host.call("POST", f"{PAYMENT}/{noun}/{document}/send")


class Complaints(logging.Handler):
    """What the program logged as an error, in this process: a node that answers 500 says so here as well."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info and record.exc_info[0] is not None:
            text += f" ({record.exc_info[0].__name__}: {record.exc_info[1]})"
        self.said.append(f"{record.name}: {text}")


@pytest.fixture(autouse=True)
def complaints() -> Iterator[Complaints]:
    """No test of the door may make the node log an error."""
    heard = Complaints()
    logging.getLogger().addHandler(heard)
    yield heard
    logging.getLogger().removeHandler(heard)
    assert heard.said == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Two nodes for the whole suite."""
    loopback, root = Loopback(), tmp_path_factory.mktemp("nodes")
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())
        )
        doors: list[Door] = []
        for name in ("bob", "alice"):
            key = secrets.token_hex(16)
            bootstrap = tuple(door.node.peers.address() for door in doors)
            config = NodeConfig(data_dir=root / name, api_port=0, app_key=key, name=name, bootstrap=bootstrap)
            node = await stack.enter_async_context(Node(config, transport=loopback.transport))
            doors.append(Door(node, key, session))
        bob, alice = doors
        await until(alice.node.peers.connected)
        clients = [await stack.enter_async_context(ApiClient(d.node.api_url, d.key)) for d in (alice, bob)]
        async with asyncio.TaskGroup() as tasks:
            made = World(alice, bob, (clients[0], clients[1]), tasks)
            yield made
            for unit in made.units:
                unit.cancel()


async def until(condition: Callable[[], object], within_s: float = 5.0) -> None:
    """Wait for a condition under a deadline."""
    async with asyncio.timeout(within_s):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def assert_shaped(answer: Answer, call: object = "") -> None:
    """Whatever was asked: no 500, and a refusal says in JSON what was wrong."""
    shown = f"{call} {answer.status} {answer.content_type} {answer.body[:300]!r}"
    assert answer.status < 500 or answer.status in (501, 504), shown
    if answer.status >= 400 and answer.status not in (401, 416):  # these two say it in HTTP's own words
        assert answer.content_type in ("application/json", "application/problem+json"), shown
        told = answer.json
        assert isinstance(told["message"], str), shown
        assert told["message"], shown
        assert re.fullmatch(r"[a-z][a-z0-9_]*", told["code"]), shown


@pytest_asyncio.fixture(
    scope="session",
    loop_scope="session",
    params=["ours", pytest.param("original", marks=pytest.mark.interop)],
)
async def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Network]:
    """Two nodes of ours, then of the original daemon, for all conformance tests."""
    if request.param == "ours":
        async with ours(tmp_path_factory.mktemp("conformance")) as found:
            yield found
        return
    if reason := original_is_missing():
        pytest.skip(reason)
    async with original() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def talk(network: Network) -> AsyncIterator[Conversation]:
    """A conversation; what it found wrong is said at the end of the test, all of it."""
    conversation = Conversation(network)
    yield conversation
    await conversation.clear()
    assert not conversation.wrong, "\n".join(["", *conversation.wrong])

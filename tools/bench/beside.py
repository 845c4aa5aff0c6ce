"""The market of our nodes beside that of the original daemon: the same calls by the same client, in one run, two nodes each.

Ours start without an agent and without a chain, as the original's do, and are allowed as many offers as are measured; what
is compared is what both have. Every offer matches the demand that looks for it, which is the dearest case for a node that
matches before it is asked.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp

from shem.testing.devnet import Devnet
from shem.testing.original import OriginalNetwork

YAGNA = Path(".interop/golem-node/bin/yagna")
"""From the repository's root."""
CONNECTIONS = 16
CALLS = 20_000
LATENCIES = 3_000
PUBLISHED = 4_000
MARKETS = (100, 1_000, 10_000)
LOOKS = 7
DEALS = 5
SPREAD_S = 300.0
MARKET = "/market-api/v1"
PLATFORM = "erc20-holesky-tglm"


@dataclass(frozen=True)
class Place:
    """A node's REST."""

    api_url: str
    app_key: str


@dataclass(frozen=True)
class Pair:
    """Two nodes that hear of each other's offers."""

    requestor: Place
    provider: Place


class Api:
    """The client of the measurements: a plain session, as any program has it."""

    def __init__(self, place: Place, session: aiohttp.ClientSession) -> None:
        self._url = place.api_url
        self._session = session
        self._headers = {"Authorization": f"Bearer {place.app_key}"}

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The answer's JSON; what is no success is an error of the measurement."""
        data = None if body is None else json.dumps(body)
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        async with self._session.request(method, self._url + path, data=data, headers=headers) as answer:
            raw = await answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{method} {path}: {answer.status} {raw[:300]!r}")
            return json.loads(raw) if raw else None


@asynccontextmanager
async def opened(pair: Pair) -> AsyncIterator[tuple[Api, Api]]:
    """Callers of the requestor and the provider."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120)) as session:
        yield Api(pair.requestor, session), Api(pair.provider, session)


@asynccontextmanager
async def ours(root: Path) -> AsyncIterator[Pair]:
    """Two of our nodes."""
    net = Devnet(root, providers=1, chain=False)
    nodes = [net.requestor, net.providers[0]]
    try:
        for node in nodes:
            node.data_dir.mkdir(parents=True)
            (node.data_dir / "config.toml").write_text(f"max_offers_each = {2 * MARKETS[-1]}\n")
            await net.start_node(node)
        yield Pair(*(Place(node.api_url, node.app_key) for node in nodes))
    finally:
        await net.stop()


@asynccontextmanager
async def theirs() -> AsyncIterator[Pair]:
    """Two original daemons; they spread offers at once instead of after some seconds, which is not what is measured."""
    async with OriginalNetwork(YAGNA.absolute(), quick=True) as net:
        yield Pair(*(Place(node.api_url, node.app_key) for node in (net.requestor, net.provider)))


async def beside(root: Path) -> dict[str, Any]:
    """Measure both, by turns, so that whatever else this machine does meets both; ``{"skipped": why}`` where there is no
    original."""
    if not YAGNA.exists():
        return {"skipped": f"{YAGNA} is not installed (make interop installs it)"}
    found: dict[str, dict[str, list[float]]] = {}
    async with (
        theirs() as original,
        ours(root / "beside") as own,
        opened(original) as their_apis,
        opened(own) as our_apis,
    ):
        for measure, rounds in ((_me, 3), (_deals, 3), (_publishing, 3), (_looking, 1)):
            for _ in range(rounds):
                for side, apis in (("original", their_apis), ("ours", our_apis)):
                    for name, value in (await measure(*apis)).items():
                        found.setdefault(name, {}).setdefault(side, []).append(value)
    table = {name: {side: statistics.median(values) for side, values in sides.items()} for name, sides in found.items()}
    return {
        name: {**sides, "times_better": _better(name, sides["original"], sides["ours"])}
        for name, sides in table.items()
    }


def _better(name: str, original: float, own: float) -> float:
    ratio = own / original if name.endswith("_per_s") else original / own
    return round(ratio, 2)


async def _me(api: Api, _: Api) -> dict[str, float]:
    async def ask() -> None:
        await api.call("GET", "/me")

    for _warm_up in range(LATENCIES // 10):
        await ask()
    times = [await _timed(ask) for _ in range(LATENCIES)]
    rate = await _rate((ask for _ in range(CALLS)), CALLS)
    return {"me_p50_ms": round(1000 * statistics.median(times), 3), "me_16_connections_per_s": round(rate)}


async def _timed(work: Callable[[], Awaitable[Any]]) -> float:
    begun = time.perf_counter()
    await work()
    return time.perf_counter() - begun


async def _rate(calls: Any, count: int) -> float:
    """Calls per second, sixteen at a time."""
    todo = iter(calls)

    async def work() -> None:
        for call in todo:
            await call()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())
    return count / (time.perf_counter() - begun)


_number = itertools.count()


def _offer(mark: str) -> dict[str, Any]:
    """As a provider's agent writes it."""
    now_ms = int(time.time() * 1000)
    return {
        "properties": {
            "golem.inf.cpu.architecture": "x86_64",
            "golem.inf.cpu.cores": 4,
            "golem.inf.cpu.threads": 8,
            "golem.inf.cpu.capabilities": ["sse4_2", "avx", "avx2", "aes"],
            "golem.inf.mem.gib": 16.0,
            "golem.inf.storage.gib": 100.0,
            "golem.runtime.name": "vm",
            "golem.runtime.version": "0.4.0",
            "golem.runtime.capabilities": ["inet", "vpn", "manifest-support", "start-entrypoint"],
            "golem.node.id.name": f"{mark}-{next(_number)}",
            "golem.node.debug.subnet": mark,
            "golem.srv.caps.multi-activity": True,
            "golem.com.scheme": "payu",
            "golem.com.scheme.payu.debit-note.interval-sec?": 120,
            "golem.com.scheme.payu.payment-timeout-sec?": 120,
            "golem.com.payment.debit-notes.accept-timeout?": 240,
            f"golem.com.payment.platform.{PLATFORM}.address": "0x" + "ab" * 20,
            "golem.com.payment.protocol.version": 3,
            "golem.com.pricing.model": "linear",
            "golem.com.pricing.model.linear.coeffs": [0.0001, 0.00005, 0.0],
            "golem.com.usage.vector": ["golem.usage.duration_sec", "golem.usage.cpu_sec"],
        },
        "constraints": f"(&(golem.srv.comp.expiration>{now_ms})(golem.node.debug.subnet={mark}))",
    }


def _demand(mark: str) -> dict[str, Any]:
    """As a requestor's program writes it."""
    end = datetime.now(UTC) + timedelta(hours=1)
    return {
        "properties": {
            "golem.srv.comp.expiration": int(end.timestamp() * 1000),
            "golem.node.debug.subnet": mark,
            "golem.srv.comp.task_package": "hash:sha3:" + "0" * 56 + ":http://127.0.0.1/image.gvmi",
            "golem.srv.comp.vm.package_format": "gvmkit-squash",
            "golem.com.payment.chosen-platform": PLATFORM,
        },
        "constraints": f"(&(golem.node.debug.subnet={mark})(golem.runtime.name=vm)(golem.inf.mem.gib>=0.5)"
        "(golem.inf.cpu.threads>=1)(golem.inf.storage.gib>=2)(golem.com.pricing.model=linear))",
    }


async def _publishing(_: Api, provider: Api) -> dict[str, float]:
    """Offers into a market that is empty at first; they are withdrawn afterwards."""
    made: list[str] = []

    async def publish() -> None:
        made.append(await provider.call("POST", f"{MARKET}/offers", _offer("published")))

    rate = await _rate((publish for _ in range(PUBLISHED)), PUBLISHED)
    await _withdraw(provider, made)
    return {"offers_published_per_s": round(rate)}


async def _withdraw(provider: Api, offers: list[str]) -> None:
    await _rate((lambda o=o: provider.call("DELETE", f"{MARKET}/offers/{o}") for o in offers), len(offers))


async def _looking(requestor: Api, provider: Api) -> dict[str, float]:
    """From the call that publishes a demand to its first proposal, among more and more offers of the other node."""
    mark = "market"
    scan = await requestor.call(
        "POST", f"{MARKET}/scan", {"type": "offer", "constraints": f"(golem.node.debug.subnet={mark})"}
    )
    found: dict[str, float] = {}
    known = failed = 0
    for size in MARKETS:
        known = await _filled(requestor, provider, scan, mark, known, size)
        times: list[float] = []
        while len(times) < LOOKS:
            try:
                times.append(await _first_proposal(requestor, mark))
            except RuntimeError as error:  # the original answers 500 now and then among many offers
                failed += 1
                print(f"a look among {size} offers failed: {error}", file=sys.stderr)
                if failed > LOOKS:
                    raise
        found[f"first_proposal_of_{size}_offers_ms"] = round(1000 * statistics.median(times), 2)
    await requestor.call("DELETE", f"{MARKET}/scan/{scan}")
    return found


async def _filled(requestor: Api, provider: Api, scan: str, mark: str, known: int, size: int) -> int:
    """Publish until the requestor's node knows so many offers; how many it knows. News may be lost on the way there (the
    original drops some when much comes at once), so what does not arrive is published again, as other offers."""
    async with asyncio.timeout(SPREAD_S):
        while known < size:
            step = min(size - known, 500)
            publish = (lambda: provider.call("POST", f"{MARKET}/offers", _offer(mark)) for _ in range(step))
            await _rate(publish, step)
            wanted = known + step
            while known < wanted:
                heard = await requestor.call("GET", f"{MARKET}/scan/{scan}/events?timeout=3&maxEvents=100")
                if not heard:
                    break
                known += len(heard)
    return known


async def _first_proposal(requestor: Api, mark: str) -> float:
    body = _demand(mark)
    begun = time.perf_counter()
    demand = await requestor.call("POST", f"{MARKET}/demands", body)
    events = await requestor.call("GET", f"{MARKET}/demands/{demand}/events?timeout=30&maxEvents=5")
    took = time.perf_counter() - begun
    if not events:
        raise RuntimeError("a demand met no offer")
    await requestor.call("DELETE", f"{MARKET}/demands/{demand}")
    return took


async def _deals(requestor: Api, provider: Api) -> dict[str, float]:
    """From the requestor's counter to the approved agreement, with a provider that says yes to everything."""
    times = []
    for number in range(DEALS):
        mark = f"deal-{number}"
        offer = await provider.call("POST", f"{MARKET}/offers", _offer(mark))
        body = _demand(mark)
        demand = await requestor.call("POST", f"{MARKET}/demands", body)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(_provide(provider, offer))
            times.append(await _agree(requestor, demand, body))
        await requestor.call("DELETE", f"{MARKET}/demands/{demand}")
        await provider.call("DELETE", f"{MARKET}/offers/{offer}")
    return {"counter_to_agreement_p50_ms": round(1000 * statistics.median(times), 1)}


async def _provide(provider: Api, offer: str) -> None:
    """One deal: counter what comes, approve what is agreed."""
    while True:
        for event in await provider.call("GET", f"{MARKET}/offers/{offer}/events?timeout=20&maxEvents=5"):
            if event["eventType"] == "ProposalEvent":
                proposal = event["proposal"]["proposalId"]
                await provider.call("POST", f"{MARKET}/offers/{offer}/proposals/{proposal}", _offer(_mark_of(event)))
            elif event["eventType"] == "AgreementEvent":
                agreement = event["agreement"]["agreementId"]
                await provider.call("POST", f"{MARKET}/agreements/{agreement}/approve?timeout=20")
                return


def _mark_of(event: dict[str, Any]) -> str:
    mark: str = event["proposal"]["properties"]["golem.node.debug.subnet"]
    return mark


async def _agree(requestor: Api, demand: str, body: dict[str, Any]) -> float:
    initial = await _proposal(requestor, demand, "Initial")
    begun = time.perf_counter()
    await requestor.call("POST", f"{MARKET}/demands/{demand}/proposals/{initial}", body)
    draft = await _proposal(requestor, demand, "Draft")
    valid_to = (datetime.now(UTC) + timedelta(minutes=30)).isoformat().replace("+00:00", "Z")
    agreement = await requestor.call("POST", f"{MARKET}/agreements", {"proposalId": draft, "validTo": valid_to})
    await requestor.call("POST", f"{MARKET}/agreements/{agreement}/confirm")
    await requestor.call("POST", f"{MARKET}/agreements/{agreement}/wait?timeout=20")
    took = time.perf_counter() - begun
    await requestor.call("POST", f"{MARKET}/agreements/{agreement}/terminate", {"message": "measured"})
    return took


async def _proposal(requestor: Api, demand: str, state: str) -> str:
    while True:
        for event in await requestor.call("GET", f"{MARKET}/demands/{demand}/events?timeout=20&maxEvents=5"):
            if event["eventType"] == "ProposalEvent" and event["proposal"]["state"] == state:
                found: str = event["proposal"]["proposalId"]
                return found

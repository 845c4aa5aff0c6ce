"""Debit notes between two node processes by REST, on both platforms that move money; and the wait for cover.

A note's way: the provider's program issues and sends it, the requestor's hears of it and accepts it, and the provider's hears
that it was accepted. Each activity bills again as soon as that is so. All programs are one process here, which takes its
share of the machine: nodes with programs of their own do better.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from shem.testing.devnet import Devnet
from tools.bench.beside import Api, Pair, Place, opened
from tools.bench.dealing import PAYMENT, Agent, Bill, Deal, end_deal, make_deal

PLATFORMS = {"channel": "channel-devnet-tglm", "transfer": "erc20-devnet-tglm"}
ACTIVITIES = 32
NOTES = 3_200
PROVIDERS = 5
WAIT_S = 120.0


async def billing(root: Path) -> dict[str, dict[str, float]]:
    """Notes per second, from issuing to hearing of the acceptance; and the first activity after an approval: with a channel
    to open, with one that is open, and where nothing is reserved."""
    net = Devnet(root, providers=PROVIDERS)
    notes: dict[str, float] = {}
    waits: dict[str, list[float]] = {"opening_channel": [], "open_channel": [], "transfer": []}
    try:
        await net.start_chain()
        await net.start_node(net.requestor)
        await net.rpc("shem_fund", net.requestor.node_id, hex(10**20), hex(10**21))
        for node in net.providers:
            await net.start_node(node)
            places = (Place(n.api_url, n.app_key) for n in (net.requestor, node))
            async with opened(Pair(*places)) as apis:
                pair = Agent(apis[0], net.requestor.node_id), Agent(apis[1], node.node_id)
                for name, took in zip(waits, await _first_activities(*pair), strict=True):
                    waits[name].append(took)
                if node is net.providers[0]:
                    for name, platform in PLATFORMS.items():
                        notes |= {f"{name}_{key}": value for key, value in (await _notes(*pair, platform)).items()}
    finally:
        await net.stop()
    medians = {f"{name}_p50_s": round(statistics.median(times), 3) for name, times in waits.items()}
    return {"notes accepted": notes, "first activity": {**medians, "samples": PROVIDERS}}


async def _first_activities(requestor: Agent, provider: Agent) -> list[float]:
    """Three deals, the first two through one channel."""
    deals = [await make_deal(requestor, provider, PLATFORMS[name], 1) for name in ("channel", "channel", "transfer")]
    for deal in deals:
        await end_deal(requestor, deal)
    return [deal.first_activity_s for deal in deals]


async def _notes(requestor: Agent, provider: Agent, platform: str) -> dict[str, float]:
    deal = await make_deal(requestor, provider, platform, ACTIVITIES)
    accepted: dict[str, asyncio.Event] = {}
    times: list[float] = []
    begun = time.perf_counter()
    async with asyncio.timeout(WAIT_S), asyncio.TaskGroup() as group:
        agents = [
            group.create_task(_requestor_agent(requestor.api, deal)),
            group.create_task(_provider_agent(provider.api, accepted)),
        ]
        async with asyncio.TaskGroup() as bills:
            for activity in deal.activities:
                bills.create_task(_bill(Bill(activity), provider, accepted, times))
        took = time.perf_counter() - begun
        for agent in agents:
            agent.cancel()
    await end_deal(requestor, deal)
    return {
        "per_s": round(len(times) / took),
        "p50_ms": round(1000 * statistics.median(times), 1),
    }


async def _bill(bill: Bill, provider: Agent, accepted: dict[str, asyncio.Event], times: list[float]) -> None:
    for _ in range(NOTES // ACTIVITIES):
        begun = time.perf_counter()
        note = await bill.issue(provider)
        await accepted.setdefault(note.document_id, asyncio.Event()).wait()
        del accepted[note.document_id]
        times.append(time.perf_counter() - begun)


async def _requestor_agent(api: Api, deal: Deal) -> None:
    """Accept whatever comes."""

    async def accept(note_id: str) -> None:
        note = await api.call("GET", f"{PAYMENT}/debitNotes/{note_id}")
        body = {"totalAmountAccepted": note["totalAmountDue"], "allocationId": deal.allocation}
        await api.call("POST", f"{PAYMENT}/debitNotes/{note_id}/accept?timeout=20", body)

    async with asyncio.TaskGroup() as group:
        async for event in _events(api, "DebitNoteReceivedEvent"):
            group.create_task(accept(event["debitNoteId"]))


async def _provider_agent(api: Api, accepted: dict[str, asyncio.Event]) -> None:
    async for event in _events(api, "DebitNoteAcceptedEvent"):
        accepted.setdefault(event["debitNoteId"], asyncio.Event()).set()


async def _events(api: Api, wanted: str) -> Any:
    after = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    while True:
        path = f"{PAYMENT}/debitNoteEvents?timeout=20&maxEvents=100&afterTimestamp={after}"
        for event in await api.call("GET", path):
            after = event["eventDate"]
            if event["eventType"] == wanted:
                yield event

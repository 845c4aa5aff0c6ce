"""``python -m tools.bench.vouchers``: vouchers signed, sent, verified and stored per second; a JSON line.

What bounds it is the processor: signing and checking (which are measured alone, too), and then the rows of an acceptance.
The disk would, if each had a commit of its own; those that come together share one.

The payer's node lives in this process, which accepts notes as its REST door does, many callers at a time; the payee's is a
process of its own. Both are whole nodes on real QUIC, with the cover in a vault of a real chain.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shem.node.app import Node, main
from shem.node.config import load_config
from shem.node.identity.signing import document_digest, recover, verify
from shem.terms.amounts import parse_amount
from shem.testing.devnet import Devnet, DevNode
from shem.wire.payment import Acceptance
from tools.bench.beside import Api, Pair, Place, opened
from tools.bench.dealing import Agent, Bill, Deal, Note, end_deal, make_deal

PLATFORM = "channel-devnet-tglm"
CALLERS = 64
ACTIVITIES = 16
BARE = 2_000
WAIT_S = 120.0


async def measure(root: Path, count: int) -> dict[str, float]:
    """See the module."""
    net = Devnet(root, providers=0)
    payee, payer = net.requestor, DevNode("payer", root / "payer")
    try:
        await net.start_chain()
        payer.data_dir.mkdir(parents=True)
        await net.start_node(payee)
        (payer.data_dir / "config.toml").write_text((payee.data_dir / "config.toml").read_text())
        config = load_config(
            payer.data_dir,
            {"api_port": 0, "peer_bind": "127.0.0.1:0", "bootstrap": (payee.address,), "app_key": payer.app_key},
        )
        async with Node(config) as node:
            payer.api_url, payer.node_id = node.api_url, node.identity.node_id
            for funded in (payee, payer):
                await net.rpc("shem_fund", funded.node_id, hex(10**20), hex(10**21))
            pair = Pair(Place(payer.api_url, payer.app_key), Place(payee.api_url, payee.app_key))
            async with opened(pair) as apis:
                return await _through(node, apis, payer, payee, count)
    finally:
        await net.stop()


async def _through(node: Node, apis: tuple[Api, Api], payer: DevNode, payee: DevNode, count: int) -> dict[str, float]:
    requestor, provider = Agent(apis[0], payer.node_id), Agent(apis[1], payee.node_id)
    deal = await make_deal(requestor, provider, PLATFORM, ACTIVITIES)
    bills = [Bill(activity) for activity in deal.activities]
    series = await asyncio.gather(*(_bills(bill, provider, count) for bill in bills))
    notes = [note for turn in zip(*series, strict=True) for note in turn]  # as they come: of all activities in turn
    half = len(notes) // 2
    result = await _both(node, deal, payee, notes[:half]) | await _each(node, deal, payee, notes[half:])
    [held] = await apis[1].call("GET", "/shem-api/v1/payment/channels")
    owed = sum(parse_amount(note.amount) for note in {note.activity: note for note in notes}.values())
    if parse_amount(held["signed"]) != owed:
        raise RuntimeError(f"the payee holds a voucher for {held['signed']}, and {owed} base units were accepted")
    await end_deal(requestor, deal)
    return {"vouchers": len(notes), **result, **_bare(node)}


async def _both(node: Node, deal: Deal, payee: DevNode, notes: list[Note]) -> dict[str, float]:
    """Signed, sent, verified and stored, both nodes at work at once."""
    before, used, begun = _cpu_s(payee), time.process_time(), time.perf_counter()
    await _accept_all(node, deal, notes)
    await _delivered(node, payee, notes)
    took = time.perf_counter() - begun
    return {
        "both_at_once_per_s": round(len(notes) / took),
        "payer_cpu_us": round(1e6 * (time.process_time() - used) / len(notes)),
        "payee_cpu_us": round(1e6 * (_cpu_s(payee) - before) / len(notes)),
    }


async def _each(node: Node, deal: Deal, payee: DevNode, notes: list[Note]) -> dict[str, float]:
    """The payer signs and stores while no letter leaves; then the payee verifies and stores."""
    books = node.payments.books
    carry, books.wake_peer = books.wake_peer, lambda peer: None
    begun = time.perf_counter()
    await _accept_all(node, deal, notes)
    signed = time.perf_counter()
    books.wake_peer = carry
    carry(payee.node_id)
    await _delivered(node, payee, notes)
    taken = time.perf_counter()
    return {
        "payer_alone_per_s": round(len(notes) / (signed - begun)),
        "payee_alone_per_s": round(len(notes) / (taken - signed)),
    }


def _bare(node: Node) -> dict[str, float]:
    """What one voucher asks for at the least: the payer's two signatures, the payee's two checks; and a commit each, were
    they not shared."""
    me, payload = node.identity, bytes(500)
    digest = document_digest("bench", payload)
    signature = me.sign("bench", payload)

    def sign() -> None:
        me.sign("bench", payload)
        me.sign_digest(digest)

    def check() -> None:
        verify("bench", payload, signature, me.node_id)
        recover(digest, signature)

    def commit() -> None:
        with node.db.transaction(durable=True) as connection:
            connection.execute("insert or replace into schema_version values ('bench', 1)")

    try:
        rates = {"signatures_alone": sign, "checks_alone": check, "commits_of_one": commit}
        return {f"{name}_per_s": round(BARE / _took_s(work)) for name, work in rates.items()}
    finally:
        node.db.connection.execute("delete from schema_version where domain = 'bench'")


def _took_s(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    for _ in range(BARE):
        work()
    return time.perf_counter() - begun


async def _accept_all(node: Node, deal: Deal, notes: list[Note]) -> None:
    waiting = iter(notes)
    async with asyncio.TaskGroup() as group:
        for _ in range(CALLERS):
            group.create_task(_accept(node, deal, waiting))


async def _delivered(node: Node, payee: DevNode, notes: list[Note]) -> None:
    books, owner = node.payments.books, node.identity.node_id
    done = await books.pulses.wait_for(
        (owner, notes[-1].document_id), lambda: not books.store.letters(payee.node_id, 1), WAIT_S
    )
    if not done:
        raise TimeoutError(f"letters were not delivered in {WAIT_S:g} s")


async def _bills(bill: Bill, provider: Agent, count: int) -> list[Note]:
    return [await bill.issue(provider) for _ in range(count // ACTIVITIES)]


async def _accept(node: Node, deal: Deal, notes: Iterator[Note]) -> None:
    for note in notes:
        body = Acceptance(total_amount_accepted=note.amount, allocation_id=deal.allocation)
        await node.payments.accept(node.identity.node_id, "debit-note", note.document_id, body)


def _cpu_s(node: DevNode) -> float:
    """What a node has used of processors."""
    assert node.node is not None
    fields = Path(f"/proc/{node.node.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _main(root: Path, count: int) -> None:
    print(json.dumps(await measure(root, count)), flush=True)


def _options() -> Any:
    parser = argparse.ArgumentParser(prog="vouchers", description=__doc__)
    parser.add_argument("root", type=Path, help="an empty directory")
    parser.add_argument("--count", type=int, default=6400)
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    logging.basicConfig(level=logging.WARNING)
    main(_main(options.root, options.count))

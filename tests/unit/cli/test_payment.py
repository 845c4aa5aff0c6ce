"""What ``shem payment`` shows people fits a terminal of 80 columns, and no address, hash or sum is broken or cut."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from aiohttp import web

from tests.e2e.test_cli_alone import Done, shem

ME, PEER, CHANNEL, TX = ("0x" + digit * length for digit, length in (("a", 40), ("b", 40), ("c", 64), ("d", 64)))
SUM = "1006.623456789012345678"
NONE = {"agreementsCount": 0, "totalAmount": "0"}
FLOW = {"requested": NONE, "accepted": NONE, "confirmed": NONE}
PLATFORM = {
    "driver": "erc20",
    "network": "devnet",
    "token": "tGLM",
    "address": ME,
    "reserved": "0",
    "incoming": FLOW,
    "outgoing": FLOW,
    "allocated": "0",
    "owed": "0",
    "paid": "0",
    "amount": "0",
    "error": "http://127.0.0.1:8545: no answer within 5 s",
    "errorCode": "chain_unreachable",
    "errorHint": "payments wait",
}
SAID: dict[str, Any] = {
    "/shem-api/v1/payment/status": [
        PLATFORM | {"platform": "erc20-devnet-tglm"},
        PLATFORM | {"platform": "erc20-holesky-tglm", "network": "holesky", "aliasOf": "erc20-devnet-tglm"},
    ],
    "/payment-api/v1/payments/status": [
        {"kind": "TxStuck", "code": "wrong_vault", "message": "it is not our vault"},
        {"kind": "RpcError", "message": "nobody answers"},
    ],
    "/shem-api/v1/payment/channels": [
        {
            "channelId": CHANNEL,
            "platform": "channel-holesky-tglm",
            "role": "Provider",
            "peer": PEER,
            "payer": PEER,
            "payee": ME,
            "signer": PEER,
            "nonce": 0,
            "vault": ME,
            "reserved": SUM,
            "claimed": SUM,
            "signed": SUM,
            "validUntil": "2026-11-30T22:15:39Z",
            "openedTx": TX,
            "state": state,
            "agreements": agreements,
        }
        for state, agreements in (("open", ["x"]), ("closing", []), ("open", ["x", "y"]))
    ],
    "/shem-api/v1/payment/transactions": [
        {
            "id": "1",
            "kind": "close",
            "platform": "channel-holesky-tglm",
            "state": "final",
            "amount": SUM,
            "txHash": TX,
            "block": 19_999_999,
            "gasUsed": 1_146_650,
            "at": "2026-11-30T19:48:33.681299Z",
            "entries": 10,
            "detail": "",
            "receiver": PEER,
        }
    ],
    "/shem-api/v1/payment/received": [],
}


@pytest_asyncio.fixture
async def node() -> AsyncIterator[str]:
    """Says what a node said in a life with large sums, whatever it is asked."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=json.dumps(SAID[request.path]), content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def show(node: str, *argv: str) -> Done:
    done = await shem("payment", *argv, YAGNA_API_URL=node, YAGNA_APPKEY="k" * 32)
    assert (done.status, done.err) == (0, "")
    assert max(len(line) for line in done.out.splitlines()) <= 80, done.out
    return done


async def test_the_status_names_its_account_in_one_piece(node: str) -> None:
    """Also where the table is narrow, since an endpoint does not answer; and one trouble is told once."""
    done = await show(node, "status")
    assert done.out.startswith(f"devnet, tGLM, {ME}\n")
    assert re.findall(r"(\S+): http://127.0.0.1:8545: no answer", done.out) == ["erc20-devnet-tglm"]
    assert " ".join(done.out.split()).count("within 5 s (chain_unreachable) — payments wait") == 1
    assert "wrong_vault: it is not our vault" in done.out
    assert "RpcError: nobody answers" in done.out


async def test_channels_fit(node: str) -> None:
    done = await show(node, "channels")
    assert done.out.count(PEER) == done.out.count(CHANNEL) == 3
    assert done.out.count(SUM) == 9
    assert "    1 agreement goes on\n" in done.out
    assert "    2 agreements go on\n" in done.out


async def test_the_history_fits(node: str) -> None:
    done = await show(node, "history")
    for word in (SUM, "close (10)", TX, f"to {PEER}", "channel-holesky-tglm  block 19999999  gas 1146650"):
        assert word in done.out

"""``/shem-api/v1/payment/cover``: ours, for provider agents, which stop working before their bills exceed it."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from shem.node.payment.channel_cover import CoverNow, Gate
from shem.node.rest.server import caller, names, query_seconds, respond
from shem.terms.amounts import format_amount
from shem.wire import cover as wire

ROOT = "/shem-api/v1/payment/cover"
MAX_VERSION = 200


def routes(gate: Gate) -> list[web.RouteDef]:
    """One long poll for each agreement."""

    async def cover(request: web.Request) -> web.Response:
        version = request.query.get("after", "")[:MAX_VERSION]
        found = await gate.changed(
            caller(request), names(request)["id"], version, query_seconds(request) if version else 0.0
        )
        return respond(_view(found))

    return [web.get(f"{ROOT}/{{id}}", cover)]


def _view(now: CoverNow) -> wire.Cover:
    view = wire.Cover(
        agreement_id=now.agreement_id,
        platform=now.platform,
        by_channel=now.by_channel,
        finality_sec=now.finality_s,
        version=now.version,
    )
    if now.by_channel:
        view.started, view.lacks = now.started, now.lacks or None
        view.expected_until = datetime.fromtimestamp(now.expected_until, UTC)
        view.wanted, view.least = format_amount(now.wanted), format_amount(now.least)
        view.accepted, view.room = format_amount(now.accepted), format_amount(now.room)
        view.credit = format_amount(now.credit)
        view.until = datetime.fromtimestamp(now.until, UTC) if now.until else None
    return view

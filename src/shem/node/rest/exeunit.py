"""The WebSocket between an exe unit and its node (shapes and rules in :mod:`shem.wire.exeunit`).

Reading and storing are two tasks: whatever has arrived by the time the storing task runs goes into one transaction. The
socket's own flow control bounds what can arrive meanwhile.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import WSMsgType, web

from shem.errors import Refused
from shem.node.activity.hosting import Hosting
from shem.node.activity.service import Activities
from shem.node.activity.unit import UnitSession
from shem.node.rest.server import caller, names
from shem.wire.base import encode
from shem.wire.exeunit import MAX_FRAME_BYTES, PATH, Hello, Report, parse_report

log = logging.getLogger(__name__)

_HELLO_S = 10.0
_HEARTBEAT_S = 10.0
_CLOSE_S = 2.0


def routes(activities: Activities) -> list[web.RouteDef]:
    """``GET /shem-api/v1/exeunit/{activity_id}``."""
    hosting = activities.hosting

    async def connect(request: web.Request) -> web.StreamResponse:
        owner, activity_id = caller(request), names(request)["activity_id"]
        hosting.check_unit(owner, activity_id)
        line = web.WebSocketResponse(heartbeat=_HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES, timeout=_CLOSE_S)
        await line.prepare(request)
        session: UnitSession | None = None
        try:
            hello = await _hello(line)
            session = hosting.attach(owner, activity_id, hello)
            await _talk(line, hosting, session)
        except* (Refused, TimeoutError) as errors:
            reason = str(errors.exceptions[0])
            log.warning("activity %s: its exe unit is sent away: %s", activity_id, reason)
            await line.close(code=1008, message=reason.encode()[:120])
        except* ConnectionError:
            log.debug("activity %s: the line to its exe unit broke", activity_id)
        finally:
            if session is not None:
                hosting.detach(session)
        return line

    return [web.get(PATH, connect)]


async def _hello(line: web.WebSocketResponse) -> Hello:
    async with asyncio.timeout(_HELLO_S):
        message = await line.receive()
    if message.type is not WSMsgType.TEXT:
        raise Refused("an exe unit begins with Hello", code="bad_frame")
    hello = parse_report(message.data)
    if not isinstance(hello, Hello):
        raise Refused("an exe unit begins with Hello", code="bad_frame")
    return hello


async def _talk(line: web.WebSocketResponse, hosting: Hosting, session: UnitSession) -> None:
    arrived: list[Report] = []
    news = asyncio.Event()

    async def store() -> None:
        while True:
            await news.wait()
            news.clear()
            reports = arrived.copy()
            arrived.clear()
            hosting.take(session, reports)

    async def say() -> None:
        while instructions := await session.next():
            for instruction in instructions:
                await line.send_str(encode(instruction).decode())
        await line.close()

    async with asyncio.TaskGroup() as tasks:
        sides = [tasks.create_task(store(), name="exeunit store"), tasks.create_task(say(), name="exeunit say")]
        async for message in line:
            if message.type is WSMsgType.TEXT:
                arrived.append(parse_report(message.data))
                news.set()
        if arrived:
            hosting.take(session, arrived)
            arrived.clear()
        for side in sides:
            side.cancel()

"""The service bus for agents: binding addresses, the sockets on which programs answer, and calls from here.

Frames from a program are bounded by the socket and read by :mod:`shem.wire.gsb`; what is not a message ends that socket, with
a reason in its close frame, and with it only what was asked on it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from shem.cogs.flexbuffers import MAX_DEPTH, number
from shem.errors import NotFound, Refused
from shem.node.gsb.service import Bus, Line, LineEnded, ServiceFailed
from shem.node.rest.server import caller, names, read_json, respond
from shem.wire.gsb import (
    MAX_FRAME_BYTES,
    PREFIX,
    SUBPROTOCOL,
    Bound,
    Listen,
    ServiceRequest,
    pack_request,
    parse_reply,
)

CLOSE_S = 2.0


def routes(bus: Bus) -> list[web.RouteDef]:
    """Every call of the service bus."""
    api = _Api(bus)
    return [
        web.post(PREFIX, api.bind),
        web.get(f"{PREFIX}/{{id}}", api.connect, allow_head=False),
        web.delete(f"{PREFIX}/{{id}}", api.unbind),
        web.post("/_gsb/{address:.+}", api.call),
    ]


class _Api:
    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def bind(self, request: web.Request) -> web.Response:
        asked = (await read_json(request, ServiceRequest)).listen
        listen = Listen(on=asked.on, components=asked.components)
        id_ = self._bus.bind(caller(request), listen, shared=asked.shared)
        response = respond(Bound(listen=listen, services_id=id_), status=201)
        response.headers["Location"] = f"/{id_}"
        return response

    async def unbind(self, request: web.Request) -> web.Response:
        self._bus.unbind(caller(request), names(request)["id"])
        return respond(None)

    async def connect(self, request: web.Request) -> web.StreamResponse:
        service = self._bus.of(caller(request), names(request)["id"])
        # Without compression: it would cost more than the socket, and clients offer it by themselves. Without pings: a
        # program that hashes what it has received answers none meanwhile; requests have deadlines of their own.
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            compress=False,
            max_msg_size=MAX_FRAME_BYTES,
            timeout=CLOSE_S,
        )
        if not socket.can_prepare(request).ok:
            raise Refused("WebSocket upgrade is expected", code="not_a_websocket")
        line = service.attach()
        try:
            await socket.prepare(request)
            async with asyncio.TaskGroup() as both:
                asking = both.create_task(_ask(socket, line), name="gsb asking")
                await _listen(socket, line)
                asking.cancel()
        except* ConnectionError:
            pass  # it went away while something was sent to it
        finally:
            service.detach(line)
        return socket

    async def call(self, request: web.Request) -> web.Response:
        """Ask a service of this node, in JSON (bytes as base64): ``{"Ok": payload}`` or ``{"Err": {variant: text}}``."""
        address, _, component = f"/{names(request)['address']}".rpartition("/")
        if address.startswith(f"/net/{caller(request)}/"):  # as others would write it
            address = address.replace(f"/net/{caller(request)}", "/public", 1)
        service = self._bus.find(address)
        if service is None or service.owner != caller(request):
            raise NotFound(f"there is no service {address[:200]!r} of yours here", code="no_service")
        payload = _plain(await read_json(request, Any), MAX_DEPTH)
        try:
            answer = {"Ok": await service.request(component, payload)}
        except ServiceFailed as error:
            answer = {"Err": {error.variant: error.text}}
        return respond(answer)


def _plain(value: Any, depth: int) -> Any:
    """JSON as the bus can carry it. Raises ``Refused`` (``bad_payload``)."""
    match value:
        case dict() if depth and all(key.isascii() and "\0" not in key for key in value):
            return {key: _plain(item, depth - 1) for key, item in value.items()}
        case list() if depth:
            return [_plain(item, depth - 1) for item in value]
        case dict() | list():
            raise Refused("the payload is nested too deeply, or has names that are no names", code="bad_payload")
        case bool():
            return value
        case int():
            return number(value)
        case _:
            return value


async def _ask(socket: web.WebSocketResponse, line: Line) -> None:
    try:
        while True:
            await socket.send_bytes(pack_request(await line.next()))
    except LineEnded as end:
        await socket.close(code=end.code, message=end.reason.encode()[:120])


async def _listen(socket: web.WebSocketResponse, line: Line) -> None:
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            await socket.close(code=WSCloseCode.UNSUPPORTED_DATA, message=b"Text msg unsupported.")
            return
        try:
            line.answered(parse_reply(message.data))
        except Refused as error:
            reason = f"Failed to read response. Err: {error.message}"
            await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=reason.encode()[:120])
            return

"""A program's side of the service bus: an address at its node, and the socket on which it answers there.

The socket is opened again whenever it breaks, and the address bound again when the node has forgotten it (it was restarted):
whoever holds a URL of ours need not know. Requests are answered one after the other, in the order in which they come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any

import aiohttp

from shem.client.http import ApiClient, NodeUnreachable, error_of
from shem.cogs.tasks import TaskScope
from shem.errors import NotFound, PeerFailed, Refused, ShemError
from shem.wire.gsb import (
    MAX_FRAME_BYTES,
    PREFIX,
    SUBPROTOCOL,
    Bound,
    Reply,
    Request,
    ServiceRequest,
    SharedListen,
    pack_reply,
    parse_request,
)

log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[Any]]
"""Payload in, payload out. Raises :class:`CannotAnswer`."""

_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 2.0
_HEARTBEAT_S = 60.0


class CannotAnswer(Refused):
    """What a handler raises to answer with an error of this ``variant``."""

    default_code = "cannot_answer"

    def __init__(self, variant: str, text: str) -> None:
        super().__init__(text)
        self.variant = variant


class GsbService:
    """One address, answered by ``handlers`` (one for each component). An async context manager, open while it is entered."""

    def __init__(self, http: ApiClient, on: str, handlers: Mapping[str, Handler], *, shared: bool = False) -> None:
        """``shared``: other programs with the same key may answer at the same address, any of them alike."""
        self._http = http
        self._handlers = handlers
        self._listen = SharedListen(on=on, components=sorted(handlers), shared=shared)
        self._path = ""
        self._scope = TaskScope(f"service {on[:100]}")

    async def __aenter__(self) -> GsbService:
        """Raises ``Refused`` (the address is taken), ``NotAuthenticated``, :class:`NodeUnreachable`."""
        await self._bind()
        try:
            socket = await self._connect()
        except BaseException:
            await self._unbind()
            raise
        self._scope.start(self._serve(socket), "socket")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.close()
        await self._unbind()

    async def _unbind(self) -> None:
        try:
            await self._http.call("DELETE", self._path, timeout_s=5)
        except (ShemError, TimeoutError) as failure:
            log.debug("%s is not unbound: %s", self._listen.on, failure)

    async def _bind(self) -> None:
        bound = await self._http.call("POST", PREFIX, json=ServiceRequest(listen=self._listen), into=Bound)
        self._path = f"{PREFIX}/{bound.services_id}"

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        try:
            return await self._http.session.ws_connect(
                self._http.url(self._path),
                protocols=(SUBPROTOCOL,),
                max_msg_size=MAX_FRAME_BYTES,
                heartbeat=_HEARTBEAT_S,
            )
        except aiohttp.WSServerHandshakeError as error:
            raise error_of(error.status, b"") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NodeUnreachable(f"no socket for {self._listen.on}: {error}") from error

    async def _serve(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            try:
                await self._answer(socket)
            finally:
                await socket.close()
            socket = await self._connect_again()

    async def _connect_again(self) -> aiohttp.ClientWebSocketResponse:
        pause = _FIRST_RETRY_S
        while True:
            await asyncio.sleep(pause)
            try:
                try:
                    return await self._connect()
                except NotFound:
                    await self._bind()
                    return await self._connect()
            except (PeerFailed, Refused, TimeoutError) as error:
                log.debug("%s: no socket: %s", self._listen.on, error)
            pause = min(_LAST_RETRY_S, pause * 2)

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Until the socket ends."""
        try:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    await socket.send_bytes(pack_reply(await self._reply(parse_request(message.data))))
        except Refused as error:
            log.error("%s: the node talks nonsense: %s", self._listen.on, error)
        except (aiohttp.ClientError, ConnectionError) as error:
            log.debug("%s: the socket broke: %s", self._listen.on, error)

    async def _reply(self, request: Request) -> Reply:
        handler = self._handlers.get(request.component)
        if handler is None:
            return Reply(request.id, error=("Unsupported", f"no {request.component[:40]} here"))
        try:
            return Reply(request.id, await handler(request.payload))
        except CannotAnswer as error:
            return Reply(request.id, error=(error.variant, error.message))

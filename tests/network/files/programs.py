"""Programs of users on the service bus, honest and other, that write their frames with the FlexBuffers library."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from flatbuffers import flexbuffers

from shem.client.http import ApiClient

GIVES, TAKES = ["GetMetadata", "GetChunk"], ["UploadChunk", "UploadFinished"]
SERVICES = "/gsb-api/v1/services"


def sha3(content: bytes) -> str:
    return hashlib.sha3_256(content).hexdigest()


class Program:
    """One bound service."""

    def __init__(self, http: ApiClient, name: str, components: list[str]) -> None:
        self.http, self.name, self.components = http, name or secrets.token_hex(10), components
        self.socket: aiohttp.ClientWebSocketResponse
        self.seen: list[dict[str, Any]] = []

    async def bind(self) -> None:
        listen = {"on": f"/public/gftp/{self.name}", "components": self.components}
        self.path = f"{SERVICES}/{(await self.http.call('POST', SERVICES, json={'listen': listen}))['servicesId']}"

    async def connect(self) -> aiohttp.ClientWebSocketResponse:
        self.socket = await self.http.session.ws_connect(
            self.http.url(self.path), protocols=("gsb+flexbuffers",), max_msg_size=0
        )
        return self.socket

    async def asked(self) -> dict[str, Any]:
        """The next request."""
        request = flexbuffers.Loads(await self.socket.receive_bytes())
        self.seen.append({"component": request["component"], **request["payload"]})
        return dict(request)

    async def reply(self, request: dict[str, Any], payload: Any) -> None:
        await self.socket.send_bytes(bytes(flexbuffers.Dumps({"id": request["id"], "payload": payload})))

    async def fail(self, request: dict[str, Any], error: Any) -> None:
        await self.socket.send_bytes(bytes(flexbuffers.Dumps({"id": request["id"], "error": error})))

    async def serve(self, answer: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
        """Answer each request with what ``answer`` makes of it."""
        while True:
            try:
                request = await self.asked()
            except TypeError:
                return  # the socket has ended
            await self.reply(request, await answer(request))


@asynccontextmanager
async def program(
    http: ApiClient, components: list[str], answer: Callable[[Any], Awaitable[Any]] | None = None, *, name: str = ""
) -> AsyncIterator[Program]:
    """A program, bound and connected; it answers by itself when told how."""
    made = Program(http, name, components)
    await made.bind()
    await made.connect()
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(made.serve(answer)) if answer is not None else None
        try:
            yield made
        finally:
            if serving is not None:
                serving.cancel()
            await made.socket.close()


def gives(content: bytes, size: int | None = None) -> Callable[[Any], Awaitable[Any]]:
    """An honest publisher."""

    async def answer(request: Any) -> Any:
        if request["component"] == "GetMetadata":
            return {"fileSize": len(content) if size is None else size}
        offset = request["payload"]["offset"]
        return {"offset": offset, "content": content[offset : offset + request["payload"]["size"]]}

    return answer


class Taker:
    """An honest receiver, that does not look at offsets: it writes what comes as it comes, like some clients do."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.offsets: list[int] = []
        self.hash: str | None = None

    async def __call__(self, request: Any) -> None:
        if request["component"] == "UploadFinished":
            self.hash = request["payload"]["hash"]
        else:
            chunk = request["payload"]["chunk"]
            assert isinstance(chunk["content"], bytes | bytearray)
            self.offsets.append(chunk["offset"])
            self.content += chunk["content"]

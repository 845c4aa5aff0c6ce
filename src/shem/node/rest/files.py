"""The file API: streamed in and out, never held in memory, and never short without being visibly broken."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from shem.errors import NotAllowed, PeerFailed, Refused, ShemError
from shem.node.files.service import Files
from shem.node.rest.server import caller, names, query_seconds, respond
from shem.terms.ids import NodeId, parse_node_id
from shem.wire.files import (
    PREFIX,
    SHA3_HEADER,
    SIZE_HEADER,
    Inbox,
    InboxState,
    Received,
    StoredFile,
    gftp_url,
    parse_file_id,
)

MAX_OFFSET = 1 << 53
_OCTETS = "application/octet-stream"


class UploadBroken(PeerFailed):
    """The agent went away in the middle of an upload."""

    default_code = "upload_broken"


def routes(files: Files) -> list[web.RouteDef]:
    """Every call of the file API."""
    api = _Api(files)
    one = PREFIX + "/{node_id}/{file_id}"
    return [
        web.post(PREFIX, api.publish),
        web.post(f"{PREFIX}/inbox", api.create_inbox),
        web.get(f"{PREFIX}/inbox/{{file_id}}", api.wait_inbox),
        web.get(one, api.get),
        web.put(one, api.put),
        web.delete(one, api.delete),
    ]


class _Api:
    def __init__(self, files: Files) -> None:
        self._files = files

    async def publish(self, request: web.Request) -> web.Response:
        head = await self._files.publish(caller(request), _body(request))
        return respond(
            StoredFile(file_id=head.sha3, url=gftp_url(caller(request), head.sha3), size=head.size), status=201
        )

    async def create_inbox(self, request: web.Request) -> web.Response:
        file_id = self._files.create_inbox(caller(request))
        return respond(Inbox(file_id=file_id, url=gftp_url(caller(request), file_id)), status=201)

    async def wait_inbox(self, request: web.Request) -> web.Response:
        file_id = parse_file_id(names(request)["file_id"])
        head = await self._files.wait_inbox(caller(request), file_id, query_seconds(request))
        if head is None:
            return respond(InboxState(state="empty"))
        return respond(InboxState(state="complete", size=head.size, sha3=head.sha3))

    async def get(self, request: web.Request) -> web.StreamResponse:
        node_id, file_id = _name(request)
        if self._files.is_own(node_id) and (content := self._files.content(file_id)) is not None:
            headers = {"Content-Type": _OCTETS, SIZE_HEADER: str(content.size), SHA3_HEADER: content.sha3}
            return web.FileResponse(content.path, headers=headers)
        start, length = _range(request)
        async with self._files.fetch(node_id, file_id, start, length) as (head, pieces):
            if start > head.size:
                raise Refused(f"the file has {head.size} bytes", code="bad_range")
            count = head.size - start if length is None else min(length, head.size - start)
            first = await anext(pieces, b"")  # what fails at once is told with a status
            headers = {"Content-Type": _OCTETS, SIZE_HEADER: str(head.size)}
            if head.sha3:
                headers[SHA3_HEADER] = head.sha3
            partial = count != head.size
            if partial:
                headers["Content-Range"] = f"bytes {start}-{start + count - 1}/{head.size}"
            response = web.StreamResponse(status=206 if partial else 200, headers=headers)
            response.content_length = count
            await response.prepare(request)
            return await _pass_on(request, response, first, pieces)

    async def put(self, request: web.Request) -> web.Response:
        node_id, file_id = _name(request)
        if self._files.is_own(node_id):
            head = await self._files.fill(file_id, _body(request))
        else:
            head = await self._files.send(node_id, file_id, _body(request))
        return respond(Received(size=head.size, sha3=head.sha3))

    async def delete(self, request: web.Request) -> web.Response:
        node_id, file_id = _name(request)
        if not self._files.is_own(node_id):
            raise NotAllowed("only the node that keeps a file deletes it", code="not_your_file")
        self._files.delete(caller(request), file_id)
        return respond(status=204)


async def _pass_on(
    request: web.Request, response: web.StreamResponse, first: bytes, pieces: AsyncIterator[bytes]
) -> web.StreamResponse:
    try:
        if first:
            await response.write(first)
        async for piece in pieces:
            await response.write(piece)
        await response.write_eof()
    except (ShemError, TimeoutError):
        # The status and the length have left: the only honest answer is a connection that breaks before the end.
        if request.transport is not None:
            request.transport.abort()
        raise
    return response


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except (ConnectionError, web.RequestPayloadError) as error:
        raise UploadBroken(f"the upload broke: {error}") from error


def _name(request: web.Request) -> tuple[NodeId, str]:
    return parse_node_id(names(request)["node_id"]), parse_file_id(names(request)["file_id"])


def _range(request: web.Request) -> tuple[int, int | None]:
    """(start, length) of the one range that may be asked for; the whole without one."""
    try:
        asked = request.http_range
    except ValueError:
        raise Refused("the range cannot be understood", code="bad_range") from None
    start = asked.start or 0
    if start < 0:
        raise Refused("ranges from the end are not served", code="bad_range")
    if max(start, asked.stop or 0) > MAX_OFFSET:
        raise Refused("no file is that large", code="bad_range")
    return start, None if asked.stop is None else asked.stop - start

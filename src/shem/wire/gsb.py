"""Shapes of the service bus: programs that answer requests from elsewhere, through their node, on a WebSocket.

A frame is a FlexBuffers map. Node → program: ``{id, component, payload}``; program → node: ``{id, payload}``, or ``{id, error:
{<variant>: text}}``. Files travel by four components: ``GetMetadata {} → {fileSize}``, ``GetChunk {offset, size} → {offset,
content}``, ``UploadChunk {chunk: {offset, content}} → null``, ``UploadFinished {hash} → null``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from shem.cogs import flexbuffers
from shem.errors import Refused
from shem.wire.base import Wire

PREFIX = "/gsb-api/v1/services"
SUBPROTOCOL = "gsb+flexbuffers"
GFTP = "/public/gftp/"
"""The file ``gftp://<node>/<id>`` is the service with this and the id as its address, on that node."""

CHUNK_BYTES = 256 << 10
"""What one request for content asks for, or carries."""
MAX_FRAME_BYTES = 4 << 20
MAX_ID_BYTES = 128
MAX_ERROR_CHARS = 500

READ_ERROR, WRITE_ERROR, INTEGRITY_ERROR = "ReadError", "WriteError", "IntegrityError"
"""What a program says when a file cannot be read or written, or has arrived wrong."""

Address = Annotated[str, msgspec.Meta(max_length=1024)]
Component = Annotated[str, msgspec.Meta(min_length=1, max_length=100)]


class Listen(Wire, kw_only=True, omit_defaults=False):
    """Where a program wants to be asked, and what."""

    on: Address
    components: Annotated[list[Component], msgspec.Meta(max_length=64)]


class SharedListen(Listen, kw_only=True, omit_defaults=False):
    """``shared``, of ours: other programs of the same owner may answer here too, any of them alike (content that is named
    by its hash). The service ends with the last of their sockets."""

    shared: bool = False


class ServiceRequest(Wire, kw_only=True):
    """What a program posts to be bound."""

    listen: SharedListen


class Bound(Wire, kw_only=True, omit_defaults=False):
    """A service that is bound."""

    listen: Listen
    services_id: str


class Request(msgspec.Struct, frozen=True):
    """What a program is asked."""

    id: str
    component: str
    payload: Any


class Reply(msgspec.Struct, frozen=True):
    """What it answers: ``error`` is (variant, text) where it could not."""

    id: str
    payload: Any = None
    error: tuple[str, str] | None = None


class BadFrame(Refused):
    """Not a message of this bus."""

    default_code = "bad_frame"


def services_id(on: str) -> str:
    """The id of the service that is bound on this address."""
    return base64.urlsafe_b64encode(on.encode()).rstrip(b"=").decode()


def parse_services_id(text: str) -> str:
    """The address in an id. Raises :class:`Refused` (``bad_service_id``)."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError):
        raise Refused("the id of a service is its address in base64url", code="bad_service_id") from None


def pack_request(request: Request) -> bytes:
    """Node → program."""
    return flexbuffers.dumps({"id": request.id, "component": request.component, "payload": request.payload})


def parse_request(frame: bytes) -> Request:
    """Raises :class:`BadFrame`, :class:`~shem.cogs.flexbuffers.BadFlexBuffer`."""
    match flexbuffers.loads(frame):
        case {"id": str(id_), "component": str(component), "payload": payload} if len(id_) <= MAX_ID_BYTES:
            return Request(id_, component, payload)
        case _:
            raise BadFrame("a request is a map of id, component and payload")


def pack_reply(reply: Reply) -> bytes:
    """Program → node."""
    if reply.error is not None:
        variant, text = reply.error
        return flexbuffers.dumps({"id": reply.id, "error": {variant: text[:MAX_ERROR_CHARS]}})
    return flexbuffers.dumps({"id": reply.id, "payload": reply.payload})


def parse_reply(frame: bytes) -> Reply:
    """Raises :class:`BadFrame`, :class:`~shem.cogs.flexbuffers.BadFlexBuffer`."""
    found = flexbuffers.loads(frame)
    if not isinstance(found, dict) or not isinstance(id_ := found.get("id"), str) or len(id_) > MAX_ID_BYTES:
        raise BadFrame("an answer is a map with the id of its request")
    if "error" in found:
        return Reply(id_, error=_error(found["error"]))
    if "payload" in found:
        return Reply(id_, found["payload"])
    raise BadFrame("an answer has a payload, or an error")


def _error(found: object) -> tuple[str, str]:
    """(variant, text) of an error, whose text may be missing: a bare variant is text alone."""
    if isinstance(found, Mapping) and len(found) == 1:
        ((variant, text),) = found.items()
        return str(variant)[:100], text[:MAX_ERROR_CHARS] if isinstance(text, str) else ""
    return (found[:100], "") if isinstance(found, str) else ("Error", "")


def whole(value: object) -> int | None:
    """A number of a payload as a whole one from 0 to 2^53; ``None`` for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 53 else None

"""The REST door: who calls, what they sent, and how errors look to them.

The only module of the node that knows HTTP statuses. Each domain's handlers live in a sibling module with a function
``routes(...) -> list[web.RouteDef]``; handlers call services and let errors fly.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from shem import errors
from shem.cogs.decoding import DECODE_ERRORS
from shem.wire.base import encode

log = logging.getLogger(__name__)

T = TypeVar("T")


class _CallersMistakes(logging.Filter):
    """Bytes that are no HTTP, and bodies that are not packed as they say, are the caller's mistake. The library would log
    each as an error of ours, with a traceback and the caller's own words, which may hold a key."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | web.RequestPayloadError):
            log.debug("a request that cannot be read: %s", type(error).__name__)
            return False
        return True


http_log = logging.getLogger(f"{__name__}.http")
"""For the library's server: pass it to the runner of the application."""
http_log.addFilter(_CallersMistakes())

MAX_BODY_BYTES = 8 << 20
"""The largest JSON body a caller may send; streamed uploads have their own limits."""
MAX_POLL_S = 60.0
"""``MAX_REST_TIMEOUT`` of the original daemon: longer polls are shortened to it, or to what the operator says."""
POLL_LIMIT = web.AppKey("poll_limit", float)
DEFAULT_POLL_S = 5.0
_SECONDS = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[iI]nf(?:inity)?")
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_MANY = 1 << 32
_WHOLE = re.compile(r"[+-]?[0-9]{1,19}")

_STATUS: list[tuple[type[BaseException], int]] = [
    (errors.NotAuthenticated, 401),
    (errors.NotAllowed, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.Gone, 410),
    (errors.NotImplementedHere, 501),
    (errors.Refused, 400),
    (errors.MoneyShort, 400),
    (errors.KeyLocked, 423),
    (TimeoutError, 408),
    (errors.PeerFailed, 504),
    (errors.ShemError, 500),
]

CALLER: web.RequestKey[str] = web.RequestKey("caller", str)
"""The node id whose key the caller showed."""
KEY_NAME: web.RequestKey[str] = web.RequestKey("key_name", str)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
KeyLookup = Callable[[str], "tuple[str, str] | None"]
"""App key → (node id, key name), or ``None``."""


def status_of(error: BaseException) -> int:
    """The HTTP status of an error; 500 for one that is not ours."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def caller(request: web.Request) -> str:
    """The node id that makes this request."""
    return request[CALLER]


async def read_json(request: web.Request, shape: type[T]) -> T:
    """The body as ``shape``. Raises :class:`~shem.errors.Refused` (``bad_json``) with the place that is wrong."""
    _check_length(request)
    if request.content_type != "application/json":
        raise errors.Refused("Content type error", code="bad_content_type", hint="send Content-Type: application/json")
    try:
        found = msgspec.json.decode(await request.read(), type=shape)
    except DECODE_ERRORS as error:
        raise errors.Refused(f"the body is not what this call takes: {error}", code="bad_json") from None
    _check_times(found)
    return found


def _check_length(request: web.Request) -> None:
    """Say no before the caller has sent it all; what has no length is cut off at the same limit while it is read."""
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)


def _check_times(body: object) -> None:
    """A time outside of these has no counterpart in UTC, or in microseconds since 1970: it could be stored and never be
    read again."""
    for name in getattr(body, "__struct_fields__", ()):
        moment = getattr(body, name)
        if isinstance(moment, datetime) and not _FIRST <= moment <= _LAST:
            raise errors.Refused(f"{name} lies outside of the years 1970 to 9999 (UTC)", code="bad_json")


def query_seconds(request: web.Request, name: str = "timeout", default: float = DEFAULT_POLL_S) -> float:
    """A duration from the query, in seconds (may be fractional), bounded to ``[0, MAX_POLL_S]``: what is left of a
    caller's own time may be less than nothing."""
    text = _given(request, name)
    if text is None:
        return default
    # float() alone would also take underscores, blanks and the digits of other scripts
    seconds = float(text) if _SECONDS.fullmatch(text) else float("nan")
    if math.isnan(seconds):
        raise errors.Refused(f"{name} must be a number of seconds, not {text!r}", code="bad_query")
    return min(max(seconds, 0.0), request.config_dict.get(POLL_LIMIT, MAX_POLL_S))


def query_limit(request: web.Request, name: str, default: int, *, most: int) -> int:
    """How many the caller wants, from none; more than ``most`` are not given."""
    return min(query_int(request, name, default, low=0, high=_MANY), most)


def query_int(request: web.Request, name: str, default: int, *, low: int, high: int) -> int:
    """A whole number from the query; refused outside ``[low, high]``."""
    text = _given(request, name)
    if text is None:
        return default
    number = int(text) if _WHOLE.fullmatch(text) else low - 1
    if not low <= number <= high:
        raise errors.Refused(f"{name} must be a whole number from {low} to {high}, not {text!r}", code="bad_query")
    return number


def query_time(request: web.Request, name: str) -> datetime | None:
    """A time from the query, aware; ``None`` when absent."""
    text = _given(request, name)
    if text is None:
        return None
    try:
        # '+' of a zone offset arrives as a space from clients that do not escape it
        moment = datetime.fromisoformat(text.replace(" ", "+").replace("Z", "+00:00"))
        if moment.tzinfo is None:
            raise ValueError(text)
    except ValueError:
        raise errors.Refused(f"{name} must be an RFC 3339 time with a zone, not {text!r}", code="bad_query") from None
    return moment


def _given(request: web.Request, name: str) -> str | None:
    found = request.query.getall(name, [])
    if len(found) > 1:
        raise errors.Refused(f"{name} is given {len(found)} times", code="bad_query")
    return found[0] if found else None


def respond(value: object = None, status: int = 200) -> web.Response:
    """A JSON answer; 204 has no body."""
    if status == 204:
        return web.Response(status=204)
    return web.Response(body=encode(value), status=status, content_type="application/json")


async def stream_events(
    request: web.Request, events: AsyncIterator[tuple[str, str, bytes]], *, ping_s: float = 15.0
) -> web.StreamResponse:
    """Server-sent events: ``(event, id, data)`` each; ``id`` may be empty. Comment pings keep the line open.

    A caller that goes away ends the iterator (it is closed here).
    """
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    step: asyncio.Task[tuple[str, str, bytes]] | None = None
    loop = asyncio.get_running_loop()
    try:
        while True:
            if step is None:
                step = loop.create_task(anext(events), name="sse")  # type: ignore[arg-type]
            done, _ = await asyncio.wait({step}, timeout=ping_s)
            if not done:
                await response.write(b": ping\n\n")
                continue
            try:
                event, event_id, data = step.result()
            except StopAsyncIteration:
                break
            step = None
            head = f"event: {event}\n".encode() + (f"id: {event_id}\n".encode() if event_id else b"")
            await response.write(head + b"data: " + data + b"\n\n")
        await response.write_eof()
    except ConnectionResetError:
        log.debug("a reader of %s went away", request.path)
    finally:
        if step is not None:
            step.cancel()
            await asyncio.wait({step})
        aclose = getattr(events, "aclose", None)
        if aclose is not None:
            await aclose()
    return response


def build_app(
    routes: Iterable[web.RouteDef],
    *,
    keys: KeyLookup,
    open_paths: Iterable[str] = ("/version/get",),
    count_error: Callable[[str], None] = lambda code: None,
    max_poll_s: float = MAX_POLL_S,
) -> web.Application:
    """One application with authentication and error shapes. ``keys`` looks an app key up."""
    opened = frozenset(open_paths)

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in opened:
            return await handler(request)
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            key = request.query.get("authToken", "")
        if not key:
            return web.Response(status=401, text="Missing application key")
        found = keys(key.strip())
        if found is None:
            return web.Response(status=401, text="Invalid application key")
        request[CALLER], request[KEY_NAME] = found
        return await handler(request)

    @web.middleware
    async def shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            if error.status < 400:
                raise
            answer = respond({"message": error.reason, "code": f"http_{error.status}"}, error.status)
            answer.headers.update({name: text for name, text in error.headers.items() if name == "Allow"})
            return answer
        except errors.ShemError as error:
            status = status_of(error)
            count_error(error.code)
            if status >= 500 and not isinstance(error, errors.NotImplementedHere):
                log.warning("%s %s: %s", request.method, request.path, error)
            return respond(error.as_dict(), status)
        except web.RequestPayloadError:
            return respond({"message": "the body cannot be read: it is broken or cut", "code": "bad_body"}, 400)
        except TimeoutError as error:
            return respond({"message": str(error) or "Timeout", "code": "timeout"}, 408)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            count_error("internal")
            return respond({"message": "the node made a mistake; its log has the details", "code": "internal"}, 500)

    app = web.Application(middlewares=[shape_errors, authenticate], client_max_size=MAX_BODY_BYTES)
    app[POLL_LIMIT] = max_poll_s
    app.add_routes(list(routes))
    return app


def names(request: web.Request) -> Mapping[str, str]:
    """The path's variables."""
    return request.match_info

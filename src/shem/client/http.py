"""The caller's side of the REST door: one session, typed answers, statuses turned back into our errors.

GET is retried on a lost connection (it changes nothing); nothing else is: only the service knows what it may repeat.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, TypeVar, overload

import aiohttp
import msgspec

from shem import errors
from shem.cogs.decoding import DECODE_ERRORS
from shem.wire.base import encode

T = TypeVar("T")

_KINDS: dict[int, type[errors.ShemError]] = {
    400: errors.Refused,
    401: errors.NotAuthenticated,
    403: errors.NotAllowed,
    404: errors.NotFound,
    409: errors.Conflict,
    410: errors.Gone,
    423: errors.KeyLocked,
    501: errors.NotImplementedHere,
    504: errors.PeerFailed,
}
_COVER_CODES = frozenset({"cover_short", "no_channel"})
_RETRIES = 3
_RECONNECT_S = 0.1
"""Between two tries at a node that refuses connections: they cost nothing on the same machine."""


_ADDRESS = re.compile(r"https?://[^/\s?#]+(?:/[^\s?#]*)?")


class NodeUnreachable(errors.PeerFailed):
    """Our own node does not answer."""

    default_code = "node_unreachable"


class NodeSilent(NodeUnreachable, TimeoutError):
    """Our own node took the call and did not answer in time. It may have acted."""

    default_code = "node_silent"


class BadAnswer(errors.PeerFailed):
    """What answers there does not speak the API of a node."""

    default_code = "bad_answer"


class ApiClient:
    """One node, one app key. An async context manager; safe for any number of concurrent calls.

    ``patience_s``: how long calls wait for a node that refuses connections (it restarts). Nothing has been sent then, so
    any call may be made again.
    """

    def __init__(self, base_url: str, app_key: str, *, patience_s: float = 0.0) -> None:
        """Raises :class:`~shem.errors.Misconfigured` (``bad_api_url``)."""
        if not _ADDRESS.fullmatch(base_url):
            raise errors.Misconfigured(
                f"{base_url[:100]!r} is not the address of a node",
                code="bad_api_url",
                hint="write it as http://127.0.0.1:7465",
            )
        self.base_url = base_url.rstrip("/")
        self._app_key = app_key
        self.patience_s = patience_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ApiClient:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._app_key}"},
            connector=aiohttp.TCPConnector(limit=0),  # long polls hold connections; a limit would starve short calls
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            read_bufsize=1 << 18,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """For streams and WebSockets; carries the key already."""
        if self._session is None:
            raise RuntimeError("ApiClient is used outside its 'async with'")
        return self._session

    def url(self, path: str) -> str:
        """The full address of a path such as ``/market-api/v1/offers``."""
        return self.base_url + path

    @overload
    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = ...,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        into: type[T],
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = ...,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        into: None = None,
    ) -> Any: ...
    async def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = ...,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        into: type[T] | None = None,
    ) -> T | Any:
        """One request, its JSON answer as ``into`` (plain objects without it; ``None`` for an empty body).

        ``params`` with value ``None`` are left out. ``timeout_s`` bounds the whole call. Raises the error family that
        the status stands for, :class:`NodeUnreachable` when there is no answer, :class:`NodeSilent` (a ``TimeoutError``
        too) when there is none in time, ``TimeoutError`` on 408, :class:`BadAnswer` for what is not of the shape.
        """
        query = {k: _text(v) for k, v in (params or {}).items() if v is not None}
        sent = dict(headers or {})
        body: bytes | None = None
        if json is not ...:
            body = encode(json)
            sent["Content-Type"] = "application/json"
        attempt, patience_ends = 0, time.monotonic() + self.patience_s
        while True:
            attempt += 1
            try:
                async with (
                    asyncio.timeout(timeout_s) as limit,
                    self.session.request(method, self.url(path), params=query, data=body, headers=sent) as answer,
                ):
                    return self._decode(path, answer.status, await answer.read(), into)
            except aiohttp.ClientConnectorError as error:
                if time.monotonic() > patience_ends:
                    raise self._unreachable(error) from error
                await asyncio.sleep(_RECONNECT_S)
            except aiohttp.ClientError as error:
                if method != "GET" or attempt >= _RETRIES:
                    raise self._unreachable(error) from error
            except TimeoutError:
                if not limit.expired():
                    raise  # the node's own word: 408
                raise NodeSilent(
                    f"the node at {self.base_url} did not answer within {timeout_s:g} s",
                    hint="is it a node, and is it well? see its log",
                ) from None

    def _unreachable(self, error: aiohttp.ClientError) -> NodeUnreachable:
        reason = str(error) or type(error).__name__
        if isinstance(error, aiohttp.ClientConnectorError):
            number = error.os_error.errno or 0
            reason = os.strerror(number) if number > 0 else (error.os_error.strerror or reason)
        return NodeUnreachable(
            f"no answer from the node at {self.base_url}: {reason}", hint="is it running? see 'shem node run'"
        )

    async def events(
        self, path: str, *, params: Mapping[str, Any] | None = None, idle_timeout_s: float = 60.0
    ) -> AsyncIterator[tuple[str, str, bytes]]:
        """Server-sent events as ``(event, id, data)``. Ends when the node ends the stream."""
        query = {k: _text(v) for k, v in (params or {}).items() if v is not None}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=idle_timeout_s)
        try:
            async with self.session.get(
                self.url(path), params=query, headers={"Accept": "text/event-stream"}, timeout=timeout
            ) as answer:
                if answer.status != 200:
                    self._decode(path, answer.status, await answer.read(), None)
                event, event_id = "message", ""
                data: list[bytes] = []
                while line := await answer.content.readline():
                    text = line.rstrip(b"\r\n")
                    if not text:
                        if data:
                            yield event, event_id, b"\n".join(data)
                        event, event_id, data = "message", "", []
                        continue
                    name, _, value = text.partition(b":")
                    value = value.removeprefix(b" ")
                    if name == b"event":
                        event = value.decode()
                    elif name == b"id":
                        event_id = value.decode()
                    elif name == b"data":
                        data.append(value)
        except aiohttp.ClientError as error:
            raise NodeUnreachable(f"the event stream {path} broke: {error}") from error

    def _decode(self, path: str, status: int, body: bytes, into: type[T] | None) -> T | Any:
        if status >= 400:
            raise error_of(status, body)
        try:
            if not body:
                return msgspec.convert(None, into) if into is not None else None
            return msgspec.json.decode(body, type=into) if into is not None else msgspec.json.decode(body)
        except DECODE_ERRORS as error:
            raise BadAnswer(
                f"{self.url(path)} gave an answer that no node gives: {error}", hint="is that the address of a node?"
            ) from error


def error_of(status: int, body: bytes) -> BaseException:
    """The error that an answer stands for. Foreign and malformed bodies are quoted, shortened."""
    message, code, hint, details = body[:500].decode("utf-8", "replace"), "", "", {}
    try:
        found = msgspec.json.decode(body)
    except DECODE_ERRORS:
        found = None
    if isinstance(found, dict):
        message = str(found.get("message") or found.get("detail") or f"status {status}")
        code, hint = str(found.get("code") or ""), str(found.get("hint") or "")
        raw = found.get("details")
        details = raw if isinstance(raw, dict) else {}
    if status == 408:
        return TimeoutError(message)
    if status == 401:
        code, hint = code or "not_authenticated", hint or "check the app key (YAGNA_APPKEY); each node has its own"
    short = code.startswith("money_") or code in _COVER_CODES
    kind = errors.MoneyShort if short else _KINDS.get(status, errors.ShemError)
    error = kind(message, code=code or f"http_{status}", hint=hint)
    error.details = details
    return error


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)

"""Browsers: which web pages may use this node.

A page's script needs an app key like anybody else. What is decided here is whether its browser lets it read the answers:
its origin must be in the node's list, or in that of the key. A browser asks beforehand (a *preflight*), without showing
the key, so there an origin of any key will do; the answer to the call itself is marked for the origins of its own key only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Protocol

from aiohttp import hdrs, web

from shem.node.rest.server import KEY_NAME

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
ANY = "*"
MAX_HEADERS = 4096

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Keys(Protocol):
    """What app keys know of origins."""

    def origins_of(self, name: str) -> Collection[str]:
        """Those of one key."""

    def any_allows(self, origin: str) -> bool:
        """Whether some key has it."""


class Cors:
    """Put into an application with :meth:`install`, before it runs."""

    def __init__(self, allowed: Collection[str], keys: Keys, max_age_s: int) -> None:
        """``allowed``: origins that may use the node with any key."""
        self._allowed = frozenset(allowed)
        self._keys = keys
        self._max_age = str(max_age_s)

    def install(self, app: web.Application) -> None:
        """Answer preflights before anybody asks for a key, and mark every other answer, errors and streams too."""
        app.middlewares.insert(0, self._preflight)
        app.on_response_prepare.append(self._mark)

    @web.middleware
    async def _preflight(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        origin = request.headers.get(hdrs.ORIGIN) if asked else None
        return await handler(request) if origin is None else self._answer(origin, request.headers)

    def _answer(self, origin: str, headers: Mapping[str, str]) -> web.Response:
        wanted = headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        if not (self._everybody(origin) or self._keys.any_allows(origin)) or len(wanted) > MAX_HEADERS:
            return web.Response(status=400, text="Origin is not allowed to make this request")
        allowed = {hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS, hdrs.ACCESS_CONTROL_MAX_AGE: self._max_age}
        if wanted:
            allowed[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = wanted
        # the mark, which comes later, knows no key here
        allowed[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        return web.Response(headers=allowed)

    async def _mark(self, request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return
        response.headers[hdrs.VARY] = VARY
        if self._everybody(origin) or origin in self._keys.origins_of(request.get(KEY_NAME, "")):
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin

    def _everybody(self, origin: str) -> bool:
        return origin in self._allowed or ANY in self._allowed

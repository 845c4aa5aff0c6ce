"""Who the caller is, which version answers, and how the node is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aiohttp import web

from shem.node.rest.server import KEY_NAME, caller, respond
from shem.version import COMPATIBLE_WITH, VERSION

_BORN = "2026-01-01T00:00:00"


def routes(facts: Callable[[], dict[str, Any]]) -> list[web.RouteDef]:
    """``facts`` gives what ``GET /shem-api/v1/node`` tells."""

    async def me(request: web.Request) -> web.Response:
        return respond({"identity": caller(request), "name": request[KEY_NAME], "role": "manager"})

    async def version(request: web.Request) -> web.Response:
        current = {
            "version": COMPATIBLE_WITH,
            "name": f"shem {VERSION}",
            "seen": True,
            "releaseTs": _BORN,
            "insertionTs": _BORN,
            "updateTs": _BORN,
        }
        return respond({"current": current, "pending": None})

    async def node(request: web.Request) -> web.Response:
        return respond(facts())

    return [
        web.get("/me", me),
        web.get("/version/get", version),
        web.get("/shem-api/v1/node", node),
    ]

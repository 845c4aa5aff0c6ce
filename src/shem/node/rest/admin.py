"""Calls for the owner of this node: its app keys, test tokens, its end; and counters for whoever watches it.

Whoever can read the data directory owns the node, so what only the owner may do takes the key that lies there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from shem.errors import Conflict, NotAllowed, Refused
from shem.node.identity.appkeys import LOCAL, AppKey, AppKeys
from shem.node.payment.service import Payments
from shem.node.rest.server import KEY_NAME, caller, names, read_json, respond
from shem.terms.ids import NodeId
from shem.wire import admin as wire
from shem.wire.admin import ROOT

METRICS = ("/metrics-api/v1/expose", "/metrics-api/v1/sorted")
OPEN_PATHS = (*METRICS, "/dashboard")
"""Answered without a key, as by the original daemon (whose dashboard is not always there either)."""


class NotTheOwner(NotAllowed):
    """Another key than the owner's."""

    default_code = "not_the_owner"


def routes(
    keys: AppKeys, payments: Payments, *, stop: Callable[[], None], counters: Callable[[], Mapping[str, float]]
) -> list[web.RouteDef]:
    """``stop`` ends the node soon; ``counters`` tells numbers by name, for Prometheus."""
    admin = _Admin(keys, payments, stop)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text=exposition(counters()))

    return [
        web.get(f"{ROOT}/app-keys", admin.keys),
        web.post(f"{ROOT}/app-keys", admin.create),
        web.delete(f"{ROOT}/app-keys/{{name}}", admin.drop),
        web.post(f"{ROOT}/payment/fund", admin.fund),
        web.post(f"{ROOT}/shutdown", admin.shutdown),
        *(web.get(path, metrics) for path in METRICS),
    ]


class _Admin:
    def __init__(self, keys: AppKeys, payments: Payments, stop: Callable[[], None]) -> None:
        self._keys = keys
        self._payments = payments
        self._stop = stop

    async def keys(self, request: web.Request) -> web.Response:
        owner_only(request)
        return respond([shape(key) for key in self._keys.list()])

    async def create(self, request: web.Request) -> web.Response:
        owner_only(request)
        body = await read_json(request, wire.NewAppKey)
        if body.id is not None and body.id.lower() != caller(request):
            raise Refused(
                f"this node has no identity {body.id[:60]!r}",
                code="unknown_identity",
                hint=f"its only one is {caller(request)}",
            )
        found = self._keys.find(body.name)
        if found is None:
            self._keys.create(body.name, NodeId(caller(request)), origins=body.allow_origins)
            found = self._keys.find(body.name)
            assert found is not None
        elif found.secret is None:
            raise Conflict(
                f"the key named {body.name!r} cannot be told any more",
                code="key_lost",
                hint="drop it and create it anew",
            )
        return respond(shape(found))

    async def drop(self, request: web.Request) -> web.Response:
        owner_only(request)
        name = names(request)["name"]
        if name == LOCAL:
            raise Conflict("the owner's own key is not dropped", code="owners_key", hint="remove its file and restart")
        self._keys.drop(name)
        return respond(None)

    async def fund(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.Fund)
        platform, message = await self._payments.fund(caller(request), body.network, body.driver)
        return respond(wire.Funded(platform=platform, address=caller(request), message=message))

    async def shutdown(self, request: web.Request) -> web.Response:
        owner_only(request)
        self._stop()
        return respond(None)


def shape(key: AppKey) -> wire.AppKey:
    """As the API shows it."""
    return wire.AppKey(
        name=key.name,
        key=key.secret,
        id=key.node_id,
        role="manager",
        created=key.created,
        allow_origins=list(key.origins),
    )


def exposition(numbers: Mapping[str, float]) -> str:
    """Text for Prometheus; names that end with ``_total`` only grow."""
    lines = []
    for name, number in sorted(numbers.items()):
        lines += [f"# TYPE {name} {'counter' if name.endswith('_total') else 'gauge'}", f"{name} {number:g}"]
    return "\n".join(lines) + "\n"


def owner_only(request: web.Request) -> None:
    """Raises :class:`NotTheOwner` for any key but the one in the data directory."""
    if request[KEY_NAME] != LOCAL:
        raise NotTheOwner("only the owner may do that", hint="use the key in the node's data directory")

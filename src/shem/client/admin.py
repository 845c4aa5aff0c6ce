"""Typed calls for the owner of a node. All but :meth:`AdminApi.fund` need the key that lies in its data directory."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from shem.client.http import ApiClient
from shem.wire import admin as wire
from shem.wire.admin import ROOT


class AdminApi:
    """Errors are those of :class:`~shem.client.http.ApiClient`; ``NotAllowed`` with a key that is not the owner's."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def app_keys(self) -> list[wire.AppKey]:
        """All keys, by name."""
        return await self._http.call("GET", f"{ROOT}/app-keys", into=list[wire.AppKey])

    async def create_app_key(
        self, name: str, *, node_id: str | None = None, allow_origins: Sequence[str] = ()
    ) -> wire.AppKey:
        """A new key; the one that there is, when the name is taken."""
        body = wire.NewAppKey(name=name, id=node_id, allow_origins=tuple(allow_origins))
        return await self._http.call("POST", f"{ROOT}/app-keys", json=body, into=wire.AppKey)

    async def drop_app_key(self, name: str) -> None:
        """Who shows it is turned away from now on."""
        await self._http.call("DELETE", f"{ROOT}/app-keys/{quote(name, safe='')}")

    async def fund(self, network: str | None = None, driver: str | None = None) -> wire.Funded:
        """Test tokens for the caller's account. ``Refused`` where they are money; ``MoneyShort`` without coins for fees."""
        body = wire.Fund(network=network, driver=driver)
        return await self._http.call("POST", f"{ROOT}/payment/fund", json=body, into=wire.Funded, timeout_s=60)

    async def shutdown(self) -> None:
        """End the node, in order."""
        await self._http.call("POST", f"{ROOT}/shutdown")

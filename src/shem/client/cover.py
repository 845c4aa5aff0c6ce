"""The provider's question: is there money for this agreement?"""

from __future__ import annotations

from urllib.parse import quote

from shem.client.http import ApiClient
from shem.wire.cover import Cover

_ROOT = "/shem-api/v1/payment/cover"
_SPARE_S = 15.0


class CoverApi:
    """Of the agreements that the client's identity provides for. Errors are those of
    :class:`~shem.client.http.ApiClient`: ``NotFound`` for an agreement of somebody else's."""

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    async def cover(self, agreement_id: str, *, after: str = "", timeout_s: float = 0.0) -> Cover:
        """How it stands; with ``after``, waiting up to ``timeout_s`` for another version than that."""
        return await self._http.call(
            "GET",
            f"{_ROOT}/{quote(agreement_id, safe='')}",
            params={"after": after or None, "timeout": timeout_s},
            timeout_s=timeout_s + _SPARE_S,
            into=Cover,
        )

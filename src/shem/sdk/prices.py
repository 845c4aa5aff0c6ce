"""What a token costs in dollars, for budgets that are written in them. Asked once in a session, before money is set aside.

The first of these that there is:

1. ``SHEM_GLM_USD=0.21`` in the environment, with the time it was that, if you like: ``0.21@2026-11-24T12:00:00Z``.
2. ``prices.toml`` in the data directory (or where ``SHEM_PRICES`` says)::

       max_age_hours = 24                       # older prices are refused

       [GLM]
       usd = "0.21"
       at = 2026-11-24T12:00:00Z

       [GLM.http]                               # asked first, if it stands here
       url = "https://prices.example/glm.json"
       usd = "golem.usd"                        # where in the answer the price is
       at = "golem.last_updated_at"             # and its time (seconds or a date), if it has one

3. A price that needs no network: :data:`OFFLINE_USD` for GLM. It is no quote. It is high on purpose, so that a budget in
   dollars buys fewer tokens than it might, and never more.

A source that is configured and cannot be used is an error, never a reason to take the next one, except that ``usd`` and
``at`` stand in for an address that does not answer. A price that is old or absurd is refused.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from shem.cogs.places import default_data_dir
from shem.errors import PeerFailed
from shem.terms.budgets import BadBudget, BadPrice, Price, check_price, parse_price

FILE_NAME = "prices.toml"
OFFLINE_USD = "2"
"""Dollars that one GLM is taken to cost where nobody says otherwise: several times what it has mostly cost."""
FETCH_S = 10
MAX_ANSWER = 1 << 16
MAX_FILE = 1 << 16
MAX_DEPTH = 8
HINT = "correct it, or write the budget in tokens"


class HttpSource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An address that answers with JSON. ``usd`` and ``at`` are keys (or places in lists), joined by dots."""

    url: str
    usd: str
    at: str = ""


class TokenPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One token's price as its owner wrote it down, and who knows better."""

    usd: str | None = None
    at: datetime | None = None
    http: HttpSource | None = None


class PriceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``prices.toml``."""

    max_age_hours: Annotated[int, msgspec.Meta(ge=1, le=24 * 366)] = 24
    GLM: TokenPrice | None = None


class SourceAway(PeerFailed):
    """The configured source of prices does not answer."""

    default_code = "price_unavailable"


class Prices:
    """The price sources of this user."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if environ is None else environ

    async def price(self, token: str) -> Price:
        """What ``token`` (``GLM``; test tokens count as the real one) costs now.

        Raises :class:`~shem.terms.budgets.BadPrice`, :class:`SourceAway`, and
        :class:`~shem.terms.budgets.BadBudget` (``no_price``) for a token that nobody knows a price of.
        """
        if token not in ("GLM", "tGLM"):
            raise BadBudget(f"no price of {token} in USD is known", code="no_price", hint="write the budget in tokens")
        now = datetime.now(UTC)
        if written := self._env.get("SHEM_GLM_USD"):
            return check_price(_from_environment(written, now), now, timedelta(hours=24))
        path, settings = self._file()
        max_age = timedelta(hours=settings.max_age_hours)
        known = settings.GLM
        if known is None:
            return Price("GLM", parse_price(OFFLINE_USD), "built in, high on purpose")
        if known.http is not None:
            try:
                return check_price(await _ask(known.http, now), now, max_age)
            except SourceAway:
                if known.usd is None:
                    raise
        if known.usd is None or known.at is None:
            raise BadPrice(f"{path}: GLM needs usd and at, or http", hint=HINT)
        at = known.at if known.at.tzinfo else known.at.replace(tzinfo=UTC)
        return check_price(Price("GLM", parse_price(known.usd), str(path), at.astimezone(UTC)), now, max_age)

    def _file(self) -> tuple[Path, PriceFile]:
        chosen = self._env.get("SHEM_PRICES")
        path = Path(chosen) if chosen else default_data_dir(self._env) / FILE_NAME
        try:
            with path.open("rb") as file:
                text = file.read(MAX_FILE).decode()
            # prices stay text: no binary fraction comes in between
            return path, msgspec.convert(tomllib.loads(text, parse_float=str), PriceFile)
        except FileNotFoundError as error:
            if chosen:
                raise BadPrice(f"{path} is not there", hint="SHEM_PRICES names it") from error
            return path, PriceFile()
        except (OSError, ValueError) as error:  # TOML, UTF-8 and msgspec errors are ValueErrors
            raise BadPrice(f"{path} cannot be used: {error}", hint=HINT) from error


def _from_environment(written: str, now: datetime) -> Price:
    """Without a time it is its owner's word of this moment."""
    usd, _, at = written.partition("@")
    return Price("GLM", parse_price(usd.strip()), "SHEM_GLM_USD", _moment(at.strip()) if at else now)


async def _ask(source: HttpSource, now: datetime) -> Price:
    host = _host(source.url)
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=FETCH_S)) as session,
            session.get(source.url, allow_redirects=False) as answer,
        ):
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > MAX_ANSWER:
                    raise BadPrice(f"{host} answers with more than {MAX_ANSWER} bytes", hint=HINT)
            if answer.status != 200:
                raise SourceAway(f"{host} answers {answer.status}", hint=HINT)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise SourceAway(f"{host} does not tell its price: {error or 'no answer in time'}", hint=HINT) from error
    try:
        told = json.loads(bytes(body), parse_float=str)
    except (ValueError, RecursionError) as error:
        raise BadPrice(f"{host} does not answer in JSON", hint=HINT) from error
    at = _moment(_find(told, source.at, host)) if source.at else now
    return Price("GLM", parse_price(_find(told, source.usd, host)), host, at)


def _host(url: str) -> str:
    """Who is asked. Only over TLS, or on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        local = host == "localhost" or _is_loopback(host)
    except ValueError as error:
        raise BadPrice(f"{url[:100]!r} is no address", hint=HINT) from error
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise BadPrice(f"{url[:100]!r} is not an https address", hint=HINT)
    return host


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _find(told: Any, place: str, host: str) -> str:
    """The number or text at ``golem.usd``, as text."""
    for key in place.split(".")[:MAX_DEPTH]:
        if isinstance(told, dict) and key in told:
            told = told[key]
        elif isinstance(told, list) and key.isdecimal() and int(key) < len(told):
            told = told[int(key)]
        else:
            raise BadPrice(f"{host} answers without {place!r}", hint=HINT)
    if isinstance(told, bool) or not isinstance(told, str | int):
        raise BadPrice(f"{host} has no number at {place!r}", hint=HINT)
    return str(told)


def _moment(text: str) -> datetime:
    """Seconds since 1970, or a date. Raises :class:`~shem.terms.budgets.BadPrice`."""
    try:
        if text.partition(".")[0].isdecimal():
            return datetime.fromtimestamp(int(text.partition(".")[0]), UTC)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError) as error:
        raise BadPrice(f"{text[:40]!r} is not a time", hint='write it like "2026-11-24T12:00:00Z"') from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)

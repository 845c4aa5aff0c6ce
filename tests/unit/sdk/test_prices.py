"""Where a dollar's worth comes from: the environment, a file, an address, or nothing at all; each with a real file and server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shem.errors import ShemError
from shem.sdk.prices import MAX_ANSWER, OFFLINE_USD, Prices
from shem.terms.amounts import format_amount, parse_amount


@asynccontextmanager
async def source(answer: Callable[[], web.Response]) -> AsyncIterator[str]:
    async def give(request: web.Request) -> web.Response:
        return answer()

    app = web.Application()
    app.router.add_get("/{any:.*}", give)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/price"
    finally:
        await runner.cleanup()


def prices(tmp_path: Path, text: str = "", **env: str) -> Prices:
    if text:
        (tmp_path / "prices.toml").write_text(text)
    return Prices({"SHEM_DATA_DIR": str(tmp_path), **env})


def ago(**how_long: int) -> str:
    return (datetime.now(UTC) - timedelta(**how_long)).isoformat()


async def refused(asked: Prices, token: str = "GLM") -> ShemError:
    with pytest.raises(ShemError) as caught:
        await asked.price(token)
    return caught.value


async def test_without_any_source_the_price_is_high_and_needs_no_network(tmp_path):
    price = await prices(tmp_path).price("tGLM")
    assert price.units == parse_amount(OFFLINE_USD)
    assert price.made_at is None
    assert "high on purpose" in str(price)


async def test_other_tokens_have_no_price(tmp_path):
    assert (await refused(prices(tmp_path), "OTHER")).code == "no_price"


async def test_the_environment_goes_first(tmp_path):
    text = f'[GLM]\nusd = "0.9"\nat = {ago(hours=1)}\n'
    price = await prices(tmp_path, text, SHEM_GLM_USD="0.21").price("GLM")
    assert (format_amount(price.units), price.source) == ("0.21", "SHEM_GLM_USD")
    dated = await prices(tmp_path, SHEM_GLM_USD=f"0.21@{ago(hours=2)}").price("GLM")
    assert timedelta(hours=1) < datetime.now(UTC) - dated.made_at < timedelta(hours=3)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("lots", "price_unreadable"),
        ("0.21@yesterday", "price_unreadable"),
        ("0.21@2020-01-01T00:00:00Z", "price_old"),
        ("0.0000001", "price_absurd"),
    ],
)
async def test_what_the_environment_may_not_say(tmp_path, given, code):
    assert (await refused(prices(tmp_path, SHEM_GLM_USD=given))).code == code


async def test_a_file_says_the_price_and_its_time(tmp_path):
    price = await prices(tmp_path, f"[GLM]\nusd = 0.1\nat = {ago(hours=23)}\n").price("GLM")
    assert price.units == 10**17  # a number, and yet no binary fraction
    assert str(tmp_path / "prices.toml") in str(price)
    assert "made 20" in str(price)


async def test_a_file_decides_how_old_a_price_may_be(tmp_path):
    text = f'[GLM]\nusd = "0.2"\nat = {ago(hours=30)}\n'
    assert (await refused(prices(tmp_path, text))).code == "price_old"
    assert (await prices(tmp_path, "max_age_hours = 48\n" + text).price("GLM")).units == parse_amount("0.2")


@pytest.mark.parametrize(
    "text",
    [
        "[GLM",
        "[GLM]\n",
        '[GLM]\nusd = "0.2"\n',
        "max_age_hours = 0\n",
        "unknown = 1\n",
        '[GLM]\nusd = "0.2"\nat = "soon"\n',
        '[GLM.http]\nurl = "http://prices.example/"\nusd = "x"\n',
        '[GLM.http]\nurl = "ftp://127.0.0.1/"\nusd = "x"\n',
        '[GLM.http]\nurl = "https://[::1"\nusd = "x"\n',
    ],
)
async def test_a_file_that_cannot_be_used_is_said(tmp_path, text):
    assert (await refused(prices(tmp_path, text))).code == "price_unreadable"


async def test_a_file_that_is_named_must_be_there(tmp_path):
    error = await refused(prices(tmp_path, SHEM_PRICES=str(tmp_path / "none.toml")))
    assert error.code == "price_unreadable"
    assert "none.toml" in error.message


def http(url: str, usd: str = "golem.usd", at: str = "") -> str:
    return f'[GLM.http]\nurl = "{url}"\nusd = "{usd}"\n' + (f'at = "{at}"\n' if at else "")


def answering(told: Any, status: int = 200) -> Callable[[], web.Response]:
    return lambda: web.Response(text=told if isinstance(told, str) else json.dumps(told), status=status)


@pytest.mark.parametrize("moment", [lambda: int(datetime.now(UTC).timestamp()) - 60, lambda: ago(minutes=1)])
async def test_an_address_is_asked_each_time(tmp_path, moment):
    told = json.dumps({"golem": {"usd": "PRICE", "at": moment()}}).replace('"PRICE"', "0.2134567890123456789")
    async with source(answering(told)) as url:
        price = await prices(tmp_path, http(url, at="golem.at")).price("GLM")
    assert format_amount(price.units) == "0.213456789012345679"  # up, by less than a unit
    assert price.source == "127.0.0.1"
    assert datetime.now(UTC) - price.made_at < timedelta(minutes=10)


async def test_places_in_lists_and_prices_as_text(tmp_path):
    async with source(answering([{"price": "0.3"}])) as url:
        assert (await prices(tmp_path, http(url, "0.price")).price("GLM")).units == 3 * 10**17


@pytest.mark.parametrize(
    ("told", "status", "code"),
    [
        ({"golem": {"usd": 0.0000002}}, 200, "price_absurd"),
        ({"golem": {"usd": 21_000}}, 200, "price_absurd"),
        ({"golem": {"usd": -1}}, 200, "price_unreadable"),
        ({"golem": {"usd": None}}, 200, "price_unreadable"),
        ({"golem": {"usd": True}}, 200, "price_unreadable"),
        ({"golem": []}, 200, "price_unreadable"),
        ("nonsense", 200, "price_unreadable"),
        ("[" * 50_000, 200, "price_unreadable"),
        ('{"golem": {"usd": NaN}}', 200, "price_unreadable"),
        ("9" * 50_000, 200, "price_unreadable"),
        ('{"golem": {"usd": ' + "9" * 4000 + "}}", 200, "price_unreadable"),
        ("x" * (MAX_ANSWER + 1), 200, "price_unreadable"),
        ({"golem": {"usd": 0.2}}, 500, "price_unavailable"),
        ("", 302, "price_unavailable"),
    ],
)
async def test_what_an_address_may_not_answer(tmp_path, told, status, code):
    async with source(answering(told, status)) as url:
        assert (await refused(prices(tmp_path, http(url)))).code == code


async def test_an_old_answer_is_refused(tmp_path):
    async with source(answering({"golem": {"usd": 0.2, "at": ago(hours=25)}})) as url:
        assert (await refused(prices(tmp_path, http(url, at="golem.at")))).code == "price_old"


async def test_nobody_there_is_an_error_unless_the_file_has_a_price_that_is_not_old(tmp_path):
    listening = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    listening.close()
    await listening.wait_closed()
    assert (await refused(prices(tmp_path, http(url)))).code == "price_unavailable"
    own = f'[GLM]\nusd = "0.4"\nat = {ago(hours=1)}\n'
    assert (await prices(tmp_path, own + http(url)).price("GLM")).units == 4 * 10**17
    old = f'[GLM]\nusd = "0.4"\nat = {ago(hours=25)}\n'
    assert (await refused(prices(tmp_path, old + http(url)))).code == "price_old"

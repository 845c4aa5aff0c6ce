"""The same programs paid through channels: on a network of processes whose nodes have a vault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from shem.sdk import Rental
from shem.testing.devnet import Devnet
from tests.e2e.conftest import session

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(240)]

PLATFORM = "channel-devnet-tglm"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def channel_net(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Devnet]:
    async with Devnet(tmp_path_factory.mktemp("channels"), providers=2, channels=True) as running:
        yield running


async def task(machine: Rental, number: int) -> bytes:
    return (await machine.shell(f"echo {number}")).stdout


async def test_a_map_is_paid_by_vouchers_and_settled_in_the_end(channel_net: Devnet, image: Path) -> None:
    golem = session(channel_net, budget="5", platform=PLATFORM)
    async with golem:
        results = [r async for r in golem.map(task, range(6), image=image, workers=2)]
    assert sorted(results) == [b"%d\n" % number for number in range(6)]
    assert golem.report.settled
    url, key = f"{channel_net.requestor.api_url}/shem-api/v1/payment/channels", channel_net.requestor.app_key
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as http, http.get(url) as answer:
        channels = await answer.json()
    assert channels
    for channel in channels:
        assert (channel["role"], channel["platform"], channel["state"]) == ("Requestor", PLATFORM, "closed")
        assert channel["claimed"] == channel["signed"]

"""A session's money between two nodes on a real chain: bills that wait for a reserve, and who bills too much."""

from __future__ import annotations

from pathlib import Path

import pytest

from shem.errors import PeerFailed
from shem.provider.config import Rules
from shem.provider.presets import Preset
from shem.sdk import Golem, events
from tests.network.provider.conftest import ChainWorld, until
from tests.network.provider.test_provider_money import BOTH, CHANNEL, QUICK, TENTH, GreedyAgent

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


def session(world: ChainWorld, seen: list[events.Event]) -> Golem:
    return Golem(
        budget="50",
        platform=world.platform,
        api_url=world.alice.url,
        app_key=world.alice.key,
        subnet="test",
        progress=False,
        listener=seen.append,
    )


async def test_a_bill_waits_until_its_reserve_is_on_the_chain_and_its_user_is_told(tmp_path: Path) -> None:
    """A provider that gives credit works while the chain stands still: its bills come before there is a channel."""
    seen: list[events.Event] = []
    async with ChainWorld(tmp_path, CHANNEL, credit="100") as world, world.agent(rules=QUICK, presets=(TENTH,)):
        golem = session(world, seen)
        async with golem:
            world.chain.rpc.call("shem_setAutomine", [False])
            async with golem.rent(image=world.root / "image") as machine:
                await machine.shell("true")
                await until(lambda: _some(seen, events.BillWaits), 30)
                assert golem.report.cost == 0
                assert not golem.report.settled
                world.chain.rpc.call("shem_setAutomine", [True])
                await until(lambda: _some(seen, events.CostChanged), 30)
                await machine.shell("true")  # what waited was no reason to leave anybody
        waited = [event for event in seen if isinstance(event, events.BillWaits)]
        assert {event.code for event in waited} <= {"no_channel", "cover_short"}
        assert not [event for event in seen if isinstance(event, events.BillRefused | events.ProviderLeft)]
        assert golem.report.settled
        assert world.tokens(world.bob.id) == golem.report.cost > 0


@BOTH
async def test_machines_of_who_bills_too_much_are_given_back_with_the_reason(
    tmp_path: Path, platform: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[events.Event] = []
    rules = Rules(debit_note_interval_s=1, cover_s=20, least_cover_s=3, cover_spare_s=1)
    preset = Preset(name="cheap", env_per_hour="0.36")
    async with ChainWorld(tmp_path, platform) as world:
        golem = session(world, seen)
        async with GreedyAgent(world.config(rules=rules, presets=(preset,)), world.provider_http), golem:
            with pytest.raises(PeerFailed) as caught:
                async with golem.rent(image=world.root / "image") as machine:
                    await machine.shell("sleep 60")
            assert caught.value.code == "bill_too_high"
            await until(lambda: _said(caplog, "bill_too_high: it bills"), 30)
        assert [event.code for event in seen if isinstance(event, events.ProviderLeft)] == ["bill_too_high"]
        assert world.tokens(world.bob.id) == 0


async def _some(seen: list[events.Event], kind: type) -> bool:
    return any(isinstance(event, kind) for event in seen)


async def _said(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return any(record.name.startswith("shem.provider.") and words in record.getMessage() for record in caplog.records)

"""A payer with many channels: a turn of its loop costs in proportion to them."""

from __future__ import annotations

import secrets
import time
from typing import Any

import pytest

from shem.node.payment.channel import Channel, Cover
from shem.node.payment.channel_store import Target

PLATFORM = "channel-devnet-tglm"
TGLM = 10**18


def add_channels(node: Any, count: int, *, due: bool = False) -> None:
    """As if so many providers were at work, with half of their cover left; ``due``: and should have been paid by now."""
    shared, now = node.payments.channels.shared, int(time.time())
    vault = shared.chains[PLATFORM].vault
    with node.db.transaction():
        for _ in range(count):
            names = {"owner": node.id, "role": "Requestor", "peer_id": "0x" + secrets.token_hex(20)}
            parts = names | {"platform": PLATFORM, "payer": node.id, "payee": names["peer_id"]}
            channel = Channel(
                **parts,
                channel_id="0x" + secrets.token_hex(32),
                signer=node.id,
                nonce=1,
                chain_id=vault.chain_id,
                vault=vault.address,
                reserved=TGLM // 10,
                valid_until=now + 90_000,
                owed=TGLM // 100,
                signed=TGLM // 100,
                signature=bytes(65),
                created_at=now,
            )
            shared.store.save(channel)
            cover = Cover(
                **parts,
                agreement_id=secrets.token_hex(32),
                wanted=TGLM // 10,
                least=TGLM // 100,
                ends_at=now + 3600,
                changed_at=now,
            )
            shared.store.save_cover(cover)
            if due:
                amounts = {"amount": TGLM // 100, "target": TGLM // 100}
                shared.store.save_target(
                    Target(**_place(parts), **amounts, order_id=secrets.token_hex(16), settle_at=now)
                )


def _place(parts: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in parts.items() if name != "role"}


def work_of_a_turn(node: Any) -> int:
    """In hundreds of instructions of the database's machine."""
    done = 0

    def count() -> int:
        nonlocal done
        done += 1
        return 0

    node.db.connection.set_progress_handler(count, 100)
    node.payments.channels.payer.step()
    node.db.connection.set_progress_handler(None, 0)
    return done


@pytest.mark.parametrize("due", [False, True])
async def test_a_turn_costs_in_proportion_to_the_channels(tmp_path, open_channels, due):
    async with open_channels(tmp_path) as world:
        alice = world.nodes["alice"]
        await alice.allocate("50", platform=PLATFORM)
        add_channels(alice, 20, due=due)
        few = work_of_a_turn(alice)
        add_channels(alice, 140, due=due)
        many = work_of_a_turn(alice)
        assert few < many < 12 * few  # eight times as many channels; by the square it would be sixty-four times


async def test_a_list_of_many_channels_asks_the_database_three_times(tmp_path, open_channels):
    """Programs look at it after each bill."""
    async with open_channels(tmp_path) as world:
        alice = world.nodes["alice"]
        add_channels(alice, 50)
        asked: list[str] = []
        alice.db.connection.set_trace_callback(asked.append)
        found = alice.payments.channels.listed(alice.id)
        alice.db.connection.set_trace_callback(None)
        assert len(asked) == 3
        assert [len(agreements) for _, agreements in found] == [1] * 50

"""A node whose key is locked, over REST: it answers, it says why it does not sign, and it goes on once it is unlocked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shem.cli import exit_status
from shem.client.http import ApiClient
from shem.client.identity import IdentityApi
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.cogs.places import owners_key
from shem.errors import KeyLocked, Misconfigured, NotAllowed
from shem.node.app import Node
from shem.node.config import NetworkConfig, NodeConfig
from shem.node.identity.keys import Identity
from shem.node.identity.keystore import read_secret
from shem.node.payment.payouts import payouts
from shem.node.peer.loopback import Loopback

WORDS = "correct horse battery"
PROGRAM = "sesame-sesame"
COLD = "0x" + "c0" * 20
CHAIN = NetworkConfig(chain_id=1337, rpc_urls=("http://127.0.0.1:1",), token="0x" + "11" * 20, vault="0x" + "22" * 20)
OFFER: dict[str, Any] = {"golem.node.debug.subnet": "keys"}


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def config(directory: Path, **more: Any) -> NodeConfig:
    return NodeConfig(data_dir=directory, api_port=0, **more)


def owner(node: Node) -> ApiClient:
    return ApiClient(node.api_url, owners_key(node.config.data_dir))


def where(asked: Node, other: Node) -> tuple[str, ...]:
    """Where one node believes another to be."""
    known = asked.peers._gossip.book.get(other.identity.node_id)
    return () if known is None else known[0].addresses


async def test_a_node_that_starts_locked_answers_and_goes_on_once_it_is_unlocked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    loopback, places = Loopback(), (tmp_path / "alice", tmp_path / "bob")
    Identity.open_or_create(places[1], WORDS)
    said: list[str] = []
    async with Node(config(places[0]), transport=loopback.transport) as alice:
        near = (alice.peers.address(),)
        bobs = config(places[1], bootstrap=near, app_key=PROGRAM)
        async with Node(bobs, transport=loopback.transport, passphrase=WORDS) as bob, owner(bob) as http:
            assert not (await IdentityApi(http).keys()).locked
            kept = await MarketApi(http).subscribe_offer(OFFER, "()")
            await until(lambda: alice.market.core.book.get(kept) is not None)
        await until(lambda: alice.market.core.book.get(kept) is None)

        async with Node(bobs, transport=loopback.transport) as bob, owner(bob) as http:
            keys, market = IdentityApi(http), MarketApi(http)
            await until(lambda: alice.peers.connected() == [bob.identity.node_id])
            assert (await keys.keys()).locked
            assert [offer.offer_id for offer in await market.offers()] == [kept]
            assert await PaymentApi(http).allocations() == []
            with pytest.raises(KeyLocked) as locked:
                await market.subscribe_offer(OFFER, "()")
            assert (locked.value.code, exit_status(locked.value)) == ("identity_locked", 7)
            said.append(str(locked.value))
            assert alice.market.core.book.get(kept) is None
            with pytest.raises(NotAllowed) as wrong:
                await keys.unlock("battery staple")
            assert wrong.value.code == "wrong_passphrase"
            said.append(str(wrong.value))
            async with ApiClient(bob.api_url, PROGRAM) as program:
                for ask in (
                    IdentityApi(program).keys(),
                    IdentityApi(program).unlock(WORDS),
                    IdentityApi(program).lock(),
                ):
                    with pytest.raises(NotAllowed) as stranger:
                        await ask
                    assert stranger.value.code == "not_the_owner"
            assert bob.identity.locked

            here = tuple(bob.peers._transport.addresses())
            assert where(alice, bob) != here, "as it was signed before, for want of a key"
            assert not (await keys.unlock(WORDS)).locked
            await until(lambda: where(alice, bob) == here)
            await until(lambda: alice.market.core.book.get(kept) is not None)
            other = await market.subscribe_offer(OFFER, "()")
            await until(lambda: alice.market.core.book.get(other) is not None)
            assert (await keys.lock()).locked
            await market.unsubscribe_offer(other)
            assert [offer.offer_id for offer in await market.offers()] == [kept]
    shown = caplog.text + "".join(said)
    secret = read_secret(places[1], WORDS)
    for hidden in (WORDS, "battery staple", secret.hex(), repr(secret), PROGRAM, owners_key(places[1])):
        assert hidden not in shown


async def test_who_signs_vouchers_and_where_a_node_is_paid(tmp_path: Path) -> None:
    given = config(tmp_path, networks={"devnet": CHAIN}, payout=COLD)
    async with Node(given, transport=Loopback().transport) as node, owner(node) as http:
        keys = await IdentityApi(http).keys()
        assert (keys.voucher_signer, keys.own_passphrase) == (node.identity.node_id, False)
        assert {(p.platform, p.address) for p in keys.payouts} == {
            ("erc20-devnet-glm", COLD),
            ("channel-devnet-glm", COLD),
        }
        made = (await IdentityApi(http).voucher_signer(own=True)).voucher_signer
        assert made == node.payments.books.voucher_signer.node_id != node.identity.node_id
        receiving = {a.platform: a.address for a in await PaymentApi(http).provider_accounts()}
        sending = {a.platform: a.address for a in await PaymentApi(http).requestor_accounts()}
        assert receiving == {"erc20-devnet-glm": COLD, "channel-devnet-glm": COLD, "free": node.identity.node_id}
        assert set(sending.values()) == {node.identity.node_id}
    async with Node(given, transport=Loopback().transport) as node, owner(node) as http:
        assert node.payments.books.voucher_signer.node_id == made
        assert (await IdentityApi(http).voucher_signer(own=False)).voucher_signer == node.identity.node_id


@pytest.mark.parametrize("bad", ["0x12", "0x" + "00" * 20, "me", "0x" + "Ab" * 20])
@pytest.mark.parametrize("place", ["payout", "networks.mine.payout"])
def test_a_mistyped_payout_address_stops_the_start_where_no_network_is_served_yet(bad: str, place: str) -> None:
    mine = NetworkConfig(chain_id=5, rpc_urls=(), token="0x" + "11" * 20, payout="" if place == "payout" else bad)
    with pytest.raises(Misconfigured, match=f"^{place}: ") as refused:
        payouts([], bad if place == "payout" else "", {"mine": mine})
    assert refused.value.code == "bad_payout_address"


@pytest.mark.parametrize("bad", ["0x12", "0x" + "00" * 20, "0x" + "11" * 20, "0x" + "22" * 20, "me", "0x" + "Ab" * 20])
async def test_an_address_that_cannot_be_paid_stops_the_start(tmp_path: Path, bad: str) -> None:
    with pytest.raises(Misconfigured) as refused:
        async with Node(config(tmp_path, networks={"devnet": CHAIN}, payout=bad), transport=Loopback().transport):
            pass
    assert refused.value.code == "bad_payout_address"

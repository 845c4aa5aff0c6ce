"""Letters between two nodes: what cannot be taken now holds up nothing else, and bills keep their order."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from shem.errors import PeerFailed
from shem.node.payment.protocol import AcceptanceMessage, NoteMessage, Signed


class NotNow(PeerFailed):
    """Try again."""

    default_code = "not_now"


def hold(node: Any, kind: str, held: set[str], arrived: list[str] | None = None) -> None:
    """The node takes no letters about the documents in ``held``."""
    routes = node.network._board.routes
    method = f"payment.{kind}"
    route = routes[method]
    shape = {"debit-note": NoteMessage, "acceptance": AcceptanceMessage}[kind]

    async def handler(peer: Any, request: bytes) -> bytes:
        message: Any = msgspec.msgpack.decode(msgspec.msgpack.decode(request, type=Signed).payload, type=shape)
        if message.document_id in held:
            raise NotNow("not now")
        if arrived is not None:
            arrived.append(message.document_id)
        answer: bytes = await route.handler(peer, request)
        return answer

    routes[method] = type(route)(handler, route.max_request)


async def test_a_letter_that_waits_holds_up_no_other(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("10")
    notes = [await bob.bill_note(world.deals.activity(deal), "0.01") for _ in range(5)]
    held = set(notes[:2])
    hold(bob, "acceptance", held)
    for note in notes:
        alice.accept("debit-note", note, "0.01", allocation)
    await wait(lambda: [bob.state(note) for note in notes[2:]] == ["ACCEPTED"] * 3, "the others")
    assert [bob.state(note) for note in notes[:2]] == ["RECEIVED", "RECEIVED"]
    held.clear()
    await wait(lambda: {bob.state(note) for note in notes} == {"ACCEPTED"}, "the first two")
    await wait(lambda: not alice.payments.books.store.letters(bob.id, 1), "an empty box")


async def test_notes_of_an_activity_keep_their_order(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    one, other = world.deals.activity(deal), world.deals.activity(deal)
    first = bob.note(one, "0.01")
    held, arrived = {first}, list[str]()
    hold(alice, "debit-note", held, arrived)
    later = [bob.note(one, f"0.0{n}") for n in range(2, 6)]
    others = [bob.note(other, f"0.0{n}") for n in range(1, 4)]
    async with asyncio.TaskGroup() as group:
        for note in (first, *later, *others):
            group.create_task(bob.send("debit-note", note))
        await wait(lambda: [alice.state(note) for note in others] == ["RECEIVED"] * 3, "the other activity")
        assert [alice.state(note) for note in later] == [""] * 4
        held.clear()
    assert {bob.state(note) for note in (first, *later, *others)} == {"RECEIVED"}
    assert [note for note in arrived if note in (first, *later)] == [first, *later]


async def test_many_letters_leave_together_and_arrive_once_each(world, alice, bob, wait):
    deal = world.deals.make(alice.id, bob.id)
    allocation = await alice.allocate("10")
    notes = [await bob.bill_note(world.deals.activity(deal), "0.01") for _ in range(150)]
    await bob.stop()  # away while alice accepts
    for note in notes:
        alice.accept("debit-note", note, "0.01", allocation)
    await bob.start()
    await wait(lambda: bob.account(deal).accepted == 15 * 10**17, "all of them", 10)
    await wait(lambda: not alice.payments.books.store.letters(bob.id, 1), "an empty box")
    assert {bob.state(note) for note in notes} == {"ACCEPTED"}
    assert bob.events("debit-note").count("Accepted") == len(notes)

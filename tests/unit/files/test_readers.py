"""Only those who work for us may read what we publish."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from shem.node.files.readers import Readers
from shem.node.market.lifecycle import Agreement
from shem.terms.ids import NodeId

ALICE, BOB, CAROL = (NodeId("0x" + letter * 40) for letter in "abc")


class Book:
    def __init__(self, *approved: Agreement) -> None:
        self._approved = approved
        self.tell: Callable[[Agreement, str], None]

    def approved(self) -> tuple[Agreement, ...]:
        return self._approved

    def on_agreement(self, handler: Callable[[Agreement, str], None]) -> None:
        self.tell = handler


def agreement(key: str, provider: NodeId, **facts: object) -> Agreement:
    now = datetime.now(UTC)
    given: dict[str, object] = {}
    for field in msgspec.structs.fields(Agreement):
        if field.required:
            given[field.name] = {datetime: now, dict: {}}.get(field.type, "")  # type: ignore[call-overload]
    given |= {
        "agreement_id": key,
        "provider_id": provider,
        "requestor_id": ALICE,
        "role": "Requestor",
        "state": "Approved",
        **facts,
    }
    return Agreement(**given)  # type: ignore[arg-type]


def test_from_approval_to_end() -> None:
    book = Book()
    readers = Readers(book)
    assert not readers.may_read(BOB, ALICE)
    book.tell(agreement("1", BOB), "Approved")
    book.tell(agreement("2", BOB), "Approved")
    assert readers.may_read(BOB, ALICE)
    assert not readers.may_read(CAROL, ALICE)
    book.tell(agreement("1", BOB), "Terminated")
    assert readers.may_read(BOB, ALICE)
    book.tell(agreement("2", BOB), "Terminated")
    assert not readers.may_read(BOB, ALICE)


def test_working_for_one_identity_is_not_working_for_another() -> None:
    readers = Readers(Book(agreement("1", BOB)))
    assert readers.may_read(BOB, ALICE)
    assert not readers.may_read(BOB, CAROL)


def test_after_a_restart_and_not_for_those_we_work_for() -> None:
    book = Book(agreement("1", BOB))
    readers = Readers(book)
    assert readers.may_read(BOB, ALICE)
    book.tell(agreement("2", CAROL, role="Provider"), "Approved")
    assert not readers.may_read(CAROL, ALICE)

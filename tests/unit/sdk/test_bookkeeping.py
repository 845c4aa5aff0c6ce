"""What a session enters of payments that it is told of."""

from __future__ import annotations

from datetime import UTC, datetime

from shem.client.http import ApiClient
from shem.client.payment import PaymentApi
from shem.sdk import events
from shem.sdk.bookkeeping import Bookkeeper
from shem.terms.amounts import format_amount
from shem.terms.budgets import Limits
from shem.wire.payment import Settlement
from tests.unit.sdk.test_purse import TOKEN, hired

PAYOUT = "0x" + "fe" * 20


def payment(number: int, **amounts: int) -> Settlement:
    return Settlement(
        payment_id=f"p{number}",
        platform="erc20-devnet-tglm",
        payer="0xme",
        payee=PAYOUT,
        amount=format_amount(sum(amounts.values())),
        tx_hash="0xabc",
        block_number=7,
        block_hash="0xdef",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
        agreement_ids=list(amounts),
        role="Requestor",
        amounts={agreement: format_amount(amount) for agreement, amount in amounts.items()},
    )


async def test_of_a_payment_for_several_programs_each_enters_its_own() -> None:
    told: list[events.Event] = []
    books = Bookkeeper(
        PaymentApi(ApiClient("http://127.0.0.1:9", "nobody")),
        allocation_id="a",
        limits=Limits(total=10 * TOKEN),
        session_id="s",
        platform="erc20-devnet-tglm",
        emit=told.append,
        leave=lambda *_: None,
    )
    mine = hired(1, "0xprovider")
    agreement = mine.agreement.agreement_id
    books.open(mine, threads=1)
    first = payment(1, **{"another-programs": 3 * TOKEN, agreement: TOKEN})
    for heard in (first, first, payment(2, **{"another-programs": TOKEN}), payment(3, **{agreement: TOKEN // 2})):
        books.settled(heard)
    settled = [event for event in told if isinstance(event, events.PaymentSettled)]
    assert [(e.provider_id, e.amount, e.agreement_ids) for e in settled] == [
        ("0xprovider", TOKEN, (agreement,)),
        ("0xprovider", TOKEN // 2, (agreement,)),
    ]
    assert books._accounts[agreement].settled == TOKEN + TOKEN // 2

"""Work long enough for debit notes, with short intervals agreed on; some notes are paid while the work goes on."""

from datetime import UTC, datetime, timedelta

from common import Record, image, run, until
from yapapi import Golem
from yapapi.services import Service
from yapapi.strategy import (
    PROP_DEBIT_NOTE_INTERVAL_SEC,
    PROP_PAYMENT_TIMEOUT_SEC,
    LeastExpensiveLinearPayuMS,
    PropValueRange,
)

INTERVAL, PAYMENT, NOTES = 2, 4, 4


class Impatient(LeastExpensiveLinearPayuMS):
    """Wants a note every two seconds, and to pay every four."""

    def __init__(self):
        super().__init__()
        self.acceptable_prop_value_range_overrides = {
            PROP_DEBIT_NOTE_INTERVAL_SEC: PropValueRange(INTERVAL, INTERVAL),
            PROP_PAYMENT_TIMEOUT_SEC: PropValueRange(PAYMENT, PAYMENT),
        }


class Busy(Service):
    """Does nothing but last."""

    @staticmethod
    async def get_payload():
        return await image()


async def main():
    record = Record()
    async with Golem(budget=1, event_consumer=record, strategy=Impatient()) as golem:
        await golem.run_service(Busy, expiration=datetime.now(UTC) + timedelta(hours=6))
        await until(lambda: len(record.of("DebitNoteAccepted")) >= NOTES)
    agreement = record.of("AgreementConfirmed")[0].agreement
    notes = [event.debit_note for event in record.of("DebitNoteAccepted")]
    return {
        "negotiated": [
            agreement.get_provider_property(key) for key in (PROP_DEBIT_NOTE_INTERVAL_SEC, PROP_PAYMENT_TIMEOUT_SEC)
        ],
        "asked": [note.total_amount_due for note in notes],
        "payable": len([note for note in notes if note.payment_due_date]),
        "failed": len(record.of("PaymentFailed")),
        "reasons": [event.reason for event in record.of("AgreementTerminated")],
    }


run(main())

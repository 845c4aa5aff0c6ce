"""The Payment API (``/payment-api/v1``) and our payment additions, over the payment service.

Long polls answer at once when there is something. Errors of allocation calls are ``application/problem+json`` with a
``message`` beside its ``detail``, since programs look for either.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from aiohttp import web

from shem.errors import NotFound, NotImplementedHere, Refused, ShemError
from shem.node.payment.allocations import MAX_ACTIVE, AllocationNotFound, BadPlatform, TimeoutPassed, view
from shem.node.payment.ledger import AllocationReleased, FundsShort
from shem.node.payment.protocol import read_invoice, read_note
from shem.node.payment.service import Payments
from shem.node.payment.store import Document, Event, Kind, Transfer, from_us
from shem.node.rest import payment_ours
from shem.node.rest.server import (
    DEFAULT_POLL_S,
    caller,
    names,
    query_limit,
    query_seconds,
    query_time,
    read_json,
    respond,
    status_of,
)
from shem.terms.amounts import format_amount
from shem.wire import payment as wire
from shem.wire.base import encode

ROOT = "/payment-api/v1"
OURS = "/shem-api/v1"
MAX_LIST = 1000
MAX_EVENTS = 1000
DEFAULT_EVENTS = 100
MAX_DECORATED = 32
SEND_TIMEOUT_S = 10.0

_REQUESTOR_DEFAULT = "RECEIVED,CANCELLED"
_PROVIDER_DEFAULT = "ACCEPTED,REJECTED,SETTLED,CANCELLED"
_EVENT_TYPES = {
    name: f"{name.capitalize()}Event" for name in ("RECEIVED", "ACCEPTED", "REJECTED", "SETTLED", "CANCELLED", "FAILED")
}
_PREFIX: dict[Kind, str] = {"debit-note": "DebitNote", "invoice": "Invoice"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def routes(payments: Payments) -> list[web.RouteDef]:
    """Everything under the two roots."""
    door = _Door(payments)
    notes: Kind = "debit-note"
    invoices: Kind = "invoice"
    table: list[tuple[str, str, Handler]] = [
        ("POST", f"{ROOT}/allocations", door.create_allocation),
        ("GET", f"{ROOT}/allocations", door.allocations),
        ("GET", f"{ROOT}/allocations/{{id}}", door.allocation),
        ("PUT", f"{ROOT}/allocations/{{id}}", door.amend_allocation),
        ("DELETE", f"{ROOT}/allocations/{{id}}", door.release_allocation),
        ("GET", f"{ROOT}/demandDecorations", door.decorations),
        ("GET", f"{ROOT}/requestorAccounts", door.requestor_accounts),
        ("GET", f"{ROOT}/providerAccounts", door.provider_accounts),
        ("POST", f"{ROOT}/debitNotes", door.issue_note),
        ("GET", f"{ROOT}/debitNotes", door.documents(notes)),
        ("GET", f"{ROOT}/debitNotes/{{id}}", door.document(notes)),
        ("POST", f"{ROOT}/debitNotes/{{id}}/send", door.send(notes)),
        ("POST", f"{ROOT}/debitNotes/{{id}}/accept", door.accept(notes)),
        ("POST", f"{ROOT}/debitNotes/{{id}}/reject", door.not_here),
        ("POST", f"{ROOT}/debitNotes/{{id}}/cancel", door.not_here),
        ("GET", f"{ROOT}/debitNotes/{{id}}/payments", door.not_here),
        ("GET", f"{ROOT}/debitNoteEvents", door.events(notes)),
        ("POST", f"{ROOT}/invoices", door.issue_invoice),
        ("GET", f"{ROOT}/invoices", door.documents(invoices)),
        ("GET", f"{ROOT}/invoices/{{id}}", door.document(invoices)),
        ("POST", f"{ROOT}/invoices/{{id}}/send", door.send(invoices)),
        ("POST", f"{ROOT}/invoices/{{id}}/accept", door.accept(invoices)),
        ("POST", f"{ROOT}/invoices/{{id}}/reject", door.reject_invoice),
        ("POST", f"{ROOT}/invoices/{{id}}/cancel", door.cancel_invoice),
        ("GET", f"{ROOT}/invoices/{{id}}/payments", door.not_here),
        ("GET", f"{ROOT}/invoiceEvents", door.events(invoices)),
        ("GET", f"{ROOT}/payments", door.payments),
        ("GET", f"{ROOT}/payments/status", door.driver_status),
        ("GET", f"{ROOT}/payments/{{id}}", door.payment),
        ("GET", f"{OURS}/payment/debitNotes/{{id}}/audit", door.audit(notes)),
        ("GET", f"{OURS}/payment/invoices/{{id}}/audit", door.audit(invoices)),
    ]
    return [web.route(method, path, handler) for method, path, handler in table] + payment_ours.routes(payments)


class _Door:
    def __init__(self, payments: Payments) -> None:
        self._payments = payments

    # --- allocations ---

    async def create_allocation(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewAllocation)
        try:
            made = await self._payments.allocations.create(caller(request), body)
        except ShemError as error:
            return _problem(error, body, caller(request), self._platform(body.payment_platform))
        return respond(view(made), 201)

    def _platform(self, choice: str | wire.PlatformChoice | None) -> str | None:
        """The platform that a choice comes down to; ``None`` when there is no such."""
        try:
            return self._payments.allocations.platform(choice).platform
        except BadPlatform:
            return None

    async def allocations(self, request: web.Request) -> web.Response:
        limit = query_limit(request, "maxItems", MAX_ACTIVE, most=MAX_ACTIVE)
        found = self._payments.allocations.active(caller(request), query_time(request, "afterTimestamp"), limit)
        return respond([view(allocation) for allocation in found])

    async def allocation(self, request: web.Request) -> web.Response:
        return respond(view(self._payments.allocations.get(caller(request), names(request)["id"])))

    async def amend_allocation(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.AllocationChange)
        allocation = self._payments.allocations.get(caller(request), names(request)["id"])
        try:
            amended = await self._payments.allocations.amend(caller(request), allocation.allocation_id, body)
        except (AllocationNotFound, AllocationReleased, TimeoutPassed):
            raise
        except ShemError as error:
            return _problem(error, body, caller(request), allocation.platform)
        return respond(view(amended))

    async def release_allocation(self, request: web.Request) -> web.Response:
        self._payments.allocations.release(caller(request), names(request)["id"])
        return respond(None)

    async def decorations(self, request: web.Request) -> web.Response:
        given = request.query.getall("allocationIds", [])
        if len(given) != 1:
            raise Refused("allocationIds must be given once, ids separated by commas", code="bad_query")
        ids = given[0].split(",")
        if len(ids) > MAX_DECORATED:
            raise Refused(f"allocationIds may name {MAX_DECORATED} allocations", code="bad_query")
        return respond(self._payments.allocations.decorations(caller(request), ids))

    async def requestor_accounts(self, request: web.Request) -> web.Response:
        return respond(self._payments.allocations.accounts(caller(request), send=True))

    async def provider_accounts(self, request: web.Request) -> web.Response:
        return respond(self._payments.allocations.accounts(caller(request), send=False))

    # --- documents ---

    async def issue_note(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewDebitNote)
        return respond(note_view(await self._payments.issue(caller(request), body)), 201)

    async def issue_invoice(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.NewInvoice)
        return respond(invoice_view(await self._payments.issue(caller(request), body)), 201)

    def documents(self, kind: Kind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            limit = query_limit(request, "maxItems", MAX_LIST, most=MAX_LIST)
            after = query_time(request, "afterTimestamp")
            return respond([_view(d) for d in self._payments.documents(caller(request), kind, after, limit)])

        return handle

    def document(self, kind: Kind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return respond(_view(self._payments.document(caller(request), kind, names(request)["id"])))

        return handle

    def send(self, kind: Kind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            timeout_s = query_seconds(request, default=SEND_TIMEOUT_S)
            await self._payments.provider.send(caller(request), kind, names(request)["id"], timeout_s)
            return respond(None)

        return handle

    def accept(self, kind: Kind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            body = await read_json(request, wire.Acceptance)
            wait_s = query_seconds(request)  # for money to be reserved; the provider is told when it can be
            self._payments.allocations.release_expired()
            document_id = names(request)["id"]
            await self._payments.accept(caller(request), kind, document_id, body, cover_wait_s=wait_s)
            return respond(None)

        return handle

    async def reject_invoice(self, request: web.Request) -> web.Response:
        body = await read_json(request, wire.Rejection)
        self._payments.requestor.reject_invoice(caller(request), names(request)["id"], body)
        return respond(None)

    async def cancel_invoice(self, request: web.Request) -> web.Response:
        timeout_s = query_seconds(request, default=SEND_TIMEOUT_S)
        await self._payments.provider.cancel_invoice(caller(request), names(request)["id"], timeout_s)
        return respond(None)

    async def not_here(self, request: web.Request) -> web.Response:
        raise NotImplementedHere("neither this node nor the original offers this call")

    def audit(self, kind: Kind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return respond(self._payments.requestor.audit(caller(request), kind, names(request)["id"]))

        return handle

    # --- events ---

    def events(self, kind: Kind) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            found = await self._payments.events(
                caller(request),
                kind,
                after=query_time(request, "afterTimestamp"),
                limit=query_limit(request, "maxEvents", DEFAULT_EVENTS, most=MAX_EVENTS),
                session=request.query.get("appSessionId") or None,
                wanted=[
                    *_wanted(request, "Requestor", _REQUESTOR_DEFAULT, kind),
                    *_wanted(request, "Provider", _PROVIDER_DEFAULT, kind),
                ],
                timeout_s=query_seconds(request),
            )
            return respond([_event_view(event) for event in found])

        return handle

    # --- payments ---

    async def payments(self, request: web.Request) -> web.Response:
        found = await self._transfers(request, DEFAULT_POLL_S)
        network, driver = request.query.get("network"), request.query.get("driver")
        platforms = self._payments.books.platforms
        if network or driver:
            found = [
                transfer
                for transfer in found
                if (platform := platforms.get(transfer.platform)) is not None
                and network in (None, "", platform.network)
                and driver in (None, "", platform.driver)
            ]
        return respond([payment_view(transfer) for transfer in found])

    async def _transfers(self, request: web.Request, timeout_s: float = 0.0) -> list[Transfer]:
        return await self._payments.transfers(
            caller(request),
            after=query_time(request, "afterTimestamp"),
            limit=query_limit(request, "maxEvents", DEFAULT_EVENTS, most=MAX_EVENTS),
            session=request.query.get("appSessionId") or None,
            timeout_s=query_seconds(request, default=timeout_s),
        )

    async def payment(self, request: web.Request) -> web.Response:
        found = self._payments.books.store.transfer(names(request)["id"], caller(request))
        if found is None or found.state != "final":
            raise NotFound("there is no such payment", code="payment_not_found")
        return respond(payment_view(found))

    async def driver_status(self, request: web.Request) -> web.Response:
        return respond(
            [
                wire.DriverStatus(
                    kind=problem.code,
                    code=problem.more or None,
                    driver=problem.driver,
                    network=problem.network,
                    message=problem.message,
                    address=problem.address or None,
                    platform=problem.platform or None,
                    needed_amount=problem.needed or None,
                )
                for problem in self._payments.problems()
            ]
        )


# --- shapes ----------------------------------------------------------------------------------------------------------


def _view(document: Document) -> wire.DebitNote | wire.Invoice:
    return note_view(document) if document.kind == "debit-note" else invoice_view(document)


def note_view(document: Document) -> wire.DebitNote:
    """A debit note as the API shows it."""
    note = read_note(document.payload)
    return wire.DebitNote(
        debit_note_id=note.document_id,
        issuer_id=note.issuer,
        recipient_id=note.recipient,
        payee_addr=note.payee,
        payer_addr=note.payer,
        payment_platform=note.platform,
        timestamp=document.created_at,
        agreement_id=note.agreement_id,
        activity_id=note.activity_id,
        total_amount_due=format_amount(document.amount),
        status=document.state.value,
        previous_debit_note_id=note.previous_id,
        usage_counter_vector=note.usage,
        payment_due_date=document.due_at,
    )


def invoice_view(document: Document) -> wire.Invoice:
    """An invoice as the API shows it."""
    invoice = read_invoice(document.payload)
    return wire.Invoice(
        invoice_id=invoice.document_id,
        issuer_id=invoice.issuer,
        recipient_id=invoice.recipient,
        payee_addr=invoice.payee,
        payer_addr=invoice.payer,
        payment_platform=invoice.platform,
        timestamp=document.created_at,
        agreement_id=invoice.agreement_id,
        activity_ids=invoice.activity_ids,
        amount=format_amount(document.amount),
        payment_due_date=from_us(invoice.due_at),
        status=document.state.value,
    )


def payment_view(transfer: Transfer) -> wire.Payment:
    """A transfer as the API shows it."""
    return wire.Payment(
        payment_id=transfer.payment_id,
        payer_id=transfer.payer_id,
        payee_id=transfer.payee_id,
        payer_addr=transfer.payer,
        payee_addr=transfer.payee,
        payment_platform=transfer.platform,
        amount=format_amount(transfer.amount),
        timestamp=transfer.at,
        agreement_payments=[
            wire.AgreementPayment(
                agreement_id=part.agreement_id,
                amount=format_amount(int(part.amount)),
                allocation_id=part.allocation_id,
            )
            for part in transfer.parts
            if part.activity_id is None
        ],
        activity_payments=[
            wire.ActivityPayment(
                activity_id=part.activity_id,
                amount=format_amount(int(part.amount)),
                allocation_id=part.allocation_id,
            )
            for part in transfer.parts
            if part.activity_id is not None
        ],
        details=base64.b64encode(_hash_bytes(transfer.tx_hash)).decode(),
    )


def _hash_bytes(tx_hash: str) -> bytes:
    try:
        return bytes.fromhex(tx_hash.removeprefix("0x"))
    except ValueError:
        return tx_hash.encode()


def _event_view(event: Event) -> wire.DebitNoteEvent | wire.InvoiceEvent:
    rejection = None if event.rejection is None else msgspec.json.decode(event.rejection, type=wire.Rejection)
    if event.kind == "debit-note":
        return wire.DebitNoteEvent(
            debit_note_id=event.document_id, event_date=event.at, event_type=event.type, rejection=rejection
        )
    return wire.InvoiceEvent(
        invoice_id=event.document_id, event_date=event.at, event_type=event.type, rejection=rejection
    )


def _wanted(request: web.Request, role: str, default: str, kind: Kind) -> Iterable[tuple[str, str]]:
    """(role, event type) pairs of the header for ``role``. Names this node never sends are no error."""
    listed = request.headers.get(f"X-{role}-Events", default)
    for word in listed.split(","):
        suffix = _EVENT_TYPES.get(word.strip().upper())
        if suffix is not None:
            yield role, _PREFIX[kind] + suffix


def _problem(
    error: ShemError, body: wire.NewAllocation | wire.AllocationChange, owner: str, platform: str | None
) -> web.Response:
    """``application/problem+json``, as the API has it for allocations. ``platform``: the one that is meant."""
    base = f"{ROOT}/allocations/"
    problem: dict[str, Any] = {"detail": error.message, "requestBody": msgspec.to_builtins(body)}
    if isinstance(error, BadPlatform):
        problem |= {
            "type": base + "bad-payment-platform",
            "detail": "Payment platform doesn't parse",
            "parseError": error.message,
            "requestedPaymentPlatform": problem["requestBody"].get("paymentPlatform"),
        }
    elif isinstance(error, Refused | FundsShort):
        problem |= {"type": base + "validation-error", "address": owner, "paymentPlatform": platform}
        if isinstance(error, TimeoutPassed):
            problem["instance"] = base + "validation-error/timeout-passed"
            problem["requestedTimeout"] = problem["requestBody"].get("timeout")
        elif isinstance(error, FundsShort):
            problem["instance"] = base + "validation-error/insufficient-account-funds"
            problem |= {
                "requestedFunds": error.details["requested_funds"],
                "availableFunds": error.details["available_funds"],
                "reservedFunds": error.details["reserved_funds"],
            }
    else:
        problem["type"] = base + "internal-error"
    message = problem.get("parseError", error.message)
    problem |= {"message": message, "code": error.code}
    if error.hint:
        problem["hint"] = error.hint
    return web.Response(body=encode(problem), status=status_of(error), content_type="application/problem+json")

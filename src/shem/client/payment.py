"""Typed calls of the payment API: one method per endpoint, for both roles, and our own additions to it.

Amounts are decimal strings. Event methods are long polls: ``timeout_s`` is how long the node may hold the answer, an
empty list means nothing came, and nothing is consumed by reading: pass the last ``event_date`` as ``after`` (strictly
after) to go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, TypeVar
from urllib.parse import quote

from shem.client.http import ApiClient
from shem.wire import payment as wire
from shem.wire.base import utc

_T = TypeVar("_T")

_ROOT = "/payment-api/v1"
_OURS = "/shem-api/v1"
_SPARE_S = 15.0
"""What a long poll may take beyond its own timeout before the node counts as unreachable."""


class PaymentApi:
    """The money of one node, for the identity of the client's key.

    Errors are those of :class:`~shem.client.http.ApiClient`: ``NotFound`` for what is not there, ``Gone`` for a released
    allocation, ``Conflict`` for the wrong moment, ``MoneyShort`` when funds or an allocation do not suffice, ``Refused``,
    ``PeerFailed`` when the other node does not answer (it will be told when it does).
    """

    def __init__(self, http: ApiClient) -> None:
        self._http = http

    # allocations

    async def create_allocation(self, allocation: wire.NewAllocation) -> wire.Allocation:
        """Set money aside. ``MoneyShort`` when the account does not hold it beside what is reserved."""
        return await self._http.call("POST", f"{_ROOT}/allocations", json=allocation, into=wire.Allocation)

    async def allocations(
        self, *, after: datetime | None = None, max_items: int | None = None
    ) -> list[wire.Allocation]:
        """Those that are not released, oldest first."""
        params = {"afterTimestamp": _time(after), "maxItems": max_items}
        return await self._http.call("GET", f"{_ROOT}/allocations", params=params, into=list[wire.Allocation])

    async def allocation(self, allocation_id: str) -> wire.Allocation:
        """One; ``NotFound`` after its release."""
        return await self._http.call("GET", f"{_ROOT}/allocations/{allocation_id}", into=wire.Allocation)

    async def amend_allocation(self, allocation_id: str, change: wire.AllocationChange) -> wire.Allocation:
        """Another total or time-out."""
        path = f"{_ROOT}/allocations/{allocation_id}"
        return await self._http.call("PUT", path, json=change, into=wire.Allocation)

    async def release_allocation(self, allocation_id: str) -> None:
        """Set nothing aside any more; ``Gone`` the second time. What is spent stays owed."""
        await self._http.call("DELETE", f"{_ROOT}/allocations/{allocation_id}")

    async def demand_decorations(self, allocation_ids: Sequence[str]) -> wire.Decorations:
        """What these allocations add to a demand."""
        params = {"allocationIds": ",".join(allocation_ids)}
        return await self._http.call("GET", f"{_ROOT}/demandDecorations", params=params, into=wire.Decorations)

    async def requestor_accounts(self) -> list[wire.Account]:
        """Where this node can pay from; the default platform first."""
        return await self._http.call("GET", f"{_ROOT}/requestorAccounts", into=list[wire.Account])

    async def provider_accounts(self) -> list[wire.Account]:
        """Where this node can be paid; the default platform first."""
        return await self._http.call("GET", f"{_ROOT}/providerAccounts", into=list[wire.Account])

    # debit notes

    async def issue_debit_note(self, note: wire.NewDebitNote) -> wire.DebitNote:
        """As provider: the running total of an activity. Then :meth:`send_debit_note`."""
        return await self._http.call("POST", f"{_ROOT}/debitNotes", json=note, into=wire.DebitNote)

    async def send_debit_note(self, debit_note_id: str, *, timeout_s: float = 10.0) -> None:
        """As provider. ``PeerFailed`` when the requestor did not answer in time (sending goes on); ``Refused`` when its
        node will not take the note (which is then ``FAILED``). Sending again is harmless."""
        await self._send(f"/debitNotes/{debit_note_id}/send", timeout_s)

    async def debit_notes(self, *, after: datetime | None = None, max_items: int | None = None) -> list[wire.DebitNote]:
        """Both roles', oldest first."""
        params = {"afterTimestamp": _time(after), "maxItems": max_items}
        return await self._http.call("GET", f"{_ROOT}/debitNotes", params=params, into=list[wire.DebitNote])

    async def debit_note(self, debit_note_id: str) -> wire.DebitNote:
        """One."""
        return await self._http.call("GET", f"{_ROOT}/debitNotes/{debit_note_id}", into=wire.DebitNote)

    async def accept_debit_note(
        self, debit_note_id: str, acceptance: wire.Acceptance, *, timeout_s: float = 0.0
    ) -> None:
        """As requestor, at exactly the amount asked. Again is harmless. ``MoneyShort`` (``cover_short``, ``no_channel``)
        when too little was reserved for its provider ``timeout_s`` later still: try again."""
        await self._accept(f"/debitNotes/{debit_note_id}/accept", acceptance, timeout_s)

    async def debit_note_events(
        self,
        *,
        after: datetime | None = None,
        app_session_id: str | None = None,
        timeout_s: float = 5.0,
        max_events: int | None = None,
        requestor_events: Iterable[str] | None = None,
        provider_events: Iterable[str] | None = None,
    ) -> list[wire.DebitNoteEvent]:
        """``requestor_events``/``provider_events``: which (``RECEIVED``, ``ACCEPTED`` …) for documents of that role."""
        headers = _wanted(requestor_events, provider_events)
        path = f"{_ROOT}/debitNoteEvents"
        return await self._poll(path, after, app_session_id, timeout_s, max_events, headers, list[wire.DebitNoteEvent])

    # invoices

    async def issue_invoice(self, invoice: wire.NewInvoice) -> wire.Invoice:
        """As provider: the final sum of an agreement. Then :meth:`send_invoice`."""
        return await self._http.call("POST", f"{_ROOT}/invoices", json=invoice, into=wire.Invoice)

    async def send_invoice(self, invoice_id: str, *, timeout_s: float = 10.0) -> None:
        """As :meth:`send_debit_note`."""
        await self._send(f"/invoices/{invoice_id}/send", timeout_s)

    async def cancel_invoice(self, invoice_id: str, *, timeout_s: float = 10.0) -> None:
        """As provider; ``Conflict`` once it is accepted."""
        await self._send(f"/invoices/{invoice_id}/cancel", timeout_s)

    async def invoices(self, *, after: datetime | None = None, max_items: int | None = None) -> list[wire.Invoice]:
        """Both roles', oldest first."""
        params = {"afterTimestamp": _time(after), "maxItems": max_items}
        return await self._http.call("GET", f"{_ROOT}/invoices", params=params, into=list[wire.Invoice])

    async def invoice(self, invoice_id: str) -> wire.Invoice:
        """One."""
        return await self._http.call("GET", f"{_ROOT}/invoices/{invoice_id}", into=wire.Invoice)

    async def accept_invoice(self, invoice_id: str, acceptance: wire.Acceptance, *, timeout_s: float = 0.0) -> None:
        """As requestor, at exactly the amount asked. Again is harmless. ``MoneyShort`` (``cover_short``, ``no_channel``)
        when too little was reserved for its provider ``timeout_s`` later still: try again."""
        await self._accept(f"/invoices/{invoice_id}/accept", acceptance, timeout_s)

    async def reject_invoice(self, invoice_id: str, rejection: wire.Rejection) -> None:
        """As requestor; the provider hears why."""
        await self._http.call("POST", f"{_ROOT}/invoices/{invoice_id}/reject", json=rejection)

    async def invoice_events(
        self,
        *,
        after: datetime | None = None,
        app_session_id: str | None = None,
        timeout_s: float = 5.0,
        max_events: int | None = None,
        requestor_events: Iterable[str] | None = None,
        provider_events: Iterable[str] | None = None,
    ) -> list[wire.InvoiceEvent]:
        """As :meth:`debit_note_events`."""
        headers = _wanted(requestor_events, provider_events)
        path = f"{_ROOT}/invoiceEvents"
        return await self._poll(path, after, app_session_id, timeout_s, max_events, headers, list[wire.InvoiceEvent])

    # payments

    async def payments(
        self,
        *,
        after: datetime | None = None,
        app_session_id: str | None = None,
        timeout_s: float = 5.0,
        max_events: int | None = None,
    ) -> list[wire.Payment]:
        """Transfers that settled, both roles', oldest first. A long poll."""
        return await self._poll(
            f"{_ROOT}/payments", after, app_session_id, timeout_s, max_events, {}, list[wire.Payment]
        )

    async def driver_status(self) -> list[wire.DriverStatus]:
        """Why payments wait; empty when none does."""
        return await self._http.call("GET", f"{_ROOT}/payments/status", into=list[wire.DriverStatus])

    async def settlements(
        self,
        *,
        after: datetime | None = None,
        app_session_id: str | None = None,
        timeout_s: float = 5.0,
        max_events: int | None = None,
    ) -> list[wire.Settlement]:
        """:meth:`payments` with their places on the chain. A long poll."""
        path = f"{_OURS}/settlements"
        return await self._poll(path, after, app_session_id, timeout_s, max_events, {}, list[wire.Settlement])

    async def status(self) -> list[wire.PlatformStatus]:
        """Every platform's money at a glance."""
        return await self._http.call("GET", f"{_OURS}/payment/status", into=list[wire.PlatformStatus])

    async def channels(self) -> list[wire.ChannelStatus]:
        """The caller's payment channels, oldest first, closed ones too."""
        return await self._http.call("GET", f"{_OURS}/payment/channels", into=list[wire.ChannelStatus])

    async def transactions(
        self, *, after: datetime | None = None, limit: int | None = None, timeout_s: float = 0.0
    ) -> list[wire.Transaction]:
        """What the caller's account did on its chains or means to do, the newest first. A long poll for the first."""
        params = {"after": _time(after), "limit": limit, "timeout": timeout_s}
        path = f"{_OURS}/payment/transactions"
        wait_s = timeout_s + _SPARE_S
        return await self._http.call("GET", path, params=params, timeout_s=wait_s, into=list[wire.Transaction])

    async def transaction(
        self, transaction_id: str, *, unless: str | None = None, timeout_s: float = 0.0
    ) -> wire.Transaction:
        """One, by its id or that of a deposit or withdrawal; waits until its state is another than ``unless``."""
        path = f"{_OURS}/payment/transactions/{quote(transaction_id, safe='')}"
        return await self._wait(path, unless, timeout_s, wire.Transaction)

    async def retry(self, transaction_id: str) -> None:
        """Do anew what it was for, when another program's transaction took its place. ``Conflict`` (``not_stuck``) while
        it may still be mined."""
        path = f"{_OURS}/payment/transactions/{quote(transaction_id, safe='')}/retry"
        await self._http.call("POST", path)

    async def received(self, *, limit: int | None = None) -> list[wire.Settlement]:
        """What came to the caller for good, the newest first."""
        path = f"{_OURS}/payment/received"
        return await self._http.call("GET", path, params={"limit": limit}, into=list[wire.Settlement])

    async def deposit(self, move: wire.MoneyMove) -> wire.Asked:
        """From the wallet into the vault. ``MoneyShort`` for more than there is to spare, ``Refused`` without a vault."""
        return await self._http.call("POST", f"{_OURS}/payment/deposit", json=move, into=wire.Asked)

    async def withdraw(self, move: wire.MoneyMove) -> wire.Asked:
        """What is free in the vault to the wallet, or to ``receiver``."""
        return await self._http.call("POST", f"{_OURS}/payment/withdraw", json=move, into=wire.Asked)

    async def exit(self, order: wire.ExitOrder) -> wire.Asked:
        """Close or pay the channels, then take out everything. ``Conflict`` (``work_running``) while work goes on."""
        return await self._http.call("POST", f"{_OURS}/payment/exit", json=order, into=wire.Asked)

    async def exit_status(self, exit_id: str, *, unless: str | None = None, timeout_s: float = 0.0) -> wire.ExitStatus:
        """How far an exit is; waits until its state is another than ``unless``."""
        path = f"{_OURS}/payment/exits/{quote(exit_id, safe='')}"
        return await self._wait(path, unless, timeout_s, wire.ExitStatus)

    async def deploy_vault(self, order: wire.VaultOrder) -> wire.VaultAsked:
        """Put the standard vault on a chain. ``Conflict`` (``vault_there``) where it stands already, ``Refused`` where the
        chain has no way to put it there (``no_deployer``, ``vault_refused``)."""
        return await self._http.call("POST", f"{_OURS}/payment/vault", json=order, into=wire.VaultAsked)

    async def _wait(self, path: str, unless: str | None, timeout_s: float, into: type[_T]) -> _T:
        params = {"unless": unless, "timeout": timeout_s}
        return await self._http.call("GET", path, params=params, timeout_s=timeout_s + _SPARE_S, into=into)

    async def audit(self, kind: Literal["debitNotes", "invoices"], document_id: str) -> wire.Audit:
        """What the node knows about a received document, before it is accepted."""
        return await self._http.call("GET", f"{_OURS}/payment/{kind}/{document_id}/audit", into=wire.Audit)

    async def _accept(self, path: str, acceptance: wire.Acceptance, timeout_s: float) -> None:
        params, most_s = {"timeout": timeout_s}, timeout_s + _SPARE_S
        await self._http.call("POST", _ROOT + path, json=acceptance, params=params, timeout_s=most_s)

    async def _send(self, path: str, timeout_s: float) -> None:
        await self._http.call("POST", _ROOT + path, params={"timeout": timeout_s}, timeout_s=timeout_s + _SPARE_S)

    async def _poll(
        self,
        path: str,
        after: datetime | None,
        app_session_id: str | None,
        timeout_s: float,
        max_events: int | None,
        headers: dict[str, str],
        into: type[_T],
    ) -> _T:
        params = {
            "timeout": timeout_s,
            "afterTimestamp": _time(after),
            "maxEvents": max_events,
            "appSessionId": app_session_id,
        }
        return await self._http.call(
            "GET", path, params=params, headers=headers, timeout_s=timeout_s + _SPARE_S, into=into
        )


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else utc(moment).isoformat().replace("+00:00", "Z")


def _wanted(requestor: Iterable[str] | None, provider: Iterable[str] | None) -> dict[str, str]:
    headers = {}
    if requestor is not None:
        headers["X-Requestor-Events"] = ",".join(requestor)
    if provider is not None:
        headers["X-Provider-Events"] = ",".join(provider)
    return headers

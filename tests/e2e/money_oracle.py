"""Whether money is where it belongs, asked from outside: the chain, and the REST API of every node.

Nothing here knows how payments are made. The books of both sides, the token's balances and the vault's channels must tell
the same story: for each agreement what was billed, accepted and settled is one sum on both nodes; each provider's tokens have
grown by exactly the sum of its agreements; nothing is reserved or allocated, and no token came from or went to anywhere else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from shem.client.http import ApiClient
from shem.client.market import MarketApi
from shem.client.payment import PaymentApi
from shem.node.payment.drivers.evm import vault
from shem.terms.amounts import format_amount, parse_amount
from shem.testing.devchain import places
from shem.testing.devnet import Devnet, DevNode
from shem.wire.payment import DebitNote, Invoice, Payment

_BALANCE_OF = "0x70a08231"
_VOID = frozenset({"REJECTED", "CANCELLED", "FAILED"})
PAGE = 1000

T = TypeVar("T")


@dataclass
class Sums:
    """One agreement's money on one node, in base units."""

    billed: int = 0
    accepted: int = 0
    settled: int = 0
    invoiced: bool = False


@dataclass
class Books:
    """What one node says."""

    node: DevNode
    sums: dict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    providers: dict[str, str] = field(default_factory=dict)
    """Agreement → who is paid for it (its address)."""
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wealth:
    """Where the tokens are, in base units."""

    wallets: dict[str, int]
    free: int
    """In the vault, the requestor's."""
    vault: int
    """All that the vault has."""

    @property
    def total(self) -> int:
        """Every token of anybody on the network."""
        return sum(self.wallets.values()) + self.vault


class Oracle:
    """The network's money. ``begin`` once, before anything is paid; then ``problems`` says what is not as it must be."""

    def __init__(self, net: Devnet) -> None:
        self._net = net
        self._before: Wealth | None = None

    async def begin(self) -> None:
        """Remember where the tokens are."""
        self._before = await self._wealth()

    async def problems(self, rented: set[str]) -> list[str]:
        """Every deviation, in words. ``rented``: agreements that somebody has worked on, so must have been billed."""
        books = [await read(node) for node in (self._net.requestor, *self._net.providers)]
        found = [problem for one in books for problem in one.problems]
        found += compare(books[0], books[1:], rented)
        found += await self._on_the_chain(books[0], books[1:])
        return found

    async def earned(self, agreements: set[str]) -> int:
        """What was accepted for some agreements, in base units."""
        sums = (await read(self._net.requestor)).sums
        return sum(sums[agreement].accepted for agreement in agreements)

    # the chain

    async def _on_the_chain(self, payer: Books, payees: list[Books]) -> list[str]:
        before, now = self._before, await self._wealth()
        assert before is not None
        found = []
        for payee in payees:
            got = now.wallets[payee.node.node_id] - before.wallets[payee.node.node_id]
            due = sum(s.accepted for a, s in payer.sums.items() if payer.providers[a] == payee.node.node_id)
            if got != due:
                found.append(f"{payee.node.name} has got {format_amount(got)} for work of {format_amount(due)}")
        if now.total != before.total:
            found.append(f"tokens came or went: {format_amount(before.total)} before, {format_amount(now.total)} now")
        if now.vault != now.free:
            found.append(f"the vault has {format_amount(now.vault - now.free)} that is nobody's free balance")
        return [*found, *await self._channels()]

    async def _channels(self) -> list[str]:
        where = {"address": places.VAULT_ADDRESS, "fromBlock": "0x0", "toBlock": "latest"}
        logs = await self._net.rpc("eth_getLogs", where | {"topics": [vault.RESERVED_TOPIC]})
        found = []
        for channel in {log["topics"][3] for log in logs}:
            on_chain = vault.read_channel(
                await self._call(places.VAULT_ADDRESS, vault.channel(bytes.fromhex(channel[2:])))
            )
            if on_chain.is_open:
                left = on_chain.reserved - on_chain.claimed
                found.append(f"channel {channel[:10]} still holds {format_amount(left)}")
        return found

    async def _wealth(self) -> Wealth:
        nodes = (self._net.requestor, *self._net.providers)
        wallets = {node.node_id: await self._balance(node.node_id) for node in nodes}
        free, _ = vault.read_account(await self._call(places.VAULT_ADDRESS, vault.account(self._net.requestor.node_id)))
        return Wealth(wallets, free, await self._balance(places.VAULT_ADDRESS))

    async def _balance(self, address: str) -> int:
        call = bytes.fromhex(_BALANCE_OF[2:] + address.removeprefix("0x").rjust(64, "0"))
        return int(await self._call(places.TOKEN_ADDRESS, call), 16)

    async def _call(self, contract: str, call: bytes) -> str:
        return str(await self._net.rpc("eth_call", {"to": contract, "data": "0x" + call.hex()}, "latest"))


# the books


async def read(node: DevNode) -> Books:
    """One node's agreements, and what is still under way there."""
    async with ApiClient(node.api_url, node.app_key) as http:
        payment = PaymentApi(http)
        books = Books(node)
        notes = await _all(lambda after: payment.debit_notes(after=after, max_items=PAGE), lambda d: d.timestamp)
        invoices = await _all(lambda after: payment.invoices(after=after, max_items=PAGE), lambda d: d.timestamp)
        paid = await _all(
            lambda after: payment.payments(after=after, timeout_s=0, max_events=PAGE), lambda p: p.timestamp
        )
        _add_up(books, notes, invoices, paid)
        for allocation in await payment.allocations():
            books.problems.append(f"{node.name} still sets {allocation.remaining_amount} aside")
        for channel in await payment.channels():
            if channel.state != "closed":
                books.problems.append(
                    f"{node.name} has channel {channel.channel_id[:10]} {channel.state}: {channel.reserved} reserved, "
                    f"{channel.signed} signed, {channel.claimed} claimed"
                )
        for platform in await payment.status():
            if platform.error or parse_amount(platform.reserved):
                told = platform.error or f"{platform.reserved} reserved"
                books.problems.append(f"{node.name} on {platform.platform}: {told}")
        for entry in await MarketApi(http).list_agreements(state="Approved"):
            books.problems.append(f"{node.name} has agreement {entry.id[:8]} going on")
    return books


def _add_up(books: Books, notes: list[DebitNote], invoices: list[Invoice], payments: list[Payment]) -> None:
    chains: dict[tuple[str, str], Sums] = defaultdict(Sums)
    for note in notes:
        due = parse_amount(note.total_amount_due)
        chain = chains[note.agreement_id, note.activity_id]
        chain.billed = max(chain.billed, due if note.status not in _VOID else 0)
        chain.accepted = max(chain.accepted, due if note.status in ("ACCEPTED", "SETTLED") else 0)
    for (agreement, _), chain in chains.items():
        books.sums[agreement].billed += chain.billed
        books.sums[agreement].accepted += chain.accepted
    for invoice in invoices:
        sums, due = books.sums[invoice.agreement_id], parse_amount(invoice.amount)
        if invoice.status not in _VOID:
            if sums.invoiced:
                books.problems.append(f"{books.node.name} has two invoices for {invoice.agreement_id[:8]}")
            sums.invoiced, sums.billed = True, max(sums.billed, due)
        if invoice.status in ("ACCEPTED", "SETTLED"):
            sums.accepted = max(sums.accepted, due)
    agreement_of = {activity: agreement for agreement, activity in chains}
    for payment in payments:
        for whole in payment.agreement_payments:
            books.sums[whole.agreement_id].settled += parse_amount(whole.amount)
        for part in payment.activity_payments:
            books.sums[agreement_of[part.activity_id]].settled += parse_amount(part.amount)
    for invoice in invoices:
        books.providers[invoice.agreement_id] = invoice.payee_addr.lower()
        if invoice.status != "SETTLED":
            books.problems.append(f"{books.node.name}: the invoice of {invoice.agreement_id[:8]} is {invoice.status}")
    final = {invoice.agreement_id for invoice in invoices if invoice.status == "SETTLED"}
    for note in notes:
        books.providers[note.agreement_id] = note.payee_addr.lower()
        # answered by a higher one, where several came at once; or one whose sending a crash has cut off, by the final bill
        answered = parse_amount(note.total_amount_due) <= chains[note.agreement_id, note.activity_id].accepted
        waits = note.status in ("ISSUED", "RECEIVED") and not answered and note.agreement_id not in final
        if waits or note.status not in ("ISSUED", "RECEIVED", "SETTLED"):
            books.problems.append(f"{books.node.name}: a debit note of {note.agreement_id[:8]} is {note.status}")


def compare(payer: Books, payees: list[Books], rented: set[str]) -> list[str]:
    """Both sides of every agreement, which must be one sum."""
    found = []
    theirs = {agreement: (books, sums) for books in payees for agreement, sums in books.sums.items()}
    for agreement in rented | set(payer.sums) | set(theirs):
        books, provider = theirs.get(agreement, (None, Sums()))
        mine, name = payer.sums.get(agreement, Sums()), agreement[:8]
        told = {
            "billed": provider.billed,
            "heard": mine.billed,
            "accepted": mine.accepted,
            "acceptance heard": provider.accepted,
            "paid": mine.settled,
            "payment seen": provider.settled,
        }
        if len(set(told.values())) > 1:
            words = ", ".join(f"{what} {format_amount(amount)}" for what, amount in told.items())
            found.append(f"agreement {name} with {books.node.name if books else 'nobody'}: {words}")
        if agreement in rented and not (mine.invoiced and provider.invoiced):
            found.append(f"agreement {name} was worked on and has no final bill")
    return found


async def _all(page: Callable[[datetime | None], Awaitable[list[T]]], at: Callable[[T], datetime]) -> list[T]:
    found: list[T] = []
    after: datetime | None = None
    while more := await page(after):
        found += more
        after = at(more[-1])
    return found


def in_words(problems: list[str]) -> str:
    """For a test's failure."""
    return "\n".join(f"  - {problem}" for problem in problems) or "  - nothing"

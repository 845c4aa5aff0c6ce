"""The live picture of a session: one bar for the work, one line for each machine, and at the end who was paid what."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shem.sdk import events
from shem.sdk.estimate import Estimate
from shem.sdk.plain import plain
from shem.sdk.report import Report
from shem.terms.amounts import format_amount

MAX_NAME = 24
"""Characters of a provider's name that are shown."""
MAX_NOTE = 40
MAX_QUOTES = 30
"""Providers of an estimate that are shown."""
LEAN: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "padding": (0, 1, 0, 0), "title_justify": "left"}
"""How tables look: without a frame, so that 18 decimals twice fit into 80 columns."""


class _WorkBar(BarColumn):
    """A bar for the work as a whole; machines have none, as nobody knows how much each will get."""

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        without = task.fields.get("machine") or task.fields.get("money")
        return Text("") if without else super().render(task)


class _Spinner(SpinnerColumn):
    """Rests also for work that was not brought to its end."""

    def render(self, task: Task) -> RenderableType:
        return self.finished_text if task.fields.get("resting") else super().render(task)


class _Count(ProgressColumn):
    """``7/24`` for the work, ``3 done`` for a machine."""

    def render(self, task: Task) -> Text:
        if task.fields.get("money"):
            return Text("")
        done = int(task.completed)
        if task.fields.get("machine"):
            return Text(f"{done} done", style="progress.download")
        return Text(f"{done}/{'?' if task.total is None else int(task.total)}", style="progress.download")


class ProgressDisplay:
    """Listens to events and draws on stderr, so that a program's own output stays clean."""

    def __init__(self, report: Report, console: Console | None = None) -> None:
        self._report = report
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            _Spinner(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            _WorkBar(),
            _Count(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=False,
        )
        self._work: TaskID | None = None
        self._money: TaskID | None = None
        self._rows: dict[int, TaskID] = {}
        self._channels: dict[str, TaskID] = {}
        self._running = False

    def _start(self) -> None:
        if not self._running:
            self._progress.start()
            self._running = True

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.DemandPublished() | events.TasksAdded():
                self._start()
                if self._work is None:
                    self._work = self._progress.add_task("tasks", total=None, note="looking for providers")
                if isinstance(event, events.TasksAdded):
                    self._progress.update(self._work, total=event.total)
            case events.RentalProgress(rental=rental, provider_name=name, message=message, done=done, total=total):
                row = self._row(rental, name)
                amount = f" {done >> 20}/{total >> 20} MiB" if done and total and event.unit == "Bytes" else ""
                self._progress.update(row, note=plain(message + amount, MAX_NOTE))
            case events.RentalStarted(rental=rental, provider_name=name):
                self._progress.update(self._row(rental, name), note="ready")
            case events.TaskStarted(task=task, rental=rental, provider_name=name):
                self._progress.update(self._row(rental, name), note=f"task {task}")
                if self._work is not None:
                    self._progress.update(self._work, note="")
            case events.TaskFinished(rental=rental):
                if self._work is not None:
                    self._progress.advance(self._work)
                if rental in self._rows:
                    self._progress.advance(self._rows[rental])
            case events.TaskFailed(task=task, reason=reason, retried=retried):
                what = "goes to another machine" if retried else "given up"
                self._warn(f"task {task} failed and {what}: {plain(reason)}")
            case events.ProviderLeft(provider_name=name, reason=reason):
                self._warn(f"{plain(name, MAX_NAME)} is left: {plain(reason)}")
            case events.RentalEnded(rental=rental, reason=reason) if rental in self._rows:
                row = self._rows[rental]
                # a total makes the row finished, so that its spinner rests
                self._progress.update(row, note=plain(reason, MAX_NOTE), total=self._progress.tasks[row].completed)
                self._progress.stop_task(row)
            case events.BudgetSet(price=price) if price is not None:
                self._progress.console.print(budget_words(event), markup=False, highlight=False)
            case events.SpendingChanged() if self._running:
                if self._money is None:
                    self._money = self._progress.add_task("money", total=None, note="", money=True)
                self._progress.update(self._money, note=spending_words(event, self._report))
            case events.BillWaits(provider_id=pid, reason=reason):
                name = plain(self._name(pid), MAX_NAME)
                self._warn(f"a bill of {name} is not accepted yet and waits: {plain(reason)}")
            case events.ChannelChanged():
                self._show_channel(event)
            case _:
                pass

    def _show_channel(self, channel: events.ChannelChanged) -> None:
        self._start()
        row = self._channels.get(channel.channel_id)
        if row is None:
            row = self._channels[channel.channel_id] = self._progress.add_task("", total=None, note="", money=True)
        # a provider's name may have come since
        name = f"  voucher {plain(self._name(channel.provider_id), MAX_NAME)}"
        self._progress.update(row, description=name, note=channel_words(channel, self._report.token))
        if channel.state == "closed":
            self._progress.update(row, total=0)
            self._progress.stop_task(row)

    def _name(self, provider_id: str) -> str:
        provider = self._report.providers.get(provider_id)
        return provider_id[:10] if provider is None else provider.name

    def _warn(self, words: str) -> None:
        self._progress.console.print(words, markup=False, highlight=False, style="yellow")

    def _row(self, rental: int, name: str) -> TaskID:
        self._start()
        if rental not in self._rows:
            self._rows[rental] = self._progress.add_task(
                f"  {plain(name, MAX_NAME)}", total=None, note="", machine=True
            )
        return self._rows[rental]

    def close(self) -> None:
        """Stop drawing and show the bill."""
        if self._running:
            for row in (self._money, *self._rows.values(), *self._channels.values()):
                if row is not None:  # a total makes the row finished, so that its spinner rests
                    self._progress.update(row, total=self._progress.tasks[row].completed)
                    self._progress.stop_task(row)
            if self._work is not None:
                self._progress.update(self._work, resting=True)
                self._progress.stop_task(self._work)
            self._progress.stop()
            self._running = False
        if self._report.providers:
            show_bill(self._report, self._console)


def spending_words(event: events.SpendingChanged, report: Report) -> str:
    """What is owed by now at most, of how much, and how fast it grows; shortened upwards, for the eye alone."""
    limit = report.budget.limits.total if report.budget is not None else None
    of = "" if limit is None else f" of {format_amount(limit)}"
    return f"≤ {_short(event.owed)}{of} {report.token}, {_short(event.hourly)}/h"


def channel_words(channel: events.ChannelChanged, token: str) -> str:
    """How far the voucher has grown of what is reserved; shortened, for the eye alone."""
    if channel.state == "closed":
        back = channel.reserved - channel.claimed
        return f"{_short(channel.claimed)} paid, {_short(back)} back"
    ending = ", closing" if channel.state == "closing" else ""
    return f"{_short(channel.signed)} of {_short(channel.reserved)} {token}{ending}"


def budget_words(event: events.BudgetSet) -> str:
    """What a budget in dollars comes to, and by which price."""
    limits, written = event.limits, event.written
    pairs = (
        ("", written.total, limits.total),
        (" per hour", written.per_hour, limits.per_hour),
        (" per provider", written.per_provider, limits.per_provider),
    )
    parts = [f"{w}{words} = {format_amount(u)} {event.token}{words}" for words, w, u in pairs if w and u is not None]
    return f"budget of the {event.of}: {'; '.join(parts)}, at {event.price}"


def _short(units: int) -> str:
    """At most six decimals, rounded up."""
    return format_amount(-(-units // 10**12), 6)


def show_estimate(found: Estimate, console: Console) -> None:
    """What each provider would take, and the cheapest, the middle and the dearest of them."""
    what = f"{found.tasks} task{'s' * (found.tasks != 1)} of {found.seconds:g} s on {found.machines} machine(s)"
    table = Table(title=f"What {what} would cost now, fully used", **LEAN)
    table.add_column("provider", overflow="fold")
    for heading in ("hour", "a task", f"all {found.token}".strip()):
        table.add_column(heading, justify="right", overflow="fold")
    for q in found.quotes[:MAX_QUOTES]:
        table.add_row(Text(plain(q.name, MAX_NAME)), *(format_amount(u) for u in (q.hourly, q.per_task, q.total)))
    table.add_section()
    if len(found.quotes) > MAX_QUOTES:
        table.add_row(f"… {len(found.quotes) - MAX_QUOTES} more", "", "", "")
    for word, total in (("cheapest", found.minimum), ("middle", found.median), ("dearest", found.maximum)):
        table.add_row(word, "", "", format_amount(total))
    console.print(table)
    if found.budget is not None:
        fits = "fits" if found.fits_budget else "may not fit"
        budget = f"{format_amount(found.budget)} {found.token}".strip()
        console.print(f"It takes about {found.duration_s:g} s and {fits} the budget of {budget}.")


def show_bill(report: Report, console: Console) -> None:
    """Per provider: what it did and what it cost; then each settled payment with its hash and block."""
    table = Table(title="Who did what, for how much", **LEAN)
    table.add_column("provider", overflow="fold")
    table.add_column("tasks", justify="right", no_wrap=True)
    table.add_column("busy", justify="right", no_wrap=True)
    for heading in (f"cost {report.token}".strip(), "paid"):
        table.add_column(heading, justify="right", overflow="fold")  # a sum may be broken, and is never cut
    for p in report.providers.values():
        if p.rentals or p.cost:
            table.add_row(
                Text(plain(p.name, MAX_NAME)),
                str(p.tasks),
                f"{p.busy_s:.1f} s",
                format_amount(p.cost),
                format_amount(p.paid),
            )
    table.add_section()
    table.add_row("all", str(report.tasks_done), "", format_amount(report.cost), format_amount(report.paid))
    console.print(table)
    if report.budget is not None and report.budget.price is not None:
        console.print(budget_words(report.budget), markup=False, highlight=False, soft_wrap=True)
    for p in report.providers.values():
        name = plain(p.name, MAX_NAME)
        for reason in p.refused.values():
            words = f"not paid: the bill of {name}: {plain(reason)}"
            console.print(words, style="yellow", markup=False, soft_wrap=True)
        for bill in p.waiting.values():
            words = f"not accepted yet: {format_amount(bill.amount)} that {name} asks: {plain(bill.reason)}"
            console.print(words, style="yellow", markup=False, soft_wrap=True)
        if p.unbilled:
            console.print(f"{name} has sent no bill for {len(p.unbilled)} agreement(s)", style="yellow", markup=False)
    show_channels(report, console)
    show_transactions(report, console)


def show_channels(report: Report, console: Console) -> None:
    """What was reserved for each provider on the chain, how much of it was promised by voucher, and what came back."""
    channels = [(p.name, c) for p in report.providers.values() for c in p.channels.values()]
    if not channels:
        return
    table = Table(title="Paid by channel", **LEAN)
    table.add_column("provider", overflow="fold")
    for heading in ("reserved", f"last voucher {report.token}".strip(), "came back"):
        table.add_column(heading, justify="right", overflow="fold")
    for name, channel in channels:
        closed = channel.state == "closed"
        back = format_amount(channel.reserved - channel.claimed) if closed else f"after {channel.valid_until:%H:%M} UTC"
        amounts = (format_amount(channel.reserved), format_amount(channel.signed), back)
        table.add_row(Text(plain(name, MAX_NAME)), *amounts)
    console.print(table)


def show_transactions(report: Report, console: Console) -> None:
    """Where on the chain it was paid: each transaction once, with all whom it paid."""
    reserved: dict[tuple[str, str], list[str]] = {}
    paid: dict[tuple[str, str], list[str]] = {}
    for provider in report.providers.values():
        name = plain(provider.name, MAX_NAME)
        for channel in provider.channels.values():
            _add(reserved, (channel.opened_tx, ""), name)
        for payment in provider.payments:
            if payment.tx_hash:
                _add(paid, (payment.tx_hash, f"block {payment.block_number}: "), name)
    for title, lines in (("Reserved on the chain", reserved), ("Settled on the chain", paid)):
        if lines:
            console.print(title, style="bold")
        for (tx_hash, block), names in lines.items():
            # a line of its own, however narrow the terminal: a hash that is cut cannot be looked up
            console.print(f"  {tx_hash}", soft_wrap=True, markup=False, highlight=False)
            whom = Text(block + ", ".join(names))
            console.print(Padding(whom, (0, 0, 0, 4), expand=False))


def _add(lines: dict[tuple[str, str], list[str]], place: tuple[str, str], name: str) -> None:
    names = lines.setdefault(place, [])
    if name not in names:
        names.append(name)

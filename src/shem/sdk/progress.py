"""The live picture of a session: one bar for the work, one line for each machine, and at the end who was paid what."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from shem.sdk import events
from shem.sdk.report import Report
from shem.terms.amounts import format_amount


class ProgressDisplay:
    """Listens to events and draws on stderr, so that a program's own output stays clean."""

    def __init__(self, report: Report, console: Console | None = None) -> None:
        self._report = report
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=False,
        )
        self._work: TaskID | None = None
        self._rows: dict[int, TaskID] = {}
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
                self._progress.update(row, note=message + amount)
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
                self._progress.console.print(f"task {task} failed and {what}: {reason}", markup=False, style="yellow")
            case events.ProviderLeft(provider_name=name, reason=reason):
                self._progress.console.print(f"{name} is left: {reason}", markup=False, style="yellow")
            case events.RentalEnded(rental=rental, reason=reason) if rental in self._rows:
                self._progress.update(self._rows[rental], note=reason)
                self._progress.stop_task(self._rows[rental])
            case _:
                pass

    def _row(self, rental: int, name: str) -> TaskID:
        self._start()
        if rental not in self._rows:
            self._rows[rental] = self._progress.add_task(f"  {name}", total=None, note="")
        return self._rows[rental]

    def close(self) -> None:
        """Stop drawing and show the bill."""
        if self._running:
            if self._work is not None:
                self._progress.stop_task(self._work)
            self._progress.stop()
            self._running = False
        if self._report.providers:
            self._console.print(bill(self._report))


def bill(report: Report) -> Table:
    """Per provider: what it did, what it cost, and the settled payments with hash and block."""
    table = Table(title="Who did what, and was paid what", title_justify="left")
    for heading in ("provider", "tasks", "busy"):
        table.add_column(heading, justify="left" if heading == "provider" else "right")
    table.add_column(f"cost {report.token}".strip(), justify="right")
    table.add_column("paid", justify="right")
    table.add_column("transaction", overflow="fold")
    table.add_column("block", justify="right")
    for p in report.providers.values():
        if not p.rentals and not p.cost:
            continue
        table.add_row(
            p.name,
            str(p.tasks),
            f"{p.busy_s:.1f} s",
            format_amount(p.cost),
            format_amount(p.paid),
            "\n".join(s.tx_hash or "free" for s in p.payments) or "–",
            "\n".join(str(s.block_number) if s.block_number is not None else "–" for s in p.payments) or "–",
        )
    table.add_section()
    table.add_row("all", str(report.tasks_done), "", format_amount(report.cost), format_amount(report.paid), "", "")
    return table

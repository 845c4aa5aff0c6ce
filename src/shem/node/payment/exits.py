"""An owner takes its money out of a vault: channels are closed or paid, vouchers collected, what is free is withdrawn.

An exit is a row. At each turn of the channels' loop it asks for what is left to do: idle channels are closed with their
payees' word, those that cannot be are paid up to their vouchers, and what is held of others is redeemed; all of it by the
hands that do so anyway (:mod:`~shem.node.payment.channel_payer`, :mod:`~shem.node.payment.channel_payee`). When nothing of
it is under way any more, what is free then is withdrawn, and when that is final the exit is over. What payees have a right
to until a term ends stays in the vault and comes back by itself: the exit tells how much and until when, and waits for no
term.
"""

from __future__ import annotations

import logging
import sqlite3
import uuid
from datetime import datetime
from typing import Literal

import msgspec

from shem.errors import Conflict
from shem.node.payment.channel import Channel
from shem.node.payment.channel_books import LOOK_ERRORS, ChannelBooks
from shem.node.payment.channel_payee import Payee
from shem.node.payment.channel_payer import Payer
from shem.node.payment.drivers.vaults import ChainWord, Ended, Opened, VaultChain
from shem.node.payment.store import from_us, to_us

log = logging.getLogger(__name__)

MIGRATIONS = (
    """
create table payment_exit (
    exit_id text primary key, owner text not null, platform text not null, receiver text not null,
    state text not null, withdrawal text not null, withdrawn text not null, detail text not null,
    created_at integer not null
);
create index payment_exit_open on payment_exit (state, owner);
""",
)

PATIENCE_S = 120.0
"""How long payees may take to agree to the end of their channels."""
TRIES = 3
"""How often a channel is paid, or collected from, and how often a withdrawal is asked for; then the exit goes on without."""
RETRY_S = 2.0
MAX_REMEMBERED = 100
"""Exits of an owner, those that are over with them."""
EXITED = "exit"
"""The pulse of an owner's exits."""


class WorkRunning(Conflict):
    """Agreements go on, or programs have set money aside."""

    default_code = "work_running"


class NothingThere(Conflict):
    """There is no money to move."""

    default_code = "nothing_there"


class ExitUnderWay(Conflict):
    """Another exit from this vault is not over."""

    default_code = "exit_under_way"


class Exit(msgspec.Struct, frozen=True, kw_only=True):
    """One row. ``withdrawal`` names the request to the vault, empty before it is made."""

    exit_id: str
    owner: str
    platform: str
    receiver: str
    state: Literal["open", "done", "failed"] = "open"
    withdrawal: str = ""
    withdrawn: int = 0
    detail: str = ""
    created_at: datetime


class Locked(msgspec.Struct, frozen=True):
    """What stays in a channel for its payee until its term is over."""

    channel: Channel
    amount: int


class Exits:
    """The exits of one node."""

    def __init__(self, shared: ChannelBooks, payer: Payer, payee: Payee) -> None:
        self._shared = shared
        self._books = shared.books
        self._payer = payer
        self._payee = payee
        self._withdrawing: set[str] = set()
        self._tries: dict[tuple[str, str], int] = {}
        self._not_before: dict[str, float] = {}
        shared.books.db.migrate("payment_exit", MIGRATIONS)

    # --- asking ---

    def begin(self, owner: str, platform: str, receiver: str, *, force: bool) -> Exit:
        """A new exit, or the one that is under way to the same receiver.

        Raises :class:`WorkRunning` unless forced, :class:`ExitUnderWay`.
        """
        same = self._same_vault(platform)
        open_one = self.open_one(owner, platform)
        if open_one is not None:
            if open_one.receiver != receiver:
                raise ExitUnderWay(
                    f"an exit to {open_one.receiver} is under way", hint="wait until it is over", id=open_one.exit_id
                )
            return open_one
        if not force:
            self._refuse_while_working(owner, same)
        begun = Exit(
            exit_id=str(uuid.uuid4()),
            owner=owner,
            platform=platform,
            receiver=receiver,
            created_at=self._books.clock.now(),
        )
        with self._books.write():
            self._save(begun)
            self._forget(owner)
            self._shared.wake_later()
        return begun

    def open_one(self, owner: str, platform: str) -> Exit | None:
        """The exit from this vault that is under way."""
        same = self._same_vault(platform)
        return next((e for e in self._open() if e.owner == owner and e.platform in same), None)

    def _refuse_while_working(self, owner: str, same: list[str]) -> None:
        now = self._shared.now()
        covers = [
            cover
            for role in ("Requestor", "Provider")
            for cover in self._shared.store.live_covers(role)
            if cover.owner == owner and cover.platform in same and cover.lives(now)
        ]
        if covers:
            raise WorkRunning(
                "an agreement that is paid through this vault goes on"
                if len(covers) == 1
                else f"{len(covers)} agreements that are paid through this vault go on",
                hint="end what goes on first; --force takes out what is free now and pays what is owed",
                agreements=[cover.agreement_id for cover in covers[:100]],
            )
        allocations = [a for a in self._books.store.active_allocations(owner) if a.platform in same]
        if allocations:
            raise WorkRunning(
                f"{'an allocation sets' if len(allocations) == 1 else f'{len(allocations)} allocations set'} money aside on "
                f"{allocations[0].platform}",
                hint="end the programs that do so; if they are gone: shem payment release-allocations",
                allocations=[a.allocation_id for a in allocations[:100]],
            )

    def anything(self, owner: str, platform: str) -> bool:
        """Whether channels hold something that an exit could bring out, or collect."""
        return any(c.role == "Requestor" or _held(c) for c in self._channels(owner, platform))

    def get(self, owner: str, exit_id: str) -> Exit | None:
        """By id."""
        return next(iter(self._select("exit_id = ? and owner = ?", exit_id, owner)), None)

    def under_way(self, exit_: Exit) -> tuple[int, int]:
        """(channels that are being closed or paid, channels that are being collected from)."""
        channels = self._channels(exit_.owner, exit_.platform)
        late = self._late(exit_)
        ours = [c for c in channels if c.role == "Requestor"]
        ending = [c for c in ours if self._payer.acts(c) or (not late and self._payer.talks(c))]
        return len(ending), len([c for c in channels if c.role == "Provider" and self._payee.acts(c)])

    def locked(self, owner: str, platform: str) -> list[Locked]:
        """What stays with payees until their terms are over."""
        found = []
        for channel in self._channels(owner, platform):
            left = channel.reserved - max(channel.signed, channel.claimed)
            if channel.role == "Requestor" and left > 0:
                found.append(Locked(channel, left))
        return found

    # --- the loop's turn ---

    def step(self) -> None:
        """Do what is left to do now."""
        leaving = [
            channel.name
            for exit_ in self._open()
            for channel in self._channels(exit_.owner, exit_.platform)
            if channel.role == "Requestor" and channel.created_at <= exit_.created_at.timestamp()  # no new work's
        ]
        self._payer.leave(set(leaving))
        for exit_ in self._open():
            if not exit_.withdrawal and exit_.exit_id not in self._withdrawing and not self._prepare(exit_):
                self._withdrawing.add(exit_.exit_id)
                self._shared.tasks.start(self._withdraw(exit_), f"exit {exit_.exit_id}")

    def next_moment(self) -> list[float]:
        """When time alone asks for another turn."""
        waiting = [e for e in self._open() if not e.withdrawal]
        return [e.created_at.timestamp() + PATIENCE_S for e in waiting] + list(self._not_before.values())

    def _prepare(self, exit_: Exit) -> bool:
        """Ask for what is left to do; whether something of it is under way."""
        if self._not_before.get(exit_.exit_id, 0) > self._shared.now():
            return True
        payer, late = self._payer, self._late(exit_)
        busy = False
        for channel in self._channels(exit_.owner, exit_.platform):
            if channel.role == "Provider":
                if self._payee.acts(channel):
                    busy = True
                elif _held(channel) and self._may_try(exit_, channel):
                    self._payee.collect(channel)
                    busy = True
                continue
            if payer.acts(channel) or (payer.talks(channel) and not late):
                busy = True
            elif channel.signed > channel.claimed and self._may_try(exit_, channel):
                payer.settle_now(channel)
                busy = True
        return busy

    def _late(self, exit_: Exit) -> bool:
        return self._shared.now() >= exit_.created_at.timestamp() + PATIENCE_S

    def _may_try(self, exit_: Exit, channel: Channel) -> bool:
        key = (exit_.exit_id, channel.channel_id)
        self._tries[key] = self._tries.get(key, 0) + 1
        return self._tries[key] <= TRIES

    async def _withdraw(self, exit_: Exit) -> None:
        """Ask for all that is free; nothing free ends the exit."""
        chain = self._chain(exit_.platform)
        try:
            free = await chain.free(exit_.owner)
            with self._books.write():
                room = free - chain.unmined(exit_.owner, "reserve", "extend", "withdraw")
                if room <= 0:
                    self._finish(exit_, "done", exit_.detail)
                    return
                asked = msgspec.structs.replace(exit_, withdrawal=f"{EXITED}:{uuid.uuid4()}", withdrawn=room)
                self._save(asked)
                chain.withdraw(self._books.db.connection, asked.withdrawal, exit_.owner, exit_.receiver, room)
                self._books.wake(exit_.owner, EXITED)
            self._not_before.pop(exit_.exit_id, None)
        except LOOK_ERRORS as error:
            log.info("the vault of %s cannot be looked at now: %s", exit_.platform, error)
            self._not_before[exit_.exit_id] = self._shared.now() + RETRY_S
        finally:
            self._withdrawing.discard(exit_.exit_id)
            self._shared.wake()

    def on_word(self, word: ChainWord) -> None:
        """What became of a withdrawal, inside the chain side's transaction."""
        if isinstance(word, Opened) or not word.request_id.startswith(f"{EXITED}:"):
            return
        for exit_ in self._select("withdrawal = ? and state = 'open'", word.request_id):
            if isinstance(word, Ended):
                self._finish(exit_, "done", "")
            elif self._may_try_again(exit_):
                self._save(msgspec.structs.replace(exit_, withdrawal="", withdrawn=0, detail=word.message))
            else:
                self._finish(msgspec.structs.replace(exit_, withdrawn=0), "failed", word.message)
            self._shared.wake_later()

    def _may_try_again(self, exit_: Exit) -> bool:
        """Something else may have taken what was free a moment before."""
        key = (exit_.exit_id, "")
        self._tries[key] = self._tries.get(key, 0) + 1
        return self._tries[key] < TRIES

    def _finish(self, exit_: Exit, state: Literal["done", "failed"], detail: str) -> None:
        self._save(msgspec.structs.replace(exit_, state=state, detail=detail))
        self._tries = {key: count for key, count in self._tries.items() if key[0] != exit_.exit_id}
        self._not_before.pop(exit_.exit_id, None)
        self._books.wake(exit_.owner, EXITED)

    # --- rows ---

    def _chain(self, platform: str) -> VaultChain:
        return self._shared.chains[platform]

    def _same_vault(self, platform: str) -> list[str]:
        """All names of the vault's platform."""
        ours = self._shared.chains.get(platform)
        return [name for name, chain in self._shared.chains.items() if chain is ours]

    def _channels(self, owner: str, platform: str) -> list[Channel]:
        same = self._same_vault(platform)
        return [c for c in self._shared.store.live_channels() if c.owner == owner and c.platform in same]

    def _open(self) -> list[Exit]:
        return [e for e in self._select("state = 'open'") if e.platform in self._shared.chains]

    def _select(self, where: str, *arguments: str) -> list[Exit]:
        sql = f"select * from payment_exit where {where} order by created_at"  # noqa: S608  our own words
        return [_exit(row) for row in self._books.db.connection.execute(sql, arguments).fetchall()]

    def _forget(self, owner: str) -> None:
        """Those that were over long ago."""
        self._books.db.connection.execute(
            "delete from payment_exit where owner = ?1 and state <> 'open' and exit_id not in"
            " (select exit_id from payment_exit where owner = ?1 order by created_at desc limit ?2)",
            (owner, MAX_REMEMBERED),
        )

    def _save(self, exit_: Exit) -> None:
        self._books.db.connection.execute(
            "insert or replace into payment_exit values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                exit_.exit_id,
                exit_.owner,
                exit_.platform,
                exit_.receiver,
                exit_.state,
                exit_.withdrawal,
                str(exit_.withdrawn),
                exit_.detail,
                to_us(exit_.created_at),
            ),
        )


def _held(channel: Channel) -> bool:
    """Whether we hold a voucher that is not paid."""
    return channel.role == "Provider" and channel.signature is not None and channel.signed > channel.claimed


def _exit(row: sqlite3.Row) -> Exit:
    values = dict(row)
    known = {"withdrawn": int(values["withdrawn"]), "created_at": from_us(values["created_at"])}
    return msgspec.convert(values | known, Exit)

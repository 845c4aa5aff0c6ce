"""The transaction manager: brings intents onto the chain, each exactly once, whatever breaks.

How it holds:

* A nonce is given to an intent in the same SQLite transaction that stores the first signed bytes, and never changes.
  The chain takes one transaction for a nonce, so whatever is sent again, and at whatever fee, an intent can happen once.
* Bytes are on disk before they are sent. After ``kill -9`` the same bytes are sent again; nobody needs to know whether
  the first time worked.
* A transaction that waits too long gets a second attempt with the same nonce and 12.5 % higher fees, up to the network's
  limit; above it, it waits and says so.
* Receipts are looked for under all attempts. A receipt that vanishes (reorg) puts the intent back under way. Only a
  receipt in a final block ends it, as done or, when it reverted, as failed.
* Endpoints are not believed beyond what they show: what is final is looked for at the endpoint that shows the receipt,
  and the block of the receipt must be the one that has its number.
* A nonce that somebody else used (another program with the same key) is reported and left to a human: paying again under
  another nonce could pay twice.

``step`` is one look at the chain and what follows from it. Between steps the manager sleeps: woken by new intents, and by
a timer only while something is under way, because a chain cannot push over plain HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence

import msgspec

from shem.cogs.clock import Clock
from shem.errors import Conflict, ShemError
from shem.node.db import Database
from shem.node.payment.drivers.base import ChainUnreachable, DriverProblem
from shem.node.payment.drivers.evm import erc20, fees
from shem.node.payment.drivers.evm.rpc import (
    MAX_BATCH,
    Block,
    Call,
    Receipt,
    Results,
    RpcPool,
    RpcRefused,
    WrongChain,
    number,
    quantity,
    read,
    read_or_none,
    receipt_of,
)
from shem.node.payment.drivers.evm.store import Attempt, Intent, IntentStore
from shem.node.payment.drivers.evm.transaction import Signer, Transaction
from shem.node.payment.drivers.networks import DRIVER, Network
from shem.terms.amounts import format_amount

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 64
"""What ordinary nodes keep of one account without dropping any."""
MAX_WAITING = 1000
"""Of which those that may go now are chosen."""
MAX_GAS = 2**24
"""Of one transaction (EIP-7825)."""
MAX_ATTEMPTS = 20
"""At a price that the chain would take. When it rises above the last offer there are more, as far as the limit goes."""
STRANGE_LOOKS = 3
"""After so many looks a used nonce without a receipt is no race but somebody else's transaction."""

_HARMLESS = ("already known", "known transaction", "already imported", "nonce too low", "replacement transaction")
"""Refusals that say: a transaction with this nonce is there. Which one, receipts tell."""


class NotStuck(Conflict):
    """The transaction may still be mined, or has been."""

    default_code = "not_stuck"


class View(msgspec.Struct, frozen=True):
    """The chain at one moment, for one account."""

    head: int
    final: int
    """Last block that stays; -1 while there is none."""
    base_fee: int
    tip: int
    nonce: int
    balance: int


class Admission(msgspec.Struct, frozen=True):
    """Which intents may go now, and why others may not."""

    admitted: Sequence[Intent]
    problem: DriverProblem | None = None


Admit = Callable[[Sequence[Intent], Sequence[Intent]], Awaitable[Admission]]
"""(waiting, sent and not yet mined) → which may go."""


async def admit_all(waiting: Sequence[Intent], in_flight: Sequence[Intent]) -> Admission:
    """For intents that need nothing but gas."""
    return Admission(waiting)


def heed_nothing(intent: Intent, receipt: Receipt | None) -> None:
    """For whoever waits for the end alone."""


class TransactionManager:
    """One account on one chain. Two of these must not share an account."""

    def __init__(
        self,
        db: Database,
        pool: RpcPool,
        network: Network,
        signer: Signer,
        *,
        clock: Clock,
        on_done: Callable[[Intent], None],
        admit: Admit = admit_all,
        on_receipt: Callable[[Intent, Receipt | None], None] = heed_nothing,
        on_refused: Callable[[Intent, str], float | None] | None = None,
        on_moved: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_done`` is called inside the transaction in which an intent becomes ``final`` or ``failed``; ``on_receipt``
        in the same before it, and also whenever the intent is found ``mined``, which a reorg may undo; without a receipt
        when it has failed because its nonce was used by somebody else (:meth:`retry`). ``on_refused`` is
        asked about an intent that was never signed and that the chain would refuse: after how many seconds to try again,
        or ``None`` when it has been dropped; without it they wait as long as is usual on the network. ``on_moved`` is
        called after every look that found, or made, something new."""
        self._db = db
        self._pool = pool
        self._network = network
        self._signer = signer
        self._clock = clock
        self._on_done = on_done
        self._admit = admit
        self._on_receipt = on_receipt
        self._on_refused = on_refused
        self._on_moved = on_moved
        self._store = IntentStore(db.connection, network.chain_id, signer.address)
        self._wake = asyncio.Event()
        self._problems: dict[str, DriverProblem] = {}
        self._seen: tuple[int, ...] = ()
        self._changes = 0
        # Of this process only; after a restart everything is simply sent again.
        self._sent_at: dict[int, float] = {}
        self._offered_at: dict[str, float] = {}
        self._put_off: dict[int, float] = {}
        self._tried_at: dict[int, float] = {}
        self._strange: dict[int, int] = {}
        self._gap_looks = 0

    def submit(
        self, connection: sqlite3.Connection, key: str, dst: str, data: bytes, value: int = 0, *, urgent: bool = False
    ) -> int:
        """Note an intent in the caller's transaction; gives its id. The same ``key`` is the same intent. What is
        ``urgent`` goes before what waits already: others may wait for it."""
        intent = self._store.add(connection, key, dst, data, value, urgent)
        self._db.after_commit(self._wake.set)
        return intent

    def drop(self, intent: int) -> None:
        """Forget an intent that was never signed, in the caller's transaction; to be called by ``admit`` and
        ``on_refused`` alone, which run between signatures."""
        self._store.drop(intent)

    def has_open_call(self, dst: str, data: bytes) -> bool:
        """Whether it is under way already."""
        return self._store.has_open_call(dst, data)

    def submit_once(self, key: str, dst: str, data: bytes, *, urgent: bool = False) -> bool:
        """A call of which one at a time is enough; False when it is under way already."""
        with self._db.transaction(durable=True) as connection:
            if self._store.has_open_call(dst, data):
                return False
            self.submit(connection, key, dst, data, urgent=urgent)
        return True

    def problems(self) -> Sequence[DriverProblem]:
        """Why intents wait, as of the last look."""
        return tuple(self._problems.values())

    async def retry(self, intent_id: int) -> None:
        """End a transaction whose place was taken by somebody else's, so that what it was for is done anew.

        The owner's decision alone, and only when this is certain: in a final block the account's nonce is beyond the
        transaction's, and none of the attempts at it has a receipt. Raises :class:`NotStuck`, :class:`ChainUnreachable`.
        """
        intent = next((i for i in self._store.under_way() if i.id == intent_id and i.state == "sent"), None)
        if intent is None or intent.nonce is None:
            raise NotStuck("it is not held back by another transaction", hint="see shem payment history")
        final = (await self._look()).final
        asked = [self._signer.address, hex(max(final, 0))]
        used = number(await self._pool.call("eth_getTransactionCount", asked, str))
        found, known = await self._receipts([intent_id])
        if known < final:
            raise ChainUnreachable("an endpoint is behind the others: what it does not know may have happened")
        if final < 0 or used <= intent.nonce or found:
            raise NotStuck(
                f"no final block shows that nonce {intent.nonce} is somebody else's", hint="wait, then say it again"
            )
        ended = msgspec.structs.replace(intent, state="failed")
        with self._db.transaction(durable=True):
            if any(i.id == intent_id and i.state == "sent" for i in self._store.under_way()):
                self._store.note_mined(ended)
                self._on_receipt(ended, None)
                self._on_done(ended)
        self._forget(intent)
        self._wake.set()
        log.warning(
            "%s is made anew: its nonce %d was used by a transaction that is not ours", intent.key, intent.nonce
        )

    async def run(self) -> None:
        """Work until cancelled; may be cancelled anywhere."""
        delay = self._network.poll_s
        while True:
            self._wake.clear()
            if not self._store.has_open():
                self._problems.clear()
                await self._wake.wait()
                delay = self._network.poll_s
                continue
            try:
                moved = await self.step()
                if moved:
                    self._on_moved()
            except (ChainUnreachable, RpcRefused):
                moved = False  # noted by step
            except Exception:  # a door: whatever an endpoint answers or a listener does, the other payments must go out
                log.exception("payments on %s stumbled; they go on", self._network.name)
                moved = False
            delay = self._network.poll_s if moved else min(self._network.max_poll_s, delay * 1.5)
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
                delay = self._network.poll_s
            except TimeoutError:
                pass

    async def step(self) -> bool:
        """Look once and act. Says whether anything has changed since the last look.

        Raises :class:`ChainUnreachable`, :class:`RpcRefused`; what was stored by then is taken up by the next step.
        """
        problems: dict[str, DriverProblem] = {}
        try:
            view = await self._look()
            await self._settle(view, problems)
            await self._resend(view, problems)
            await self._send_new(view, problems)
        except (ChainUnreachable, RpcRefused) as error:
            code = "InvalidChainId" if isinstance(error, WrongChain) else "RpcError"
            self._note(problems, code, error.message, more=error.code if isinstance(error, erc20.WrongToken) else "")
            raise
        finally:
            self._problems = problems
        # Who only waits for money need not look at every block.
        head = view.head if self._store.under_way() else 0
        seen = (head, view.nonce, self._changes)
        moved, self._seen = seen != self._seen, seen
        return moved

    # Looking

    async def _look(self) -> View:
        address = self._signer.address
        calls: list[Call] = [
            ("eth_getBlockByNumber", ["latest", False]),
            ("eth_getTransactionCount", [address, "latest"]),
            ("eth_getBalance", [address, "latest"]),
            ("eth_maxPriorityFeePerGas", []),
            ("eth_getBlockByNumber", ["finalized", False]),
        ]
        return await self._pool.ask(calls if self._network.depth is None else calls[:-1], self._view)

    def _view(self, results: Results) -> View:
        depth = self._network.depth
        head = read(results[0], Block)
        try:
            tip = quantity(results[3])
        except (RpcRefused, ChainUnreachable):  # not every endpoint names one
            tip = self._network.usual_tip_wei
        return View(
            head=number(head.number),
            final=number(head.number) - depth if depth is not None else self._finalized(results[4]),
            base_fee=number(head.base_fee_per_gas),
            nonce=number(read(results[1], str)),
            balance=number(read(results[2], str)),
            tip=min(tip, self._network.max_tip_wei),
        )

    def _finalized(self, answer: msgspec.Raw | RpcRefused) -> int:
        if isinstance(answer, RpcRefused):
            raise ChainUnreachable(
                f"the endpoint does not say which blocks of {self._network.name} are final: {answer.message}",
                hint=f"set networks.{self._network.name}.depth to the number of blocks that make one final there",
            )
        block = read_or_none(answer, Block)
        return -1 if block is None else number(block.number)

    async def _settle(self, view: View, problems: dict[str, DriverProblem]) -> None:
        """Find out what became of what was sent. Receipts are asked for after the head was seen: one in a block at or
        below ``view.final`` stays."""
        asked = [
            intent
            for intent in self._store.under_way()
            if intent.state == "mined" or (intent.nonce is not None and intent.nonce < view.nonce)
        ]
        if not asked:
            return
        found, final = await self._receipts([intent.id for intent in asked])
        view = msgspec.structs.replace(view, final=min(view.final, final))
        doubtful = await self._doubtful(list(found.values()), view, problems)
        for intent in asked:
            if intent.id in found and found[intent.id].block_hash in doubtful:
                continue
            try:
                self._judge(intent, found.get(intent.id), view, problems)
            except Exception:
                # A door, for listeners: rolled back, and judged again at the next look; other payments are not held up.
                log.exception("the end of %s could not be told", intent.key)

    async def _receipts(self, intents: Sequence[int]) -> tuple[dict[int, Receipt], int]:
        """By intent; and the last block that is final for every endpoint that showed one of them."""
        attempts = [attempt for tried in self._store.attempts(intents).values() for attempt in tried]
        depth = self._network.depth
        edge: Call = ("eth_getBlockByNumber", ["finalized" if depth is None else "latest", False])
        found: dict[int, Receipt] = {}
        finals: list[int] = []
        for start in range(0, len(attempts), MAX_BATCH - 1):
            part = attempts[start : start + MAX_BATCH - 1]
            calls = [edge, *(("eth_getTransactionReceipt", [attempt.tx_hash]) for attempt in part)]

            def shown(results: Results, part: Sequence[Attempt] = part) -> tuple[int, dict[int, Receipt]]:
                head, *receipts = results
                final = self._finalized(head) if depth is None else number(read(head, Block).number) - depth
                tried = zip(part, receipts, strict=True)
                pairs = [(attempt.intent, receipt_of(attempt.tx_hash, answer)) for attempt, answer in tried]
                return final, {intent: receipt for intent, receipt in pairs if receipt is not None}

            final, seen = await self._pool.ask(calls, shown)
            finals.append(final)
            found |= seen
        return found, min(finals)

    async def _doubtful(
        self, receipts: Sequence[Receipt], view: View, problems: dict[str, DriverProblem]
    ) -> Collection[str]:
        """Blocks that receipts name as final and that are not the chain's."""
        named = {r.block_hash: r.block_number for r in receipts if number(r.block_number) <= view.final}
        if not named:
            return ()
        asked: list[Call] = [("eth_getBlockByNumber", [at, False]) for at in named.values()]
        blocks = await self._pool.each(asked, lambda answer: read_or_none(answer, Block))
        doubtful = {
            name
            for name, block in zip(named, blocks, strict=True)
            if block is None or block.hash.lower() != name.lower()
        }
        for name in doubtful:
            text = f"endpoints disagree about block {number(named[name])}: a receipt says {name}"
            self._note(problems, "RpcError", text)
        return doubtful

    def _judge(self, intent: Intent, receipt: Receipt | None, view: View, problems: dict[str, DriverProblem]) -> None:
        if receipt is None:
            if intent.state == "mined":
                self._changes += 1
                with self._db.transaction(durable=True):
                    self._store.note_vanished(intent.id)
                self._sent_at.pop(intent.id, None)
                log.warning("payment %s left the chain in a reorganisation; sending it again", intent.key)
            elif intent.nonce is not None and intent.nonce < view.nonce:
                looks = self._strange[intent.id] = self._strange.get(intent.id, 0) + 1
                if looks >= STRANGE_LOOKS:
                    text = (
                        f"nonce {intent.nonce} was used by a transaction that is not ours; {intent.key} is held back "
                    )
                    text += f"(shem payment retry {intent.id})"
                    self._note(problems, "TxStuck", text)
            return
        self._strange.pop(intent.id, None)
        block = number(receipt.block_number)
        final = block <= view.final
        if intent.state == "mined" and intent.block_hash == receipt.block_hash and not final:
            return
        state = ("final" if receipt.succeeded else "failed") if final else "mined"
        mined = msgspec.structs.replace(
            intent,
            state=state,
            tx_hash=receipt.transaction_hash,
            block_number=block,
            block_hash=receipt.block_hash,
            gas_used=number(receipt.gas_used),
        )
        self._changes += 1
        with self._db.transaction(durable=True):
            self._store.note_mined(mined)
            self._on_receipt(mined, receipt)
            if final:
                self._on_done(mined)
        if final:
            self._forget(intent)

    def _forget(self, intent: Intent) -> None:
        self._sent_at.pop(intent.id, None)
        for attempt in self._store.attempts([intent.id])[intent.id]:
            self._offered_at.pop(attempt.tx_hash, None)

    # Sending

    async def _resend(self, view: View, problems: dict[str, DriverProblem]) -> None:
        """The same bytes again from time to time; a better offer for the one that holds up the others."""
        pending = [
            i for i in self._store.under_way() if i.state == "sent" and i.nonce is not None and i.nonce >= view.nonce
        ]
        if not pending:
            return
        self._look_for_gap(pending[0], view, problems)
        now = self._clock.monotonic()
        due: list[Attempt] = []
        attempts = self._store.attempts([i.id for i in pending])
        for intent in pending:
            tried = attempts[intent.id]
            best = max(tried, key=lambda a: a.max_fee)
            offered = self._offered_at.get(best.tx_hash, now)
            if intent.nonce == view.nonce and now - offered >= self._network.replace_after_s:
                better = self._better_offer(intent, tried, best, view, problems)
                if better is not None:
                    self._persist([], [better])
                    due.append(better)
                    continue
            if now - self._sent_at.get(intent.id, float("-inf")) >= self._network.rebroadcast_s:
                due.append(best)
        # To all: an endpoint may have lost what it took, or have told nobody.
        await self._broadcast(due, problems, everywhere=True)

    def _look_for_gap(self, first: Intent, view: View, problems: dict[str, DriverProblem]) -> None:
        """Nothing is mined after a nonce that nobody uses: one that another program's transaction had before a reorg."""
        assert first.nonce is not None
        if first.nonce <= view.nonce or self._store.has_nonce(view.nonce):
            self._gap_looks = 0
            return
        self._gap_looks += 1
        if self._gap_looks >= STRANGE_LOOKS:
            text = f"{first.key} has nonce {first.nonce}, and no transaction of the account has nonce {view.nonce} any more: "
            text += "until the other program sends its own again, nothing of this account can be mined"
            self._note(problems, "TxStuck", text)

    def _better_offer(
        self, intent: Intent, tried: Sequence[Attempt], best: Attempt, view: View, problems: dict[str, DriverProblem]
    ) -> Attempt | None:
        limit = self._network.max_fee_wei
        offer = fees.better(view.base_fee, view.tip, limit, (best.max_fee, best.max_tip))
        enough = best.max_fee >= view.base_fee + min(view.tip, best.max_tip)
        # A replacement has a higher tip, whatever is lacking: beyond the limit of tips only for a price that has risen.
        spent = len(tried) >= MAX_ATTEMPTS or best.max_tip * 9 // 8 >= self._network.max_tip_wei
        if offer is None or (enough and spent):
            gwei = format_amount(limit, 9)
            text = f"{intent.key} waits at {format_amount(best.max_fee, 9)} gwei; the limit for fees is {gwei} gwei"
            if offer is not None:
                text = f"{intent.key} was offered {len(tried)} times, and is not mined at {format_amount(best.max_fee, 9)} gwei"
            self._note(problems, "TxStuck", text)
            return None
        assert intent.nonce is not None
        try:
            better = self._sign(intent, intent.nonce, best.gas, *offer)
        except ShemError as error:  # its key is locked
            self._note(problems, "CantSign", error.message)
            return None
        log.info("payment %s is offered again at %s gwei", intent.key, format_amount(offer[0], 9))
        return better

    async def _send_new(self, view: View, problems: dict[str, DriverProblem]) -> None:
        under_way = self._store.under_way()
        in_flight = [intent for intent in under_way if intent.state == "sent"]
        now = self._clock.monotonic()
        room = MAX_IN_FLIGHT - len(in_flight)
        waiting = self._store.waiting(MAX_WAITING + len(self._put_off))
        known = {intent.id for intent in waiting}
        self._put_off = {i: until for i, until in self._put_off.items() if i in known}
        self._tried_at = {i: at for i, at in self._tried_at.items() if i in known}
        waiting = [i for i in waiting if self._put_off.get(i.id, now) <= now]
        if not waiting or room <= 0:
            return
        offer = fees.offer(view.base_fee, view.tip, self._network.max_fee_wei)
        if offer is None:
            text = f"a unit of gas costs {format_amount(view.base_fee, 9)} gwei, more than the limit"
            self._note(problems, "TxStuck", text)
            return
        admission = await self._admit(waiting, in_flight)
        if admission.problem is not None:
            problems[admission.problem.code] = admission.problem
        # Those that could not go before go last: however many they are, there is room for others.
        turns = sorted(admission.admitted, key=lambda intent: self._tried_at.get(intent.id, float("-inf")))[:room]
        self._tried_at |= {intent.id: now for intent in turns}
        ready = await self._affordable(turns, in_flight, view, offer[0], problems)
        if not ready:
            return
        own = self._store.next_nonce()
        if own < view.nonce:
            if not await self._all_agree_on(view.nonce, problems):
                return
            log.warning(
                "nonces %d to %d of %s on %s were used by another program, or the database is older than the chain",
                own,
                view.nonce - 1,
                self._signer.address,
                self._network.name,
            )
        nonce = max(view.nonce, own)
        try:
            attempts = [self._sign(intent, nonce + place, gas, *offer) for place, (intent, gas) in enumerate(ready)]
        except ShemError as error:
            self._note(problems, "CantSign", error.message)
            return
        given = [(intent.id, nonce + place) for place, (intent, _) in enumerate(ready)]
        await self._commit_and_send(given, attempts, problems)

    async def _all_agree_on(self, count: int, problems: dict[str, DriverProblem]) -> bool:
        """Whether each endpoint that is well counts so many transactions of the account: a nonce is for ever."""
        answers = await self._pool.everywhere([("eth_getTransactionCount", [self._signer.address, "latest"])])
        counts = {quantity(said) for (said,) in answers if not isinstance(said, RpcRefused)}
        if counts == {count}:
            return True
        told = ", ".join(map(str, sorted(counts | {count})))
        self._note(problems, "RpcError", f"endpoints disagree about how many transactions the account has sent: {told}")
        return False

    async def _commit_and_send(
        self,
        given: Sequence[tuple[int, int]],
        attempts: Sequence[Attempt],
        problems: dict[str, DriverProblem],
    ) -> None:
        """Disk first, then the wire: the whole point."""
        self._persist(given, attempts)
        await self._broadcast(attempts, problems)

    async def _affordable(
        self,
        admitted: Sequence[Intent],
        in_flight: Sequence[Intent],
        view: View,
        fee: int,
        problems: dict[str, DriverProblem],
    ) -> list[tuple[Intent, int]]:
        """Those that the chain would take and the account can pay the gas of, each with its gas limit."""
        if not admitted:
            return []
        asked: list[Call] = [("eth_estimateGas", [self._as_call(i)]) for i in admitted]
        estimates = await self._pool.each(asked, _estimate)
        held = self._store.attempts([intent.id for intent in in_flight])
        budget = view.balance - sum(i.value for i in in_flight)
        budget -= sum(max((a.gas * a.max_fee for a in tried), default=0) for tried in held.values())
        ready: list[tuple[Intent, int]] = []
        missing = 0
        for intent, estimate in zip(admitted, estimates, strict=True):
            if isinstance(estimate, RpcRefused):
                self._heed_refusal(intent, estimate.message, problems)
                continue
            if estimate > MAX_GAS:
                self._heed_refusal(intent, "reverted: it needs more gas than a transaction may use", problems)
                continue
            # The receiver may spend all it has meanwhile, which makes the transfer dearer by a storage slot.
            gas = min(estimate * 5 // 4 + 20_000, MAX_GAS)
            cost = gas * fee + intent.value
            if cost > budget:
                missing += cost
                continue
            budget -= cost
            ready.append((intent, gas))
        if missing:
            needed = format_amount(missing - max(budget, 0))
            text = f"the account lacks {needed} {self._network.gas_symbol} for fees"
            self._note(problems, "InsufficientGas", text, needed=needed)
        return ready

    def _heed_refusal(self, intent: Intent, reason: str, problems: dict[str, DriverProblem]) -> None:
        poor = "insufficient funds" in reason.lower()
        ask = None if poor else self._on_refused
        wait_s = self._network.refused_s if ask is None else ask(intent, reason)
        if wait_s is None:
            self._changes += 1
            return
        self._put_off[intent.id] = self._clock.monotonic() + wait_s
        if poor:
            self._note(problems, "InsufficientGas", reason)
        else:
            self._note(problems, "TxStuck", f"the chain would refuse {intent.key}: {reason}")

    def _as_call(self, intent: Intent) -> dict[str, str]:
        return {
            "from": self._signer.address,
            "to": intent.dst,
            "data": "0x" + intent.data.hex(),
            "value": hex(intent.value),
        }

    def _sign(self, intent: Intent, nonce: int, gas: int, fee: int, tip: int) -> Attempt:
        signed = Transaction(
            chain_id=self._network.chain_id,
            nonce=nonce,
            max_tip=tip,
            max_fee=fee,
            gas=gas,
            to=intent.dst,
            value=intent.value,
            data=intent.data,
        ).sign(self._signer)
        return Attempt(signed.tx_hash, intent.id, signed.raw, gas, fee, tip, self._clock.now().timestamp())

    def _persist(self, given: Sequence[tuple[int, int]], attempts: Sequence[Attempt]) -> None:
        """Nonces and the bytes that use them, all or nothing, on the disk when this returns."""
        self._changes += 1
        with self._db.transaction(durable=True):
            for intent, nonce in given:
                self._store.give_nonce(intent, nonce)
            for attempt in attempts:
                self._store.add_attempt(attempt)

    async def _broadcast(
        self, attempts: Sequence[Attempt], problems: dict[str, DriverProblem], *, everywhere: bool = False
    ) -> None:
        for start in range(0, len(attempts), MAX_BATCH):
            part = attempts[start : start + MAX_BATCH]
            calls: list[Call] = [("eth_sendRawTransaction", ["0x" + attempt.raw.hex()]) for attempt in part]
            answers = await self._pool.everywhere(calls) if everywhere else [await self._pool.batch(calls)]
            now = self._clock.monotonic()
            for attempt, *said in zip(part, *answers, strict=True):
                self._sent_at[attempt.intent] = now
                self._offered_at.setdefault(attempt.tx_hash, now)
                refusals = [one for one in said if isinstance(one, RpcRefused) and not _is_harmless(one)]
                if len(refusals) < len(said):
                    continue
                reason = refusals[0].message
                code = "InsufficientGas" if "insufficient funds" in reason.lower() else "RpcError"
                self._note(problems, code, f"{attempt.tx_hash} is not taken: {reason}")

    def _note(
        self, problems: dict[str, DriverProblem], code: str, message: str, needed: str = "", more: str = ""
    ) -> None:
        """One problem of a kind is enough to act on."""
        problem = msgspec.convert(
            {
                "code": code,
                "message": message,
                "driver": DRIVER,
                "network": self._network.name,
                "address": self._signer.address,
                "platform": self._network.platform.platform,
                "needed": needed,
                "more": more,
            },
            type=DriverProblem,
        )
        problems.setdefault(code, problem)


def _is_harmless(refusal: RpcRefused) -> bool:
    reason = refusal.message.lower()
    return any(harmless in reason for harmless in _HARMLESS)


def _estimate(answer: msgspec.Raw | RpcRefused) -> int | RpcRefused:
    """What a call needs, or that it would be refused, which is an answer too."""
    return answer if isinstance(answer, RpcRefused) else number(read(answer, str))

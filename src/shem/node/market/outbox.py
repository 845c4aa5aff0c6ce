"""Messages that a peer must get, however long it is away.

A message is stored in the transaction of the change that causes it, and delivered until the peer has answered: at once,
after growing pauses, and whenever the peer connects. Messages of one topic (an agreement, a negotiation) are delivered in
order; topics do not wait for each other. An answer, a refusal and running out of time are each handled in the
transaction that removes the message, by what was registered for its kind. Receivers are idempotent, so a lost answer
costs a repetition and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta

import msgspec

from shem.cogs.clock import Clock
from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed, Refused, ShemError
from shem.node.market.protocol import Peers
from shem.node.market.store import Message, Store
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

Topic = tuple[str, str]


class Outcome(msgspec.Struct, frozen=True):
    """How a message ended: exactly one of ``answer`` and ``error``."""

    message: Message
    answer: bytes | None = None
    error: Exception | None = None


OnOutcome = Callable[[Outcome], None]


class Outbox:
    """At-least-once delivery. ``kind`` is the rpc method and selects the handler."""

    def __init__(
        self,
        store: Store,
        peers: Peers,
        clock: Clock,
        tasks: TaskScope,
        *,
        ttl_s: float,
        limit: int,
        rpc_timeout_s: float,
        retry_first_s: float,
        retry_max_s: float,
    ) -> None:
        self._store = store
        self._peers = peers
        self._clock = clock
        self._tasks = tasks
        self._ttl_s = ttl_s
        self._limit = limit
        self._rpc_timeout_s = rpc_timeout_s
        self._retry_first_s = retry_first_s
        self._retry_max_s = retry_max_s
        self._stopped = False
        self._handlers: dict[str, OnOutcome] = {}
        self._workers: dict[Topic, asyncio.Task[None]] = {}
        self._retry_now: dict[Topic, asyncio.Event] = {}
        self._waiting: dict[str, list[asyncio.Future[bytes]]] = {}

    def handle(self, kind: str, handler: OnOutcome) -> None:
        """What to do when a message of that kind has ended; called inside the transaction that removes it."""
        self._handlers[kind] = handler

    def start(self) -> None:
        """Deliver what an earlier process left."""
        self._peers.on_connected(self._connected)
        for topic in self._store.waiting_topics():
            self._work(topic)

    def put(
        self,
        *,
        peer: str,
        topic: str,
        kind: str,
        message_id: str,
        payload: bytes,
        ttl_s: float | None = None,
        courtesy: bool = False,
    ) -> None:
        """Store a message in the caller's transaction; it is sent once that has committed.

        The same ``message_id`` twice is one message. A ``courtesy`` is dropped when very many messages wait: strangers
        cause those. What must arrive is bounded by the agreements that our own agent made.
        """
        if courtesy and self._store.count_messages() >= self._limit:
            log.info("%s will not hear %s of %s: too much is undelivered", peer, kind, topic)
            return
        expires_at = self._clock.now() + timedelta(seconds=self._ttl_s if ttl_s is None else ttl_s)
        self._store.add_message(
            peer=peer, topic=topic, kind=kind, message_id=message_id, payload=payload, expires_at=expires_at
        )
        self._store.db.after_commit(lambda: self._work((peer, topic)))

    async def first_attempt(self, message_id: str) -> bytes:
        """The answer to the next attempt at a message, or the error of it. Call it before anything else is awaited.

        The message stays in the box when the peer is away. A message that is not there (any more) gives ``b""``.
        """
        if not self._store.has_message(message_id):
            return b""
        waiter: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(message_id, []).append(waiter)
        return await waiter

    def stop(self) -> None:
        """Let nobody wait, and begin nothing."""
        self._stopped = True
        for message_id in list(self._waiting):
            self._resolve(message_id, PeerFailed("the node is stopping", code="stopping"))

    def _work(self, topic: Topic) -> None:
        worker = self._workers.get(topic)
        if self._stopped:
            return
        if worker is None or worker.done():
            self._retry_now[topic] = asyncio.Event()
            self._workers[topic] = self._tasks.start(self._deliver(topic), f"outbox {topic[0]} {topic[1][:16]}")

    async def _connected(self, node_id: NodeId) -> None:
        for topic in self._store.waiting_topics(node_id):
            event = self._retry_now.get(topic)
            if event is not None:
                event.set()
            self._work(topic)

    async def _deliver(self, topic: Topic) -> None:
        pause_s = self._retry_first_s
        try:
            while (message := self._store.next_message(*topic)) is not None:
                self._retry_now[topic].clear()
                if await self._attempt(message):
                    pause_s = self._retry_first_s
                    continue
                await self._pause(topic, pause_s)
                pause_s = min(2 * pause_s, self._retry_max_s)
        finally:
            # Nothing awaits between finding the topic empty and here, so no message can slip in unnoticed
            self._workers.pop(topic, None)
            self._retry_now.pop(topic, None)

    async def _attempt(self, message: Message) -> bool:
        """Whether the message has ended."""
        if message.expires_at <= self._clock.now():
            error = TimeoutError(f"{message.peer} was away too long")
            self._end(Outcome(message, error=error))
            return True
        try:
            answer = await self._peers.call(
                NodeId(message.peer), message.kind, message.payload, timeout_s=self._rpc_timeout_s
            )
        except Refused as error:
            log.info("%s refuses %s of %s: %s", message.peer, message.kind, message.topic, error)
            self._end(Outcome(message, error=error))
            return True
        except (ShemError, TimeoutError) as error:
            log.debug("%s did not get %s of %s: %s", message.peer, message.kind, message.topic, error)
            self._resolve(message.message_id, error)
            return False
        self._end(Outcome(message, answer=answer))
        return True

    def _end(self, outcome: Outcome) -> None:
        message = outcome.message
        handler = self._handlers.get(message.kind)
        if self._store.has_message(message.message_id):  # it may have been taken back meanwhile
            try:
                with self._store.db.transaction(durable=True):
                    self._store.delete_message(message.message_id)
                    if handler is not None:
                        handler(outcome)
            except Refused as error:
                # The peer's answer is not what it should be. The message has been heard; do not repeat it for ever
                log.warning("%s answered %s of %s badly: %s", message.peer, message.kind, message.topic, error)
                with self._store.db.transaction():
                    self._store.delete_message(message.message_id)
                self._resolve(message.message_id, error)
                return
        self._resolve(message.message_id, outcome.error if outcome.error is not None else outcome.answer or b"")

    def _resolve(self, message_id: str, result: bytes | Exception) -> None:
        for waiter in self._waiting.pop(message_id, ()):
            if waiter.done():
                continue
            if isinstance(result, Exception):
                waiter.set_exception(result)
            else:
                waiter.set_result(result)

    async def _pause(self, topic: Topic, seconds: float) -> None:
        """Until the time is up or the peer has connected."""
        async with asyncio.TaskGroup() as group:
            sleeping = group.create_task(self._clock.sleep(seconds))
            told = group.create_task(self._retry_now[topic].wait())
            await asyncio.wait({sleeping, told}, return_when=asyncio.FIRST_COMPLETED)
            sleeping.cancel()
            told.cancel()

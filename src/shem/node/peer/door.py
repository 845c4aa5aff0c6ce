"""How a connection becomes a link: answering those who knock, and dialling.

There is at most one link per pair of nodes. When two nodes dial each other at once, the acceptor decides, before it
answers the hello:

1. it has a link with that node, from before that node was restarted: the old one is replaced;
2. it has a link that answers a ping: the new connection is a duplicate; one that does not answer is replaced;
3. its own dial has got as far as the hello, and its node id is the lower one: duplicate (the peer will take ours);
4. otherwise the caller is welcome.

A dialler that is told *duplicate* waits for the other connection. So exactly one of two simultaneous dials is admitted,
both ends agree which, and no request is ever sent on the one that loses. Concurrent dials to one endpoint are one dial.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence

from shem.cogs.tasks import TaskScope
from shem.errors import PeerFailed
from shem.node.peer.hello import BadHello, Hello, Met, check_hello, read_hello, send_hello
from shem.node.peer.link import Link, Switchboard
from shem.node.peer.links import Links
from shem.node.peer.records import MAX_RECORDS, Credentials
from shem.node.peer.remote_errors import PeerUnreachable
from shem.node.peer.transport import CloseCode, Connection, Incoming, Stream, Transport, TransportLost
from shem.terms.ids import NodeId

log = logging.getLogger(__name__)

PROBE_S = 1.0
"""How long an existing connection has to prove itself against a new one."""

Admit = Callable[[Met, Connection, Stream, bytes, bool], Link]
"""Make the link, and put it into the table: (peer, connection, control stream, what was read beyond the hello,
whether our own hello is still to be sent)."""


class Door:
    """Accepts and dials on one transport."""

    def __init__(
        self,
        transport: Transport,
        credentials: Credentials,
        board: Switchboard,
        links: Links,
        our_hello: Callable[[], Hello],
        admit: Admit,
    ) -> None:
        self._transport = transport
        self._credentials = credentials
        self._board = board
        self._links = links
        self._our_hello = our_hello
        self._admit = admit
        self._scope = TaskScope("door")
        self._knocking = 0
        self._greeting: set[bytes] = set()
        self._dials: dict[bytes, asyncio.Task[Link | PeerFailed]] = {}
        self._bindings: OrderedDict[NodeId, tuple[int, bytes]] = OrderedDict()

    def open(self) -> None:
        """Start answering."""
        self._scope.start(self._answer(), "accept")

    async def close(self) -> None:
        """Stop answering and dialling."""
        await self._scope.close()

    # --- those who knock --------------------------------------------------------------------------------------------

    async def _answer(self) -> None:
        limits, counters = self._board.limits, self._board.counters
        while (incoming := await self._transport.accept()) is not None:
            if self._knocking >= limits.max_handshakes or len(self._links) >= limits.max_peers:
                counters["turned_away"] += 1
                await incoming.refuse()
                continue
            self._knocking += 1
            self._scope.start(self._welcome(incoming), "welcome").add_done_callback(self._knock_answered)

    def _knock_answered(self, _task: asyncio.Task[None]) -> None:
        self._knocking -= 1

    async def _welcome(self, incoming: Incoming) -> None:
        connection: Connection | None = None
        limits = self._board.limits
        code, why = CloseCode.LEAVING, ""
        try:
            async with asyncio.timeout(limits.hello_timeout_s):
                connection = await incoming.handshake()
                connection.limit_streams(limits.max_streams + 1)
                control = await connection.accept_stream()
                hello, beyond = await read_hello(control)
            met = self._check(hello, connection)
            code, why = await self._judge(met, connection)
            if not why:
                self._admit(met, connection, control, beyond, True)
                return
        except BadHello as error:
            self._board.counters["bad_hellos"] += 1
            code, why = CloseCode.BAD_HELLO, error.message
        except TimeoutError:
            self._board.counters["hello_timeouts"] += 1
            code, why = CloseCode.HELLO_TIMEOUT, "no hello in time"
        except PeerFailed as error:
            why = error.message
        log.debug("a caller is sent away: %s", why)
        if connection is not None:
            connection.close(code, why[:100])

    async def _judge(self, met: Met, connection: Connection) -> tuple[CloseCode, str]:
        """A reason to send the caller away, or an empty one. Nothing may be awaited between this and the admission."""
        while (old := self._links.get(met.node_id)) is not None:
            if old.incarnation == met.incarnation and await old.answers_within(PROBE_S):
                return CloseCode.DUPLICATE, "another connection lives"
            old.close(CloseCode.REPLACED, "the peer came back on another connection")
        if connection.remote_id in self._greeting and self._credentials.node_id < met.node_id:
            return CloseCode.DUPLICATE, "we are calling already"
        if len(self._links) >= self._board.limits.max_peers:
            return CloseCode.BUSY, "no room for more peers"
        return CloseCode.LEAVING, ""

    def _check(self, hello: Hello, connection: Connection) -> Met:
        met = check_hello(hello, connection.remote_id, self._credentials, self._board.clock.now())
        known = self._bindings.pop(met.node_id, None)
        if known is not None and known[1] != connection.remote_id and known[0] >= met.binding_seq:
            self._bindings[met.node_id] = known
            raise BadHello("its binding has been replaced by a newer one")
        self._bindings[met.node_id] = (met.binding_seq, connection.remote_id)
        if len(self._bindings) > MAX_RECORDS:
            self._bindings.popitem(last=False)
        return met

    # --- those we call ----------------------------------------------------------------------------------------------

    async def dial(self, endpoint_id: bytes, addresses: Sequence[str]) -> Link:
        """The link with that endpoint. Raises :class:`PeerUnreachable`. Cancelling does not stop a shared dial."""
        if (link := self._links.at(endpoint_id)) is not None:
            return link
        task = self._dials.get(endpoint_id)
        if task is None:
            task = self._scope.start(self._dial(endpoint_id, addresses), "dial")
            self._dials[endpoint_id] = task
            task.add_done_callback(lambda _: self._dials.pop(endpoint_id, None))
        await asyncio.wait([task])  # unlike awaiting the task, leaves it alone when we are cancelled
        if task.cancelled():
            raise PeerUnreachable("the node is stopping")
        outcome = task.result()
        if isinstance(outcome, PeerFailed):
            raise PeerUnreachable(outcome.message, code=outcome.code, hint=outcome.hint)
        return outcome

    async def _dial(self, endpoint_id: bytes, addresses: Sequence[str]) -> Link | PeerFailed:
        """Returns its failure, as it has several callers or none."""
        limits = self._board.limits
        try:
            connection = await self._transport.dial(endpoint_id, addresses, limits.dial_timeout_s)
        except PeerFailed as error:
            return error
        if (link := self._links.at(endpoint_id)) is not None:
            connection.close(CloseCode.DUPLICATE, "you called meanwhile")
            return link
        self._greeting.add(endpoint_id)
        try:
            return await self._greet(connection)
        except BadHello as error:
            self._board.counters["bad_hellos"] += 1
            connection.close(CloseCode.BAD_HELLO, error.message[:100])
            return error
        except TimeoutError:
            self._board.counters["hello_timeouts"] += 1
            connection.close(CloseCode.HELLO_TIMEOUT, "no hello in time")
            return PeerUnreachable(f"{endpoint_id.hex()[:16]} did not say hello within {limits.hello_timeout_s:g} s")
        except PeerFailed as error:
            connection.close(CloseCode.LEAVING, "")
            if not isinstance(error, TransportLost) or error.close_code != CloseCode.DUPLICATE:
                return error
        finally:
            self._greeting.discard(endpoint_id)
        # The peer's own call is on its way.
        link = await self._links.wait_at(endpoint_id, limits.hello_timeout_s)
        return link or PeerUnreachable(f"{endpoint_id.hex()[:16]} said that it would call, and did not")

    async def _greet(self, connection: Connection) -> Link:
        limits = self._board.limits
        async with asyncio.timeout(limits.hello_timeout_s):
            connection.limit_streams(limits.max_streams)
            control = await connection.open_stream()
            await send_hello(control, self._our_hello())
            hello, beyond = await read_hello(control)
        met = self._check(hello, connection)
        if (old := self._links.get(met.node_id)) is not None:
            # The peer admitted us knowing of no other connection, so it has lost that one.
            old.close(CloseCode.REPLACED, "the peer came back on another connection")
        return self._admit(met, connection, control, beyond, False)

"""The service bus: programs that answer requests, each on the socket it has opened to its node.

A service is bound first and its socket opened then; what is asked in between waits. A socket that opens while there is one
takes its place, and what the old one has not answered fails, for it may have acted; only on a shared service, whose answers
are anybody's, several stand side by side. Every wait has a deadline, every queue a limit, and whatever a socket does ends in
an error for those who asked it and nobody else.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from shem.errors import Conflict, NotFound, PeerFailed, Refused, ShemError
from shem.wire.gsb import Listen, Reply, Request, parse_services_id, services_id

NORMAL, GOING_AWAY, POLICY = 1000, 1001, 1008
"""Codes that a socket is closed with."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Counts; times in seconds."""

    max_services: int = 4096
    max_requests: int = 2048
    """Of one service, asked and not answered."""
    max_lines: int = 16
    """Sockets of one shared service."""
    open_s: float = 10.0
    """How long a request waits for a socket."""
    reply_s: float = 30.0
    idle_s: float = 600.0
    """A service that had no socket for so long makes room for others when there are too many."""


class AddressTaken(Refused):
    """Somebody is bound there."""

    default_code = "duplicate_service"


class ServiceSilent(PeerFailed):
    """The program behind a service is away, has left, or does not answer in time."""

    default_code = "service_silent"


class ServiceFailed(PeerFailed):
    """The program behind a service says no: ``variant`` is its word for why, ``text`` its explanation."""

    default_code = "service_failed"

    def __init__(self, variant: str, text: str) -> None:
        super().__init__(f"{variant}: {text}" if text else variant)
        self.variant, self.text = variant, text


class LineEnded(Exception):
    """This socket is no longer wanted."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


class _Asked:
    """A request on its way: waiting for a socket, then for an answer."""

    __slots__ = ("future", "line", "request", "timers")

    def __init__(self, request: Request, future: asyncio.Future[Any]) -> None:
        self.request = request
        self.future = future
        self.line: Line | None = None
        self.timers: list[asyncio.TimerHandle] = []

    def fail(self, error: ShemError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Line:
    """One socket of a service, as the part that holds the socket sees it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.asked: dict[str, _Asked] = {}
        self._ended: LineEnded | None = None
        self._wake: asyncio.Future[None] | None = None

    async def next(self) -> Request:
        """What to ask the program next. Raises :class:`LineEnded` when the socket is to be closed."""
        while True:
            if self._ended is not None:
                raise self._ended
            request = self.service.take(self)
            if request is not None:
                return request
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake

    def answered(self, reply: Reply) -> None:
        """The program's answer. One that nobody waits for (any more) is dropped."""
        asked = self.asked.get(reply.id)
        if asked is None or asked.future.done():
            return
        if reply.error is None:
            asked.future.set_result(reply.payload)
        else:
            asked.fail(ServiceFailed(*reply.error))

    def wake(self) -> None:
        """There is something to take."""
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def end(self, code: int, reason: str) -> None:
        """Have the socket closed; what it has not answered fails."""
        if self._ended is None:
            self._ended = LineEnded(code, reason)
            self.service.detach(self)
            self.wake()


class Service:
    """One address, and whoever answers there."""

    def __init__(
        self, owner: str, listen: Listen, limits: Limits, *, shared: bool, abandoned: Callable[[Service], None]
    ) -> None:
        """``abandoned`` is called when the last socket of a shared service has gone."""
        self.owner, self.on, self.components = owner, listen.on, frozenset(listen.components)
        self.shared = shared
        self.lineless_since: float | None = asyncio.get_running_loop().time()
        self._limits = limits
        self._abandoned = abandoned
        self._lines: list[Line] = []
        self._waiting: OrderedDict[str, _Asked] = OrderedDict()  # for a socket
        self._open = 0

    # what the node asks

    def request(self, component: str, payload: object) -> asyncio.Future[Any]:
        """Ask the program. The future gives its payload, or raises :class:`ServiceFailed`, :class:`ServiceSilent`.

        Raises :class:`NotFound` for a component that the program does not offer, :class:`Conflict` (``busy``).
        """
        if component not in self.components:
            raise NotFound(f"the service {self.on[:100]!r} has no {component[:40]}", code="no_component")
        if self._open >= self._limits.max_requests:
            raise Conflict("this service has as many requests as it can have; try again", code="busy")
        loop = asyncio.get_running_loop()
        asked = _Asked(Request(str(uuid.uuid4()), component, payload), loop.create_future())
        self._open += 1
        asked.future.add_done_callback(lambda _: self._settled(asked))
        asked.timers.append(loop.call_later(self._limits.reply_s, self._expire, asked, "does not answer"))
        if not self._lines:
            asked.timers.append(loop.call_later(self._limits.open_s, self._nobody_came, asked))
        self._enqueue(asked)
        return asked.future

    def _enqueue(self, asked: _Asked) -> None:
        asked.line = None
        self._waiting[asked.request.id] = asked
        if self._lines:
            self._lines[-1].wake()

    def _nobody_came(self, asked: _Asked) -> None:
        if asked.line is None and not self._lines:
            self._expire(asked, "is not connected")

    def _expire(self, asked: _Asked, why: str) -> None:
        asked.fail(ServiceSilent(f"the program behind {self.on[:100]!r} {why}"))

    def _settled(self, asked: _Asked) -> None:
        self._open -= 1
        for timer in asked.timers:
            timer.cancel()
        self._waiting.pop(asked.request.id, None)
        if asked.line is not None:
            asked.line.asked.pop(asked.request.id, None)

    # what sockets do

    def attach(self) -> Line:
        """A socket has opened. Raises :class:`Conflict` when there are too many."""
        if self.shared and len(self._lines) >= self._limits.max_lines:
            raise Conflict("this service has as many sockets as it can have", code="busy")
        line = Line(self)
        if not self.shared:
            for old in self._lines[:]:
                old.end(POLICY, "another socket has opened for this service")
        self._lines.append(line)
        self.lineless_since = None
        return line

    def take(self, line: Line) -> Request | None:
        """The next request, which is this socket's to answer now."""
        if not self._waiting:
            return None
        key, asked = self._waiting.popitem(last=False)
        asked.line = line
        line.asked[key] = asked
        request = asked.request
        if not self.shared:  # what was sent is not kept for its answer, unless another socket may have to be asked
            asked.request = Request(request.id, request.component, None)
        return request

    def detach(self, line: Line) -> None:
        """A socket is gone. Harmless when it is known to be."""
        if line not in self._lines:
            return
        self._lines.remove(line)
        if not self._lines:
            self.lineless_since = asyncio.get_running_loop().time()
        for asked in list(line.asked.values()):
            if self.shared and self._lines:
                self._enqueue(asked)
            else:
                self._expire(asked, "has left")
        line.asked.clear()
        if self.shared and not self._lines:
            self._abandoned(self)

    def close(self, reason: str, code: int) -> None:
        """It is unbound."""
        for line in self._lines[:]:
            line.end(code, reason)
        for asked in list(self._waiting.values()):
            self._expire(asked, "has left")


class Bus:
    """Every service of this node, by address."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._services: dict[str, Service] = {}

    def stop(self) -> None:
        """Have all sockets closed."""
        for service in list(self._services.values()):
            self._drop(service, "the node stops", GOING_AWAY)

    def bind(self, owner: str, listen: Listen, *, shared: bool = False) -> str:
        """Make room for a program at an address; its services id. A ``shared`` one may be there already.

        Raises :class:`AddressTaken`, :class:`Refused` (``bad_address``), :class:`Conflict` (``too_many_services``).
        """
        if not listen.on:
            raise Refused("a service needs an address", code="bad_address")
        found = self._services.get(listen.on)
        if found is not None:
            if shared and found.shared and found.owner == owner and found.components == frozenset(listen.components):
                return services_id(listen.on)
            raise AddressTaken(f"Duplicated service address prefix: {listen.on}")
        if len(self._services) >= self._limits.max_services:
            self._make_room()
        self._services[listen.on] = Service(owner, listen, self._limits, shared=shared, abandoned=self._abandoned)
        return services_id(listen.on)

    def unbind(self, owner: str, id_: str) -> None:
        """Give an address up. A shared one stays while somebody is connected. Raises :class:`NotFound`."""
        service = self.of(owner, id_)
        if not service.shared or service.lineless_since is not None:
            self._drop(service, f"Unbinding service: {service.on}")

    def of(self, owner: str, id_: str) -> Service:
        """The service of ``owner`` with this id. Raises :class:`NotFound`, :class:`Refused` (``bad_service_id``)."""
        on = parse_services_id(id_)
        service = self._services.get(on)
        if service is None or service.owner != owner:
            raise NotFound(f"Service prefix not found: Cannot find service: {on[:200]}", code="no_service")
        return service

    def find(self, on: str) -> Service | None:
        """Whoever is bound at this address."""
        return self._services.get(on)

    def _abandoned(self, service: Service) -> None:
        if self._services.get(service.on) is service:
            self._drop(service, "the last socket has gone")

    def _drop(self, service: Service, reason: str, code: int = NORMAL) -> None:
        del self._services[service.on]
        service.close(reason, code)

    def _make_room(self) -> None:
        """Forget services whose programs must have ended without saying so."""
        before = asyncio.get_running_loop().time() - self._limits.idle_s
        for service in list(self._services.values()):
            if service.lineless_since is not None and service.lineless_since <= before:
                self._drop(service, "nobody is connected")
        if len(self._services) >= self._limits.max_services:
            raise Conflict(
                f"this node has {len(self._services)} services already",
                code="too_many_services",
                hint="delete those that are not needed",
            )

"""The QUIC transport: iroh 1.2.0, and the only module that imports it.

Configured to keep to itself: no relays of others, no discovery service, only addresses that we pass. Incoming
handshakes happen outside the accept loop, so one slow caller holds up nobody. iroh's errors print as nothing and its
messages are debug text: they are turned into the errors of :mod:`~shem.node.peer.transport` here, and of their text only
the close and reset codes are read.

Listening on a loopback address binds both ``127.0.0.1`` and ``[::1]``: given one address family, iroh would open the
other on all interfaces by itself.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import ipaddress
import re
import socket
from collections.abc import Sequence

from iroh import iroh_ffi as ffi

from shem.errors import Misconfigured
from shem.node.peer.addresses import format_address, parse_address
from shem.node.peer.iroh_patch import async_self_test, install
from shem.node.peer.transport import ALPN, DialFailed, StreamReset, TransportFactory, TransportLost

BIND_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
"""Goodbyes need one round trip; peers that are gone never acknowledge theirs."""

_APPLICATION_CLOSE = re.compile(r"ApplicationClosed\(ApplicationClose \{ error_code: (\d+)")
_RESET = re.compile(r"^(?:Reset|Stopped|Read\(Reset|Write\(Stopped)\((\d+)\)")


def iroh_transport(listen: str = "0.0.0.0:0", advertise: Sequence[str] = ()) -> TransportFactory:
    """A factory for :class:`~shem.node.peer.network.PeerNetwork`.

    ``listen`` is ``ip:port`` (port 0: any); ``advertise`` are further addresses at which others reach us (behind a port
    forwarding, say). Raises :class:`Misconfigured` for what is not an address; the factory does when it cannot listen.
    """
    host, port = parse_address(listen)
    for address in advertise:
        parse_address(address)

    async def make(seed: bytes, endpoint_id: bytes) -> IrohTransport:
        install(ffi, importlib.metadata.version("iroh"))
        endpoint = await _bind(seed, host, port, listen)
        if endpoint.id().to_bytes() != endpoint_id:
            raise Misconfigured("iroh derives another endpoint id from our key", code="iroh_unusable")
        return IrohTransport(endpoint, list(advertise))

    return make


async def _bind(seed: bytes, host: str, port: int, listen: str) -> ffi.Endpoint:
    builder = ffi.EndpointBuilder()
    builder.apply_minimal()
    builder.relay_mode(ffi.RelayMode.disabled())
    builder.secret_key(seed)
    builder.alpns([ALPN])
    try:
        for address in _bind_addresses(host, port):
            builder.bind_addr(address)
        return await async_self_test(builder.bind(), BIND_TIMEOUT_S)
    except ffi.IrohError as error:
        raise Misconfigured(
            f"cannot listen on {listen}: {error.message()}",
            code="cannot_listen",
            hint="choose another port, or an address of this machine",
        ) from None


def _bind_addresses(host: str, port: int) -> list[str]:
    """Both families, always, so that iroh opens no socket that was not asked for."""
    ip = ipaddress.ip_address(host)
    addresses = [format_address(host, port)]
    everywhere, local = ("0.0.0.0", "127.0.0.1") if ip.version == 6 else ("::", "::1")  # noqa: S104
    if ip.version == 6 or _has_ipv6():
        addresses.append(format_address(everywhere, port) if ip.is_unspecified else format_address(local, 0))
    return addresses


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _lost(error: ffi.IrohError) -> TransportLost | StreamReset:
    text = error.message()
    if (found := _APPLICATION_CLOSE.search(text)) is not None:
        return TransportLost("the peer closed the connection", close_code=int(found[1]))
    if (found := _RESET.match(text)) is not None:
        return StreamReset("the peer broke the stream off", reset_code=int(found[1]))
    if "ConnectionLost" in text or error.kind() == ffi.IrohErrorKind.CONNECTION:
        return TransportLost("the connection is lost")
    return StreamReset("the stream is closed")


class IrohStream:
    """A bidirectional QUIC stream."""

    def __init__(self, stream: ffi.BiStream) -> None:
        self._send = stream.send()
        self._receive = stream.recv()

    async def read(self, n: int) -> bytes:
        try:
            data: bytes = await self._receive.read(n)
        except ffi.IrohError as error:
            raise _lost(error) from None
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._send.write_all(data)
        except ffi.IrohError as error:
            raise _lost(error) from None

    async def finish(self) -> None:
        try:
            await self._send.finish()
        except ffi.IrohError as error:
            raise _lost(error) from None

    async def reset(self, code: int) -> None:
        try:
            await self._send.reset(code)
        except ffi.IrohError:
            pass  # finished, reset, or the connection is gone: as broken off as it can be

    async def stop(self, code: int) -> None:
        try:
            await self._receive.stop(code)
        except ffi.IrohError:
            pass  # ended by itself


class IrohConnection:
    """One QUIC connection. Dropping it would close it: the link holds it for its life."""

    def __init__(self, connection: ffi.Connection) -> None:
        self._connection = connection
        self.remote_id: bytes = connection.remote_id().to_bytes()

    def limit_streams(self, count: int) -> None:
        self._connection.set_max_concurrent_bi_streams(count)
        self._connection.set_max_concurrent_uni_streams(0)

    async def open_stream(self) -> IrohStream:
        try:
            return IrohStream(await self._connection.open_bi())
        except ffi.IrohError as error:
            raise _lost(error) from None

    async def accept_stream(self) -> IrohStream:
        try:
            return IrohStream(await self._connection.accept_bi())
        except ffi.IrohError as error:
            raise _lost(error) from None

    def close(self, code: int, reason: str) -> None:
        self._connection.close(code, reason.encode())


class IrohIncoming:
    """A caller before the handshake."""

    def __init__(self, incoming: ffi.Incoming) -> None:
        self._incoming = incoming

    async def handshake(self) -> IrohConnection:
        try:
            accepting = await self._incoming.accept()
            return IrohConnection(await accepting.connect())
        except ffi.IrohError as error:
            raise DialFailed(f"the caller's handshake failed: {error.message()[:200]}") from None

    async def refuse(self) -> None:
        try:
            await self._incoming.refuse()
        except ffi.IrohError:
            pass  # gone already


class IrohTransport:
    """One iroh endpoint."""

    def __init__(self, endpoint: ffi.Endpoint, advertise: list[str]) -> None:
        self._endpoint = endpoint
        self._advertise = advertise

    def addresses(self) -> list[str]:
        bound: list[str] = self._endpoint.bound_sockets()
        wildcard = any(ipaddress.ip_address(parse_address(one)[0]).is_unspecified for one in bound)
        found: list[str] = self._endpoint.addr().direct_addresses() if wildcard else bound
        if not found:  # a machine without any network: its own processes can still reach us
            found = [f"127.0.0.1:{parse_address(bound[0])[1]}"]
        return list(dict.fromkeys([*self._advertise, *found]))

    async def accept(self) -> IrohIncoming | None:
        try:
            incoming = await self._endpoint.accept_next()
        except ffi.IrohError:
            return None
        return None if incoming is None else IrohIncoming(incoming)

    async def dial(self, endpoint_id: bytes, addresses: Sequence[str], timeout_s: float) -> IrohConnection:
        try:
            target = ffi.EndpointAddr(ffi.EndpointId.from_bytes(endpoint_id), None, list(addresses))
            async with asyncio.timeout(timeout_s):
                return IrohConnection(await self._endpoint.connect(target, ALPN))
        except ffi.IrohError as error:
            raise DialFailed(f"{endpoint_id.hex()[:16]} cannot be reached: {error.message()[:200]}") from None
        except TimeoutError:
            raise DialFailed(f"{endpoint_id.hex()[:16]} did not answer within {timeout_s:g} s") from None

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._endpoint.close()
        except (TimeoutError, ffi.IrohError):
            pass

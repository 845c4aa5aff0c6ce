"""JSON-RPC to a network's endpoints: one at a time, the next when it fails.

An endpoint is used only after it said the right chain id, showed the first block that this chain has had from the start
and, where that makes sense, a young last one; that is asked again every :data:`RECHECK_S`. What it answers is never
trusted to have the right shape. Nothing here is retried at the same endpoint: callers know what may be repeated.

Addresses of endpoints often hold a key; errors name the host alone. An endpoint that refuses many questions at a time is
asked fewer.

Two kinds of error: :class:`~shem.node.payment.drivers.base.ChainUnreachable` (nobody answered usefully; whether the
request took effect is unknown) and :class:`RpcRefused` (an endpoint understood and said no).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import PeerFailed
from shem.node.payment.drivers.base import ChainUnreachable

T = TypeVar("T")

RECHECK_S = 60.0
REST_S = (0.5, 30.0)
"""How long a failed endpoint is passed over: the first time, and at most."""
TIMEOUT_S = 5.0
MAX_LINES = 4
"""Questions under way to the endpoints of a network."""
MAX_ANSWER_BYTES = 16 << 20
MAX_BATCH = 100
"""Public endpoints refuse more."""

WAITING = "payments wait and go on by themselves when an endpoint answers again"
MAX_REASON_BYTES = 200
_NO_ANSWER = (401, 403, 429)
"""Statuses that concern who asks and not what: another endpoint's turn."""
_CALL_FAILED = (3, -32015)
"""Codes of errors by which endpoints say that a call would fail."""
_SAID = re.compile(rb"08c379a0[0-9a-f]{64}([0-9a-f]{64})((?:[0-9a-f]{2})*)", re.IGNORECASE)
_YEAR_10000 = 253_402_300_800

Transport = Callable[[str, bytes], Awaitable[bytes]]
"""(url, body) → body. Raises ``aiohttp.ClientError``, ``OSError`` or ``TimeoutError``."""
Call = tuple[str, Sequence[object]]
"""A method and its parameters."""
Pin = Callable[[str], str]
"""(hash of an endpoint's first block) → hash of the chain's; it remembers the first that it is asked about."""


class WrongChain(ChainUnreachable):
    """The endpoint serves another chain than the configured one, or than the one it was."""

    default_code = "wrong_chain"


class _Away(ChainUnreachable):
    """Nothing came from the endpoint; the message says in a few words why."""


class RpcRefused(PeerFailed):
    """The endpoint's error object. ``rpc_code`` and the message are its own."""

    default_code = "rpc_refused"

    def __init__(self, message: str, rpc_code: int) -> None:
        super().__init__(message)
        self.rpc_code = rpc_code


Results = Sequence[msgspec.Raw | RpcRefused]
"""Of calls, in their order."""


class _TooMany(ChainUnreachable):
    """One error object in answer to several questions."""


class _JustFailed(ChainUnreachable):
    """While this question waited for its turn."""


class _TooLong(Exception):
    """What was asked has more bytes than somebody on the way takes."""


class _Error(msgspec.Struct):
    code: int = 0
    message: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Answer(msgspec.Struct):
    id: int | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Error | None = None


class Block(msgspec.Struct, rename="camel"):
    """The parts of a header that matter here, as the chain writes them."""

    number: str
    hash: str
    timestamp: str
    base_fee_per_gas: str = "0x0"


class LogEntry(msgspec.Struct, rename="camel"):
    """One event of a receipt."""

    address: str
    topics: list[str]
    data: str


class Receipt(msgspec.Struct, rename="camel"):
    """What became of a transaction in its block."""

    transaction_hash: str
    block_number: str
    block_hash: str
    gas_used: str
    status: str
    sender: str = msgspec.field(name="from")
    logs: list[LogEntry] = []

    @property
    def succeeded(self) -> bool:
        return number(self.status) == 1


def number(text: str) -> int:
    """A quantity: the chain has none of more than 256 bits. Raises :class:`ChainUnreachable` for anything else."""
    try:
        if not text.startswith("0x") or len(text) > 66:
            raise ValueError(text)
        return int(text, 16)
    except ValueError:
        raise ChainUnreachable(f"the endpoint answered {text[:80]!r} where a number belongs") from None


def quantity(result: msgspec.Raw | RpcRefused) -> int:
    """A result that is one. Raises as :func:`read`."""
    return number(read(result, str))


def moment(text: str) -> int:
    """Unix seconds. Raises :class:`ChainUnreachable` for what no calendar has."""
    seconds = number(text)
    if seconds >= _YEAR_10000:
        raise ChainUnreachable(f"the endpoint answered {text[:80]!r} where a time belongs")
    return seconds


class Endpoint:
    """One URL and what we know about it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.host = _host(url)
        self.most = MAX_BATCH
        """Questions at a time."""
        self.checked_at = float("-inf")
        self.resting_until = float("-inf")
        self.failed_at = float("-inf")
        self.failures = 0
        self.error = ChainUnreachable("was not asked")
        """The last."""

    @property
    def told(self) -> str:
        """What is wrong with it."""
        return f"{self.host}{' does not answer' if isinstance(self.error, _Away) else ''}: {self.error.message}"


class RpcPool:
    """The endpoints of one network."""

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        *,
        max_head_age_s: float | None = None,
        transport: Transport | None = None,
        timeout_s: float = TIMEOUT_S,
        recheck_s: float = RECHECK_S,
        pin: Pin | None = None,
    ) -> None:
        """``pin`` knows the chain from another with its id (a devnet that was started afresh). ``transport`` is for tests
        that break things; the default posts over HTTP."""
        self._endpoints = [Endpoint(url) for url in urls]
        self._chain_id = chain_id
        self._max_head_age_s = max_head_age_s
        self._transport = transport or self._post
        self._timeout_s = timeout_s
        self._recheck_s = recheck_s
        self._pin = pin
        self._session: aiohttp.ClientSession | None = None
        self._ids = itertools.count(1)
        # Waited for outside of the timeout: a queue of our own is no fault of an endpoint.
        self._lines = asyncio.Semaphore(MAX_LINES)

    async def close(self) -> None:
        """Close connections; the pool may be used again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def call(self, method: str, params: Sequence[object], shape: type[T]) -> T:
        """One result. Raises :class:`RpcRefused`, :class:`ChainUnreachable`."""

        def use(results: Results) -> T | RpcRefused:
            (result,) = results
            return result if isinstance(result, RpcRefused) else read(result, shape)

        found = await self._anywhere([(method, params)], use)
        if isinstance(found, RpcRefused):
            raise found
        return found

    async def batch(self, calls: Sequence[Call]) -> list[msgspec.Raw | RpcRefused]:
        """Results in the order of ``calls``, all from one endpoint per :data:`MAX_BATCH`; see :func:`read`."""
        results: list[msgspec.Raw | RpcRefused] = []
        for start in range(0, len(calls), MAX_BATCH):
            results += await self._anywhere(calls[start : start + MAX_BATCH], list)
        return results

    async def ask(self, calls: Sequence[Call], use: Callable[[Results], T]) -> T:
        """What ``use`` makes of the results of at most :data:`MAX_BATCH` calls, all from one endpoint.

        For what every endpoint should know. One that answers such questions by a refusal (as many do that are asked too
        much), or by nonsense, is of no more use than one that is away: when ``use`` raises :class:`RpcRefused` or
        :class:`ChainUnreachable` the next one is asked. Raises :class:`ChainUnreachable`.
        """
        assert len(calls) <= MAX_BATCH
        return await self._anywhere(calls, use)

    async def each(self, calls: Sequence[Call], read_one: Callable[[msgspec.Raw | RpcRefused], T]) -> list[T]:
        """:meth:`ask` for any number of calls, whose results are read one by one."""
        found: list[T] = []
        for start in range(0, len(calls), MAX_BATCH):
            found += await self.ask(
                calls[start : start + MAX_BATCH], lambda results: [read_one(one) for one in results]
            )
        return found

    async def everywhere(self, calls: Sequence[Call]) -> list[Results]:
        """What each endpoint that is well answers to at most :data:`MAX_BATCH` calls: for what one may keep to itself.

        Raises :class:`ChainUnreachable` when nobody answers.
        """
        found: list[Results] = []
        now = time.monotonic()
        for endpoint in self._order(now):
            if found and endpoint.resting_until > now:
                continue
            try:
                await self._check(endpoint)
                found.append(await self._ask(endpoint, calls))
            except ChainUnreachable as error:
                self._rest(endpoint, error)
        if not found:
            raise self._nobody()
        return found

    def _order(self, now: float) -> list[Endpoint]:
        # Stable: the first healthy one is kept to, so that answers agree with each other.
        return sorted(self._endpoints, key=lambda e: max(e.resting_until, now))

    async def _anywhere(self, calls: Sequence[Call], use: Callable[[Results], T]) -> T:
        for endpoint in self._order(time.monotonic()):
            try:
                await self._check(endpoint)
                answer = use(await self._ask(endpoint, calls))
            except RpcRefused as error:
                self._rest(endpoint, ChainUnreachable(f"refuses simple questions: {error.message}"))
                continue
            except ChainUnreachable as error:
                self._rest(endpoint, error)
                continue
            endpoint.failures = 0
            endpoint.resting_until = float("-inf")
            return answer
        raise self._nobody()

    def _nobody(self) -> ChainUnreachable:
        """Where all endpoints fail in one way, that is what is wrong."""
        reasons = "; ".join(endpoint.told for endpoint in self._endpoints) or "no endpoint is configured"
        errors = [endpoint.error for endpoint in self._endpoints]
        kinds = {type(error) for error in errors}
        kind = kinds.pop() if len(kinds) == 1 else ChainUnreachable
        return kind(reasons, hint=next((error.hint for error in reversed(errors) if error.hint), WAITING))

    def _rest(self, endpoint: Endpoint, error: ChainUnreachable) -> None:
        if isinstance(error, _JustFailed):
            return  # it was not asked again
        endpoint.failed_at = time.monotonic()
        endpoint.failures += 1
        endpoint.error = error
        endpoint.checked_at = float("-inf")
        pause = min(REST_S[1], REST_S[0] * 2 ** min(endpoint.failures - 1, 10))
        endpoint.resting_until = time.monotonic() + pause

    async def _check(self, endpoint: Endpoint) -> None:
        """Right chain, young head."""
        if time.monotonic() - endpoint.checked_at < self._recheck_s:
            return
        calls: list[Call] = [
            ("eth_chainId", []),
            ("eth_getBlockByNumber", ["latest", False]),
            ("eth_getBlockByNumber", ["0x0", False]),
        ]
        chain_id, head, first = await self._ask(endpoint, calls)
        served = number(read(chain_id, str))
        if served != self._chain_id:
            raise WrongChain(
                f"serves chain {served}, not {self._chain_id}", hint="correct rpc_urls or chain_id of the network"
            )
        begin = read(first, Block).hash
        known = begin if self._pin is None else self._pin(begin)
        if begin != known:
            raise WrongChain(
                f"chain {served} there is not the chain it was: its first block is {begin}, not {known}",
                hint="payments made on one chain do not exist on another: start with a new data directory",
            )
        age = time.time() - moment(read(head, Block).timestamp)
        if self._max_head_age_s is not None and age > self._max_head_age_s:
            raise ChainUnreachable(f"its last block is {age:.0f} s old")
        endpoint.checked_at = time.monotonic()
        endpoint.most = min(MAX_BATCH, endpoint.most * 4)  # it may have been a bad moment

    async def _ask(self, endpoint: Endpoint, calls: Sequence[Call]) -> list[msgspec.Raw | RpcRefused]:
        results: list[msgspec.Raw | RpcRefused] = []
        while len(results) < len(calls):
            part = calls[len(results) : len(results) + endpoint.most]
            try:
                results += await self._ask_once(endpoint, part)
            except _TooMany:
                endpoint.most = max(len(part) // 4, 1)
        return results

    async def _ask_once(self, endpoint: Endpoint, calls: Sequence[Call]) -> list[msgspec.Raw | RpcRefused]:
        ids = [next(self._ids) for _ in calls]
        requests = [
            {"jsonrpc": "2.0", "id": i, "method": method, "params": params}
            for i, (method, params) in zip(ids, calls, strict=True)
        ]
        body = msgspec.json.encode(requests if len(requests) > 1 else requests[0])
        try:
            began = time.monotonic()
            async with self._lines:
                if endpoint.failed_at > began:
                    raise _JustFailed(endpoint.error.message)
                async with asyncio.timeout(self._timeout_s):
                    content = await self._transport(endpoint.url, body)
            answers = _answers(content, many=len(requests) > 1)
        except _TooLong:
            raise (_TooMany if len(requests) > 1 else ChainUnreachable)("HTTP 413") from None
        except TimeoutError:
            raise ChainUnreachable(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _Away(_why(error)) from None
        except DECODE_ERRORS as error:
            raise ChainUnreachable(f"its answer is not JSON-RPC: {error}") from error
        by_id = {answer.id: answer for answer in answers}
        if len(by_id) != len(ids) or set(by_id) != set(ids):
            raise ChainUnreachable("its answer is to other questions")
        return [_result(by_id[i]) for i in ids]

    async def _post(self, url: str, body: bytes) -> bytes:
        if self._session is None:
            # The connection is kept alive; one network needs few.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=MAX_LINES))
        headers = {"Content-Type": "application/json"}
        async with self._session.post(url, data=body, headers=headers) as response:
            if response.status == 413:
                raise _TooLong
            if response.status in _NO_ANSWER:
                raise aiohttp.ClientError(f"HTTP {response.status}")
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > MAX_ANSWER_BYTES:
                    raise aiohttp.ClientError(f"more than {MAX_ANSWER_BYTES} bytes")
        if response.status != 200:
            # Some say by the status, too, what they say in JSON-RPC: that a batch is too long, that a call would fail.
            try:
                told = _answers(bytes(content), many=False)
            except DECODE_ERRORS:
                told = []
            if not any(answer.error for answer in told):
                raise aiohttp.ClientError(f"HTTP {response.status}")
        return bytes(content)


def _answers(content: bytes, *, many: bool) -> list[_Answer]:
    found = msgspec.json.decode(content, type=list[_Answer] | _Answer)
    if isinstance(found, list):
        return found
    if many and found.error is not None:
        raise _TooMany(f"it answers several questions by {found.error.message[:200]!r}")
    return [found]


def _host(url: str) -> str:
    """Without what may be a secret."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
    except ValueError:
        return "an endpoint"


def _why(error: Exception) -> str:
    """In our words: the libraries' name classes, and some of them the whole address."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, socket.gaierror):
        return "its name is not known"
    if isinstance(cause, ssl.SSLError) or isinstance(error, aiohttp.ClientSSLError):
        return "its certificate is not valid for us, or it speaks no TLS"
    if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError | ConnectionResetError):
        return "the connection was cut"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    # what :meth:`RpcPool._post` says itself
    return str(error) if type(error) is aiohttp.ClientError else "no connection"


def _result(answer: _Answer) -> msgspec.Raw | RpcRefused:
    if answer.error is not None:
        return RpcRefused(_words(answer.error), answer.error.code)
    return answer.result


def contract_refused(error: RpcRefused) -> bool:
    """Whether it was what stands at the called address that refused, and not the endpoint."""
    return error.rpc_code in _CALL_FAILED or "revert" in error.message.lower()


def _words(error: _Error) -> str:
    """Its message, and what the contract said where the endpoint has left that in the data: others read that it was a
    contract that refused, and why."""
    message = error.message or "refused without a reason"
    reason = _reason(error.data)
    if not reason and (error.code not in _CALL_FAILED or "revert" in message.lower()):
        return message
    said = f"execution reverted: {reason}" if reason else "execution reverted"
    if said in message:
        return message
    return said if message == "execution reverted" else f"{message} ({said})"


def _reason(data: msgspec.Raw) -> str:
    """Of ``Error(string)``, which may stand behind a word of the endpoint's own; empty where there is none."""
    found = _SAID.search(bytes(data))
    if found is None:
        return ""
    length = int(found[1], 16)
    return bytes.fromhex(found[2].decode())[: min(length, MAX_REASON_BYTES)].decode("utf-8", "replace")


def read(result: msgspec.Raw | RpcRefused, shape: type[T]) -> T:
    """A result as ``shape``. Raises what the endpoint refused with, or :class:`ChainUnreachable` for nonsense."""
    if isinstance(result, RpcRefused):
        raise result
    try:
        return msgspec.json.decode(result, type=shape)
    except DECODE_ERRORS as error:
        raise ChainUnreachable(f"the endpoint's answer is not what was asked for: {error}") from error


def read_or_none(result: msgspec.Raw | RpcRefused, shape: type[T]) -> T | None:
    """Like :func:`read`; ``null`` gives ``None``."""
    if not isinstance(result, RpcRefused) and bytes(result) == b"null":
        return None
    return read(result, shape)


def receipt_of(tx_hash: str, result: msgspec.Raw | RpcRefused) -> Receipt | None:
    """Of this transaction (its name in lower case) and no other; ``None`` where there is none. Raises as :func:`read`."""
    receipt = read_or_none(result, Receipt)
    if receipt is not None and receipt.transaction_hash.lower() != tx_hash:
        raise ChainUnreachable("the endpoint's receipt is another transaction's")
    return receipt

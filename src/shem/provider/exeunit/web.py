"""``http(s)://`` places that requestors name, reached from this machine without becoming a way into its network.

Only public addresses are spoken to, unless the operator allows private ones. A name is resolved here, what it resolves to is
checked, and the connection goes to a checked address: no second look-up can say something else. Redirects are followed by
us, are few, obey the same rule at every step, and carry no credentials to another place. Bodies stream; what waits, waits
under a deadline. A URL may hold a password or a signature: errors name the host and nothing else of it.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from shem.cogs.addresses import is_public
from shem.errors import NotFound, PeerFailed, Refused

MAX_URL = 8192
_REDIRECTS = 5
_REDIRECT_STATUSES = {301, 302, 303, 307, 308}
_STALL_S = 60.0
"""How long the other end may move nothing."""
_ANSWER_S = 120.0
"""How long it may think once it has everything."""
_LOOK_UP_S = 10.0
_LOOK_UPS = 2
"""At once: each holds a thread for as long as a name server likes."""
_CHUNK = 256 << 10
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


class WebRefused(Refused):
    """That place is not spoken to, or its name is none."""

    default_code = "web_refused"


class WebNotFound(NotFound):
    """The server is there and the file is not."""

    default_code = "web_not_found"


class WebFailed(PeerFailed):
    """The server cannot be reached, says no, or breaks off."""

    default_code = "web_failed"


class WebDownload:
    """An answer whose body is on its way. ``size``: as announced, else ``None``."""

    def __init__(self, response: aiohttp.ClientResponse, host: str) -> None:
        self._response = response
        self._host = host
        self.size = response.content_length

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body. Raises :class:`WebFailed` when it breaks off."""
        try:
            async for chunk in self._response.content.iter_chunked(_CHUNK):
                yield chunk
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise _broken(self._host, error) from None


class Web:
    """The way out. Stateless but for a limit on look-ups: each request has its own connection, which ends with it."""

    def __init__(
        self,
        private_addresses: bool = False,
        *,
        public: Callable[[str], bool] = is_public,
        names: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver,
    ) -> None:
        """``private_addresses``: whether a URL may lead to this machine's own network, and to this machine. ``public`` says
        whether an address is everybody's (``True`` for names), ``names`` makes what resolves names."""
        self._allowed = _any if private_addresses else public
        self._names = names
        self._look_ups = asyncio.Semaphore(_LOOK_UPS)

    @asynccontextmanager
    async def get(self, url: str) -> AsyncIterator[WebDownload]:
        """Begin a download. Raises :class:`WebRefused`, :class:`WebNotFound`, :class:`WebFailed`."""
        here, login = self._place(url)
        async with self._session(_STALL_S) as session:
            for _ in range(_REDIRECTS + 1):
                host = here.host or ""
                try:
                    response = await session.get(here, headers=login, allow_redirects=False)
                except (aiohttp.ClientError, OSError, ValueError) as error:
                    raise _broken(host, error) from None
                try:
                    if response.status not in _REDIRECT_STATUSES:
                        _check_status(response.status, host)
                        yield WebDownload(response, host)
                        return
                    there, _ = self._place(_target(here, response.headers))
                finally:
                    response.close()
                if there.origin() != here.origin():
                    login = {}
                here = there
        raise WebFailed(f"{here.host} redirects more than {_REDIRECTS} times")

    async def put(self, url: str, content: AsyncIterator[bytes], size: int | None = None) -> None:
        """Upload; ``size`` when it is known, which some servers insist on. Returns when the server has taken it.

        Raises as :meth:`get`, and what ``content`` raises. A redirect is an error: what has been sent cannot be sent again.
        """
        here, login = self._place(url)
        host = here.host or ""
        headers = {"Content-Type": "application/octet-stream", **login}
        if size is not None:
            headers["Content-Length"] = str(size)
        async with self._session(_ANSWER_S) as session:
            try:
                async with asyncio.timeout(_STALL_S) as limit:
                    body = _timed(content, limit)
                    async with session.put(here, data=body, headers=headers, allow_redirects=False) as response:
                        if response.status in _REDIRECT_STATUSES:
                            raise WebFailed(f"{host} redirects an upload, which cannot be followed")
                        _check_status(response.status, host)
            except (aiohttp.ClientError, OSError, ValueError) as error:
                raise _broken(host, error) from None

    def _session(self, silence_s: float) -> aiohttp.ClientSession:
        resolver = _Guard(self._allowed, self._names(), self._look_ups)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(resolver=resolver, use_dns_cache=False, force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=15, sock_read=silence_s),
            headers={"Accept-Encoding": "identity", "User-Agent": "shem"},
            auto_decompress=False,  # what is checked and stored is what the server holds
            read_bufsize=_CHUNK,
        )

    def _place(self, text: str) -> tuple[URL, dict[str, str]]:
        """A URL without its login, and the header that shows the login."""
        try:
            if len(text) > MAX_URL:
                raise ValueError
            # as it was written: a signature covers its exact letters
            url = URL(text, encoded=_PRINTABLE.fullmatch(text) is not None)
            host, user, password = url.host, url.user, url.password
            if url.scheme not in ("http", "https") or not host or not url.port:
                raise ValueError
            login = {}
            if user is not None or password is not None:
                shown = base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()
                login["Authorization"] = f"Basic {shown}"
        except ValueError:
            raise WebRefused("that is not an http or https URL") from None
        if not self._allowed(host):
            raise _private(host)
        return url.with_user(None).with_fragment(None), login


class _Guard(AbstractResolver):
    """Resolves names, and leaves out addresses that are nobody's business. The answer is what is connected to."""

    def __init__(self, allowed: Callable[[str], bool], inner: AbstractResolver, look_ups: asyncio.Semaphore) -> None:
        self._allowed = allowed
        self._look_ups = look_ups
        self._inner = inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        async with asyncio.timeout(_LOOK_UP_S), self._look_ups:
            found = await self._inner.resolve(host, port, family)
        allowed = [each for each in found if self._allowed(each["host"])]
        if found and not allowed:
            raise _private(host)
        return allowed

    async def close(self) -> None:
        await self._inner.close()


def _any(host: str) -> bool:
    return True


async def _timed(content: AsyncIterator[bytes], limit: asyncio.Timeout) -> AsyncIterator[bytes]:
    """Each piece that is asked for proves that the one before has left."""
    loop = asyncio.get_running_loop()
    async for piece in content:
        limit.reschedule(loop.time() + _STALL_S)
        yield piece
    limit.reschedule(loop.time() + _ANSWER_S)


def _target(here: URL, headers: Mapping[str, str]) -> str:
    where = headers.get("Location", "")
    try:
        return str(here.join(URL(where, encoded=_PRINTABLE.fullmatch(where) is not None)))
    except ValueError:
        raise WebFailed(f"{here.host} redirects to nowhere") from None


def _check_status(status: int, host: str) -> None:
    if status in (404, 410):
        raise WebNotFound(f"{host} has no such file (status {status})")
    if status in (401, 403):
        raise WebFailed(f"{host} does not allow it (status {status})")
    if not 200 <= status < 300:
        raise WebFailed(f"{host} answered with status {status}")


def _private(host: str) -> WebRefused:
    return WebRefused(f"{host} is in a private network, which is not spoken to here")


def _broken(host: str, error: BaseException) -> WebFailed:
    """Never the library's own words: they may quote the URL."""
    if isinstance(error, TimeoutError):
        return WebFailed(f"{host} is too slow")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return WebFailed(f"there is no address for {host}")
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return WebFailed(f"{host} cannot prove who it is")
    if isinstance(error, aiohttp.ClientConnectorError):
        return WebFailed(f"{host} cannot be reached")
    return WebFailed(f"the connection to {host} broke ({type(error).__name__})")

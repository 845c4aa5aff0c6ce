"""Read images from registries that speak the OCI distribution API, trusting neither them nor whoever named them.

A requestor names the registry, so this is a provider being told to make requests: only https to public addresses, unless the
operator lists a host in ``insecure_hosts`` (then plain http, and private addresses, are fine). Addresses are checked after
the name was resolved and the connection goes to the checked address. Redirects (registries send blobs from elsewhere) obey
the same rules, are few, and never carry credentials to another host. Manifests are bounded; blobs are handed on as they
arrive, for the caller to verify, and can be resumed.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from shem.cogs.addresses import is_public
from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.ociformat import (
    INDEXES,
    MANIFESTS,
    MAX_MANIFEST,
    Descriptor,
    ImageUnusable,
    Index,
    choose,
    host_architecture,
    parse_manifest,
    sha256_digest,
)
from shem.runtimes.images.errors import (
    ImageDigestMismatch,
    ImageNotFound,
    RegistryDenied,
    RegistryNotAllowed,
    RegistryUnreachable,
)
from shem.terms.images import RegistryImage, is_digest

_REDIRECTS = 5
_TRIES = 5
_MAX_TOKEN = 64 << 10
_MAX_WAIT_S = 20.0
_ACCEPT = ", ".join(sorted(INDEXES | MANIFESTS))
_CHALLENGE = re.compile(r'([a-zA-Z]{1,20})="([^"]{0,2000})"')
_CHUNK = 1 << 20
_INSECURE = "the operator lists it (--insecure-registry, insecure_registries in provider.toml)"
_SLOWEST = 16 << 10  # bytes a second


class RegistryConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a provider uses registries."""

    default_registry: str = ""
    """``host[:port]`` for names without one, such as ``python:3.12``; ``""`` refuses such names."""
    insecure_hosts: frozenset[str] = frozenset()
    """``host`` or ``host:port`` that may be spoken to without TLS and may have private addresses."""
    credentials: Mapping[str, tuple[str, str]] = {}
    """``host[:port]`` → (user, password or access token)."""
    architecture: str = ""
    """Of the images to choose; default this machine's."""
    backoff_s: float = 0.25
    """Wait before the first repetition; doubled each time."""


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest, found."""

    digest: str
    raw: bytes
    aliases: tuple[str, ...] = ()
    """Digests of the indexes that led to it."""


class _Guard(AbstractResolver):
    """Resolves names, and leaves out addresses that are nobody's business."""

    def __init__(self, insecure_hosts: frozenset[str]) -> None:
        self._insecure = insecure_hosts
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        if host in self._insecure or f"{host}:{port}" in self._insecure:
            return found
        public = [each for each in found if is_public(each["host"])]
        if found and not public:
            raise _private(host)
        return public

    async def close(self) -> None:
        await self._inner.close()


class Registries:
    """All registries. An async context manager; safe for concurrent calls."""

    def __init__(self, config: RegistryConfig) -> None:
        self._config = config
        self._architecture = config.architecture or host_architecture()
        self._session: aiohttp.ClientSession | None = None
        self._tokens: dict[tuple[str, str], str] = {}

    async def __aenter__(self) -> Registries:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=16, resolver=_Guard(self._config.insecure_hosts)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "shem", "Accept-Encoding": "identity"},
            auto_decompress=False,
            read_bufsize=1 << 18,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    def located(self, image: RegistryImage) -> RegistryImage:
        """``image`` with its host. Raises :class:`RegistryNotAllowed` when there is none to assume."""
        if image.host:
            return image
        if not self._config.default_registry:
            raise RegistryNotAllowed(
                f"{image.short} names no registry, and this provider has no default one",
                hint="write the image as host/name:tag, or set default_registry in the provider's configuration",
            )
        return msgspec.structs.replace(image, host=self._config.default_registry)

    async def resolve(self, image: RegistryImage) -> Resolved:
        """Find the manifest for this platform. ``image`` must have a host. Raises our image errors."""
        reference, aliases = image.reference, list[str]()
        for _ in range(3):
            digest, raw = await self._manifest(image, reference)
            document = parse_manifest(raw)
            if not isinstance(document, Index):
                return Resolved(digest=digest, raw=raw, aliases=tuple(aliases))
            aliases.append(digest)
            reference = choose(document, self._architecture).digest
        raise ImageUnusable(f"{image.short}: indexes are nested too deeply")

    async def read(self, image: RegistryImage, blob: Descriptor, start: int) -> AsyncIterator[bytes]:
        """The bytes of a blob from ``start``, unverified, at most one byte more than it should have.

        Raises :class:`RegistryUnreachable` in the middle when the connection is lost: call again with a later ``start``.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        limit = _Deadline(image.host, 60 + blob.size / _SLOWEST)
        response = await self._get(image, f"blobs/{blob.digest}", headers, limit)
        try:
            skip = _already_had(response, start, image.host)
            left = blob.size - start + 1
            async for piece in limit.pieces(response):
                wanted = piece[skip : skip + left]
                skip = max(0, skip - len(piece))
                if wanted:
                    left -= len(wanted)
                    yield wanted
                if left <= 0:
                    return
        finally:
            response.close()

    async def _manifest(self, image: RegistryImage, reference: str) -> tuple[str, bytes]:
        limit = _Deadline(image.host, 60)
        response = await self._get(image, f"manifests/{reference}", {"Accept": _ACCEPT}, limit)
        try:
            whole = bytearray()
            async for piece in limit.pieces(response):
                whole += piece
                if len(whole) > MAX_MANIFEST:
                    raise ImageUnusable(f"the manifest of {image.short} is larger than {MAX_MANIFEST >> 20} MiB")
        finally:
            response.close()
        raw = bytes(whole)
        digest = sha256_digest(raw)
        if is_digest(reference) and digest != reference:
            raise ImageDigestMismatch(f"{image.host} answered with {digest} when asked for {reference}")
        return digest, raw

    async def _get(
        self, image: RegistryImage, path: str, headers: Mapping[str, str], limit: _Deadline
    ) -> aiohttp.ClientResponse:
        """A good answer (200 or 206), after redirects, authentication and repetitions."""
        scheme = "http" if self._is_insecure(image.host) else "https"
        url = URL(f"{scheme}://{image.host}/v2/{image.repository}/{path}", encoded=True)
        async with limit.watched():
            return await self._answered(image, url, headers)

    async def _answered(self, image: RegistryImage, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        fresh = False
        wait_s = self._config.backoff_s
        for attempt in range(_TRIES):
            try:
                response = await self._once(image, url, headers)
            except (aiohttp.ClientConnectionError, TimeoutError, ConnectionError):
                if attempt == _TRIES - 1:
                    raise
            else:
                if response.status in (200, 206):
                    return response
                asked = response.headers.getall("WWW-Authenticate", [])
                after = response.headers.get("Retry-After", "")
                status = response.status
                response.close()
                if status in (401, 403) and not fresh and (asked or status == 401):
                    fresh = True  # one new token for each request: an old one may have run out
                    await self._authenticate(image, asked)
                    continue
                _raise_for(image, status, retry=attempt < _TRIES - 1)
                if after.isdigit():
                    wait_s = max(wait_s, float(after))
            await asyncio.sleep(min(wait_s, _MAX_WAIT_S))
            wait_s *= 2
        raise RegistryUnreachable(f"{image.host} keeps failing")

    async def _once(self, image: RegistryImage, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        sent = dict(headers)
        token = self._tokens.get((image.host, image.repository))
        if token is not None:
            sent["Authorization"] = token
        origin = url.origin()
        for _ in range(_REDIRECTS + 1):
            response = await self._request(url, sent)
            if response.status not in (301, 302, 303, 307, 308):
                return response
            location = response.headers.get("Location", "")
            response.close()
            try:
                url = url.join(URL(location, encoded=True))
            except ValueError:
                raise RegistryUnreachable(f"{image.host} redirects to nowhere") from None
            if url.host is None or url.origin() != origin:
                sent.pop("Authorization", None)
        raise RegistryUnreachable(f"{image.host} redirects more than {_REDIRECTS} times")

    async def _request(self, url: URL, headers: Mapping[str, str], **options: Any) -> aiohttp.ClientResponse:
        """One request, if we speak to that address at all."""
        if self._session is None:
            raise RuntimeError("Registries is not open")
        authority = _authority(url)
        if not self._is_insecure(authority):
            if url.scheme != "https":
                raise RegistryNotAllowed(
                    f"{authority} would be spoken to in the clear", hint=f"only https, unless {_INSECURE}"
                )
            if not is_public(url.host or ""):
                raise _private(authority)
        return await self._session.get(url, headers=headers, allow_redirects=False, **options)

    async def _authenticate(self, image: RegistryImage, asked: list[str]) -> None:
        key = (image.host, image.repository)
        self._tokens.pop(key, None)
        login = self._config.credentials.get(image.host)
        for challenge in asked:
            kind, _, rest = challenge.partition(" ")
            if kind.lower() == "bearer":
                self._tokens[key] = "Bearer " + await self._token(image, dict(_CHALLENGE.findall(rest[:4000])), login)
                return
            if kind.lower() == "basic" and login is not None:
                self._tokens[key] = _basic(login)
                return
        raise _denied(image)

    async def _token(self, image: RegistryImage, said: dict[str, str], login: tuple[str, str] | None) -> str:
        query: dict[str, str] = {name: said[name] for name in ("service", "scope") if name in said}
        query.setdefault("scope", f"repository:{image.repository}:pull")
        try:
            realm = URL(said.get("realm", ""))
            url = realm.update_query(query)
        except ValueError:
            raise _denied(image) from None
        headers = {"Authorization": _basic(login)} if login is not None else {}
        response = await self._request(url, headers)
        try:
            if response.status != 200:
                raise _denied(image)
            raw = await response.content.read(_MAX_TOKEN)
            while len(raw) < _MAX_TOKEN and (more := await response.content.read(_MAX_TOKEN)):
                raw += more
        finally:
            response.close()
        try:
            answer = msgspec.json.decode(raw, type=_Token)
        except DECODE_ERRORS:
            raise _denied(image) from None
        token = answer.token or answer.access_token
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise _denied(image)
        return token

    def _is_insecure(self, authority: str) -> bool:
        return authority in self._config.insecure_hosts or _bare(authority) in self._config.insecure_hosts


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def _raise_for(image: RegistryImage, status: int, *, retry: bool) -> None:
    if status == 404:
        raise ImageNotFound(f"{image.host} has no {image.short}", hint="check the name and the tag")
    if status in (401, 403):
        raise _denied(image)
    if not (retry and (status == 429 or status >= 500)):
        raise RegistryUnreachable(f"{image.host} answered {status} when asked for {image.short}")


def _denied(image: RegistryImage) -> RegistryDenied:
    return RegistryDenied(
        f"{image.host} does not let us read {image.short}",
        hint="it does not exist, or is private: use a public image, or a local one",
    )


def _basic(login: tuple[str, str]) -> str:
    return "Basic " + base64.b64encode(f"{login[0]}:{login[1]}".encode()).decode()


def _authority(url: URL) -> str:
    host = url.host_subcomponent or ""
    return host if url.explicit_port is None else f"{host}:{url.explicit_port}"


def _bare(authority: str) -> str:
    """Without port and brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def _private(host: str) -> RegistryNotAllowed:
    return RegistryNotAllowed(f"{host} is in a private network", hint=f"not spoken to, unless {_INSECURE}")


def _already_had(response: aiohttp.ClientResponse, start: int, host: str) -> int:
    """How many bytes of the answer come before ``start``: all of them when the server does not do ranges."""
    if response.status == 200:
        return start
    if not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise RegistryUnreachable(f"{host} answered with another part of a blob than was asked for")
    return 0


class _Deadline:
    """The time one exchange may take as a whole, so that a registry cannot hold us by a trickle; and its errors."""

    def __init__(self, host: str, seconds: float) -> None:
        self._host = host
        self._at = asyncio.get_running_loop().time() + seconds

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Never around a ``yield`` to somebody else: his time is not the registry's."""
        try:
            async with asyncio.timeout_at(self._at):
                yield
        except TimeoutError:
            raise RegistryUnreachable(f"{self._host} is too slow") from None
        except (aiohttp.ClientError, OSError) as error:
            raise RegistryUnreachable(f"{self._host} cannot be read: {error or type(error).__name__}") from None

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The body, at most 1 MiB at a time."""
        while True:
            async with self.watched():
                piece = await response.content.read(_CHUNK)
            if not piece:
                return
            yield piece

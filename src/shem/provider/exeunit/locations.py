"""The ends of a transfer, as commands name them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import msgspec

from shem.errors import Refused
from shem.provider.exeunit.failures import PATH_NOT_FOUND, TRANSFER_FAILED, UNSUPPORTED, CommandFailed
from shem.wire.files import parse_gftp_url

_SHA3 = {56: "sha3_224", 64: "sha3_256", 96: "sha3_384", 128: "sha3_512"}
_MAX_PATH = 4096


class Inside(msgspec.Struct, frozen=True):
    """A path in the sandbox."""

    path: str


class Gftp(msgspec.Struct, frozen=True):
    """A file, or an inbox, of a node."""

    node_id: str
    file_id: str


class WebPlace(msgspec.Struct, frozen=True):
    """A URL, which may hold a password: it is never shown."""

    url: str


Remote = Gftp | WebPlace
Location = Inside | Gftp | WebPlace


class Promise(msgspec.Struct, frozen=True):
    """The hash that a source is said to have."""

    algorithm: str
    digest: str

    async def kept(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The content; raises :class:`CommandFailed` at its end when the hash is another one."""
        digest = hashlib.new(self.algorithm)
        async for piece in content:
            digest.update(piece)
            yield piece
        if digest.hexdigest() != self.digest:
            raise CommandFailed(TRANSFER_FAILED, f"the content's hash is {digest.hexdigest()}, not {self.digest}")


def parse_source(text: str) -> tuple[Location, Promise | None]:
    """A location, with ``hash:sha3:<hex>:`` before it if need be. Raises :class:`CommandFailed`."""
    if not text.startswith("hash:"):
        return parse_location(text), None
    _, name, digest, rest = (*text.split(":", 3), "", "", "")[:4]
    algorithm = _SHA3.get(len(digest), "") if name == "sha3" else ""
    if not algorithm or not rest:
        raise CommandFailed(UNSUPPORTED, f"{name[:20]!r}: only hash:sha3:<hex>:<url> is known")
    return parse_location(rest), Promise(algorithm, digest.lower())


def parse_location(text: str) -> Location:
    """One end of a transfer. Raises :class:`CommandFailed`."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "container":
        if not rest.startswith("/") or "\0" in rest or len(rest) > _MAX_PATH or ".." in rest.split("/"):
            raise CommandFailed(PATH_NOT_FOUND, f"path not found in container: {rest[:500]!r} is not an absolute path")
        return Inside(rest)
    if colon and scheme == "gftp":
        try:
            return Gftp(*parse_gftp_url(text))
        except Refused as error:
            raise CommandFailed(TRANSFER_FAILED, error.message) from None
    if colon and scheme in ("http", "https"):
        return WebPlace(text)
    raise CommandFailed(
        UNSUPPORTED, f"transfers by {scheme[:20]!r} are not offered here; known are container, gftp, http and https"
    )

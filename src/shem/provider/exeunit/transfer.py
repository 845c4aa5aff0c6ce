"""The ``transfer`` command: files and directories between the sandbox and the places where requestors keep them.

Everything is a chain of asynchronous streams, so memory does not grow with the file, and a slow end slows the other. An
upload is done when the receiver has it hashed and stored; a download is checked against the hash its sender promised
(and against the ``hash:`` of the command, where there is one) before the command succeeds. A download that fails leaves
no half file behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import PurePosixPath

import msgspec

from shem.client.files import FilesApi
from shem.errors import NotFound, Refused, ShemError
from shem.provider.exeunit.failures import (
    DISK_FULL,
    PATH_NOT_FOUND,
    TRANSFER_FAILED,
    UNSUPPORTED,
    CommandFailed,
    as_failure,
    file_failure,
)
from shem.provider.exeunit.tarflow import (
    MAX_MEMBERS,
    Member,
    TarReader,
    bad_archive,
    end,
    gunzip,
    gzip,
    header,
    padding,
)
from shem.runtimes.base import Entry, GuestBroken, GuestFileError, SandboxFailed
from shem.runtimes.guest.client import GuestAgent
from shem.terms.script import Transfer
from shem.wire.files import parse_gftp_url

Report = Callable[[int, int | None], None]
"""Called with the bytes moved and, where known, their total."""

_HASHES = {"sha3": {56: "sha3_224", 64: "sha3_256", 96: "sha3_384", 128: "sha3_512"}}
_FORMATS = ("tar", "tar.gz")


class Remote(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a transfer that is not in the sandbox."""

    node_id: str
    file_id: str
    algorithm: str = ""
    digest: str = ""


class Inside(msgspec.Struct, frozen=True):
    """The end of a transfer that is in the sandbox."""

    path: str


class Transfers:
    """Carries out transfers for one sandbox."""

    def __init__(
        self, guest: GuestAgent, files: FilesApi, *, max_bytes: int, check_path: Callable[[str], None]
    ) -> None:
        """``max_bytes`` bounds what one transfer may bring in: the sandbox's disk."""
        self._guest = guest
        self._files = files
        self._max_bytes = max_bytes
        self._check_path = check_path

    async def run(self, command: Transfer, report: Report) -> None:
        """Carry out one command. Raises :class:`CommandFailed`."""
        if command.fileset is not None or command.depth is not None:
            raise CommandFailed(UNSUPPORTED, "fileset and depth are not offered here: make an archive of what you need")
        if command.format is not None and command.format not in _FORMATS:
            known = " and ".join(_FORMATS)
            raise CommandFailed(UNSUPPORTED, f"format {command.format[:40]!r} is not offered here; known are {known}")
        source, target = parse_location(command.source), parse_location(command.to)
        try:
            match source, target:
                case Remote(), Inside():
                    self._check_path(target.path)
                    await self._bring(source, target.path, command.format, report)
                case Inside(), Remote():
                    self._check_path(source.path)
                    await self._send(source.path, target, command.format, report)
                case _:
                    raise CommandFailed(UNSUPPORTED, "one end of a transfer must be in the container, the other not")
        except (CommandFailed, GuestBroken, SandboxFailed):
            raise
        except NotFound as error:
            raise CommandFailed(TRANSFER_FAILED, f"there is no such file at the requestor: {error.message}") from None
        except ShemError as error:
            raise as_failure(error, TRANSFER_FAILED) from error
        except TimeoutError:
            raise CommandFailed(TRANSFER_FAILED, "the other end did not answer in time") from None

    async def _bring(self, source: Remote, path: str, form: str | None, report: Report) -> None:
        async with self._files.open(source.node_id, source.file_id) as download:
            if download.size > self._max_bytes:
                raise CommandFailed(DISK_FULL, f"{download.size} bytes do not fit into the sandbox's disk")
            total = download.size if download.size >= 0 else None
            content = _counted(download.chunks(), lambda moved: report(moved, total))
            if source.digest:
                content = _checked(content, source.algorithm, source.digest)
            if form is None:
                await self._put(path, content, 0o644)
            else:
                await self._unpack(path, gunzip(content) if form == "tar.gz" else content)

    async def _put(self, path: str, content: AsyncIterator[bytes], mode: int) -> None:
        if path.endswith("/"):
            raise CommandFailed(PATH_NOT_FOUND, f"{path!r} names a directory; say which file, or use format tar")
        try:
            await self._make_parents(path)
            await self._guest.put_file(path, content, mode)
        except GuestFileError as error:
            raise file_failure(error, path) from error

    async def _make_parents(self, path: str) -> None:
        parent = str(PurePosixPath(path).parent)
        if parent != "/":
            await self._guest.make_dir(parent)

    async def _unpack(self, root: str, content: AsyncIterator[bytes]) -> None:
        reader = TarReader(content)
        left = self._max_bytes
        try:
            await self._guest.make_dir(root)
            for _ in range(MAX_MEMBERS):
                member = await reader.next()
                if member is None:
                    break
                left -= member.size
                if left < 0:
                    raise CommandFailed(DISK_FULL, "the archive's content does not fit into the sandbox's disk")
                await self._make(root, member, reader)
            else:
                raise bad_archive(f"it has more than {MAX_MEMBERS} members")
            await reader.drain()
        except GuestFileError as error:
            raise file_failure(error, str(error.details.get("path", root))) from error

    async def _make(self, root: str, member: Member, reader: TarReader) -> None:
        path = _join(root, member.path)
        match member.kind:
            case "dir":
                await self._guest.make_dir(path)
            case "file":
                await self._make_parents(path)
                await self._guest.put_file(path, reader.content(), member.mode)
            case "link":
                await self._make_parents(path)
                await self._guest.symlink(member.link, path)
            case "hardlink":
                await self._make_parents(path)
                await self._guest.put_file(path, self._guest.get_file(_join(root, member.link)), member.mode)

    async def _send(self, path: str, target: Remote, form: str | None, report: Report) -> None:
        content = self._guest.get_file(path) if form is None else self._pack(path)
        if form == "tar.gz":
            content = gzip(content)
        failure: list[GuestFileError | CommandFailed] = []
        counted = _counted(_remembering(content, failure), lambda moved: report(moved, None))
        try:
            await self._files.send(target.node_id, target.file_id, counted)
        except (ShemError, OSError):
            # a source that breaks off looks like a broken upload to the caller: the cause is what the requestor needs
            if not failure:
                raise
            first = failure[0]
            raise (first if isinstance(first, CommandFailed) else file_failure(first, path)) from None

    async def _pack(self, root: str) -> AsyncIterator[bytes]:
        entries = await self._guest.walk(root)
        if not entries:
            yield header(Member(path="", kind="dir", mode=0o755))
        for entry in entries:
            member = _member(entry)
            if member is None:
                continue
            yield header(member)
            if member.kind == "file":
                async for piece in self._exactly(_join(root, member.path), member.size):
                    yield piece
                yield padding(member.size)
        yield end()

    async def _exactly(self, path: str, size: int) -> AsyncIterator[bytes]:
        seen = 0
        async for piece in self._guest.get_file(path):
            seen += len(piece)
            if seen > size:
                break
            yield piece
        if seen != size:
            raise CommandFailed(TRANSFER_FAILED, f"{path} changed while it was read")


def parse_location(text: str) -> Remote | Inside:
    """One end of a transfer. Raises :class:`CommandFailed`."""
    algorithm = digest = ""
    rest = text
    if text.startswith("hash:"):
        _, algorithm, digest, rest = (*text.split(":", 3), "", "", "")[:4]
        algorithm = _HASHES.get(algorithm, {}).get(len(digest), "")
        if not algorithm:
            raise CommandFailed(UNSUPPORTED, f"{text[:80]!r}: only hash:sha3:<hex>:<url> is known")
    if rest.startswith("container:"):
        path = rest.removeprefix("container:")
        if not path.startswith("/") or "\0" in path or len(path) > 4096 or ".." in path.split("/"):
            raise CommandFailed(PATH_NOT_FOUND, f"path not found in container: {path[:500]!r} is not an absolute path")
        return Inside(path)
    if rest.startswith("gftp://"):
        try:
            node_id, file_id = parse_gftp_url(rest)
        except Refused as error:
            raise CommandFailed(TRANSFER_FAILED, error.message) from None
        return Remote(node_id=node_id, file_id=file_id, algorithm=algorithm, digest=digest.lower())
    scheme = rest.partition(":")[0][:20]
    raise CommandFailed(UNSUPPORTED, f"transfers by {scheme!r} are not offered here; use gftp and container")


def _member(entry: Entry) -> Member | None:
    match entry.kind:
        case "file":
            return Member(path=entry.path, kind="file", size=entry.size, mode=entry.mode, mtime=entry.mtime)
        case "dir":
            return Member(path=entry.path, kind="dir", mode=entry.mode, mtime=entry.mtime)
        case "link":
            return Member(path=entry.path, kind="link", mode=0o777, mtime=entry.mtime, link=entry.link)
        case _:
            return None  # sockets, pipes and devices have no content that could travel


def _join(root: str, path: str) -> str:
    return str(PurePosixPath(root, path))


async def _counted(content: AsyncIterator[bytes], report: Callable[[int], None]) -> AsyncIterator[bytes]:
    moved = 0
    async for piece in content:
        yield piece
        moved += len(piece)
        report(moved)


async def _checked(content: AsyncIterator[bytes], algorithm: str, expected: str) -> AsyncIterator[bytes]:
    digest = hashlib.new(algorithm)
    async for piece in content:
        digest.update(piece)
        yield piece
    if digest.hexdigest() != expected:
        raise CommandFailed(TRANSFER_FAILED, f"the content's hash is {digest.hexdigest()}, not {expected}")


async def _remembering(
    content: AsyncIterator[bytes], failure: list[GuestFileError | CommandFailed]
) -> AsyncIterator[bytes]:
    try:
        async for piece in content:
            yield piece
    except (GuestFileError, CommandFailed) as error:
        failure.append(error)
        raise

"""The ``transfer`` command: files and directories between the sandbox and the places where requestors keep them.

Everything is a chain of asynchronous streams, so memory does not grow with the file, and a slow end slows the other. An
upload is done when the receiver has it stored; a download is checked against the hash its sender promised (and against the
``hash:`` of the command, where there is one) before the command succeeds. A download that fails leaves no half file behind.

With a format, a directory travels as an archive. Extraction happens inside the sandbox, name by name, so a hostile archive
can reach nothing but its owner's sandbox; its size and its number of members are bounded all the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Protocol

from shem.client.files import FilesApi
from shem.errors import NotFound, PeerFailed, Refused, ShemError
from shem.provider.exeunit.failures import (
    DISK_FULL,
    PATH_NOT_FOUND,
    TRANSFER_FAILED,
    UNSUPPORTED,
    CommandFailed,
    as_failure,
    file_failure,
)
from shem.provider.exeunit.fileset import Selection
from shem.provider.exeunit.locations import Inside, Location, Promise, Remote, WebPlace, parse_location, parse_source
from shem.provider.exeunit.squeeze import compress, expand
from shem.provider.exeunit.tarflow import MAX_MEMBERS, Member, TarReader, bad_archive, pack_tar
from shem.provider.exeunit.web import Web
from shem.provider.exeunit.zipflow import ZipReader, pack_zip, spool
from shem.runtimes.base import Entry, GuestBroken, GuestFileError, SandboxFailed
from shem.runtimes.guest.client import GuestAgent
from shem.terms.script import Transfer

Report = Callable[[int, int | None], None]
"""Called with the bytes moved and, where known, their total."""

FORMATS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip", "zip.0")


class _Archive(Protocol):
    async def next(self) -> Member | None: ...
    def content(self) -> AsyncIterator[bytes]: ...
    async def drain(self) -> None: ...


class Transfers:
    """Carries out transfers for one sandbox."""

    def __init__(
        self,
        guest: GuestAgent,
        files: FilesApi,
        web: Web,
        *,
        max_bytes: int,
        directory: Path,
        check_path: Callable[[str], None],
    ) -> None:
        """``max_bytes`` bounds what one transfer may bring in: the sandbox's disk. ``directory`` has room for archives that
        must be whole before they can be read. ``check_path`` raises for paths where nothing may travel."""
        self._guest = guest
        self._files = files
        self._web = web
        self._max_bytes = max_bytes
        self._directory = directory
        self._check_path = check_path

    async def run(self, command: Transfer, report: Report) -> None:
        """Carry out one command. Raises :class:`CommandFailed`."""
        if command.format is not None and command.format not in FORMATS:
            known = ", ".join(FORMATS)
            raise CommandFailed(UNSUPPORTED, f"format {command.format[:40]!r} is not offered here; known are {known}")
        if command.format is None and (command.fileset is not None or command.depth is not None):
            raise CommandFailed(UNSUPPORTED, "fileset and depth need a format: a directory travels as an archive")
        selection = Selection(command.fileset, command.depth)
        source, promise = parse_source(command.source)
        target = parse_location(command.to)
        for end in (source, target):
            if isinstance(end, Inside):
                self._check_path(end.path)
        try:
            await self._move(source, promise, target, command.format, selection, report)
        except (CommandFailed, GuestBroken, SandboxFailed):
            raise
        except NotFound as error:
            raise CommandFailed(TRANSFER_FAILED, f"there is no such file: {error.message}") from None
        except ShemError as error:
            raise as_failure(error, TRANSFER_FAILED) from error
        except TimeoutError:
            raise CommandFailed(TRANSFER_FAILED, "the other end did not answer in time") from None

    async def _move(
        self,
        source: Location,
        promise: Promise | None,
        target: Location,
        form: str | None,
        selection: Selection,
        report: Report,
    ) -> None:
        if isinstance(target, Inside):
            if isinstance(source, Inside):
                await self._copy(source.path, promise, target.path, form, report)
            else:
                await self._bring(source, promise, target.path, form, selection, report)
        elif isinstance(source, Inside):
            if promise is not None:
                raise CommandFailed(UNSUPPORTED, "the hash of what leaves the container is not checked here")
            await self._send(source.path, target, form, selection, report)
        else:
            raise CommandFailed(UNSUPPORTED, "one end of a transfer must be in the container")

    async def _copy(self, source: str, promise: Promise | None, target: str, form: str | None, report: Report) -> None:
        if form is not None:
            raise CommandFailed(UNSUPPORTED, "an archive needs one end outside of the container")
        if PurePosixPath(source) == PurePosixPath(target):
            raise CommandFailed(TRANSFER_FAILED, "both ends of the transfer are the same file")
        content = _counted(self._guest.get_file(source), lambda moved: report(moved, None))
        failure: list[GuestFileError | CommandFailed] = []
        try:
            await self._put(target, _remembering(promise.kept(content) if promise else content, failure), 0o644)
        except CommandFailed:
            if failure and isinstance(failure[0], GuestFileError):
                raise file_failure(failure[0], source) from None
            raise

    # into the sandbox

    async def _bring(
        self,
        source: Remote,
        promise: Promise | None,
        path: str,
        form: str | None,
        selection: Selection,
        report: Report,
    ) -> None:
        async with self._open(source) as (size, chunks):
            if size is not None and size > self._max_bytes:
                raise CommandFailed(DISK_FULL, f"{size} bytes do not fit into the sandbox's disk")
            content = _bounded(_counted(chunks, lambda moved: report(moved, size)), self._max_bytes)
            if promise is not None:
                content = promise.kept(content)
            if form is None:
                await self._put(path, content, 0o644)
            elif form.startswith("zip"):
                with await spool(content, self._directory, self._max_bytes) as file:
                    await self._unpack(path, await ZipReader.open(file), selection)
            else:
                packed = form.removeprefix("tar").removeprefix(".")
                await self._unpack(path, TarReader(expand(content, packed) if packed else content), selection)

    @asynccontextmanager
    async def _open(self, source: Remote) -> AsyncIterator[tuple[int | None, AsyncIterator[bytes]]]:
        if isinstance(source, WebPlace):
            async with self._web.get(source.url) as answer:
                yield answer.size, answer.chunks()
        else:
            async with self._files.open(source.node_id, source.file_id) as download:
                yield download.size if download.size >= 0 else None, download.chunks()

    async def _put(self, path: str, content: AsyncIterator[bytes], mode: int) -> None:
        if path.endswith("/"):
            raise CommandFailed(PATH_NOT_FOUND, f"{path!r} names a directory; say which file, or use format tar")
        try:
            await self._guest.put_file(path, content, mode)
        except GuestFileError as error:
            await self._remove_half(path)
            raise file_failure(error, path) from error
        except (CommandFailed, PeerFailed, Refused, TimeoutError):
            await self._remove_half(path)
            raise

    async def _remove_half(self, path: str) -> None:
        """What is there now is neither the old content nor the new."""
        with suppress(GuestFileError):
            if (await self._guest.stat(path)).kind == "file":
                await self._guest.remove(path)

    async def _unpack(self, root: str, archive: _Archive, selection: Selection) -> None:
        left = self._max_bytes
        try:
            await self._guest.make_dir(root)
            for _ in range(MAX_MEMBERS):
                member = await archive.next()
                if member is None:
                    break
                left -= member.size
                if left < 0:
                    raise CommandFailed(DISK_FULL, "the archive's content does not fit into the sandbox's disk")
                if selection.takes(member.path, directory=member.kind == "dir"):
                    await self._make(root, member, archive)
            else:
                raise bad_archive(f"it has more than {MAX_MEMBERS} members")
            await archive.drain()
        except GuestFileError as error:
            raise file_failure(error, str(error.details.get("path", root))) from error

    async def _make(self, root: str, member: Member, archive: _Archive) -> None:
        path = _join(root, member.path)
        match member.kind:
            case "dir":
                await self._guest.make_dir(path, member.mode & 0o777 | 0o700)
            case "file":
                await self._guest.put_file(path, archive.content(), member.mode)
            case "link":
                await self._guest.symlink(member.link, path)
            case "hardlink":
                await self._guest.put_file(path, self._guest.get_file(_join(root, member.link)), member.mode)

    # out of the sandbox

    async def _send(self, path: str, target: Remote, form: str | None, selection: Selection, report: Report) -> None:
        failure: list[GuestFileError | CommandFailed] = []
        try:
            if form is None:
                size = await self._size(path)
                content: AsyncIterator[bytes] = self._guest.get_file(path)
            else:
                size, content = None, await self._pack(path, form, selection)
            counted = _counted(_remembering(content, failure), lambda moved: report(moved, size))
            await self._hand_over(target, counted, size)
        except GuestFileError as error:
            raise file_failure(error, path) from None
        except (ShemError, OSError):
            # a source that breaks off looks like a broken upload to the caller: the cause is what the requestor needs
            if not failure:
                raise
            first = failure[0]
            raise (first if isinstance(first, CommandFailed) else file_failure(first, path)) from None

    async def _hand_over(self, target: Remote, content: AsyncIterator[bytes], size: int | None) -> None:
        if isinstance(target, WebPlace):
            await self._web.put(target.url, content, size)
        else:
            await self._files.send(target.node_id, target.file_id, content)

    async def _size(self, path: str) -> int | None:
        """Of a plain file; what a link leads to is not known before it is read."""
        entry = await self._guest.stat(path)
        return entry.size if entry.kind == "file" else None

    async def _pack(self, root: str, form: str, selection: Selection) -> AsyncIterator[bytes]:
        """An archive of a directory, or of one file as its only member."""
        entry = await self._guest.stat(root)
        if entry.kind == "file":
            name = PurePosixPath(root).name
            places = {name: root}
            members = [Member(path=name, kind="file", size=entry.size, mode=entry.mode, mtime=entry.mtime)]
        else:
            places = {}
            found = (_member(one) for one in await self._guest.walk(root))
            members = [one for one in found if one and selection.takes(one.path, directory=one.kind == "dir")]

        def read(member: Member) -> AsyncIterator[bytes]:
            return self._exactly(places.get(member.path) or _join(root, member.path), member.size)

        if form.startswith("zip"):
            return pack_zip(members, read, store=form == "zip.0")
        packed = form.removeprefix("tar").removeprefix(".")
        made = pack_tar(members or [Member(path="", kind="dir", mode=0o755)], read)
        return compress(made, packed) if packed else made

    async def _exactly(self, path: str, size: int) -> AsyncIterator[bytes]:
        seen = 0
        async with aclosing(self._guest.get_file(path)) as pieces:
            async for piece in pieces:
                seen += len(piece)
                if seen > size:
                    break
                yield piece
        if seen != size:
            raise CommandFailed(TRANSFER_FAILED, f"{path} changed while it was read")


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


async def _bounded(content: AsyncIterator[bytes], max_bytes: int) -> AsyncIterator[bytes]:
    left = max_bytes
    async for piece in content:
        left -= len(piece)
        if left < 0:
            raise CommandFailed(DISK_FULL, "the content does not fit into the sandbox's disk")
        yield piece


async def _remembering(
    content: AsyncIterator[bytes], failure: list[GuestFileError | CommandFailed]
) -> AsyncIterator[bytes]:
    try:
        async for piece in content:
            yield piece
    except (GuestFileError, CommandFailed) as error:
        failure.append(error)
        raise

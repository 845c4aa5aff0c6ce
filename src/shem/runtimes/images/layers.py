"""The unpacked layers on disk, each made once.

A layer is made in ``tmp`` and renamed into ``layers`` when it is whole and verified. Two that want the same layer at the
same time wait for one another, whichever image they want it for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shem.cogs.ociformat import Descriptor
from shem.cogs.tasks import TaskScope
from shem.errors import ShemError
from shem.runtimes.images.download import download
from shem.runtimes.images.errors import ImageStoreFailed
from shem.runtimes.images.jobs import (
    SETTLED,
    TREE,
    LayerRecord,
    PatchJob,
    RemoveJob,
    SettleJob,
    SquashfsJob,
    UnpackJob,
    is_safe,
    read_record,
)
from shem.runtimes.images.sources import Source
from shem.runtimes.images.unpacker import Unpacker

_DOWNLOADS = 3
_SPACE_OF_A_FILE = 2 << 10  # an inode, a name, and half a block that stays empty

Tell = Callable[[str, int], None]
"""Hears what is being done, and how many bytes of the image are now here that weren't."""


class StoredLayer(msgspec.Struct, frozen=True):
    """A directory of ``layers``, and about how many bytes it takes."""

    name: str
    size: int


class LayerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one layer may be."""

    max_bytes: int
    max_files: int
    backoff_s: float
    settle_s: float


class Layers:
    """The directories ``layers`` and ``tmp`` below ``root``. Deletes in the background, in ``scope``."""

    def __init__(self, root: Path, scope: TaskScope, limits: LayerLimits, workers: int) -> None:
        self._layers, self._tmp = root / "layers", root / "tmp"
        self._scope = scope
        self._limits = limits
        self._unpacker = Unpacker(workers)
        self._downloads = asyncio.Semaphore(_DOWNLOADS)
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._unsettled: set[Path] = set()
        self._settling: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Make the directories, and delete what a crash or a power failure left."""
        for directory in (self._layers, self._tmp):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for entry in list(self._tmp.iterdir()):
            self._discard(entry)
        for entry in list(self._layers.iterdir()):
            if not is_safe(entry):
                self._drop(entry)
            elif not (entry / SETTLED).exists():
                self._settle_later(entry)

    async def close(self) -> None:
        """Let go of the worker processes; ``scope`` must be closed before."""
        await self._unpacker.close()

    def tree(self, layer: StoredLayer) -> Path:
        """The directory for overlayfs."""
        return self._layers / layer.name / TREE

    def has(self, layer: StoredLayer) -> bool:
        """Whether it is there, and so whole."""
        return (self._layers / layer.name).is_dir()

    def keep_only(self, kept: Container[str]) -> None:
        """Delete all others: gone from ``layers`` when this returns, from the disk a little later."""
        for entry in list(self._layers.iterdir()):
            if entry.name not in kept:
                self._drop(entry)

    def temporary(self) -> Path:
        """A new name in ``tmp``."""
        return self._tmp / uuid.uuid4().hex

    async def have(
        self, source: Source, wanted: Sequence[tuple[Descriptor, str]], tell: Tell
    ) -> tuple[list[StoredLayer], list[LayerRecord]]:
        """All of ``wanted`` (blob, diff_id), made where they are missing, several at a time. Raises image errors."""
        distinct = {diff_id: blob for blob, diff_id in wanted}
        tasks: dict[str, asyncio.Task[LayerRecord]] = {}
        try:
            async with self._unpacker.in_use(), asyncio.TaskGroup() as group:
                for number, (diff_id, blob) in enumerate(distinct.items(), 1):
                    label = f"layer {number} of {len(distinct)}"
                    tasks[diff_id] = group.create_task(self._layer(source, blob, diff_id, label, tell))
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        records = [tasks[diff_id].result() for _, diff_id in wanted]
        return [_stored(record) for record in records], records

    async def have_squashfs(self, image: Path, name: str) -> StoredLayer:
        """The layer ``name``, made of the squashfs at the start of ``image`` if it is missing. Raises image errors."""
        async with self._locked(name), self._unpacker.in_use():
            if not self.has(StoredLayer(layer_name(name), 0)):
                async with self._made(name) as directory:
                    job = SquashfsJob(
                        image=str(image),
                        directory=str(directory),
                        name=name,
                        max_bytes=self._limits.max_bytes,
                        max_files=self._limits.max_files,
                    )
                    await self._unpacker.run(job)
            return _stored(await self._record(name))

    async def patched(
        self, layers: list[StoredLayer], records: list[LayerRecord], wanted: set[str]
    ) -> list[StoredLayer]:
        """``layers`` with a patch above each that needs one, see :mod:`.patch`; their names are added to ``wanted``."""
        stacked: list[StoredLayer] = []
        chain = hashlib.sha256()
        for layer, record in zip(layers, records, strict=True):
            chain.update(record.name.encode())
            below = list(stacked)
            stacked.append(layer)
            if below and (record.report.implicit or record.report.dangling):
                identity = f"patch:{chain.hexdigest()}"
                wanted.add(layer_name(identity))
                patch = await self._patch(below, layer, identity)
                if patch.report.files:
                    stacked.append(_stored(patch))
        return stacked

    async def _layer(self, source: Source, blob: Descriptor, diff_id: str, label: str, tell: Tell) -> LayerRecord:
        async with self._locked(diff_id):
            if self.has(StoredLayer(layer_name(diff_id), 0)):
                tell(f"have {label}", blob.size)
            else:
                async with self._made(diff_id) as directory:
                    await self._unpack(source, blob, diff_id, directory, label, tell)
            return await self._record(diff_id)

    async def _unpack(
        self, source: Source, blob: Descriptor, diff_id: str, directory: Path, label: str, tell: Tell
    ) -> None:
        at = source.local(blob)
        file = directory / "blob"
        if at is None:
            async with self._downloads:
                await download(
                    source,
                    blob,
                    file,
                    arrived=lambda count: tell(f"downloading {label}", count),
                    backoff_s=self._limits.backoff_s,
                )
        tell(f"unpacking {label}", 0)
        job = UnpackJob(
            blob=str(file if at is None else at.path),
            offset=0 if at is None else at.offset,
            size=blob.size,
            digest="" if at is None else blob.digest,
            diff_id=diff_id,
            directory=str(directory),
            max_bytes=self._limits.max_bytes,
            max_files=self._limits.max_files,
        )
        await self._unpacker.run(job)
        if at is not None:
            tell(f"unpacked {label}", blob.size)
        file.unlink(missing_ok=True)

    async def _patch(self, below: list[StoredLayer], layer: StoredLayer, identity: str) -> LayerRecord:
        async with self._locked(identity):
            if not self.has(StoredLayer(layer_name(identity), 0)):
                async with self._made(identity) as directory:
                    job = PatchJob(
                        lower=[str(self._layers / each.name) for each in below],
                        layer=str(self._layers / layer.name),
                        directory=str(directory),
                        name=identity,
                        max_bytes=self._limits.max_bytes,
                    )
                    await self._unpacker.run(job)
            return await self._record(identity)

    @contextlib.asynccontextmanager
    async def _made(self, identity: str) -> AsyncIterator[Path]:
        """A new directory, which becomes the layer when all goes well and disappears when not."""
        directory = self.temporary()
        directory.mkdir(mode=0o700)
        try:
            yield directory
            final = self._layers / layer_name(identity)
            directory.rename(final)
            self._settle_later(final)
        except BaseException:
            self._discard(directory)
            raise

    async def _record(self, identity: str) -> LayerRecord:
        try:
            record = await asyncio.to_thread(read_record, self._layers / layer_name(identity))
        except (OSError, msgspec.MsgspecError) as error:
            raise ImageStoreFailed(f"a layer of the image store is damaged: {error}") from None
        if record.name != identity:
            raise ImageStoreFailed(f"the layers {record.name} and {identity} cannot both be in the image store")
        return record

    @contextlib.asynccontextmanager
    async def _locked(self, identity: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(identity, (asyncio.Lock(), 0))
        self._locks[identity] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            users = self._locks[identity][1] - 1
            if users:
                self._locks[identity] = (lock, users)
            else:
                del self._locks[identity]

    def _drop(self, layer: Path) -> None:
        waste = self.temporary()
        layer.rename(waste)
        self._discard(waste)

    def _settle_later(self, layer: Path) -> None:
        self._unsettled.add(layer)
        if self._settling is None or self._settling.done():
            self._settling = self._background(self._settle(), "settle")

    async def _settle(self) -> None:
        while self._unsettled:
            await asyncio.sleep(self._limits.settle_s)  # by then, much is on the disk by itself
            some, self._unsettled = self._unsettled, set()
            await self._unpacker.run(SettleJob(directories=sorted(map(str, some))))

    def _discard(self, waste: Path) -> None:
        """Delete something in ``tmp``, in the background; if that fails, the next start tries again."""
        if waste.is_file():
            waste.unlink()
        elif waste.exists():
            self._background(self._remove(waste), f"delete {waste.name}")

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """What isn't begun any more because we are stopping is done after the next start."""
        try:
            return self._scope.start(work, name)
        except RuntimeError:
            return None

    async def _remove(self, waste: Path) -> None:
        await self._unpacker.run(RemoveJob(directory=str(waste)))


def layer_name(identity: str) -> str:
    """Short, because the paths of all layers must fit into one mount option."""
    return identity.rpartition(":")[2][:32]


def _stored(record: LayerRecord) -> StoredLayer:
    report = record.report
    return StoredLayer(layer_name(record.name), report.bytes + _SPACE_OF_A_FILE * report.files)


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """One of our own errors if there is one, rather than a bug's or a cancellation's consequence."""
    leaves: list[BaseException] = []
    groups: list[BaseException] = [failures]
    while groups:
        each = groups.pop()
        if isinstance(each, BaseExceptionGroup):
            groups.extend(each.exceptions)
        else:
            leaves.append(each)
    return next((leaf for leaf in leaves if isinstance(leaf, ShemError)), leaves[0])

"""An image of a registry as files of this machine: for those who want to look at it or change it, rather than run it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from shem.cogs.ociarchive import BlobAt, ImageArchive
from shem.cogs.ociformat import MAX_CONFIG, Descriptor, ImageUnusable, Manifest, check_platform, parse_manifest
from shem.runtimes.images.download import download, small_blob
from shem.runtimes.images.registry import Registries, RegistryConfig
from shem.runtimes.images.sources import RegistrySource
from shem.terms.images import RegistryImage

_AT_ONCE = 3


async def fetch_image(
    image: RegistryImage, directory: Path, config: RegistryConfig, *, progress: Callable[[int, int], None]
) -> ImageArchive:
    """Bring all blobs of ``image`` into ``directory``, verified. ``progress`` hears of bytes here, and bytes in all.

    ``config.architecture`` must be set. Raises the errors of :mod:`.errors`, possibly in a group.
    """
    async with Registries(config) as registries:
        source = RegistrySource(registries, image)
        resolved = await source.resolve()
        manifest = parse_manifest(resolved.raw)
        if not isinstance(manifest, Manifest):
            raise ImageUnusable("the image's manifest is an index")
        raw = await small_blob(source, manifest.config, MAX_CONFIG)
        check_platform(raw, config.architecture)
        blobs = {
            resolved.digest: BlobAt(digest=resolved.digest, size=len(resolved.raw), data=resolved.raw),
            manifest.config.digest: BlobAt(digest=manifest.config.digest, size=len(raw), data=raw),
        }
        wanted = {layer.digest: layer for layer in manifest.layers}
        total, done = sum(layer.size for layer in wanted.values()), 0
        places = asyncio.Semaphore(_AT_ONCE)

        def arrived(count: int) -> None:
            nonlocal done
            done += count
            progress(done, total)

        async def bring(layer: Descriptor) -> None:
            path = directory / layer.digest.removeprefix("sha256:")
            async with places:
                await download(source, layer, path, arrived=arrived, backoff_s=config.backoff_s)
            blobs[layer.digest] = BlobAt(digest=layer.digest, size=layer.size, path=path)

        async with asyncio.TaskGroup() as group:
            for layer in wanted.values():
                group.create_task(bring(layer))
        return ImageArchive(digest=resolved.digest, manifest=manifest, blobs=blobs)

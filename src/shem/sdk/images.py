"""From what a user calls an image to what a demand carries.

A path to an OCI layout directory, an OCI archive or a ``docker save`` tar is published blob by blob on our node, so that a
provider fetches only the layers it lacks. Anything else is a reference for a registry, which the provider asks itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from shem.cogs.ociarchive import BlobAt, read_image
from shem.sdk.transfer import Courier
from shem.terms.images import BundleImage, parse_reference
from shem.wire.base import encode
from shem.wire.files import StoredFile


@dataclass(frozen=True)
class PublishedImage:
    """``package`` goes into the demand; ``label`` is for people."""

    package: str
    label: str


async def publish_image(image: str | Path, courier: Courier) -> PublishedImage:
    """Make ``image`` available to providers. Raises ``Refused`` (``image_bad``, ``bad_image``) with what is wrong."""
    path = Path(image)
    if not (isinstance(image, Path) or path.exists()):
        reference = parse_reference(str(image))
        return PublishedImage(reference.package, reference.short)
    archive = await asyncio.to_thread(read_image, path)
    async with asyncio.TaskGroup() as group:
        stored = {
            digest: group.create_task(courier.publish_stream(digest, _stream(blob)))
            for digest, blob in archive.blobs.items()
        }
    blobs = {digest: _entry(task.result()) for digest, task in stored.items()}
    blob_map = encode({"blobs": blobs})

    async def whole() -> AsyncIterator[bytes]:
        yield blob_map

    listing = await courier.publish_stream(f"map:{archive.digest}", whole())
    return PublishedImage(BundleImage(digest=archive.digest, url=listing.url).package, path.name)


def _entry(file: StoredFile) -> dict[str, object]:
    return {"url": file.url, "size": file.size}


async def _stream(blob: BlobAt) -> AsyncIterator[bytes]:
    pieces = blob.chunks()
    while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
        yield piece

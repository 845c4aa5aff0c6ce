"""The documents that describe a container image: manifests, indexes, what they may say, and how large they may be.

A *manifest* names a configuration and layers by digest; an *index* names one manifest for each platform. Both come from
strangers (a registry, a requestor): everything read here is bounded, strictly typed, and trusts only sha256 digests.
"""

from __future__ import annotations

import hashlib
import platform
import re

import msgspec

from shem.cogs.decoding import DECODE_ERRORS
from shem.errors import Refused

MAX_MANIFEST = 4 << 20
MAX_CONFIG = 8 << 20
MAX_LAYERS = 127

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEXES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)
MANIFESTS = frozenset({MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


class ImageUnusable(Refused):
    """A file or directory is not an image we can read."""

    default_code = "image_bad"


class Platform(msgspec.Struct, frozen=True, rename="camel"):
    """What an image runs on."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob, named by its content. Checked where it is read: see :func:`parse_manifest`."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] = {}


class Manifest(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An image manifest: a configuration and layers, bottom first. ``schema_version`` is always 2."""

    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    media_type: str = ""


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """Several manifests, one for each platform."""

    manifests: tuple[Descriptor, ...]


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: msgspec.Raw = msgspec.Raw()
    config: msgspec.Raw = msgspec.Raw()


def host_architecture() -> str:
    """This machine, in the words of images: ``amd64``, ``arm64``, …"""
    machine = platform.machine().lower()
    return _ARCHITECTURES.get(machine, machine)


def parse_manifest(raw: bytes) -> Manifest | Index:
    """Read and bound a manifest or an index. Raises :class:`ImageUnusable`."""
    if len(raw) > MAX_MANIFEST:
        raise ImageUnusable(f"the image's manifest is larger than {MAX_MANIFEST >> 20} MiB")
    try:
        kind = msgspec.json.decode(raw, type=_Kind)
        if kind.schema_version != 2:
            raise ImageUnusable("the image's manifest is of a kind that is no longer used (schema 1)")
        if kind.media_type in INDEXES or (bytes(kind.manifests)[:1] == b"[" and not bytes(kind.config)):
            index = msgspec.json.decode(raw, type=Index)
            for entry in index.manifests:
                _check(entry, MAX_MANIFEST)
            return index
        manifest = msgspec.json.decode(raw, type=Manifest)
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"the image's manifest cannot be read: {error}") from None
    if len(manifest.layers) > MAX_LAYERS:
        raise ImageUnusable(f"the image has more than {MAX_LAYERS} layers")
    _check(manifest.config, MAX_CONFIG)
    for layer in manifest.layers:
        _check(layer, 1 << 50)
        if "tar" not in layer.media_type and layer.media_type:
            raise ImageUnusable(
                f"a layer is of kind {layer.media_type[:80]!r}, which is not a file tree",
                hint="is it a container image?",
            )
    return manifest


def choose(index: Index, architecture: str) -> Descriptor:
    """The manifest of an index that runs here. Raises :class:`ImageUnusable` (``image_wrong_platform``)."""
    seen = []
    for entry in index.manifests:
        if entry.platform is None:
            if len(index.manifests) == 1:
                return entry
        elif entry.platform.os == "linux" and entry.platform.architecture == architecture:
            return entry
        else:
            seen.append(f"{entry.platform.os[:20]}/{entry.platform.architecture[:20]}")
    found = ", ".join([s for s in dict.fromkeys(seen) if s != "unknown/unknown"][:10]) or "none that says"
    raise ImageUnusable(
        f"the image is not made for linux/{architecture} (it has: {found})",
        code="image_wrong_platform",
        hint=f"build it with --platform linux/{architecture}",
    )


def check_platform(config: bytes, architecture: str) -> None:
    """Refuse a configuration that says it is for another machine. Raises :class:`ImageUnusable`."""
    try:
        said = msgspec.json.decode(config, type=Platform)
    except DECODE_ERRORS as error:
        raise ImageUnusable(f"the image's configuration cannot be read: {error}") from None
    if (said.os and said.os != "linux") or (said.architecture and said.architecture != architecture):
        raise ImageUnusable(
            f"the image is made for {said.os[:20]}/{said.architecture[:20]}, not linux/{architecture}",
            code="image_wrong_platform",
            hint=f"build it with --platform linux/{architecture}",
        )


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest's canonical bytes: keys sorted, no spaces."""
    return msgspec.json.encode({"schemaVersion": 2, **msgspec.to_builtins(manifest)}, order="sorted")


def _check(entry: Descriptor, limit: int) -> None:
    if not DIGEST.fullmatch(entry.digest):
        raise ImageUnusable(f"the image names a blob {entry.digest[:80]!r}: only sha256 digests are accepted")
    if not 0 <= entry.size <= limit:
        raise ImageUnusable(f"the image says that {entry.digest} has {entry.size} bytes")


def sha256_digest(data: bytes) -> str:
    """``sha256:<hex>`` of ``data``."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"

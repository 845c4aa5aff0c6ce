"""What can go wrong between the name of an image and its directories. Codes are stable; see each class."""

from __future__ import annotations

from shem.cogs.ociformat import ImageUnusable
from shem.errors import NotAllowed, NotFound, Refused, WorkFailed

__all__ = [
    "ImageDigestMismatch",
    "ImageNotFound",
    "ImageStoreFailed",
    "ImageTooLarge",
    "ImageUnsupported",
    "ImageUnusable",
    "RegistryDenied",
    "RegistryNotAllowed",
    "RegistryUnreachable",
]


class ImageNotFound(NotFound):
    """The registry has no such image, tag or blob."""

    default_code = "image_not_found"


class ImageTooLarge(Refused):
    """The image breaks one of the provider's limits: bytes, files."""

    default_code = "image_too_large"


class ImageUnsupported(Refused):
    """This provider has no means for images of that kind."""

    default_code = "image_unsupported"


class ImageDigestMismatch(WorkFailed):
    """Bytes that arrived are not the bytes that were named."""

    default_code = "image_digest_mismatch"


class RegistryUnreachable(WorkFailed):
    """No usable answer from the registry, after several tries."""

    default_code = "registry_unreachable"


class RegistryDenied(NotAllowed):
    """The registry wants credentials that we don't have."""

    default_code = "registry_denied"


class RegistryNotAllowed(Refused):
    """This provider doesn't speak to that address: plain http, a private network, or no default registry."""

    default_code = "registry_not_allowed"


class ImageStoreFailed(WorkFailed):
    """The provider's own disk or kernel failed: full, or without the features that are needed."""

    default_code = "image_store_failed"

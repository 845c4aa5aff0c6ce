"""Names of images: what users write, and what demands carry.

A user writes a reference in docker's form (``python:3.12``, ``registry.example/x/y@sha256:…``). A demand carries a *package*
string in ``golem.srv.comp.task_package``, in one of three forms::

    oci:docker://HOST/REPO[:TAG][@sha256:HEX]     an image in a registry; an empty HOST (three slashes) means
                                                  "the provider's default registry"
    oci:sha256:HEX:gftp://NODE/FILE               a bundle: FILE is a JSON *blob map* naming, for each blob of the
                                                  image whose manifest hashes to HEX, a file and its size
    hash:sha3:HEX:URL                             one file in the Golem image format (GVMI)

Everything here is text work: no file, no network. Paths of local archives are not names; who accepts both looks for
the path first.
"""

from __future__ import annotations

import re

import msgspec

from shem.errors import Refused

MAX_PACKAGE = 2048
"""Longest package string, in characters."""

_HEX64 = r"[0-9a-f]{64}"
_DIGEST = re.compile(rf"sha256:{_HEX64}")
# One label or number of a host; brackets only around an IPv6 address.
_HOST = re.compile(
    r"(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}))*)(?::[0-9]{1,5})?"
)
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_GFTP = re.compile(r"gftp://0x[0-9a-fA-F]{40}/[A-Za-z0-9_-]{1,128}")
_URL = re.compile(r"(?:https?|gftp|ftp)://[\x21-\x7e]+")
_SHA3 = re.compile(r"[0-9a-f]{56}|[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}")


class BadImage(Refused):
    """A text is not the name of an image."""

    default_code = "bad_image"


class RegistryImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image in a registry."""

    host: str = ""
    """``name[:port]``; ``""``: whichever registry the provider has as its default."""
    repository: str
    tag: str = ""
    digest: str = ""
    """``sha256:<hex>`` of the manifest (or index), or ``""``. When both are given the digest decides."""

    @property
    def reference(self) -> str:
        """What the registry is asked for: the digest, or the tag."""
        return self.digest or self.tag

    @property
    def short(self) -> str:
        """For people: without the host when there is none."""
        text = f"{self.host}/{self.repository}" if self.host else self.repository.removeprefix("library/")
        return text + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def package(self) -> str:
        """The string for ``golem.srv.comp.task_package``."""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"oci:docker://{self.host}/{self.repository}{tag}{digest}"


class BundleImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose blobs a node holds."""

    digest: str
    """``sha256:<hex>`` of the manifest."""
    url: str
    """``gftp://<node id>/<file id>`` of the blob map."""

    @property
    def package(self) -> str:
        """The string for ``golem.srv.comp.task_package``."""
        return f"oci:{self.digest}:{self.url}"


class GvmiImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image file of the original network's VM runtime."""

    sha3: str
    """Hex SHA3 of the whole file (56 digits in practice)."""
    url: str

    @property
    def digest(self) -> str:
        """``sha3:<hex>``."""
        return f"sha3:{self.sha3}"

    @property
    def package(self) -> str:
        """The string for ``golem.srv.comp.task_package``."""
        return f"hash:sha3:{self.sha3}:{self.url}"


Package = RegistryImage | BundleImage | GvmiImage


def parse_reference(text: str) -> RegistryImage:
    """Read what a user wrote. Docker's rules: the part before the first ``/`` is a host when it has a ``.``, a ``:``
    or is ``localhost``; a short name of one part lives under ``library/``; no tag and no digest means ``latest``.

    Raises :class:`BadImage`.
    """
    text = text.strip()
    _bound(text)
    first, slash, rest = text.partition("/")
    if slash and (first == "localhost" or any(c in first for c in ".:[") or first != first.lower()):
        host, remote = first, rest
    else:
        host, remote = "", text
    if host in (".", ".."):
        raise BadImage(f"{text[:80]!r} looks like a path, and there is nothing there", hint="check the path")
    image = _named(host, remote, text)
    return image if image.tag or image.digest else msgspec.structs.replace(image, tag="latest")


def parse_package(text: str) -> Package:
    """Read a ``golem.srv.comp.task_package``. Raises :class:`BadImage`."""
    _bound(text)
    if text.startswith("oci:docker://"):
        host, slash, remote = text.removeprefix("oci:docker://").partition("/")
        if not slash:
            raise BadImage(f"{text[:80]!r} names no repository", hint="the form is oci:docker://HOST/REPOSITORY:TAG")
        image = _named(host, remote, text)
        if not image.tag and not image.digest:
            raise BadImage(f"{text[:80]!r} has neither a tag nor a digest")
        return image
    if text.startswith("oci:sha256:"):
        digest, url = text[4 : 11 + 64], text[11 + 64 :]
        if not _DIGEST.fullmatch(digest) or not url.startswith(":") or not _GFTP.fullmatch(url[1:]):
            raise BadImage(
                f"{text[:80]!r} is not a bundle", hint="the form is oci:sha256:<64 hex>:gftp://<node>/<file>"
            )
        return BundleImage(digest=digest, url=url[1:])
    if text.startswith("hash:sha3:"):
        sha3, colon, url = text.removeprefix("hash:sha3:").partition(":")
        if not colon or not _SHA3.fullmatch(sha3) or not _URL.fullmatch(url):
            raise BadImage(f"{text[:80]!r} is not an image file", hint="the form is hash:sha3:<hex>:<url>")
        return GvmiImage(sha3=sha3, url=url)
    raise BadImage(
        f"{text[:80]!r} is none of the package forms known here", hint="known are oci:docker://…, oci:sha256:…, hash:…"
    )


def is_digest(text: str) -> bool:
    """Whether ``text`` is ``sha256:`` and 64 lower-case hex digits: the only digest this house trusts."""
    return _DIGEST.fullmatch(text) is not None


def _bound(text: str) -> None:
    if not text:
        raise BadImage("the name of the image is empty")
    if len(text) > MAX_PACKAGE:
        raise BadImage(f"the name of the image is longer than {MAX_PACKAGE} characters")


def _named(host: str, remote: str, whole: str) -> RegistryImage:
    shown = whole[:80]
    name, at, digest = remote.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise BadImage(f"{shown!r}: the digest is not sha256: and 64 hex digits", hint="only sha256 is accepted")
    repository, colon, tag = name.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise BadImage(f"{shown!r}: {tag[:40]!r} is not a tag")
    if host and not _valid_host(host):
        raise BadImage(f"{shown!r}: {host[:60]!r} is not the address of a registry")
    if not host and "/" not in repository:
        repository = f"library/{repository}"
    if len(repository) > 255 or not all(_COMPONENT.fullmatch(part) for part in repository.split("/")):
        raise BadImage(
            f"{shown!r} is not the name of an image",
            hint="names are lower-case letters and digits, as in python:3.12 or registry.example/owner/name:tag",
        )
    return RegistryImage(host=host, repository=repository, tag=tag, digest=digest)


def _valid_host(host: str) -> bool:
    if len(host) > 255 or not _HOST.fullmatch(host):
        return False
    port = host.rpartition("]")[2].partition(":")[2]
    return not port or 0 < int(port) < 65536

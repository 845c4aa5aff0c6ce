"""Files that only their owner may read: private (0600), whole or not there at all, on the disk when a call returns.

A draft is written beside the final name, synced, and then given its name: by a hard link where a file must never be
overwritten, by a rename where the new one takes the old one's place. Readers see the one or the other.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shem.errors import Misconfigured

MAX_KEYSTORE_BYTES = 64 << 10


class KeystoreUnusable(Misconfigured):
    """The key file is damaged, of another kind, or open to others."""

    default_code = "keystore_unusable"


def read_private(path: Path) -> bytes:
    """Its content. Raises :class:`KeystoreUnusable` for one that others may read, or that is far too big; ``OSError``."""
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if os.name == "posix" and mode & 0o077:
            raise KeystoreUnusable(f"others may read {path}", code="keystore_exposed", hint=f"chmod 600 {path}")
        content = file.read(MAX_KEYSTORE_BYTES + 1)
    if len(content) > MAX_KEYSTORE_BYTES:
        raise KeystoreUnusable(f"{path} is far too big for a key file")
    return content


def read_foreign(path: Path) -> bytes:
    """A key file from elsewhere, whoever may read it. Raises :class:`KeystoreUnusable`."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_KEYSTORE_BYTES + 1)
    except OSError as error:
        raise KeystoreUnusable(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_KEYSTORE_BYTES:
        raise KeystoreUnusable(f"{path} is far too big for a key file")
    return content


def write_new(path: Path, content: bytes) -> bool:
    """Whole or not at all; when somebody else was first, theirs stays and this says False."""
    with _draft(path, content) as draft:
        try:
            os.link(draft, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            draft.rename(path)  # a file system without hard links
    _sync_directory(path.parent)
    return True


def replace_private(path: Path, content: bytes) -> None:
    """In place of what stood there."""
    with _draft(path, content) as draft:
        draft.replace(path)
    _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Gone for good when this returns; nothing when it is not there."""
    if path.exists():
        path.unlink()
        _sync_directory(path.parent)


@contextmanager
def _draft(path: Path, content: bytes) -> Iterator[Path]:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Unpack a tar archive that a stranger made, so that nothing of it lands outside its directory.

The standard library's own filters for this are not in every Python that we run on (3.11 before .4). Only files, directories
and links that stay inside are made; everything else is refused, before it does anything.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from shem.errors import PeerFailed

MAX_MEMBERS = 1_000_000


class BadArchive(PeerFailed):
    """The archive is damaged, or reaches out of its directory."""

    default_code = "bad_archive"


def unpack(archive: Path, target: Path) -> None:
    """Unpack into ``target`` (made when missing). Blocking. Raises :class:`BadArchive`; what came before stays."""
    target.mkdir(parents=True, exist_ok=True)
    root = target.resolve()
    directories: list[tuple[Path, int]] = []
    try:
        with tarfile.open(archive) as content:
            for count, member in enumerate(content):
                if count >= MAX_MEMBERS:
                    raise BadArchive(f"the directory that came back has more than {MAX_MEMBERS} entries")
                _place(content, member, root, directories)
    except (tarfile.TarError, EOFError) as error:
        raise BadArchive(f"the directory that came back is not sound: {error}") from error
    for path, mode in reversed(directories):
        path.chmod(mode)  # last, so that a directory nobody may write into can be filled


def _place(content: tarfile.TarFile, member: tarfile.TarInfo, root: Path, directories: list[tuple[Path, int]]) -> None:
    path = _inside(root, member.name)
    mode = member.mode & 0o777 | 0o600
    if member.isdir():
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(parents=True, exist_ok=True)
        directories.append((path, mode | 0o700))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        raise BadArchive(f"{member.name[:100]!r} comes as a directory and as something else")
    path.unlink(missing_ok=True)
    if member.isreg():
        source = content.extractfile(member)
        assert source is not None
        with source, path.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        path.chmod(mode)
    elif member.issym():
        _inside(root, str(PurePosixPath(member.name).parent / member.linkname), link=True)
        path.symlink_to(member.linkname)
    elif member.islnk():
        existing = _inside(root, member.linkname)
        if not existing.is_file() or existing.is_symlink():
            raise BadArchive(f"{member.name[:100]!r} links to what is not there")
        path.hardlink_to(existing)
    else:
        raise BadArchive(f"{member.name[:100]!r} is a device or a pipe")


def _inside(root: Path, name: str, *, link: bool = False) -> Path:
    """Where ``name`` lies below ``root``. Links on the way, made by earlier members, are followed and have to stay inside."""
    if name.startswith("/") or (not link and ".." in PurePosixPath(name).parts):
        raise BadArchive(f"{name[:100]!r} reaches out of its directory")
    path = root / name
    real = (path if link else path.parent).resolve()
    if real != root and root not in real.parents and path != root:
        raise BadArchive(f"{name[:100]!r} reaches out of its directory")
    return path

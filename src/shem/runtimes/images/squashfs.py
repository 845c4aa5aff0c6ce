"""Make a squashfs from a tar, with the ``tar2sqfs`` of squashfs-tools-ng.

The tar is ours; what others made is read elsewhere, in a cage: see :mod:`.cage`. Nothing of the result depends on when
or where it is made, so the same tar gives the same bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, cast

from shem.errors import Misconfigured
from shem.runtimes.images.errors import ImageStoreFailed

Compressor = Literal["gzip", "zstd", "xz", "lzo", "lz4"]
"""Those that Linux reads too."""

_SEARCHED = f"{os.environ.get('PATH', os.defpath)}:/usr/local/bin:/usr/bin:/usr/sbin:/sbin"
# zlib's best level is eight times slower than its usual one, and gains two per cent.
_EXTRA = {"gzip": ["--comp-extra", "level=6"], "zstd": ["--comp-extra", "level=9"]}


class ToolMissing(Misconfigured):
    """A program that is needed for squashfs is not installed."""

    default_code = "squashfs_tools_missing"


def find_tool(name: str) -> Path:
    """Where ``tar2sqfs`` or ``sqfs2tar`` is. Raises :class:`ToolMissing`."""
    found = shutil.which(name, path=_SEARCHED)
    if found is None:
        raise ToolMissing(f"there is no {name} on this machine", hint="apt-get install squashfs-tools-ng")
    return Path(found)


def make_squashfs(out: Path, write_tar: Callable[[BinaryIO], None], *, compressor: Compressor = "gzip") -> None:
    """A squashfs at ``out`` (which must not exist), padded to 4096 bytes, of the tar that ``write_tar`` writes.

    Raises :class:`ToolMissing`, :class:`ImageStoreFailed` with what the tool complained about, and what ``write_tar`` raises.
    """
    command = [
        str(find_tool("tar2sqfs")),
        "--quiet",
        "--no-skip",
        "--compressor",
        compressor,
        *_EXTRA.get(compressor, []),
    ]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*command, "--defaults", "uid=0,gid=0,mode=0755,mtime=0", str(out)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={"PATH": os.defpath, "SOURCE_DATE_EPOCH": "0"},
        )
        try:
            with cast(BinaryIO, process.stdin) as pipe:
                write_tar(pipe)
            status = process.wait()
        except BrokenPipeError:
            status = process.wait() or 1  # it says below why it stopped reading
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if status:
            said.seek(0)
            text = said.read(2000).decode(errors="replace").strip()
            raise ImageStoreFailed(f"tar2sqfs failed: {text or status}")

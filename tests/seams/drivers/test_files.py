"""Files and trees, in and out; links and races inside can reach nothing outside."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from shem.runtimes.base import GuestFileError


async def read(box, path: str) -> bytes:
    return b"".join([chunk async for chunk in box.guest.get_file(path)])


async def test_a_file_goes_in_and_out(box) -> None:
    data = os.urandom(3_000_001)

    async def chunks():
        for at in range(0, len(data), 700_000):
            yield data[at : at + 700_000]

    await box.guest.put_file("/work/new/dir/file", chunks(), 0o750)
    assert (await box.sh("stat -c %a:%s:%u /work/new/dir/file")).out == "750:3000001:0\n"
    assert await read(box, "/work/new/dir/file") == data
    await box.guest.put_file("/work/new/dir/file", b"short")
    assert await read(box, "/work/new/dir/file") == b"short"
    assert await read(box, "/etc/image") == b"from the image\n"


async def test_empty_files(box) -> None:
    await box.guest.put_file("/work/empty", b"")
    assert await read(box, "/work/empty") == b""


async def test_a_tree_is_walked_and_removed(box) -> None:
    await box.guest.make_dir("/work/tree/sub", 0o700)
    await box.guest.put_file("/work/tree/sub/file", b"12345", 0o600)
    await box.guest.put_file("/work/tree/ümläut", b"")
    await box.guest.symlink("../../etc", "/work/tree/link")
    await box.sh("mkfifo /work/tree/pipe")
    entries = {e.path: e for e in await box.guest.walk("/work/tree")}
    assert set(entries) == {"sub", "sub/file", "ümläut", "link", "pipe"}
    assert (entries["sub"].kind, entries["sub"].mode) == ("dir", 0o700)
    assert (entries["sub/file"].kind, entries["sub/file"].size, entries["sub/file"].mode) == ("file", 5, 0o600)
    assert (entries["link"].kind, entries["link"].link) == ("link", "../../etc")
    assert entries["pipe"].kind == "other"
    assert list(entries).index("sub") < list(entries).index("sub/file")
    await box.guest.remove("/work/tree")
    await box.guest.remove("/work/tree")
    with pytest.raises(GuestFileError) as caught:
        await box.guest.stat("/work/tree")
    assert caught.value.details["errno"] == errno.ENOENT
    assert (await box.run("ls", "/etc/image")).code == 0  # the link was removed, not what it led to


async def test_a_listing_is_bounded(box) -> None:
    await box.sh("for i in 1 2 3 4 5 6; do touch /work/$i; done")
    with pytest.raises(GuestFileError) as caught:
        await box.guest.walk("/work", limit=5)
    assert caught.value.details["errno"] == errno.EOVERFLOW


@pytest.mark.parametrize("path", ["/work", "/dev/zero", "/proc/1/environ", "/work/pipe", "/proc/self/mem", "/nothing"])
async def test_only_regular_files_are_read(box, path) -> None:
    await box.sh("mkfifo /work/pipe")
    with pytest.raises(GuestFileError):
        await read(box, path)


@pytest.mark.parametrize("path", ["/work/pipe", "/proc/sys/kernel/hostname", "/dev/null", "/etc"])
async def test_only_regular_files_are_written(box, path) -> None:
    await box.sh("mkfifo /work/pipe")
    with pytest.raises(GuestFileError):
        await box.guest.put_file(path, b"x")


@pytest.mark.parametrize(
    "target", ["{}", "/../../../../../../../..{}", "/proc/self/root{}", "/proc/1/root{}", "/proc/1/cwd{}"]
)
async def test_links_lead_nowhere_outside(box, tmp_path, target) -> None:
    canary = tmp_path / "canary"
    canary.write_text("host")
    await box.guest.symlink(target.format(canary), "/work/link")
    with pytest.raises(GuestFileError):
        await read(box, "/work/link")
    with pytest.raises(GuestFileError):
        await box.guest.put_file("/work/link", b"overwritten")
    assert canary.read_text() == "host"


async def test_a_race_between_a_file_and_a_link_leads_nowhere(background, box, tmp_path) -> None:
    """A program swaps a file with links to the host while we read and write it."""
    canary = tmp_path / "canary"
    canary.write_text("host")
    swap = f"""
import os
os.chdir('/work')
while True:
    open('f', 'w').write('inside')
    os.symlink('{canary}', 'g'); os.rename('g', 'f')
"""
    swapping = background.start(box.python(swap), "work")
    seen = set()
    for _ in range(150):
        try:
            seen.add(await read(box, "/work/f"))
            await box.guest.put_file("/work/f", b"written")
        except GuestFileError:
            seen.add(b"error")
    swapping.cancel()
    assert b"host" not in seen
    assert canary.read_text() == "host"


async def test_a_transfer_that_its_source_ends_raises_that_error(box) -> None:
    class SourceError(Exception):
        pass

    async def source():
        yield b"x" * 100_000
        raise SourceError

    with pytest.raises(SourceError):
        await box.guest.put_file("/work/half", source())
    assert (await box.sh("echo fine")).out == "fine\n"


async def test_leaving_a_download_early(box) -> None:
    await box.sh("head -c 50000000 /dev/zero > /work/big")
    download = box.guest.get_file("/work/big")
    assert len(await anext(download)) > 0
    await download.aclose()
    assert (await box.sh("echo fine")).out == "fine\n"


async def test_a_slow_reader_stops_only_its_own_transfer(box) -> None:
    await box.sh("head -c 50000000 /dev/zero > /work/big")
    whole = hashlib.sha256(bytes(50_000_000)).digest()
    seen = hashlib.sha256()
    first = True
    async for chunk in box.guest.get_file("/work/big"):
        seen.update(chunk)
        if first:  # the transfer stands still, and everything else goes on
            first = False
            for n in range(20):
                assert (await box.sh(f"echo {n}")).out == f"{n}\n"
    assert seen.digest() == whole


async def test_volumes_are_shared_with_the_host(make, tmp_path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "in").write_text("from outside")
    box = await make(volumes={"/data/deep": volume})
    assert (await box.sh("cat /data/deep/in; echo from inside > /data/deep/out; id -u")).out == "from outside0\n"
    assert (volume / "out").read_text() == "from inside\n"
    assert (volume / "out").stat().st_uid == os.geteuid()
    await box.sandbox.destroy()
    assert (volume / "in").read_text() == "from outside"

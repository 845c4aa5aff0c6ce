"""Golem image files: the outside of one, what the store makes of them, and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import sys
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shem.cogs.ociformat import ImageUnusable
from shem.errors import NotFound, ShemError
from shem.runtimes.images import cage
from shem.runtimes.images.config import parse_container_config
from shem.runtimes.images.errors import ImageTooLarge, ImageUnsupported
from shem.runtimes.images.gvmi import MAX_CONFIG, encode_trailer, gvmi_available, read_gvmi, sha3_of, write_gvmi
from shem.runtimes.images.layer import unpack_squashfs
from shem.runtimes.images.squashfs import ToolMissing, find_tool, make_squashfs
from shem.runtimes.images.store import ImageStore, StoreLimits
from shem.terms.images import GvmiImage
from shem.testing.small_image import make_small_gvmi

URL = "http://images.example/x.gvmi"
CONFIG = {"Env": ["A=b"], "User": "1000:1001", "WorkingDir": "/work", "Entrypoint": ["/e"], "Cmd": ["c"]}
TREE = ({"n": "etc/passwd", "d": b"root:x:0:0::/root:\nw:x:1000:1000::/home/w:\n"}, {"n": "hello", "d": b"hi"})


@pytest.fixture
def make(kit: Any, tmp_path: Path) -> Callable[..., Path]:
    """Makes image files of entries as for layers."""
    made = 0

    def one(*entries: dict[str, Any], config: dict[str, Any] | None = None, **options: Any) -> Path:
        nonlocal made
        made += 1
        path = tmp_path / f"{made}.gvmi"
        tar = kit.layer(*(entries or TREE))
        write_gvmi(
            path, lambda pipe: pipe.write(tar), json.dumps(CONFIG if config is None else config).encode(), **options
        )
        return path

    return one


class Served:
    """An image file, and who fetched it."""

    def __init__(self, *paths: Path, data: bytes = b"", piece: int = 1 << 16) -> None:
        self.data = data or paths[0].read_bytes()
        self.package = GvmiImage(sha3=hashlib.sha3_224(self.data).hexdigest(), url=URL)
        self.fetched: list[str] = []
        self.sent = 0
        self.piece = piece
        self.closed = 0
        self.gate: asyncio.Event | None = None

    async def fetch(self, url: str) -> AsyncIterator[bytes]:
        self.fetched.append(url)
        try:
            for start in range(0, len(self.data), self.piece):
                if self.gate is not None:
                    await self.gate.wait()
                self.sent += self.piece
                yield self.data[start : start + self.piece]
        finally:
            self.closed += 1


def nothing_left(root: Path) -> bool:
    """No layer, no image, nothing half-made; what is deleted in the background may be on its way."""
    return not os.listdir(root / "layers") and not os.listdir(root / "images")


# -- the outside -------------------------------------------------------------------------------------------------


def test_this_machine_can(tmp_path: Path) -> None:
    assert gvmi_available() is None
    with pytest.raises(ToolMissing) as raised:
        find_tool("sqfs2cpio")
    assert "squashfs-tools-ng" in raised.value.hint


def test_what_a_file_says(make: Callable[..., Path]) -> None:
    path = make(compressor="zstd")
    data = path.read_bytes()
    outside = read_gvmi(path)
    assert (outside.size, outside.compressor) == (len(data), "zstd")
    assert json.loads(outside.config) == CONFIG
    padded = len(data) - 12 - len(outside.config)
    assert padded % 4096 == 0
    assert 0 <= padded - outside.squashfs_bytes < 4096
    assert data[-8:] == b"%08d" % len(outside.config)
    assert int.from_bytes(data[padded : padded + 4], "little") == zlib.crc32(outside.config)


def test_the_same_input_gives_the_same_bytes(make: Callable[..., Path]) -> None:
    big = tuple({"n": f"d{n % 7}/{n}", "d": bytes([n % 251]) * (n * 977 % 200_000)} for n in range(60))
    assert sha3_of(make(*big)) == sha3_of(make(*big))


def with_config(squashfs: bytes, config: bytes) -> bytes:
    return squashfs + encode_trailer(config)


def test_damaged_outsides(make: Callable[..., Path], tmp_path: Path) -> None:
    whole = make().read_bytes()
    length = int(whole[-8:])
    body = whole[: -12 - length]
    config = whole[-8 - length : -8]
    crc = zlib.crc32(config).to_bytes(4, "little")
    hostile = {
        "empty": b"",
        "another file": b"\x7fELF" + bytes(5000),
        "superblock only": whole[:96],
        "cut in the squashfs": whole[:3000],
        "no trailer": body,
        "cut in the trailer": whole[:-1],
        "no digits": body + crc + config + b"0000036x",
        "signed": body + crc + config + b"+%07d" % length,
        "blanks": body + crc + config + b" %7d" % length,
        "other digits": body + crc + config + "٣".encode() * 4,
        "beyond the start": body + crc + config + b"99999999",
        "into the squashfs": body + crc + config + b"%08d" % (length + 4096 + len(body)),
        "longer": body + crc + config + b"%08d" % (length + 1),
        "shorter": body + crc + config + b"%08d" % (length - 1),
        "checksum": body + bytes(4) + config + whole[-8:],
        "bit": whole[: -9 - length // 2] + b"\x00" + whole[-8 - length // 2 :],
        "used more than there is": whole[:40] + (2**63).to_bytes(8, "little") + whole[48:],
    }
    for case, data in hostile.items():
        path = tmp_path / "hostile"
        path.write_bytes(data)
        with pytest.raises(ImageUnusable) as raised:
            read_gvmi(path)
        assert raised.value.code == "image_bad", case
    for at, value in ((28, 3), (20, 9), (20, 0)):
        path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
        with pytest.raises(ImageUnsupported):
            read_gvmi(path)
    assert len(with_config(body, b"x" * 10)) == len(body) + 22
    with pytest.raises(ImageUnusable, match="larger"):
        encode_trailer(bytes(MAX_CONFIG + 1))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_outside_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    base = bytearray(cage._EMPTY + encode_trailer(b'{"Env":["A=b"],"Volumes":{"/v":{}}}'))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(base) - 1))
        base[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "any"
    path.write_bytes(bytes(base[: data.draw(st.integers(0, len(base)))]) + data.draw(st.binary(max_size=12)))
    try:
        parse_container_config(read_gvmi(path).config)
    except (ImageUnusable, ImageUnsupported):
        pass


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", ""),
        ("1000:1001", "1000:1001"),
        ("0:0", "0:0"),
        ("1000", ""),
        ("worker", ""),
        ("worker:1000", ""),
        ("1000:", ""),
        (":5", ""),
        ("-1:5", ""),
        ("1:2:3", ""),
        ("99999999999:1", ""),
        ("١:٢", ""),
    ],
)
def test_users_are_numbers_or_root(user: str, expected: str) -> None:
    assert parse_container_config(json.dumps({"User": user}).encode()).user == expected


def test_configurations() -> None:
    none = parse_container_config(
        b'{"Env":null,"Cmd":null,"Entrypoint":null,"Volumes":null,"User":null,"WorkingDir":null}'
    )
    assert none == parse_container_config(b'{"Hostname":"x","Labels":{"a":"b"},"ExposedPorts":[1,{}]}')
    volumes = {"/golem/work": {}, "/a/../../b": {}}
    with pytest.raises(ImageUnusable, match="volume"):
        parse_container_config(json.dumps({"Volumes": volumes}).encode())
    fine = parse_container_config(json.dumps({"Volumes": {"/golem/work/": {}, "/": {}, "rel": {"x": 1}}}).encode())
    assert fine.volumes == ("/golem/work", "/rel")
    for bad in (
        *(b"", b"[]", b'"x"', b"{", b'{"Env":"A=b"}', b'{"Env":["A"]}', b'{"Env":["=b"]}', b'{"Cmd":["a\\u0000b"]}'),
        *(b'{"Volumes":["/a"]}', b'{"WorkingDir":"/a/../b"}', b'{"Cmd":[' + b'"x",' * 5000 + b'"x"]}', b"[" * 100_000),
        *(b'{"User":5}', b'{"Env":["A=\xff"]}'),
    ):
        with pytest.raises(ImageUnusable):
            parse_container_config(bad)


# -- the inside --------------------------------------------------------------------------------------------------


def unpack(path: Path, into: Path, **limits: int) -> Path:
    into.mkdir()
    unpack_squashfs(path, into=into, **{"max_bytes": 64 << 20, "max_files": 1000, **limits})
    return into


@pytest.mark.parametrize("compressor", ["gzip", "zstd", "xz", "lzo", "lz4"])
def test_every_compressor(make: Callable[..., Path], tmp_path: Path, compressor: Any) -> None:
    data = b"text " * 100_000 + os.urandom(50_000)
    path = make({"n": "d/data", "d": data}, compressor=compressor)
    assert read_gvmi(path).compressor == compressor
    assert (unpack(path, tmp_path / "out") / "d/data").read_bytes() == data


def test_what_an_image_may_bring(make: Callable[..., Path], tmp_path: Path) -> None:
    tree = unpack(
        make(
            {"n": "./", "t": tarfile.DIRTYPE, "m": 0o711},
            {"n": "suid", "d": b"x", "m": 0o4755},
            {"n": "tty", "t": tarfile.CHRTYPE},
            {"n": "disk", "t": tarfile.BLKTYPE},
            {"n": "pipe", "t": tarfile.FIFOTYPE},
            {"n": "link", "t": tarfile.SYMTYPE, "l": "/etc/passwd"},
            {"n": "hard", "t": tarfile.LNKTYPE, "l": "suid"},
            {"n": ".wh.suid", "d": b"a name like others"},
            {"n": "marked", "d": b"", "p": {"SCHILY.xattr.user.note": "n", "SCHILY.xattr.security.capability": "c"}},
        ),
        tmp_path / "out",
    )
    assert sorted(os.listdir(tree)) == [".wh.suid", "hard", "link", "marked", "pipe", "suid"]
    assert stat.S_IMODE(tree.stat().st_mode) & 0o077 == 0o011
    assert stat.S_IMODE((tree / "suid").stat().st_mode) == 0o755
    assert (tree / "suid").stat().st_ino == (tree / "hard").stat().st_ino
    assert (tree / "link").readlink() == Path("/etc/passwd")
    assert os.listxattr(tree / "marked") == ["user.note"]


def test_bombs(make: Callable[..., Path], tmp_path: Path) -> None:
    zeros = tmp_path / "zeros.gvmi"

    def sparse(pipe: Any) -> None:
        with tarfile.open(fileobj=pipe, mode="w|") as tar:
            entry = tarfile.TarInfo("zeros")
            entry.size = 1 << 30
            with Path("/dev/zero").open("rb") as file:
                tar.addfile(entry, file)

    write_gvmi(zeros, sparse, b"{}", compressor="lz4")
    assert zeros.stat().st_size < 100_000
    with pytest.raises(ImageTooLarge):
        unpack(zeros, tmp_path / "a")
    many = make(*({"n": f"f{n}"} for n in range(200)))
    with pytest.raises(ImageTooLarge):
        unpack(many, tmp_path / "b", max_files=100)
    wide = make(*({"n": f"f{n}", "p": {"SCHILY.xattr.user.x": "y" * 30_000}} for n in range(10)))
    with pytest.raises(ImageTooLarge):
        # long headers are counted too, not only contents
        unpack(wide, tmp_path / "c", max_bytes=1 - (64 << 20))


def test_names_that_lead_out(make: Callable[..., Path], tmp_path: Path) -> None:
    """No tool makes such a file: patched, in a table of names that does not compress and so stands in the file as it is."""
    noise = hashlib.sha512(b"noise").hexdigest().encode() + hashlib.sha3_512(b"noise").digest().hex().encode()
    name = "XX" + "".join(chr(0x20 + b % 90) for b in hashlib.shake_256(noise).digest(120)).replace("/", "-")
    plain = tmp_path / "plain.sqfs"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as out:
        out.addfile(tarfile.TarInfo(name))
    make_squashfs(plain, lambda pipe: pipe.write(tar.getvalue()), compressor="lz4")
    data = plain.read_bytes()
    assert data.count(name.encode()) == 1
    for wrong in (b"../" + name[3:].encode(), b"/" + name[1:].encode(), b"a\0" + name[2:].encode()):
        path = tmp_path / "wrong.gvmi"
        path.write_bytes(data.replace(name.encode(), wrong) + encode_trailer(b"{}"))
        base = tmp_path / hashlib.sha256(wrong).hexdigest()[:8]
        base.mkdir()
        try:
            unpack(path, base / "out")
        except ImageUnusable:
            pass
        assert os.listdir(base) == ["out"]
        assert all(name in {"a"} for name in os.listdir(base / "out"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_found_or_harmless(
    image: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Flipped bytes in the tables, or a cut: an error of ours or some tree, inside its directory."""
    base = tmp_path_factory.mktemp("damaged")
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(0, 5))):
        damaged[data.draw(st.one_of(st.integers(0, 95), st.integers(0, len(image) - 1)))] = data.draw(
            st.integers(0, 255)
        )
    path = base / "image"
    path.write_bytes(bytes(damaged[: data.draw(st.one_of(st.just(len(image)), st.integers(0, len(image))))]))
    try:
        unpack(path, base / "out", max_bytes=1 << 20)
    except (ImageUnusable, ImageTooLarge):
        pass
    assert sorted(os.listdir(base)) == ["image", "out"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x.gvmi"

    def tree(pipe: Any) -> None:
        with tarfile.open(fileobj=pipe, mode="w|") as tar:
            for n in range(20):
                entry = tarfile.TarInfo(f"d{n % 3}/f{n}")
                entry.size = n * 50
                tar.addfile(entry, io.BytesIO(hashlib.shake_128(b"%d" % n).digest(entry.size)))
            entry = tarfile.TarInfo("link")
            entry.type, entry.linkname = tarfile.SYMTYPE, "d1"
            tar.addfile(entry)

    write_gvmi(path, tree, b"{}")
    return path.read_bytes()


def test_the_cage_shows_nothing_else(make: Callable[..., Path], tmp_path: Path) -> None:
    """The same cage with another program in it, which looks around."""
    command = cage._command(make())
    busybox = shutil.which("busybox")
    assert busybox is not None
    looks = ("find / ! -path '/lib*' ! -path '/usr/lib*'", "touch /x", "touch /image", "cat /proc/self/stat", "env")
    look = "; ".join(f"/busybox {each}" for each in (*looks, "ip -o link", "unshare -m /busybox true"))
    look += "; ulimit -v; ulimit -t; ulimit -n"
    tail = command.index("--")
    command = [command[0], "--ro-bind", busybox, "/busybox", *command[1:tail], "--", "/busybox", "sh", "-c", look]
    with (tmp_path / "said").open("w+b") as said, cage._start(command, said) as process:
        assert process.stdout is not None
        lines = process.stdout.read().decode().splitlines()
        said.seek(0)
        complaints = said.read().decode()
    files = {line for line in lines if line.startswith("/")}
    assert files == {"/", "/busybox", "/image", "/usr", "/usr/bin", "/usr/bin/sqfs2tar"}
    assert complaints.count("Read-only file system") == 2
    assert "/proc/self/stat: No such file" in complaints.replace("'", "")
    assert "unshare" in complaints
    variables = {line.partition("=")[0] for line in lines if "=" in line and not line[0].isdigit()}
    assert variables <= {"PATH", "PWD", "SHLVL", "OLDPWD"}
    assert [line.split(":")[1].strip() for line in lines if ": " in line and line[0].isdigit()] == ["lo"]
    assert [line for line in lines if line.isdigit()] == ["2097152", "1200", "64"]


def test_patience_has_an_end() -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"first")
        with open(read, "rb", buffering=0) as pipe:
            silent = cage._Pipe(pipe, silence_s=0.01)
            assert silent.read(100) == b"first"
            with pytest.raises(ImageUnusable, match="too long"):
                silent.read(100)
    finally:
        os.close(write)


async def test_a_worker_that_is_killed_takes_the_cage_with_it(tmp_path: Path) -> None:
    """As when nobody waits for an image any more."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    script = f"""
import sys
from pathlib import Path
from shem.runtimes.images import cage
command = cage._command(Path(sys.argv[1]))
tail = command.index("--")
program = ["/busybox", "sh", "-c", "echo up; while true; do :; done"]
command = [command[0], "--ro-bind", {busybox!r}, "/busybox", *command[1:tail], "--", *program]
with open(sys.argv[1], "r+b") as said, cage._start(command, said) as process:
    print(process.stdout.read(3), flush=True)
    process.wait()
"""
    image = tmp_path / "image"
    image.write_bytes(b"x")
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(image)), stdout=asyncio.subprocess.PIPE
    )
    assert worker.stdout is not None
    family: list[int] = []
    try:
        async with asyncio.timeout(60):
            assert await worker.stdout.readline() == b"b'up\\n'\n"
            family = descendants(worker.pid)
            assert len(family) >= 2
            worker.kill()
            await worker.wait()
            while any(Path(f"/proc/{pid}").exists() for pid in family):  # noqa: ASYNC110 (orphans do not tell)
                await asyncio.sleep(0.01)
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    children = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


# -- the store ---------------------------------------------------------------------------------------------------


async def test_ensure(make: Callable[..., Path], tmp_path: Path) -> None:
    served = Served(make())
    heard: list[tuple[int, int, str]] = []
    async with ImageStore(tmp_path / "store") as store:
        assert not store.has(served.package)
        rootfs = await store.ensure(served.package, fetch=served.fetch, progress=lambda *said: heard.append(said))
        assert rootfs.digest == served.package.digest == f"sha3:{served.package.sha3}"
        assert [(layer / "hello").read_bytes() for layer in rootfs.layers] == [b"hi"]
        config = rootfs.config
        assert (config.user, config.workdir, config.entrypoint, config.cmd) == ("1000:1001", "/work", ("/e",), ("c",))
        assert config.env == ("A=b", "HOME=/home/w")
        assert heard[-1] == (len(served.data), len(served.data), "ready")
        assert any("download" in said for _, _, said in heard)
        assert store.has(served.package)
        again = await store.ensure(GvmiImage(sha3=served.package.sha3, url="http://nowhere/"))
        assert again == rootfs
        assert os.listdir(tmp_path / "store/tmp") == []
    assert served.fetched == [URL]
    async with ImageStore(tmp_path / "store") as store:
        assert await store.ensure(served.package) == rootfs


async def test_one_pull_for_many(make: Callable[..., Path], tmp_path: Path) -> None:
    served = Served(make())
    served.gate = asyncio.Event()
    other = GvmiImage(sha3=served.package.sha3, url="http://mirror.example/x")
    async with ImageStore(tmp_path / "store") as store:
        async with asyncio.TaskGroup() as group:
            same = [group.create_task(store.ensure(served.package, fetch=served.fetch)) for _ in range(5)]
            mirror = group.create_task(store.ensure(other, fetch=served.fetch))
            await asyncio.sleep(0)
            served.gate.set()
        assert len({str(task.result()) for task in [*same, mirror]}) == 1
        assert sorted(served.fetched) == [URL, other.url]
        assert len(os.listdir(tmp_path / "store/layers")) == 1


async def test_a_pull_that_nobody_waits_for_ends(make: Callable[..., Path], tmp_path: Path) -> None:
    served = Served(make())
    served.gate = asyncio.Event()
    async with ImageStore(tmp_path / "store") as store:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.ensure(served.package, fetch=served.fetch)
    assert served.closed == len(served.fetched)
    assert os.listdir(tmp_path / "store/tmp") == []
    assert nothing_left(tmp_path / "store")


@pytest.mark.parametrize("bits", [224, 256, 384, 512])
async def test_hashes_of_all_lengths(make: Callable[..., Path], tmp_path: Path, bits: int) -> None:
    served = Served(make())
    package = GvmiImage(sha3=hashlib.new(f"sha3_{bits}", served.data).hexdigest(), url=URL)
    async with ImageStore(tmp_path / "store") as store:
        assert (await store.ensure(package, fetch=served.fetch)).digest == package.digest


async def refused(root: Path, served: Served, code: str, limits: StoreLimits | None = None) -> ShemError:
    async with ImageStore(root, limits=limits) as store:
        with pytest.raises(ShemError) as raised:
            await store.ensure(served.package, fetch=served.fetch)
        assert raised.value.code == code
        assert nothing_left(root)
    async with ImageStore(root, limits=limits) as store:
        assert store.images() == []
    return raised.value


async def test_bad_files(make: Callable[..., Path], tmp_path: Path) -> None:
    good = make()
    wrong = Served(good)
    wrong.data = wrong.data[:-9] + b" " + wrong.data[-8:]
    error = await refused(tmp_path / "a", wrong, "image_digest_mismatch")
    assert wrong.package.sha3 in error.message
    await refused(tmp_path / "b", Served(data=b"hsqs, they said"), "image_bad")
    config = encode_trailer(b"{}")
    await refused(tmp_path / "c", Served(data=good.read_bytes()[:200] + config), "image_bad")
    broken = bytearray(good.read_bytes())
    broken[96:400] = bytes(304)
    await refused(tmp_path / "d", Served(data=bytes(broken)), "image_bad")
    await refused(tmp_path / "e", Served(make(config={"Env": ["no"]})), "image_bad")


async def test_large_files(make: Callable[..., Path], tmp_path: Path) -> None:
    large = Served(make({"n": "noise", "d": os.urandom(3 << 20)}), piece=1 << 16)
    await refused(tmp_path / "a", large, "image_too_large", StoreLimits(max_image_bytes=1 << 20))
    assert large.sent <= (1 << 20) + large.piece
    unpacked = Served(make({"n": "zeros", "d": bytes(3 << 20)}))
    assert len(unpacked.data) < 1 << 20
    await refused(tmp_path / "b", unpacked, "image_too_large", StoreLimits(max_image_bytes=1 << 20))
    many = Served(make(*({"n": f"{n}"} for n in range(50))))
    await refused(tmp_path / "c", many, "image_too_large", StoreLimits(max_layer_files=20))


async def test_a_fetch_that_fails(make: Callable[..., Path], tmp_path: Path) -> None:
    served = Served(make())

    async def gone(url: str) -> AsyncIterator[bytes]:
        yield served.data[:100]
        raise NotFound("no such file", code="file_not_found")

    async with ImageStore(tmp_path / "store") as store:
        with pytest.raises(NotFound):
            await store.ensure(served.package, fetch=gone)
        with pytest.raises(ImageUnsupported):
            await store.ensure(served.package)
        assert os.listdir(tmp_path / "store/tmp") == []
        assert (await store.ensure(served.package, fetch=served.fetch)).layers


async def test_files_share_the_store_with_others(kit: Any, make: Callable[..., Path], tmp_path: Path) -> None:
    """They count, are collected when room is needed, and stay while somebody holds them."""
    first, second = Served(make({"n": "a", "d": bytes(60_000)})), Served(make({"n": "b", "d": bytes(60_000)}))
    async with ImageStore(tmp_path / "store", limits=StoreLimits(max_bytes=100_000)) as store:
        await store.ensure(first.package, fetch=first.fetch, holder="h")
        await store.ensure(second.package, fetch=second.fetch)
        assert {image.digest for image in store.images()} == {first.package.digest}
        assert not store.has(second.package)
        store.release("h")
        await store.ensure(second.package, fetch=second.fetch)
        assert store.has(first.package) is False
    async with ImageStore(tmp_path / "store") as store:
        await store.load(kit.small("c").layout(tmp_path / "oci"))
        assert len(store.images()) == len(os.listdir(tmp_path / "store/images"))


async def test_the_small_image(tmp_path: Path) -> None:
    path = tmp_path / "small.gvmi"
    digest = make_small_gvmi(path, volumes=("/golem/work",), config={"User": "1000:1000"})
    assert (
        digest
        == sha3_of(path)
        == make_small_gvmi(tmp_path / "again.gvmi", volumes=("/golem/work",), config={"User": "1000:1000"})
    )
    served = Served(path)
    async with ImageStore(tmp_path / "store") as store:
        rootfs = await store.ensure(served.package, fetch=served.fetch)
    assert (rootfs.layers[0] / "bin/sh").readlink() == Path("/bin/busybox")
    assert rootfs.config.volumes == ("/golem/work",)

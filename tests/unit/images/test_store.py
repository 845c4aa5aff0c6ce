"""The store: shared pulls, what survives a crash, what goes when room is needed, and layers as overlayfs sees them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shem.errors import Misconfigured, NotFound, Refused, ShemError
from shem.runtimes.images.registry import RegistryConfig
from shem.runtimes.images.store import ImageStore, StoreLimits
from shem.terms.images import BundleImage, GvmiImage, parse_reference

NODE = "0x" + "ab" * 20


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ImageStore]:
    async with ImageStore(tmp_path / "store", registry=local()) as made:
        yield made


def local() -> RegistryConfig:
    return RegistryConfig(insecure_hosts=frozenset({"127.0.0.1"}), backoff_s=0.0)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (directories do not tell)
            await asyncio.sleep(0.005)


def left_over(root: Path) -> list[str]:
    return os.listdir(root / "tmp")


class Files:
    """What a node would serve for a bundle."""

    def __init__(self, image: Any) -> None:
        self.files = {**image.blobs, image.digest: image.manifest}
        self.fetched: list[str] = []
        self.package = BundleImage(digest=image.digest, url=f"gftp://{NODE}/map")
        self.map = {
            digest: {"url": f"gftp://{NODE}/{digest[7:]}", "size": len(data)} for digest, data in self.files.items()
        }

    async def fetch(self, url: str) -> AsyncIterator[bytes]:
        name = url.rpartition("/")[2]
        self.fetched.append(name)
        data = json.dumps({"blobs": self.map}).encode() if name == "map" else self.files[f"sha256:{name}"]
        for at in range(0, len(data), 1000):
            yield data[at : at + 1000]


async def test_a_bundle_is_fetched_once(kit: Any, store: ImageStore) -> None:
    files = Files(kit.small("a", "b"))
    heard: list[tuple[int, int, str]] = []
    rootfs = await store.ensure(files.package, fetch=files.fetch, progress=lambda *each: heard.append(each))
    assert [path.name for layer in rootfs.layers for path in layer.iterdir()] == ["a", "b"]
    assert len(files.fetched) == 5
    assert heard[-1][0] == heard[-1][1] > 0
    assert heard[-1][2] == "ready"
    assert any("layer 2 of 2" in message for _, _, message in heard)
    assert store.has(files.package)
    again = await store.ensure(files.package, fetch=files.fetch)
    assert again == rootfs
    assert len(files.fetched) == 5


async def test_only_missing_layers_are_fetched(kit: Any, store: ImageStore) -> None:
    one, two = Files(kit.small("a", "b")), Files(kit.small("a", "b", "c"))
    await store.ensure(one.package, fetch=one.fetch)
    await store.ensure(two.package, fetch=two.fetch)
    assert len(two.fetched) == 4  # map, manifest, configuration, one layer


async def test_what_is_here_is_given_in_less_than_5_ms(kit: Any, store: ImageStore) -> None:
    files = Files(kit.small(*(f"f{number}" for number in range(20))))
    await store.ensure(files.package, fetch=files.fetch)
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        await store.ensure(files.package)
        best = min(best, time.perf_counter() - start)
    assert best < 0.005


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda files: files.map.pop(files.package.digest), "image_not_found"),
        (lambda files: files.files.update({files.package.digest: b"{}"}), "image_digest_mismatch"),
        (lambda files: files.files.update({files.package.digest: b"0" * (5 << 20)}), "image_bad"),
        (lambda files: files.map.update({str(n): {"url": "x", "size": 1} for n in range(200)}), "image_bad"),
        (lambda files: files.map.update({str(n): {"url": "x" * 9000, "size": 1} for n in range(200)}), "image_bad"),
        (lambda files: files.map.update({"a": "b"}), "image_bad"),
    ],
)
async def test_bundles_that_lie(kit: Any, store: ImageStore, change: Callable[[Files], Any], code: str) -> None:
    files = Files(kit.small("a"))
    change(files)
    with pytest.raises(ShemError) as raised:
        await store.ensure(files.package, fetch=files.fetch)
    assert raised.value.code == code


async def test_the_failure_of_a_fetch_is_passed_on(kit: Any, store: ImageStore) -> None:
    files = Files(kit.small("a"))

    async def gone(url: str) -> AsyncIterator[bytes]:
        raise NotFound("no such file", code="file_not_found")
        yield b""

    async def late(url: str) -> AsyncIterator[bytes]:
        raise TimeoutError
        yield b""

    with pytest.raises(NotFound) as raised:
        await store.ensure(files.package, fetch=gone)
    assert raised.value.code == "file_not_found"
    with pytest.raises(TimeoutError):
        await store.ensure(files.package, fetch=late)
    with pytest.raises(Refused, match="needs a node"):
        await store.ensure(files.package)
    with pytest.raises(Refused, match="needs a node"):
        await store.ensure(GvmiImage(sha3="0" * 56, url="http://h/x"))


async def test_archives(kit: Any, store: ImageStore, tmp_path: Path) -> None:
    image = kit.small("a", Cmd=["sh"])
    layout = image.layout(tmp_path / "oci")
    with tarfile.open(tmp_path / "oci.tar", "w") as tar:
        tar.add(layout, ".")
    rootfs = await store.load(tmp_path / "oci.tar")
    assert rootfs == await store.load(layout)
    assert (rootfs.layers[0] / "a").exists()
    assert rootfs.config.cmd == ("sh",)
    # A layer that is not what the archive says is noticed although nobody copied it, even if it unpacks to the same.
    packed = kit.small("c")
    twisted = packed.layout(tmp_path / "twisted")
    blob = twisted / "blobs/sha256" / packed.document["layers"][0]["digest"][7:]
    blob.write_bytes(blob.read_bytes()[:4] + b"time" + blob.read_bytes()[8:])
    with pytest.raises(ShemError) as raised:
        await store.load(twisted)
    assert raised.value.code == "image_digest_mismatch"
    other = kit.small("b", compress=False)
    damaged = other.layout(tmp_path / "damaged")
    blob = damaged / "blobs/sha256" / other.document["layers"][0]["digest"][7:]
    blob.write_bytes(blob.read_bytes().replace(b"bbb", b"ccc"))
    with pytest.raises(ShemError) as raised:
        await store.load(damaged)
    assert raised.value.code == "image_digest_mismatch"


async def test_concurrent_callers_share_one_pull(kit: Any, registry: Any, store: ImageStore) -> None:
    registry.add(kit.small("a", "b"), "1")
    reference = parse_reference(f"{registry.host}/x/y:1")
    found = await asyncio.gather(*(store.ensure(reference, holder=f"h{n}") for n in range(20)))
    assert len({rootfs.layers for rootfs in found}) == 1
    assert len(registry.blob_requests()) == 3


async def test_images_that_share_a_layer_make_it_once(kit: Any, registry: Any, store: ImageStore) -> None:
    registry.add(kit.small("base", "one"), "1")
    registry.add(kit.small("base", "two"), "2")
    references = [parse_reference(f"{registry.host}/x/y:{tag}") for tag in "12"]
    one, two = await asyncio.gather(*map(store.ensure, references))
    assert one.layers[0] == two.layers[0]
    assert len(registry.blob_requests()) == 5  # two configurations, three layers


async def test_the_last_who_leaves_cancels_the_pull(kit: Any, registry: Any, store: ImageStore, tmp_path: Path) -> None:
    one, two = kit.small("a"), kit.small("b")
    registry.add(one, "1")
    registry.gate, registry.gated = asyncio.Event(), one.document["layers"][0]["digest"]
    reference = parse_reference(f"{registry.host}/x/y:1")
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(store.ensure(reference)) for _ in range(2)]
        await until(lambda: len(registry.blob_requests()) == 2)
        waiting[0].cancel()
        await asyncio.sleep(0)
        registry.gate.set()
        assert await waiting[1]
    registry.add(two, "1")
    registry.gate, registry.gated = asyncio.Event(), two.document["layers"][0]["digest"]
    async with asyncio.TaskGroup() as group:
        lonely = group.create_task(store.ensure(reference))
        await until(lambda: len(registry.blob_requests()) == 4)
        assert left_over(tmp_path / "store")
        lonely.cancel()
    await until(lambda: not left_over(tmp_path / "store"))
    registry.gate.set()
    # … and the next one begins anew.
    assert await store.ensure(reference)


async def test_a_failed_pull_leaves_nothing_and_can_be_repeated(
    kit: Any, registry: Any, store: ImageStore, tmp_path: Path
) -> None:
    image = kit.small("a", "b")
    registry.add(image, "1")
    blob = image.document["layers"][1]["digest"]
    good = registry.blobs[blob]
    registry.blobs[blob] = good[:-4] + b"oops"
    reference = parse_reference(f"{registry.host}/x/y:1")
    with pytest.raises(ShemError):
        await store.ensure(reference)
    await until(lambda: not left_over(tmp_path / "store"))
    assert store.images() == []
    registry.blobs[blob] = good
    assert await store.ensure(reference)


async def test_a_restart_keeps_images_and_sweeps_the_rest(kit: Any, tmp_path: Path) -> None:
    files, root = Files(kit.small("a")), tmp_path / "store"
    async with ImageStore(root) as store:
        rootfs = await store.ensure(files.package, fetch=files.fetch)
    waste = root / "tmp/half/fs/dir"
    waste.mkdir(parents=True)
    waste.chmod(0o000)
    (root / "tmp/draft").write_text("{")
    (root / "layers/orphan/fs").mkdir(parents=True)
    (root / "images/damaged.json").write_text("{")
    async with ImageStore(root) as store:
        assert await store.ensure(files.package) == rootfs
        assert [image.digest for image in store.images()] == [rootfs.digest]
        await until(lambda: not left_over(root))
        assert len(os.listdir(root / "layers")) == 1
        assert len(os.listdir(root / "images")) == 1


async def test_after_a_power_failure_only_what_was_on_the_disk_counts(kit: Any, tmp_path: Path) -> None:
    one, two, root = Files(kit.small("a")), Files(kit.small("b")), tmp_path / "store"
    async with ImageStore(root, limits=StoreLimits(settle_s=0.0)) as store:
        first = await store.ensure(one.package, fetch=one.fetch)
        await until((first.layers[0].parent / "settled").exists)
    async with ImageStore(root, limits=StoreLimits(settle_s=1e6)) as store:
        second = await store.ensure(two.package, fetch=two.fetch)
    for rootfs in (first, second):
        record = rootfs.layers[0].parent / "layer.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "another"}))
    async with ImageStore(root, limits=StoreLimits(settle_s=0.0)) as store:
        assert store.has(one.package)
        assert not store.has(two.package)
        again = await store.ensure(two.package, fetch=two.fetch)
        assert (again.layers[0] / "b").exists()
    # What was not yet on the disk when the store was closed is seen to after the next start.
    (again.layers[0].parent / "settled").unlink(missing_ok=True)
    async with ImageStore(root, limits=StoreLimits(settle_s=0.0)) as store:
        assert store.has(two.package)
        await until((again.layers[0].parent / "settled").exists)


async def test_a_layer_deleted_by_hand_is_fetched_again(kit: Any, tmp_path: Path) -> None:
    files, root = Files(kit.small("a")), tmp_path / "store"
    async with ImageStore(root) as store:
        rootfs = await store.ensure(files.package, fetch=files.fetch)
        rootfs.layers[0].parent.rename(root / "tmp/gone")
        assert not store.has(files.package)
        again = await store.ensure(files.package, fetch=files.fetch)
        assert (again.layers[0] / "a").exists()


async def test_one_process_at_a_time(tmp_path: Path, store: ImageStore) -> None:
    with pytest.raises(Misconfigured, match="another process"):
        async with ImageStore(tmp_path / "store"):
            pass


KILLED = """
import asyncio, os, sys
from pathlib import Path
from shem.runtimes.images.store import ImageStore

def heard(done, total, message):
    if message.startswith("unpacking"):
        print("unpacking", flush=True)

async def main():
    async with ImageStore(Path(sys.argv[1])) as store:
        await store.load(Path(sys.argv[2]), progress=heard)

asyncio.run(main())
"""


async def test_kill_dash_nine_in_the_middle(kit: Any, tmp_path: Path) -> None:
    entries = [{"n": f"d{n % 50}/f{n}", "d": b"x" * 100} for n in range(5000)]
    layout = kit.image([kit.layer(*entries)]).layout(tmp_path / "oci")
    root = tmp_path / "store"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(root), str(layout), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    await until(lambda: any((root / "tmp").glob("*/fs/d*")))
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert os.listdir(root / "images") == []
    assert os.listdir(root / "layers") == []
    async with ImageStore(root) as store:
        rootfs = await store.load(layout)
        assert len(list(rootfs.layers[0].rglob("f*"))) == 5000
        await until(lambda: not left_over(root))


async def test_the_longest_unused_go_when_room_is_needed(kit: Any, tmp_path: Path) -> None:
    images = {name: Files(kit.image([kit.layer({"n": name, "d": os.urandom(100_000)})])) for name in "abcd"}
    limits = StoreLimits(max_bytes=330_000)
    async with ImageStore(tmp_path / "store", limits=limits) as store:

        async def ensure(name: str, holder: str = "") -> Any:
            return await store.ensure(images[name].package, fetch=images[name].fetch, holder=holder)

        held = await ensure("a", holder="sandbox")
        await ensure("b")
        await ensure("c")
        await ensure("b")  # now c is the longest unused that nobody holds
        assert store.size() <= limits.max_bytes
        await ensure("d")
        assert [store.has(images[name].package) for name in "abcd"] == [True, True, False, True]
        assert held.layers[0].is_dir()
        assert store.size() <= limits.max_bytes
        await until(lambda: not left_over(tmp_path / "store"))
        assert len(os.listdir(tmp_path / "store/layers")) == 3
        store.release("sandbox")
        store.release("nobody")
        await ensure("c")
        assert [store.has(images[name].package) for name in "abcd"] == [False, True, True, True]
    async with ImageStore(tmp_path / "store", limits=StoreLimits(max_bytes=0)) as store:
        assert store.images() == []


async def test_shared_layers_stay_while_anybody_has_them(kit: Any, tmp_path: Path) -> None:
    base = kit.layer({"n": "base", "d": os.urandom(100_000)})
    one = Files(kit.image([base, kit.layer({"n": "one", "d": os.urandom(50_000)})]))
    two = Files(kit.image([base, kit.layer({"n": "two", "d": os.urandom(50_000)})]))
    async with ImageStore(tmp_path / "store", limits=StoreLimits(max_bytes=170_000)) as store:
        await store.ensure(one.package, fetch=one.fetch)
        rootfs = await store.ensure(two.package, fetch=two.fetch)
        assert not store.has(one.package)
        assert all((layer.parent / "layer.json").exists() for layer in rootfs.layers)


async def test_image_limits(kit: Any, tmp_path: Path) -> None:
    files = Files(kit.image([kit.layer({"n": n, "d": bytes(600_000)}) for n in "ab"], compress=gzip.compress))
    async with ImageStore(tmp_path / "store", limits=StoreLimits(max_image_bytes=1_000_000)) as store:
        with pytest.raises(ShemError) as raised:
            await store.ensure(files.package, fetch=files.fetch)
        assert raised.value.code == "image_too_large"


PASSWD = b"root:x:0:0:root:/root:/bin/sh\nbad\nweb:x:33:34:Web:/srv/web:/bin/false\nnul\0:x:7:7::/:\n"
GROUP = b"root:x:0:\nstaff:x:50:\n"


@pytest.mark.parametrize(
    ("user", "numbers", "home"),
    [
        ("", "", None),
        ("root", "0:0", "/root"),
        ("web", "33:34", "/srv/web"),
        ("33", "33:34", "/srv/web"),
        ("web:staff", "33:50", "/srv/web"),
        ("web:9", "33:9", "/srv/web"),
        ("1234", "1234:0", None),
        ("1234:5", "1234:5", None),
    ],
)
async def test_users_by_name(kit: Any, store: ImageStore, user: str, numbers: str, home: str | None) -> None:
    below = kit.layer({"n": "etc/passwd", "d": b"web:x:1:1::/old:"}, {"n": "etc/group", "d": GROUP})
    image = kit.image([below, kit.layer({"n": "etc/passwd", "d": PASSWD})], {"User": user, "Env": ["A=1"]})
    files = Files(image)
    config = (await store.ensure(files.package, fetch=files.fetch)).config
    assert config.user == numbers
    assert config.env == (("A=1", f"HOME={home}") if home else ("A=1",))


@pytest.mark.parametrize(
    ("entry", "user"),
    [
        ({"n": "etc/passwd", "d": PASSWD}, "nobody-knows"),
        ({"n": "etc/passwd", "d": PASSWD}, "web:nobody-knows"),
        ({"n": "etc/passwd", "t": tarfile.SYMTYPE, "l": "/etc/passwd"}, "root"),
        ({"n": "etc", "t": tarfile.SYMTYPE, "l": "/etc"}, "root"),
        ({"n": "etc/passwd", "t": tarfile.FIFOTYPE}, "root"),
        ({"n": "etc/passwd", "d": b"root:x:0:0::/:\n" + bytes(1 << 20)}, "root"),
        ({"n": "etc/.wh.passwd"}, "root"),
        ({"n": "etc/.wh..wh..opq"}, "root"),
        ({"n": ".wh.etc"}, "root"),
        ({"n": "x"}, "99999999999"),
    ],
)
async def test_users_that_cannot_be_known(kit: Any, store: ImageStore, entry: dict[str, Any], user: str) -> None:
    below = kit.layer({"n": "etc", "t": tarfile.DIRTYPE}, {"n": "etc/passwd", "d": PASSWD})
    files = Files(kit.image([below, kit.layer(entry)] if "wh" in entry["n"] else [kit.layer(entry)], {"User": user}))
    with pytest.raises(ShemError) as raised:
        await store.ensure(files.package, fetch=files.fetch)
    assert raised.value.code == "image_user_unknown"


async def test_configuration(kit: Any, store: ImageStore) -> None:
    image = kit.image(
        [kit.layer({"n": "a"})],
        {
            "Env": ["PATH=/bin", "E="],
            "Entrypoint": ["/a", "b"],
            "Cmd": None,
            "WorkingDir": "srv//x/",
            "Volumes": {"/data/": {}, "/golem/work": {}, "/": {}},
        },
    )
    config = (await store.ensure(Files(image).package, fetch=Files(image).fetch)).config
    assert config.env == ("PATH=/bin", "E=")
    assert (config.entrypoint, config.cmd) == (("/a", "b"), ())
    assert config.workdir == "/srv/x"
    assert config.volumes == ("/data", "/golem/work")


@pytest.mark.parametrize(
    "config",
    [
        {"Env": ["no equals"]},
        {"Env": ["=x"]},
        {"Env": ["A=\0"]},
        {"Env": ["A=" + "x" * (300 << 10)]},
        {"Env": ["A=1"] * 3000},
        {"Cmd": "text"},
        {"WorkingDir": "/a/../../b"},
        {"Volumes": {f"/v{n}": {} for n in range(100)}},
        {"Volumes": {"/../x": {}}},
    ],
)
async def test_hostile_configurations(kit: Any, store: ImageStore, config: dict[str, Any]) -> None:
    files = Files(kit.image([kit.layer({"n": "a"})], config))
    with pytest.raises(ShemError) as raised:
        await store.ensure(files.package, fetch=files.fetch)
    assert raised.value.code == "image_bad"


LAYERS: list[tuple[dict[str, Any], ...]] = [
    (
        {"n": "tmp", "t": tarfile.DIRTYPE, "m": 0o1777},
        {"n": "etc", "t": tarfile.DIRTYPE, "m": 0o711, "uid": 3, "gid": 4},
        {"n": "etc/a", "d": b"a"},
        {"n": "etc/b", "d": b"b", "m": 0o600, "uid": 5},
        {"n": "dir/old", "d": b"old"},
        {"n": "dir2/old", "d": b"old"},
        {"n": "link", "t": tarfile.SYMTYPE, "l": "etc"},
    ),
    (
        {"n": "tmp/new", "d": b"1"},
        {"n": "etc/.wh.a"},
        {"n": "dir/.wh..wh..opq"},
        {"n": "dir/new", "d": b"new"},
        {"n": ".wh.dir2"},
        {"n": "dir2", "t": tarfile.DIRTYPE},
        {"n": "hard/b", "t": tarfile.LNKTYPE, "l": "etc/b"},
        {"n": "hard/none", "t": tarfile.LNKTYPE, "l": "etc/none"},
        {"n": "hard/l", "t": tarfile.LNKTYPE, "l": "link"},
    ),
]


async def test_what_a_layer_leaves_to_those_below_is_settled(kit: Any, store: ImageStore) -> None:
    files = Files(kit.image([kit.layer(*entries) for entries in LAYERS]))
    layers = (await store.ensure(files.package, fetch=files.fetch)).layers
    assert len(layers) == 3
    patch = layers[2]
    assert sorted(str(path.relative_to(patch)) for path in patch.rglob("*")) == [
        "etc",
        "hard",
        "hard/b",
        "hard/l",
        "tmp",
    ]
    assert stat.S_IMODE((patch / "tmp").stat().st_mode) == 0o1777
    assert (patch / "tmp").stat().st_mtime == 1_700_000_000
    assert (patch / "hard/b").read_bytes() == b"b"
    assert os.readlink(patch / "hard/l") == "etc"
    # Another image with the same two layers below shares the patch; one with another base has its own.
    more = Files(kit.image([kit.layer(*entries) for entries in [*LAYERS, ({"n": "z"},)]]))
    assert (await store.ensure(more.package, fetch=more.fetch)).layers[:3] == layers
    other = Files(kit.image([kit.layer({"n": "x"}), *(kit.layer(*entries) for entries in LAYERS)]))
    assert (await store.ensure(other.package, fetch=other.fetch)).layers[3] != patch


@contextlib.contextmanager
def mounted(there: Path, options: str) -> Iterator[None]:
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(there)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(there)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("options", ["", ",userxattr"])
async def test_overlayfs_shows_the_image(kit: Any, store: ImageStore, tmp_path: Path, options: str) -> None:
    """Mounted by root both ways: the drivers differ in this."""
    files = Files(kit.image([kit.layer(*entries) for entries in LAYERS]))
    layers = (await store.ensure(files.package, fetch=files.fetch)).layers
    there = tmp_path / "merged"
    there.mkdir()
    lower = "lowerdir=" + ":".join(map(str, reversed(layers))) + options
    with mounted(there, lower):
        found = sorted(str(path.relative_to(there)) for path in there.rglob("*"))
        assert found == [
            "dir",
            "dir/new",
            "dir2",
            "etc",
            "etc/b",
            "hard",
            "hard/b",
            "hard/l",
            "link",
            "tmp",
            "tmp/new",
        ]
        assert stat.S_IMODE((there / "tmp").stat().st_mode) == 0o1777
        etc = (there / "etc").stat()
        assert (stat.S_IMODE(etc.st_mode), etc.st_uid, etc.st_gid) == (0o711, 3, 4)
        assert (there / "hard/b").stat().st_uid == 5


async def test_contradicting_links_are_refused(kit: Any, store: ImageStore) -> None:
    below = kit.layer({"n": "l", "t": tarfile.SYMTYPE, "l": "/etc"}, {"n": "f", "d": b"x"})
    above = kit.layer({"n": "a", "t": tarfile.LNKTYPE, "l": "l"}, {"n": "a/b", "t": tarfile.LNKTYPE, "l": "f"})
    files = Files(kit.image([below, above]))
    with pytest.raises(ShemError) as raised:
        await store.ensure(files.package, fetch=files.fetch)
    assert raised.value.code == "image_bad"


async def test_the_loop_stays_free_while_layers_are_unpacked(kit: Any, store: ImageStore, tmp_path: Path) -> None:
    entries = [{"n": f"d{n % 50}/f{n}", "d": b"x" * 100} for n in range(3000)]
    layout = kit.image([kit.layer(*entries)]).layout(tmp_path / "oci")
    worst, running = 0.0, True

    async def watch() -> None:
        nonlocal worst
        while running:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            worst = max(worst, time.perf_counter() - start)

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        await store.load(layout)
        running = False
    assert worst < 0.25


@pytest.mark.root
def test_some_of_this_as_nobody(as_nobody: Callable[[str, str], None]) -> None:
    as_nobody(__file__, "restart or settled or archives or by_hand or bundle_is")

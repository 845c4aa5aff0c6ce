"""Pulling from a registry, and from ones that lie, stall, redirect and break off."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from aiohttp import web

from shem.cogs.addresses import is_public
from shem.cogs.ociformat import host_architecture, sha256_digest
from shem.errors import ShemError
from shem.runtimes.images.errors import RegistryUnreachable
from shem.runtimes.images.registry import Registries, RegistryConfig, _Deadline
from shem.runtimes.images.store import ImageStore, StoreLimits
from shem.terms.images import RegistryImage, parse_reference

Ensure = Callable[..., Any]


@pytest.fixture
async def puller(tmp_path: Path, registry: Any) -> AsyncIterator[Callable[..., Any]]:
    """``await puller(reference="x/y:1", **config)`` ensures with a store of its own."""
    stores = []

    async def pull(reference: str = "", *, limits: StoreLimits | None = None, **config: Any) -> Any:
        config = {"insecure_hosts": frozenset({"127.0.0.1"}), "backoff_s": 0.0, **config}
        store = ImageStore(tmp_path / f"store{len(stores)}", registry=RegistryConfig(**config), limits=limits)
        stores.append(await store.__aenter__())
        return await store.ensure(parse_reference(reference or f"{registry.host}/x/y:1"))

    yield pull
    for store in stores:
        await store.__aexit__()


async def refused(awaitable: Any, code: str, words: str | None = None) -> ShemError:
    with pytest.raises(ShemError, match=words) as raised:
        await awaitable
    assert raised.value.code == code, raised.value
    return raised.value


async def test_a_tag_is_pulled_and_a_digest_too(kit: Any, registry: Any, puller: Any) -> None:
    image = kit.small("a", "b", Env=["A=1"], Cmd=["sh"])
    digest = registry.add(image, "1")
    rootfs = await puller()
    assert rootfs.digest == digest
    assert (rootfs.layers[1] / "b").read_bytes() == b"b" * 1000
    assert rootfs.config.env == ("A=1",)
    registry.manifests.pop("1")
    assert (await puller(f"{registry.host}/x/y@{digest}")).digest == digest


async def test_an_index_leads_to_this_platform(kit: Any, registry: Any, puller: Any, tmp_path: Path) -> None:
    image = kit.small("a")
    digest = registry.add(image)
    other = kit.descriptor(b"{}", kit.manifest_type, platform={"architecture": "s390x", "os": "linux"})
    mine = kit.descriptor(
        image.manifest, kit.manifest_type, platform={"architecture": host_architecture(), "os": "linux"}
    )
    index = kit.index(other, mine)
    registry.manifests["1"] = registry.manifests[sha256_digest(index)] = index
    assert (await puller()).digest == digest
    # Pinned by the digest of the index, the image is known without a request from then on.
    reference = parse_reference(f"{registry.host}/x/y@{sha256_digest(index)}")
    config = RegistryConfig(insecure_hosts=frozenset({"127.0.0.1"}))
    async with ImageStore(tmp_path / "other", registry=config) as store:
        await store.ensure(reference)
        count = len(registry.requests)
        assert (await store.ensure(reference)).digest == digest
        assert len(registry.requests) == count


async def test_tokens_and_passwords(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.small("a"), "1")
    registry.token = "secret-token"
    assert await puller()
    login = base64.b64encode(b"me:word").decode()
    registry.login = f"Basic {login}"
    await refused(puller(), "registry_denied")
    assert await puller(credentials={registry.host: ("me", "word")})
    await refused(puller(credentials={registry.host: ("me", "wrong")}), "registry_denied")
    registry.basic = True
    assert await puller(credentials={registry.host: ("me", "word")})
    error = await refused(puller(), "registry_denied", "does not let us read")
    assert error.hint


async def test_an_expired_token_is_renewed(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.small("a", "b", "c"), "1")
    registry.token = "first"

    def expire(request: web.Request) -> None:
        if "/blobs/" in request.path and registry.token == "first":
            registry.token = "second"

    registry.twist = expire
    assert await puller()
    assert registry.requests.count("/token") >= 2


async def test_absent_images_and_blobs(kit: Any, registry: Any, puller: Any) -> None:
    await refused(puller(), "image_not_found")
    image = kit.small("a")
    registry.add(image, "1")
    del registry.blobs[image.document["layers"][0]["digest"]]
    await refused(puller(), "image_not_found")


async def test_short_names_need_a_default(registry: Any, kit: Any, puller: Any) -> None:
    await refused(puller("python:3.12"), "registry_not_allowed", "no default one")
    registry.manifests["3"] = b""
    error = await refused(puller("x/y:3", default_registry=registry.host), "image_bad")
    assert "manifest" in error.message
    registry.add(kit.small("a"), "1")
    assert await puller("x/y:1", default_registry=registry.host)


async def test_clear_text_and_private_addresses_must_be_allowed(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.small("a"), "1")
    none: dict[str, Any] = {"insecure_hosts": frozenset()}
    error = await refused(puller(**none), "registry_not_allowed", "private network")
    assert "--insecure-registry" in (error.hint or "")
    for host in ("10.0.0.1", "169.254.169.254", "[::1]", "localhost", "[::ffff:10.0.0.1]"):
        await refused(puller(f"{host}:1/x/y:1", **none), "registry_not_allowed")
    for disguised in ("127.1", "0x7f000001", "2130706433"):
        with pytest.raises(ShemError, match=r"not_allowed|not a canonical"):
            await puller(f"{disguised}:1/x/y:1", **none)
    assert await puller(insecure_hosts=frozenset({registry.host}))
    port = registry.host.rpartition(":")[2]
    assert await puller(f"localhost:{port}/x/y:1", insecure_hosts=frozenset({f"localhost:{port}"}))
    assert registry.requests


def test_public_addresses() -> None:
    for host in ("8.8.8.8", "example.org", "2606:4700::1111"):
        assert is_public(host)
    for host in ("10.1.1.1", "192.168.0.1", "100.64.0.1", "0.0.0.0", "::", "fe80::1%eth0", "fc00::1", "224.0.0.1"):
        assert not is_public(host)
    for host in ("::ffff:127.0.0.1", "2002:7f00:1::"):
        assert not is_public(host)


def redirect(to: str) -> Callable[[web.Request], web.StreamResponse | None]:
    def answer(request: web.Request) -> web.StreamResponse | None:
        if "/blobs/" in request.path and "moved" not in request.query:
            return web.Response(status=307, headers={"Location": to.replace("PATH", request.path)})
        return None

    return answer


async def test_redirects_are_followed_within_the_rules(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.small("a"), "1")
    registry.twist = redirect("PATH?moved=1")
    assert await puller()
    for target, code in [
        ("http://10.0.0.1/x", "registry_not_allowed"),
        ("https://10.0.0.1/x", "registry_not_allowed"),
        ("https://169.254.169.254/latest/meta-data", "registry_not_allowed"),
        ("http://example.org/x", "registry_not_allowed"),
        ("file:///etc/passwd", "registry_not_allowed"),
        ("ftp://127.0.0.1/x", "registry_unreachable"),
        ("PATH", "registry_unreachable"),
        ("", "registry_unreachable"),
    ]:
        registry.twist = redirect(target)
        await refused(puller(), code)


async def test_credentials_stay_with_their_host(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.small("a"), "1")
    registry.token = "secret"
    port = registry.host.rpartition(":")[2]
    moved: list[dict[str, str]] = []

    def twist(request: web.Request) -> web.StreamResponse | None:
        if "moved" in request.query:
            moved.append(dict(request.headers))
            return web.Response(body=registry.blobs[request.path.rpartition("/")[2]])
        return redirect(f"http://localhost:{port}PATH?moved=1")(request)

    registry.twist = twist
    assert await puller(insecure_hosts=frozenset({"127.0.0.1", "localhost"}))
    assert moved
    assert not any("Authorization" in headers for headers in moved)


async def test_a_lost_connection_is_resumed(kit: Any, registry: Any, puller: Any) -> None:
    big = os.urandom(3 << 20)
    image = kit.image([kit.layer({"n": "big", "d": big})])
    registry.add(image, "1")
    blob = image.document["layers"][0]["digest"]
    for ranges in (True, False):
        registry.ranges = ranges
        registry.cut[blob] = 2 << 20
        registry.headers.clear()
        rootfs = await puller()
        assert (rootfs.layers[0] / "big").read_bytes() == big
        asked = [headers["Range"] for headers in registry.headers if "Range" in headers]
        assert len(asked) == 1
        assert asked[0] != "bytes=0-"


async def test_a_server_in_trouble_is_asked_again_but_not_for_ever(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.small("a"), "1")
    answers = [web.Response(status=503), web.Response(status=429, headers={"Retry-After": "0"})]
    registry.twist = lambda _: answers.pop() if answers else None
    assert await puller()
    registry.requests.clear()
    registry.twist = lambda _: web.Response(status=500)
    await refused(puller(), "registry_unreachable", "500")
    assert len(registry.requests) == 5


async def test_nobody_listens(puller: Any) -> None:
    await refused(puller("127.0.0.1:1/x/y:1"), "registry_unreachable")


def replaced(document: dict[str, Any], **more: Any) -> bytes:
    return json.dumps({**document, **more}).encode()


async def test_wrong_bytes(kit: Any, registry: Any, puller: Any) -> None:
    image = kit.small("a")
    registry.add(image, "1")
    blob = image.document["layers"][0]["digest"]
    good = registry.blobs[blob]
    for wrong in (good[:-1] + b"x", good + b"more", good[:-1], b""):
        registry.blobs[blob] = wrong
        await refused(puller(), "image_digest_mismatch")
    registry.blobs[blob] = good
    conf = image.document["config"]["digest"]
    registry.blobs[conf] = registry.blobs[conf].replace(b"linux", b"Linux")
    await refused(puller(), "image_digest_mismatch")
    registry.manifests[image.digest] += b" "
    await refused(puller(f"{registry.host}/x/y@{image.digest}"), "image_digest_mismatch")


async def test_an_endless_blob(kit: Any, registry: Any, puller: Any) -> None:
    image = kit.small("a")
    registry.add(image, "1")
    registry.blobs[image.document["layers"][0]["digest"]] = b"0" * (8 << 20)
    await refused(puller(), "image_digest_mismatch", "longer than")


async def test_wrong_diff_id(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.image([kit.layer({"n": "a"})], diff_ids=["sha256:" + "0" * 64]), "1")
    await refused(puller(), "image_digest_mismatch", "unpacks to")
    registry.add(kit.image([kit.layer({"n": "a"})], diff_ids=["sha512:" + "0" * 128]), "1")
    await refused(puller(), "image_bad")
    registry.add(kit.image([kit.layer({"n": "a"})], diff_ids=["sha256:" + "0" * 64] * 2), "1")
    await refused(puller(), "image_bad", "1 layers and names 2")


async def test_manifests_out_of_bounds(kit: Any, registry: Any, puller: Any) -> None:
    image = kit.small("a")
    registry.add(image, "1")
    registry.manifests["1"] = b" " * ((4 << 20) + 1)
    await refused(puller(), "image_bad", "larger than 4 MiB")
    registry.manifests["1"] = replaced(image.document, config={"digest": "md5:0", "size": 1})
    await refused(puller(), "image_bad", "only sha256")
    registry.manifests["1"] = replaced(image.document, schemaVersion=1)
    await refused(puller(), "image_bad", "schema 1")
    huge = {**image.document["layers"][0], "size": 1 << 40}
    registry.manifests["1"] = replaced(image.document, layers=[huge])
    await refused(puller(), "image_too_large")


async def test_indexes_that_lead_in_circles(kit: Any, registry: Any, puller: Any) -> None:
    platform = {"architecture": host_architecture(), "os": "linux"}
    inner = kit.index(kit.descriptor(b"x", kit.manifest_type, platform=platform))
    for _ in range(4):
        registry.manifests[sha256_digest(inner)] = inner
        inner = kit.index(kit.descriptor(inner, kit.manifest_type, platform=platform))
    registry.manifests["1"] = inner
    await refused(puller(), "image_bad", "nested too deeply")


async def test_another_platform(kit: Any, registry: Any, puller: Any) -> None:
    registry.add(kit.image([kit.layer({"n": "a"})], architecture="s390x"), "1")
    await refused(puller(), "image_wrong_platform", "linux/s390x")


@pytest.mark.parametrize("method", ["gzip", "zstd", "none"])
async def test_bombs_and_ordinary_compression(kit: Any, registry: Any, puller: Any, method: str) -> None:
    compress = {"gzip": gzip.compress, "zstd": zstandard.ZstdCompressor().compress, "none": None}[method]
    registry.add(kit.image([kit.layer({"n": "zeros", "d": bytes(5 << 20)})], compress=compress), "1")
    small = StoreLimits(max_image_bytes=6 << 20)
    assert await puller(limits=small)
    padded = kit.layer({"n": "a"}) + bytes(80 << 20)
    for layer in (kit.layer({"n": "zeros", "d": bytes(50 << 20)}), padded):
        registry.add(kit.image([layer], compress=compress), "1")
        await refused(puller(limits=small), "image_too_large")


async def test_damaged_compression(kit: Any, registry: Any, puller: Any) -> None:
    for broken in (
        lambda data: gzip.compress(data)[:-9],
        lambda data: gzip.compress(data) + b"junk",
        lambda data: b"\x1f\x8b" + bytes(20),
        lambda data: b"\x28\xb5\x2f\xfd" + b"\xff" * 20,
        lambda data: b"BZh9",
    ):
        registry.add(kit.image([kit.layer({"n": "a"})], compress=broken), "1")
        with pytest.raises(ShemError) as raised:
            await puller()
        assert raised.value.code in ("image_bad", "image_digest_mismatch")


async def test_a_trickle_is_given_up(registry: Any) -> None:
    """The deadline of an exchange counts, not that something arrives now and then."""
    limit = _Deadline("host", 0.05)
    with pytest.raises(RegistryUnreachable, match="too slow"):
        async with limit.watched():
            await asyncio.Event().wait()


async def test_unsupported_names(registry: Any) -> None:
    async with Registries(RegistryConfig(default_registry="registry.example")) as registries:
        located = registries.located(RegistryImage(repository="library/python", tag="3"))
        assert located.host == "registry.example"
        assert located.repository == "library/python"

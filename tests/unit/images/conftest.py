"""Layers, images and archives, made to order; and a registry that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from shem.cogs.ociarchive import write_layout
from shem.cogs.ociformat import host_architecture, sha256_digest

LAYER = "application/vnd.oci.image.layer.v1.tar"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

Entry = dict[str, Any]


def make_layer(*entries: Entry, fmt: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar. Entries: ``n`` name, ``t`` type, ``l`` link, ``m`` mode, ``uid``, ``gid``, ``d`` data, ``p`` pax headers."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=fmt) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry["n"])
            info.type = entry.get("t", tarfile.REGTYPE)
            info.linkname = entry.get("l", "")
            info.mode = entry.get("m", 0o755 if info.type == tarfile.DIRTYPE else 0o644)
            info.uid, info.gid = entry.get("uid", 0), entry.get("gid", 0)
            info.mtime = entry.get("mtime", 1_700_000_000)
            info.devmajor, info.devminor = 8, 0
            data = entry.get("d", b"")
            info.size = len(data) if info.type == tarfile.REGTYPE else 0
            info.pax_headers = entry.get("p", {})
            tar.addfile(info, io.BytesIO(data) if info.size else None)
    return out.getvalue()


@dataclass
class Image:
    """An image as blobs."""

    layers: list[bytes]
    config: dict[str, Any] = field(default_factory=dict)
    compress: Callable[[bytes], bytes] | None = None
    diff_ids: list[str] | None = None
    architecture: str = field(default_factory=host_architecture)

    def __post_init__(self) -> None:
        packed = [self.compress(each) if self.compress else each for each in self.layers]
        suffix = "+gzip" if self.compress else ""
        document = {
            "architecture": self.architecture,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids or [sha256_digest(each) for each in self.layers]},
            "config": self.config,
        }
        conf = json.dumps(document).encode()
        self.packed = packed
        self.config_raw = conf
        self.document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(conf, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(each, LAYER + suffix) for each in packed],
        }
        self.manifest = json.dumps(self.document).encode()
        self.digest = sha256_digest(self.manifest)
        self.blobs = {sha256_digest(each): each for each in [*packed, conf]}

    def layout(self, directory: Path, name: str = "latest") -> Path:
        """As an OCI layout directory."""
        directory.mkdir()
        files = []
        for number, each in enumerate(self.packed):
            (directory / f"{number}.part").write_bytes(each)
            files.append((directory / f"{number}.part", self.document["layers"][number]["mediaType"]))
        write_layout(directory, self.config_raw, files, name=name)
        return directory


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256_digest(data), "size": len(data), **more}


def index_of(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}).encode()


Twist = Callable[[web.Request], "web.StreamResponse | None"]


class FakeRegistry:
    """A registry on the loopback interface. ``twist`` may answer a request in its place."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.token: str | None = None
        self.login: str | None = None
        self.basic = False
        self.ranges = True
        self.cut: dict[str, int] = {}
        """By digest: break the connection after so many bytes, once."""
        self.twist: Callable[[web.Request], web.StreamResponse | None] = lambda _: None
        self.gate: asyncio.Event | None = None
        self.gated = ""
        """By digest: the blob that waits for the gate."""
        self.host = ""

    def add(self, image: Image, *names: str) -> str:
        """Have ``image``, under its digest and ``names``. Returns the digest."""
        self.blobs.update(image.blobs)
        for name in (image.digest, *names):
            self.manifests[name] = image.manifest
        return image.digest

    def blob_requests(self) -> list[str]:
        return [path for path in self.requests if "/blobs/" in path]

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request.path)
        self.headers.append(dict(request.headers))
        if (answer := self.twist(request)) is not None:
            return answer
        if request.path == "/token":
            if self.login is not None and request.headers.get("Authorization") != self.login:
                return web.Response(status=401)
            return web.json_response({"token": self.token})
        if (refusal := self.refusal(request)) is not None:
            return refusal
        kind, _, reference = request.path.removeprefix("/v2/x/y/").partition("/")
        if kind == "manifests" and reference in self.manifests:
            return web.Response(body=self.manifests[reference], content_type=MANIFEST)
        if kind == "blobs" and reference in self.blobs:
            if self.gate is not None and reference == self.gated:
                await self.gate.wait()
            return await self.blob(request, reference)
        return web.Response(status=404)

    def refusal(self, request: web.Request) -> web.Response | None:
        sent = request.headers.get("Authorization", "")
        if self.basic:
            if sent == self.login:
                return None
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="here"'})
        if self.token is None or sent == f"Bearer {self.token}":
            return None
        realm = f'Bearer realm="http://{self.host}/token",service="s",scope="repository:x/y:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": realm})

    async def blob(self, request: web.Request, digest: str) -> web.StreamResponse:
        data = self.blobs[digest]
        start = 0
        asked = request.headers.get("Range", "")
        headers = {"Content-Type": "application/octet-stream"}
        if asked and self.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        response.content_length = len(data) - start
        await response.prepare(request)
        if (cut := self.cut.pop(digest, None)) is not None:
            await response.write(data[start : start + cut])
            if request.transport is not None:
                request.transport.close()
            return response
        await response.write(data[start:])
        return response


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    """A running registry; ``host`` is its address."""
    fake = FakeRegistry()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", fake.serve)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        if fake.gate is not None:
            fake.gate.set()
        with contextlib.suppress(TimeoutError):
            await runner.cleanup()


def small_image(*names: str, compress: bool = True, **config: Any) -> Image:
    """An image with a layer for each name, which holds a file of that name."""
    layers = [make_layer({"n": name, "d": name.encode() * 1000}) for name in names or ("hello",)]
    return Image(layers, config, (lambda data: gzip.compress(data, mtime=0)) if compress else None)


@dataclass
class Kit:
    """What tests build with (a fixture, because test modules cannot import one another)."""

    layer = staticmethod(make_layer)
    image = Image
    small = staticmethod(small_image)
    index = staticmethod(index_of)
    descriptor = staticmethod(descriptor)
    manifest_type = MANIFEST


@pytest.fixture
def kit() -> Kit:
    return Kit()


def names(tree: Path) -> Iterable[str]:
    return sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[[str, str], None]:
    """Runs tests of a module (an expression as for -k) again as somebody without any privilege: in a user namespace
    without mapped ids, where our files stay ours and all else is refused."""

    def run(module: str, tests: str) -> None:
        chosen = ["-k", tests, "-m", "not root and not slow", "--basetemp", str(tmp_path / "nobody")]
        done = subprocess.run(
            ["unshare", "--user", sys.executable, "-m", "pytest", module, *chosen],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert " passed" in done.stdout

    return run

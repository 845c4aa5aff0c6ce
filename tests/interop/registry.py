"""Golem's image registries as its clients know them, on loopback: look-ups by tag and by hash, and the images themselves.

It answers on three doors: plain HTTP on a free port (for clients that can be told where), and, on an address of its own in
127/8, the two places that clients have written into them: port 443 with a throw-away authority, and port 8000.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ("registry.golem.network", "girepo.dev.golem.network")


@dataclass(frozen=True)
class Image:
    """A GVMI file that the registry has."""

    path: Path
    sha3: str
    tag: str


@dataclass
class Registry:
    """Where it answers, and what it was asked."""

    images: list[Image]
    scratch: Path
    url: str = ""
    hosts: dict[str, str] = field(default_factory=dict)
    """The names that clients have written into them, and where they lead for a redirected process."""
    authority: Path = Path()
    """The certificate that a client has to trust."""
    asked: list[str] = field(default_factory=list)
    blocked: str | None = None
    """Why the fixed ports could not be taken."""
    _runner: web.AppRunner | None = None

    def image_url(self, image: Image) -> str:
        """Where an image is downloaded from."""
        return f"{self.url}/images/{image.sha3}.gvmi"

    async def start(self) -> None:
        """Open the doors."""
        app = web.Application()
        app.router.add_get("/v1/image/info", self._info)
        app.router.add_get("/image.{sha3:[0-9a-f]+}.link", self._link)
        app.router.add_get("/images/{sha3:[0-9a-f]+}.gvmi", self._image)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        own = f"127.77.{os.getpid() // 250 % 250 + 1}.{os.getpid() % 250 + 1}"
        context = self._certify()
        try:
            await web.TCPSite(self._runner, own, 443, ssl_context=context).start()
            await web.TCPSite(self._runner, own, 8000).start()
        except OSError as error:
            self.blocked = f"ports 443 and 8000 of {own} cannot be taken: {error.strerror}"
        self.hosts = dict.fromkeys(NAMES, own)

    async def stop(self) -> None:
        """Close them."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _find(self, **wanted: str) -> Image | None:
        return next((i for i in self.images if all(getattr(i, key) == value for key, value in wanted.items())), None)

    async def _info(self, request: web.Request) -> web.Response:
        self.asked.append(str(request.rel_url))
        wanted = {
            "sha3" if key == "hash" else key: request.query[key] for key in ("hash", "tag") if key in request.query
        }
        image = self._find(**wanted) if wanted else None
        if image is None:
            return web.json_response({"message": "no such image"}, status=404)
        url = self.image_url(image)
        return web.json_response({"http": url, "https": url, "sha3": image.sha3, "size": image.path.stat().st_size})

    async def _link(self, request: web.Request) -> web.Response:
        self.asked.append(str(request.rel_url))
        image = self._find(sha3=request.match_info["sha3"])
        return web.Response(text=self.image_url(image)) if image else web.Response(status=404)

    async def _image(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.rel_url}")
        image = self._find(sha3=request.match_info["sha3"])
        return web.FileResponse(image.path) if image else web.Response(status=404)

    def _certify(self) -> ssl.SSLContext:
        """An authority for this run, and a certificate of it for the registry's names."""
        now = datetime.datetime.now(datetime.UTC)
        root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        life = datetime.timedelta(days=2)
        builder = x509.CertificateBuilder().not_valid_before(now - life).not_valid_after(now + life).issuer_name(root)
        authority = (
            builder.subject_name(root)
            .public_key(root_key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(root_key, hashes.SHA256())
        )
        names = [*map(x509.DNSName, NAMES), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        own = (
            builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAMES[0])]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(root_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        self.authority = self.scratch / "authority.pem"
        self.authority.write_bytes(authority.public_bytes(pem))
        chain = self.scratch / "registry.pem"
        plain = serialization.PrivateFormat.PKCS8
        chain.write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()) + own.public_bytes(pem))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chain)
        return context

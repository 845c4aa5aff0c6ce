"""A whole network on this machine: a chain with a test token, a requestor node, and providers (a node and an agent each).

Every part is a process of its own, as in real life, and talks to the others over real QUIC on loopback. Users test their
programs against it; our own tests kill and restart its parts.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

from shem.cogs.locks import try_lock
from shem.cogs.process import Child, start_child
from shem.errors import Conflict, Misconfigured, ShemError
from shem.testing.devchain import places

log = logging.getLogger(__name__)

WEI_EACH = 10**20
TOKENS_REQUESTOR = 1000 * 10**18
NETWORK = "devnet"
ALIAS = "holesky"
"""Golem's clients pay on this network unless they are told otherwise."""
LOCK_FILE = "lock"
"""In the network's directory; held for as long as the network is."""


class DevnetFailed(ShemError):
    """The network on this machine did not come up."""

    default_code = "devnet_failed"


class DevnetRunning(Conflict):
    """Another network lives in this directory."""

    default_code = "devnet_running"


@dataclass
class DevNode:
    """One node and, for providers, its agent."""

    name: str
    data_dir: Path
    app_key: str = field(default_factory=lambda: secrets.token_hex(16), repr=False)
    api_url: str = ""
    node_id: str = ""
    address: str = ""
    node: Child | None = None
    agent: Child | None = None

    def as_dict(self) -> dict[str, str]:
        """What programs need to use it."""
        return {"api_url": self.api_url, "app_key": self.app_key, "node_id": self.node_id}


class Devnet:
    """An async context manager. ``root`` keeps everybody's data; a second run on the same root starts faster, and has to wait
    until the first has ended. A start that fails leaves no process behind.

    ``providers``: how many. ``chain``: without one, only the free platform works. ``driver``: the sandbox technology
    (``auto``, ``bwrap``, ``oci``). ``images``: where providers unpack images (shared, as if they had pulled before).
    ``price``: per provider, in tokens: ``start``, ``hourly`` (for the time) and ``cpu_hourly``. ``channels``: whether nodes
    have a vault, and so can pay, and take pay, by payment channels.
    """

    def __init__(
        self,
        root: Path,
        *,
        providers: int = 3,
        chain: bool = True,
        driver: str = "auto",
        images: Path | None = None,
        prices: dict[str, str] | None = None,
        provider_options: tuple[str, ...] = (),
        channels: bool = True,
    ) -> None:
        self.root = root
        self.chain_url = ""
        self.chain_id = places.CHAIN_ID
        self.token = places.TOKEN_ADDRESS
        self.requestor = DevNode("requestor", root / "requestor")
        self.providers = [DevNode(f"provider-{n}", root / f"provider-{n}") for n in range(1, providers + 1)]
        self._with_chain = chain
        self._vault = places.VAULT_ADDRESS if channels else ""
        self._driver = driver
        self._images = images or root / "images"
        self._prices = prices if prices is not None else {"start": "0.0001", "hourly": "0.6", "cpu_hourly": "1.2"}
        self._provider_options = provider_options
        self._unlock: Callable[[], None] | None = None
        self.chain: Child | None = None

    def reserve(self) -> None:
        """Take the directory, until :meth:`stop`; entering does it by itself.

        Raises :class:`DevnetRunning`, and :class:`~shem.errors.Misconfigured` when the directory cannot be used.
        """
        if self._unlock is not None:
            return
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._unlock = try_lock(self.root / LOCK_FILE)
        except OSError as error:
            raise self._plain(error) from None
        if self._unlock is None:
            raise DevnetRunning(
                f"another network runs in {self.root}", hint="wait until it has ended, or choose another directory"
            )

    async def __aenter__(self) -> Devnet:
        """Raises :class:`DevnetRunning`, :class:`~shem.errors.Misconfigured`, :class:`DevnetFailed`, or what a part died of."""
        self.reserve()
        try:
            await self._start()
        except BaseException as error:
            for failure in await self._end():
                log.warning("not ended well after a failed start: %r", failure)
            if isinstance(error, Exception):
                raise self._plain(error) from None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._with_chain:
                # its address is settled beforehand, so that nodes need not wait for it: they take a chain as it comes
                self.chain_url = f"http://127.0.0.1:{_free_port()}"
                group.create_task(self.start_chain())
            group.create_task(self.start_node(self.requestor))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fund([self.requestor]))
            for provider in self.providers:
                group.create_task(self._start_provider(provider))

    async def stop(self) -> None:
        """Agents first (they end their agreements), then nodes, then the chain, then the directory is free.

        Every part is told, whatever becomes of the others; then the first failure is raised. Cancelled, it kills.
        """
        if failures := await self._end():
            raise failures[0]

    async def _end(self) -> list[BaseException]:
        agents = [p.agent for p in self.providers if p.agent]
        nodes = [n.node for n in (*self.providers, self.requestor) if n.node]
        stages = (agents, nodes, [self.chain] if self.chain else [])
        failures: list[BaseException] = []
        try:
            for stage in stages:
                ended = await asyncio.gather(*(child.stop() for child in stage), return_exceptions=True)
                failures += [result for result in ended if isinstance(result, BaseException)]
        finally:
            for child in (child for stage in stages for child in stage):
                child.kill()  # nothing to those that have ended
            if self._unlock is not None:
                self._unlock()
                self._unlock = None
        return failures

    def _plain(self, error: Exception) -> Exception:
        """What went wrong, out of the groups that starting things at once wraps it in, in words."""
        leaves = _leaves(error)
        if said := next((leaf for leaf in leaves if isinstance(leaf, ShemError)), None):
            return said
        refused = next((leaf for leaf in leaves if isinstance(leaf, OSError)), None)
        if refused is None:
            return error
        reason = refused.strerror or str(refused) or type(refused).__name__
        if refused.filename is not None and Path(os.fsdecode(refused.filename)).is_relative_to(self.root):
            return Misconfigured(
                f"{os.fsdecode(refused.filename)} cannot be used for the network's data: {reason}",
                code="data_dir_unusable",
                hint="choose another directory, or make this one yours",
            )
        return DevnetFailed(f"the network did not come up: {reason}")

    def as_dict(self) -> dict[str, Any]:
        """The line that ``shem devnet run --json`` prints."""
        return {
            "requestor": self.requestor.as_dict(),
            "providers": [p.as_dict() for p in self.providers],
            "chain": {"rpc_url": self.chain_url, "chain_id": self.chain_id, "token": self.token}
            if self.chain
            else None,
        }

    @property
    def env(self) -> dict[str, str]:
        """The variables that point a requestor program at this network."""
        return {"YAGNA_API_URL": self.requestor.api_url, "YAGNA_APPKEY": self.requestor.app_key}

    # -- parts; tests stop and start them one by one

    async def start_chain(self) -> None:
        """Start the chain, or start it again on the same port with what it has stored."""
        port = self.chain_url.rsplit(":", 1)[-1].strip("/") if self.chain_url else "0"
        argv = [sys.executable, "-m", "shem.testing.devchain", "--port", port, "--data", str(self.root / "chain")]
        self.chain, line = await start_child("chain", argv, log_path=self.root / "chain.log")
        told = json.loads(line)
        self.chain_url, self.chain_id, self.token = told["rpc_url"], told["chain_id"], told["token"]

    async def start_node(self, node: DevNode) -> None:
        """Start a node, or start it again where it was (same ports, same key, same data)."""
        node.data_dir.mkdir(parents=True, exist_ok=True)
        self._configure(node)
        api_port = node.api_url.rsplit(":", 1)[-1] if node.api_url else "0"
        argv = [sys.executable, "-m", "shem", "node", "run", "--json", "--data-dir", str(node.data_dir)]
        argv += ["--api-port", api_port, "--peer-bind", self._peer_bind(node), "--name", node.name]
        if node is not self.requestor:
            argv += ["--bootstrap", self.requestor.address]
        env = _environment() | {"YAGNA_AUTOCONF_APPKEY": node.app_key}
        node.node, line = await start_child(f"{node.name} (node)", argv, log_path=node.data_dir / "node.log", env=env)
        told = json.loads(line)
        node.api_url, node.node_id, node.address = told["api_url"], told["node_id"], told["address"]

    async def start_agent(self, node: DevNode) -> None:
        """Start a provider's agent."""
        argv = [sys.executable, "-m", "shem", "provider", "run", "--json", "--data-dir", str(node.data_dir / "agent")]
        argv += [
            "--name",
            node.name,
            "--driver",
            self._driver,
            "--images",
            str(self._images),
            "--share",
            str(len(self.providers)),
            "--web-private-addresses",
        ]
        for option, value in self._prices.items():
            argv += [f"--price-{option.replace('_', '-')}", value]
        argv += self._provider_options
        env = _environment() | {"YAGNA_API_URL": node.api_url, "YAGNA_APPKEY": node.app_key}
        node.agent, _ = await start_child(f"{node.name} (agent)", argv, log_path=node.data_dir / "agent.log", env=env)

    async def _start_provider(self, node: DevNode) -> None:
        await self.start_node(node)
        await self._fund([node], tokens=0)
        await self.start_agent(node)

    def _peer_bind(self, node: DevNode) -> str:
        if not node.address:
            return "127.0.0.1:0"
        place = node.address.split("@", 1)[1].split(",")
        return next(p for p in place if p.startswith("127.0.0.1:"))

    def _configure(self, node: DevNode) -> None:
        if not self._with_chain:
            return
        (node.data_dir / "config.toml").write_text(
            f"[networks.{NETWORK}]\nchain_id = {self.chain_id}\nrpc_urls = [{self.chain_url!r}]\n"
            f'token = "{self.token}"\ntoken_symbol = "tGLM"\naliases = ["{ALIAS}"]\nvault = "{self._vault}"\n'
            f'multi_transfer = "{places.MULTI_TRANSFER_ADDRESS}"\n'
        )

    async def _fund(self, nodes: list[DevNode], tokens: int = TOKENS_REQUESTOR) -> None:
        if not self._with_chain:
            return
        for node in nodes:
            await self.rpc("shem_fund", node.node_id, hex(WEI_EACH), hex(tokens))

    async def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call to the chain."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        try:
            async with aiohttp.ClientSession() as session, session.post(self.chain_url, json=body) as answer:
                told = await answer.json()
        except aiohttp.ClientError as error:
            raise DevnetFailed(f"the chain at {self.chain_url} does not answer: {error}") from error
        if "error" in told:
            raise DevnetFailed(f"the chain refused {method}: {told['error'].get('message')}")
        return told.get("result")


def _environment() -> dict[str, str]:
    """Without what this user has set for a node of their own: its address, its identity."""
    foreign = ("YAGNA_", "YA_NET_", "SHEM_DATA_DIR", "SHEM_PEER_BIND", "MARKET_", "MAX_REST_", "DEFAULT_SUBSCRIPTION_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


def wipe(root: Path) -> None:
    """Forget a devnet's money and agreements, but keep its unpacked images. Only for who has reserved it."""
    for entry in root.iterdir() if root.exists() else ():
        if entry.name not in {"images", LOCK_FILE}:
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink()

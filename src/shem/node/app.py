"""One node, put together: which parts there are, in which order they start, and that they stop in the other.

Services start before the peer network opens, so that no early message finds nobody home; REST opens last, so that whoever gets
an answer gets it from a whole node. On the way out REST closes first, then services, then peers, then the database.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from aiohttp import web

from shem.cogs.clock import SystemClock
from shem.cogs.filelimit import raise_file_limit
from shem.cogs.locks import try_lock
from shem.cogs.places import KEY_FILE, URL_FILE, owners_key
from shem.errors import Misconfigured
from shem.node.activity.service import Activities
from shem.node.config import NodeConfig
from shem.node.db import Database
from shem.node.files.readers import Readers
from shem.node.files.service import Files
from shem.node.files.service import Limits as FileLimits
from shem.node.gsb.gftp import GftpServices
from shem.node.gsb.service import Bus
from shem.node.identity.appkeys import AUTOCONFIGURED, LOCAL, AppKeys
from shem.node.identity.keyring import Keyring
from shem.node.identity.keystore import read_passphrase
from shem.node.identity.sealing import Sealer
from shem.node.market.config import MarketConfig
from shem.node.market.service import Market
from shem.node.payment.drivers.base import PaymentDriver
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.free import FreeDriver
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.payouts import payouts
from shem.node.payment.service import PaymentConfig, Payments
from shem.node.peer.addresses import BadAddress, parse_address
from shem.node.peer.iroh import iroh_transport
from shem.node.peer.network import PeerNetwork
from shem.node.peer.transport import TransportFactory
from shem.node.rest import activity as rest_activity
from shem.node.rest import admin as rest_admin
from shem.node.rest import cover as rest_cover
from shem.node.rest import exeunit as rest_exeunit
from shem.node.rest import files as rest_files
from shem.node.rest import gsb as rest_gsb
from shem.node.rest import identity as rest_identity
from shem.node.rest import market as rest_market
from shem.node.rest import net as rest_net
from shem.node.rest import payment as rest_payment
from shem.node.rest import status as rest_status
from shem.node.rest.cors import Cors
from shem.node.rest.server import build_app, http_log
from shem.node.vpn.service import Networks
from shem.version import VERSION
from shem.wire.net import NetStatus

log = logging.getLogger(__name__)

RECURSION_LIMIT = 1000
COLLECT = (10_000, 20, 50)
"""For :func:`gc.set_threshold`."""
SHUTDOWN_S = 3.0
"""How long open REST calls (long polls, mostly) may take to end when the node stops."""


class Node:
    """A running node. An async context manager."""

    def __init__(
        self, config: NodeConfig, *, transport: TransportFactory | None = None, passphrase: str | None = None
    ) -> None:
        """``passphrase``: opens the identity's key, where it has one of its owner's."""
        self.config = config
        self._passphrase = passphrase
        self._transport = transport or iroh_transport(config.peer_bind)
        self._stack = AsyncExitStack()
        self.api_url = ""
        self.stop = asyncio.Event()
        """Set when the owner asks this node to end; whoever runs it waits for that."""
        self._errors = 0

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        config, clock = self.config, SystemClock()
        try:
            config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._stack.callback(_lock(config.data_dir / "lock"))
        except OSError as error:
            raise Misconfigured(
                f"the data directory {config.data_dir} cannot be used: {error.strerror}",
                code="data_dir_unusable",
                hint="choose another --data-dir, or make this one yours",
            ) from error
        self.db = Database(config.data_dir / "node.db")
        self._stack.callback(self.db.close)
        secret = bytes.fromhex(config.id_secret.removeprefix("0x")) if config.id_secret else None
        self.keyring = Keyring.open(config.data_dir, self._passphrase or _passphrase(config), secret)
        self.identity = self.keyring.identity
        self.keys = AppKeys(self.db, Sealer(lambda: self.identity.derive("app keys 1")))
        self._leave_key(config.data_dir)
        if config.app_key:
            self.keys.create(AUTOCONFIGURED, self.identity.node_id, config.app_key)

        self.peers = PeerNetwork(self.identity, self._transport, clock=clock)
        each = config.max_offers_each
        limits = MarketConfig(
            max_subscriptions=each,
            max_offers_per_issuer=each,
            subscription_ttl_s=config.subscription_ttl_s,
            default_events=min(config.market_events_default, config.market_events_max),
            most_events=config.market_events_max,
        )
        self.market = Market(self.db, self.peers, {self.identity.node_id: self.identity}, clock, limits)
        self.bus = Bus()
        spool = FileLimits(total_bytes=config.max_spool_bytes)
        self.files = Files(
            self.db,
            self.peers,
            config.data_dir / "files",
            clock,
            spool,
            may_read=Readers(self.market).may_read,
            live=GftpServices(self.bus),
        )
        self.activities = Activities(self.db, self.peers, self.market, clock, admit=self._admit)
        self.networks = Networks(self.db, clock)
        drivers: list[PaymentDriver] = [FreeDriver()]
        networks = networks_from(config.networks)
        if networks:
            erc20 = EvmDriver(self.db, networks, [self.identity], clock=clock)
            drivers.insert(0, erc20)
            if erc20.vaults:
                drivers.insert(1, ChannelDriver(erc20))
        paid_at = PaymentConfig(payouts=payouts(networks, config.payout, config.networks))
        self.payments = Payments(
            self.db, self.peers, self.identity, self.market, self.activities, drivers, clock, paid_at
        )
        self.payments.sign_vouchers_with(self.keyring.voucher_key)
        self.keyring.on_voucher_key(self.payments.sign_vouchers_with)
        # Stops run in the reverse order of these lines. Peers open last and close after the services, which still have
        # something to say to them; closing what never opened does nothing, as does stopping what never started.
        self._stack.push_async_exit(self.peers)
        self._stack.callback(self.files.stop)
        self.files.start()
        for service in (self.market, self.activities, self.payments):
            self._stack.push_async_callback(service.stop)
            await service.start()
        self.identity.on_unlocked(self.peers.announce)
        self.identity.on_unlocked(self.market.unlocked)
        self.identity.on_unlocked(self.payments.unlocked)
        await self.peers.__aenter__()
        for address in config.bootstrap:
            self.peers.add_bootstrap(address)
        await self._open_rest()

    async def _admit(self, owner: str, agreement_id: str) -> None:
        """No work starts on an agreement that money must be reserved for and is not."""
        await self.payments.admit(owner, agreement_id)

    def _leave_key(self, data_dir: Path) -> None:
        """A key for the owner of this node, where programs look for it. Without its file it is made anew."""
        left = owners_key(data_dir)
        if left and self.keys.lookup(left) == (self.identity.node_id, LOCAL):
            return
        key = self.keys.create(LOCAL, self.identity.node_id, secrets.token_hex(16))
        _write_private(data_dir / KEY_FILE, key + "\n")

    async def _open_rest(self) -> None:
        routes = [
            *rest_status.routes(self.facts),
            *rest_market.routes(self.market),
            *rest_activity.routes(self.activities),
            *rest_exeunit.routes(self.activities),
            *rest_files.routes(self.files),
            *rest_gsb.routes(self.bus),
            *rest_payment.routes(self.payments),
            *rest_cover.routes(self.payments.channels.gate),
            *rest_net.routes(self.networks, self.net_status),
            *rest_identity.routes(self.keyring, self.payments),
            *rest_admin.routes(self.keys, self.payments, stop=self.stop.set, counters=self.counters),
        ]
        self.rest = build_app(
            routes,
            keys=self.keys.lookup,
            open_paths=("/version/get", *rest_admin.OPEN_PATHS),
            count_error=self._count_error,
            max_poll_s=self.config.max_rest_timeout_s,
        )
        self.rest.on_shutdown.append(self._hang_up)
        Cors(self.config.api_allow_origin, self.keys, self.config.api_max_age_s).install(self.rest)
        runner = web.AppRunner(
            self.rest,
            access_log=None,
            logger=http_log,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_S,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, self.config.api_host, self.config.api_port)
        try:
            await site.start()
        except OSError as error:
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror
            raise Misconfigured(
                f"REST cannot listen on {self.config.api_host}:{self.config.api_port}: {reason}",
                code="cannot_listen",
                hint="another node may run there already; choose another --api-port"
                if number == errno.EADDRINUSE
                else "choose another --api-host or --api-port",
            ) from error
        host, port = runner.addresses[0][:2]
        self.api_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        place = self.config.data_dir / URL_FILE
        _write_private(place, self.api_url + "\n")
        self._stack.callback(place.unlink, missing_ok=True)

    async def _hang_up(self, _app: web.Application) -> None:
        """Sockets of programs would keep REST open until its patience ends."""
        self.bus.stop()

    def facts(self) -> dict[str, Any]:
        """What this node tells of itself."""
        return {
            "nodeId": self.identity.node_id,
            "name": self.config.name,
            "version": VERSION,
            "address": self.peers.address(),
            "peers": self.peers.connected(),
        }

    def _count_error(self, code: str) -> None:
        self._errors += 1

    def counters(self) -> dict[str, float]:
        """Numbers for whoever watches this node."""
        return {
            "shem_rest_errors_total": self._errors,
            "shem_peers_connected": len(self.peers.connected()),
            "shem_peers_known": self.peers.known(),
            "shem_payment_problems": len(self.payments.problems()),
            **{f"shem_peer_{name}_total": float(count) for name, count in self.peers.counters.items()},
        }

    def net_status(self) -> NetStatus:
        """How this node is connected to others."""
        # <endpoint id>@ip:port,ip:port
        places = self.peers.address().partition("@")[2].split(",")
        return NetStatus(
            node_id=self.identity.node_id,
            listen_ip=places[0] or None,
            public_ip=next((place for place in places if _is_public(place)), None),
            sessions=len(self.peers.connected()),
        )


async def run_node(config: NodeConfig, ready: Callable[[dict[str, str]], None], passphrase: str | None = None) -> None:
    """Run until SIGINT or SIGTERM. ``ready`` is told once where the node is."""
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    raise_file_limit()
    loop = asyncio.get_running_loop()
    node = Node(config, passphrase=passphrase)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, node.stop.set)
    async with node:
        ready({"api_url": node.api_url, "node_id": node.identity.node_id, "address": node.peers.address()})
        log.info("node %s serves %s", node.identity.node_id, node.api_url)
        await node.stop.wait()
        log.info("stopping")


def main(work: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where it exists: twice the small calls per second."""
    # Peers send nested data; a library that raised this limit would turn their nesting from an error into a crash.
    sys.setrecursionlimit(RECURSION_LIMIT)
    # The collector would look for cycles every 700 new objects, and through all that a node remembers every 70,000.
    gc.set_threshold(*COLLECT)
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


def _passphrase(config: NodeConfig) -> str | None:
    return None if config.passphrase_file is None else read_passphrase(config.passphrase_file)


def _is_public(place: str) -> bool:
    try:
        return ipaddress.ip_address(parse_address(place)[0]).is_global
    except BadAddress:
        return False


def _write_private(path: Path, text: str) -> None:
    """For the owner's eyes only (0600), in place of what stood there; a reader sees the old or the new, whole."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _lock(path: Path) -> Callable[[], None]:
    """One process per data directory: two would sign with one key and pay from one account."""
    unlock = try_lock(path)
    if unlock is None:
        raise Misconfigured(
            f"another node runs on {path.parent}", code="data_dir_in_use", hint="stop it, or choose another --data-dir"
        )
    return unlock

"""The chain as a service: when blocks are made, and the HTTP door.

A transaction is mined at once, together with whatever else arrives within :data:`GATHER_S`. After it come empty blocks,
one each ``block_time_s``, until it is final; then the chain is still. An idle chain costs nothing, and finality is
never more than ``FINALITY`` block times away. With automine off, blocks come only from ``shem_mine``.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec
from aiohttp import web

from shem.cogs.decoding import DECODE_ERRORS
from shem.cogs.tasks import TaskScope
from shem.testing.devchain import places
from shem.testing.devchain.chain import Chain, address_bytes
from shem.testing.devchain.evm import Account
from shem.testing.devchain.rpc import NOT_JSON, Rpc

log = logging.getLogger(__name__)

BLOCK_TIME_S = 0.25
GATHER_S = 0.002
"""A burst sent at once lands in one block; a lone transaction hardly notices."""
MAX_REQUEST_BYTES = 4 << 20
DECODE_RECURSION = 1000


class DevChain:
    """Async context manager: a running chain on a loopback port.

    ``chain`` is open to tests that want to look or to break things without HTTP.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        directory: Path | None = None,
        block_time_s: float = BLOCK_TIME_S,
        chain_id: int = places.CHAIN_ID,
        automine: bool = True,
        others: Mapping[str, Account] | None = None,
    ) -> None:
        """``port`` 0 takes a free one; without a ``directory`` the chain is forgotten at the end. ``others``: see
        :class:`~shem.testing.devchain.chain.Chain`."""
        self._port = port
        self._directory = directory
        self._block_time_s = block_time_s
        self.chain_id = chain_id
        self._automine = automine
        self._others = others
        self._wake = asyncio.Event()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._scope = TaskScope("devchain")
        self._runner: web.AppRunner | None = None
        self.chain: Chain
        self.rpc: Rpc

    @property
    def rpc_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> DevChain:
        """Raises ``OSError`` when the port is taken, ``Misconfigured`` for an unusable directory."""
        if self._directory is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="shem-devchain-")
        directory = self._directory or Path(self._temporary.name if self._temporary else "")
        directory.mkdir(parents=True, exist_ok=True)
        self.chain = Chain(directory, chain_id=self.chain_id, others=self._others)
        self.rpc = Rpc(self.chain, changed=self._wake.set, automine=self._switch)
        app = web.Application(client_max_size=MAX_REQUEST_BYTES)
        app.router.add_post("/", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        # Loopback only: the faucet's key is public and the controls have no lock.
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self._scope.start(self._mine(), "miner")
        self._wake.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._scope.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self.chain.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def fund(self, address: str, *, wei: int = 0, token_units: int = 0) -> None:
        """Give coins and tokens from the faucet; they are there when this returns."""
        self.chain.fund(address_bytes(address), wei, token_units)
        self._wake.set()

    def _switch(self, on: bool) -> None:
        self._automine = on
        self._wake.set()

    async def _serve(self, request: web.Request) -> web.Response:
        try:
            asked = _decode(await request.read())
        except DECODE_ERRORS:
            answer: object = {
                "jsonrpc": "2.0",
                "id": None,
                "error": {"code": NOT_JSON, "message": "not JSON"},
            }
        else:
            answer = self.rpc.answer(asked)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")

    async def _mine(self) -> None:
        """The only place where blocks are made without being asked for."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            if self._automine and self.chain.executable(1):
                await asyncio.sleep(GATHER_S)
                self.chain.mine()
                last = loop.time()
                await asyncio.sleep(0)  # questions are answered between two blocks
                continue
            self._wake.clear()
            deepening = self._automine and self.chain.unfinished
            try:
                async with asyncio.timeout_at(last + self._block_time_s if deepening else None):
                    await self._wake.wait()
            except TimeoutError:
                self.chain.mine(limit=0)
                last = loop.time()


def _decode(body: bytes) -> object:
    """py-evm lets recursion go deeper than the C stack reaches, where brackets without end would kill the process:
    while a caller's bytes are decoded, Python's own limit holds."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(min(limit, DECODE_RECURSION))
    try:
        decoded: object = msgspec.json.decode(body)
    finally:
        sys.setrecursionlimit(limit)
    return decoded

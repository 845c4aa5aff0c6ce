"""``python -m shem.testing.devchain``: the chain as a process.

Prints one JSON line when it is ready, ``{"rpc_url", "chain_id", "token"}``, and runs until SIGINT or SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import msgspec

from shem.errors import Misconfigured
from shem.testing.devchain import places


async def _run(options: argparse.Namespace) -> None:
    from shem.testing.devchain.node import DevChain

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopped.set)
    async with DevChain(
        port=options.port,
        directory=options.data,
        block_time_s=options.block_time,
        chain_id=options.chain_id,
        automine=not options.no_automine,
    ) as node:
        ready = {"rpc_url": node.rpc_url, "chain_id": node.chain_id, "token": places.TOKEN_ADDRESS}
        sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
        sys.stdout.flush()
        await stopped.wait()


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="shem.testing.devchain", description="An EVM chain for devnets and tests.")
    parser.add_argument("--port", type=int, default=8545, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--data", type=Path, help="directory that keeps the chain; without it the chain is forgotten")
    parser.add_argument("--block-time", type=float, default=0.25, help="seconds between blocks that make others final")
    parser.add_argument("--chain-id", type=int, default=places.CHAIN_ID)
    parser.add_argument("--no-automine", action="store_true", help="blocks come only from shem_mine")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    try:
        asyncio.run(_run(options))
    except (Misconfigured, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A payer as a process of its own, to be killed: orders 0..N-1, pays them, notes what it was told, ends when all is told.

``payer_process.py DATABASE RPC_URL COUNT MULTI``; MULTI is a contract that pays many, or nothing. Prints
``ready`` when the driver works and ``done`` at the end.
"""

from __future__ import annotations

import asyncio
import sys

import msgspec

from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.payment.drivers.base import Failure, PaymentOrder, Settlement
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.networks import networks_from
from shem.testing.devchain import places


async def main(path: str, url: str, count: int, multi: str) -> None:
    identity = Identity(b"\7" * 32)
    db = Database(path)
    db.connection.execute("create table if not exists told (order_id text primary key, kind text not null)")
    config = NetworkConfig(
        chain_id=1337, rpc_urls=(url,), token=places.TOKEN_ADDRESS, token_symbol="tGLM", multi_transfer=multi
    )
    (network,) = networks_from({"devnet": config})
    quick = msgspec.structs.replace(network, poll_s=0.02, max_poll_s=0.1, gather_s=0.02)
    driver = EvmDriver(db, [quick], [identity])
    all_told = asyncio.Event()

    def tell(outcome: Settlement | Failure) -> None:
        db.connection.execute("insert into told values (?, ?)", (outcome.order_id, type(outcome).__name__))
        db.after_commit(check)

    def check() -> None:
        if db.connection.execute("select count(*) from told").fetchone()[0] == count:
            all_told.set()

    driver.on_settled(tell)
    check()
    await driver.start()
    print("ready", flush=True)
    for place in range(count):
        with db.transaction(durable=True) as connection:
            payee = f"0x{0xABC0000 + place:040x}"
            order = PaymentOrder(f"o{place}", "erc20-devnet-tglm", identity.address, payee, 1000 + place)
            driver.pay(connection, order)
        await asyncio.sleep(0.002)  # spread over many blocks
    await all_told.wait()
    await driver.stop()
    db.close()
    print("done", flush=True)


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))

"""A payer by channel as a process of its own, to be killed: opens channels 0..N-1, settles each when it is open, closes each
when it is settled, notes what it was told, ends when all is told.

``channel_process.py DATABASE RPC_URL COUNT``. Prints ``ready`` when it works and ``done`` at the end.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec

from shem.node.config import NetworkConfig
from shem.node.db import Database
from shem.node.identity.keys import Identity
from shem.node.identity.signing import keccak256
from shem.node.payment.drivers.channel import ChannelDriver
from shem.node.payment.drivers.evm import vault
from shem.node.payment.drivers.evm.driver import EvmDriver
from shem.node.payment.drivers.evm.vault import ChannelKey
from shem.node.payment.drivers.networks import networks_from
from shem.node.payment.drivers.vaults import ChainWord, Opened
from shem.testing.devchain import places

ME = Identity(b"\7" * 32)


def payee(place: int) -> Identity:
    return Identity(keccak256(b"payee %d" % place))


async def main(path: str, url: str, count: int) -> None:
    db = Database(path)
    db.connection.execute("create table if not exists told (request_id text primary key, kind text, nonce integer)")
    config = NetworkConfig(
        chain_id=1337, rpc_urls=(url,), token=places.TOKEN_ADDRESS, token_symbol="tGLM", vault=places.VAULT_ADDRESS
    )
    (network,) = networks_from({"devnet": config})
    network = msgspec.structs.replace(network, poll_s=0.02, max_poll_s=0.1, gather_s=0.01)
    erc20 = EvmDriver(db, [network], [ME])
    driver = ChannelDriver(erc20)
    chain = driver.chain("channel-devnet-tglm")
    all_told = asyncio.Event()

    def tell(word: ChainWord) -> None:
        if isinstance(word, Opened) and not word.final:
            return
        nonce = word.key.nonce if isinstance(word, Opened) else None
        db.connection.execute("insert into told values (?, ?, ?)", (word.request_id, type(word).__name__, nonce))
        db.after_commit(check)
        kind, _, place = word.request_id.partition(":")
        if kind == "close":
            return
        opened = db.connection.execute("select nonce from told where request_id = ?", (f"reserve:{place}",)).fetchone()
        key = ChannelKey(ME.address, payee(int(place)).address, ME.address, opened["nonce"])
        if kind == "reserve":
            chain.settle(db.connection, f"settle:{place}", key, 100 + int(place))
        else:
            said = payee(int(place)).sign_digest(vault.close_digest(chain.vault, key.id, 500))
            chain.close(db.connection, f"close:{place}", key, 500, said)

    def check() -> None:
        if db.connection.execute("select count(*) from told").fetchone()[0] == 3 * count:
            all_told.set()

    chain.on_word(tell)
    check()
    await erc20.start()
    await driver.start()
    print("ready", flush=True)
    until = int(time.time()) + 86400
    for place in range(count):
        with db.transaction(durable=True) as connection:
            chain.reserve(
                connection,
                f"reserve:{place}",
                payer=ME.address,
                payee=payee(place).address,
                signer=ME.address,
                amount=1000,
                valid_until=until,
            )
        await asyncio.sleep(0.01)  # spread over many calls
    await all_told.wait()
    await driver.stop()
    await erc20.stop()
    db.close()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))

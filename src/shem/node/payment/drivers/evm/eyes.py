"""What a vault and its channels look like: asked of the chain, compared with the pinned code, believed at final blocks.

What an endpoint answers has the right shape or is refused; the channel's sums come from the contract's storage in one
final block and, once the channel is closed, from the events up to that block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from shem.node.db import Database
from shem.node.payment.drivers.base import ChainUnreachable
from shem.node.payment.drivers.evm import erc20, standard, vault
from shem.node.payment.drivers.evm.requests import RequestStore
from shem.node.payment.drivers.evm.rpc import (
    Block,
    Call,
    LogEntry,
    RpcPool,
    RpcRefused,
    moment,
    number,
    read,
    read_or_none,
)
from shem.node.payment.drivers.evm.vault import ChannelKey, OnChain, Reserved, Vault
from shem.node.payment.drivers.networks import Network
from shem.node.payment.drivers.vaults import Look, WrongVault
from shem.terms.ids import parse_node_id

T = TypeVar("T")

LOG_BLOCKS = (10_000, 1_000, 100)
"""Endpoints that refuse to search a whole chain mostly search so many blocks at a time."""
MAX_SEARCHES = 400
"""Of one look; a year of blocks is more than any endpoint should be asked for."""


class _FoundLog(LogEntry, rename="camel"):
    """An event that was searched for."""

    transaction_hash: str


class Eyes:
    """One vault, seen through a network's endpoints."""

    def __init__(self, db: Database, network: Network, pool: RpcPool, rows: RequestStore) -> None:
        self.vault = Vault(network.chain_id, network.vault)
        self._db = db
        self._network = network
        self._pool = pool
        self._rows = rows
        self._checked = False
        self.wrong: WrongVault | None = None
        """Why nothing is done here, as of the last look."""

    async def look(self, key: ChannelKey) -> Look:
        """See the protocol."""
        await self.check()
        block = await self._final_block()
        at = number(block.number)
        (found,) = await self._pool.each([_view(self.vault.address, vault.channel(key.id), block.number)], _channel)
        since = self._rows.seen(key.id)
        if found.is_open and since is None and not found.claimed:
            # Every payment comes after this block.
            with self._db.transaction():
                self._rows.note_seen(key.id, at)
        paid: list[tuple[int, str]] = []
        if found.claimed or not found.is_open:
            paid = await self._paid(key, since or 0, at)
        return Look(
            reserved=found.reserved,
            claimed=max([found.claimed, *(cumulative for cumulative, _ in paid)]),
            valid_until=found.valid_until,
            opened=found.is_open or since is not None or bool(paid) or await self._was_opened(key, at),
            block_number=at,
            block_hash=block.hash,
            block_time=moment(block.timestamp),
            paid_tx=max(paid)[1] if paid else "",
        )

    async def free(self, payer: str) -> int:
        """See the protocol; as of the last block."""
        await self.check()
        (free,) = await self._pool.each([_view(self.vault.address, vault.account(parse_node_id(payer)))], _free)
        return free

    async def cover(self, payer: str) -> tuple[int, int, int]:
        """(what the vault may take from the wallet, what is in the wallet, what is free in the vault) as of the last
        block."""
        calls = [
            _view(self._network.token, erc20.allowance(payer, self.vault.address)),
            _view(self._network.token, erc20.balance_of(payer)),
            _view(self.vault.address, vault.account(payer)),
        ]
        return await self._pool.ask(
            calls,
            lambda said: (erc20.units(said[0], self._network), erc20.units(said[1], self._network), _free(said[2])),
        )

    async def _paid(self, key: ChannelKey, since: int, until: int) -> list[tuple[int, str]]:
        """(in all, transaction) of each payment to the payee."""
        topics = [vault.PAID_TOPIC, "0x" + key.id.hex(), _topic(key.payee)]
        paid = []
        for entry in await self._logs(topics, since, until):
            for event in vault.events([entry], self.vault):
                if isinstance(event, vault.Paid) and event.channel == key.id:
                    paid.append((event.cumulative, entry.transaction_hash.lower()))
        return paid

    async def _was_opened(self, key: ChannelKey, until: int) -> bool:
        topics = [vault.RESERVED_TOPIC, _topic(key.payer), _topic(key.payee), "0x" + key.id.hex()]
        found = vault.events(await self._logs(topics, 0, until), self.vault)
        return any(isinstance(event, Reserved) and event.key == key for event in found)

    async def _logs(self, topics: Sequence[str], since: int, until: int) -> list[_FoundLog]:
        try:
            return await self._logs_in(topics, since, until)
        except RpcRefused:
            if until - since < LOG_BLOCKS[-1]:
                raise
        except ChainUnreachable:
            # So many blocks may just take too long. Without a beginning one piece must do, which proves nothing here: the
            # endpoint may search the whole chain another time.
            if not since:
                raise
        return await self._search(topics, since, until)

    async def _logs_in(self, topics: Sequence[str], since: int, until: int) -> list[_FoundLog]:
        """An endpoint that has not come as far as ``until`` would leave out the last ones without a word."""
        wanted = {"address": self.vault.address, "topics": topics, "fromBlock": hex(since), "toBlock": hex(until)}
        head, found = await self._pool.batch([("eth_blockNumber", []), ("eth_getLogs", [wanted])])
        if number(read(head, str)) < until:
            raise ChainUnreachable(f"an endpoint of {self._network.name} is behind the others")
        return read(found, list[_FoundLog])

    async def _search(self, topics: Sequence[str], since: int, until: int) -> list[_FoundLog]:
        """Piece by piece, the newest first, until there is something: what is later says more. Where nobody knows since
        when to look, one piece must do.

        Raises :class:`ChainUnreachable` when that takes too many.
        """
        sizes = list(LOG_BLOCKS)
        for _ in range(MAX_SEARCHES):
            start = max(since, until - sizes[0] + 1)
            try:
                found = await self._logs_in(topics, start, until)
            except (RpcRefused, ChainUnreachable):
                if len(sizes) == 1:
                    raise
                del sizes[0]
                continue
            if found or not since or start == since:
                return found
            until = start - 1
        raise ChainUnreachable(f"the endpoint searches too few blocks of {self._network.name} at a time")

    async def _final_block(self) -> Block:
        depth = self._network.depth
        tag = "finalized"
        if depth is not None:
            (head,) = await self._pool.each([("eth_getBlockByNumber", ["latest", False])], lambda one: read(one, Block))
            tag = hex(max(number(head.number) - depth, 0))

        def final(answer: msgspec.Raw | RpcRefused) -> Block:
            block = read_or_none(answer, Block)
            if block is None:
                raise ChainUnreachable(f"{self._network.name} has no final block yet")
            return block

        (block,) = await self._pool.each([("eth_getBlockByNumber", [tag, False])], final)
        return block

    async def check(self) -> None:
        """Once in the life of the process: the code at the vault's address. Raises :class:`WrongVault`."""
        if self._checked:
            return
        (code,) = await self._pool.each([("eth_getCode", [self.vault.address, "latest"])], _code)
        if not vault.is_our_code(code, self.vault, self._network.token):
            self.wrong = self._not_ours(code)
            raise WrongVault(self.wrong.message, hint=self.wrong.hint)
        self._checked, self.wrong = True, None

    def _not_ours(self, code: bytes) -> WrongVault:
        network, address = self._network, self.vault.address
        setting = f"networks.{network.name}.vault"
        if code:
            return WrongVault(
                f"what stands at {address} on {network.name} is not our vault of {network.symbol}",
                hint=f"correct {setting}",
            )
        there = f"nobody has put the vault of {network.symbol} at {address} on {network.name} yet"
        deploy = f"shem payment deploy-vault --network {network.name}"
        if address == standard.standard_vault(network.token):
            return WrongVault(there, hint=f"say {deploy}: once, for everybody; the vault is used when it stands there")
        return WrongVault(
            there,
            hint=f'correct {setting}; or set it to "standard", for the vault of {deploy}, and start the node again',
        )


def _view(to: str, data: bytes, block: str = "latest") -> Call:
    return "eth_call", [{"to": to, "data": "0x" + data.hex()}, block]


def _parsed(parse: Callable[[str], T], answer: msgspec.Raw | RpcRefused) -> T:
    """Raises :class:`ChainUnreachable` for nonsense."""
    try:
        return parse(read(answer, str))
    except ValueError as error:
        raise ChainUnreachable(f"the endpoint's answer is not what was asked for: {error}") from None


def _channel(answer: msgspec.Raw | RpcRefused) -> OnChain:
    # Before the vault stood there, nothing answers.
    return OnChain() if read(answer, str) == "0x" else _parsed(vault.read_channel, answer)


def _free(answer: msgspec.Raw | RpcRefused) -> int:
    return _parsed(vault.read_account, answer)[0]


def _code(answer: msgspec.Raw | RpcRefused) -> bytes:
    return _parsed(lambda text: bytes.fromhex(text.removeprefix("0x")), answer)


def _topic(address: str) -> str:
    return "0x" + address[2:].rjust(64, "0")

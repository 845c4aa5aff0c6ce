"""ERC-20 payments: orders become transfer intents; claims of others are checked against the chain.

One transaction manager for each account on each network, whatever names the network goes by; the accounts are those whose
signers the node has. How orders become calls is :mod:`~shem.node.payment.drivers.evm.payouts`'.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import msgspec

from shem.cogs.clock import Clock, SystemClock
from shem.cogs.tasks import TaskScope
from shem.errors import MoneyShort, Refused
from shem.node.db import Database
from shem.node.payment.drivers.base import (
    Balance,
    DriverProblem,
    Failure,
    NoFaucet,
    NotFinalYet,
    PaymentNotFound,
    PaymentOrder,
    Platform,
    Settlement,
    VerifiedTransfer,
)
from shem.node.payment.drivers.evm import erc20
from shem.node.payment.drivers.evm.channels import INTENTS, ChannelChain
from shem.node.payment.drivers.evm.deployments import Deployments
from shem.node.payment.drivers.evm.history import Deed, deeds, one_deed
from shem.node.payment.drivers.evm.manager import Admission, NotStuck, TransactionManager
from shem.node.payment.drivers.evm.payouts import MULTI, Payouts, tokens_of
from shem.node.payment.drivers.evm.rpc import (
    Block,
    Call,
    Receipt,
    Results,
    RpcPool,
    RpcRefused,
    Transport,
    moment,
    number,
    quantity,
    read,
    read_or_none,
    receipt_of,
)
from shem.node.payment.drivers.evm.store import MIGRATIONS, Intent, pin_chain
from shem.node.payment.drivers.evm.transaction import Signer
from shem.node.payment.drivers.networks import DRIVER, VALUED, Network
from shem.terms.amounts import format_amount
from shem.terms.ids import parse_node_id

NO_ONE = "0x" + "00" * 20
GIFT_TOKENS, GIFT_COINS = 1000, 10
"""What a test chain of one's own gives at a time."""


class NoGas(MoneyShort):
    """The account has no coins for the fee of asking."""

    default_code = "no_gas"


Callback = Callable[[Settlement | Failure], None]


class EvmDriver:
    """The driver ``erc20`` of :class:`~shem.node.payment.drivers.base.PaymentDriver`."""

    name = DRIVER
    manager_type: type[TransactionManager] = TransactionManager
    """A seam: the test of the tests puts in one that is wrong on purpose."""

    def __init__(
        self,
        db: Database,
        networks: Sequence[Network],
        signers: Sequence[Signer],
        *,
        clock: Clock | None = None,
        transport: Transport | None = None,
    ) -> None:
        """``signers``: the accounts this node pays from. ``transport`` is for tests that break the line."""
        db.migrate("payment_evm", MIGRATIONS)
        self._db = db
        self.networks: Sequence[Network] = tuple(networks)
        self._served = [platform for network in networks for platform in network.platforms]
        self._networks = {platform.platform: network for network in networks for platform in network.platforms}
        """By every name; what follows is by the network's own."""
        self._pools = {
            network.name: RpcPool(
                network.rpc_urls,
                network.chain_id,
                max_head_age_s=network.max_head_age_s,
                transport=transport,
                pin=partial(pin_chain, db, network.chain_id),
            )
            for network in networks
        }
        self._callbacks: list[Callback] = []
        self._watchers: list[Callable[[], None]] = []
        self._scope: TaskScope | None = None
        self.managers: Mapping[tuple[str, str], TransactionManager] = {
            (network.name, signer.address): self._manager(network, signer, clock or SystemClock())
            for network in networks
            for signer in signers
        }
        """By network and payer."""
        self.vaults: Mapping[str, ChannelChain] = {
            network.name: ChannelChain(db, network, self._pools[network.name], self.managers, clock or SystemClock())
            for network in networks
            if network.vault
        }
        """By network; they share its accounts and endpoints."""
        self.payouts: Mapping[str, Payouts] = {
            network.name: Payouts(
                db, network, self._pools[network.name], self.managers, clock or SystemClock(), self._told
            )
            for network in networks
        }
        """By network."""
        self.deployments: Mapping[str, Deployments] = {
            network.name: Deployments(db, network, self._pools[network.name], self.managers, self._moved)
            for network in networks
        }
        """By network: the vault that everybody finds, whether or not this node is told to use it."""

    def _manager(self, network: Network, signer: Signer, clock: Clock) -> TransactionManager:
        async def admit(waiting: Sequence[Intent], in_flight: Sequence[Intent]) -> Admission:
            return await self._admit(network, signer.address, waiting, in_flight)

        def receipt(intent: Intent, found: Receipt | None) -> None:
            if intent.key.startswith(INTENTS) and network.name in self.vaults:
                self.vaults[network.name].receipt(intent, found)

        def refused(intent: Intent, reason: str) -> float | None:
            if intent.key.startswith(INTENTS) and network.name in self.vaults:
                return self.vaults[network.name].refused(intent, reason)
            if self.payouts[network.name].refused(signer.address, intent, reason):
                return None
            return network.refused_s

        return self.manager_type(
            self._db,
            self._pools[network.name],
            network,
            signer,
            clock=clock,
            on_done=lambda intent: self.payouts[network.name].done(signer.address, intent),
            admit=admit,
            on_receipt=receipt,
            on_refused=refused,
            on_moved=self._moved,
        )

    def platforms(self) -> Sequence[Platform]:
        """One for each name of each network that has an endpoint."""
        return self._served

    async def start(self) -> None:
        """Go on with what was left undone, in the background. The chain need not be there."""
        self._scope = TaskScope("payments")
        for name, payouts in self.payouts.items():
            self._scope.start(payouts.run(), f"{name}: orders")
        for (network, address), manager in self.managers.items():
            self._scope.start(manager.run(), f"{network}:{address}")

    async def stop(self) -> None:
        """Everything is on disk at any moment: this only stops the work."""
        if self._scope is not None:
            await self._scope.close()
        for pool in self._pools.values():
            await pool.close()

    def on_settled(self, callback: Callback) -> None:
        """See the protocol. Register before :meth:`start`."""
        self._callbacks.append(callback)

    def on_moved(self, callback: Callable[[], None]) -> None:
        """Call back after every look at a chain that brought something new: what waits may have gone a step further."""
        self._watchers.append(callback)

    def _moved(self) -> None:
        for callback in self._watchers:
            callback()

    def problems(self) -> Sequence[DriverProblem]:
        """Why orders wait now."""
        return [problem for manager in self.managers.values() for problem in manager.problems()]

    # Paying

    def pay(self, connection: sqlite3.Connection, order: PaymentOrder) -> None:
        """See the protocol."""
        network = self._network(order.platform)
        payer, payee = parse_node_id(order.payer), parse_node_id(order.payee)
        if (network.name, payer) not in self.managers:
            raise Refused(f"this node does not hold the key of {payer}", code="not_our_account")
        if payee in (NO_ONE, network.token, network.multi_transfer):
            raise Refused(f"{payee} cannot be paid", code="bad_payee")
        if not 0 < order.amount_units < 1 << 256:
            raise Refused(f"{order.amount_units} cannot be paid", code="bad_amount")
        self.payouts[network.name].ask(connection, msgspec.structs.replace(order, payer=payer, payee=payee))

    async def _admit(
        self, network: Network, payer: str, waiting: Sequence[Intent], in_flight: Sequence[Intent]
    ) -> Admission:
        """Those that the account's tokens cover, counting what is sent and not mined as gone, and what the contracts take."""
        for_vault = [intent for intent in waiting if intent.key.startswith(INTENTS)]
        refused: set[int] = set()
        vault_problem: DriverProblem | None = None
        vault = self.vaults.get(network.name)
        if for_vault:
            # What was asked of a vault that is not in the configuration any more waits for it.
            taken: Sequence[Intent] = []
            if vault is not None:
                going = [intent for intent in in_flight if intent.key.startswith(INTENTS)]
                places = (vault.vault.address, network.token)
                its = [intent for intent in for_vault if intent.dst in places]
                taken, vault_problem = await vault.admit(payer, its, going)
            refused = {intent.id for intent in for_vault} - {intent.id for intent in taken}
        payouts = self.payouts[network.name]
        waiting = await payouts.admit(payer, waiting, in_flight)
        waiting = await self.deployments[network.name].admit(payer, waiting)

        def cost(intent: Intent) -> int:
            return tokens_of(intent) + (vault.tokens_of(intent) if vault is not None else 0)

        call = {"to": network.token, "data": "0x" + erc20.balance_of(payer).hex()}
        (held,) = await self._pools[network.name].each(
            [("eth_call", [call, "latest"])], lambda answer: erc20.units(answer, network)
        )
        left = held - sum(cost(intent) for intent in in_flight)
        admitted: list[Intent] = []
        missing = 0
        for intent in waiting:
            if intent.id in refused:
                continue
            if cost(intent) <= max(left, 0):
                left -= cost(intent)
                admitted.append(intent)
            else:
                missing += cost(intent)
                if intent.key.startswith(MULTI) and payouts.smallest(intent) <= max(left, 0):
                    payouts.split(intent)
        if not missing:
            return Admission(admitted, vault_problem)
        needed = format_amount(missing - max(left, 0), network.decimals)
        problem = DriverProblem(
            code="InsufficientToken",
            message=f"the account lacks {needed} {network.symbol} for the payments that wait",
            driver=DRIVER,
            network=network.name,
            address=payer,
            platform=network.platform.platform,
            needed=needed,
        )
        return Admission(admitted, problem)

    def _told(self, outcome: Settlement | Failure) -> None:
        for callback in self._callbacks:
            callback(outcome)

    def history(self, address: str, limit: int) -> list[Deed]:
        """What the account did or means to do on its chains, the newest first."""
        return deeds(self._db.connection, self.networks, parse_node_id(address), limit)

    def deed(self, address: str, name: str) -> Deed | None:
        """One of them, by its id or by the id of what was asked of a vault."""
        return one_deed(self._db.connection, self.networks, parse_node_id(address), name)

    async def retry(self, address: str, name: str) -> None:
        """Do anew what one of :meth:`history` was for, which another program's transaction has displaced.

        Raises :class:`~shem.node.payment.drivers.evm.manager.NotStuck`, ``ChainUnreachable``.
        """
        for network in self.networks:
            deed = one_deed(self._db.connection, [network], parse_node_id(address), name)
            if deed is not None and deed.intent is not None:
                await self.managers[network.name, parse_node_id(address)].retry(deed.intent)
                return
        raise NotStuck("it is in no transaction", hint="see shem payment history")

    # Looking

    async def balance(self, platform: str, address: str) -> Balance:
        """As of the last block. Raises ``ChainUnreachable``, :class:`Refused` for an unknown platform."""
        network = self._network(platform)
        owner = parse_node_id(address)
        calls: list[Call] = [
            ("eth_call", [{"to": network.token, "data": "0x" + erc20.balance_of(owner).hex()}, "latest"]),
            ("eth_getBalance", [owner, "latest"]),
            ("eth_getBlockByNumber", ["latest", False]),
        ]
        return await self._pools[network.name].ask(calls, partial(_balance, network))

    async def fund(self, platform: str, address: str) -> str:
        """See the protocol. Test chains of one's own give at once; published ones by a transaction to their faucet."""
        network, owner = self._network(platform), parse_node_id(address)
        if network.faucet_call:
            return await self._gift(network, owner)
        if network.symbol == VALUED or not network.faucet:
            raise NoFaucet(
                f"nobody gives away {network.symbol} on {network.name}",
                hint=f"send {network.symbol}, and {network.gas_symbol} for fees, to {owner}",
            )
        manager = self.managers.get((network.name, owner))
        if manager is None:
            raise Refused(f"this node does not hold the key of {owner}", code="not_our_account")
        if not (await self.balance(platform, owner)).gas_wei:
            raise NoGas(
                f"{owner} has no {network.gas_symbol} on {network.name} for the fee of asking the faucet for tokens",
                hint=f"get some from a public faucet for {network.name}, then say this again",
            )
        if not manager.submit_once(f"faucet:{uuid.uuid4()}", network.faucet, erc20.FAUCET_CREATE):
            return f"the faucet of {network.name} is asked already"
        return f"the faucet of {network.name} is asked for {network.symbol}; they come when its transaction is mined"

    async def _gift(self, network: Network, owner: str) -> str:
        gift = [owner, hex(GIFT_COINS * 10**18), hex(GIFT_TOKENS * 10**network.decimals)]
        try:
            await self._pools[network.name].call(network.faucet_call, gift, dict)
        except RpcRefused as error:
            raise NoFaucet(f"the chain of {network.name} gives nothing away: {error.message}") from error
        coins, tokens = f"{GIFT_COINS} {network.gas_symbol}", f"{GIFT_TOKENS} {network.symbol}"
        return f"{tokens} and {coins} came from the chain of {network.name}"

    async def verify(self, platform: str, tx_hash: str, payer: str, payee: str, amount_units: int) -> VerifiedTransfer:
        """See the protocol. Also counts transfers that the network's multi-transfer contract made for ``payer``."""
        network = self._network(platform)
        sender, receiver = parse_node_id(payer), parse_node_id(payee)
        if (
            len(tx_hash) != 66
            or not tx_hash.startswith("0x")
            or not set(tx_hash[2:].lower()) <= set("0123456789abcdef")
        ):
            raise PaymentNotFound(f"{tx_hash[:80]!r} is not the name of a transaction")
        final, receipt, pending = await self._look_at(network, tx_hash.lower())
        if receipt is None:
            if pending:
                raise NotFinalYet(f"{tx_hash} waits to be mined")
            raise PaymentNotFound(f"{network.name} knows no transaction {tx_hash}")
        senders = {sender}
        if network.multi_transfer and receipt.sender.lower() == sender:
            senders.add(parse_node_id(network.multi_transfer))
        moved = erc20.moved(receipt.logs, network.token, senders, receiver) if receipt.succeeded else 0
        if moved < amount_units:
            paid, claimed = (format_amount(units, network.decimals) for units in (moved, amount_units))
            raise PaymentNotFound(f"{tx_hash} paid {paid} {network.symbol} from {sender} to {receiver}, not {claimed}")
        block = number(receipt.block_number)
        if block > final:
            raise NotFinalYet(f"{tx_hash} is in block {block}; the last final one is {final}")
        there = await self._pools[network.name].call("eth_getBlockByNumber", [receipt.block_number, False], Block)
        if there.hash.lower() != receipt.block_hash.lower():
            raise NotFinalYet(f"{tx_hash} is said to be in a block {block} that is not the chain's: endpoints disagree")
        return VerifiedTransfer(
            platform=platform,
            tx_hash=receipt.transaction_hash.lower(),
            payer=sender,
            payee=receiver,
            amount_units=moved,
            block_number=block,
            block_hash=receipt.block_hash,
        )

    async def _look_at(self, network: Network, tx_hash: str) -> tuple[int, Receipt | None, bool]:
        """(last final block, receipt, whether it waits in a pool). The head is seen before the receipt is."""
        calls: list[Call] = [
            ("eth_getBlockByNumber", ["finalized" if network.depth is None else "latest", False]),
            ("eth_getTransactionReceipt", [tx_hash]),
            ("eth_getTransactionByHash", [tx_hash]),
        ]

        def seen(results: Results) -> tuple[int, Receipt | None, bool]:
            head, receipt, body = results
            block = read_or_none(head, Block)
            final = -1 if block is None else number(block.number) - (network.depth or 0)
            return final, receipt_of(tx_hash, receipt), read_or_none(body, dict) is not None

        # All of one endpoint: what is final for one that is ahead says nothing about what another one shows.
        return await self._pools[network.name].ask(calls, seen)

    def _network(self, platform: str) -> Network:
        network = self._networks.get(platform)
        if network is None:
            raise Refused(f"this node does not pay on {platform[:80]!r}", code="unknown_platform")
        return network


def _balance(network: Network, results: Results) -> Balance:
    tokens, wei, head = results
    block = read(head, Block)
    return Balance(
        token_units=erc20.units(tokens, network),
        gas_wei=quantity(wei),
        block_number=number(block.number),
        block_time=datetime.fromtimestamp(moment(block.timestamp), UTC),
    )

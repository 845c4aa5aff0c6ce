"""Putting the standard vault on a chain: one call of the deployment proxy, an intent like any other.

Everything is looked at before anything is stored: whether the vault is there, whether the proxy is, and, by a rehearsal
without fee, whether the chain would put our contract where everybody looks for it. An account has one such call under way at a
time. Somebody else may be faster, since anybody may do it: then a call of ours that is not signed yet ends without being sent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence

import msgspec

from shem.errors import Conflict, Refused
from shem.node.db import Database
from shem.node.payment.drivers.base import ChainUnreachable
from shem.node.payment.drivers.evm import standard, vault
from shem.node.payment.drivers.evm.manager import TransactionManager
from shem.node.payment.drivers.evm.rpc import Call, Results, RpcPool, RpcRefused, read
from shem.node.payment.drivers.evm.store import Intent, IntentStore
from shem.node.payment.drivers.evm.vault import Vault
from shem.node.payment.drivers.networks import Network
from shem.node.payment.drivers.vaults import WrongVault

KEY = "deploy:"
"""What the keys of our intents start with; the vault's address follows."""
ENDED = ("final", "failed")


class VaultThere(Conflict):
    """What is asked for has been done, by this node or by somebody else."""

    default_code = "vault_there"


class NoDeployer(Refused):
    """The proxy through which contracts get their agreed addresses is not on this chain."""

    default_code = "no_deployer"


class VaultRefused(Refused):
    """The chain would not run the code that makes a vault."""

    default_code = "vault_refused"


class Deployments:
    """The standard vault of one network's token, for all accounts of this node."""

    def __init__(
        self,
        db: Database,
        network: Network,
        pool: RpcPool,
        managers: Mapping[tuple[str, str], TransactionManager],
        moved: Callable[[], None],
    ) -> None:
        """``managers`` are by network and account, and may be filled in later. ``moved`` is called when a call has ended
        without a look of the manager's at the chain."""
        self.vault = Vault(network.chain_id, standard.standard_vault(network.token))
        self._db = db
        self._network = network
        self._pool = pool
        self._managers = managers
        self._moved = moved
        self._call = standard.deployment(network.token)

    def under_way(self, account: str) -> str | None:
        """The id of the account's call, while it is not over."""
        asked = self._asked(account)
        return str(asked[-1].id) if asked and asked[-1].state not in ENDED else None

    async def check(self, account: str) -> None:
        """Whether asking makes sense. Raises :class:`VaultThere`, :class:`NoDeployer`, :class:`VaultRefused`,
        :class:`WrongVault`, :class:`ChainUnreachable`."""
        network, address = self._network, self.vault.address
        rehearsal = {"from": account, "to": standard.DEPLOYER, "data": "0x" + self._call.hex()}
        calls: list[Call] = [
            ("eth_getCode", [address, "latest"]),
            ("eth_getCode", [standard.DEPLOYER, "latest"]),
            ("eth_call", [rehearsal, "latest"]),
        ]
        code, deployer, answer = await self._pool.ask(calls, _seen)
        if code:
            if vault.is_our_code(code, self.vault, network.token):
                raise VaultThere(
                    f"the vault of {network.symbol} on {network.name} stands at {address} already",
                    hint=f'set vault = "standard" under [networks.{network.name}] in the node\'s configuration',
                    vault=address,
                )
            raise WrongVault(
                f"what stands at {address} on {network.name} is not our vault of {network.symbol}",
                hint="do not use it: this chain, or its endpoint, has other rules than Ethereum",
            )
        otherwise = (
            f"pay by transfer there; or put contracts/Vault.vy on the chain by other means, and write its address as "
            f"networks.{network.name}.vault on each node"
        )
        if not deployer:
            raise NoDeployer(
                f"{network.name} has no deployment proxy at {standard.DEPLOYER}: nothing can be put at an agreed address",
                hint=otherwise,
            )
        if isinstance(answer, RpcRefused):
            raise VaultRefused(
                f"{network.name} would not make the vault: {answer.message[:200]}",
                hint=f"the chain must know the instructions of Cancun; else {otherwise}",
            )
        if not standard.is_address(answer, address):
            raise NoDeployer(
                f"what stands at {standard.DEPLOYER} on {network.name} is not the deployment proxy: it would put nothing "
                f"at {address}",
                hint=otherwise,
            )

    def ask(self, connection: sqlite3.Connection, account: str) -> str:
        """Note the call in the caller's transaction, or find the one that is under way; gives its id. To be called after
        :meth:`check`. A call that has ended is no reason against another: it may have failed."""
        manager = self._managers.get((self._network.name, account))
        if manager is None:
            raise Refused(f"this node does not hold the key of {account}", code="not_our_account")
        open_one = self.under_way(account)
        if open_one is not None:
            return open_one
        key = f"{KEY}{self.vault.address}:{self.vault.chain_id}:{account}:{len(self._asked(account))}"
        return str(manager.submit(connection, key, standard.DEPLOYER, self._call))

    async def admit(self, account: str, waiting: Sequence[Intent]) -> list[Intent]:
        """``waiting`` without a call of ours that somebody else has made needless: that one is over. Raises
        :class:`ChainUnreachable`."""
        ours = [intent for intent in waiting if intent.key.startswith(KEY)]
        if not ours:
            return list(waiting)
        needless: set[int] = set()
        for intent in ours:  # by its own address: the token in the configuration may be another by now
            (code,) = await self._pool.each([("eth_getCode", [vault_of(intent.key), "latest"])], _bytes)
            if code:
                needless.add(intent.id)
                with self._db.transaction(durable=True):
                    self._store(account).note_mined(msgspec.structs.replace(intent, state="failed"))
                self._moved()
        return [intent for intent in waiting if intent.id not in needless]

    def _asked(self, account: str) -> list[Intent]:
        return self._store(account).calls(standard.DEPLOYER, self._call)

    def _store(self, account: str) -> IntentStore:
        return IntentStore(self._db.connection, self._network.chain_id, account)


def vault_of(key: str) -> str:
    """The address for which an intent with this key is."""
    return key.removeprefix(KEY).partition(":")[0]


def _seen(results: Results) -> tuple[bytes, bytes, bytes | RpcRefused]:
    """Codes, which every endpoint knows, and what came of the rehearsal, which may be a refusal."""
    there, deployer, answer = results
    return _bytes(there), _bytes(deployer), answer if isinstance(answer, RpcRefused) else _bytes(answer)


def _bytes(answer: msgspec.Raw | RpcRefused) -> bytes:
    """Raises what the endpoint refused with, :class:`ChainUnreachable` for nonsense."""
    try:
        return bytes.fromhex(read(answer, str).removeprefix("0x"))
    except ValueError as error:
        raise ChainUnreachable(f"the endpoint's answer is not what was asked for: {error}") from None

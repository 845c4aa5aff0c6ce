"""The chains that payments run on, as data.

The published networks of Golem are here with their token and contract addresses and the fee limits that are usual on
them. None comes with endpoints: which node to trust is the operator's decision, and a network without an endpoint is
not served. Configuration overrides an entry of the same name or adds one (the devnet).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from shem.errors import Misconfigured
from shem.node.config import NetworkConfig
from shem.node.identity.signing import mistyped
from shem.node.payment.drivers.base import Platform
from shem.node.payment.drivers.evm.standard import STANDARD, standard_vault
from shem.node.payment.drivers.vaults import VaultTerms
from shem.terms.amounts import BadAmount, parse_amount

GWEI = 10**9
DRIVER = "erc20"
CHANNEL = "channel"
"""The driver, and so the first word of the platforms, of payment channels."""
DEVNET = "devnet"
VAULT = "vault"
VALUED = "GLM"
"""Symbol of the token that is money; those of test networks have another."""
LEAST_COVER_WAIT_S = 30.0
_NAME = re.compile(r"[a-z0-9]{1,32}")
_ADDRESS = re.compile(r"0x[0-9a-f]{40}")


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One chain and its token. Addresses are lower case."""

    name: str
    chain_id: int
    rpc_urls: tuple[str, ...] = ()
    token: str = ""
    symbol: str = "tGLM"
    decimals: int = 18
    gas_symbol: str = "ETH"
    multi_transfer: str = ""
    """Contract that pays many at once; its logs may name it as sender. Empty where there is none."""
    multi_max: int = 10
    """Payments in one call of it."""
    faucet: str = ""
    """Contract that gives test tokens."""
    faucet_call: str = ""
    """Call of a chain that has test money in its own hands: ``(address, wei, token units)``."""
    vault: str = ""
    """Contract of payment channels over this token. Empty: nobody pays by channel here."""
    depth: int | None = None
    """Blocks on top that make a block final; ``None``: the chain says so itself (``finalized``)."""
    max_fee_wei: int = 100 * GWEI
    """Most that is ever offered for a unit of gas. Above it payments wait and say so."""
    max_tip_wei: int = 5 * GWEI
    usual_tip_wei: int = GWEI
    """Offered where an endpoint does not say what is usual."""
    poll_s: float = 2.0
    """Between two looks at the chain while something is under way."""
    max_poll_s: float = 12.0
    """The same when nothing moves."""
    rebroadcast_s: float = 30.0
    replace_after_s: float = 60.0
    """After so long in the pool a transaction is offered again at a higher fee."""
    refused_s: float = 10.0
    """What the chain would refuse now is tried again after so long."""
    gather_s: float = 3.0
    """How long requests of one kind wait for each other, to go to the vault in one call."""
    pay_ahead_s: float | None = None
    """How long before its date a transfer is sent: what waits until then is paid for in one go. ``None``: at once."""
    margin_s: int = 3600
    """How long before the end of a channel's term everything must be over."""
    finality_s: float = 960.0
    """How long it usually takes until a block is final."""
    cover_timeout_s: float | None = None
    """How long a payee waits for money to be reserved for an agreement; ``None``: by ``finality_s``."""
    settle_after_s: float = 24 * 3600.0
    """What is due on a channel that goes on is paid on the chain after so long; its voucher is good until then."""
    credit: int = 0
    """Base units that a payee works for beyond what is reserved, for each payer."""
    max_head_age_s: float | None = 300.0
    """An endpoint whose last block is older has fallen behind; ``None`` for chains that rest when idle."""
    aliases: tuple[str, ...] = ()
    """Other names under which deals may know the same chain and token."""

    @property
    def vault_terms(self) -> VaultTerms:
        """What the owner decides about channels here."""
        wait_s = self.cover_timeout_s
        return VaultTerms(
            finality_s=self.finality_s,
            cover_timeout_s=max(LEAST_COVER_WAIT_S, 2 * self.finality_s + self.replace_after_s)
            if wait_s is None
            else wait_s,
            settle_after_s=self.settle_after_s,
            credit=self.credit,
        )

    @property
    def platform(self) -> Platform:
        """The name under which deals know it."""
        return self._named(self.name)

    @property
    def platforms(self) -> list[Platform]:
        """All its names, its own first."""
        own = self.platform
        others = (self._named(alias) for alias in self.aliases)
        return [own, *(msgspec.structs.replace(other, alias_of=own.platform) for other in others)]

    @property
    def channel_platforms(self) -> list[Platform]:
        """The same money paid by channel, under all names of the network; none without a vault."""
        if not self.vault:
            return []
        own = self._named(self.name, CHANNEL)
        others = (self._named(alias, CHANNEL) for alias in self.aliases)
        return [own, *(msgspec.structs.replace(other, alias_of=own.platform) for other in others)]

    def _named(self, name: str, driver: str = DRIVER) -> Platform:
        return Platform(
            platform=f"{driver}-{name}-{self.symbol.lower()}",
            driver=driver,
            network=name,
            token=self.symbol,
            decimals=self.decimals,
            chain_id=self.chain_id,
            gas_token=self.gas_symbol,
            pay_ahead_s=self.pay_ahead_s if driver == DRIVER else None,
            finality_s=self.finality_s,
        )


PUBLISHED = (
    Network(
        name="mainnet",
        chain_id=1,
        symbol="GLM",
        token="0x7dd9c5cba05e151c895fde1cf355c9a1d5da6429",  # noqa: S106
        multi_transfer="0xcfd497f7d111f14c3ef7ebeee63771d1506f0af8",
        max_fee_wei=40 * GWEI,
        pay_ahead_s=3600.0,
        usual_tip_wei=1_010_000_000,
    ),
    Network(
        name="polygon",
        chain_id=137,
        symbol="GLM",
        gas_symbol="POL",
        token="0x0b220b82f3ea3b7f6d9a1d8ab58930c064a2b5bf",  # noqa: S106
        multi_transfer="0x50100d4faf5f3b09987dea36dc2eddd57a3e561b",
        max_fee_wei=500 * GWEI,
        max_tip_wei=50 * GWEI,
        finality_s=15.0,
        pay_ahead_s=3600.0,
        usual_tip_wei=25_011_000_000,
    ),
    Network(
        name="hoodi",
        chain_id=560048,
        token="0x55555555555556acff9c332ed151758858bd7a26",  # noqa: S106
        multi_transfer="0x222222222220c9269cfb43ed434888f604d1dc21",
        faucet="0x500f965199c63865a3e666ca3ff55b64f1c8bc8b",
    ),
    Network(
        name="holesky",
        chain_id=17000,
        token="0x8888888815bf4db87e57b609a50f938311eed068",  # noqa: S106
        multi_transfer="0xaaaaaaa00e1841a63342db7188aba84bdee236c7",
        faucet="0xface100969ff47eb58d2cf603321b581a84bceac",
    ),
    Network(
        name="amoy",
        chain_id=80002,
        gas_symbol="POL",
        token="0x2b60e60d3fb0b36a7ccb388f9e71570da4c4594f",  # noqa: S106
        multi_transfer="0xa0a51642a594763d78091bf03ee6bf8e8d663bba",
        faucet="0xf29ff8a13211ac33861986e407190ae5c773d53c",
        max_fee_wei=500 * GWEI,
        max_tip_wei=50 * GWEI,
        finality_s=15.0,
        usual_tip_wei=25_011_000_000,
    ),
    Network(
        name="sepolia",
        chain_id=11155111,
        token="0x167b15ada84c63427c6c813b915a42efc72e7175",  # noqa: S106
        faucet="0x31a2a20956a40c2f358fa5cec59d55a9c5d6ff9a",
    ),
    Network(
        name=DEVNET,
        chain_id=1337,
        gas_symbol="dETH",
        faucet_call="shem_fund",
        multi_max=100,
        poll_s=0.1,
        max_poll_s=0.5,
        rebroadcast_s=1.0,
        replace_after_s=5.0,
        refused_s=0.5,
        gather_s=0.1,
        margin_s=120,
        finality_s=1.0,
        max_head_age_s=None,
    ),
)


def networks_from(config: Mapping[str, NetworkConfig]) -> list[Network]:
    """The networks that can be served: the published ones under the configured, as far as they have an endpoint.

    Raises :class:`Misconfigured` for a token that is not an address, for one chain configured twice (its accounts would
    count their transactions in two places) and for an alias that could be taken for another network.
    """
    table = {network.name: network for network in PUBLISHED}
    for name, given in config.items():
        table[name] = _configured(table.get(name) or Network(name=name, chain_id=given.chain_id), given)
    served = [network for network in table.values() if network.rpc_urls]
    _check_chains(served)
    _check_aliases(served, config)
    return served


def _check_chains(served: list[Network]) -> None:
    names: dict[int, str] = {}
    for network in served:
        other = names.setdefault(network.chain_id, network.name)
        if other != network.name:
            raise Misconfigured(
                f"networks.{other} and networks.{network.name} are both chain {network.chain_id}",
                code="chain_configured_twice",
                hint="keep one of them; a test network may have the other name among its aliases",
            )


def _check_aliases(served: list[Network], configured: Mapping[str, NetworkConfig]) -> None:
    """What is paid under an alias must never be taken for another network's money by who reads this configuration."""
    valued = {network.name for network in PUBLISHED if network.symbol == VALUED}
    published = {network.chain_id for network in PUBLISHED if network.name != DEVNET}
    taken: dict[str, str] = {}
    for network in served:
        for alias in network.aliases:
            if not _NAME.fullmatch(alias):
                why = "is no name of a network"
            elif alias in configured:
                why = "is a network of this configuration itself"
            elif alias in valued:
                why = "is a network whose tokens have value"
            elif alias in taken:
                why = f"is an alias of {taken[alias]} already"
            elif network.chain_id in published:
                why = f"would be another name for {network.name}, which is no test network of your own"
            else:
                taken[alias] = network.name
                continue
            raise Misconfigured(
                f"networks.{network.name}.aliases: {alias[:40]!r} {why}",
                code="bad_alias",
                hint="remove the alias" if alias not in configured else f"remove the alias, or networks.{alias}",
            )


def _address(text: str, name: str, contract: str, code: str) -> str:
    address = text.lower()
    if not _ADDRESS.fullmatch(address) or int(address, 16) == 0:
        raise Misconfigured(
            f"{name} is {text[:80]!r}",
            code=code,
            hint=f"give the address of the {contract} contract: 0x and 40 hex digits"
            + (f', or "{STANDARD}"' if contract == VAULT else ""),
        )
    if mistyped(text):
        raise Misconfigured(
            f"{name}: {text} is mistyped: its capital letters are a checksum, and it fails",
            code=code,
            hint="copy the address again; or write it in small letters, if you are sure",
        )
    return address


def _contract(text: str, name: str, contract: str, code: str, token: str) -> str:
    """An address that is not the token's; empty stays empty."""
    if not text:
        return ""
    address = _address(text, name, contract, code)
    if address == token:
        raise Misconfigured(
            f"{name} is the token itself",
            code=code,
            hint=f"give the address of the {contract} contract, or leave it out: then nothing is paid through it",
        )
    return address


def _wei(text: str, name: str, usual: int) -> int:
    if not text:
        return usual
    try:
        wei = parse_amount(text, 9)
    except BadAmount as error:
        raise Misconfigured(f"{name}: {error.message}", code="bad_fee", hint="give gwei, such as 40 or 25.5") from None
    if not wei:
        raise Misconfigured(f"{name} is nothing", code="bad_fee", hint="no chain takes a transaction for that")
    return wei


def _limits(base: Network, given: NetworkConfig) -> tuple[int, int]:
    """(most for a unit of gas, most of it as a tip), in wei."""
    place = f"networks.{base.name}"
    fee = _wei(given.max_fee_gwei, f"{place}.max_fee_gwei", base.max_fee_wei)
    tip = _wei(given.max_tip_gwei, f"{place}.max_tip_gwei", min(base.max_tip_wei, fee))
    if tip > fee:
        raise Misconfigured(
            f"{place}.max_tip_gwei is more than {place}.max_fee_gwei",
            code="bad_fee",
            hint="the tip is a part of the fee",
        )
    return fee, tip


def _configured(base: Network, given: NetworkConfig) -> Network:
    place = f"networks.{base.name}"
    token = _address(given.token, f"{place}.token", "ERC-20", "bad_token_address")
    if given.vault == STANDARD:
        vault = standard_vault(token)
    else:
        vault = _contract(given.vault, f"{place}.vault", VAULT, "bad_vault_address", token)
    multi = _contract(
        given.multi_transfer, f"{place}.multi_transfer", "multi-transfer", "bad_multi_transfer_address", token
    )
    max_fee, max_tip = _limits(base, given)
    # The published contracts belong to the published token.
    published = token == base.token
    age_s = base.max_head_age_s if given.max_head_age_s is None else given.max_head_age_s or None
    return msgspec.structs.replace(
        base,
        chain_id=given.chain_id,
        rpc_urls=given.rpc_urls,
        token=token,
        symbol=given.token_symbol,
        vault=vault or (base.vault if published else ""),
        depth=given.depth,
        max_fee_wei=max_fee,
        max_tip_wei=max_tip,
        max_head_age_s=age_s,
        pay_ahead_s=base.pay_ahead_s if given.pay_ahead_s is None else float(given.pay_ahead_s),
        aliases=given.aliases,
        multi_transfer=multi or (base.multi_transfer if published else ""),
        faucet=base.faucet if published else "",
        finality_s=base.finality_s if given.finality_s is None else given.finality_s,
        cover_timeout_s=base.cover_timeout_s if given.cover_timeout_s is None else given.cover_timeout_s,
        settle_after_s=base.settle_after_s if given.settle_after_s is None else given.settle_after_s,
        credit=_units(given.credit, f"{place}.credit", base.decimals),
    )


def _units(text: str, name: str, decimals: int) -> int:
    try:
        return parse_amount(text, decimals)
    except BadAmount as error:
        raise Misconfigured(
            f"{name}: {error.message}", code="bad_credit", hint="give tokens, such as 0 or 0.25"
        ) from None

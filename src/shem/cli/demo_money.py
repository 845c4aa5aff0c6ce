"""What the demo's money did, read from the chain itself: the transactions with their gas, and what is left in the vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shem.client.http import ApiClient
from shem.client.payment import PaymentApi
from shem.errors import ShemError
from shem.node.payment.drivers.evm import vault
from shem.sdk.plain import plain
from shem.terms.amounts import format_amount
from shem.testing.devchain import places

if TYPE_CHECKING:
    from rich.console import Console

    from shem.testing.devnet import Devnet

MAX_TRANSACTIONS = 100
_BALANCE_OF = "0x70a08231"
_WORDS = {
    "approve": "the vault may take tokens from the wallet",
    "deposit": "put into the vault",
    "reserve": "{channels} opened, money reserved in each",
    "extend": "{channels}: more reserved",
    "settle": "{channels}: what the vouchers say is paid",
    "close": "{channels} closed: vouchers paid, rest back",
    "release": "{channels}: what was left is back",
    "withdraw": "taken out of the vault",
    "transfer": "paid to a wallet",
}


async def settlement(net: Devnet) -> dict[str, Any]:
    """The requestor's transactions, each with the gas and the status that the chain says it has; the vault's tokens, how much
    of them is the requestor's to take back, and what is ``reserved``: the difference."""
    node = net.requestor
    async with ApiClient(node.api_url, node.app_key) as http:
        done = [t for t in await PaymentApi(http).transactions(limit=MAX_TRANSACTIONS) if t.tx_hash is not None]
    shown: list[dict[str, Any]] = []
    seen: set[str | None] = set()
    for transaction in reversed(done):
        if transaction.tx_hash in seen:
            continue
        seen.add(transaction.tx_hash)
        receipt = await net.rpc("eth_getTransactionReceipt", transaction.tx_hash)
        if receipt is not None:
            shown.append(
                {
                    "kind": transaction.kind,
                    "amount": transaction.amount,
                    "channels": transaction.entries,
                    "tx_hash": transaction.tx_hash,
                    "block": int(receipt["blockNumber"], 16),
                    "gas_used": int(receipt["gasUsed"], 16),
                    "ok": receipt["status"] == "0x1",
                }
            )
    held = int(await _call(net, net.token, _BALANCE_OF + places.VAULT_ADDRESS[2:].rjust(64, "0")), 16)
    free, _ = vault.read_account(await _call(net, places.VAULT_ADDRESS, "0x" + vault.account(node.node_id).hex()))
    shown.sort(key=lambda t: t["block"])
    return {
        "transactions": shown,
        "gas_used": sum(t["gas_used"] for t in shown),
        "vault": {"held": format_amount(held), "free": format_amount(free), "reserved": format_amount(held - free)},
    }


async def _call(net: Devnet, contract: str, data: str) -> str:
    return str(await net.rpc("eth_call", {"to": contract, "data": data}, "latest"))


async def settlement_or_none(net: Devnet, console: Console) -> dict[str, Any] | None:
    """As :func:`settlement`; a chain that does not tell is told of, and the demo has its picture all the same."""
    try:
        return await settlement(net)
    except (ShemError, TimeoutError, ValueError) as error:
        console.print(f"the chain was not read: {error}", style="yellow", markup=False)
        return None


def show_settlement(told: dict[str, Any], console: Console) -> None:
    """For people."""
    from rich.table import Table

    from shem.sdk.progress import LEAN

    table = Table(title="What the chain says", **LEAN)
    for heading in ("block", "gas"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what")
    table.add_column("transaction", no_wrap=True, overflow="ellipsis", max_width=16)
    for t in told["transactions"]:
        channels = f"{t['channels']} channel{'s' * (t['channels'] != 1)}"
        words = _WORDS.get(t["kind"], plain(t["kind"])).format(channels=channels)
        table.add_row(str(t["block"]), str(t["gas_used"]), words if t["ok"] else f"failed: {words}", t["tx_hash"])
    console.print(table)
    left = told["vault"]
    words = f"In the vault: {left['reserved']} tGLM reserved for providers, {left['free']} tGLM free for the next job."
    console.print(words, markup=False, highlight=False, soft_wrap=True)

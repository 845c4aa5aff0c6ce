"""``shem payment deposit|withdraw|exit|deploy-vault``: one's own money into a vault and out of it; and the vault itself.

The node does what is asked whether or not somebody waits: these commands only watch, and may be interrupted.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from shem.cli.common import ApiUrl, AppKey, Json, credentials
from shem.cli.owner import Place
from shem.errors import Refused, ShemError

if TYPE_CHECKING:
    from shem.client.payment import PaymentApi
    from shem.wire.payment import Asked, ExitStatus, Transaction, VaultAsked

T = TypeVar("T")

Network = Annotated[str | None, typer.Option(help="Whose vault. Default: the node's first.")]
Receiver = Annotated[str | None, typer.Option("--to", help="Who gets it. Default: the node's own wallet.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Of the node. What goes elsewhere takes the owner's key, which lies there."),
]
Wait = Annotated[bool, typer.Option(help="Until the chain will not take it back.")]
Patience = Annotated[float, typer.Option(min=0, help="How many seconds to wait at most.")]
Amount = Annotated[str, typer.Argument(metavar="AMOUNT", help="Tokens, such as 2.5; or 'all'.")]

POLL_S = 2.0
"""A progress line is not older than this."""
RESTART_S = 30.0
"""A node that restarts meanwhile is waited for."""
_HINTS = {
    "bad_amount": "a number of tokens such as 2.5, without their name, or 'all'",
    "not_the_owner": "add --data-dir, the node's data directory: the owner's key lies there",
    # the chain is looked at before anything is written down, and never by who only waits
    "chain_unreachable": "nothing was asked for; say it again when an endpoint answers",
}
"""What to do here, where it is more than what the node can tell any program."""
_WORDS = {"new": "is being prepared", "sent": "waits to be mined", "mined": "is mined, and may still be taken back"}


class NotDone(ShemError):
    """The chain did not do it, and never will under this id."""

    default_code = "transaction_failed"


def deposit(
    amount: Amount,
    network: Network = None,
    wait: Wait = True,
    timeout: Patience = 3600.0,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Move tokens from the wallet into the vault, for payment channels."""
    from shem.wire.payment import MoneyMove

    move = MoneyMove(amount=amount, network=network)
    _move("deposit", lambda api: api.deposit(move), wait, timeout, credentials(api_url, app_key), as_json)


def withdraw(
    amount: Amount,
    to: Receiver = None,
    data_dir: DataDir = None,
    network: Network = None,
    wait: Wait = True,
    timeout: Patience = 3600.0,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Take out of the vault what no channel has reserved."""
    from shem.wire.payment import MoneyMove

    move = MoneyMove(amount=amount, network=network, receiver=_receiver(to))
    where = _where(data_dir, api_url, app_key)
    _move("withdrawal", lambda api: api.withdraw(move), wait, timeout, where, as_json)


def leave(
    to: Receiver = None,
    data_dir: DataDir = None,
    network: Network = None,
    force: Annotated[
        bool, typer.Option(help="Although work goes on: pay what is owed, take what is free, tell what stays.")
    ] = False,
    wait: Wait = True,
    timeout: Patience = 7200.0,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Close or pay all channels, and take everything out of the vault."""
    from shem.wire.base import encode
    from shem.wire.payment import ExitOrder

    order = ExitOrder(network=network, receiver=_receiver(to), force=force)

    async def talk(api: PaymentApi) -> tuple[Asked, ExitStatus | None, Transaction | None]:
        asked = await api.exit(order)
        if not wait:
            return asked, None, None
        async with _line(asked.id, as_json) as say:
            say("the exit is begun")
            done = await _exited(api, asked, say, time.monotonic() + timeout)
            return asked, done, None if done.withdrawal is None else await api.transaction(done.withdrawal)

    asked, done, taken = asyncio.run(_with_api(_where(data_dir, api_url, app_key), talk))
    if as_json:
        print(encode(asked if done is None else done).decode())
    elif done is None:
        print(f"the exit is begun; see shem payment history {asked.id}")
    else:
        tell_exit(done, taken)
    if done is not None and done.state == "failed":
        raise NotDone(done.detail or "nothing could be withdrawn", hint="see shem payment status, and say it again")


def deploy_vault(
    data_dir: DataDir = None,
    network: Annotated[str | None, typer.Option(help="On which. Default: the node's first.")] = None,
    wait: Wait = True,
    timeout: Patience = 3600.0,
    api_url: ApiUrl = None,
    app_key: AppKey = None,
    as_json: Json = False,
) -> None:
    """Put the standard vault of a network's token on its chain, once for everybody, so that channels are possible there.

    It costs a fee, nothing else, and belongs to nobody. Takes the owner's key.
    """
    from shem.wire.base import encode
    from shem.wire.payment import VaultOrder

    what = "deployment"

    async def talk(api: PaymentApi) -> tuple[VaultAsked, Transaction | None]:
        asked = await api.deploy_vault(VaultOrder(network=network))
        if not wait:
            return asked, None
        async with _line(asked.id, as_json) as say:
            say(f"the {what} is asked for")
            return asked, await _final(api, asked.id, what, say, time.monotonic() + timeout)

    asked, done = asyncio.run(_with_api(_where(data_dir, api_url, app_key), talk))
    # The platform's network may be known by other names too; this is the one of the configuration.
    setting = {"network": asked.platform.split("-")[1], "setting": 'vault = "standard"'}
    if as_json:
        told = json.loads(encode(asked)) | (json.loads(encode(done)) if done is not None else {})
        print(json.dumps(told | setting))
    elif done is None:
        print(f"the {what} of the vault at {asked.vault} is asked for; see shem payment history {asked.id}")
    elif done.state == "final":
        print(f"the vault stands at {asked.vault}: {done.tx_hash} in block {done.block}, {done.gas_used} gas")
        print("to use it, write this in the configuration of each node and start it again:")
        print(f"\n[networks.{setting['network']}]\n{setting['setting']}")
    if done is not None and done.state == "failed":
        raise NotDone(
            f"the {what} failed: {done.detail or done.tx_hash}",
            hint="say it again: if somebody else was faster, it tells that the vault is there",
        )


def _receiver(to: str | None) -> str | None:
    """An address; whether its capital letters are right is seen by the node."""
    from shem.terms.ids import parse_node_id

    if to is not None:
        try:
            parse_node_id(to)
        except Refused:
            raise Refused(
                f"{to[:80]!r} is no address", code="bad_receiver", hint="it is 0x and 40 hex digits"
            ) from None
    return to


def _where(data_dir: Path | None, api_url: str | None, app_key: str | None) -> tuple[str, str]:
    """The node of that directory, as its owner; else the one that is known otherwise."""
    if data_dir is None:
        return credentials(api_url, app_key)
    place = Place.of(data_dir)
    return place.url, place.owners_key()


def _move(
    what: str,
    ask: Callable[[PaymentApi], Awaitable[Asked]],
    wait: bool,
    timeout_s: float,
    where: tuple[str, str],
    as_json: bool,
) -> None:
    from shem.wire.base import encode

    async def talk(api: PaymentApi) -> tuple[Asked, Transaction | None]:
        asked = await ask(api)
        if not wait:
            return asked, None
        async with _line(asked.id, as_json) as say:
            say(f"the {what} is asked for")
            return asked, await _final(api, asked.id, what, say, time.monotonic() + timeout_s)

    asked, done = asyncio.run(_with_api(where, talk))
    if as_json:
        print(encode(asked if done is None else done).decode())
    elif done is None:
        print(f"the {what} is asked for on {asked.platform}; see shem payment history {asked.id}")
    elif done.state == "final":
        print(f"{what} of {done.amount} on {done.platform} is done: {done.tx_hash} in block {done.block}")
    if done is not None and done.state == "failed":
        raise NotDone(f"the {what} failed: {done.detail or done.tx_hash}")


async def _with_api(where: tuple[str, str], talk: Callable[[PaymentApi], Awaitable[T]]) -> T:
    from shem.client.http import ApiClient
    from shem.client.payment import PaymentApi

    async with ApiClient(*where) as http:
        await http.call("GET", "/me", timeout_s=20)  # a node that does not run is told of at once
        http.patience_s = RESTART_S
        try:
            return await talk(PaymentApi(http))
        except ShemError as error:
            error.hint = _HINTS.get(error.code, error.hint)
            raise


@asynccontextmanager
async def _line(name: str, quiet: bool) -> AsyncIterator[Callable[[str], None]]:
    """One line on stderr that is written over on a terminal; a line for each news elsewhere. Who interrupts is told that
    nothing is undone by it, and what to look for: a program (``quiet``) by a JSON line."""
    from rich.console import Console
    from rich.status import Status
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, quiet=quiet)
    told: list[str] = []
    spinner = Status("", console=console)

    def say(words: str) -> None:
        if console.is_terminal:
            spinner.update(Text(words))
        elif words not in told[-1:]:
            told.append(words)
            console.print(Text(words))

    try:
        if console.is_terminal and not quiet:
            with spinner:
                yield say
        else:
            yield say
    except (asyncio.CancelledError, TimeoutError):
        console.print(Text(f"the node goes on with it; see shem payment history {name}"))
        if quiet:
            print(f'{{"id":"{name}"}}')
        raise


async def _final(api: PaymentApi, name: str, what: str, say: Callable[[str], None], ends: float) -> Transaction:
    """Raises :class:`TimeoutError` when it takes too long."""
    state: str | None = None
    while True:
        seen = await api.transaction(name, unless=state, timeout_s=min(POLL_S, max(ends - time.monotonic(), 0.0)))
        if seen.state in ("final", "failed"):
            return seen
        state = seen.state
        say(f"the {what} {_WORDS[state]}{await _hindrance(api, seen.platform)}")
        if time.monotonic() >= ends:
            raise TimeoutError(f"the {what} is asked for, and is not done yet")


async def _exited(api: PaymentApi, asked: Asked, say: Callable[[str], None], ends: float) -> ExitStatus:
    while True:
        wait_s = min(POLL_S, max(ends - time.monotonic(), 0.0))
        seen = await api.exit_status(asked.id, unless="open", timeout_s=wait_s)
        if seen.state != "open":
            return seen
        say(_progress(seen) + await _hindrance(api, asked.platform))
        if time.monotonic() >= ends:
            raise TimeoutError("the exit is begun, and is not done yet")


def _progress(seen: ExitStatus) -> str:
    if seen.withdrawal is not None:
        return f"{seen.withdrawn} are being withdrawn"
    parts = []
    if seen.closing:
        parts.append(f"{_channels(seen.closing)} being closed or paid")
    if seen.collecting:
        parts.append(f"{_channels(seen.collecting)} being collected from")
    return ", ".join(parts) or "looking at what is left"


def _channels(count: int) -> str:
    return "1 channel is" if count == 1 else f"{count} channels are"


async def _hindrance(api: PaymentApi, platform: str) -> str:
    """Why it may take long."""
    from shem.sdk.plain import plain

    network = platform.split("-")[1]
    problems = [p for p in await api.driver_status() if p.network == network]
    return f" ({plain(problems[0].message)})" if problems else ""


def tell_exit(done: ExitStatus, taken: Transaction | None) -> None:
    """For people; ``taken`` is what its withdrawal became."""
    if done.state == "open":
        print(f"the exit from the vault of {done.platform} goes on: {_progress(done)}")
    elif done.state == "failed":
        print(f"the exit from the vault of {done.platform} failed: {done.detail or 'nothing could be withdrawn'}")
    if taken is not None and done.state == "done":
        print(f"{done.withdrawn} were taken out of the vault of {done.platform} to {done.receiver}:")
        print(f"  {taken.tx_hash} in block {taken.block}")
    elif done.state == "done":
        print("nothing was free to be taken out")
    for one in done.locked:
        until = f"{one.until.astimezone():%Y-%m-%d %H:%M:%S}"
        print(f"{one.amount} stay in the channel with {one.peer} until {until}")
    if done.locked:
        print("  they come back to the vault by themselves then: shem payment withdraw all")

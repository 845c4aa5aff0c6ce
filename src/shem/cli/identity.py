"""``shem identity``: who this node is, and the key that makes it so."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shem.cli.common import ApiUrl, AppKey, Json, credentials
from shem.cli.passphrases import (
    CurrentFd,
    CurrentFile,
    PassphraseFd,
    PassphraseFile,
    given_passphrase,
    new_passphrase,
    told_passphrase,
)

if TYPE_CHECKING:
    from shem.wire.identity import Keys

app = typer.Typer(help="Who this node is, and its keys.", no_args_is_help=True)

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Of the node.", show_default="~/.local/share/shem")]
_OWN = "The passphrase of this node's key"


@app.command()
def show(data_dir: DataDir = None, api_url: ApiUrl = None, app_key: AppKey = None, as_json: Json = False) -> None:
    """The node's id, the address that other nodes reach it at, and for its owner the state of its keys.

    The owner's key lies in the data directory: name that where YAGNA_APPKEY is another.
    """
    from shem.cli.owner import Place
    from shem.client.http import ApiClient
    from shem.client.identity import IdentityApi
    from shem.errors import NotAllowed

    if data_dir is None:
        url, key = credentials(api_url, app_key)
    else:
        place = Place.of(data_dir)
        url, key = place.url, place.owners_key()

    async def ask() -> dict[str, Any]:
        async with ApiClient(url, key) as http:
            me = await http.call("GET", "/me", timeout_s=10)
            here = await http.call("GET", "/shem-api/v1/node", timeout_s=10)
            found = {
                "node_id": me["identity"],
                "app_key_name": me["name"],
                **{name: here[name] for name in ("name", "version", "address", "peers")},
            }
            try:
                return found | {"keys": _facts(await IdentityApi(http).keys())}
            except NotAllowed:
                return found

    facts = asyncio.run(ask())
    if as_json:
        print(json.dumps(facts))
        return
    typer.echo(f"node id   {facts['node_id']}")
    typer.echo(f"app key   {facts['app_key_name']}")
    typer.echo(f"address   {facts['address']}   (for --bootstrap of others)")
    typer.echo(f"peers     {len(facts['peers'])} connected")
    if "keys" in facts:
        _say(facts["keys"])


def _facts(keys: Keys) -> dict[str, Any]:
    return {
        "locked": keys.locked,
        "own_passphrase": keys.own_passphrase,
        "voucher_signer": keys.voucher_signer,
        "payouts": {payout.platform: payout.address for payout in keys.payouts},
    }


def _say(keys: dict[str, Any]) -> None:
    whose = "its owner's" if keys["own_passphrase"] else "generated, beside it"
    typer.echo(f"key       {'locked' if keys['locked'] else 'unlocked'} (passphrase: {whose})")
    typer.echo(f"vouchers  signed by {keys['voucher_signer']}")
    for platform, address in keys["payouts"].items():
        typer.echo(f"paid at   {address}   ({platform})")


# --- the running node ---


@app.command()
def lock(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Have the running node sign nothing from now on. It goes on checking and storing what comes, and answering."""
    from shem.cli.owner import Place, ask
    from shem.client.identity import IdentityApi

    keys = ask(Place.of(data_dir), lambda http: IdentityApi(http).lock(), as_owner=True)
    _end(keys, as_json, f"locked: {keys.node_id} signs nothing until shem identity unlock")
    if not as_json and not keys.own_passphrase:
        typer.echo("Its passphrase lies beside it: a restart unlocks it. See shem identity passphrase.")


@app.command()
def unlock(
    data_dir: DataDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    as_json: Json = False,
) -> None:
    """Have the running node sign again; what waited goes on."""
    from shem.cli.owner import Place, ask
    from shem.client.identity import IdentityApi

    place = Place.of(data_dir)
    keys = ask(place, lambda http: IdentityApi(http).keys(), as_owner=True)
    if keys.locked:
        said = given_passphrase(passphrase_file, passphrase_fd)
        if said is None and keys.own_passphrase:
            said = told_passphrase(_OWN, None, None)
        keys = ask(place, lambda http: IdentityApi(http).unlock(said), as_owner=True)
    _end(keys, as_json, f"unlocked: {keys.node_id} signs")


@app.command("voucher-signer")
def voucher_signer(
    new: Annotated[bool, typer.Option("--new", help="A new key, in place of the last.")] = False,
    identity: Annotated[
        bool, typer.Option("--identity", help="No key of its own: the identity signs vouchers.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Who signs vouchers: the identity, or a key that can do nothing else, and lose no more than is reserved in channels.

    Channels of the last signer are paid and closed; new ones are opened.
    """
    from shem.cli.owner import Place, ask
    from shem.client.identity import IdentityApi
    from shem.errors import Refused

    if new and identity:
        raise Refused("--new or --identity, not both", code="bad_request")
    place = Place.of(data_dir)
    if new or identity:
        keys = ask(place, lambda http: IdentityApi(http).voucher_signer(own=new), as_owner=True)
    else:
        keys = ask(place, lambda http: IdentityApi(http).keys(), as_owner=True)
    by = "a key of its own" if keys.voucher_signer != keys.node_id else "the identity"
    _end(keys, as_json, f"vouchers are signed by {keys.voucher_signer} ({by})")


def _end(keys: Keys, as_json: bool, text: str) -> None:
    if as_json:
        print(json.dumps({"node_id": keys.node_id} | _facts(keys)))
    else:
        typer.echo(text)


# --- the key file; whether the node runs or not ---


@app.command("export")
def export_key(
    file: Annotated[Path, typer.Argument(help="Where to write it; must not be there yet.")],
    data_dir: DataDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    current_file: CurrentFile = None,
    current_fd: CurrentFd = None,
    as_json: Json = False,
) -> None:
    """Write the node's key as a key file that wallets read (version 3), under a passphrase of its own that you choose."""
    from shem.errors import Conflict, Misconfigured
    from shem.node.identity import keystore
    from shem.node.identity.keyfiles import write_new

    directory = _directory(data_dir)
    secret = _secret(directory, current_file, current_fd)
    if file.exists():
        raise Conflict(f"{file} is there already", code="file_exists", hint="choose another name")
    chosen = new_passphrase("A passphrase for the exported file", passphrase_file, passphrase_fd)
    content = keystore.encrypt(secret, chosen, n=keystore.N_USER)
    if keystore.decrypt(content, chosen) != secret:  # a copy that does not open is none
        raise Misconfigured("this machine cannot encrypt a key rightly", code="keystore_unusable")
    try:
        if not write_new(file, content):
            raise Conflict(f"{file} is there already", code="file_exists", hint="choose another name")
    except OSError as error:
        raise Misconfigured(f"{file} cannot be written: {error.strerror}", code="cannot_write") from error
    node_id = keystore.address_in(directory)
    _said(as_json, {"node_id": node_id, "file": str(file)}, f"the key of {node_id} is in {file}, under your passphrase")


@app.command("import")
def import_key(
    file: Annotated[Path, typer.Argument(help="A version 3 key file, of any wallet.")],
    data_dir: DataDir = None,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    keep_passphrase: Annotated[
        bool, typer.Option(help="Keep it under your passphrase: the node starts locked. Else it opens by itself.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a node's identity of a key file, in a data directory that has none yet. A key is never overwritten."""
    from shem.errors import NotAllowed
    from shem.node.identity import keystore
    from shem.node.identity.keyfiles import KeystoreUnusable, read_foreign

    content = read_foreign(file)
    said = told_passphrase(f"The passphrase of {file.name}", passphrase_file, passphrase_fd)
    try:
        secret = keystore.decrypt(content, said)
    except keystore.WrongPassphrase as error:
        raise NotAllowed(f"{file} does not open with this passphrase", code=error.code, hint="say another") from None
    except KeystoreUnusable as error:
        raise KeystoreUnusable(
            f"{file} is no key file that can be read: {error.message}",
            hint="name a wallet's key file, of version 3 (Web3 Secret Storage)",
        ) from None
    directory = _directory(data_dir)
    made = keystore.import_secret(directory, secret, said if keep_passphrase else None)
    if keep_passphrase and made:
        _leave_presence(directory, secret)
    node_id = keystore.address_in(directory)
    state = "is the identity" if made else "was the identity already"
    facts = {"node_id": node_id, "data_dir": str(directory), "new": made}
    _said(as_json, facts, f"{node_id} {state} of {directory}")


@app.command()
def passphrase(
    data_dir: DataDir = None,
    generated: Annotated[
        bool, typer.Option("--generated", help="One that lies beside the key, so that the node opens it by itself.")
    ] = False,
    passphrase_file: PassphraseFile = None,
    passphrase_fd: PassphraseFd = None,
    current_file: CurrentFile = None,
    current_fd: CurrentFd = None,
    as_json: Json = False,
) -> None:
    """Change the passphrase of the node's key. Under one of yours the node starts locked, unless it is told it.

    A node that runs goes on as it is.
    """
    from shem.node.identity import keystore
    from shem.node.identity.presence import forget_presence

    directory = _directory(data_dir)
    secret = _secret(directory, current_file, current_fd)
    if generated:
        keystore.change_passphrase(directory, secret, None)
        forget_presence(directory)
    else:
        chosen = new_passphrase("The new passphrase", passphrase_file, passphrase_fd)
        _leave_presence(directory, secret)
        keystore.change_passphrase(directory, secret, chosen)
    facts = {"node_id": keystore.address_in(directory), "own_passphrase": not generated}
    text = (
        "the node opens its key by itself" if generated else "the node starts locked, unless it is told your passphrase"
    )
    _said(as_json, facts, text)


def _directory(data_dir: Path | None) -> Path:
    from shem.cli.owner import Place

    return Place.of(data_dir).data_dir


def _secret(directory: Path, current_file: Path | None, current_fd: int | None) -> bytes:
    """The key in a data directory, by the passphrase that lies beside it or one that is told."""
    from shem.errors import NotAllowed
    from shem.node.identity import keystore
    from shem.node.identity.keyfiles import KeystoreUnusable

    said = given_passphrase(current_file, current_fd, "current-passphrase")
    try:
        if said is None and keystore.has_own_passphrase(directory):
            said = told_passphrase(_OWN, None, None, "current-passphrase")
        return keystore.read_secret(directory, said)
    except keystore.WrongPassphrase as error:
        # At a node's start this is a setting to correct; here, as of `unlock`, something else to say.
        raise NotAllowed(error.message, code=error.code, hint=error.hint or "say another") from None
    except OSError as error:
        raise KeystoreUnusable(
            f"no identity can be read in {directory}: {os.strerror(error.errno or 0)}",
            hint="name the node's data directory",
        ) from error


def _leave_presence(directory: Path, secret: bytes) -> None:
    from datetime import UTC, datetime

    from shem.errors import Misconfigured
    from shem.node.identity.keys import Identity

    try:
        Identity(secret).leave_presence(directory, datetime.now(UTC))
    except OSError as error:
        raise Misconfigured(f"{directory} cannot be written: {error.strerror}", code="cannot_write") from error


def _said(as_json: bool, facts: dict[str, Any], text: str) -> None:
    if as_json:
        print(json.dumps(facts))
    else:
        typer.echo(text)

"""``yagna id`` and ``yagna app-key``: who the node is, and what programs show to use it.

A node of ours has one identity. For another, run another node with a data directory of its own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shem.cli.common import write_secret
from shem.cli.owner import Place, ask
from shem.cli.yagna_output import Speech, speech
from shem.errors import NotFound, NotImplementedHere, ShemError

identity = typer.Typer(help="Who the node is.", no_args_is_help=True)
app_key = typer.Typer(help="What programs show to use the node.", no_args_is_help=True)
APPS = {"id": identity, "app-key": app_key}

Which = Annotated[str | None, typer.Argument(help="The address of the identity; default: the node's own.")]
ID_COLUMNS = ("default", "locked", "delete in progress", "alias", "address")
KEY_COLUMNS = ("name", "key", "id", "role", "created")
_ANOTHER = "run another node, with a data directory of its own"


class OneIdentity(NotImplementedHere):
    """What would take several identities in one node."""

    default_code = "one_identity"


def own_id(place: Place) -> str:
    """The node's id: as it says, or else by the key in its data directory."""
    try:
        me = ask(place, lambda http: http.call("GET", "/me", timeout_s=10))
    except ShemError as unreachable:
        from shem.node.identity.keystore import address_in

        try:
            return address_in(place.data_dir)
        except (ShemError, OSError):
            raise unreachable from None
    return str(me["identity"])


def _description(node_id: str, *, locked: bool) -> dict[str, Any]:
    return {
        "Ok": {"alias": None, "deleted": False, "isDefault": True, "isLocked": locked, "nodeId": node_id},
    }


def _locked(place: Place) -> bool:
    """Whether the node that runs signs nothing now; false where none answers its owner."""
    from shem.client.identity import IdentityApi

    try:
        return ask(place, lambda http: IdentityApi(http).keys(), as_owner=True).locked
    except ShemError:
        return False


@identity.command("list")
def list_ids(ctx: typer.Context) -> None:
    """All identities: one."""
    say = speech(ctx)
    node_id, locked = own_id(say.place), _locked(say.place)
    row = {"default": True, "locked": locked, "delete in progress": False, "alias": None, "address": node_id}
    say.table(ID_COLUMNS, [row])


@identity.command("show")
def show_id(ctx: typer.Context, which: Which = None) -> None:
    """One identity; null when there is none of that name."""
    say = speech(ctx)
    node_id = own_id(say.place)
    say.value(_description(node_id, locked=_locked(say.place)) if _is_own(which, node_id) else {"Ok": None})


def _is_own(which: str | None, node_id: str) -> bool:
    return which in (None, "") or str(which).lower() == node_id


def _opened(say: Speech, which: str | None) -> Any:
    from shem.node.identity.keys import Identity

    directory = say.place.data_dir
    found = Identity.open(directory, _password() if _has_password(directory) else None)
    if not _is_own(which, found.node_id):
        raise NotFound(f"this node has no identity {which!r}", hint=f"its only one is {found.node_id}")
    return found


def _has_password(directory: Path) -> bool:
    from shem.node.identity import keystore

    return (directory / keystore.KEYSTORE).exists() and keystore.has_own_passphrase(directory)


def _password() -> str:
    from shem.cli.passphrases import told_passphrase

    return told_passphrase("Password", None, None if sys.stdin.isatty() else 0)


@identity.command("pub-key")
def public_key(ctx: typer.Context, which: Which = None) -> None:
    """The public key, of which the address is the hash."""
    say = speech(ctx)
    say.value({"pubKey": _opened(say, which).public_key.hex()})


@identity.command("sign")
def sign(
    ctx: typer.Context, file_path: Annotated[Path, typer.Argument(help="What to sign.")], which: Which = None
) -> None:
    """Sign a file: its sha-256, by the node's key."""
    say = speech(ctx)
    with file_path.open("rb") as file:
        signature: bytes = _opened(say, which).sign_file(file)
    say.value({"sig": signature.hex()})


@identity.command("export")
def export(
    ctx: typer.Context,
    which: Which = None,
    file_path: Annotated[Path | None, typer.Option(help="Write it there, for you alone, and not to stdout.")] = None,
    plain: Annotated[bool, typer.Option(help="The bare secret in hex. Whoever sees it owns the money.")] = False,
) -> None:
    """The key file, as wallets read it. Its passphrase stays where it is: see stderr."""
    from shem.node.identity import keystore

    say = speech(ctx)
    directory = say.place.data_dir
    own = _has_password(directory)
    if not own:
        _opened(say, which)
    else:
        _own_or_none(say, which)
    if plain:
        text = keystore.read_secret(directory, _password() if own else None).hex()
    else:
        text = (directory / keystore.KEYSTORE).read_text()
        whose = "the one that you gave it" if own else f"in {directory / keystore.PASSPHRASE}"
        print(f"Its passphrase is {whose}", file=sys.stderr)
    if file_path is None:
        say.text(text)
        return
    write_secret(file_path, text)
    say.nothing()


@identity.command("create")
def create(
    ctx: typer.Context,
    alias: Annotated[str | None, typer.Argument()] = None,
    no_password: Annotated[bool, typer.Option(hidden=True)] = False,
    set_default: Annotated[bool, typer.Option(hidden=True)] = False,
    from_keystore: Annotated[str | None, typer.Option(hidden=True)] = None,
    from_private_key: Annotated[str | None, typer.Option(hidden=True)] = None,
    password: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Not here: a node has one identity."""
    raise OneIdentity("this node has one identity, and makes no others", hint=_ANOTHER)


@identity.command("update")
def update(
    ctx: typer.Context,
    which: Which = None,
    alias: Annotated[str | None, typer.Option(help="Not here.")] = None,
    set_default: Annotated[bool, typer.Option(help="It is the default already.")] = False,
) -> None:
    """Nothing to change: the one identity is the default, and has no alias."""
    say = speech(ctx)
    node_id = _own_or_none(say, which)
    if alias is not None:
        raise OneIdentity("this node's one identity has no alias", hint="name it by its address, or not at all")
    say.value(_description(node_id, locked=_locked(say.place)))


@identity.command("drop")
def drop(
    ctx: typer.Context,
    which: Annotated[str, typer.Argument()],
    force: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Not here: a node without its identity is none."""
    raise OneIdentity(
        "this node has one identity, and cannot be without", hint="export it, then remove the data directory"
    )


@identity.command("lock")
def lock(
    ctx: typer.Context, which: Which = None, new_password: Annotated[bool, typer.Option(hidden=True)] = False
) -> None:
    """Have the node sign nothing until it is unlocked."""
    from shem.client.identity import IdentityApi

    say = speech(ctx)
    node_id = _own_or_none(say, which)
    if new_password:
        raise OneIdentity("a new password is not set on the way", hint="shem identity passphrase")
    keys = ask(say.place, lambda http: IdentityApi(http).lock(), as_owner=True)
    say.value(_description(node_id, locked=keys.locked))


@identity.command("unlock")
def unlock(
    ctx: typer.Context, which: Which = None, password: Annotated[str | None, typer.Option(hidden=True)] = None
) -> None:
    """Have the node sign again. Its password is asked for, or read from stdin."""
    from shem.client.identity import IdentityApi

    if password is not None:
        raise OneIdentity(
            "a password in the arguments is seen by other programs of this machine",
            hint="say it on stdin, or when asked",
        )
    say = speech(ctx)
    node_id = _own_or_none(say, which)
    keys = ask(say.place, lambda http: IdentityApi(http).keys(), as_owner=True)
    said = _password() if keys.locked and keys.own_passphrase else None
    keys = ask(say.place, lambda http: IdentityApi(http).unlock(said), as_owner=True)
    say.value(_description(node_id, locked=keys.locked))


def _own_or_none(say: Speech, which: str | None) -> str:
    node_id = own_id(say.place)
    if not _is_own(which, node_id):
        raise NotFound(f"this node has no identity {which!r}", hint=f"its only one is {node_id}")
    return node_id


@app_key.command("list")
def list_keys(
    ctx: typer.Context,
    node_id: Annotated[str | None, typer.Option("--id", help="Only those of this identity.")] = None,
    page: Annotated[int, typer.Option("--page", "-p", min=1)] = 1,
    per_page: Annotated[int | None, typer.Option(min=1, help="Default: all.")] = None,
) -> None:
    """All keys."""
    from shem.client.admin import AdminApi

    say = speech(ctx)
    found = ask(say.place, lambda http: AdminApi(http).app_keys(), as_owner=True)
    rows = [
        {"name": key.name, "key": key.key or "", "id": key.id, "role": key.role, "created": _naive(key.created)}
        for key in found
        if node_id in (None, key.id)
    ]
    start = (page - 1) * (per_page or 0)
    say.table(KEY_COLUMNS, rows[start : start + per_page] if per_page else rows)


@app_key.command("create")
def create_key(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The same name again gives the same key.")],
    node_id: Annotated[str | None, typer.Option("--id", help="The identity; there is one.")] = None,
    allow_origins: Annotated[list[str] | None, typer.Option(help="Web pages that may use the node with it.")] = None,
) -> None:
    """A key for a program; prints it."""
    from shem.client.admin import AdminApi

    say = speech(ctx)
    made = ask(
        say.place,
        lambda http: AdminApi(http).create_app_key(name, node_id=node_id, allow_origins=allow_origins or ()),
        as_owner=True,
    )
    say.text(made.key or "")


@app_key.command("drop")
def drop_key(ctx: typer.Context, name: str, node_id: Annotated[str | None, typer.Option("--id")] = None) -> None:
    """Turn away who shows it from now on."""
    from shem.client.admin import AdminApi

    say = speech(ctx)
    ask(say.place, lambda http: AdminApi(http).drop_app_key(name), as_owner=True)
    say.nothing()


@app_key.command("show")
def show_key(ctx: typer.Context, name: str) -> None:
    """One key and who may use it."""
    from shem.client.admin import AdminApi

    say = speech(ctx)
    found = ask(say.place, lambda http: AdminApi(http).app_keys(), as_owner=True)
    key = next((key for key in found if key.name == name), None)
    if key is None:
        raise NotFound(f"there is no app key named {name!r}")
    say.value(
        {
            "allowOrigins": key.allow_origins,
            "createdDate": _naive(key.created),
            "identity": key.id,
            "key": key.key,
            "name": key.name,
            "role": key.role,
        }
    )


def _naive(moment: str) -> str:
    """In UTC without saying so, as tools expect it."""
    return moment.removesuffix("+00:00")

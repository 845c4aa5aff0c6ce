"""``yagna market``, ``activity``, ``net``, ``extension`` and ``db``: what goes on."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shem.cli.owner import ask
from shem.cli.yagna_output import speech
from shem.errors import NotFound, NotImplementedHere

if TYPE_CHECKING:
    from shem.client.http import ApiClient

market = typer.Typer(help="Deals.", no_args_is_help=True)
agreements = typer.Typer(help="Those that were made.", no_args_is_help=True)
market.add_typer(agreements, name="agreements")
activity = typer.Typer(help="Work.", no_args_is_help=True)
net = typer.Typer(help="Other nodes.", no_args_is_help=True)
extension = typer.Typer(help="Programs that add commands: ours takes none.", no_args_is_help=True)
database = typer.Typer(help="The database.", no_args_is_help=True)
APPS = {"market": market, "activity": activity, "net": net, "extension": extension, "db": database}

MARKET, ACTIVITY = "/market-api/v1", "/activity-api/v1"
ANYTHING: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}


# --- market ---


@agreements.command("list")
def list_agreements(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    before: Annotated[str | None, typer.Option(help="Only those made before, RFC 3339.")] = None,
    after: Annotated[str | None, typer.Option(help="Only those made after, RFC 3339.")] = None,
    app_session_id: Annotated[str | None, typer.Option(help="Only those of this session.")] = None,
) -> None:
    """Agreements, of both roles."""
    say = speech(ctx)
    asked = {"state": state, "beforeDate": before, "afterDate": after, "appSessionId": app_session_id}
    params = {name: value for name, value in asked.items() if value is not None}
    found = ask(say.place, lambda http: http.call("GET", f"{MARKET}/agreements", params=params))
    rows = [
        {"id": one["id"], "role": one["role"], "created": one["timestamp"], "approved": one.get("approvedDate")}
        for one in found
    ]
    say.table(("id", "role", "created", "approved"), rows, title="\nMatching agreements:\n")


@agreements.command("get")
def get_agreement(
    ctx: typer.Context,
    agreement_id: Annotated[str, typer.Option("--id")],
    role: Annotated[str, typer.Option(help="Provider or Requestor.")],
) -> None:
    """One agreement, whole."""
    from urllib.parse import quote

    say = speech(ctx)

    async def question(http: ApiClient) -> Any:
        found = await http.call("GET", f"{MARKET}/agreements")
        if not any(one["id"] == agreement_id and one["role"].lower() == role.lower() for one in found):
            raise NotFound(f"there is no agreement {agreement_id!r} with you as {role}")
        return await http.call("GET", f"{MARKET}/agreements/{quote(agreement_id, safe='')}")

    say.value(ask(say.place, question))


# --- activity ---


@activity.command("status")
def activity_status(ctx: typer.Context, node_id: Annotated[str | None, typer.Option("--id")] = None) -> None:
    """How many activities are in which state: all, and those of agreements of the last hour."""
    say = speech(ctx)
    say.value(ask(say.place, _activities))


async def _activities(http: ApiClient) -> dict[str, Any]:
    recent = datetime.now(UTC) - timedelta(hours=1)
    total: Counter[str] = Counter()
    last: Counter[str] = Counter()
    newest: str | None = None
    for one in await http.call("GET", f"{MARKET}/agreements"):
        made = datetime.fromisoformat(one["timestamp"].replace("Z", "+00:00"))
        for activity_id in await http.call("GET", f"{ACTIVITY}/activity", params={"agreementId": one["id"]}):
            state = (await http.call("GET", f"{ACTIVITY}/activity/{activity_id}/state"))["state"][0]
            total[state] += 1
            newest = max(newest or "", one["timestamp"])
            if made >= recent:
                last[state] += 1
    return {"last1h": dict(last), "lastActivityTs": newest, "total": dict(total)}


# --- net ---


@net.command("status")
def net_status(ctx: typer.Context) -> None:
    """How the node is connected. It counts no bytes, so its bandwidth is null."""
    say = speech(ctx)

    async def question(http: ApiClient) -> Any:
        from shem.client.net import NetApi

        return await NetApi(http).status()

    found = ask(say.place, question)
    unknown = ("inAvgKiBps", "inKiBps", "inMib", "outAvgKiBps", "outKiBps", "outMib")
    say.value(
        {
            "nodeId": found.node_id,
            "listenAddress": found.listen_ip,
            "publicAddress": found.public_ip,
            "sessions": found.sessions,
            "bandwidth": dict.fromkeys(unknown),
        }
    )


@net.command("sessions")
def net_sessions(ctx: typer.Context) -> None:
    """Nodes that are connected."""
    say = speech(ctx)
    facts = ask(say.place, lambda http: http.call("GET", "/shem-api/v1/node"))
    columns = ("nodeId", "address", "type", "seen", "time", "ping", "in [MiB]", "out [MiB]")
    say.table(columns, [dict.fromkeys(columns) | {"nodeId": peer, "type": "p2p"} for peer in facts["peers"]])


@net.command("sockets")
def net_sockets(ctx: typer.Context) -> None:
    """None: links between our nodes are QUIC, without virtual sockets."""
    speech(ctx).table(("type", "port", "to addr", "to port", "state", "out [KiB/s]", "in [KiB/s]"), [])


def _by_itself(ctx: typer.Context) -> None:
    """Not here: the node finds and keeps its peers by itself."""
    raise NotImplementedHere("this node finds and keeps its peers by itself", hint="yagna net sessions shows them")


for _name in ("find", "ping", "connect", "disconnect", "list-neighbors"):
    net.command(_name, context_settings=ANYTHING)(_by_itself)


# --- extension, db ---


@extension.command("list")
def list_extensions(ctx: typer.Context) -> None:
    """None."""
    speech(ctx).table(("name", "autostart", "path", "args"), [])


def _no_extensions(ctx: typer.Context) -> None:
    """Not here."""
    raise NotImplementedHere("this command takes no extensions")


for _name in ("autostart", "register", "unregister"):
    extension.command(_name, context_settings=ANYTHING)(_no_extensions)


@database.command("vacuum")
def vacuum(ctx: typer.Context) -> None:
    """Not here: SQLite reuses the space."""
    raise NotImplementedHere("this node's database reuses its space by itself")

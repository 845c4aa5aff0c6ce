"""What a user needs, in the market's words."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from shem.errors import Refused
from shem.sdk.types import Need
from shem.terms.constraints import parse
from shem.terms.resources import REQUIRE
from shem.wire.payment import Decorations

ACCEPT_TIMEOUT_S = 120
"""We accept debit notes as they come; a provider may end an agreement whose notes wait longer than this."""

NOTES_EVERY_S = 3
"""How often a machine that is paid by channel bills: a voucher costs no more than a message, what is spent is seen live, and
neither side risks more than so much work."""


def demand_properties(
    package: str, need: Need, *, subnet: str, name: str, expires: datetime, decorations: Decorations, by_channel: bool
) -> dict[str, Any]:
    """The demand's properties (contract §7.2, and the resources that the sandbox is held to)."""
    often = {"golem.com.scheme.payu.debit-note.interval-sec?": NOTES_EVERY_S} if by_channel else {}
    return (
        often
        | {
            "golem.node.id.name": name,
            "golem.node.debug.subnet": subnet,
            "golem.srv.comp.expiration": int(expires.timestamp() * 1000),
            "golem.srv.comp.task_package": package,
            "golem.srv.caps.multi-activity": True,
            "golem.com.payment.debit-notes.accept-timeout?": ACCEPT_TIMEOUT_S,
            f"{REQUIRE}mem.gib": need.memory_gib,
            f"{REQUIRE}cpu.threads": need.cpu_threads,
            f"{REQUIRE}storage.gib": need.storage_gib,
            f"{REQUIRE}pids": need.pids,
        }
        | {d.key: d.value for d in decorations.properties}
    )


def demand_constraints(need: Need, *, subnet: str, decorations: Decorations) -> str:
    """The filter that offers must pass. Raises ``Refused`` (``bad_constraint``) when the user's own part is wrong."""
    parts = [
        f"(golem.node.debug.subnet={_plain(subnet)})",
        f"(golem.runtime.name={_plain(need.runtime)})",
        f"(golem.inf.mem.gib>={need.memory_gib})",
        f"(golem.inf.cpu.threads>={need.cpu_threads})",
        f"(golem.inf.storage.gib>={need.storage_gib})",
        "(golem.com.pricing.model=linear)",
        *decorations.constraints,
    ]
    if need.constraints:
        parse(need.constraints)
        parts.append(need.constraints)
    return f"(&{''.join(parts)})"


def _plain(word: str) -> str:
    if not word or set(word) & set("()*[]"):
        raise Refused(f"{word!r} cannot stand in a constraint", code="bad_constraint")
    return word

"""Why an agreement ended under us, in the words of the provider that ended it.

The words are a stranger's: they are cut to one line that is safe to print. Who ended it is the node's knowledge, so what we
ended ourselves is never put down to a provider.
"""

from __future__ import annotations

import asyncio

from shem.client.market import MarketApi
from shem.errors import PeerFailed, ShemError
from shem.sdk.plain import plain
from shem.wire.market import AgreementTerminatedEvent

PAGE = 100
"""Events in one answer: no node gives more."""
MAX_PAGES = 50
"""A session with more events than these since an agreement was made does not learn why that one ended."""
MAX_CODE = 40
PROVIDER_CODE = "golem.provider.code"
_RESERVE = "fund the account or raise budget= (see 'shem payment status'); on chains with slow finality try again"
_DUE = "see that this node stays up and can pay: 'shem payment status'"
HINTS = {
    "NoCover": _RESERVE,
    "CoverUsedUp": _RESERVE,
    "CoverEnds": _RESERVE,
    "DebitNotesDeadline": _DUE,
    "DebitNoteNotPaid": _DUE,
}
"""What to do about the provider's codes that speak of our own side."""
ELSEWHERE = "rent elsewhere: 'shem market scan' shows who offers what"


class AgreementEnded(PeerFailed):
    """The provider ended the agreement. ``details["reason"]`` is its sentence and ``details["provider_code"]`` its own code
    (``golem.provider.code``), both empty where it gave none."""

    default_code = "agreement_ended"


class Endings:
    """How agreements of one session ended."""

    def __init__(self, market: MarketApi, session_id: str) -> None:
        self._market = market
        self._session_id = session_id

    async def find(self, agreement_id: str, wait_s: float = 0.0) -> AgreementTerminatedEvent | None:
        """How it was terminated, by whichever side; waits up to ``wait_s`` for that. ``None`` also when the node cannot say:
        whoever asks has an error already, which stands."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        try:
            after = (await self._market.agreement(agreement_id)).timestamp
            for _ in range(MAX_PAGES):
                left = max(0.0, deadline - loop.time())
                found = await self._market.agreement_events(
                    after=after, timeout_s=left, max_events=PAGE, app_session_id=self._session_id
                )
                for event in found:
                    if isinstance(event, AgreementTerminatedEvent) and event.agreement_id == agreement_id:
                        return event
                if not found:
                    break
                after = found[-1].event_date
        except (ShemError, TimeoutError):
            pass
        return None

    async def by_provider(self, agreement_id: str, name: str, wait_s: float = 0.0) -> AgreementEnded | None:
        """The error that says so, if its provider ended it."""
        event = await self.find(agreement_id, wait_s)
        return None if event is None else told(event, name)


def told(event: AgreementTerminatedEvent, name: str) -> AgreementEnded | None:
    """A provider's termination as an error; ``None`` when we ended it ourselves."""
    if event.terminator != "Provider":
        return None
    given = event.reason or {}
    reason, code = plain(given.get("message") or ""), plain(given.get(PROVIDER_CODE) or "", MAX_CODE)
    return AgreementEnded(
        f"{name} ended the agreement: {reason or 'no reason given'}" + (f" ({code})" if code else ""),
        hint=HINTS.get(code, ELSEWHERE),
        reason=reason,
        provider_code=code,
    )

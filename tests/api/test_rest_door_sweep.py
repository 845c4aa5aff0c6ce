"""Every call of the node under generated junk: never a 500, never a hang, and the node still answers afterwards.

The pieces are half right on purpose: real ids among wrong ones, the API's own field names and values among nonsense, so
that the junk gets past the first check of a handler and on to the second and third.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.api.conftest import Call, Deal, World, assert_shaped

pytestmark = pytest.mark.asyncio(loop_scope="session")


def _words(text: str) -> list[str]:
    return text.split()


FIELDS = _words("""
    properties constraints proposalId validTo type timeout text state reason errorMessage agreementId activityId
    amount totalAmount totalAmountDue totalAmountAccepted makeDeposit address paymentPlatform deposit
    allocationId usageCounterVector paymentDueDate activityIds rejectionReason message driver network token run
    deploy start transfer entry_point args capture from to golem.srv.comp.expiration golem.com.usage.vector
    golem.com.pricing.model listen on components shared
""")
QUERIES = _words("""
    timeout maxEvents maxItems commandIndex afterTimestamp afterDate beforeDate appSessionId state peerId
    agreementId allocationIds network driver authToken
""")
WORDS = _words(r"""
    free offer demand Approved Terminated Ready New BAD_SERVICE INCORRECT_AMOUNT 0 1 -1 0.5 1e-19 NaN () (a=1)
    (&(a>=1)(b=*)) (a 2030-01-01T00:00:00Z 0001-01-01T00:00:00+23:59 9999-12-31T23:59:59-23:59
    1969-01-01T00:00:00Z [] {} null true deploy run gftp:// ../../etc/passwd \ud800 %00
    [{"run":{"entry_point":"x","args":[]}}] [{"deploy":{}}]
    [{"transfer":{"from":"gftp://x/y","to":"container:/a"}}]
""")
numbers = st.integers(-3, 3) | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False)
texts = st.sampled_from(WORDS) | st.text(max_size=40) | st.text(alphabet="ab.()&|!=<>*\\@[]{}\0\n", max_size=40)
scalars = st.none() | st.booleans() | numbers | texts
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | texts, inner, max_size=5),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes | None:
    """Nothing, bytes, JSON of any shape, or JSON objects of the API's own fields."""
    kind = draw(st.sampled_from(["none", "bytes", "json", "fields", "fields", "fields"]))
    if kind == "none":
        return None
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    found = draw(values if kind == "json" else st.dictionaries(st.sampled_from(FIELDS), values, max_size=8))
    return json.dumps(found).encode()


queries = st.lists(st.tuples(st.sampled_from(QUERIES) | texts, texts | numbers.map(str)), max_size=4)
headers = st.fixed_dictionaries(
    {},
    optional={
        "Content-Type": st.sampled_from(["text/plain", "application/json; charset=utf-16", "multipart/form-data", ""]),
        "Accept": st.sampled_from(["*/*", "application/xml"]),
        "Range": st.sampled_from(
            ["bytes=0-", "bytes=5-2", "bytes=-5", "bytes=999999999999-", "bytes=99999999999999999999-", "lines=1"]
        ),
        "Last-Event-ID": st.sampled_from(["x", "9" * 40, "-1"]),
        "X-Requestor-Events": st.sampled_from(["", ",,,", "RECEIVED,NONSENSE"]),
        "Content-Encoding": st.sampled_from(["gzip", "deflate", "nonsense"]),
    },
).map(lambda found: found | ({"Connection": "close"} if "Content-Encoding" in found else {}))


@dataclass(frozen=True)
class Junk:
    """What one example throws at every call."""

    ids: str | None
    """In the place of an id of the path; the last one of several."""
    query: list[tuple[str, str]]
    body: bytes | None
    headers: dict[str, str]

    @property
    def broken(self) -> bool:
        """Not even HTTP: the library's own answer will do, or none."""
        return "Content-Encoding" in self.headers

    def path(self, call: Call, deal: Deal) -> str:
        template = call.template
        if self.ids is not None and call.variables:
            template = template.replace(f"{{{call.variables[-1]}}}", _escaped(self.ids))
        pairs = "&".join(f"{_escaped(name)}={_escaped(value)}" for name, value in self.query)
        return f"{deal.fill(Call(call.method, template))}?{pairs}"


def _escaped(text: str) -> str:
    return quote(text.encode("utf-8", "replace"), safe="")


def _impatient(query: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A time-out that is a number would really be waited for."""
    kept = [(name, value) for name, value in query if name != "timeout" or not _is_number(value)]
    return kept if any(name == "timeout" for name, _ in kept) else [*kept, ("timeout", "0.002")]


def _is_number(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False


junk = st.builds(
    Junk, ids=st.none() | st.none() | texts.filter(bool), query=queries.map(_impatient), body=bodies(), headers=headers
)


async def _throw(world: World, junk: Junk) -> None:
    for door in (world.alice, world.bob):
        for call in door.calls:
            deal = await world.deal()
            try:
                answer = await door(call.method, junk.path(call, deal), junk.body, headers=junk.headers)
            except aiohttp.ServerDisconnectedError:
                assert junk.broken
                continue
            if call.template.startswith("/metrics-api/"):
                assert answer.status in (200, 400), answer  # text by nature
            elif junk.broken and answer.content_type == "text/plain":
                assert answer.status == 400, answer
            else:
                assert_shaped(answer, call)
            if call.variables and call.method != "GET" and answer.status < 300:
                await world.deal(fresh=True)  # this one may be over: the next throw finds another


QUIET = {
    "deadline": None,
    "database": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.generate,),
}


@settings(max_examples=8, derandomize=True, **QUIET)
@given(junk=junk)
async def test_no_junk_makes_the_node_stumble(world: World, junk: Junk) -> None:
    await _throw(world, junk)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=400, **QUIET)
@given(junk=junk)
async def test_no_junk_makes_the_node_stumble_however_much(world: World, junk: Junk) -> None:
    await _throw(world, junk)


async def test_afterwards_everything_still_works(world: World) -> None:
    for door in (world.alice, world.bob):
        assert (await door("GET", "/me")).status == 200
        for call in door.calls:
            if call.method == "GET" and not call.variables:
                assert_shaped(await door("GET", f"{call.template}?timeout=0.01"))
    deal = await world.deal(fresh=True)
    batch = await world.activities.exec(deal.activity_id, [{"run": {"entry_point": "x", "args": []}}])
    assert [r.result for r in await world.activities.results(deal.activity_id, batch)] == ["Ok"]

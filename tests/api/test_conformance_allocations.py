"""Allocations, accounts and what allocations add to demands, asked the same of our nodes and of the original daemon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.api.conversation import NO_CONTENT_TYPE, PAYMENT, ZERO_UUID, Conversation, moment
from tests.api.networks import PLATFORM
from tests.api.shapes import ACCOUNT, ALLOCATION, DECORATIONS

pytestmark = pytest.mark.asyncio(loop_scope="session")
ALLOCATIONS = f"{PAYMENT}/allocations"
DECORATE = f"{PAYMENT}/demandDecorations?allocationIds="
BAD_PLATFORM = f"{ALLOCATIONS}/bad-payment-platform"
INVALID = f"{ALLOCATIONS}/validation-error"


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def released(talk: Conversation) -> AsyncIterator[None]:
    """Money is set aside for no longer than a test."""
    yield
    for one in (await talk.network.ask(talk.side("R"), "GET", ALLOCATIONS)).json:
        await talk.network.ask(talk.side("R"), "DELETE", f"{ALLOCATIONS}/{one['allocationId']}")


async def allocate(talk: Conversation, total: str = "5", **more: Any) -> str:
    body = {"totalAmount": total, "makeDeposit": False, **more}
    return (await talk("R", "POST", ALLOCATIONS, body, gives=201, shape=ALLOCATION))["allocationId"]


async def test_accounts(talk: Conversation) -> None:
    for who, noun, sends in (("R", "requestorAccounts", True), ("P", "providerAccounts", False)):
        found = await talk(who, "GET", f"{PAYMENT}/{noun}", gives=200, shape=[ACCOUNT])
        mine = next(one for one in found if one["platform"] == PLATFORM)
        assert mine == {
            "platform": PLATFORM,
            "address": talk.side(who).node_id,
            "driver": "erc20",
            "network": "holesky",
            "token": "tGLM",
            "send": sends,
            "receive": not sends,
        }
        assert ([one["platform"] for one in found] == [PLATFORM]) is talk.either("free-platform", False, True)
    fresh = await talk("S", "GET", f"{PAYMENT}/requestorAccounts", gives=200, shape=[ACCOUNT])
    assert bool(fresh) is talk.either("accounts-at-once", True, False)


async def test_what_is_allocated(talk: Conversation) -> None:
    as_python_writes_it = {
        "allocationId": "",
        "totalAmount": "10",
        "spentAmount": "",
        "remainingAmount": "",
        "timestamp": moment(),
        "timeout": moment(3650 * 86400),
        "makeDeposit": False,
        "address": talk.side("R").node_id,
        "paymentPlatform": PLATFORM,
    }
    made = await talk("R", "POST", ALLOCATIONS, as_python_writes_it, gives=201, shape=ALLOCATION)
    assert (made["totalAmount"], made["spentAmount"], made["remainingAmount"]) == ("10", "0", "10")
    assert (made["paymentPlatform"], made["address"]) == (PLATFORM, talk.side("R").node_id)
    assert "timeout" in made
    for platform in ({}, {"driver": "erc20", "network": "holesky"}, {"token": "tglm"}, {"network": "holesky"}, None):
        body = {"totalAmount": "1.5", "makeDeposit": False, "paymentPlatform": platform}
        made = await talk("R", "POST", ALLOCATIONS, body, gives=201, shape=ALLOCATION)
        assert (made["paymentPlatform"], made["totalAmount"]) == (PLATFORM, "1.5")
        assert "timeout" not in made
    for total in ("0", "1e1"):
        await allocate(talk, total)
    await allocate(talk, "1", extendTimeout=5)


@pytest.mark.parametrize(
    "body",
    [
        b"{bad", b"", b"null", b"[]", b"{}", b'{"totalAmount":"1"}', b'{"makeDeposit":false}',
        b'{"totalAmount":"x","makeDeposit":false}', b'{"totalAmount":"1","makeDeposit":"no"}',
        b'{"totalAmount":"1","makeDeposit":false,"timeout":"x"}',
        b'{"totalAmount":"1","makeDeposit":false,"paymentPlatform":5}',
    ],
)  # fmt: skip
async def test_nonsense_is_no_allocation(talk: Conversation, body: bytes) -> None:
    await talk("R", "POST", ALLOCATIONS, body, gives=400)
    await talk("R", "POST", ALLOCATIONS, body, headers=NO_CONTENT_TYPE, gives=400)


@pytest.mark.parametrize(
    ("more", "type_"),
    [
        ({"paymentPlatform": "nope"}, BAD_PLATFORM),
        ({"paymentPlatform": "erc20-nope-tglm"}, BAD_PLATFORM),
        ({"paymentPlatform": "erc20-holesky-tGLM"}, BAD_PLATFORM),
        ({"paymentPlatform": {"driver": "nope"}}, BAD_PLATFORM),
        ({"paymentPlatform": {"token": "tGLM"}}, BAD_PLATFORM),
        ({"timeout": "2020-01-01T00:00:00Z"}, f"{INVALID}/timeout-passed"),
        ({"totalAmount": "100000"}, f"{INVALID}/insufficient-account-funds"),
    ],
)
async def test_problems(talk: Conversation, more: dict[str, Any], type_: str) -> None:
    body = {"totalAmount": "1", "makeDeposit": False, **more}
    problem = await talk("R", "POST", ALLOCATIONS, body, gives=400)
    assert problem.get("instance", problem["type"]) == type_
    assert problem["type"] == (INVALID if type_.startswith(INVALID) else type_)
    assert {name: problem["requestBody"][name] for name in ("totalAmount", "makeDeposit")} == {
        "totalAmount": body["totalAmount"],
        "makeDeposit": False,
    }
    if type_ == BAD_PLATFORM:
        assert problem["requestedPaymentPlatform"] == more["paymentPlatform"] or isinstance(
            more["paymentPlatform"], dict
        )
        assert problem["parseError"]
    else:
        assert (problem["paymentPlatform"], problem["address"]) == (PLATFORM, talk.side("R").node_id)
    if type_.endswith("-funds"):
        assert {"requestedFunds", "availableFunds", "reservedFunds"} <= set(problem)


async def test_odd_allocations(talk: Conversation) -> None:
    body = {"totalAmount": "1", "makeDeposit": False}
    await talk("R", "POST", ALLOCATIONS, body | {"totalAmount": 1}, gives="number-for-amount")
    await talk("R", "POST", ALLOCATIONS, body | {"totalAmount": "-1"}, gives="negative-allocation")
    await talk("R", "POST", ALLOCATIONS, body | {"address": "0x" + "1" * 40}, gives="foreign-address")
    await talk("R", "POST", ALLOCATIONS, body | {"deposit": {"id": "1", "contract": "0x" + "1" * 40}}, gives="deposits")


async def test_reading_allocations(talk: Conversation) -> None:
    first = await allocate(talk)
    second = await allocate(talk)
    one = await talk("R", "GET", f"{ALLOCATIONS}/{first}", gives=200, shape=ALLOCATION)
    listed = await talk("R", "GET", ALLOCATIONS, gives=200, shape=[ALLOCATION])
    assert [a["allocationId"] for a in listed] == [first, second]
    assert listed[0] == one
    for query, count in (
        ("maxItems=1", 1),
        ("maxItems=0", 0),
        ("maxItems=100000", 2),
        (f"afterTimestamp={moment(60)}", 0),
    ):
        found = await talk("R", "GET", f"{ALLOCATIONS}?{query}", gives=200, shape=[ALLOCATION])
        assert len(found) == count, query
    for query in ("maxItems=-1", "maxItems=x", "afterTimestamp=x"):
        await talk("R", "GET", f"{ALLOCATIONS}?{query}", gives=400)
    for wrong in (ZERO_UUID, "nope"):
        await talk("R", "GET", f"{ALLOCATIONS}/{wrong}", gives=404)
    await talk("S", "GET", ALLOCATIONS, gives=200, shape=[])
    for who in "SP":
        await talk(who, "GET", f"{ALLOCATIONS}/{first}", gives=404)
    await talk("R", "GET", f"{ALLOCATIONS}/{first}/orders", gives=404)


async def test_amending(talk: Conversation) -> None:
    at = f"{ALLOCATIONS}/{await allocate(talk)}"
    made = await talk("R", "PUT", at, {"totalAmount": "7"}, gives=200, shape=ALLOCATION)
    assert (made["totalAmount"], made["remainingAmount"]) == ("7", "7")
    made = await talk("R", "PUT", at, {"timeout": moment(100)}, gives=200, shape=ALLOCATION)
    assert (made["totalAmount"], "timeout" in made) == ("7", True)
    made = await talk("R", "PUT", at, made | {"totalAmount": "8", "spentAmount": ""}, gives=200, shape=ALLOCATION)
    assert made["totalAmount"] == "8"
    await talk("R", "PUT", at, {}, gives=200, shape=ALLOCATION)
    for body in (
        b"{bad",
        b"",
        b"null",
        b'{"totalAmount":"x"}',
        b'{"timeout":"x"}',
        b'{"timeout":"2020-01-01T00:00:00Z"}',
    ):
        await talk("R", "PUT", at, body, gives=400)
    problem = await talk("R", "PUT", at, {"totalAmount": "100000"}, gives=400)
    assert problem["instance"] == f"{INVALID}/insufficient-account-funds"
    for who, wrong in (("R", f"{ALLOCATIONS}/{ZERO_UUID}"), ("R", f"{ALLOCATIONS}/nope"), ("S", at), ("P", at)):
        await talk(who, "PUT", wrong, {"totalAmount": "7"}, gives=404)
    assert (await talk("R", "GET", at, gives=200, shape=ALLOCATION))["totalAmount"] == "8"


async def test_releasing(talk: Conversation) -> None:
    made = await allocate(talk)
    at = f"{ALLOCATIONS}/{made}"
    await talk("S", "DELETE", at, gives=404)
    await talk("R", "DELETE", at, gives=200, shape=None)
    await talk("R", "DELETE", at, gives=410)
    await talk("R", "GET", at, gives=404)
    await talk("R", "PUT", at, {"totalAmount": "7"}, gives=404)
    await talk("R", "GET", f"{DECORATE}{made}", gives=404)
    for wrong in (ZERO_UUID, "nope"):
        await talk("R", "DELETE", f"{ALLOCATIONS}/{wrong}", gives=404)
    await talk("R", "GET", ALLOCATIONS, gives=200, shape=[])


async def test_an_allocation_ends_by_itself(talk: Conversation) -> None:
    at = f"{ALLOCATIONS}/{await allocate(talk, timeout=moment(1))}"
    await talk.until("R", at, lambda answer: answer.status != 200)
    await talk("R", "GET", at, gives=404)
    await talk("R", "DELETE", at, gives=410)


async def test_decorations(talk: Conversation) -> None:
    first, second = await allocate(talk), await allocate(talk)
    address = f"golem.com.payment.platform.{PLATFORM}.address"
    found = await talk("R", "GET", f"{DECORATE}{first}", gives=200, shape=DECORATIONS)
    mine = {"key": address, "value": talk.side("R").node_id}
    version = {"key": "golem.com.payment.protocol.version", "value": "3"}
    assert found == {
        "properties": [mine, version],
        "constraints": [f"({address}=*)", "(golem.com.payment.protocol.version>1)"],
    }
    found = await talk("R", "GET", f"{DECORATE}{first},{second}", gives=200, shape=DECORATIONS)
    assert found == {
        "properties": [mine, mine, version],
        "constraints": [f"(|\n  ({address}=*)\n  ({address}=*)\n)", "(golem.com.payment.protocol.version>1)"],
    }
    for query in (f"{first}&allocationIds={second}",):
        await talk("R", "GET", DECORATE + query, gives=400)
    await talk("R", "GET", f"{PAYMENT}/demandDecorations", gives=400)
    for query in (ZERO_UUID, "nope", "", f"{first},", f"{first},nope"):
        await talk("R", "GET", DECORATE + query, gives=404)
    await talk("S", "GET", DECORATE + first, gives=404)

"""What a careless or hostile client may send: bodies, ids and queries that are wrong in every way we could think of."""

from __future__ import annotations

import asyncio
import json
import secrets

import pytest

from tests.api.conftest import ACTIVITY, MARKET, OURS, PAYMENT, Call, Door, World, assert_shaped

pytestmark = pytest.mark.asyncio(loop_scope="session")

RAW = {f"POST {OURS}/files", f"PUT {OURS}/files/{{node_id}}/{{file_id}}"}
"""Their body is content, not JSON."""
BODYLESS = {
    f"POST {OURS}/files/inbox",
    f"POST {MARKET}/agreements/{{id}}/confirm",
    f"POST {MARKET}/agreements/{{id}}/wait",
    f"POST {MARKET}/agreements/{{id}}/approve",
    f"POST {PAYMENT}/debitNotes/{{id}}/send",
    f"POST {PAYMENT}/invoices/{{id}}/send",
    f"POST {PAYMENT}/invoices/{{id}}/cancel",
    f"POST {PAYMENT}/debitNotes/{{id}}/reject",  # these two are not offered at all
    f"POST {PAYMENT}/debitNotes/{{id}}/cancel",
    f"POST {ACTIVITY}/activity/{{activity_id}}/encrypted",  # nor are these
    *(
        f"{method} {ACTIVITY}/activity/{{activity_id}}/proxy-http{rest}"
        for method in ("POST", "PUT", "PATCH")
        for rest in ("", "/{path}")
    ),
}
"""They take none, and look at none."""
OPTIONAL = {f"POST {MARKET}/agreements/{{id}}/{verb}" for verb in ("cancel", "reject", "terminate")} | {
    f"POST {MARKET}/{side}s/{{id}}/proposals/{{proposal}}/reject" for side in ("demand", "offer")
}
"""An empty body or null will do."""

NOT_JSON = {
    "empty": b"",
    "cut": b'{"a":',
    "words": b"hello",
    "two": b"{} {}",
    "not text": b"\xff\xfe{}",
    "half a character": '{"properties": {}, "constraints": "é"}'.encode("latin-1"),
    "a lone surrogate": b'{"properties": {"a": "\\ud800"}, "constraints": ""}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "nan": b'{"totalAmount": NaN}',
    "deep": b"[" * 100_000,
    "deep and closed": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "nul": b"\x00",
}
WRONG_TYPES = ["{}", "[]", "null", "true", "0", "-1", "1e400", '""', '"text"', "[null]", '{"": null}', "[[[]]]"]


def taking_json(door: Door) -> list[Call]:
    """Every call that takes a JSON body; a new route is among them by itself."""
    return [c for c in door.calls if c.method in ("POST", "PUT", "PATCH") and str(c) not in RAW | BODYLESS]


async def test_the_lists_above_name_calls_that_exist(world: World) -> None:
    assert {str(call) for call in world.alice.calls} >= RAW | BODYLESS | OPTIONAL


@pytest.mark.parametrize("kind", NOT_JSON)
async def test_what_is_not_json_is_refused_by_every_call(world: World, kind: str) -> None:
    for door in (world.alice, world.bob):
        deal = await world.deal(fresh=True)
        for call in taking_json(door):
            answer = await door(call.method, deal.fill(call), NOT_JSON[kind])
            assert_shaped(answer)
            if kind == "empty" and str(call) in OPTIONAL:
                continue
            if kind == "half a character" and call.template == f"{PAYMENT}/allocations/{{id}}":
                continue  # it looks at neither of the fields
            assert 400 <= answer.status < 500, (call, answer)


async def test_a_wrong_shape_is_refused_by_every_call(world: World) -> None:
    for door in (world.alice, world.bob):
        deal = await world.deal(fresh=True)
        for call in taking_json(door):
            for body in WRONG_TYPES:
                answer = await door(call.method, deal.fill(call), body.encode())
                assert_shaped(answer)
                if str(call) in OPTIONAL and body in ("{}", "null", '{"": null}'):
                    continue
                if call.template == f"{PAYMENT}/allocations/{{id}}" and body.startswith("{"):
                    continue  # changes nothing
                assert 400 <= answer.status < 500, (call, body, answer)


async def test_a_refusal_names_the_place_that_is_wrong(world: World) -> None:
    answer = await world.alice("POST", f"{MARKET}/demands", b'{"properties": {}, "constraints": 5}')
    assert (answer.status, answer.json["code"]) == (400, "bad_json")
    assert "constraints" in answer.json["message"]
    answer = await world.alice("POST", f"{PAYMENT}/allocations", b'{"totalAmount": "1"}')
    assert (answer.status, answer.json["code"]) == (400, "bad_json")
    assert "makeDeposit" in answer.json["message"]


async def test_a_body_above_the_limit_is_refused_by_every_call_that_reads_one(world: World) -> None:
    deal = await world.deal()
    huge = b'"' + b"x" * (9 << 20) + b'"'
    for call in taking_json(world.alice):
        answer = await world.alice(call.method, deal.fill(call), huge)
        assert answer.status in (400, 403, 404, 413), (call, answer)
        assert_shaped(answer)
    assert (await world.alice("GET", "/me")).status == 200


async def test_a_body_that_lies_about_its_length_is_not_waited_for(world: World) -> None:
    """The caller announces more than the limit and sends little: the refusal needs not wait for the rest."""
    head = world.alice.head("POST", f"{MARKET}/demands", "Content-Type: application/json", f"Content-Length: {1 << 40}")
    reader, writer = await world.alice.raw(head + b'{"properties"')
    first = await asyncio.wait_for(reader.readline(), 5)
    writer.close()
    assert b" 413 " in first or b" 400 " in first


@pytest.mark.parametrize("amount", ["-1", "NaN", "Infinity", "", " ", "1.2.3", "٣", "0x10", "9" * 400, "1" * 2001])
async def test_amounts_are_decimals_and_nothing_else(world: World, amount: str) -> None:
    body = {"totalAmount": amount, "makeDeposit": False, "paymentPlatform": "free"}
    answer = await world.alice("POST", f"{PAYMENT}/allocations", json.dumps(body).encode())
    assert answer.status == 400, answer
    assert_shaped(answer)


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "9999-12-31T23:59:59Z",
        "1969-12-31T23:59:59Z",
        "2026-02-30T00:00:00Z",
        "2030-01-01T00:00:00",
        "yesterday",
        "",
        "2030-01-01T00:00:60Z",
        "1e18",
    ],
)
async def test_times_at_the_edges_of_the_calendar(world: World, moment: str) -> None:
    deal = await world.deal(fresh=True)
    text, zone = json.dumps(moment), moment.replace("+", "%2B")
    bodies = [
        (world.alice, "POST", f"{PAYMENT}/allocations", f'{{"totalAmount":"1","makeDeposit":false,"timeout":{text}}}'),
        (world.alice, "PUT", f"{PAYMENT}/allocations/{deal.allocation_id}", f'{{"timeout":{text}}}'),
        (
            world.alice,
            "POST",
            f"{MARKET}/agreements",
            f'{{"proposalId":"{deal.proposals["demand"]}","validTo":{text}}}',
        ),
        (
            world.bob,
            "POST",
            f"{PAYMENT}/invoices",
            f'{{"agreementId":"{deal.agreement_id}","amount":"0","paymentDueDate":{text}}}',
        ),
        (
            world.bob,
            "POST",
            f"{PAYMENT}/debitNotes",
            f'{{"activityId":"{deal.activity_id}","totalAmountDue":"0","paymentDueDate":{text}}}',
        ),
    ]
    for door, method, path, body in bodies:
        assert_shaped(await door(method, path, body.encode()))
    for path in _time_queries():
        for door in (world.alice, world.bob):
            assert_shaped(await door("GET", f"{path}{zone}&timeout=0"))


def _time_queries() -> list[str]:
    noted = [f"{PAYMENT}/{noun}?afterTimestamp=" for noun in ("debitNotes", "invoices", "debitNoteEvents", "payments")]
    return [
        *noted,
        f"{PAYMENT}/invoiceEvents?afterTimestamp=",
        f"{PAYMENT}/allocations?afterTimestamp=",
        f"{OURS}/settlements?afterTimestamp=",
        f"{MARKET}/agreementEvents?afterTimestamp=",
        f"{MARKET}/agreements?afterDate=",
        f"{MARKET}/agreements?beforeDate=",
        f"{ACTIVITY}/events?afterTimestamp=",
    ]


UNKNOWN = {
    "right form, nobody's": "",
    "short": "f",
    "letters": "nothing",
    "uuid": "00000000-0000-0000-0000-000000000000",
    "long": "a" * 3000,
    "quote": "%27%20or%201=1--",
    "nul": "%00",
    "not text": "%ff%fe",
    "climbing": "..%2f..%2f..%2fetc%2fpasswd",
    "percent": "%25",
    "unicode": "%F0%9F%92%A9",
    "digits": "99999999999999999999999999",
    "negative": "-1",
    "spaces": "%20%20",
    "arabic digits": "%D9%A3",
}


def _nobodys(call: Call, name: str) -> str:
    if name == "node_id":
        return "0x" + "1" * 40
    if name in ("activity_id", "batch_id"):
        return secrets.token_hex(16)
    if name == "proposal":
        return ("P-" if "/offers/" in call.template else "R-") + secrets.token_hex(32)
    if "/demands/" in call.template or "/offers/" in call.template:
        return f"{secrets.token_hex(16)}-{secrets.token_hex(32)}"
    return secrets.token_hex(32)


@pytest.mark.parametrize("kind", UNKNOWN)
async def test_an_unknown_id_is_an_answer_and_never_an_accident(world: World, kind: str) -> None:
    deal = await world.deal()
    for door in (world.alice, world.bob):
        for call in door.calls:
            for wrong in call.variables:
                path = deal.fill(Call(call.method, call.template.replace(f"{{{wrong}}}", "\0")))
                path = path.replace("\0", UNKNOWN[kind] or _nobodys(call, wrong)) + "?timeout=0"
                answer = await door(call.method, path, _valid_body(call, deal.proposals["demand"]))
                assert_shaped(answer)
                assert answer.status in (400, 403, 404, 409, 410, 501, 504), (call, wrong, answer)


def _valid_body(call: Call, proposal_id: str) -> bytes | None:
    """A body that would do, so that it is the id that is looked at."""
    if call.method not in ("POST", "PUT"):
        return None
    for end, body in {
        "/exec": '{"text": "[]"}',
        "/state": '{"state": ["Ready", null]}',
        "/accept": '{"totalAmountAccepted": "0", "allocationId": "x"}',
        "/{proposal}": '{"properties": {}, "constraints": "()"}',
        "/invoices/{id}/reject": '{"rejectionReason": "BAD_SERVICE", "totalAmountAccepted": "0"}',
    }.items():
        if call.template.endswith(end):
            return body.encode()
    return b"{}"


async def test_ids_in_bodies_are_looked_up_like_those_in_paths(world: World) -> None:
    deal = await world.deal()
    note, invoice = f"{PAYMENT}/debitNotes/{deal.note_id}", f"{PAYMENT}/invoices/{deal.invoice_id}"
    soon = "2030-01-01T00:00:00Z"
    for unknown in ("", "0" * 64, "nobody", "\x00", "' or 1=1", "é" * 100):
        for door, path, body in [
            (world.alice, f"{MARKET}/agreements", {"proposalId": unknown, "validTo": soon}),
            (world.alice, f"{ACTIVITY}/activity", {"agreementId": unknown}),
            (world.alice, f"{ACTIVITY}/activity", unknown),
            (world.alice, f"{note}/accept", {"totalAmountAccepted": "0", "allocationId": unknown}),
            (world.alice, f"{invoice}/accept", {"totalAmountAccepted": "0", "allocationId": unknown}),
            (world.bob, f"{PAYMENT}/debitNotes", {"activityId": unknown, "totalAmountDue": "0"}),
            (world.bob, f"{PAYMENT}/invoices", {"agreementId": unknown, "amount": "0", "paymentDueDate": soon}),
        ]:
            answer = await door("POST", path, json.dumps(body).encode())
            assert_shaped(answer)
            assert 400 <= answer.status < 500, (path, unknown, answer)
    for unknown in ("", "0" * 64, "%00", "%ff", "a,b,c", ","):
        answer = await world.alice("GET", f"{PAYMENT}/demandDecorations?allocationIds={unknown}")
        assert_shaped(answer)
        assert 400 <= answer.status < 500, (unknown, answer)
        answer = await world.alice("GET", f"{ACTIVITY}/activity?agreementId={unknown}")
        assert_shaped(answer)
        assert answer.status == 400 or answer.json == [], (unknown, answer)


BELOW_ZERO = ("-1", "-0.0001")
NUMBERS = [
    "",
    "-1",
    "-0.0001",
    "nan",
    "-inf",
    "1e",
    "0x10",
    "five",
    "%ff",
    "%00",
    "1,5",
    "1_0",
    "%D9%A3",
    "--1",
    "%205",
]


@pytest.mark.parametrize("name", ["timeout", "maxEvents", "maxItems", "commandIndex"])
async def test_numbers_in_queries_that_are_none(world: World, name: str) -> None:
    deal = await world.deal()
    for door in (world.alice, world.bob):
        for call in door.calls:
            if call.method != "GET":
                continue
            for value in NUMBERS:
                rest = "" if name == "timeout" else "&timeout=0"
                path = f"{deal.fill(call)}?{name}={value}{rest}&afterTimestamp=2020-01-01T00:00:00Z"
                assert_shaped(await door("GET", path))


async def test_a_time_out_must_be_a_number(world: World) -> None:
    deal = await world.deal()
    polls = [
        f"{MARKET}/demands/{deal.demand_id}/events",
        f"{MARKET}/agreementEvents",
        f"{MARKET}/scan/{deal.scan_id}/events",
        f"{PAYMENT}/debitNoteEvents",
        f"{PAYMENT}/invoiceEvents",
        f"{OURS}/files/inbox/{deal.inbox_id}",
    ]
    for path in polls:
        for value in NUMBERS:
            if value in BELOW_ZERO:
                continue  # what is left of a caller's own time: none
            answer = await world.alice("GET", f"{path}?timeout={value}")
            assert (answer.status, answer.json["code"]) == (400, "bad_query"), (path, value, answer)
            assert "timeout" in answer.json["message"]


async def test_an_unknown_query_is_no_error(world: World) -> None:
    """Clients of the original send more than it reads."""
    answer = await world.alice("GET", f"{MARKET}/demands?unknown=%ff&x&=&&y=1&y=2")
    assert answer.status == 200

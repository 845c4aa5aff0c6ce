from __future__ import annotations

import secrets
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shem.node.market.matching import (
    INDEX_KEYS,
    IndexedOffer,
    Interest,
    InterestIndex,
    OfferIndex,
    compiled,
    is_match,
    rotated,
)

RUNTIME, SUBNET = INDEX_KEYS[:2]


def offer(number: int, constraints: str = "()", issuer: str = "bob", **properties: Any) -> IndexedOffer:
    return IndexedOffer(f"o{number}", issuer, properties, constraints)


def interest(constraint: str, owner: str | None = "alice", properties: Any = None) -> Interest:
    return Interest(secrets.token_hex(8), owner, compiled(constraint), {} if properties is None else properties)


def test_a_match_needs_both_directions() -> None:
    yes, no, undefined, broken = compiled("(a=1)"), compiled("(a=2)"), compiled("(z=1)"), compiled("(")
    assert is_match({"a": 1}, yes, {"a": 1}, yes)
    for bad in (no, undefined, broken):
        assert not is_match({"a": 1}, yes, {"a": 1}, bad)
        assert not is_match({"a": 1}, bad, {"a": 1}, yes)


def test_own_offers_are_not_wanted() -> None:
    wanted = interest("()", owner="bob")
    assert not wanted.wants(offer(1))
    assert wanted.wants(offer(1, issuer="carol"))
    assert interest("()", owner=None).wants(offer(1))


def test_one_way_without_properties() -> None:
    picky = offer(1, constraints="(never=1)")
    assert Interest("scan", None, compiled("()"), None).wants(picky)
    assert not Interest("scan", None, compiled("()"), {}).wants(picky)


def test_candidates_are_looked_at_once_and_no_more_than_needed() -> None:
    offers = {f"o{n}": offer(n, n=n) for n in range(10)}
    wanted = interest("(n>=3)")
    wanted.candidates = dict.fromkeys(offers)
    assert [o.offer_id for o in wanted.take(offers.get, 2, 100)] == ["o3", "o4"]
    assert list(wanted.candidates) == [f"o{n}" for n in range(5, 10)]
    assert len(wanted.take(offers.get, 100, 2)) == 2
    assert len(wanted.candidates) == 3
    del offers["o7"]
    assert [o.offer_id for o in wanted.take(offers.get, 100, 100)] == ["o8", "o9"]
    assert wanted.candidates == {}


def test_candidates_of_others_stay_when_one_issuer_is_asked_for() -> None:
    offers = {f"o{n}": offer(n, issuer=("bob", "carol")[n % 2]) for n in range(4)}
    wanted = interest("()")
    wanted.candidates = dict.fromkeys(offers)
    assert [o.offer_id for o in wanted.take(offers.get, 10, 10, "carol")] == ["o1", "o3"]
    assert list(wanted.candidates) == ["o0", "o2"]


def test_the_index_narrows() -> None:
    index = OfferIndex()
    for n in range(100):
        index.add(offer(n, **{RUNTIME: f"r{n % 10}", SUBNET: f"s{n % 2}"}))
    index.add(offer(100, **{RUNTIME: ["r1", "r2"]}))
    index.add(offer(101))
    found = index.candidates(compiled(f"(&({RUNTIME}=r1)({SUBNET}=s1))"))
    assert set(found) == {f"o{n}" for n in range(1, 100, 10)} | {"o100"}
    assert len(list(index.candidates(compiled("()")))) == 102
    assert list(index.candidates(None)) == []
    for n in range(102):
        assert index.remove(f"o{n}") is not None
    assert index.remove("o1") is None
    assert index.offers == {}
    assert not any(index._by_text[key] or index._not_text[key] for key in INDEX_KEYS)


def test_a_new_offer_finds_who_may_want_it() -> None:
    interests = InterestIndex()
    same, other, everybody, broken = (
        interest(f"({RUNTIME}=vm)"),
        interest(f"({RUNTIME}=wasm)"),
        interest("()"),
        interest("("),
    )
    for one in (same, other, everybody, broken):
        interests.add(one)
    assert set(interests.offered(offer(1, **{RUNTIME: "vm"}))) == {same, everybody}
    assert set(interests.offered(offer(2, **{RUNTIME: ["vm"]}))) == {same, other, everybody}
    assert set(interests.offered(offer(3))) == {everybody}
    assert list(same.candidates) == ["o1", "o2"]
    same.met.add("o1")
    assert interests.offered(offer(1, **{RUNTIME: "vm"})) == [everybody]
    for one in (same, other, everybody, broken):
        interests.remove(one.key)
    interests.remove("unknown")
    assert interests.interests == {}
    assert not any(interests._by_text.values())


values = st.sampled_from(["a", "b", 1, True, None, ["a"], ["b", "c"]])
properties = st.dictionaries(st.sampled_from([RUNTIME, SUBNET, "x"]), values)
items = st.builds(
    "({}={})".format, st.sampled_from([RUNTIME, SUBNET, "x"]), st.sampled_from(["a", "b", "1", "*", "a*"])
)
constraints = st.lists(items, max_size=3).map(lambda c: f"(&{''.join(c)})") | items.map("(!{})".format) | items


@given(st.lists(st.tuples(properties, constraints), max_size=6), constraints, properties)
def test_no_index_hides_a_match(offers: Any, wanted: str, demand: Any) -> None:
    index, interests, one = OfferIndex(), InterestIndex(), interest(wanted, properties=demand)
    interests.add(one)
    made = [IndexedOffer(f"o{n}", "bob", props, text) for n, (props, text) in enumerate(offers)]
    for single in made:
        index.add(single)
        interests.offered(single)
    expected = {single.offer_id for single in made if one.wants(single)}
    assert expected <= set(index.candidates(one.constraint))
    assert expected <= set(one.candidates)
    assert {o.offer_id for o in one.take(index.offers.get, 100, 100)} == expected


def test_demands_begin_at_different_doors() -> None:
    ids = [f"o{n}" for n in range(16)]
    assert list(rotated(ids, "00000003")) == ids[3:] + ids[:3]
    assert list(rotated([], "00000003")) == []
    starts = {next(iter(rotated(ids, secrets.token_hex(16)))) for _ in range(200)}
    assert len(starts) > 8

from __future__ import annotations

import ast
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shem.terms.constraints import MAX_CHARS, MAX_DEPTH, MAX_ITEMS, Answer, BadConstraint, Constraint, matches, parse
from shem.terms.properties import flatten

TABLE = (Path(__file__).parent / "constraints.out").read_text().splitlines()
PROPERTIES: dict[str, Any] = flatten(json.loads(TABLE[1]))


def rows() -> list[tuple[str, str]]:
    """Expression and answer of every line of the table: ``'(s=abc)'      True``."""
    found = []
    for line in TABLE[2:]:
        end = line.index("'", 1) + 1
        found.append((ast.literal_eval(line[:end]), line[end:].split()[0]))
    return found


@pytest.mark.parametrize(("text", "expected"), rows())
def test_the_original_daemon_agrees(text: str, expected: str) -> None:
    try:
        answer = str(matches(parse(text), PROPERTIES))
    except BadConstraint:
        answer = "SCAN"
    assert answer == expected


def test_the_table_is_whole() -> None:
    assert len(rows()) == 56


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        # three values
        ("(missing=1)", None),
        ("(!(missing=1))", None),
        ("(!(nul=1))", None),
        ("(&(missing=1)(s=x))", False),
        ("(&(s=x)(missing=1))", False),
        ("(|(missing=1)(s=abc))", True),
        ("(|(missing=1)(s=x))", None),
        ("(nul=*)", False),
        ("(s[aspect]=1)", None),
        ("(s[aspect]=*)", False),
        ("()", True),
        ("( )", True),
        # types
        ("(num=5.0)", True),
        ("(num=5_0)", False),
        ("(num=nan)", False),
        ("(num= 5)", False),
        ("(num>=-1e400)", True),
        ("(big=12345678901)", True),
        ("(bf=false)", True),
        ("(bt=true)", True),
        ("(bt>false)", False),
        ("(ln=[2,1])", True),
        ("(ln=[1,1])", False),
        ("(l=[b,a])", True),
        ("(el=*)", True),
        ("(el=a)", False),
        ("(s=)", False),
        ("(emp=)", True),
        # wildcards
        ("(s=a*c)", True),
        ("(s=a*b*c)", True),
        ("(s=ab*bc)", False),
        ("(s=abc*)", True),
        ("(s=a**)", True),
        ("(s=a*d)", False),
        ("(nl=a*b)", True),
        # typed
        ("(v10$v=1.10.0)", True),
        ("(v10$v<1.10.1-rc.1)", True),
        ("(v10$v>1.10.0-rc.1)", True),
        ("(v10$v>1.x)", False),
        ("(s$v>1.0.0)", False),
        ("(num$v>1.0.0)", False),
        ("(num$d>4.9)", True),
        ("(dec$d=1.5)", True),
        ("(dec$d>1e9999)", False),
        ("(dec$d<NaN)", False),
        ("(dt$t=2024-01-01T02:00:00+02:00)", True),
        ("(dt$t<2024-02-31T00:00:00Z)", False),
        ("(dt$t>2023-01-01)", False),
        ("(missing$v>1.0.0)", None),
        # space
        (" \n( & ( s=abc)\t)", True),
        ("(s=abc)) junk", True),
    ],
)
def test_answers(text: str, answer: Answer) -> None:
    assert parse(text).resolve(PROPERTIES) is answer


def test_prereleases_are_in_order() -> None:
    order = ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0"]
    for low, high in pairwise(order):
        assert parse(f"(v$v>{low})").resolve({"v": high}) is True, (low, high)
        assert parse(f"(v$v>{high})").resolve({"v": low}) is False, (low, high)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s=abc",
        "(",
        ")",
        "(s=abc",
        "(&(s=abc)",
        "(!)",
        "(!(a=1)(b=2))",
        "(=1)",
        "(abc)",
        "((a=1))",
        "(&a=1)",
        "(s=**)",
        "(&(s=*c))",
        "(" * 10_000,
        "(!" * (MAX_DEPTH + 1) + "()" + ")" * (MAX_DEPTH + 1),
        "(&" * 20_000,
        "(&" + "()" * (MAX_ITEMS + 1) + ")",
        "(s=" + "a" * MAX_CHARS + ")",
    ],
    ids=lambda text: text[:20],
)
def test_not_constraints(text: str) -> None:
    with pytest.raises(BadConstraint) as caught:
        parse(text)
    assert caught.value.code == "bad_constraint"


def test_the_deepest_that_is_allowed_works() -> None:
    assert parse("(&" * MAX_DEPTH + "()" + ")" * MAX_DEPTH).resolve({}) is True


def test_what_did_not_parse_never_matches() -> None:
    assert matches(None, {}) is False


def test_equalities_that_an_index_may_rely_on() -> None:
    found = parse("(&(a=1)(|(b=2)(c=3))(&(d=x)(e=y*))(f>1)(g=*)(!(h=1))(i$v=1.0.0))").equalities
    assert found == {"a": "1", "d": "x"}


def test_a_hostile_wildcard_is_linear() -> None:
    constraint = parse("(s=a" + "*a" * 10_000 + "b)")
    started = time.perf_counter()
    assert constraint.resolve({"s": "a" * 200_000}) is False
    assert time.perf_counter() - started < 1


text_of_constraints = st.text(alphabet="()&|!=<>*[], $vdta1.\nż@~", max_size=60)
values = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), 1 << 64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet="va1.*[],ż", max_size=8)
    | st.lists(st.text(alphabet="a1,[]", max_size=3) | st.integers() | st.booleans(), max_size=3)
)


@given(text_of_constraints, st.dictionaries(st.text(alphabet="va1.$@~", min_size=1, max_size=3), values, max_size=5))
def test_nothing_but_a_bad_constraint_is_raised(text: str, properties: dict[str, Any]) -> None:
    try:
        constraint = parse(text)
    except BadConstraint:
        return
    assert constraint.resolve(properties) in (True, False, None)


items = st.builds(
    "({}{}{})".format,
    st.sampled_from(["a", "b", "c", "a$v", "b$d", "c$t", "d"]),
    st.sampled_from(["=", "<", "<=", ">", ">="]),
    st.sampled_from(["1", "a", "a*", "[a]", "1.0.0", "true", "2024-01-01T00:00:00Z", "*"]),
).filter(lambda text: not text.endswith(("<*)", ">*)")))
trees = st.recursive(
    items | st.just("()"),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda c: "(&" + "".join(c) + ")")
        | st.lists(inner, max_size=3).map(lambda c: "(| " + "\n".join(c) + ")")
        | inner.map("(!{})".format)
    ),
    max_leaves=8,
)
few_properties = st.dictionaries(st.sampled_from(["a", "b", "c"]), values, max_size=3)


def resolve(text: str, properties: dict[str, Any]) -> Answer:
    return parse(text).resolve(properties)


@given(trees, trees, few_properties)
def test_laws_of_three_valued_logic(left: str, right: str, properties: dict[str, Any]) -> None:
    a, b = resolve(left, properties), resolve(right, properties)
    assert resolve(f"(!(!{left}))", properties) is a
    assert resolve(f"(&{left}{right})", properties) is resolve(f"(&{right}{left})", properties)
    assert resolve(f"(|{left}{right})", properties) is resolve(f"(|{right}{left})", properties)
    # De Morgan holds in Kleene's logic too
    assert resolve(f"(!(&{left}{right}))", properties) is resolve(f"(|(!{left})(!{right}))", properties)
    assert (resolve(f"(&{left}{right})", properties) is True) == (a is True and b is True)


@given(trees, few_properties)
def test_equalities_never_hide_a_match(text: str, properties: dict[str, Any]) -> None:
    constraint: Constraint = parse(text)
    if constraint.resolve(properties) is True:
        for name, value in constraint.equalities.items():
            found = properties.get(name)
            assert found is not None
            assert not isinstance(found, str) or found == value

"""No float touches money. The rule reads the whole product, and first proves that it can see."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rules.money_lint import floats_near_money, names_money

SRC = Path(__file__).resolve().parents[2] / "src" / "shem"

ALLOWED = {
    (
        "terms/pricing.py",
        "float(coeff)",
    ): "an offer carries prices as JSON numbers; one that would change on the way is refused",
    (
        "provider/presets.py",
        "float(hourly / 3600)",
    ): "decimals; the price for a second, as an offer can carry it: both sides read that",
    ("provider/presets.py", "hourly / 3600"): "decimals; as above",
    ("provider/billing.py", "float(value)"): "seconds of the agreement's terms",
    (
        "provider/negotiators.py",
        "float(value)",
    ): "a demand's prices and times, as its JSON has them, to be compared with the offer's",
    ("provider/negotiators.py", "float(bound)"): "seconds",
    ("cli/market.py", "round(amount, 9)"): "a decimal, for a table of prices; nobody is billed by it",
    ("node/app.py", "float(count)"): "counters for Prometheus",
}
"""What stands where money is handled, and why it may."""


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def test_no_float_touches_money() -> None:
    found = [
        f"{path.relative_to(SRC)}:{find.line}: {find.text}: {find.why}"
        for path in modules()
        for find in floats_near_money(path.read_text(), path)
        if (str(path.relative_to(SRC)), find.text) not in ALLOWED
    ]
    assert found == []


def test_what_is_allowed_still_stands_there() -> None:
    paths = {SRC / place for place, _ in ALLOWED}
    there = {(str(p.relative_to(SRC)), f.text) for p in paths for f in floats_near_money(p.read_text(), p)}
    assert set(ALLOWED) <= there


BAD = [
    "def pay(amount: float) -> None: ...",
    "def pay(amount: 'float | None' = None) -> None: ...",
    "class Bill:\n    total_cost: float = 0",
    "class Bill:\n    def __init__(self) -> None:\n        self.paid: float = 0",
    "costs: dict[str, float] = {}",
    "def cost(usage: list[float]) -> float: ...",
    "x = float(bill.amount)",
    "x = float(sum(costs))",
    "x = round(budget, 2)",
    "x = budget / 2",
    "x = (paid + more) / many",
    "x = 1 / price",
    "x = sum(a.cost for a in accounts) / 2",
    "x = min(left, budget) / 2",
    "x = 0.5 * amount",
    "x = amount * 1.1 + 3",
    "fee = 0.1",
    "self.hourly = 3600 * 0.1",
    "reserved += 0.5",
]
BAD_WHERE_MONEY_IS = [
    "x = float(text)",
    "x = round(y)",
    "x = y / 2",
    "x /= 2",
    "x = y / z",
    "x = y / SECONDS",
    "x = float(valid_until - amount)",
    "x = amount / 1000",
]
GOOD = [
    "def pay(amount: int) -> None: ...",
    "costs: dict[str, int] = {}",
    "x = amount // 2",
    "settle_wait_s: float = 60.0",
    "paid_at: float = 0",
    "x = budget * 3",
    "x = seconds / 2 if amount > 0.5 else 1",
    "on_paid: Callable[[int], float]",
]
GOOD_WHERE_MONEY_IS = [
    "x = left_ms / 1000",
    "x = directory / 'file'",
    "x = self.data_dir / NAME",
    "x = float('-inf')",
    "x = float(channel.valid_until + 1)",
    "x = round(time.monotonic() - started, 3)",
    "def cost(usage: Sequence[float]) -> int: ...",
]
IMPORT = "from shem.terms.amounts import parse_amount\n"
ELSEWHERE = Path("src/shem/cogs/example.py")


@pytest.mark.parametrize("source", BAD)
def test_it_sees_money_by_its_name_everywhere(source: str) -> None:
    assert floats_near_money(source, ELSEWHERE)


@pytest.mark.parametrize("source", BAD_WHERE_MONEY_IS)
def test_it_sees_every_float_where_money_is_handled(source: str) -> None:
    assert floats_near_money(IMPORT + source, ELSEWHERE)
    assert floats_near_money(source, Path("src/shem/node/payment/example.py"))


@pytest.mark.parametrize("source", [*GOOD, *GOOD_WHERE_MONEY_IS])
def test_it_lets_times_and_paths_be(source: str) -> None:
    assert floats_near_money(IMPORT + source, ELSEWHERE) == []


@pytest.mark.parametrize("place", ["terms/budgets.py", "node/payment/ledger.py", "sdk/purse.py", "sdk/bookkeeping.py"])
def test_a_float_that_slips_into_a_real_module_is_seen(place: str) -> None:
    path = SRC / place
    source = path.read_text()
    slipped = source + "\n\ndef half(amount: int) -> int:\n    return int(amount / 2)\n"
    assert len(floats_near_money(slipped, path)) == len(floats_near_money(source, path)) + 1


def test_names() -> None:
    for name in ("amount", "total_cost", "budgetUnits", "paid", "due", "reserved", "budget_total"):
        assert names_money(name), name
    for name in ("accounts", "cost_at", "paid_ms", "fee_words", "payment", "duration", "COST", "prices_file"):
        assert not names_money(name), name

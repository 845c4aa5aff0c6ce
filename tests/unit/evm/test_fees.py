from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shem.node.payment.drivers.evm import fees

GWEI = 10**9
WEI = st.integers(0, 1000 * GWEI)


@given(WEI, WEI, WEI)
def test_an_offer_is_within_the_limit_and_above_the_base_fee(base: int, tip: int, limit: int) -> None:
    offered = fees.offer(base, tip, limit)
    if offered is None:
        assert base > limit
    else:
        assert base <= offered[0] <= limit
        assert offered[1] <= offered[0]


@given(WEI, WEI, WEI, st.tuples(st.integers(1, 1000 * GWEI), WEI).map(lambda pair: (pair[0], min(pair))))
def test_a_better_offer_is_taken_by_every_pool(base: int, tip: int, limit: int, last: tuple[int, int]) -> None:
    offered = fees.better(base, tip, limit, last)
    if offered is None:
        assert limit * 10 < last[0] * 11
        return
    assert offered[1] <= offered[0] <= limit
    assert offered[0] * 10 >= last[0] * 11
    assert offered[1] * 10 >= last[1] * 11 or offered[1] == offered[0]


def test_offers_rise_to_the_limit_and_end() -> None:
    last, steps = (GWEI, GWEI // 10), 0
    while (following := fees.better(50 * GWEI, GWEI // 10, 5 * GWEI, last)) is not None:
        last, steps = following, steps + 1
        assert steps < 20
    assert last[0] * 11 > 5 * GWEI * 10
    assert fees.better(0, 0, 110, (100, 1)) == (110, 2)
    assert fees.better(0, 0, 109, (100, 1)) is None

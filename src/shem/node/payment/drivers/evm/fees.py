"""What to offer for a unit of gas, in wei: (most in all, most of it as a tip)."""

from __future__ import annotations


def offer(base_fee: int, tip: int, limit: int) -> tuple[int, int] | None:
    """What should be mined soon, also when the base fee doubles; ``None`` when ``limit`` does not reach that far."""
    if base_fee > limit:
        return None
    fee = min(limit, base_fee * 2 + tip)
    return fee, min(tip, fee)


def better(base_fee: int, tip: int, limit: int, last: tuple[int, int]) -> tuple[int, int] | None:
    """What a pool takes in place of the ``last`` offer; ``None`` above ``limit``.

    Both parts must rise by a tenth to be taken for a replacement. An eighth leaves room for rounding; the last step, to the
    limit itself, may be smaller.
    """
    fee, more = offer(base_fee, tip, limit) or (0, 0)
    fee = max(fee, last[0] * 9 // 8 + 1)
    if fee > limit:
        if limit * 10 < last[0] * 11:
            return None
        fee = limit
    return fee, min(max(more, last[1] * 9 // 8 + 1), fee)

"""One hash, two ways to it: they agree on every length, in every thread, whatever was hashed before."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from shem.node.identity import keccak


def test_known_answers():
    assert keccak.keccak256(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert keccak.keccak256(b"abc").hex() == "4e03657aea45a94fc7d47ba826c8d667c0d1e6e33a64a036ec44f58fa12d6c45"


def test_the_short_way_is_taken_here_and_agrees():
    assert keccak.keccak256 is not keccak.by_class
    draw = random.Random(1)
    for size in (*range(300), 1000, 10_000):
        data = draw.randbytes(size)
        assert keccak.keccak256(data) == keccak.by_class(data), size


def test_threads_do_not_disturb_each_other():
    inputs = [bytes([n % 256]) * (100_000 + n) for n in range(64)]  # long enough to be at it at the same time
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(keccak.keccak256, inputs))
    assert found == [keccak.by_class(data) for data in inputs]

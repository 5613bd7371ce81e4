"""What processes of one machine tell each other arrives whole, whatever its length."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pgce.neighbours import Neighbours

TOLD = [[b"one", b"another"], [b"", b"long" * 800_001], [b"", b""], [b"x" * (2**20 - 8), b"y" * (2**20 - 7)]]


def together(work):
    """What each of two threads returns, which are as processes to each other."""
    barrier, said = threading.Barrier(2, timeout=10), [b""]

    def one(rank):
        def tell(told):
            if rank == 0:
                said[0] = told
            barrier.wait()
            result = said[0]
            barrier.wait()
            return result

        neighbours = Neighbours(rank, 2, timeout=10.0, tell=tell)
        try:
            return work(neighbours, rank)
        finally:
            neighbours.close()

    with ThreadPoolExecutor(2) as threads:
        return [*threads.map(one, range(2))]


def test_words_of_any_length():
    found = together(lambda neighbours, rank: [neighbours.gather(each[rank]) for each in TOLD])
    assert found == [TOLD, TOLD]


def test_sums_and_words_in_turn():
    def work(neighbours, rank):
        numbers = np.arange(300_000.0) + rank
        neighbours.add(numbers)
        words = neighbours.gather(bytes([rank]))
        neighbours.add(numbers)
        return numbers, words

    for numbers, words in together(work):
        assert (numbers == 2 * (2 * np.arange(300_000.0) + 1)).all()
        assert words == [b"\0", b"\1"]


def test_one_that_comes_late_is_waited_for():
    def work(neighbours, rank):
        numbers = np.ones(3)
        for n in range(4):
            time.sleep(0.05 * (n % 2 == rank))
            neighbours.add(numbers)
        return numbers

    for numbers in together(work):
        assert (numbers == 16).all()


def test_one_that_has_ended_is_missed():
    def work(neighbours, rank):
        if rank == 1:
            with pytest.raises(RuntimeError, match="a process that trains with this one is lost"):
                neighbours.gather(b"anyone?")

    together(work)

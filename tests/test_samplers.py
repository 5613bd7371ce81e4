"""Which examples an epoch sees, by their frequencies."""

from __future__ import annotations

import pytest
import torch

from pgce import Batch
from pgce.samplers import balanced, shuffled, weighted

N = 50_000
LABEL = torch.tensor([5] * 40_000 + [0] * 9_990 + [3] * 10)[
    torch.randperm(N, generator=torch.Generator().manual_seed(0))
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_example_once():
    order = shuffled(Batch(torch.zeros(N, 1), {}), generator())
    assert torch.equal(order.sort().values, torch.arange(N))
    assert not torch.equal(order, shuffled(Batch(torch.zeros(N, 1), {}), generator(1)))


def test_classes_are_drawn_alike_and_examples_of_a_class_too():
    """Also where class ids are missing; within five standard errors."""
    order = balanced(Batch(torch.zeros(N, 1), {"target": LABEL}), generator())
    assert order.shape == (N,)
    for label in (0, 3, 5):
        share = (LABEL[order] == label).double().mean()
        assert abs(share - 1 / 3) < 5 * (2 / 9 / N) ** 0.5
    rare = torch.bincount(order, minlength=N)[LABEL == 3]
    assert abs(rare - N / 30).max() < 5 * (N / 30) ** 0.5


def test_by_weight():
    share = torch.zeros(N)
    share[[7, 99, N - 1]] = torch.tensor([1.0, 2.0, 5.0])
    order = weighted(Batch(torch.zeros(N, 1), {"w": share}), generator(), weight="w")
    number = torch.bincount(order, minlength=N)
    assert number.sum() == number[[7, 99, N - 1]].sum() == N
    for row, p in ((7, 1 / 8), (99, 2 / 8), (N - 1, 5 / 8)):
        assert abs(number[row] / N - p) < 5 * (p * (1 - p) / N) ** 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: balanced(Batch(torch.zeros(2, 1), {"target": torch.eye(2)}), generator()),
            "dtype torch.float32",
        ),
        (
            lambda: weighted(Batch(torch.zeros(2, 1), {"w": -torch.ones(2)}), generator(), weight="w"),
            "spans -1",
        ),
        (
            lambda: weighted(Batch(torch.zeros(2, 1), {"w": torch.zeros(2)}), generator(), weight="w"),
            "0 to 0",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()

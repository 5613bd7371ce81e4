"""Targets by hand."""

from __future__ import annotations

import pytest
import torch

from pgce.targets import one_hot, smooth, soften

LABEL = torch.tensor([[2, 0]])


def test_values():
    assert one_hot(LABEL, 3).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    expected = torch.tensor([[[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]])
    torch.testing.assert_close(smooth(one_hot(LABEL, 3), 0.3), expected)
    expected = torch.tensor([[[0.1, 0.1, 0.9], [0.9, 0.1, 0.1]]])
    torch.testing.assert_close(soften(LABEL, 3), expected)
    assert one_hot(LABEL, 3, torch.float64).dtype == torch.float64


def test_smoothing_is_what_uniform_redrawing_gives_on_average():
    """With probability ε a label drawn uniformly among all K classes."""
    redrawn = 0.75 * one_hot(LABEL, 4) + 0.25 * torch.full((4,), 0.25)
    torch.testing.assert_close(smooth(one_hot(LABEL, 4), 0.25), redrawn)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_hot(LABEL, 2), r"labels lie in 0\.\.1: label holds values from 0 to 2"),
        (lambda: one_hot(-LABEL, 3), "values from -2 to 0"),
        (lambda: one_hot(LABEL.float(), 3), "label has dtype torch.float32"),
        (lambda: one_hot(LABEL > 0, 3), "label has dtype torch.bool"),
        (lambda: one_hot(LABEL, 0), "classes is 0"),
        (lambda: smooth(LABEL, 0.1), "target has dtype torch.int64"),
        (lambda: smooth(one_hot(LABEL, 3), 1.5), "epsilon is 1.5"),
        (lambda: smooth(one_hot(LABEL, 3), float("nan")), "epsilon is nan"),
        (lambda: soften(LABEL, 3, on=0.1, off=0.9), "on is 0.1, off is 0.9"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()

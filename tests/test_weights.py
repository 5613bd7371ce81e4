"""What rules are made of."""

from __future__ import annotations

import torch

from pgce.weights import one, whiten


def test_whitening_uses_only_the_rows_that_count():
    value = torch.tensor([1.0, 2.0, 3.0, 1e6])
    mask = torch.tensor([True, True, True, False])
    white = whiten(value, mask)[mask]
    assert abs(white.mean().item()) < 1e-6
    assert abs(white.std().item() - 1) < 1e-6


def test_without_centering_no_sign_changes():
    value = torch.tensor([1.0, 2.0, 6.0])
    assert (whiten(value, center=False) > 0).all()
    torch.testing.assert_close(whiten(value, center=False), value / value.std())


def test_one_row_or_none_or_all_alike_is_no_nan():
    assert whiten(torch.tensor([5.0])).tolist() == [0.0]
    assert whiten(torch.tensor([5.0]), center=False).tolist() == [5.0]
    assert whiten(torch.zeros(0)).tolist() == []
    assert whiten(torch.full((3,), 2.0)).tolist() == [0.0, 0.0, 0.0]
    assert whiten(torch.tensor([5.0]), torch.tensor([False])).tolist() == [5.0]


def test_rounding_is_not_turned_into_noise():
    """Returns that differ by less than they can be computed to carry no signal."""
    value = 100 + 1e-5 * torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert whiten(value).std() > 0.9
    assert not whiten(value, floor=1e-3).any()
    assert torch.equal(whiten(value, floor=1e-9), whiten(value))


def test_the_weight_one_multiplies_nothing():
    assert one(torch.ones(3), None) is None

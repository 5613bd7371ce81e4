"""What rules are made of."""

from __future__ import annotations

import math

import pytest
import torch

from pgce import heads, weights
from pgce.weights import one, product, whiten


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


def test_a_product_of_rules_takes_columns_and_leaves_ones_out():
    cross_entropy, batch = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), {"each": torch.tensor([2.0, 3.0])}
    assert product(one)(cross_entropy, batch) is None
    double = product("each", one, lambda h, b: h)(cross_entropy, batch)
    assert double.tolist() == [[2.0, 4.0], [9.0, 12.0]]
    assert product("each")(cross_entropy, batch).tolist() == [[2.0, 2.0], [3.0, 3.0]]
    with pytest.raises(ValueError, match=r"each gives shape \(2, 1\), cross_entropy has shape \(3, 2\)"):
        product("each")(torch.ones(3, 2), batch)


def test_quantiles_and_expectiles_weigh_in_double_precision_where_all_is():
    y, mean = torch.tensor([1.0, -1.0]).double(), torch.zeros(2).double()
    assert weights.pinball(y, {"y": y, "logits": mean}, tau=0.9).tolist() == [0.9, 1 - 0.9]
    assert weights.expectile(y, {"y": y, "logits": mean}, tau=0.9).tolist() == [2 * 0.9, 2 * (1 - 0.9)]


def test_exponential_weights_are_capped_below_1_too():
    weight = weights.exponential(torch.tensor([-2.0, -1.0, 1.0]), beta=2.0, cap=0.5)
    torch.testing.assert_close(weight, torch.tensor([math.exp(-1), 0.5, 0.5]))


def test_poly1_may_take_all_weight_from_what_is_certain():
    assert weights.poly1(torch.tensor([0.0, math.inf]), epsilon=-1.0).tolist() == [0.0, 1.0]


def test_class_weights_by_frequency():
    number = torch.tensor([90.0, 9.0, 1.0], dtype=torch.float64)
    inverse = weights.inverse_frequency(number)
    torch.testing.assert_close(inverse * number, torch.full((3,), 100 / 3, dtype=torch.float64))
    effective = weights.effective_number(number, beta=0.9)
    published = (1 - 0.9) / (1 - 0.9**number)
    torch.testing.assert_close(effective, published * 3 / published.sum())
    assert weights.effective_number(number, beta=0.0).tolist() == [1, 1, 1]
    close = weights.effective_number(number, beta=1 - 1e-9)
    torch.testing.assert_close(close, inverse * 3 / inverse.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weights.inverse_frequency(torch.tensor([3, 0, 1])), r"there is none of \[1\], of K = 3"),
        (lambda: weights.effective_number(torch.tensor([3, 1]), beta=1.0), "it is 1.0"),
        (lambda: weights.focal(torch.ones(1), gamma=-1.0), "it is -1.0"),
        (lambda: weights.gce(torch.ones(1), q=1.1), "it is 1.1"),
        (lambda: weights.huber(torch.ones(1), delta=0.0), "delta is positive: it is 0.0"),
        (lambda: weights.pinball(torch.ones(1), {}, tau=0.0), "tau lies in"),
        (lambda: weights.asymmetric(torch.ones(1), {}, clip=1.0), "the clip lies in"),
        (lambda: weights.symmetric(torch.ones(1), alpha=-0.1), "they are -0.1, 1.0 and"),
        (lambda: weights.symmetric(torch.ones(1), log_zero=0.0), "they are 0.1, 1.0 and 0.0"),
        (lambda: weights.poly1(torch.ones(1), epsilon=-1.1), "it is -1.1"),
        (lambda: weights.exponential(torch.ones(1), beta=0.0), "they are 0.0 and 20.0"),
        (lambda: weights.exponential(torch.ones(1), cap=0.0), "they are 1.0 and 0.0"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("delta", [1e-4, 1e-2, 1.0])
def test_huber_weighs_errors_of_any_size(delta):
    mean = torch.zeros(6, requires_grad=True)
    target = delta * torch.tensor([-4.0, -2.0, -0.5, 0.1, 1.5, 3.0])
    entropy = heads.Gaussian().cross_entropy(mean, target)
    weight = weights.huber(entropy.detach(), {"logits": mean.detach(), "y": target}, delta=delta)
    (weight * entropy).sum().backward()
    other = torch.zeros(6, requires_grad=True)
    torch.nn.functional.huber_loss(other, target, delta=delta, reduction="sum").backward()
    torch.testing.assert_close(mean.grad, other.grad, rtol=1e-5, atol=0.0)

"""Heads of actions against torch.distributions, and their samples against their own densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions

import pgce
from pgce.action_heads import Beta, Joint, MultiCategorical, SquashedGaussian
from pgce.heads import Bernoulli, Categorical, Gaussian

DOUBLE = torch.float64
EPS = torch.finfo(DOUBLE).eps
LOW, HIGH = (-1.0, 0.0, -30.0), (1.0, 0.5, 10.0)
MIXED = Joint(
    (
        (Categorical(), (4,)),
        (SquashedGaussian(LOW, HIGH), (3, 2)),
        (Bernoulli(event_dims=1), (2,)),
        (MultiCategorical((2, 3)), (5,)),
        (Beta(0.0, 5.0), (1, 2)),
        (Gaussian("learned", event_dims=1), (2, 2)),
    )
)
HEADS = {
    "multi-categorical": (MultiCategorical((3, 2, 2, 4)), (6, 11)),
    "multi-categorical, equal sizes": (MultiCategorical((3, 3)), (6, 6)),
    "squashed": (SquashedGaussian(), (6, 2, 2)),
    "squashed, bounds each": (SquashedGaussian(LOW, HIGH), (6, 3, 2)),
    "beta": (Beta(-2.0, 3.0), (6, 2, 2)),
    "beta, bounds each": (Beta(LOW, HIGH), (6, 3, 2)),
    "joint": (MIXED, (6, 4 + 6 + 2 + 5 + 2 + 4)),
    "joint of joints": (Joint(((MIXED, (23,)), (Categorical(), (3,)))), (6, 26)),
}


def affine(head):
    low, high = (torch.tensor(bound, dtype=DOUBLE) for bound in (head.low, head.high))
    return low, high - low


def log_prob(head, logits, action):
    """−H in torch's words, for actions as the head samples them."""
    if isinstance(head, Categorical):
        return distributions.Categorical(logits=logits).log_prob(action)
    if isinstance(head, MultiCategorical):
        parts = zip(logits.split(head.sizes, -1), action.unbind(-1), strict=True)
        return sum(distributions.Categorical(logits=z).log_prob(y) for z, y in parts)
    if isinstance(head, Joint):
        rows = zip(head.parts, pieces(head, logits), head.split(action), strict=True)
        return sum(log_prob(part, own, y) for (part, _), own, y in rows)
    if isinstance(head, Bernoulli):
        return distributions.Bernoulli(logits=logits).log_prob(action.to(DOUBLE)).sum(-1)
    if isinstance(head, Gaussian):
        return distributions.Normal(logits[..., 0], logits[..., 1].exp()).log_prob(action).sum(-1)
    low, width = affine(head)
    if isinstance(head, Beta):
        alpha, beta = (1 + torch.nn.functional.softplus(logits)).unbind(-1)
        base, transforms = distributions.Beta(alpha, beta), []
    else:
        base = distributions.Normal(logits[..., 0], logits[..., 1].exp())
        transforms = [distributions.TanhTransform(), distributions.AffineTransform(0.5, 0.5)]
    transforms.append(distributions.AffineTransform(low, width))
    return distributions.TransformedDistribution(base, transforms).log_prob(action).sum(-1)


def pieces(head, logits):
    parts = logits.split([math.prod(shape) for _, shape in head.parts], -1)
    return [z.reshape(*z.shape[:-1], *shape) for z, (_, shape) in zip(parts, head.parts, strict=True)]


@pytest.fixture(params=HEADS)
def case(request):
    head, shape = HEADS[request.param]
    generator = torch.Generator().manual_seed(0)
    logits = 0.6 * torch.randn(shape, dtype=DOUBLE, generator=generator)  # σ < 5: few draws at the bounds
    return head, logits.requires_grad_()


def gradient(value, logits):
    return torch.autograd.grad(value.sum(), logits)[0]


def test_cross_entropy_is_minus_the_log_density(case):
    head, logits = case
    target = head.sample(logits.detach(), torch.Generator().manual_seed(1))
    ours, theirs = head.cross_entropy(logits, target), -log_prob(head, logits, target)
    assert ours.shape == head.examples(logits) == (6,)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))
    head.check(logits, target)


def test_entropy_is_the_mean_of_the_cross_entropy(case):
    """Within five standard errors of 20,000 draws."""
    head, logits = case
    many = logits.detach().repeat_interleave(20_000, 0)
    drawn = head.cross_entropy(many, head.sample(many, torch.Generator().manual_seed(0))).view(6, -1)
    error = drawn.std(-1) / math.sqrt(20_000)
    assert ((head.entropy(logits.detach()) - drawn.mean(-1)).abs() < 5 * error).all()


def test_entropies_in_closed_form_are_torch_s():
    logits = torch.randn(6, 3, 2, dtype=DOUBLE)
    alpha, beta = (1 + torch.nn.functional.softplus(logits)).unbind(-1)
    expected = (distributions.Beta(alpha, beta).entropy() + affine(Beta(LOW, HIGH))[1].log()).sum(-1)
    torch.testing.assert_close(Beta(LOW, HIGH).entropy(logits), expected)
    flat = logits.view(6, 6)
    parts = [distributions.Categorical(logits=z).entropy() for z in flat.split((1, 3, 2), -1)]
    torch.testing.assert_close(MultiCategorical((1, 3, 2)).entropy(flat), sum(parts))


@pytest.mark.parametrize(
    ("scale", "tolerance"), [(1e-3, 1e-7), (0.3, 1e-7), (1.0, 1e-7), (2.0, 1e-7), (7.0, 1e-3)]
)
def test_quadrature_is_as_good_as_it_says(scale, tolerance):
    """Against a sum over 200,001 points, for means from the middle to far outside."""
    mean = torch.linspace(-6, 6, 25, dtype=DOUBLE).unsqueeze(-1)
    deviation = torch.linspace(-9, 9, 200_001, dtype=DOUBLE)
    weight = torch.softmax(-0.5 * deviation.square(), 0)
    u = mean + scale * deviation
    slope = ((2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))) * weight).sum(-1)
    exact = slope + math.log(scale) + 0.5 * math.log(2 * math.pi * math.e)
    head, logits = SquashedGaussian(), torch.stack((mean, torch.full_like(mean, math.log(scale))), -1)
    torch.testing.assert_close(head.entropy(logits), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(
        head.mean(logits)[:, 0], (u.tanh() * weight).sum(-1), rtol=0, atol=10 * tolerance
    )


def test_entropy_target_has_the_gradient_of_the_entropy(case):
    head, logits = case
    target = head.entropy_target(logits)
    assert not target.requires_grad
    ours = gradient(head.cross_entropy(logits, target), logits)
    theirs = gradient(head.entropy(logits), logits)
    assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs)


def test_signed_weights_scale_the_gradient(case):
    head, logits = case
    target = head.sample(logits.detach(), torch.Generator().manual_seed(1))
    weight = torch.tensor([1.0, -2.0, 0.0, 3.0, -0.5, 1.0], dtype=DOUBLE)
    loss = pgce.weighted_cross_entropy(logits, target, weight, head=head, reduction="sum")
    each = gradient(head.cross_entropy(logits, target), logits)
    torch.testing.assert_close(gradient(loss, logits), each * weight.view(-1, *[1] * (logits.ndim - 1)))


def test_half_precision_is_computed_in_float32(case):
    head, logits = case
    half = logits.detach().bfloat16()
    target = head.sample(half, torch.Generator().manual_seed(1))
    assert target.dtype in (torch.float32, torch.int64)
    for ours, wide in (
        (head.cross_entropy(half, target), head.cross_entropy(half.float(), target)),
        (head.entropy(half), head.entropy(half.float())),
        (head.entropy_target(half), head.entropy_target(half.float())),
        (head.mean(half), head.mean(half.float())),
    ):
        assert torch.equal(ours, wide)
        assert ours.dtype == torch.float32


def test_float32_is_near_float64(case):
    head, logits = case
    logits = logits.detach()
    target = head.sample(logits.float(), torch.Generator().manual_seed(1))
    ours = head.cross_entropy(logits.float(), target)
    torch.testing.assert_close(ours, head.cross_entropy(logits, target).float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        head.entropy(logits.float()), head.entropy(logits).float(), rtol=1e-4, atol=1e-4
    )


def test_the_generator_decides_the_draw(case):
    head, logits = case
    one, again, other = (head.sample(logits.detach(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_axes_before_the_distribution_count_examples(case):
    head, logits = case
    logits = logits.detach()
    target = head.sample(logits)
    boxed = logits.unflatten(0, (2, 3))
    for method in ("entropy", "mode", "mean", "entropy_target"):
        ours = getattr(head, method)(boxed)
        torch.testing.assert_close(ours.flatten(0, 1), getattr(head, method)(logits))
    ours = head.cross_entropy(boxed, target.unflatten(0, (2, 3)))
    torch.testing.assert_close(ours.flatten(), head.cross_entropy(logits, target))
    one = head.cross_entropy(logits[0], target[0])
    torch.testing.assert_close(one, head.cross_entropy(logits, target)[0])
    none = head.cross_entropy(logits[:0], target[:0])
    assert none.shape == head.entropy(logits[:0]).shape == (0,)
    head.check(logits[:0], target[:0])


def test_choices_are_drawn_with_their_probabilities():
    head, n = MultiCategorical((2, 3, 3)), 100_000
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, -math.inf, 0.0, 1.0, 2.0])
    drawn = head.sample(logits.expand(n, 8), torch.Generator().manual_seed(0))
    p = head.mean(logits)
    frequency = torch.cat([torch.bincount(drawn[:, c], minlength=k) / n for c, k in enumerate(head.sizes)])
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()
    assert frequency[4] == p[4] == 0
    assert head.mode(logits).tolist() == [0, 0, 2]


def test_forbidden_choices_have_no_entropy_and_no_gradient():
    head = MultiCategorical((2, 3))
    logits = torch.tensor([[0.0, -math.inf, 0.0, 0.0, -math.inf]], requires_grad=True)
    entropy = head.entropy(logits)
    torch.testing.assert_close(entropy, torch.tensor([math.log(2)]))
    target = head.entropy_target(logits)
    for value in (
        entropy,
        head.cross_entropy(logits, target),
        head.cross_entropy(logits, torch.tensor([[0, 1]])),
    ):
        assert gradient(value, logits).isfinite().all()
    assert head.cross_entropy(logits, torch.tensor([[1, 0]])).item() == math.inf


def test_dense_rows_of_choices_are_ids():
    head, logits = MultiCategorical((3, 2, 2)), torch.randn(5, 7, dtype=DOUBLE)
    ids = head.sample(logits)
    rows = torch.cat([torch.nn.functional.one_hot(ids[:, c], k) for c, k in enumerate(head.sizes)], -1).to(
        DOUBLE
    )
    torch.testing.assert_close(head.cross_entropy(logits, rows), head.cross_entropy(logits, ids))
    torch.testing.assert_close(head.cross_entropy(logits, -2 * rows), -2 * head.cross_entropy(logits, ids))


@pytest.mark.parametrize("logit", [math.nan, -math.inf])
def test_choices_without_a_distribution_are_nan_also_where_the_row_is_zero(logit):
    logits = torch.cat([torch.full((1, 2), logit), torch.zeros(1, 3)], 1)
    assert MultiCategorical((2, 3)).cross_entropy(logits, torch.zeros(1, 5)).isnan()


@pytest.mark.parametrize("kind", [SquashedGaussian, Beta])
def test_bounded_samples_follow_their_density(kind):
    """Kolmogorov–Smirnov against the integrated density, at the level of one in a million, and the mean."""
    n, head = 50_000, kind(-2.0, 5.0)
    for pair in ([0.3, -0.5], [1.5, 0.4], [-3.0, 1.0]):
        logits = torch.tensor([pair], dtype=DOUBLE)
        drawn = head.sample(logits.expand(n, 1, 2), torch.Generator().manual_seed(0))[:, 0]
        grid = -2 + 7 * torch.linspace(-30, 30, 200_001, dtype=DOUBLE).sigmoid()  # finest at the bounds
        middle = 0.5 * (grid[1:] + grid[:-1])
        density = (-head.cross_entropy(logits.expand(200_000, 1, 2), middle.unsqueeze(-1))).exp()
        mass = (density * grid.diff()).cumsum(0)
        assert abs(mass[-1] - 1) < 1e-4
        ordered = drawn.sort().values
        expected = mass[torch.searchsorted(middle, ordered).clamp_max(199_999)]
        distance = (expected - torch.arange(1, n + 1) / n).abs().max()
        assert distance < math.sqrt(-0.5 * math.log(0.5e-6)) / math.sqrt(n) + 1e-3
        assert abs(drawn.mean() - head.mean(logits)) < 5 * drawn.std() / math.sqrt(n)


@pytest.mark.parametrize("kind", [SquashedGaussian, Beta])
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1e-3), (1e4, 1e4 + 0.01), (-3e38, 1.0)])
def test_no_action_lies_on_a_bound(kind, low, high):
    head = kind(low, high)
    extreme = torch.tensor([-1e4, -30.0, -5.0, 0.0, 5.0, 30.0, 1e4])
    logits = (
        torch.cartesian_prod(extreme, torch.tensor([-20.0, 0.0, 3.0, 40.0])).unsqueeze(1).repeat(50, 1, 1)
    )
    for action in (head.sample(logits), head.mode(logits), head.mean(logits)):
        assert ((action > low) & (action < high)).all()
        if kind is SquashedGaussian:
            logits = logits.clamp(-50, 50)
        assert head.cross_entropy(logits, action).isfinite().all()
    head.check(logits, action)


def test_actions_on_a_bound_are_scored_a_little_inside():
    for head in (SquashedGaussian(0.0, 2.0), Beta(0.0, 2.0)):
        logits = torch.zeros(2, 1, 2, dtype=DOUBLE, requires_grad=True)
        edge, inside = torch.tensor([[0.0], [2.0]]), torch.tensor([[EPS], [2 - 2 * EPS]], dtype=DOUBLE)
        ours = head.cross_entropy(logits, edge)
        torch.testing.assert_close(ours, head.cross_entropy(logits, inside), rtol=0.05, atol=0)
        assert gradient(ours, logits).isfinite().all()


def test_squashed_samples_carry_gradients():
    logits = torch.zeros(4, 1, 2, dtype=DOUBLE, requires_grad=True)
    drawn = SquashedGaussian().sample(logits, torch.Generator().manual_seed(0))
    assert (gradient(drawn, logits) != 0).all()


def test_heads_of_the_same_sizes_are_equal():
    assert MultiCategorical(np.array([2, 3])) == MultiCategorical((2, 3))


def test_modes():
    logits = torch.tensor([[[0.7, -3.0]]], dtype=DOUBLE)
    torch.testing.assert_close(SquashedGaussian().mode(logits), logits[..., 0].tanh())
    head, grid = Beta(0.0, 1.0), torch.linspace(1e-3, 1 - 1e-3, 999, dtype=DOUBLE).unsqueeze(-1)
    best = grid[head.cross_entropy(logits.expand(999, 1, 2), grid).argmin()]
    torch.testing.assert_close(head.mode(logits)[0], best, rtol=0, atol=1e-3)
    assert Beta(0.0, 1.0).mode(torch.full((1, 1, 2), -1e4)).item() == 0.5


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from(["choice", "choices", "bits", "real", "tanh", "beta"]), min_size=1, max_size=5)
)
def test_a_joint_head_is_its_parts(kinds):
    known = {
        "choice": (Categorical(), (3,)),
        "choices": (MultiCategorical((1, 2)), (3,)),
        "bits": (Bernoulli(event_dims=1), (2,)),
        "real": (Gaussian("learned", event_dims=1), (1, 2)),
        "tanh": (SquashedGaussian(), (2, 2)),
        "beta": (Beta(), (1, 2)),
    }
    head = Joint(tuple(known[kind] for kind in kinds))
    logits = torch.randn(4, sum(math.prod(shape) for _, shape in head.parts), dtype=DOUBLE)
    own = pieces(head, logits)
    for action in (head.sample(logits), head.mode(logits)):
        parts = list(zip(head.parts, own, head.split(action), strict=True))
        assert action.is_floating_point() or set(kinds) <= {"choice", "choices", "bits"}
        expected = sum(part.cross_entropy(z, y) for (part, _), z, y in parts)
        torch.testing.assert_close(head.cross_entropy(logits, action), expected)
        head.check(logits, action)
    modes = [part.mode(z) for (part, _), z in zip(head.parts, own, strict=True)]
    for one, other in zip(head.split(head.mode(logits)), modes, strict=True):
        torch.testing.assert_close(one, other.to(one.dtype))
    targets = [part.entropy_target(z) for (part, _), z in zip(head.parts, own, strict=True)]
    expected = sum(part.cross_entropy(z, y) for (part, _), z, y in zip(head.parts, own, targets, strict=True))
    torch.testing.assert_close(head.cross_entropy(logits, head.entropy_target(logits)), expected)


@pytest.mark.parametrize("kind", ["one class", "bits", "reals"])
def test_a_joint_head_whose_layouts_are_equally_wide(kind):
    """Actions and statistics cannot be told apart, and need not be."""
    part = {
        "one class": (Categorical(), (1,)),
        "bits": (Bernoulli(event_dims=1), (2,)),
        "reals": (Gaussian("learned", event_dims=1), (2, 2)),
    }[kind]
    head = Joint((part, (Gaussian("learned", event_dims=1), (1, 2))))
    logits = torch.randn(4, math.prod(part[1]) + 2, dtype=DOUBLE, requires_grad=True)
    ours = gradient(head.cross_entropy(logits, head.entropy_target(logits)), logits)
    torch.testing.assert_close(ours, gradient(head.entropy(logits), logits))
    assert head.cross_entropy(logits, head.sample(logits)).isfinite().all()


def test_heads_compare_and_hash_by_their_settings():
    assert SquashedGaussian(-1, 1) == SquashedGaussian(-1.0, 1.0)
    assert len({Beta((0.0, 1.0), 2.0), Beta((0.0, 1.0), 2.0), Beta((0.0, 1.5), 2.0)}) == 2
    assert Joint(MIXED.parts) == MIXED
    assert hash(Joint(MIXED.parts)) == hash(MIXED)


def test_class_ids_survive_half_precision():
    head = Joint(((Categorical(), (1000,)), (Gaussian("learned", event_dims=1), (1, 2))))
    logits = torch.zeros(1, 1002, dtype=torch.bfloat16)
    logits[0, 999] = 9
    ids, _ = head.split(head.mode(logits))
    assert ids.tolist() == [999]


LOGITS = torch.zeros(2, 5)
PAIR = torch.zeros(2, 1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiCategorical(()), r"sizes is \(\)"),
        (lambda: MultiCategorical((3, 0)), r"sizes is \(3, 0\)"),
        (lambda: MultiCategorical((2, 3)).examples(torch.zeros(2, 4)), r"5 classes .* shape \(2, 4\)"),
        (lambda: MultiCategorical((2, 3)).cross_entropy(LOGITS, torch.zeros(2, 2)), r"dtype torch.float32"),
        (
            lambda: MultiCategorical((2, 3)).cross_entropy(LOGITS, torch.zeros(2, 2).bool()),
            "integers: target has dtype torch.bool",
        ),
        (
            lambda: MultiCategorical((2, 3)).cross_entropy(LOGITS, torch.tensor([[0, 0], [0, 3]])),
            r"lie in 0\.\.2: target holds ids from 0 to 3",
        ),
        (
            lambda: MultiCategorical((2, 3)).check(LOGITS, torch.tensor([[0, 0], [2, 0]])),
            r"component 0 lie in 0\.\.1: target holds ids from 0 to 2",
        ),
        (lambda: SquashedGaussian(1.0, 1.0), "low is 1, high is 1"),
        (lambda: SquashedGaussian(-math.inf, 1.0), "low is -inf"),
        (lambda: Beta(0.0, math.nan), "high is nan"),
        (lambda: Beta(-3e38, 3e38), "high is 3e"),
        (lambda: Beta((0.0, 0.0), (1.0, 1.0, 1.0)), "they have 2 and 3"),
        (lambda: Beta((), 1.0), "they have 0 and "),
        (lambda: Beta((0.0, 0.0), (1.0,)), "they have 2 and 1"),
        (lambda: SquashedGaussian(1e9, 1e9 + 1), r"low is 1e\+09, high is 1e\+09"),
        (lambda: Beta(0.0, (1.0, 2.0)).entropy(PAIR), r"2 components, .* shape \(2, 1, 2\)"),
        (lambda: Beta().cross_entropy(torch.zeros(2, 3), torch.zeros(2)), r"shape \(2, 3\)"),
        (lambda: SquashedGaussian().cross_entropy(PAIR, torch.zeros(2)), r"shape \(2,\)"),
        (lambda: SquashedGaussian().check(PAIR, torch.tensor([[0.0], [1.5]])), "target holds 1.5"),
        (lambda: Beta(0.0, 1.0).check(PAIR, torch.tensor([[0.5], [-0.5]])), "target holds -0.5"),
        (lambda: Joint(()), "parts is empty"),
        (
            lambda: Joint(((Categorical(), (2, 3)),)),
            r"Categorical\(\) reads \(2,\) examples in shape \(2, 3\)",
        ),
        (lambda: Joint(((Categorical(), (4,)),)).entropy(LOGITS), r"4 numbers of 1 parts: .* \(2, 5\)"),
        (
            lambda: Joint(((Categorical(), (5,)),)).cross_entropy(LOGITS, torch.zeros(2, 3)),
            r"statistics of shape \(2, 5\): .* \(2, 3\)",
        ),
        (
            lambda: Joint(((Categorical(), (5,)),)).check(LOGITS, torch.tensor([[0.0], [1.5]])),
            "whole numbers: target holds 1.5",
        ),
        (
            lambda: Joint(((Categorical(), (5,)),)).check(LOGITS, torch.tensor([[0.0], [7.0]])),
            r"0\.\.4: target holds ids from 0 to 7",
        ),
        (
            lambda: Joint(((Categorical(), (5,)),)).cross_entropy(LOGITS, torch.zeros(2, 1) * 1j),
            "dtype torch.complex64",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Every rule against the loss as it was published: the same gradient, in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pgce import heads, targets, weighted_cross_entropy, weights

DOUBLE = torch.float64


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def ours(logits, target, rule, head=None):
    """The gradient of mean(w · H), with the weight that a rule gives, as a trainer would have it."""
    head = heads.Categorical() if head is None else head
    with torch.no_grad():
        cross_entropy = head.cross_entropy(logits, target)
        weight = rule(cross_entropy, {"target": target, "y": target, "logits": logits})
    return gradient(weighted_cross_entropy(logits, target, weight, head=head), logits)


def problem(seed, classes=6, size=50, spread=4.0):
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(size, classes, generator=g, dtype=DOUBLE)
    return logits.requires_grad_(), torch.randint(classes, (size,), generator=g)


def p_of(logits, label):
    return logits.softmax(-1).gather(-1, label[:, None])[:, 0]


def focal(logits, y, gamma):
    p = p_of(logits, y)
    return -((1 - p) ** gamma) * p.log()


def symmetric(logits, y, alpha, beta, log_zero):
    p = p_of(logits, y)
    reverse = -(logits.softmax(-1) * torch.where(F.one_hot(y, logits.shape[-1]) == 1, 0.0, log_zero)).sum(-1)
    return -alpha * p.log() + beta * reverse


LOSSES = {
    "focal 2": (partial(weights.focal, gamma=2.0), lambda z, y: focal(z, y, 2.0)),
    "focal 1": (partial(weights.focal, gamma=1.0), lambda z, y: focal(z, y, 1.0)),
    "focal 0.5": (partial(weights.focal, gamma=0.5), lambda z, y: focal(z, y, 0.5)),
    "focal 0": (partial(weights.focal, gamma=0.0), F.cross_entropy),
    "focal, factor detached": (
        partial(weights.focal, detached=True),
        lambda z, y: -((1 - p_of(z, y).detach()) ** 2) * p_of(z, y).log(),
    ),
    "GCE 0.7": (weights.gce, lambda z, y: (1 - p_of(z, y) ** 0.7) / 0.7),
    "GCE 0": (partial(weights.gce, q=0.0), F.cross_entropy),
    "MAE": (weights.mae, lambda z, y: (z.softmax(-1) - F.one_hot(y, z.shape[-1])).abs().sum(-1) / 2),
    "symmetric": (
        partial(weights.symmetric, alpha=0.3, beta=0.7, log_zero=-4.0),
        lambda z, y: symmetric(z, y, 0.3, 0.7, -4.0),
    ),
    "Poly-1": (
        partial(weights.poly1, epsilon=1.5),
        lambda z, y: F.cross_entropy(z, y, reduction="none") + 1.5 * (1 - p_of(z, y)),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(3))
def test_of_one_label(name, seed):
    rule, published = LOSSES[name]
    logits, label = problem(seed)
    expected = gradient(published(logits, label).mean(), logits)
    torch.testing.assert_close(ours(logits, label, rule), expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("logit", [0.0, 30.0, 100.0, 1000.0])
def test_the_focal_weight_is_finite_at_every_certainty(gamma, logit):
    """Where (1 − p)^(γ − 1) alone would be infinite (the published form has NaN gradients at 30)."""
    for z in (logit, -logit):
        cross_entropy = heads.Categorical().cross_entropy(torch.tensor([[z, 0.0]]), torch.tensor([0]))
        for detached in (False, True):
            weight = weights.focal(cross_entropy, gamma=gamma, detached=detached)
            assert bool(weight.isfinite()), (z, weight)
    assert weights.focal(torch.tensor([math.inf]), gamma=gamma).item() == 1


def multilabel_problem(seed, labels=5, size=40):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(size, labels, generator=g, dtype=DOUBLE)
    return logits.requires_grad_(), torch.randint(2, (size, labels), generator=g).to(DOUBLE)


def asymmetric(z, y, plus, minus, clip):
    """As in the paper: probabilities of negatives shifted down by the clip."""
    p = z.sigmoid()
    shifted = (p - clip).clamp(min=0)
    positive = (1 - p) ** plus * p.log()
    negative = shifted**minus * (1 - shifted).log()
    return -(y * positive + (1 - y) * negative)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [(0.0, 4.0, 0.05), (1.0, 2.0, 0.2), (0.5, 1.0, 0.0), (0.0, 0.0, 0.0)])
def test_asymmetric(seed, settings):
    z, y = multilabel_problem(seed)
    names = ("gamma_positive", "gamma_negative", "clip")
    rule = partial(weights.asymmetric, **dict(zip(names, settings, strict=True)))
    expected = gradient(asymmetric(z, y, *settings).mean(), z)
    torch.testing.assert_close(ours(z, y, rule, heads.Bernoulli()), expected, rtol=1e-9, atol=1e-12)


def test_pos_weight_and_focal_under_a_sigmoid():
    z, y = multilabel_problem(0)
    c = torch.tensor([1.0, 2.0, 5.0, 0.5, 10.0], dtype=DOUBLE)
    expected = gradient(F.binary_cross_entropy_with_logits(z, y, pos_weight=c), z)
    rule = partial(weights.positive, pos_weight=c)
    torch.testing.assert_close(ours(z, y, rule, heads.Bernoulli()), expected)
    p = torch.where(y == 1, z.sigmoid(), (-z).sigmoid())
    expected = gradient((-((1 - p) ** 2) * p.log()).mean(), z)
    torch.testing.assert_close(ours(z, y, weights.focal, heads.Bernoulli()), expected, rtol=1e-9, atol=1e-12)


def regression_problem(seed=0):
    g = torch.Generator().manual_seed(seed)
    mean = 2 * torch.randn(200, generator=g, dtype=DOUBLE)
    return mean.requires_grad_(), 2 * torch.randn(200, generator=g, dtype=DOUBLE)


@pytest.mark.parametrize("delta", [0.1, 1.0, 3.0])
def test_huber(delta):
    mean, y = regression_problem()
    expected = gradient(F.huber_loss(mean, y, delta=delta), mean)
    rule = partial(weights.huber, delta=delta)
    torch.testing.assert_close(ours(mean, y, rule, heads.Gaussian()), expected)


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.9])
def test_expectile_and_pinball(tau):
    mean, y = regression_problem()
    error = y - mean
    asymmetry = (tau - (error < 0).double()).abs()
    expected = gradient((asymmetry * error.square()).mean(), mean)
    rule = partial(weights.expectile, tau=tau)
    torch.testing.assert_close(ours(mean, y, rule, heads.Gaussian()), expected)
    expected = gradient(torch.maximum(tau * error, (tau - 1) * error).mean(), mean)
    rule = partial(weights.pinball, tau=tau)
    torch.testing.assert_close(ours(mean, y, rule, heads.Laplace()), expected)


def test_laplace_and_poisson_are_l1_and_poisson_nll():
    mean, y = regression_problem()
    loss = weighted_cross_entropy(mean, y, head=heads.Laplace(scale=2.0))
    torch.testing.assert_close(loss, F.l1_loss(mean, y) / 2 + math.log(4))
    counts = y.abs().round()
    loss = weighted_cross_entropy(mean, counts, head=heads.Poisson())
    expected = -torch.distributions.Poisson(mean.exp()).log_prob(counts).mean()
    torch.testing.assert_close(loss, expected)


def test_logit_adjustment_and_temperature():
    z, label = problem(0)
    prior = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.06, 0.04])
    head = heads.Transformed(partial(heads.logit_adjusted, prior=prior, tau=1.5))
    expected = F.cross_entropy(z + 1.5 * prior.double().log(), label)
    torch.testing.assert_close(weighted_cross_entropy(z, label, head=head), expected)
    assert torch.equal(head.mode(z), z.argmax(-1))
    teacher, temperature = problem(1)[0].detach(), 3.0
    student = heads.Transformed(partial(heads.tempered, temperature=temperature))
    soft = targets.distilled(teacher, temperature)
    loss = temperature**2 * weighted_cross_entropy(z, soft, head=student)
    divergence = F.kl_div((z / temperature).log_softmax(-1), soft, reduction="batchmean")
    torch.testing.assert_close(gradient(loss, z), gradient(temperature**2 * divergence, z))


def noise(classes=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(classes, classes, generator=g, dtype=DOUBLE) + 3 * torch.eye(classes)).softmax(-1)


def test_forward_correction():
    z, label = problem(0)
    T = noise()
    head = heads.Transformed(partial(heads.noisy, noise=T))
    expected = -(T.T @ z.softmax(-1).T).T.log().gather(-1, label[:, None]).mean()
    torch.testing.assert_close(weighted_cross_entropy(z, label, head=head), expected)


def test_backward_correction_is_unbiased():
    """The mean over noisy labels, drawn from a class's row of T, is the loss of the clean label."""
    z, label = problem(0)
    T = noise()
    given = torch.arange(6).expand(len(z), 6)
    losses = weighted_cross_entropy(
        z[:, None].expand(-1, 6, -1), targets.denoised(given, T), reduction="none"
    )
    expected = F.cross_entropy(z, label, reduction="none")
    torch.testing.assert_close((T[label] * losses).sum(-1), expected)


def test_class_weights_of_a_soft_target_are_the_expected_loss():
    """Σ_k v_k y_k (−log p_k), torch's own convention for dense targets, as a weight times a cross-entropy."""
    z = problem(0)[0]
    y, v = problem(1)[0].detach().softmax(-1), torch.tensor([1.0, 2.0, 3.0, 0.1, 9.0, 1.0], dtype=DOUBLE)
    weight = weights.per_class(torch.ones(len(z), dtype=DOUBLE), {"target": y}, class_weight=v)
    loss = weighted_cross_entropy(z, targets.reweighted(y, v), weight)
    torch.testing.assert_close(loss, F.cross_entropy(z, y, weight=v))


def test_class_weights_of_labels_are_torch_s():
    z, label = problem(0)
    v = torch.tensor([1.0, 2.0, 3.0, 0.1, 9.0, 1.0], dtype=DOUBLE)
    weight = weights.per_class(torch.ones(len(z), dtype=DOUBLE), {"target": label}, class_weight=v)
    loss = weighted_cross_entropy(z, label, weight, reduction="weighted_mean")
    torch.testing.assert_close(loss, F.cross_entropy(z, label, weight=v))

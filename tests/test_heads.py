"""Heads against torch.distributions, and their samples against their own probabilities."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import distributions

from pgce import softmax
from pgce.heads import Bernoulli, Categorical, Gaussian, Laplace, Poisson, Transformed, logit_adjusted, noisy

DOUBLE = torch.float64
HEADS = {
    "categorical": (Categorical(), (6, 4)),
    "bernoulli": (Bernoulli(), (6,)),
    "bernoulli event": (Bernoulli(event_dims=1), (6, 3)),
    "gaussian": (Gaussian(2.5), (6,)),
    "gaussian event": (Gaussian(0.3, event_dims=1), (6, 3)),
    "gaussian learned": (Gaussian("learned"), (6, 2)),
    "gaussian learned event": (Gaussian("learned", event_dims=1), (6, 3, 2)),
    "laplace": (Laplace(0.7), (6,)),
    "laplace event": (Laplace(event_dims=1), (6, 3)),
    "poisson": (Poisson(), (6,)),
    "poisson event": (Poisson(event_dims=1), (6, 3)),
}


def reference(head, logits):
    """The same distribution in torch's words."""
    if isinstance(head, Categorical):
        return distributions.Categorical(logits=logits)
    if isinstance(head, Bernoulli):
        return distributions.Independent(distributions.Bernoulli(logits=logits), head.event_dims)
    if isinstance(head, Poisson):
        return distributions.Independent(distributions.Poisson(logits.exp()), head.event_dims)
    if isinstance(head, Laplace):
        return distributions.Independent(distributions.Laplace(logits, head.scale), head.event_dims)
    if head.scale == "learned":
        normal = distributions.Normal(logits[..., 0], logits[..., 1].exp())
    else:
        normal = distributions.Normal(logits, head.scale)
    return distributions.Independent(normal, head.event_dims)


@pytest.fixture(params=HEADS)
def case(request):
    head, shape = HEADS[request.param]
    generator = torch.Generator().manual_seed(0)
    return head, torch.randn(shape, dtype=DOUBLE, generator=generator, requires_grad=True)


def gradient(value, logits):
    return torch.autograd.grad(value.sum(), logits)[0]


def test_cross_entropy_is_minus_the_log_density(case):
    head, logits = case
    target = head.sample(logits.detach(), torch.Generator().manual_seed(1))
    ours, theirs = (
        head.cross_entropy(logits, target),
        -reference(head, logits).log_prob(target.to(DOUBLE)),
    )
    assert ours.shape == head.examples(logits) == (6,)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, logits), gradient(theirs, logits))


def test_the_mean_is_torch_s(case):
    head, logits = case
    expected = logits.softmax(-1) if isinstance(head, Categorical) else reference(head, logits).mean
    torch.testing.assert_close(head.mean(logits), expected)


def test_entropy_is_torch_s(case):
    head, logits = case
    if isinstance(head, Poisson):
        pytest.skip("has no closed form")
    torch.testing.assert_close(head.entropy(logits), reference(head, logits).entropy())


def test_entropy_target_has_the_gradient_of_the_entropy(case):
    """Signed targets: their cross-entropy's gradient is that of H, differentiated by autograd."""
    head, logits = case
    if isinstance(head, Poisson):
        pytest.skip("has no closed form")
    ours = gradient(head.cross_entropy(logits, head.entropy_target(logits)), logits)
    if isinstance(head, Laplace) or (isinstance(head, Gaussian) and head.scale != "learned"):
        theirs = torch.zeros_like(ours)  # the entropy is a constant
    else:
        theirs = gradient(head.entropy(logits), logits)
        assert theirs.abs().max() > 0.01
    torch.testing.assert_close(ours, theirs)


def test_the_detached_p_as_target_has_no_gradient():
    """The trap that entropy_target is there to avoid."""
    logits = torch.randn(6, 4, dtype=DOUBLE, requires_grad=True)
    naive = gradient(Categorical().cross_entropy(logits, logits.detach().softmax(-1)), logits)
    torch.testing.assert_close(naive, torch.zeros_like(naive))


def test_forbidden_classes_have_no_entropy_and_are_never_drawn():
    logits = torch.tensor([[0.0, -math.inf, 0.0]]).expand(1000, 3)
    head = Categorical()
    torch.testing.assert_close(head.entropy(logits), torch.full((1000,), math.log(2)))
    assert head.entropy_target(logits).isfinite().all()
    drawn = head.sample(logits, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 2}


def test_mode_is_where_the_density_is_highest(case):
    head, logits = case
    cross_entropy = head.cross_entropy(logits, head.mode(logits))
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        drawn = head.sample(logits.detach(), generator)
        assert (cross_entropy <= head.cross_entropy(logits, drawn)).all()


def test_samples_follow_p():
    """Frequencies and moments of 200,000 draws lie within five standard errors."""
    n = 200_000
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0])
    p = logits.softmax(-1)
    drawn = Categorical().sample(logits.expand(n, 4), generator)
    frequency = torch.bincount(drawn, minlength=4) / n
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / n).sqrt()).all()

    yes = Bernoulli().sample(torch.full((n,), 0.7), generator).double().mean()
    q = torch.tensor(0.7).sigmoid()
    assert abs(yes - q) < 5 * (q * (1 - q) / n).sqrt()

    parameters = torch.tensor([1.5, math.log(0.4)])
    values = Gaussian("learned").sample(parameters.expand(n, 2), generator)
    assert abs(values.mean() - 1.5) < 5 * 0.4 / math.sqrt(n)
    assert abs(values.std() - 0.4) < 5 * 0.4 / math.sqrt(2 * n)
    fixed = Gaussian(3.0).sample(torch.zeros(n), generator)
    assert abs(fixed.std() - 3.0) < 5 * 3.0 / math.sqrt(2 * n)

    wide = Laplace(2.0).sample(torch.full((n,), 5.0), generator)
    assert abs((wide - 5).abs().mean() - 2.0) < 5 * 2.0 / math.sqrt(n)
    counts = Poisson().sample(torch.full((n,), 1.2), generator)
    assert abs(counts.mean() - math.exp(1.2)) < 5 * math.sqrt(math.exp(1.2) / n)


@pytest.mark.parametrize(
    "head", [Categorical(), Bernoulli(), Gaussian(0.1), Gaussian("learned"), Laplace(0.1)]
)
def test_half_precision_is_drawn_from_in_float32(head):
    logits = torch.tensor([100.0, -2.0], dtype=torch.bfloat16).expand(1000, 2)
    narrow, wide = (head.sample(z, torch.Generator().manual_seed(0)) for z in (logits, logits.float()))
    assert narrow.dtype == wide.dtype
    assert torch.equal(narrow, wide)


def test_the_generator_decides_the_draw(case):
    head, logits = case
    one, again, other = (head.sample(logits.detach(), torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other) or not one.is_floating_point()


def test_forward_correction_of_labels_that_some_classes_never_get():
    noise = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]])
    logits = torch.tensor([[1.0, 2.0, -1.0], [0.0, -95.0, -95.0], [0.0, 300.0, -300.0]], requires_grad=True)
    noisy(logits, noise, zeros=True)[:, 2].sum().backward()
    label = torch.log_softmax(logits.detach().double(), -1) + noise[:, 2].double().log()
    of_class = label.softmax(-1) - logits.detach().double().softmax(-1)  # what a label says of the class
    torch.testing.assert_close(noisy(logits.detach(), noise, zeros=True)[:, 2], label.logsumexp(-1).float())
    torch.testing.assert_close(logits.grad, of_class.float())
    logits = logits.detach()
    torch.testing.assert_close(noisy(logits[0], noise, zeros=True), noisy(logits[0], noise))


def test_a_transform_is_for_training_only():
    logits = torch.randn(6, 3, dtype=DOUBLE)
    head = Transformed(lambda z: z * torch.tensor([0.0, 1.0, -5.0], dtype=DOUBLE))
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    assert not torch.equal(head.cross_entropy(logits, target), Categorical().cross_entropy(logits, target))
    for method in ("mode", "mean", "examples"):
        ours, theirs = (getattr(h, method)(logits) for h in (head, Categorical()))
        assert ours == theirs if method == "examples" else torch.equal(ours, theirs)
    one, two = (h.sample(logits, torch.Generator().manual_seed(0)) for h in (head, Categorical()))
    assert torch.equal(one, two)
    with pytest.raises(ValueError, match=r"class ids lie in 0\.\.2"):
        head.check(logits, target + 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Laplace(0.0), "scale is 0.0"),
        (lambda: Laplace("learned"), "scale is 'learned'"),  # type: ignore[arg-type]  # as a Gaussian's may be
        (lambda: Poisson().check(torch.zeros(2), torch.tensor([0.0, -2.0])), "target holds -2"),
        (lambda: logit_adjusted(torch.zeros(2, 3), torch.ones(2)), r"3 classes: it has shape \(2,\)"),
        (lambda: logit_adjusted(torch.zeros(2), torch.tensor([1.0, 0.0])), "smallest 0"),
        (lambda: noisy(torch.zeros(2, 3), torch.eye(2)), r"K = 3 classes: it has shape \(2, 2\)"),
        (lambda: Laplace().cross_entropy(torch.zeros(2), torch.zeros(3)), "one target a location"),
        (lambda: Poisson().cross_entropy(torch.zeros(2), torch.zeros(3)), "one target a rate"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan, "fixed", None])
def test_gaussian_refuses_a_scale(scale):
    with pytest.raises(ValueError, match="scale is"):
        Gaussian(scale)


def test_an_event_needs_its_axes():
    with pytest.raises(ValueError, match="an event of 1 axes"):
        Bernoulli(event_dims=1).cross_entropy(torch.zeros(()), torch.zeros(()))


@pytest.mark.parametrize("laid", ["classes last", "classes first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5000, 2), (2000, 3), (300, 10), (200, 15), (20, 30, 5), (4, 300), (3, 2)])
def test_log_softmax_is_that_of_torch_with_classes_first_or_last(shape, dtype, laid, monkeypatch):
    monkeypatch.setattr(softmax, "_REGISTER", 64)  # as with AVX-512, on any processor
    logits = 5 * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    if laid == "classes first":
        logits = logits.movedim(-1, 0).contiguous().movedim(0, -1)
    logits[..., 0][logits[..., 1] > 4] = -math.inf  # forbidden
    own, theirs = (logits.clone().requires_grad_() for _ in range(2))
    values = softmax._log_softmax(own), F.log_softmax(theirs, -1)
    torch.testing.assert_close(*values)
    pull = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(2))
    for value in values:
        (value.where(value.isfinite(), 0) * pull).sum().backward()
    torch.testing.assert_close(own.grad, theirs.grad)


@pytest.mark.parametrize(
    "head", [Categorical(), Bernoulli(), Gaussian(), Gaussian("learned"), Laplace(), Poisson()]
)
def test_what_is_drawn_does_not_depend_on_how_logits_lie(head):
    shape = (64, 3, 2) if head == Gaussian("learned") else (64, 3)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    other = logits.movedim(0, -1).contiguous().movedim(-1, 0)
    drawn = [head.sample(each, torch.Generator().manual_seed(2)) for each in (logits, other)]
    assert torch.equal(*drawn)
    ids = isinstance(head, (Categorical, Bernoulli))
    assert head.mode(logits).dtype == drawn[0].dtype == (torch.int64 if ids else torch.float32)

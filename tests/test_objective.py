"""The objective against torch's own losses, its invariants, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import pgce
from pgce.heads import Bernoulli, Categorical, Gaussian

DOUBLE = torch.float64
wce = pgce.weighted_cross_entropy


def value_and_gradient(loss, logits):
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss.detach(), gradient


def assert_same(ours, theirs, logits):
    """Value and gradient equal to float64 rounding."""
    for a, b in zip(value_and_gradient(ours, logits), value_and_gradient(theirs, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", range(10))
def test_equals_torch_on_1000_random_cases(block, monkeypatch):
    """Index, dense, smoothed and class-weighted cross-entropy, BCE and MSE: 100 batches a block."""
    if block % 2:  # as of large batches
        monkeypatch.setattr("pgce.softmax._LARGE", 1)
    generator = torch.Generator().manual_seed(block)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=DOUBLE)

    for _ in range(100):
        size, classes = (int(torch.randint(1, high, (), generator=generator)) for high in (40, 12))
        spread = 10 ** (2 * torch.rand((), generator=generator, dtype=DOUBLE) - 1)
        logits = (spread * normal(size, classes)).requires_grad_()
        label = torch.randint(classes, (size,), generator=generator)
        dense = normal(size, classes).softmax(-1)
        class_weight = torch.rand(classes, generator=generator, dtype=DOUBLE) + 0.01
        epsilon = float(torch.rand((), generator=generator))

        assert_same(wce(logits, label), F.cross_entropy(logits, label), logits)
        assert_same(wce(logits, dense), F.cross_entropy(logits, dense), logits)
        smoothed = pgce.targets.smooth(pgce.targets.one_hot(label, classes, DOUBLE), epsilon)
        assert_same(wce(logits, smoothed), F.cross_entropy(logits, label, label_smoothing=epsilon), logits)
        assert_same(
            wce(logits, label, class_weight[label], reduction="weighted_mean"),
            F.cross_entropy(logits, label, class_weight),
            logits,
        )
        assert_same(
            wce(logits, label, class_weight[label]),
            F.cross_entropy(logits, label, class_weight, reduction="sum") / size,
            logits,
        )
        assert_same(
            wce(logits, class_weight * dense),
            F.cross_entropy(logits, dense, class_weight),
            logits,
        )
        probability = torch.rand(size, classes, generator=generator, dtype=DOUBLE)
        signed = normal(size, classes)
        assert_same(
            wce(logits, probability, signed, head=Bernoulli()),
            F.binary_cross_entropy_with_logits(logits, probability, signed),
            logits,
        )
        value = normal(size, classes)
        assert_same(
            2 * (wce(logits, value, head=Gaussian()) - 0.5 * math.log(2 * math.pi)),
            F.mse_loss(logits, value),
            logits,
        )


def batch(size=7, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator, dtype=DOUBLE, requires_grad=True)
    label = torch.randint(classes, (size,), generator=generator)
    weight = torch.randn(size, generator=generator, dtype=DOUBLE)
    assert (weight < 0).any(), "the invariants are for signed weights"
    assert (weight > 0).any(), "the invariants are for signed weights"
    return logits, label, weight


def test_gradient_on_the_logits_is_w_times_p_minus_y():
    logits, label, weight = batch()
    _, gradient = value_and_gradient(wce(logits, label, weight, reduction="sum"), logits)
    y = pgce.targets.one_hot(label, 5, DOUBLE)
    expected = weight[:, None] * (logits.softmax(-1) - y)
    torch.testing.assert_close(gradient, expected.detach())
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(7, dtype=DOUBLE))


def test_signed_dense_target_has_gradient_sum_y_times_p_minus_y():
    logits, _, _ = batch()
    y = torch.randn(7, 5, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    _, gradient = value_and_gradient(wce(logits, y, reduction="sum"), logits)
    torch.testing.assert_close(gradient, (y.sum(-1, keepdim=True) * logits.softmax(-1) - y).detach())


@pytest.mark.parametrize("factor", [3.0, -1.0, 0.0])
def test_scaling_the_weight_scales_value_and_gradient(factor):
    logits, label, weight = batch()
    assert_same(wce(logits, label, factor * weight), factor * wce(logits, label, weight), logits)


def test_masked_rows_equal_dropped_rows():
    logits, label, weight = batch()
    mask = torch.tensor([True, False, True, True, False, True, True])
    dropped = wce(logits[mask], label[mask], weight[mask])
    assert_same(wce(logits, label, weight, mask=mask), dropped, logits)


def test_zero_weight_counts_in_the_mean_and_masked_does_not():
    logits, label, _ = batch()
    mask = torch.tensor([True, False, True, True, False, True, True])
    zeroed, masked = wce(logits, label, mask.double()), wce(logits, label, mask=mask)
    assert_same(zeroed * 7 / 5, masked, logits)


def test_masked_rows_may_hold_anything():
    logits, label, weight = batch()
    rotten = logits.detach().clone()
    rotten[1] = math.nan
    bad_label, bad_weight = label.clone(), weight.clone()
    bad_label[1], bad_weight[1] = -100, math.inf
    mask = torch.arange(7) != 1
    rotten.requires_grad_()
    loss = wce(rotten, bad_label, bad_weight, mask=mask)
    loss.backward()
    assert loss.item() == wce(logits[mask], label[mask], weight[mask]).item()
    assert rotten.grad.isfinite().all()
    assert not rotten.grad[1].any()


def test_permuting_examples_changes_nothing():
    logits, label, weight = batch()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    assert_same(wce(logits[order], label[order], weight[order]), wce(logits, label, weight), logits)


def test_pieces_with_the_whole_batch_s_divisor_add_up():
    logits, label, weight = batch()
    pieces = [
        wce(logits[part], label[part], weight[part], reduction=7) for part in (slice(0, 2), slice(2, 7))
    ]
    assert_same(pieces[0] + pieces[1], wce(logits, label, weight), logits)
    means = sum(wce(logits[p], label[p], weight[p]) for p in (slice(0, 2), slice(2, 7))) / 2
    assert abs(means.item() - wce(logits, label, weight).item()) > 1e-3, "means of means differ"


def test_dense_one_hot_equals_class_ids():
    logits, label, weight = batch()
    dense = pgce.targets.one_hot(label, 5, DOUBLE)
    assert_same(wce(logits, dense, weight), wce(logits, label, weight), logits)


def test_bernoulli_equals_two_classes():
    logits, label, weight = batch(classes=2)
    margin = logits[:, 1] - logits[:, 0]
    assert_same(wce(margin, label, weight, head=Bernoulli()), wce(logits, label, weight), logits)


def test_a_baseline_leaves_the_expected_gradient_alone():
    """E over a ~ π of the gradient of c · CE(a) is 0."""
    logits, _, _ = batch()
    p = logits.detach().softmax(-1)
    expected = torch.zeros_like(logits)
    for action in range(5):
        loss = wce(logits, torch.full((7,), action), 3.0 * p[:, action], reduction="sum")
        expected += value_and_gradient(loss, logits)[1]
    torch.testing.assert_close(expected, torch.zeros_like(expected))


def test_target_and_weight_are_constants():
    logits, _, weight = batch()
    dense = torch.rand(7, 5, dtype=DOUBLE, requires_grad=True)
    weight.requires_grad_()
    wce(logits, dense, weight).backward()
    assert logits.grad is not None
    assert dense.grad is None
    assert weight.grad is None


@pytest.mark.parametrize("head", [Categorical(), Bernoulli(), Gaussian(), Gaussian("learned")])
def test_gradcheck(head):
    logits = torch.randn(4, 3, 2, dtype=DOUBLE, requires_grad=True)
    shape = (4, 3) if head == Gaussian("learned") else (4, 3, 2)
    target, examples = torch.rand(shape, dtype=DOUBLE), head.examples(logits)
    weight = torch.randn(examples, dtype=DOUBLE)
    assert torch.autograd.gradcheck(lambda z: wce(z, target, weight, head=head), logits)


@pytest.mark.parametrize("ids", [True, False])
def test_a_gradient_made_in_place_can_be_had_again_and_differentiated(ids, monkeypatch):
    monkeypatch.setattr("pgce.softmax._LARGE", 1)
    logits, label, weight = batch(size=6)
    target = label if ids else torch.randn(6, 5, dtype=DOUBLE)
    loss = wce(logits, target, weight)
    first, again = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    total = sum(_one_by_one(logits, target, weight))
    torch.testing.assert_close(first, torch.autograd.grad(total / 6, logits)[0], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda z: wce(z, target, weight), logits)


@pytest.mark.parametrize("ids", [True, False])
def test_hooks_see_the_gradient_once_also_where_it_is_to_be_differentiated(ids, monkeypatch):
    monkeypatch.setattr("pgce.softmax._LARGE", 1)
    given, label, weight = batch(size=6)
    target = label if ids else torch.randn(6, 5, dtype=DOUBLE)
    logits, seen = 1 * given, []
    logits.register_hook(seen.append)
    logits.retain_grad()
    (gradient,) = torch.autograd.grad(wce(logits, target, weight), given, create_graph=True)
    assert len(seen) == 1
    assert torch.equal(logits.grad, gradient)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # which torch itself calls
@pytest.mark.parametrize("ids", [True, False])
def test_gradients_of_many_at_once_and_forwards(ids, monkeypatch):
    monkeypatch.setattr("pgce.softmax._LARGE", 1)
    logits, label, _ = batch(size=6)
    target = label if ids else torch.randn(6, 5, dtype=DOUBLE)
    each = Categorical().cross_entropy(logits, target)
    (all_of_them,) = torch.autograd.grad(
        each, logits, torch.eye(6, dtype=DOUBLE), is_grads_batched=True, retain_graph=True
    )
    for n in range(6):
        (gradient,) = torch.autograd.grad(each[n], logits, retain_graph=True)
        torch.testing.assert_close(all_of_them[n], gradient, rtol=1e-12, atol=1e-12)
    with torch.autograd.forward_ad.dual_level():
        moving = torch.autograd.forward_ad.make_dual(logits, torch.ones_like(logits))
        change = torch.autograd.forward_ad.unpack_dual(Categorical().cross_entropy(moving, target)).tangent
        torch.testing.assert_close(change, all_of_them.sum((0, 2)), rtol=1e-12, atol=1e-12)


def _one_by_one(logits, target, weight):
    """w · H by the definition, an example at a time."""
    for z, y, w in zip(logits, target, weight, strict=True):
        log_p = z - z.exp().sum().log()
        yield -w * (log_p[y] if y.ndim == 0 else (y * log_p).sum())


@pytest.mark.parametrize("large", [1, 2**16])
def test_what_forbids_a_class_and_what_is_no_number(large, monkeypatch):
    monkeypatch.setattr("pgce.softmax._LARGE", large)
    logits = torch.tensor([[0.0, -math.inf], [1.0, 2.0]], requires_grad=True)
    rows = torch.tensor([[1.0, 0.0], [0.0, -2.0]], requires_grad=True)
    log_p = torch.tensor([1.0, 2.0]).log_softmax(0)
    for target in (rows, rows.detach()):
        each = Categorical().cross_entropy(logits, target)
        torch.testing.assert_close(each, torch.stack([torch.tensor(0.0), 2 * log_p[1]]))
        (gradient,) = torch.autograd.grad(each.sum(), logits, retain_graph=True)
        torch.testing.assert_close(gradient[1], -2 * log_p.exp() - torch.tensor([0.0, -2.0]))
        assert gradient[0].tolist() == [0.0, 0.0]
        if target.requires_grad:  # to a head a target is no constant
            on_rows = torch.autograd.grad(each.sum(), rows)[0]
            torch.testing.assert_close(on_rows, torch.stack([torch.zeros(2), -log_p]))
    for bad_logits, bad_rows, expected in [
        (logits, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), math.inf),
        (torch.full((2, 2), -math.inf), torch.zeros(2, 2), math.nan),
        (torch.tensor([[math.nan, 0.0], [0.0, 0.0]]), torch.zeros(2, 2), math.nan),
        (logits, torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), math.nan),
        (logits, torch.tensor([[0.0, math.inf], [1.0, 0.0]]), math.nan),
    ]:
        given = bad_logits.detach().requires_grad_()
        torch.testing.assert_close(
            Categorical().cross_entropy(given, bad_rows)[0].item(), expected, equal_nan=True
        )
        for reduction in ("mean", "none"):
            with pytest.raises(ValueError, match="the loss must be finite"):
                wce(given, bad_rows, torch.tensor([1.0, 1.0]), reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
def test_no_example_that_counts_is_zero_with_zero_gradient(reduction):
    logits, label, _ = batch()
    weight = torch.ones(7, dtype=DOUBLE)
    nothing = torch.zeros(7, dtype=torch.bool)
    loss = wce(logits, label, weight, mask=nothing, reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    empty = torch.zeros(0, 5, requires_grad=True)
    loss = wce(empty, torch.zeros(0, dtype=torch.int64), reduction=reduction)
    loss.backward()
    assert loss.item() == 0
    assert empty.grad.shape == (0, 5)


def test_reduction_none_keeps_the_shape():
    logits, label, weight = batch(size=6)
    mask = torch.tensor([[True, False], [True, True], [False, True]])
    each = wce(logits.view(3, 2, 5), label.view(3, 2), weight.view(3, 2), mask=mask, reduction="none")
    expected = (weight * F.cross_entropy(logits, label, reduction="none")).view(3, 2) * mask
    assert_same(each.sum(), expected.sum(), logits)
    torch.testing.assert_close(each, expected)


def test_weight_zero_times_infinite_cross_entropy_is_zero():
    logits = torch.tensor([[0.0, -math.inf], [0.0, 1.0]], requires_grad=True)
    loss = wce(logits, torch.tensor([1, 1]), torch.tensor([0.0, 1.0]))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)) / 2)
    assert logits.grad.isfinite().all()


def test_forbidden_class_and_zero_target_is_finite():
    logits = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    loss = wce(logits, torch.tensor([[0.5, 0.0, 0.5]]))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits, label, weight = batch(size=64, classes=50)
    half = (10 * logits.detach()).to(dtype).requires_grad_()
    loss = wce(half, label, weight.to(dtype))
    assert loss.dtype == torch.float32
    exact = wce(half.double(), label, weight.to(dtype).double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    loss.backward()
    assert half.grad.dtype == dtype


def test_double_stays_double_and_strides_do_not_matter():
    logits, label, weight = batch()
    assert wce(logits, label, weight).dtype == DOUBLE
    turned = logits.detach().T.contiguous().T
    assert not turned.is_contiguous()
    assert wce(turned, label, weight).item() == wce(logits, label, weight).item()


def test_extreme_logits_are_finite():
    logits = torch.tensor([[1e30, -1e30], [-1e30, 1e30]])
    assert wce(logits, torch.tensor([0, 1])).item() == 0


def test_every_integer_type_of_class_ids():
    logits, label, _ = batch()
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert wce(logits, label.to(dtype)).item() == wce(logits, label).item()


LOGITS = torch.zeros(5, 3)
LABEL = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((LOGITS, LABEL[:4]), {}, r"dtype torch.int64 and shape \(4,\)"),
        ((LOGITS, LABEL[:, None]), {}, r"shape \(5, 1\)"),
        ((LOGITS, LABEL.float()), {}, r"dtype torch.float32 and shape \(5,\)"),
        ((LOGITS, LABEL > 0), {}, "class ids are integers: target has dtype torch.bool"),
        ((LOGITS, torch.zeros(5, 3).long()), {}, r"dtype torch.int64 and shape \(5, 3\)"),
        ((LOGITS.long(), LABEL), {}, "logits are floating: logits has dtype torch.int64"),
        ((torch.zeros(()), LABEL), {}, r"logits has shape \(\)"),
        ((LOGITS, LABEL + 1), {}, r"class ids lie in 0\.\.2: target holds ids from 1 to 3"),
        ((LOGITS, LABEL - 101), {}, r"target holds ids from -101 to -99"),
        (
            (LOGITS, torch.tensor([0, -100, 1, 0, 1])),
            {},
            r"target holds ids from -100 to 1",
        ),
        (
            (LOGITS, LABEL, torch.ones(5, 1)),
            {},
            r"one weight per example: weight has shape \(5, 1\)",
        ),
        ((LOGITS, LABEL, torch.ones(())), {}, r"weight has shape \(\)"),
        (
            (LOGITS, LABEL, torch.ones(5, dtype=torch.complex64)),
            {},
            "weights are real: weight has dtype torch.complex64",
        ),
        ((LOGITS, LABEL, torch.full((5,), math.nan)), {}, r"weight is nan at \(0,\)"),
        ((LOGITS, LABEL, -torch.ones(5)), {"reduction": "weighted_mean"}, "the smallest is -1"),
        ((LOGITS, LABEL, torch.zeros(5)), {"reduction": "weighted_mean"}, "the sum 0"),
        ((LOGITS, LABEL), {"reduction": "average"}, "reduction is 'average'"),
        ((LOGITS, LABEL), {"reduction": 0}, "reduction is 0"),
        ((LOGITS, LABEL), {"reduction": True}, "reduction is True"),
        ((LOGITS, LABEL), {"reduction": math.nan}, "reduction is nan"),
        ((LOGITS, LABEL), {"mask": torch.ones(5)}, "mask has dtype torch.float32"),
        ((LOGITS, LABEL), {"mask": torch.ones(4, dtype=torch.bool)}, r"shape \(4,\)"),
        ((LOGITS + math.nan, LABEL), {}, r"logits is nan at \(0, 0\)"),
        ((LOGITS + math.inf, LABEL), {}, r"logits is inf at \(0, 0\)"),
        (
            (LOGITS.index_fill(1, torch.tensor([2]), -math.inf), LABEL),
            {},
            r"cross_entropy is inf at \(2,\): the target has probability 0",
        ),
        ((LOGITS, torch.full((5, 3), math.nan)), {}, r"target is nan at \(0, 0\)"),
        ((LOGITS.half() + 7e4, LABEL), {}, r"logits is inf at \(0, 0\)"),
        ((LOGITS, LOGITS[:, :2]), {"head": Gaussian()}, r"target has shape \(5, 2\)"),
        ((LOGITS[:, :1], LOGITS[:, 0]), {"head": Gaussian()}, r"target has shape \(5,\)"),
        ((LOGITS, LOGITS), {"head": Gaussian("learned")}, r"logits \(\.\.\., 2\)"),
        ((LOGITS, LOGITS[:, :2]), {"head": Bernoulli()}, r"target has shape \(5, 2\)"),
        ((LOGITS[:, 0], LABEL), {"head": Bernoulli()}, "target holds values from 0 to 2"),
        ((LOGITS.to("meta"), LABEL), {}, "logits is on meta, target on cpu"),
    ],
)
def test_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        wce(*arguments, **options)


@pytest.mark.parametrize("arguments", [([[0.0]], LABEL), (LOGITS, [0] * 5), (LOGITS, LABEL, 2.0)])
def test_refuses_what_is_no_tensor(arguments):
    with pytest.raises(TypeError, match="is a tensor"):
        wce(*arguments)


def test_compiles():
    """Under torch.compile's tracing the checks on values are left out and the result is the same."""
    logits, label, weight = batch()
    traced = torch.compile(wce, backend="eager", fullgraph=True)
    assert_same(traced(logits, label, weight), wce(logits, label, weight), logits)

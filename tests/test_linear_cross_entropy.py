"""The chunked form against the plain one, weighted_cross_entropy of F.linear; memory; what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import pgce
from pgce.objective import linear_cross_entropy

DOUBLE = torch.float64


def data(examples=(13,), features=4, classes=7, seed=0, dtype=DOUBLE, requires_grad=True):
    """hidden, vocabulary_weight, bias, label, dense target (signed), weight (signed)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)

    hidden, matrix, bias = normal(*examples, features), normal(classes, features), normal(classes)
    label = torch.randint(classes, examples, generator=generator)
    parameters = [value.requires_grad_(requires_grad) for value in (hidden, matrix, bias)]
    return *parameters, label, normal(*examples, classes), normal(*examples)


def plain(hidden, matrix, target, weight=None, *, bias=None, label_smoothing=0.0, **options):
    if label_smoothing:
        dense = target if target.is_floating_point() else pgce.targets.one_hot(target, len(matrix), DOUBLE)
        target = pgce.targets.smooth(dense, label_smoothing)
    return pgce.weighted_cross_entropy(F.linear(hidden, matrix, bias), target, weight, **options)


def gradients(loss, *inputs):
    # Upstream gradients other than 1, and one an example for "none".
    upstream = torch.linspace(-1, 2, loss.numel() + 1, dtype=loss.dtype)[1:].view_as(loss)
    return torch.autograd.grad(loss, inputs, upstream, allow_unused=True)


def assert_same(ours, theirs, *inputs, tolerance=1e-12):
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(ours, theirs, **close)
    pairs = zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **close)


@pytest.mark.parametrize("chunk_size", [1, 5, 13, 100, None])
@pytest.mark.parametrize("kind", ["label", "smoothed", "dense", "smoothed dense"])
@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum", "none", 3.5])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_the_plain_form(chunk_size, kind, reduction, masked):
    hidden, matrix, bias, label, dense, weight = data()
    options = {
        "mask": torch.arange(13) % 3 != 1 if masked else None,
        "reduction": reduction,
        "label_smoothing": 0.3 if "smoothed" in kind else 0.0,
        "bias": bias,
    }
    target = dense if "dense" in kind else label
    weight = weight.detach().abs() if reduction == "weighted_mean" else weight
    ours = linear_cross_entropy(hidden, matrix, target, weight, chunk_size=chunk_size, **options)
    assert_same(ours, plain(hidden, matrix, target, weight, **options), hidden, matrix, bias)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 40), st.integers(1, 6), st.integers(1, 30), st.integers(1, 50), st.integers(0, 10**6))
def test_equals_the_plain_form_at_any_size(size, features, classes, chunk_size, seed):
    hidden, matrix, _, label, _, weight = data((size,), features, classes, seed)
    ours = linear_cross_entropy(hidden, matrix, label, weight, chunk_size=chunk_size)
    assert_same(ours, plain(hidden, matrix, label, weight), hidden, matrix)


@pytest.mark.parametrize("kind", ["label", "dense"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_leading_axes(kind, reduction):
    hidden, matrix, bias, label, dense, weight = data((3, 5))
    target = label if kind == "label" else dense
    mask = torch.arange(15).view(3, 5) % 4 != 0
    for options in ({}, {"mask": mask}):
        options |= {"reduction": reduction, "bias": bias}
        ours = linear_cross_entropy(hidden, matrix, target, weight, chunk_size=4, **options)
        assert_same(ours, plain(hidden, matrix, target, weight, **options), hidden, matrix, bias)


def test_one_example_without_axes():
    hidden, matrix, _, label, _, weight = data(())
    ours = linear_cross_entropy(hidden, matrix, label, weight)
    assert_same(ours, plain(hidden, matrix, label, weight), hidden, matrix)


def test_strides_do_not_matter():
    hidden, matrix, _, label, dense, weight = data()
    ours = linear_cross_entropy(
        hidden.T.contiguous().T, matrix.T.contiguous().T, dense.T.contiguous().T, weight
    )
    assert_same(ours, plain(hidden, matrix, dense, weight), hidden, matrix)
    repeated = hidden[:1].expand(13, -1)
    ours = linear_cross_entropy(repeated, matrix, label, weight, chunk_size=3)
    assert_same(ours, plain(repeated, matrix, label, weight), hidden, matrix)


@pytest.mark.parametrize("needed", range(8))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_only_the_gradients_that_are_needed(needed, reduction):
    hidden, matrix, bias, label, _, weight = data(requires_grad=False)
    chosen = [v.requires_grad_() for i, v in enumerate((hidden, matrix, bias)) if needed >> i & 1]
    options = {"bias": bias, "reduction": reduction}
    ours = linear_cross_entropy(hidden, matrix, label, weight, chunk_size=4, **options)
    theirs = plain(hidden, matrix, label, weight, **options)
    assert ours.requires_grad == bool(chosen)
    torch.testing.assert_close(ours, theirs)
    if chosen:
        assert_same(ours, theirs, *chosen)


def test_gradcheck():
    hidden, matrix, bias, label, dense, weight = data((3, 2))
    for target in (label, dense):
        for reduction in ("mean", "none"):
            assert torch.autograd.gradcheck(
                lambda h, m, b, y=target, r=reduction: linear_cross_entropy(
                    h, m, y, weight, bias=b, reduction=r, chunk_size=4
                ),
                (hidden, matrix, bias),
            )


def test_without_gradients():
    hidden, matrix, _, label, _, weight = data()
    with torch.no_grad(), Seen() as seen:
        loss = linear_cross_entropy(hidden, matrix, label, weight)
    assert not loss.requires_grad
    assert not [name for name, _ in seen.operations if "backward" in name or "addmm_" in name]
    assert loss.item() == pytest.approx(plain(hidden, matrix, label, weight).item())


def test_target_and_weight_are_constants():
    hidden, matrix, _, _, dense, weight = data()
    dense.requires_grad_()
    weight.requires_grad_()
    for reduction in ("mean", "none"):
        linear_cross_entropy(hidden, matrix, dense, weight, reduction=reduction).sum().backward()
    assert dense.grad is None
    assert weight.grad is None


def test_a_second_backward_gives_the_same_again():
    hidden, matrix, _, label, _, weight = data()
    loss = linear_cross_entropy(hidden, matrix, label, weight, chunk_size=5)
    expected = gradients(plain(hidden, matrix, label, weight), hidden, matrix)
    for _ in range(3):
        found = torch.autograd.grad(loss, (hidden, matrix), torch.full((), 2.0), retain_graph=True)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            a.zero_()  # the gradients are the caller's
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_two_terms_on_one_matrix_add_up():
    hidden, matrix, _, label, dense, weight = data()
    ours = linear_cross_entropy(hidden, matrix, label, weight) - 0.1 * linear_cross_entropy(
        hidden, matrix, dense
    )
    theirs = plain(hidden, matrix, label, weight) - 0.1 * plain(hidden, matrix, dense)
    assert_same(ours, theirs, hidden, matrix)


def test_double_backward_is_refused():
    hidden, matrix, _, label, _, _ = data()
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(hidden, matrix, label, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="differentiated once: create_graph is True"):
            torch.autograd.grad(loss, hidden, create_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "weighted_mean", "sum"])
def test_no_example_that_counts_is_zero_with_zero_gradient(reduction):
    hidden, matrix, _, label, dense, _ = data()
    weight, nothing = torch.ones(13, dtype=DOUBLE), torch.zeros(13, dtype=torch.bool)
    for target in (label, dense):
        loss = linear_cross_entropy(hidden, matrix, target, weight, mask=nothing, reduction=reduction)
        assert loss.item() == 0
        for gradient in torch.autograd.grad(loss, (hidden, matrix)):
            assert not gradient.any()
    hidden, matrix, _, label, dense, weight = data((0,))
    for target in (label, dense):
        loss = linear_cross_entropy(hidden, matrix, target, weight, reduction=reduction)
        assert loss.item() == 0
        assert [g.any().item() for g in torch.autograd.grad(loss, (hidden, matrix))] == [False, False]
    assert linear_cross_entropy(hidden, matrix, label, reduction="none").shape == (0,)


@pytest.mark.parametrize("kind", ["label", "dense"])
def test_masked_rows_may_hold_anything(kind):
    hidden, matrix, _, label, dense, weight = data()
    target = label if kind == "label" else dense
    mask = torch.arange(13) != 1
    expected = plain(hidden[mask], matrix, target[mask], weight[mask])
    rotten, bad_target, bad_weight = hidden.detach().clone(), target.clone(), weight.detach().clone()
    rotten[1], bad_weight[1] = math.nan, math.inf
    bad_target[1] = -100 if kind == "label" else math.nan
    rotten.requires_grad_()
    loss = linear_cross_entropy(rotten, matrix, bad_target, bad_weight, mask=mask, chunk_size=2)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    on_hidden, on_matrix = torch.autograd.grad(loss, (rotten, matrix))
    assert not on_hidden[1].any()
    torch.testing.assert_close(on_matrix, torch.autograd.grad(expected, matrix)[0])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_weight_zero_times_infinite_cross_entropy_is_zero(reduction):
    hidden, matrix, _, label, _, weight = data()
    bias = torch.zeros(7, dtype=DOUBLE)
    bias[label[0]] = -math.inf  # forbids the class of example 0
    bias.requires_grad_()
    weight = torch.where(label == label[0], 0.0, weight)
    ours = linear_cross_entropy(hidden, matrix, label, weight, bias=bias, reduction=reduction, chunk_size=4)
    assert ours.isfinite().all()
    theirs = plain(hidden, matrix, label, weight, bias=bias, reduction=reduction)
    found = torch.autograd.grad(ours.sum(), (hidden, matrix, bias))
    for a, b in zip(found, torch.autograd.grad(theirs.sum(), (hidden, matrix, bias)), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def relative_errors(loss, inputs, exact):
    found = torch.autograd.grad(loss, inputs)
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


def test_float32():
    hidden, matrix, bias, label, _, weight = data((256,), 32, 300, dtype=torch.float32)
    ours = linear_cross_entropy(hidden, matrix, label, weight, bias=bias, chunk_size=50)
    theirs = plain(hidden, matrix, label, weight, bias=bias)
    assert_same(ours, theirs, hidden, matrix, bias, tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_as_exact_as_the_plain_form(dtype, reduction, autocast):
    inputs = data((256,), 32, 300, dtype=torch.float32 if autocast else dtype)
    hidden, matrix, bias, label, _, weight = inputs
    chosen = (hidden, matrix, bias)
    exact = [value.detach().double().requires_grad_() for value in chosen]
    factor = 2.0**16  # as a gradient scaler's: float16 gradients without it would be 0
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        options = {"bias": bias, "reduction": reduction}
        ours = linear_cross_entropy(hidden, matrix, label, weight, chunk_size=50, **options).mean()
        theirs = plain(hidden, matrix, label, weight, **options).mean()
    assert ours.dtype == theirs.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    true = factor * plain(exact[0], exact[1], label, weight.double(), bias=exact[2])
    true_gradients = torch.autograd.grad(true, exact)
    found = relative_errors(factor * ours, chosen, true_gradients)
    allowed = relative_errors(factor * theirs, chosen, true_gradients)
    assert all(a < 1.3 * b for a, b in zip(found, allowed, strict=True)), (found, allowed)
    assert max(found) < 0.02


def test_autocast_runs_the_products_in_its_type_and_takes_mixed_types():
    hidden, matrix, bias, label, _, weight = data((64,), 16, 30, dtype=torch.float32)
    low = hidden.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16), Seen() as seen:
        loss = linear_cross_entropy(low, matrix, label, weight, bias=bias)
        on_hidden, on_matrix = torch.autograd.grad(loss, (low, matrix))
    products = [dtype for name, dtype in seen.operations if "mm" in name]
    assert set(products) == {torch.bfloat16}
    softmax = [dtype for name, dtype in seen.operations if "_log_softmax" in name]
    assert set(softmax) == {torch.float32}
    assert (on_hidden.dtype, on_matrix.dtype) == (torch.bfloat16, torch.float32)
    doubles = data()[:4]
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which leaves float64 alone
        assert linear_cross_entropy(doubles[0], doubles[1], doubles[3]).dtype == DOUBLE


class Seen(TorchDispatchMode):
    """Every operation's name and first output type, and the most elements of one tensor."""

    def __init__(self):
        super().__init__()
        self.operations, self.largest = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        made = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        made = [t for t in made if t.device.type != "meta"]  # holds nothing
        self.operations += [(operation.name(), t.dtype) for t in made[:1]]
        self.largest = max([self.largest, *(t.untyped_storage().nbytes() // t.itemsize for t in made)])
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["label", "smoothed", "masked"])
def test_no_tensor_of_all_logits_is_ever_made(reduction, kind):
    size, classes, chunk_size = 400, 50, 10
    hidden, matrix, bias, label, _, weight = data((size,), 4, classes)
    options = {"bias": bias, "reduction": reduction, "chunk_size": chunk_size}
    options |= {"label_smoothing": 0.1} if kind == "smoothed" else {}
    options |= {"mask": torch.arange(size) > 7} if kind == "masked" else {}
    with Seen() as seen:
        linear_cross_entropy(hidden, matrix, label, weight, **options).sum().backward()
    assert seen.largest == max(size * 4, chunk_size * classes)
    with Seen() as seen:
        plain(hidden, matrix, label, weight, bias=bias).backward()
    assert seen.largest == size * classes, "the measure sees the plain form's logits"


def test_a_masked_dense_target_is_not_copied():
    hidden, matrix, _, _, dense, weight = data((400,), 4, 50)
    with Seen() as seen:
        mask = torch.arange(400) > 7
        loss = linear_cross_entropy(hidden, matrix, dense.clone(), weight, mask=mask, chunk_size=10)
        copies = [name for name, _ in seen.operations if "index" in name]
        loss.backward()
    assert copies
    torch.testing.assert_close(loss, plain(hidden, matrix, dense, weight, mask=mask))


def test_the_chunk_size_chosen_holds_few_logits():
    size, classes = 100, 300_000
    hidden, matrix, _, label, _, _ = data((size,), 2, classes, dtype=torch.float32)
    with Seen() as seen:
        linear_cross_entropy(hidden, matrix, label).backward()
    assert seen.largest == 64 * classes


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it when it breaks the graph
def test_compiles_around_it():
    hidden, matrix, _, label, _, weight = data()

    def loss(hidden):
        return 2 * linear_cross_entropy(torch.tanh(hidden), matrix, label, weight)

    assert_same(torch.compile(loss, backend="eager")(hidden), loss(hidden), hidden, matrix)


HIDDEN, MATRIX = torch.zeros(5, 2), torch.zeros(3, 2)
LABEL = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (HIDDEN[:, :1], MATRIX, LABEL),
            {},
            r"hidden has shape \(5, 1\), vocabulary_weight has shape \(3, 2\)",
        ),
        ((HIDDEN, MATRIX[0], LABEL), {}, r"vocabulary_weight has shape \(2,\)"),
        ((HIDDEN, MATRIX[:0], LABEL), {}, r"vocabulary_weight has shape \(0, 2\)"),
        ((torch.zeros(()), MATRIX, LABEL), {}, r"hidden has shape \(\)"),
        ((HIDDEN, MATRIX, LABEL), {"bias": torch.zeros(2)}, r"bias is \(K,\).*bias has shape \(2,\)"),
        ((HIDDEN.double(), MATRIX, LABEL), {}, "hidden has dtype torch.float64, vocabulary_weight has dtype"),
        ((HIDDEN.long(), MATRIX.long(), LABEL), {}, "hidden has dtype torch.int64"),
        ((HIDDEN, MATRIX, LABEL), {"bias": torch.zeros(3).half()}, "bias has dtype torch.float16"),
        ((HIDDEN, MATRIX.to("meta"), LABEL), {}, "hidden is on cpu, vocabulary_weight is on meta"),
        ((HIDDEN, MATRIX, LABEL.to("meta")), {}, "hidden is on cpu, target on meta"),
        ((HIDDEN, MATRIX, LABEL, torch.ones(5, device="meta")), {}, "weight on meta"),
        ((HIDDEN, MATRIX, LABEL), {"mask": torch.ones(5, device="meta").bool()}, "mask on meta"),
        ((HIDDEN, MATRIX, LABEL[:4]), {}, r"dtype torch.int64 and shape \(4,\)"),
        ((HIDDEN, MATRIX, LABEL.float()), {}, r"dtype torch.float32 and shape \(5,\)"),
        ((HIDDEN, MATRIX, LABEL > 0), {}, "class ids are integers: target has dtype torch.bool"),
        ((HIDDEN, MATRIX, LABEL.to(torch.complex64)), {}, "class ids are integers"),
        ((HIDDEN, MATRIX, torch.zeros(5, 3).long()), {}, r"dtype torch.int64 and shape \(5, 3\)"),
        ((HIDDEN, MATRIX, LABEL + 1), {"chunk_size": 1}, r"0\.\.2: target holds ids from 1 to 3"),
        ((HIDDEN, MATRIX, LABEL - 101), {}, r"target holds ids from -101 to -99"),
        ((HIDDEN, MATRIX, LABEL, torch.ones(5, 1)), {}, r"one weight per example: weight has shape \(5, 1\)"),
        ((HIDDEN, MATRIX, LABEL, torch.ones(5, dtype=torch.complex64)), {}, "weights are real"),
        ((HIDDEN, MATRIX, LABEL, -torch.ones(5)), {"reduction": "weighted_mean"}, "the smallest is -1"),
        ((HIDDEN, MATRIX, LABEL, torch.zeros(5)), {"reduction": "weighted_mean"}, "the sum 0"),
        ((HIDDEN, MATRIX, LABEL), {"reduction": "average"}, "reduction is 'average'"),
        ((HIDDEN, MATRIX, LABEL), {"reduction": 0}, "reduction is 0"),
        ((HIDDEN, MATRIX, LABEL), {"mask": torch.ones(5)}, "mask has dtype torch.float32"),
        ((HIDDEN, MATRIX, LABEL), {"mask": torch.ones(4, dtype=torch.bool)}, r"shape \(4,\)"),
        ((HIDDEN, MATRIX, LABEL), {"label_smoothing": 1.5}, "label_smoothing is 1.5"),
        ((HIDDEN, MATRIX, LABEL), {"label_smoothing": math.nan}, "label_smoothing is nan"),
        ((HIDDEN, MATRIX, LABEL), {"chunk_size": 0}, "chunk_size is 0"),
        ((HIDDEN, MATRIX, LABEL), {"chunk_size": 2.0}, r"chunk_size is 2\.0"),
        ((HIDDEN + math.nan, MATRIX, LABEL), {}, r"hidden is nan at \(0, 0\)"),
        ((HIDDEN, MATRIX - math.inf, LABEL), {}, r"vocabulary_weight is -inf at \(0, 0\)"),
        ((HIDDEN, MATRIX, LABEL), {"bias": torch.full((3,), math.nan)}, r"bias is nan at \(0,\)"),
        ((HIDDEN, MATRIX, LABEL, torch.full((5,), math.nan)), {}, r"weight is nan at \(0,\)"),
        ((HIDDEN, MATRIX, torch.full((5, 3), math.nan)), {}, r"target is nan at \(0, 0\)"),
        (
            (HIDDEN, MATRIX, LABEL),
            {"bias": torch.tensor([0, 0, -math.inf])},
            r"cross_entropy is inf at \(2,\): the target has probability 0",
        ),
        ((HIDDEN + 1e30, MATRIX + 1e30, LABEL), {}, r"cross_entropy is nan at \(0,\): its logits overflow"),
    ],
)
def test_refuses(arguments, options, message):
    for reduction in ("mean", "none"):
        with pytest.raises(ValueError, match=message):
            linear_cross_entropy(*arguments, **{"reduction": reduction} | options)
        if "reduction" in options or "weighted" in message:
            break


@pytest.mark.parametrize(
    "arguments", [([[0.0]], MATRIX, LABEL), (HIDDEN, None, LABEL), (HIDDEN, MATRIX, LABEL, 2.0)]
)
def test_refuses_what_is_no_tensor(arguments):
    with pytest.raises(TypeError, match="is a tensor"):
        linear_cross_entropy(*arguments)

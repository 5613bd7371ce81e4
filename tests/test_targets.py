"""Targets by hand."""

from __future__ import annotations

import pytest
import torch

from pgce.targets import (
    confidence,
    cutmix,
    denoised,
    distilled,
    draw,
    mixup,
    noise_matrix,
    one_hot,
    reweighted,
    smooth,
    soften,
)

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


def test_smoothing_keeps_the_sum_of_a_row():
    """So that a row which carries a weight is smoothed as the row without it, times the weight."""
    y = torch.tensor([[0.2, 0.8, 0.0], [3.0, 0.0, 1.0]])
    torch.testing.assert_close(smooth(5 * y, 0.3), 5 * smooth(y, 0.3))
    torch.testing.assert_close(smooth(y, 0.3).sum(-1), y.sum(-1))


def test_confidence_is_smoothing_by_what_is_missing():
    torch.testing.assert_close(confidence(LABEL, 3, 0.7), smooth(one_hot(LABEL, 3), 0.3))
    sure = torch.tensor([[1.0, 0.0]])
    expected = torch.tensor([[[0, 0, 1], [1 / 3, 1 / 3, 1 / 3]]])
    torch.testing.assert_close(confidence(LABEL, 3, sure), expected)


def test_labels_are_drawn_from_their_row():
    """Frequencies of 100,000 draws a class lie within five standard errors."""
    noise = torch.tensor([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    label = torch.arange(3).expand(100_000, 3)
    drawn = draw(label, noise, torch.Generator().manual_seed(0))
    assert drawn.shape == label.shape
    frequency = torch.stack([(drawn == k).double().mean(0) for k in range(3)], 1)
    error = (noise * (1 - noise) / 100_000).sqrt()
    assert ((frequency - noise).abs() <= 5 * error + 1e-7).all()
    assert draw(torch.tensor(1), noise).tolist() == 1


def test_mixup_is_a_convex_combination_of_two_examples():
    inputs, y = torch.randn(20, 3, dtype=torch.float64), one_hot(torch.arange(20) % 4, 4)
    shares = set()
    for seed in range(20):
        x, mixed = mixup(inputs, y, torch.Generator().manual_seed(seed), alpha=0.5)
        again = mixup(inputs, y, torch.Generator().manual_seed(seed), alpha=0.5)
        assert torch.equal(x, again[0])
        order = torch.tensor([_partner(x[i], inputs, i) for i in range(20)])
        moved = order != torch.arange(20)
        share = ((x - inputs[order]) / (inputs - inputs[order]))[moved].mean().item()
        assert 0 <= share <= 1
        torch.testing.assert_close(mixed, share * y + (1 - share) * y[order], rtol=0, atol=1e-4)
        shares.add(round(share, 3))
    assert len(shares) > 15, "λ is drawn anew"


def _partner(mixed, inputs, own):
    """Which example `mixed` lies on the way to, from `own`."""
    way = torch.nn.functional.cosine_similarity(mixed - inputs[own], inputs - inputs[own] + 1e-12, dim=-1)
    way[own] = 0.999 if torch.allclose(mixed, inputs[own], atol=1e-6) else -1
    return int(way.argmax())


def test_cutmix_pastes_one_rectangle_and_mixes_by_its_area():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 2, 30, 40)
    y = torch.eye(6)
    areas, boxes = [], []
    for seed in range(30):
        x, mixed = cutmix(images, y, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(x.mean((1, 2, 3)), mixed @ torch.arange(6.0))
        for image, own in zip(x, images, strict=True):
            pasted = (image != own)[0]
            if pasted.any():
                rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
                full = pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
                assert full.all(), "a rectangle"
                areas.append(int(pasted.sum()))
                boxes.append((int(rows[0]) / 30, int(columns[0]) / 40, len(rows) / 30, len(columns) / 40))
    assert len(set(areas)) > 10
    assert max(abs(top - left) for top, left, _, _ in boxes) > 0.4, "it lies anywhere"
    whole = [(h, w) for top, left, h, w in boxes if min(top, left) > 0 and max(top + h, left + w) < 1]
    assert max(whole) > (0.2, 0.2)
    assert all(abs(h - w) < 1 / 30 + 1 / 40 for h, w in whole), "its form is the image's"
    assert images.unique().numel() == 6, "the images given are left as they are"


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
        (lambda: confidence(LABEL, 3, 1.5), "sure spans 1.5 to 1.5"),
        (lambda: confidence(LABEL, 3, torch.ones(3)), r"sure has shape \(3,\), label \(1, 2\)"),
        (lambda: noise_matrix(3, -0.1), "epsilon is -0.1"),
        (lambda: draw(LABEL, torch.ones(3, 3)), r"row sums \[3.0, 3.0, 3.0\]"),
        (lambda: draw(LABEL, torch.eye(2)), r"labels lie in 0\.\.1"),
        (lambda: draw(LABEL, torch.ones(3, 2) / 2), r"it has shape \(3, 2\)"),
        (lambda: denoised(LABEL, torch.full((3, 3), 1 / 3)), "needs an invertible noise matrix"),
        (lambda: distilled(torch.zeros(3), 0.0), "it is 0.0"),
        (lambda: reweighted(torch.ones(2, 3), torch.ones(2)), "target rows have 3 entries"),
        (lambda: reweighted(torch.ones(2, 2), torch.tensor([1.0, 0.0])), r"class_weight is \[1.0, 0.0\]"),
        (lambda: mixup(torch.ones(2, 3), LABEL), "turn labels into rows"),
        (
            lambda: mixup(torch.ones(2, 3), torch.ones(2, 3), alpha=0.0),
            "alpha is positive and finite: it is 0.0",
        ),
        (lambda: cutmix(torch.ones(2, 3), torch.ones(2, 3)), r"inputs have shape \(2, 3\)"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()

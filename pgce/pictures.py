"""Pictures of predictions and of learning, as arrays (H, W, 3) of bytes: for TensorBoard, or to save."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pgce.metrics import calibration, interquartile_mean

if TYPE_CHECKING:  # it costs half a second, which only those who draw by it need pay
    from matplotlib.figure import Figure

__all__ = ["confidently_wrong", "confusion_matrix", "heat_map", "learning_curves", "reliability_diagram"]

Picture = NDArray[np.uint8]
Curve = NDArray[np.float64]
_POINTS = 200  # of a curve that is drawn


def confusion_matrix(target: Tensor, probability: Tensor, names: Sequence[str]) -> Picture:
    """How often each class (rows) was taken for each class (columns), in numbers and shares of the row.

    Args:
        target: class ids (B,).
        probability: (B, K).
        names: of the classes, K.

    Example:
        >>> import torch
        >>> from pgce.pictures import confusion_matrix
        >>> confusion_matrix(torch.tensor([0, 1]), torch.eye(2), ["cat", "dog"]).shape
        (400, 440, 3)
    """
    from sklearn import metrics

    ids = np.arange(len(names))
    numbers = metrics.confusion_matrix(target.cpu(), probability.argmax(1).cpu(), labels=ids)
    share = numbers / np.maximum(numbers.sum(1, keepdims=True), 1)
    side = max(4.0, 0.45 * len(names) + 1.5)
    figure = _figure(1.1 * side, side)
    axes = figure.add_subplot(xlabel="predicted", ylabel="label", title="share of each label's examples")
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(ids, names, rotation=45 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(ids, names)
    if len(names) <= 30:
        for row, column in zip(*numbers.nonzero(), strict=True):
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(numbers[row, column]), ha="center", va="center", color=colour)
    return _drawn(figure)


def reliability_diagram(target: Tensor, probability: Tensor) -> Picture:
    """The share right against the confidence: on the diagonal, a classifier that is 80 % sure is right 80 %.

    Args:
        target: class ids (B,).
        probability: (B, K).

    Example:
        >>> import torch
        >>> from pgce.pictures import reliability_diagram
        >>> reliability_diagram(torch.tensor([0, 1]), torch.tensor([[0.9, 0.1], [0.7, 0.3]])).shape
        (450, 450, 3)

    References:
        Guo et al. (2017), On calibration of modern neural networks.
    """
    confidence, correct, number = calibration(target, probability)
    error = (number * abs(confidence - correct)).sum() / number.sum()
    figure = _figure(4.5, 4.5)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    upper.plot(confidence, correct, marker="o")
    upper.set(ylabel="share right", ylim=(-0.02, 1.02), title=f"expected calibration error {error:.3f}")
    lower.bar(confidence, number / number.sum(), width=0.05)
    lower.set(xlabel="confidence", ylabel="share", xlim=(0, 1.02))
    return _drawn(figure)


def confidently_wrong(
    images: NDArray[Any], target: Tensor, probability: Tensor, names: Sequence[str], most: int = 16
) -> Picture | None:
    """The wrong examples of which the classifier is surest, each with its label and what it was taken for.

    Args:
        images: (B, H, W), (B, 1, H, W) or (B, 3, H, W).
        target: class ids (B,).
        probability: (B, K).
        names: of the classes, K.
        most: how many to show.

    Returns:
        The picture; None where every example is right.

    Example:
        >>> import numpy as np, torch
        >>> from pgce.pictures import confidently_wrong
        >>> images, p = np.zeros((2, 8, 8)), torch.tensor([[0.9, 0.1], [0.7, 0.3]])
        >>> confidently_wrong(images, torch.tensor([0, 1]), p, ["cat", "dog"]).shape
        (170, 150, 3)
        >>> confidently_wrong(images, torch.tensor([0, 0]), p, ["cat", "dog"]) is None
        True
    """
    confidence, guess = (values.cpu().numpy() for values in probability.max(1))
    label = target.cpu().numpy()
    wrong = np.flatnonzero(guess != label)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    if not len(wrong):
        return None
    columns = min(4, len(wrong))
    rows = math.ceil(len(wrong) / columns)
    figure = _figure(1.5 * columns, 1.7 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, wrong, strict=False):
        image = np.moveaxis(images[i], 0, -1).squeeze() if images.ndim == 4 else images[i]
        low, high = image.min(), image.max()
        axis.imshow((image - low) / ((high - low) or 1), cmap="gray")
        title = f"{names[label[i]]} taken for {names[guess[i]]}\n{confidence[i]:.1%} sure"
        axis.set_title(title, fontsize=7)
    return _drawn(figure)


def learning_curves(panels: Mapping[str, Mapping[str, Sequence[tuple[Curve, Curve]]]]) -> Picture:
    """Interquartile mean over seeds, and its 95 % bootstrap interval shaded: a panel an environment.

    Args:
        panels: by title, then by name of the learner, the curves of its seeds: steps and values (P,) each.

    Example:
        >>> import numpy as np
        >>> from pgce.pictures import learning_curves
        >>> seeds = [(np.array([0.0, 100.0]), np.array([0.0, end])) for end in (1.0, 2.0, 3.0)]
        >>> learning_curves({"CartPole-v1": {"ppo": seeds}}).shape
        (340, 450, 3)
    """
    columns = min(4, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    width, height = (4.5, 3.4) if len(panels) == 1 else (3.0, 2.6)
    figure = _figure(width * columns, height * rows)
    names = sorted({name for curves in panels.values() for name in curves})
    for place, (title, curves) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, columns, place)
        for name, seeds in sorted(curves.items()):
            colour = f"C{names.index(name)}"
            first = max(steps[0] for steps, _ in seeds)
            last = max(first, min(steps[-1] for steps, _ in seeds))
            grid = np.linspace(first, last, _POINTS)
            mean, low, high = interquartile_mean(np.stack([np.interp(grid, *seed) for seed in seeds]))
            axes.plot(grid, mean, label=name, color=colour)
            if len(seeds) > 1:
                axes.fill_between(grid, low, high, alpha=0.2, color=colour, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.xaxis.set_major_formatter(
            lambda step, _: f"{step / 1e6:g}M" if step >= 1e6 else f"{step / 1e3:g}k"
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", fontsize=8)
    return _drawn(figure)


def heat_map(rows: Mapping[str, Tensor]) -> Picture:
    """A few rows of a batch side by side: target y, p, weight w, and the gradient on the logits.

    White is 0, blue is positive, red negative; the darkest is 1 of y and p that are shares, otherwise the
    largest number there, which stands above with what it is of. A row has 32 columns of each at most.

    Args:
        rows: as `pgce.metrics.rows` tells them.

    Example:
        >>> import torch
        >>> from pgce.pictures import heat_map
        >>> p = torch.full((2, 2), 0.5)
        >>> rows = {"y": torch.tensor([1, 0]), "p": p, "w": torch.tensor([2.0, -1.0]), "gradient": p}
        >>> heat_map(rows).shape
        (60, 257, 3)
    """
    y, p = rows["y"], rows["p"]
    if not y.is_floating_point() and y.shape == p.shape[:-1]:
        y = F.one_hot(y.long(), p.shape[-1])
    named = {"y": y, "p": p, "w": rows["w"], "w · (p - y)": rows["gradient"]}
    font = ImageFont.load_default(11)
    pieces = []
    for name, values in named.items():
        table = values.detach().float().cpu().reshape(len(values), -1)[:, :_COLUMNS].nan_to_num()
        largest = float(table.abs().max()) if table.numel() else 0.0
        share = name in "yp" and 0 <= float(table.min()) and largest <= 1
        label = name if share else f"{name}, up to {largest:.2g}"
        scaled = table / (1 if share else max(largest, 1e-12))
        red, green = (1 - scaled).clamp(max=1), 1 - scaled.abs()
        colours = torch.stack([red, green, (1 + scaled).clamp(max=1)], -1)
        cells = (255 * colours).byte().numpy().repeat(_CELL, 0).repeat(_CELL, 1)
        cells[::_CELL], cells[:, ::_CELL] = 225, 225
        width = max(cells.shape[1], math.ceil(font.getlength(label))) + _CELL
        piece = np.full((cells.shape[0] + 2 * _CELL, width, 3), 255, np.uint8)
        piece[2 * _CELL - 2 : -2, : cells.shape[1]] = cells
        image = Image.fromarray(piece)
        ImageDraw.Draw(image).text((0, 4), label, fill="black", font=font)
        pieces.append(np.asarray(image))
    return np.concatenate(pieces, 1)


_COLUMNS = 32  # of a heat map's part
_CELL = 15  # pixels


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _drawn(figure: Figure) -> Picture:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

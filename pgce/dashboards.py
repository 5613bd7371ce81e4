"""What TensorBoard shows beside curves: of a batch, of a network, of a trained classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from pgce import metrics, pictures
from pgce.heads import Head, plain
from pgce.logger import Logger
from pgce.networks import evaluating
from pgce.trainer import Batch, Input, Report

__all__ = ["batch", "classifier", "network"]

_MOST_VECTORS = 2000
"""Examples in the projector, whose page holds them all."""
_MOST_CURVES = 20
"""Classes with a precision–recall curve."""
_ROWS = 8
"""Rows of a batch that are shown one by one."""


def batch(logger: Logger, step: int, report: Report, head: Head) -> None:
    """Write how the numbers of a term are distributed, and a few rows of it as a picture.

    Args:
        logger: of the run.
        step: the x-axis.
        report: of the term.
        head: of the term.

    Example:
        >>> import tempfile, torch, pgce
        >>> from pathlib import Path
        >>> from pgce import dashboards, heads
        >>> from pgce.logger import Logger
        >>> from pgce.trainer import Report
        >>> logits, y, head = torch.zeros(2, 2), torch.tensor([1, 0]), heads.Categorical()
        >>> seen = head.cross_entropy(logits, y)
        >>> report = Report(logits, y, seen, None, seen.mean(), pgce.Batch(logits, {"action": y}))
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Logger(folder) as logger:
        ...     dashboards.batch(logger, 1, report, head)
        >>> (folder / "pictures" / "rows.png").exists()
        True
    """
    if not logger.writes or not len(report.cross_entropy):  # of several processes this may have no row
        return
    if report.weight is not None:
        logger.histogram(step, "distribution/weight", report.weight)
    logger.histogram(step, "distribution/cross_entropy", report.cross_entropy)
    for name in ("advantage", "action"):
        if name in report.batch.columns:
            logger.histogram(step, f"distribution/{name}", report.batch[name])
    logger.image(step, "batch/rows", pictures.heat_map(metrics.rows(report, head, _ROWS)))


def network(logger: Logger, model: nn.Module, example: Input) -> None:
    """Write a network for the Graphs tab: its layers, in the order in which they compute.

    What happens between layers (a reshape, a sum) shows as an edge only.

    Args:
        logger: of the run.
        model: called once, in evaluation mode, without gradient.
        example: of an input.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from pgce import dashboards
        >>> from pgce.logger import Logger
        >>> with Logger(Path(tempfile.mkdtemp())) as logger:
        ...     dashboards.network(logger, torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.zeros(1, 4))
        >>> logger.dropped
        0
    """
    if not logger.writes:
        return
    graph = GraphDef()
    graph.versions.producer = 22  # of the format
    graph.node.add(name="input", op="Input")
    inputs = example.values() if isinstance(example, dict) else [example]
    made = {id(each): "input" for each in inputs}  # which layer a tensor comes from
    kept: list[object] = []  # tensors, whose ids stay theirs for so long

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def see(layer: nn.Module, given: tuple[object, ...], output: object) -> None:
            if any(node.name == name for node in graph.node):  # called for the second time
                return
            sources = [made[id(each)] for each in given if id(each) in made] or [graph.node[-1].name]
            node = graph.node.add(name=name, op=type(layer).__name__, input=dict.fromkeys(sources))
            node.attr["what"].s = layer.extra_repr().encode()
            outputs = output if isinstance(output, tuple) else (output,)
            kept.extend(outputs)
            made.update((id(each), name) for each in outputs)

        return see

    layers = {name: layer for name, layer in model.named_modules() if name and not [*layer.children()]}
    hooks = [layer.register_forward_hook(hook(name.replace(".", "/"))) for name, layer in layers.items()]
    try:
        with evaluating(model):
            model(example)
    finally:
        for each in hooks:
            each.remove()
    logger.graph(graph)


def classifier(
    logger: Logger,
    step: int,
    model: nn.Module,
    batch: Batch,
    head: Head,
    *,
    class_names: Sequence[str] | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> None:
    """Write what held-out predictions look like.

    Confusion matrix, reliability diagram, precision–recall curves, the most confidently wrong images, and, in
    the projector, what the last linear layer reads.

    Args:
        logger: of the run.
        step: the x-axis.
        model: input -> logits (B, K); in evaluation mode for the time of the call.
        batch: held-out examples, with class ids (B,) or zeros and ones (B, K) in column "target".
        head: what the logits mean.
        class_names: of the classes; None numbers them.
        image_shape: of an input that is an image, (H, W) or (C, H, W); None where its own axes tell.

    Example:
        >>> import tempfile, torch, pgce
        >>> from pathlib import Path
        >>> from pgce import dashboards
        >>> from pgce.logger import Logger
        >>> batch = pgce.Batch(torch.eye(4), {"target": torch.tensor([0, 1, 0, 1])})
        >>> with Logger(Path(tempfile.mkdtemp())) as logger:
        ...     dashboards.classifier(logger, 1, torch.nn.Linear(4, 2), batch, pgce.heads.Categorical())
        >>> logger.dropped
        0
    """
    target = batch["target"].cpu()
    logits, features = _with_features(model, batch)
    probability = plain(head).mean(logits).float().cpu()
    names = [*map(str, range(probability.shape[1]))] if class_names is None else list(class_names)
    images = None if isinstance(batch.input, dict) else _images(batch.input, image_shape)
    if target.ndim == 1:
        logger.image(step, "eval/confusion_matrix", pictures.confusion_matrix(target, probability, names))
        logger.image(step, "eval/reliability", pictures.reliability_diagram(target, probability))
        if images is not None:
            wrong = pictures.confidently_wrong(images, target, probability, names)
            logger.image(step, "eval/confidently_wrong", wrong)
    logger.pr_curves(step, "eval/pr_curve", target, probability, names[:_MOST_CURVES])
    if features is not None and target.ndim == 1:
        some = slice(_MOST_VECTORS)
        sprite = None
        if images is not None and images.ndim == 3:
            sprite = (255 * np.clip(images[some] / max(float(images.max()), 1e-12), 0, 1)).astype(np.uint8)
        labels = [names[label] for label in target[some].tolist()]
        logger.embedding("eval/penultimate", features[some], labels, sprite)


def _with_features(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Logits, and what the last linear layer read (B, D), if there is one."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    read: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: read.append(args[0])) for layer in layers[-1:]]
    try:
        with evaluating(model):
            logits = torch.cat([model(piece.input) for piece in batch.split(4096)])
    finally:
        for hook in hooks:
            hook.remove()
    vectors = torch.cat(read).cpu() if read and all(tensor.ndim == 2 for tensor in read) else None
    return logits, vectors


def _images(inputs: Tensor, shape: tuple[int, ...] | None) -> NDArray[np.float32] | None:
    if shape is None and (inputs.ndim == 3 or (inputs.ndim == 4 and inputs.shape[1] in (1, 3))):
        shape = tuple(inputs.shape[1:])
    if shape is None:
        return None
    return inputs.detach().float().cpu().numpy().reshape(len(inputs), *shape)

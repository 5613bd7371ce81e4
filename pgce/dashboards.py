"""What TensorBoard shows of a trained classifier beside its curves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgce import pictures
from pgce.heads import Head, plain
from pgce.logger import Logger
from pgce.trainer import Batch

__all__ = ["classifier"]

_MOST_VECTORS = 2000
"""Examples in the projector, whose page holds them all."""
_MOST_CURVES = 20
"""Classes with a precision–recall curve."""


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
    classes = probability.shape[1]
    names = [str(k) for k in range(classes)] if class_names is None else list(class_names)
    images = None if isinstance(batch.input, dict) else _images(batch.input, image_shape)
    if target.ndim == 1:
        logger.image(step, "eval/confusion_matrix", pictures.confusion_matrix(target, probability, names))
        logger.image(step, "eval/reliability", pictures.reliability_diagram(target, probability))
        if images is not None:
            wrong = pictures.confidently_wrong(images, target, probability, names)
            logger.image(step, "eval/confidently_wrong", wrong)
    kept = slice(_MOST_CURVES)
    logger.pr_curves(step, "eval/pr_curve", target, probability, names[kept])
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
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = torch.cat([model(piece.input) for piece in batch.split(4096)])
    finally:
        model.train(training)
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

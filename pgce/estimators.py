"""Train, evaluate and apply a model on arrays, for those who have a data set rather than an environment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgce.choices import OptimizerName, Schedule
from pgce.heads import Categorical, Head
from pgce.objective import objective
from pgce.optimizer import Optimizer, resolve_device
from pgce.trainer import Batch, Report, Rule, TargetRule, Term, Trainer, train
from pgce.weights import one

__all__ = ["History", "as_batch", "evaluate", "fit", "predict"]

Array = Tensor | NDArray[Any]
Data = Batch | tuple[Array, Array] | tuple[Array, Array, Array]


@dataclass
class History:
    """What `fit` measured, a row an epoch.

    Attributes:
        epochs: for each epoch "epoch" (from 1), "examples" seen and "steps" taken so far, "loss" (mean over
            its examples), "learning_rate" and "grad_norm" of its last step, and with validation data
            "val_loss" and, of a classifier, "val_accuracy".

    Example:
        >>> from pgce.estimators import History
        >>> History([{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.25}])["loss"]
        [0.5, 0.25]
    """

    epochs: list[dict[str, float]] = field(default_factory=list)

    def __getitem__(self, name: str) -> list[float]:
        """One column, an entry an epoch."""
        return [row[name] for row in self.epochs]


def as_batch(data: Data, device: torch.device | None = None) -> Batch:
    """A data set as one batch with columns "target" and, where given, "sample_weight", on `device`.

    Args:
        data: (inputs (B, ...), targets (B, ...)), and optionally sample weights (B,); arrays or tensors. Or
            a batch. Float64 arrays become float32; float64 tensors stay.
        device: None is the CPU.

    Raises:
        ValueError: no example, or different numbers of them.

    Example:
        >>> import numpy as np
        >>> from pgce.estimators import as_batch
        >>> as_batch((np.zeros((5, 3)), np.arange(5)))["target"]
        tensor([0, 1, 2, 3, 4])
    """
    device = device or torch.device("cpu")
    if not isinstance(data, Batch):
        if len(data) not in (2, 3):
            raise ValueError(
                f"data are (inputs, targets) or (inputs, targets, sample_weight): there are {len(data)}"
            )
        inputs, *columns = (_tensor(array) for array in data)
        data = Batch(inputs, dict(zip(("target", "sample_weight"), columns, strict=False)))
    if len(data) == 0:
        raise ValueError("a data set has at least one example: this one has none")
    moved = (
        {name: value.to(device) for name, value in data.input.items()}
        if isinstance(data.input, dict)
        else data.input.to(device)
    )
    columns_ = {name: column.to(device) for name, column in data.columns.items()}
    return Batch(moved, columns_, None if data.mask is None else data.mask.to(device))


def fit(
    model: nn.Module,
    data: Data,
    *,
    head: Head | None = None,
    target: str | TargetRule = "target",
    weight: str | Rule = one,
    validation: Data | None = None,
    epochs: int = 20,
    batch_size: int = 128,
    optimizer: OptimizerName = "adam",
    learning_rate: float = 1e-3,
    schedule: Schedule = "constant",
    warmup_steps: int = 0,
    max_grad_norm: float | None = None,
    seed: int = 0,
    device: str = "auto",
    after: Callable[[dict[str, float], Report], bool | None] | None = None,
    **options: Any,
) -> History:
    """Train `model` in place by weighted cross-entropy; every epoch sees each example once, in random order.

    Args:
        model: (B, ...) -> logits (B, K), or what the head reads. Moved to `device`.
        data: as `as_batch` takes it.
        head: what the logits mean; None is `Categorical()`.
        target: the column with y, or a rule (logits, batch) -> y.
        weight: the column with w ("sample_weight", say), or a rule (cross_entropy, batch) -> w.
        validation: held-out data, evaluated after every epoch.
        epochs: passes over the data.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        optimizer: by name, as the next five: see `pgce.optimizer.Optimizer`.
        learning_rate: step size.
        schedule: of the learning rate over all epochs.
        warmup_steps: updates until the learning rate is whole.
        max_grad_norm: limit of the gradient's norm, or None.
        seed: of the order of examples.
        device: "auto", "cpu", "cuda", "mps".
        after: called after every epoch with its row of the history and its last report; True ends training.
        options: what torch's optimizer of that name takes.

    Returns:
        The history of training.

    Raises:
        ValueError: data that don't fit each other, the model or the head; found before the first step.
        FloatingPointError: loss or gradient stopped being finite; the model is as before that step.

    Example:
        >>> import torch, pgce
        >>> _ = torch.manual_seed(0)
        >>> inputs, labels = torch.randn(200, 2), torch.arange(200) % 2
        >>> inputs[:, 0] += 6.0 * labels
        >>> model = pgce.networks.mlp(2, 2)
        >>> history = pgce.fit(model, (inputs, labels), epochs=20, learning_rate=0.01, device="cpu")
        >>> pgce.evaluate(model, (inputs, labels))["accuracy"] > 0.98
        True
        >>> history["loss"][-1] < history["loss"][0]
        True
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"epochs and batch size are at least 1: epochs is {epochs}, batch_size is {batch_size}"
        )
    head = Categorical() if head is None else head
    place = resolve_device(device)
    model.to(place)
    whole = as_batch(data, place).counted()
    held_out = None if validation is None else as_batch(validation, place)
    for name, each in (("data", whole), ("validation", held_out)):
        if each is not None:
            _check(model, head, target if name == "data" else "target", each, name)
    term = Term(head, target, weight)
    stack = Optimizer(
        model.parameters(),
        optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        max_grad_norm=max_grad_norm,
        **options,
    )
    trainer = Trainer(model, {"label": term}, stack)
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(whole) // batch_size)
    history = History()
    losses: list[Tensor] = []

    def epoch() -> Iterator[Batch]:
        losses.clear()
        model.train()
        for index in torch.randperm(len(whole), generator=generator).split(batch_size):
            stack.progress = stack.steps / steps
            yield whole.rows(index)

    def record(reports: dict[str, Report]) -> bool:
        losses.append(reports["label"].loss * len(reports["label"].batch))
        return False

    def finish(n: int, reports: dict[str, Report]) -> bool | None:
        row = {
            "epoch": n + 1.0,
            "examples": (n + 1.0) * len(whole),
            "steps": float(stack.steps),
            "loss": (torch.stack(losses).sum() / len(whole)).item(),
            "learning_rate": stack.learning_rate,
            "grad_norm": stack.grad_norm,
        }
        if held_out is not None:
            row |= {f"val_{k}": v for k, v in evaluate(model, held_out, head=head).items()}
        history.epochs.append(row)
        return after(row, reports["label"]) if after is not None else None

    train(trainer, (epoch() for _ in range(epochs)), stop=record, after=finish)
    return history


def evaluate(
    model: nn.Module, data: Data, *, head: Head | None = None, batch_size: int = 4096
) -> dict[str, float]:
    """Mean cross-entropy "loss" in nats and, of a classifier with class ids, "accuracy".

    Example:
        >>> import torch, pgce
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> pgce.evaluate(model, (torch.eye(2), torch.tensor([0, 0])))["accuracy"]
        0.5
    """
    head = Categorical() if head is None else head
    batch = as_batch(data, _device_of(model)).counted()
    logits = _forward(model, batch, batch_size)
    target = batch["target"]
    loss = objective(head.cross_entropy(logits, target), None, len(batch))
    scores = {"loss": loss.item()}
    if isinstance(head, Categorical) and target.ndim == 1:
        scores["accuracy"] = (head.mode(logits) == target).double().mean().item()
    return scores


def predict(model: nn.Module, inputs: Array, *, head: Head | None = None, batch_size: int = 4096) -> Tensor:
    """The head's most probable outcome for each input, on the CPU: class ids of a classifier.

    Example:
        >>> import torch, pgce
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> pgce.predict(model, torch.eye(2))
        tensor([0, 1])
    """
    head = Categorical() if head is None else head
    batch = Batch(_tensor(inputs).to(_device_of(model)), {})
    return head.mode(_forward(model, batch, batch_size)).cpu()


def _forward(model: nn.Module, batch: Batch, batch_size: int) -> Tensor:
    """Logits of all rows, in evaluation mode and without gradient."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            pieces = torch.arange(len(batch)).split(batch_size)
            return torch.cat([model(batch.rows(piece).input) for piece in pieces])
    finally:
        model.train(training)


def _check(model: nn.Module, head: Head, target: str | TargetRule, batch: Batch, name: str) -> None:
    """One row through model and head, and all targets' values: errors before the first step."""
    row = batch.rows(torch.arange(1))
    logits = _forward(model, row, 1)
    y = row[target] if isinstance(target, str) else target(logits, row)
    try:
        head.check(logits, batch[target] if isinstance(target, str) else y)
        head.cross_entropy(logits, y)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    inputs = batch.input.values() if isinstance(batch.input, dict) else [batch.input]
    for values in (*inputs, *batch.columns.values()):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{name}: inputs, targets and weights are finite: one holds NaN or infinity")


def _tensor(array: Array) -> Tensor:
    if isinstance(array, Tensor):
        return array
    values = np.asarray(array)
    return torch.as_tensor(values.astype(np.float32) if values.dtype == np.float64 else values)


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))

"""A classifier: the label is the target y, every weight w is 1.

    python agents/supervised.py --data digits

Label smoothing and soft labels are other rules for y; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pgce
from pgce.choices import Activation, Schedule
from pgce.envs import datasets
from pgce.run import Learner, Run, cpu_threads, main

if TYPE_CHECKING:
    from torch import Tensor

    from pgce.trainer import Batch, Report


@dataclass(kw_only=True)
class Supervised(Learner):
    """Settings of the classifier.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.Supervised(epochs=2, quiet=True, runs_dir=folder).train("iris")
        >>> run.result["examples"]
        224
    """

    data: str = "digits"
    """Data set that comes with scikit-learn; a fixed, stratified quarter of it is held out."""
    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 32
    """Examples a step."""
    label_smoothing: float = 0.0
    """Share ε of the target given to the uniform distribution over all classes."""
    soft_labels: tuple[float, float] | None = None
    """Target at the label and at every other class, such as 0.9 0.1."""
    learning_rate: float = 3e-3
    """Step size."""
    lr_schedule: Schedule = "cosine"
    """How the learning rate falls over the run."""
    hidden_sizes: tuple[int, ...] = (256,)
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    """After each hidden layer."""

    def target(self, logits: Tensor, batch: Batch) -> Tensor:
        """The rule for y: class ids (B,), or rows (B, K)."""
        label, classes = batch["target"], logits.shape[-1]
        if self.soft_labels is not None:
            return pgce.targets.soften(label, classes, *self.soft_labels, dtype=logits.dtype)
        if self.label_smoothing:
            y = pgce.targets.one_hot(label, classes, logits.dtype)
            return pgce.targets.smooth(y, self.label_smoothing)
        return label

    def train(self, data: str | None = None) -> Run:
        """Train with these settings.

        Args:
            data: replaces the setting of that name.

        Returns:
            The run: its folder, result and trained model.
        """
        with cpu_threads(self.threads):
            return _train(self if data is None else replace(self, data=data))


def _train(settings: Supervised) -> Run:
    import torch

    settings.at_least_one("epochs", "batch_size")
    if settings.soft_labels is not None and settings.label_smoothing:
        raise ValueError("labels are smoothed or soft: both label_smoothing and soft_labels are set")
    data = datasets.load(settings.data)
    learn, held_out = data[:2], data[2:4]
    features = data.train_inputs.shape[1]
    torch.manual_seed(settings.seed)
    model = pgce.networks.mlp(features, data.classes, settings.hidden_sizes, settings.activation)
    # Bad settings are refused here, before there is a folder.
    settings.build_optimizer(model.to(pgce.optimizer.resolve_device(settings.device)))
    label = pgce.Batch(torch.zeros(1), {"target": torch.zeros(1).long()})
    settings.target(torch.zeros(1, data.classes), label)
    run = Run(settings, settings.data, ["eval/accuracy", "eval/loss"])
    run.say(
        learner=f"{settings.learner} on {settings.data}, seed {settings.seed}",
        minimises="mean(w · H) of labels",
        learns=f"from {len(learn[1]):,} examples for {settings.epochs} epochs; {len(held_out[1]):,} are held "
        f"out; {features} features, {data.classes} classes",
        folder=str(run.path),
    )
    scores: dict[str, float] = {}

    def after(row: dict[str, float], report: Report) -> bool:
        examples = int(row["examples"])
        with run.paused():
            scores.update(pgce.evaluate(model, held_out))
        values = {
            **pgce.metrics.factors(report),
            **{f"eval/{name}": score for name, score in scores.items()},
            "objective/loss": row["loss"],
            "train/accuracy": pgce.metrics.accuracy(report, pgce.heads.Categorical()),
            "train/learning_rate": row["learning_rate"],
            "train/grad_norm": row["grad_norm"],
            "time/fps": examples / run.seconds,
            "time/epoch": row["epoch"],
        }
        run.logger.scalars(examples, values)
        run.logger.distributions(examples, report)
        run.bar.update(examples, f"accuracy {scores['accuracy']:.3f}")
        return run.interrupted

    with run.logger, run.training(settings.epochs * len(learn[1]), "examples"):
        history = pgce.fit(
            model,
            learn,
            target=settings.target,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seed=settings.seed,
            device=settings.device,
            after=after,
            **settings.optimizer_settings,
        )
    result = {
        "data": settings.data,
        "examples": int(history["examples"][-1]),
        "steps": int(history["steps"][-1]),
        "stopped": "interrupt" if run.interrupted else "budget",
        **{f"test_{name}": score for name, score in scores.items()},
    }
    run.finish(model, result, f"{scores['accuracy']:.2%} of the held-out examples right")
    return run


if __name__ == "__main__":
    main(Supervised, __doc__)

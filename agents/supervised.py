"""A classifier or regressor: a rule for the target y and a rule for the weight w, on any data set.

    python agents/supervised.py --data digits --label-smoothing 0.1
    python agents/supervised.py --data my.csv --target species --class-weight balanced --focal-gamma 2

Every flag that names a rule is a setting of `pgce.Classifier` or `pgce.Regressor`, which this trains.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import pgce
from pgce.choices import Activation, Schedule
from pgce.envs import datasets
from pgce.recipes import ClassificationRules, RegressionRules, Training
from pgce.run import Learner, Run, main

if TYPE_CHECKING:
    from pgce.logger import Logger
    from pgce.trainer import Report


@dataclass(kw_only=True)
class Supervised(ClassificationRules, RegressionRules, Training, Learner):
    """Settings of the classifier or regressor.

    Example:
        >>> import tempfile, pgce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.Supervised(epochs=2, quiet=True, runs_dir=folder).train("iris")
        >>> run.result["examples"]
        224
    """

    data: str = "digits"
    """Data set of scikit-learn by name, a .csv, .parquet or .npz file, or a folder of images in a folder each
    class; a fixed quarter of it is held out."""
    target: str | None = None
    """Column of the file that is to be predicted; target, label, class or y if there is one."""
    teacher: str | None = None
    """Run of a classifier whose probabilities are learned beside the labels (distillation)."""
    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 32
    """Examples a step."""
    learning_rate: float = 3e-3
    """Step size."""
    lr_schedule: Schedule = "cosine"
    """How the learning rate falls over the run."""
    hidden_sizes: tuple[int, ...] = (256,)
    """Widths of the hidden layers."""
    activation: Activation = "relu"
    """After each hidden layer."""

    def train(self, data: str | None = None) -> Run:
        """Train with these settings.

        Args:
            data: replaces the setting of that name.

        Returns:
            The run: its folder, result and trained model, a `pgce.Classifier` or `pgce.Regressor`.
        """
        settings = self if data is None else replace(self, data=data)
        with settings.computing():
            return _train(settings)

    def estimator(self, task: str) -> Any:
        """The untrained estimator of these settings, for a data set of that task.

        Raises:
            ValueError: a rule is set that has no meaning for the task.
        """
        regresses = task == "regression"
        other = ClassificationRules if regresses else RegressionRules
        lost = [field.name for field in fields(other) if getattr(self, field.name) != field.default]
        if lost:
            raise ValueError(f"{', '.join(lost)}: not a rule of {task}, which the data set is for")
        kind = pgce.Regressor if regresses else pgce.Classifier
        shared = {name: getattr(self, name) for name in kind().get_params() if hasattr(self, name)}
        shared |= {"schedule": self.lr_schedule, "random_state": self.seed}
        if self.weight_decay is not None:
            shared["optimizer_options"] = {"weight_decay": self.weight_decay}
        if self.teacher is not None:
            shared["teacher"] = pgce.load(self.teacher)
        return kind(**shared)


def _train(settings: Supervised) -> Run:
    data = datasets.load(settings.data, settings.target)
    regresses = data.task == "regression"
    estimator = settings.estimator(data.task)
    if settings.cutmix and data.image_shape is not None:
        images = (-1, *data.image_shape)
        data = data._replace(
            train_inputs=data.train_inputs.reshape(images), test_inputs=data.test_inputs.reshape(images)
        )
    held_out = data.test_inputs, data.test_labels
    with ExitStack() as stack:
        run: Run

        def begin() -> Logger:  # bad settings are refused before there is a folder
            nonlocal run
            run = Run(settings, settings.data)
            run.say(
                learner=f"{settings.learner} on {settings.data}, seed {settings.seed}",
                minimises="mean(w · H) of " + ("real values" if regresses else "labels"),
                learns=f"from {len(data.train_labels):,} examples for {settings.epochs} epochs; "
                f"{len(data.test_labels):,} are held out; inputs {data.train_inputs.shape[1:]}"
                + ("" if regresses else f", {data.classes} classes"),
                folder=str(run.path),
            )
            stack.enter_context(run)
            stack.enter_context(run.training(settings.epochs * len(data.train_labels), "examples"))
            return run.logger

        def after(row: dict[str, float], report: Report) -> bool:
            run.bar.update(int(row["examples"]), f"held-out loss {row['val_loss']:.3f}")
            run.ended_round()
            return bool(run.interrupted)

        # What early stopping looks at is held out of the training data, not tested on.
        validation = None if settings.early_stopping else held_out
        estimator.log, estimator.checkpoints = begin, lambda: run.checkpoints
        estimator.fit(data.train_inputs, data.train_labels, validation=validation, after=after)
        history, scores = estimator.history_, estimator.evaluate(*held_out)
        step = int(history["examples"][-1])
        told = history.epochs[-1] if validation else ()  # of the same examples, by every epoch
        run.logger.scalars(step, {f"eval/{k}": v for k, v in scores.items() if f"val_{k}" not in told})
        if run.settings.track and not regresses:
            estimator.dashboard(run.logger, step, *held_out, data.class_names, data.image_shape)
    pgce.save(estimator, run.path)
    result = {
        "data": settings.data,
        "examples": step,
        "steps": int(history["steps"][-1]),
        "stopped": run.interrupted or history.stopped.replace("epochs", "budget"),
        **{f"test_{name}": score for name, score in scores.items()},
        "train_seconds": round(history["seconds"][-1], 3),
    }
    score = f"R² {scores['r2']:.3f}" if regresses else f"{scores['accuracy']:.2%}"
    run.finish(estimator, result, f"{score} on held-out examples")
    return run


if __name__ == "__main__":
    main(Supervised, __doc__)

"""Numbers to log: functions of a Report. None is computed in the step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgce.heads import Head
from pgce.trainer import Report, Term

__all__ = ["accuracy", "entropy", "explained_variance", "factors", "summary"]


def factors(report: Report) -> dict[str, float]:
    """The two factors of the objective over the batch, by tag: weight mean and spread, cross-entropy.

    Example:
        >>> import torch
        >>> from pgce import Batch, Term, Trainer, heads, metrics
        >>> from pgce.optimizer import Optimizer
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> term = Term(heads.Categorical(), target="action", weight="return")
        >>> trainer = Trainer(model, {"policy": term}, Optimizer(model.parameters()))
        >>> batch = Batch(torch.eye(2), {"action": torch.tensor([0, 1]), "return": torch.tensor([1.0, 3.0])})
        >>> {tag: round(value, 4) for tag, value in metrics.factors(trainer.step(batch)["policy"]).items()}
        {'objective/cross_entropy': 0.6931, 'objective/weight_mean': 2.0, 'objective/weight_std': 1.4142}
    """
    weight = torch.ones(1) if report.weight is None else report.weight
    return {
        "objective/cross_entropy": _mean(report.cross_entropy),
        "objective/weight_mean": _mean(weight),
        "objective/weight_std": weight.float().std().item() if weight.numel() > 1 else 0.0,
    }


def summary(reports: Mapping[str, Report], terms: Mapping[str, Term]) -> dict[str, float]:
    """What every learner logs of one step, by tag: the objective, its factors, and what its terms tell.

    The first term is the one whose factors are shown; "policy" and "value" add their own numbers.
    """
    values = {"objective/loss": sum(report.loss.item() for report in reports.values())}
    values |= factors(next(iter(reports.values())))
    if "policy" in reports:
        values["train/entropy"] = entropy(reports["policy"], terms["policy"].head)
    if "value" in reports:
        values["train/value_loss"] = reports["value"].loss.item()
        values["train/explained_variance"] = explained_variance(reports["value"])
    return values


def accuracy(report: Report, head: Head) -> float:
    """Share of the batch whose most probable class is the label (a dense target's largest entry)."""
    target = report.target
    if target.shape == report.logits.shape:
        target = target.argmax(-1)
    return _mean((head.mode(report.logits) == target).float())


def entropy(report: Report, head: Head) -> float:
    """Mean entropy H(p) in nats."""
    return _mean(head.entropy(report.logits))


def explained_variance(report: Report) -> float:
    """1 − Var(y − μ)/Var(y) of a real-valued prediction: 1 is perfect, 0 no better than a constant.

    NaN where the target does not vary.
    """
    spread = report.target.var(unbiased=False)
    return (1 - (report.target - report.logits).var(unbiased=False) / spread).item()


def _mean(value: Tensor) -> float:
    return value.float().mean().item()

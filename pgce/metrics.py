"""Numbers to log: functions of a Report. None is computed in the step."""

from __future__ import annotations

import math
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
    """What an agent logs of one step, by tag: the objective, its factors, and what its terms tell.

    The factors are those of the first term; terms "policy" and "value" add numbers of their own.

    Args:
        reports: of one step, by term.
        terms: the same terms.

    Example:
        >>> import torch
        >>> from pgce import Batch, Term, Trainer, heads, metrics
        >>> from pgce.optimizer import Optimizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
        >>> terms = {"value": Term(heads.Gaussian(), target="return")}
        >>> trainer = Trainer(model, terms, Optimizer(model.parameters()))
        >>> reports = trainer.step(Batch(torch.eye(2), {"return": torch.tensor([0.0, 1.0])}))
        >>> sorted(metrics.summary(reports, terms))[-2:]
        ['train/explained_variance', 'train/value_loss']
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
    """Share of the batch whose most probable class is the label (a dense target's largest entry).

    Example:
        >>> import torch
        >>> from pgce.heads import Categorical
        >>> from pgce.metrics import accuracy
        >>> from pgce.trainer import Batch, Report
        >>> logits, label, one = torch.eye(4), torch.tensor([0, 1, 2, 0]), torch.ones(4)
        >>> accuracy(Report(logits, label, one, None, one.mean(), Batch(logits, {})), Categorical())
        0.75
    """
    target = report.target
    if target.shape == report.logits.shape:
        target = target.argmax(-1)
    return _mean((head.mode(report.logits) == target).float())


def entropy(report: Report, head: Head) -> float:
    """Mean entropy H(p) of the batch in nats.

    Example:
        >>> import torch
        >>> from pgce.heads import Categorical
        >>> from pgce.metrics import entropy
        >>> from pgce.trainer import Batch, Report
        >>> logits, label, one = torch.zeros(4, 2), torch.zeros(4).long(), torch.ones(4)
        >>> entropy(Report(logits, label, one, None, one.mean(), Batch(logits, {})), Categorical())
        0.6931
    """
    return _mean(head.entropy(report.logits))


def explained_variance(report: Report) -> float:
    """1 − Var(y − μ)/Var(y) of a real-valued prediction: 1 is perfect, 0 no better than a constant.

    NaN where the target does not vary.

    Example:
        >>> import torch
        >>> from pgce.metrics import explained_variance
        >>> from pgce.trainer import Batch, Report
        >>> predicted, value, one = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.ones(2)
        >>> explained_variance(Report(predicted, value, one, None, one.mean(), Batch(predicted, {})))
        0.75
    """
    spread = report.target.var(unbiased=False).item()
    unexplained = (report.target - report.logits).var(unbiased=False).item()
    return 1 - unexplained / spread if spread else math.nan


def _mean(value: Tensor) -> float:
    return value.float().mean().item()

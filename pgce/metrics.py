"""Numbers to log: functions of a step's reports, or of held-out targets and predictions.

None is computed in the step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pgce.heads import Head, PolicyHead
from pgce.trainer import Report, Term

__all__ = [
    "HIGHER_IS_BETTER",
    "LOWER_IS_BETTER",
    "accuracy",
    "calibration",
    "classification",
    "entropy",
    "explained_variance",
    "factors",
    "interquartile_mean",
    "multilabel",
    "policy_change",
    "probability_of_improvement",
    "regression",
    "right",
    "rows",
    "summary",
]

LOWER_IS_BETTER = {"loss", "log_loss", "brier", "ece", "mse", "mae"}
"""Metrics whose best value is the smallest."""

HIGHER_IS_BETTER = {"accuracy", "top_5_accuracy", "balanced_accuracy", "label_accuracy"}
HIGHER_IS_BETTER |= {"f1_macro", "roc_auc", "average_precision", "r2"}
"""Metrics whose best value is the largest."""


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


def rows(report: Report, head: Head, number: int) -> dict[str, Tensor]:
    """The first rows of a batch as the objective sees them, and the gradient on the logits.

    The gradient is that of w · H alone: w · (p − y) for classes. Fewer rows come where there are fewer.

    Args:
        report: of a step.
        head: of its term.
        number: of rows (b).

    Returns:
        "y" as it was scored, (b, ...); "p", the head's mean, (b, ...); "w" and "H" (b,); "gradient", of the
        logits' shape (b, ...).

    Example:
        >>> import torch
        >>> from pgce import Batch, heads, metrics
        >>> from pgce.trainer import Report
        >>> logits, head = torch.zeros(2, 2), heads.Categorical()
        >>> y, w = torch.tensor([1, 0]), torch.tensor([2.0, -1.0])
        >>> report = Report(logits, y, head.cross_entropy(logits, y), w, torch.tensor(0.0), Batch(logits, {}))
        >>> metrics.rows(report, head, 2)["gradient"]
        tensor([[ 1.0000, -1.0000],
                [ 0.5000, -0.5000]])
    """
    kept = slice(number)
    logits = report.logits[kept].detach().clone().requires_grad_()
    target = report.target[kept]
    weight = torch.ones_like(report.cross_entropy) if report.weight is None else report.weight
    weight = weight.expand_as(report.cross_entropy)[kept]
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad((weight * head.cross_entropy(logits, target)).sum(), logits)
    p = head.mean(logits.detach())
    return {"y": target, "p": p, "w": weight, "H": report.cross_entropy[kept], "gradient": gradient}


def summary(reports: Mapping[str, Report], terms: Mapping[str, Term]) -> dict[str, float]:
    """What an agent logs of one step, by tag: the objective, its factors, and what its terms tell.

    The factors are those of the first term; terms "policy" and "value" add numbers of their own, and all
    but the policy their loss.

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
    if (policy := reports.get("policy")) is not None:
        values["train/entropy"] = entropy(policy, cast("PolicyHead", terms["policy"].head))
        if "cross_entropy" in policy.batch.columns:
            values |= policy_change(policy)
    values |= {f"train/{name}_loss": each.loss.item() for name, each in reports.items() if name != "policy"}
    if "value" in reports:
        value = reports["value"]
        if callable(terms["value"].target) and "return" in value.batch.columns:  # what a rule made of it
            value = replace(value, target=value.batch["return"])
        values["train/explained_variance"] = explained_variance(value)
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
    return _mean(right(report, head).float())


def right(report: Report, head: Head) -> Tensor:
    """Which examples' most probable class is the label (a dense target's largest entry), bool (B,).

    Example:
        >>> import torch
        >>> from pgce.heads import Categorical
        >>> from pgce.metrics import right
        >>> from pgce.trainer import Batch, Report
        >>> logits, label, one = torch.eye(3), torch.tensor([0, 1, 0]), torch.ones(3)
        >>> right(Report(logits, label, one, None, one.mean(), Batch(logits, {})), Categorical())
        tensor([ True,  True, False])
    """
    target = report.target
    if target.shape == report.logits.shape:
        target = target.argmax(-1)
    return head.mode(report.logits) == target


def entropy(report: Report, head: PolicyHead) -> float:
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


def policy_change(report: Report) -> dict[str, float]:
    """How far the policy has moved from the one that acted, by tag, with ρ = π(a|s)/π_old(a|s).

    "train/approx_kl" is the mean of ρ − 1 − log ρ in nats (never negative), "train/clip_fraction" the share
    of actions whose weight a clip has set to 0.

    Args:
        report: of a policy, whose batch has the column "cross_entropy" of the policy that acted.

    Example:
        >>> import torch
        >>> from pgce.metrics import policy_change
        >>> from pgce.trainer import Batch, Report
        >>> now, weight = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0])
        >>> batch = Batch(now, {"cross_entropy": torch.ones(2), "advantage": torch.ones(2)})
        >>> policy_change(Report(now, now, now, weight, now.mean(), batch))
        {'train/approx_kl': 0.07, 'train/clip_fraction': 0.5}

    References:
        Schulman (2020), Approximating KL divergence.
    """
    log_ratio = report.batch["cross_entropy"] - report.cross_entropy
    values = {"train/approx_kl": _mean(torch.expm1(log_ratio) - log_ratio)}
    if report.weight is not None and "advantage" in report.batch.columns:
        cut = (report.weight == 0) & (report.batch["advantage"] != 0)
        values["train/clip_fraction"] = _mean(cut)
    return values


def explained_variance(report: Report) -> float:
    """1 − Var(y − μ)/Var(y) of a real-valued prediction: 1 is perfect, 0 no better than a constant.

    NaN where the target does not vary, or there is none.

    Example:
        >>> import torch
        >>> from pgce.metrics import explained_variance
        >>> from pgce.trainer import Batch, Report
        >>> predicted, value, one = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), torch.ones(2)
        >>> explained_variance(Report(predicted, value, one, None, one.mean(), Batch(predicted, {})))
        0.75
    """
    if not report.target.numel():
        return math.nan
    spread = report.target.var(unbiased=False).item()
    unexplained = (report.target - report.logits).var(unbiased=False).item()
    return 1 - unexplained / spread if spread else math.nan


def classification(target: Tensor, probability: Tensor) -> dict[str, float]:
    """What is known about a classifier from its probabilities, by scikit-learn.

    Args:
        target: class ids (B,).
        probability: (B, K).

    Returns:
        "accuracy"; "top_5_accuracy" where there are more than five classes; "balanced_accuracy" (mean recall
        of the classes that occur); "f1_macro" (of those that occur or are guessed); "roc_auc" (of more than
        two classes the mean of one against the rest; left out where a class does not occur); "log_loss" in
        nats; "brier" (mean squared error of the probabilities, added over more than two classes); "ece" (see
        `calibration`).

    Example:
        >>> import torch
        >>> from pgce.metrics import classification
        >>> p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
        >>> scores = classification(torch.tensor([0, 1, 1]), p)
        >>> scores["accuracy"], scores["balanced_accuracy"], scores["ece"]
        (0.67, 0.75, 0.30)

    References:
        Brier (1950), Verification of forecasts expressed in terms of probability.
    """
    from sklearn import metrics as sk

    y, p = _array(target), _array(probability)
    p = p / p.sum(1, keepdims=True)  # in float64 the sum of float32 probabilities is not 1
    classes = np.arange(p.shape[1])
    guess = p.argmax(1)
    scores = {"accuracy": sk.accuracy_score(y, guess)}
    if len(classes) > 5:
        scores["top_5_accuracy"] = sk.top_k_accuracy_score(y, p, k=5, labels=classes)
    present = np.unique(y)
    scores["balanced_accuracy"] = sk.recall_score(y, guess, labels=present, average="macro", zero_division=0)
    scores["f1_macro"] = sk.f1_score(y, guess, average="macro", zero_division=0)
    if len(present) == len(classes) > 1:
        binary = len(classes) == 2
        scores["roc_auc"] = sk.roc_auc_score(y, p[:, 1] if binary else p, multi_class="ovr", labels=classes)
    if len(classes) > 1:
        scores["log_loss"] = sk.log_loss(y, p, labels=classes)
        scores["brier"] = sk.brier_score_loss(y, p, labels=classes)
    confidence, correct, count = calibration(target, probability)
    scores["ece"] = float((count * np.abs(confidence - correct)).sum() / count.sum())
    return {name: float(score) for name, score in scores.items()}


def calibration(
    target: Tensor, probability: Tensor, bins: int = 15
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean confidence, share right, and number of the examples in each bin of confidence that has any.

    The confidence is the probability of the most probable class. The expected calibration error is the mean
    difference of the first two, weighted by the third.

    Args:
        target: class ids (B,).
        probability: (B, K).
        bins: of equal width on [0, 1].

    Example:
        >>> import torch
        >>> from pgce.metrics import calibration
        >>> calibration(torch.tensor([0, 0]), torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
        (array([0.75]), array([0.5]), array([2]))

    References:
        Guo et al. (2017), On calibration of modern neural networks.
    """
    from sklearn.calibration import calibration_curve

    p = _array(probability)
    confidence, correct = p.max(1).clip(0, 1), p.argmax(1) == _array(target)
    share, mean = calibration_curve(correct, confidence, n_bins=bins, pos_label=True)
    # The curve leaves out how many examples a bin has: the same bins, counted.
    edges = np.linspace(0, 1, bins + 1)
    count = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=bins)
    return mean, share, count[count > 0]


def multilabel(target: Tensor, probability: Tensor) -> dict[str, float]:
    """What is known about a classifier of several labels from its probabilities, by scikit-learn.

    Args:
        target: zeros and ones (B, L).
        probability: (B, L).

    Returns:
        "accuracy" (all labels right), "label_accuracy", "f1_macro", and "average_precision" and "roc_auc"
        (means over labels, left out where a label is always or never there).

    Example:
        >>> import torch
        >>> from pgce.metrics import multilabel
        >>> multilabel(torch.tensor([[1, 0], [0, 1]]), torch.tensor([[0.9, 0.6], [0.1, 0.8]]))["accuracy"]
        0.5
    """
    from sklearn import metrics as sk

    y, p = _array(target).astype(np.int64), _array(probability)
    guess = (p > 0.5).astype(np.int64)
    scores = {
        "accuracy": sk.accuracy_score(y, guess),
        "label_accuracy": (y == guess).mean(),
        "f1_macro": sk.f1_score(y, guess, average="macro", zero_division=0),
    }
    if bool((y.min(0) < y.max(0)).all()):
        scores["average_precision"] = sk.average_precision_score(y, p)
        scores["roc_auc"] = sk.roc_auc_score(y, p)
    return {name: float(score) for name, score in scores.items()}


def regression(target: Tensor, predicted: Tensor) -> dict[str, float]:
    """Errors of real-valued predictions, by scikit-learn.

    Args:
        target: (B,) or (B, D), in its own unit.
        predicted: the same shape.

    Returns:
        "mse" and "mae" (means over components), and "r2", the coefficient of determination.

    Example:
        >>> import torch
        >>> from pgce.metrics import regression
        >>> regression(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 5.0]))["mae"]
        0.67
    """
    from sklearn import metrics as sk

    y, guess = _array(target), _array(predicted)
    return {
        "mse": float(sk.mean_squared_error(y, guess)),
        "mae": float(sk.mean_absolute_error(y, guess)),
        "r2": float(sk.r2_score(y, guess)) if len(y) > 1 else math.nan,
    }


def interquartile_mean(scores: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The mean of the middle half of several runs' scores, and the ends of its 95 % bootstrap interval.

    A quarter of the runs, rounded down, is left out at either end; the interval is of 2,000 draws of as many
    runs with replacement, always the same.

    Args:
        scores: (runs, ...); what follows the first axis is treated one by one.

    Returns:
        Interquartile mean, low end and high end, (...) each.

    Example:
        >>> import numpy as np
        >>> from pgce.metrics import interquartile_mean
        >>> mean, low, high = interquartile_mean(np.array([1.0, 8.0, 9.0, 10.0, 90.0]))
        >>> float(mean), bool(low < mean < high)
        (9.0, True)

    References:
        Agarwal et al. (2021), Deep reinforcement learning at the edge of the statistical precipice.
    """

    def middle(several: NDArray[Any]) -> NDArray[Any]:
        """(..., runs), without their axis."""
        cut, end = several.shape[-1] // 4, several.shape[-1] - several.shape[-1] // 4
        mean: NDArray[Any] = np.partition(several, (cut, end - 1))[..., cut:end].mean(-1)
        return mean

    runs = np.moveaxis(np.asarray(scores, np.float64), 0, -1)
    draws = np.random.default_rng(0).integers(runs.shape[-1], size=(2_000, runs.shape[-1]))
    low, high = np.quantile(middle(runs[..., draws]), (0.025, 0.975), axis=-1)
    return middle(runs), low, high


def probability_of_improvement(scores: NDArray[Any], others: NDArray[Any]) -> tuple[float, float, float]:
    """How probably a run scores more than one of the others, and the ends of its 95 % bootstrap interval.

    The share of all pairs in which it does, ties counting half.

    Args:
        scores: of several runs, (R,).
        others: of several runs, (S,).

    Example:
        >>> import numpy as np
        >>> from pgce.metrics import probability_of_improvement
        >>> probability_of_improvement(np.array([3.0, 4.0]), np.array([1.0, 3.0]))[0]
        0.875

    References:
        Agarwal et al. (2021), Deep reinforcement learning at the edge of the statistical precipice.
    """

    def share(x: NDArray[Any], y: NDArray[Any]) -> Any:
        """(..., R) and (..., S), without their last axes."""
        more = (x[..., :, None] > y[..., None, :]) + 0.5 * (x[..., :, None] == y[..., None, :])
        return more.mean((-2, -1))

    generator = np.random.default_rng(0)
    x, y = np.asarray(scores, np.float64), np.asarray(others, np.float64)
    draws = (values[generator.integers(len(values), size=(2_000, len(values)))] for values in (x, y))
    low, high = np.quantile(share(*draws), (0.025, 0.975))
    return float(share(x, y)), float(low), float(high)


def _array(values: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = torch.as_tensor(values).detach().cpu().numpy()
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _mean(value: Tensor) -> float:
    return value.float().mean().item()

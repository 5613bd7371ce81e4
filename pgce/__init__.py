"""Classifiers and reinforcement-learning agents from one objective: mean(w · H(y, p)).

A classifier is a rule for the targets y and weights w; a policy-gradient agent is a rule for w alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgce import agents, envs, heads, metrics, networks, optimizer, returns, samplers, targets, weights
    from pgce.estimators import Classifier, Regressor
    from pgce.fitting import History, evaluate, fit, predict, predict_proba
    from pgce.objective import linear_cross_entropy, weighted_cross_entropy
    from pgce.saving import load, save
    from pgce.trainer import Batch, Term, Trainer, train

__version__ = "0.1.0"

# Imported at first use, so that `import pgce` costs no time.
_NAMES = {
    "objective": ("linear_cross_entropy", "weighted_cross_entropy"),
    "trainer": ("Batch", "Term", "Trainer", "train"),
    "estimators": ("Classifier", "Regressor"),
    "saving": ("load", "save"),
    "fitting": ("History", "evaluate", "fit", "predict", "predict_proba"),
}
_HOME = {name: f"pgce.{module}" for module, names in _NAMES.items() for name in names}
__all__ = [
    "Batch",
    "Classifier",
    "History",
    "Regressor",
    "Term",
    "Trainer",
    "agents",
    "envs",
    "evaluate",
    "fit",
    "heads",
    "linear_cross_entropy",
    "load",
    "metrics",
    "networks",
    "optimizer",
    "predict",
    "predict_proba",
    "returns",
    "samplers",
    "save",
    "targets",
    "train",
    "weighted_cross_entropy",
    "weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = globals()[name] = getattr(import_module(_HOME[name]), name)
        return value
    if name in __all__:
        return import_module(f"pgce.{name}")
    raise AttributeError(f"module 'pgce' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

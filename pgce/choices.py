"""Names that settings are chosen from, in one place; imports nothing, so that `--help` costs no time."""

from __future__ import annotations

from typing import Any, Literal, get_args

__all__ = [
    "Activation",
    "Continuous",
    "Memory",
    "Network",
    "OptimizerName",
    "Precision",
    "Resume",
    "Schedule",
    "Std",
    "check_choice",
]

OptimizerName = Literal["adam", "adamw", "sgd", "rmsprop", "adadelta"]
Schedule = Literal["constant", "linear", "cosine"]
Precision = Literal["float32", "bfloat16", "float16"]
Continuous = Literal["gaussian", "tanh", "beta"]
Std = Literal["learned", "state", "fixed"]
Network = Literal["auto", "impala", "transformer"]
Memory = Literal["gru", "lstm"]
Resume = Literal["auto", "never", "must"]
Activation = Literal["relu", "silu", "tanh"]


def check_choice(what: str, name: object, choices: Any) -> None:
    """Raise a ValueError that lists the choices, unless `name` is one of them.

    Example:
        >>> from pgce.choices import Schedule, check_choice
        >>> check_choice("schedule", "step", Schedule)
        Traceback (most recent call last):
        ...
        ValueError: schedule is one of constant, linear, cosine: it is 'step'
    """
    if name not in get_args(choices):
        raise ValueError(f"{what} is one of {', '.join(get_args(choices))}: it is {name!r}")

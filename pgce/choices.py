"""What settings may be: the names they are chosen from, and their types; no torch, for a fast `--help`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

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
    "check_type",
    "check_types",
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


_KINDS: dict[Any, tuple[type | tuple[type, ...], str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    bool: ((bool, np.bool_), "True or False"),
    str: (str, "a string"),
    NoneType: (NoneType, "None"),
    dict: (Mapping, "a mapping"),
    Mapping: (Mapping, "a mapping"),
}


def check_type(name: str, value: object, hint: Any) -> None:
    """Raise a ValueError unless a value is what an annotation says.

    NumPy's numbers are numbers, True is no whole number, and a list or an array of one axis may stand for a
    tuple. What functions take and what mappings hold is not looked at.

    Args:
        name: what the value is called.
        value: of any type.
        hint: the annotation.

    Example:
        >>> from pgce.choices import Schedule, check_type
        >>> check_type("schedule", "step", Schedule)
        Traceback (most recent call last):
        ...
        ValueError: schedule is one of constant, linear, cosine: it is 'step'
        >>> check_type("hidden_sizes", 64, tuple[int, ...])
        Traceback (most recent call last):
        ...
        ValueError: hidden_sizes is a sequence, each a whole number: it is 64
        >>> check_type("hidden_sizes", [64, 64], tuple[int, ...])
    """
    if not _fits(value, hint):
        told = repr(value)
        told = told if len(told) < 100 and "\n" not in told else f"of type {type(value).__name__}"
        raise ValueError(f"{name} is {_words(hint)}: it is {told}")


def check_types(settings: Mapping[str, Any], of: Any) -> None:
    """Raise a ValueError that names the first setting which is not what its annotation says (`check_type`).

    Args:
        settings: values by name.
        of: the dataclass, or the function, whose annotations they have.

    Example:
        >>> from pgce.choices import check_types
        >>> def train(epochs: int, decay: float | None = None): ...
        >>> check_types({"epochs": 3, "decay": None}, train)
        >>> check_types({"epochs": 3, "decay": "much"}, train)
        Traceback (most recent call last):
        ...
        ValueError: decay is a number or None: it is 'much'
    """
    for name, hint in _hints(of).items():
        if name in settings:
            check_type(name, settings[name], hint)


@cache
def _hints(of: Any) -> dict[str, Any]:
    try:
        return get_type_hints(of)
    except NameError:  # of a user's class, whose annotations are for type checkers alone
        return {}


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if kind in _KINDS:
        truth = isinstance(value, bool) and kind is not bool  # which Python has as a number
        return isinstance(value, _KINDS[kind][0]) and not truth
    if kind in (tuple, Sequence):
        if isinstance(value, str) or not (isinstance(value, Sequence) or np.ndim(value) == 1):
            return False
        each = inner if kind is tuple and ... not in inner else inner[:1] * len(value)
        return len(value) == len(each) and all(map(_fits, value, each))
    if kind is Callable:
        return callable(value)
    if kind is Any or not isinstance(kind, type):
        return True
    return isinstance(value, kind) and not isinstance(value, type)  # a class has its objects' methods too


def _words(hint: Any) -> str:
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(map(_words, inner))
    if kind is Literal:
        return f"one of {', '.join(inner)}"
    if kind in _KINDS:
        return _KINDS[kind][1]
    if kind in (tuple, Sequence):
        many = f"a sequence of {len(inner)}" if kind is tuple and ... not in inner else "a sequence"
        return f"{many}, each {_words(inner[0])}"
    return "a function" if kind is Callable else f"of type {kind.__name__}"

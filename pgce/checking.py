"""What `fit` is given, looked at before its first step.

Whether model, data, terms and optimizer fit each other; what corrects twice, or is not read; and by what a
checkpoint of the same training is known.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pgce.choices import check_type
from pgce.networks import evaluating
from pgce.objective import weighted
from pgce.optimizer import SETTINGS, Optimizer
from pgce.samplers import balanced
from pgce.samplers import weighted as weighted_sampler
from pgce.trainer import Batch, Rule, Term, Trainer
from pgce.weights import Product, per_class

__all__ = [
    "check",
    "check_dtype",
    "check_stack",
    "column_of",
    "drawn_by",
    "identity",
    "output_of",
    "warn_of_double_correction",
    "warn_of_unread_weights",
]


def check(model: nn.Module, terms: Mapping[str, Term], batch: Batch, name: str) -> set[str]:
    """Two rows through model, heads and rules, and all values in memory: errors before the first step.

    Of two rows a rule may take the standard deviation. Returns the names of the columns that terms read.
    """
    counted = batch.counted()
    for values in (*_inputs(batch), *counted.columns.values()):
        # A sum is finite where every value is, unless it overflows; and costs a tenth of looking at each.
        if values.is_floating_point() and not (values.sum().isfinite() or values.isfinite().all()):
            raise ValueError(f"{name}: inputs, targets and weights are finite: one holds NaN or infinity")
    check_dtype(model, batch, name)
    rows = batch.rows(slice(2))
    examples = rows.counted()
    read: set[str] = set()
    try:
        with evaluating(model):
            outputs = model(rows.input)
            for label, term in terms.items():
                logits = output_of(outputs, term.output)
                logits = logits if rows.mask is None else logits[rows.mask]
                _check_term(label, term, logits, examples, counted, read)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(values.shape)) for values in _inputs(batch))
        raise ValueError(f"{name}: the model does not take inputs of shape {shapes}: {error}") from error
    return read


def check_dtype(model: nn.Module, batch: Batch, name: str) -> None:
    """Refuse inputs of another precision than the model's, of which torch tells two matrices."""
    expected = {p.dtype for p in model.parameters() if p.is_floating_point()}
    for values in _inputs(batch):
        if values.is_floating_point() and len(expected) == 1 and values.dtype not in expected:
            raise ValueError(
                f"{name}: inputs and model are of one dtype (NumPy's float64 is taken as float32, but not by "
                f"a DataLoader): inputs are {values.dtype}, the model is {expected.pop()}"
            )


def _inputs(batch: Batch) -> list[Tensor]:
    return [*batch.input.values()] if isinstance(batch.input, dict) else [batch.input]


def _check_term(name: str, term: Term, logits: Tensor, batch: Batch, whole: Batch, read: set[str]) -> None:
    """Target and weight of a few rows, and targets as a whole; `read` takes the names of columns read."""
    seen, rule = Batch(batch.input, _Noting(batch.columns, read)), term.weight
    y = column_of(seen, term.target) if isinstance(term.target, str) else term.target(logits, seen)
    check_type("what a rule gives for targets", y, Tensor)
    term.head.check(logits, whole[term.target] if isinstance(term.target, str) else y)
    cross_entropy = term.head.cross_entropy(logits, y)
    if isinstance(rule, str):
        what = "a weight is the name of a column, or a function such as pgce.weights.focal"
        weight: Tensor | None = column_of(seen, rule, what)
    else:
        known = _Noting(batch.with_columns(logits=logits, y=y).columns, read)
        weight = rule(cross_entropy, Batch(batch.input, known))
    weighted(cross_entropy, weight)
    if weight is not None and not weight.isfinite().all():
        value = weight[~weight.isfinite()][0].item()
        raise ValueError(f"weights are finite: the term {name!r} has one that is {value}")


class _Noting(dict[str, Tensor]):
    """Columns; `read` takes the names of those that somebody looked for."""

    def __init__(self, columns: Mapping[str, Tensor], read: set[str]) -> None:
        super().__init__(columns)
        self._read = read

    def __getitem__(self, name: str) -> Tensor:
        self._read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return super().get(name, default)


def column_of(batch: Batch, name: str, rule: str = "a target is the name of a column") -> Tensor:
    """A column; where there is none of that name, an error that begins with the rule."""
    if name not in batch.columns:
        raise ValueError(f"{rule}: it is {name!r}, the columns are {', '.join(batch.columns) or 'none'}")
    return batch[name]


def output_of(outputs: Any, name: str | int | None) -> Tensor:
    """The output of a model that is read."""
    try:
        found = outputs if name is None else outputs[name]
    except (KeyError, IndexError):
        found = None
    if isinstance(found, Tensor):
        return found
    several = [*outputs] if isinstance(outputs, Mapping) else type(outputs).__name__
    raise ValueError(
        f"a model gives logits, or several of which `output` of a Term, or of the call, names one: it gives "
        f"{several}, the output is {name!r}"
    )


def check_stack(stack: Optimizer, model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Refuse a stack of another model, and settings beside it, which has its own."""
    own = {id(parameter) for parameter in model.parameters()}
    if foreign := sum(id(parameter) not in own for parameter in stack._parameters):
        raise ValueError(
            "an optimizer stack is of the model's parameters: "
            f"{foreign} of its {len(stack._parameters)} are not"
        )
    usual = signature(Optimizer).parameters
    for name, value in settings.items():
        if name not in SETTINGS or value != usual[name].default:
            raise ValueError(f"an optimizer stack has settings of its own: {name} is {value!r} beside it")


def warn_of_double_correction(sampler: object, weight: str | Rule) -> None:
    """Sampling and weighting by the same thing correct it twice."""
    rules = weight.rules if isinstance(weight, Product) else (weight,)
    names = [getattr(rule, "func", rule) for rule in rules]
    by = drawn_by(sampler)
    if (getattr(sampler, "func", sampler) is balanced and per_class in names) or (by and by in names):
        warnings.warn(
            "examples are sampled and weighted by the same thing, which corrects it twice: "
            "leave out the sampler or the weight",
            UserWarning,
            stacklevel=3,
        )


def warn_of_unread_weights(batch: Batch, read: set[str], sampler: object) -> None:
    """Weights of examples that no rule asked for, though they say something."""
    share = batch.columns.get("sample_weight")
    if share is None or "sample_weight" in read or drawn_by(sampler) == "sample_weight":
        return
    if bool((share != 1).any()):
        warnings.warn(
            'sample_weight is given and no term reads it: say weight="sample_weight", in a product with '
            'other rules pgce.weights.product("sample_weight", rule), or leave it out',
            UserWarning,
            stacklevel=3,
        )


def drawn_by(sampler: object) -> str | None:
    """The column of weights that a sampler draws by."""
    if getattr(sampler, "func", sampler) is not weighted_sampler:
        return None
    return str(getattr(sampler, "keywords", {}).get("weight", "sample_weight"))


def identity(
    source: Batch | DataLoader[Any], batch_size: int, trainer: Trainer, **rules: Any
) -> dict[str, Any]:
    """What must be as it was, for training to go on from a checkpoint."""
    stack = trainer.optimizer
    data = {"data": _digest(source.tensors)} if isinstance(source, Batch) else {}
    named = {name: getattr(stack, name) for name in SETTINGS if name not in ("learning_rate", "max_skips")}
    return {
        **data,
        "batch_size": batch_size,
        "optimizer": stack.name,
        "learning_rate": stack.base_learning_rate,
        **named,
        "objective": [*trainer.terms],
        **{
            f"{name}.{each}": _told(value)
            for name, term in trainer.terms.items()
            for each, value in vars(term).items()
        },
        **{name: _told(rule) for name, rule in rules.items()},
    }


def _told(rule: Any) -> str:
    """A rule or head in words that tell it from others; of others' objects the class alone."""
    if isinstance(rule, (str, int, float, type(None))):
        return str(rule)
    if isinstance(rule, Tensor):
        return _digest({"": rule})
    if isinstance(rule, (tuple, list)):
        return f"[{', '.join(map(_told, rule))}]"
    name = getattr(rule, "__qualname__", type(rule).__qualname__)
    settings: dict[Any, Any] = {}
    if isinstance(rule, partial):
        name, settings = _told(rule.func), {**dict(enumerate(rule.args)), **rule.keywords}
    elif is_dataclass(rule):
        settings = {each.name: getattr(rule, each.name, None) for each in fields(rule)}
    given = ", ".join(f"{key}={_told(value)}" for key, value in settings.items())
    return f"{name}({given})" if given else name


def _digest(tensors: Mapping[Any, Tensor]) -> str:
    """By which data are known again."""
    total = hashlib.blake2b(digest_size=8)
    for key, value in sorted(tensors.items(), key=str):
        total.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()

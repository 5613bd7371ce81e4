"""What the hooks of an agent give, refused by name where it is not what is read of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pgce.networks import ActorCritic, evaluating
from pgce.policy_gradient import Agent, Envs
from pgce.rollout import Collector, Rollout
from pgce.trainer import Batch, Input, Reports, Term

__all__ = ["acting", "batches", "build_model", "check_outputs", "examples", "metrics", "prepare"]


def build_model(agent: Agent, envs: Envs) -> ActorCritic:
    """Its networks, which have all parts that are read."""
    parts = "policy", "value", "normalize", "reward_scale"
    rule = f"build_model gives a module with {', '.join(parts)}"
    model: ActorCritic = _given(agent.build_model(envs), nn.Module, rule)
    for name in parts:
        if not hasattr(model, name):
            raise ValueError(f"{rule}: {type(model).__name__} has no {name}")
    return model


def acting(agent: Agent, model: ActorCritic) -> nn.Module:
    """The module that acts."""
    policy: nn.Module = _given(agent.acting(model), nn.Module, "acting gives the module that acts")
    return policy


def examples(agent: Agent, collector: Collector) -> Batch | None:
    """The recorded examples, of which some row counts; None where the agent acts instead."""
    recorded: Any = agent.examples(collector)
    if recorded is not None and not (isinstance(recorded, Batch) and recorded.count):
        told = "none" if isinstance(recorded, Batch) else type(recorded).__name__
        raise ValueError(f"examples gives a Batch with rows that count, or None: it gave {told}")
    return recorded


def prepare(agent: Agent, rollout: Rollout, model: ActorCritic) -> Batch:
    """The rollout as a batch."""
    prepared = agent.prepare(rollout, model)
    batch: Batch = _given(prepared, Batch, "prepare gives a Batch, as rollout.batch does")
    return batch


def batches(agent: Agent, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
    """The steps of a round, or of an epoch, made of a batch."""
    rule = "batches gives batches, one a step"
    steps = _given(agent.batches(batch, generator), Iterable, rule)
    return (_given(step, Batch, rule) for step in steps)


def metrics(agent: Agent, reports: Reports) -> dict[str, float]:
    """The agent's own numbers, by tag."""
    values: Any = agent.metrics(reports)
    try:
        return {f"train/own/{name}": float(value) for name, value in values.items()}
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"metrics gives numbers by name: it gave {values!r}") from error


def check_outputs(terms: Mapping[str, Term], model: nn.Module, example: Input) -> None:
    """Refuse a term whose output the model does not give."""
    with evaluating(model):
        outputs = model(example)
    names = list(outputs) if isinstance(outputs, Mapping) else []
    for name, term in terms.items():
        if term.output not in names:
            raise ValueError(
                f"a term reads an output of the model by its name, of {', '.join(names) or 'none'}: "
                f"that of {name} is {term.output!r}"
            )


def _given(value: Any, kind: type[Any], rule: str) -> Any:
    """What a hook gave, refused if it is of another kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{rule}: it gave {type(value).__name__}")
    return value

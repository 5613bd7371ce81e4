"""What a learner or a rule is, and what one batch of a run looks like in the objective."""

from __future__ import annotations

import inspect
import math
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pgce import agents, envs, heads, metrics, returns, samplers, targets, weights
from pgce.checkpoint import load_model
from pgce.envs import datasets
from pgce.flags import from_config, home_of, nearest
from pgce.networks import ActorCritic
from pgce.policy_gradient import Agent
from pgce.records import Record
from pgce.rollout import Collector
from pgce.saving import load
from pgce.spaces import actions
from pgce.trainer import Batch, Report, Trainer, train

__all__ = ["batch_table", "name", "run"]

_RULES = weights, targets, heads, returns, samplers
_MOST_ROLLOUTS = 100
_MOST_NUMBERS = 4  # of an array, that are shown


def name(of: str) -> str:
    """What a learner or a rule is: its formula and source, from its docstring.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> from pgce import explaining
        >>> explaining.name("exponential").splitlines()[0]
        'pgce.weights.exponential(advantage: Tensor, beta: float = 1.0, cap: float = 20.0) -> Tensor'
    """
    learners = {each.lower(): each for each in agents.__all__}
    rules = {rule: module for module in reversed(_RULES) for rule in module.__all__}
    found = nearest(of.lower() if of.lower() in learners else of, [*learners, *rules], "a learner or rule")
    if found in learners:
        module = import_module(f"pgce.agents.{found}")
        learner = getattr(module, learners[found])
        lines = [str(inspect.getdoc(module))]
        if issubclass(learner, Agent):
            told = learner.prepare if learner.weight is Agent.weight else learner.weight
            lines += ["", "target  the action", f"weight  {inspect.getdoc(told)}"]
        return "\n".join([*lines, "", f"file    agents/{found}.py"])
    rule = getattr(rules[found], found)
    signature = str(inspect.signature(rule)).replace("'", "")
    return f"{rules[found].__name__}.{found}{signature}\n\n{inspect.getdoc(rule)}"


def run(folder: str | Path, rows: int = 6, *, allow_import: bool = False) -> str:
    """One batch of a run as a table: of an agent, what it does now; of a classifier, its data.

    Args:
        folder: of the run, whose files stay as they are.
        rows: of the batch, as many at most, >= 1.
        allow_import: see `pgce.trained.TrainedAgent`.

    Raises:
        ValueError: the folder holds no run, or no trained one; or no row is asked for.
    """
    if rows < 1:
        raise ValueError(f"rows is at least 1: it is {rows}")
    record = Record.read(folder)
    report, head = _acted(record, allow_import) if "env_id" in record.config else _learned(record)
    return batch_table(report, head, rows)


def batch_table(report: Report, head: heads.Head, rows: int = 6) -> str:
    """A report's first rows: input, target y, p, weight w, cross-entropy H, gradient on the logits.

    The gradient is that of w · H, w · (p − y) for classes.

    Example:
        >>> import torch, pgce
        >>> from pgce.explaining import batch_table
        >>> from pgce.trainer import Report
        >>> y, w = torch.tensor([1, 0]), torch.tensor([2.0, -1.0])
        >>> head, logits = pgce.heads.Categorical(), torch.zeros(2, 2)
        >>> batch, H = pgce.Batch(torch.eye(2), {"target": y}), head.cross_entropy(logits, y)
        >>> print(batch_table(Report(logits, y, H, w, torch.tensor(0.0), batch), head))
        input      y  p          w      H      w · (p − y)
        1.00 0.00  1  0.50 0.50  2.00   0.693  +1.00 -1.00
        0.00 1.00  0  0.50 0.50  -1.00  0.693  +0.50 -0.50
    """
    seen = metrics.rows(report, head, rows)
    source = report.batch.input
    inputs = source[:rows] if isinstance(source, Tensor) else [None] * len(seen["y"])
    forms = {"y": ".2f", "p": ".2f", "w": ".2f", "H": ".3f", "gradient": "+.2f"}
    gradient = "w · (p − y)" if isinstance(head, heads.Categorical) else "∂(w · H)"
    table = [["input", "y", "p", "w", "H", gradient]]
    table += [
        [_numbers(inputs[i]), *(_numbers(seen[name][i], form) for name, form in forms.items())]
        for i in range(len(inputs))
    ]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in table
    )


def _acted(record: Record, allow_import: bool) -> tuple[Report, heads.Head]:
    """What an agent's policy term sees of a rollout."""
    kind = {each.lower(): getattr(agents, each) for each in agents.__all__}.get(record.learner)
    home = record.config.get("class", record.learner)  # which older runs do not tell
    if kind is None or home not in (record.learner, home_of(kind)):
        raise ValueError(f"runs of pgce's own agents are explained: {record.path} is of {home}")
    agent = replace(from_config(kind, record.path), allow_import=allow_import, device="cpu")
    agent.check()
    group = agent.group_size
    with closing(envs.make(agent.env_id, group * math.ceil(8 / group), **agent.env_options)) as many:
        model = agent.build_model(many)
        model.load_state_dict(load_model(record.path))
        generator = torch.Generator().manual_seed(agent.seed)
        collector = Collector(
            many,
            agent.acting(model),
            min(agent.num_steps, 64),
            seed=agent.seed,
            generator=generator,
            continuous=agent.continuous,
        )
        if group > 1:
            collector.reset(agent.seed, group)
        examples = agent.examples(collector)
        batch = _counted(agent, model, collector) if examples is None else examples
        head = actions(many.single_action_space, agent.continuous).head
    trainer = Trainer(model, agent.terms(head), agent.build_optimizer(model))
    seen: list[Report] = []
    train(trainer, [[batch]], after=lambda _, reports: seen.append(reports["policy"]))
    return seen[0], head


def _counted(agent: Any, model: ActorCritic, collector: Collector) -> Batch:
    """What is learned from the first rollout of which a row counts; some agents learn of whole episodes."""
    for _ in range(_MOST_ROLLOUTS):
        batch: Batch = agent.prepare(collector.collect().scaled(model.reward_scale), model)
        if batch.count:
            return batch
    raise ValueError(
        f"a row is explained that counts: of {_MOST_ROLLOUTS} rollouts of {collector.num_steps} steps none "
        f"does, by {agent.learner}"
    )


def _learned(record: Record) -> tuple[Report, heads.Head]:
    """What a classifier sees of its training data, by steps too short to change it."""
    estimator: Any = load(record.path)
    data = datasets.load(record.config["data"], record.config["target"])
    seen: list[Report] = []
    estimator.set_params(warm_start=True, epochs=1, learning_rate=1e-30, log=None, checkpoints=None)
    inputs = data.train_inputs.reshape(-1, *estimator.fitted_state()["_shape"])  # images, for CutMix
    estimator.fit(inputs, data.train_labels, after=lambda row, report: seen.append(report))
    return seen[-1], estimator.head_


def _numbers(value: Any, form: str = ".2f") -> str:
    """The first few numbers of an array; an integer as such."""
    if value is None:
        return "…"
    flat = torch.as_tensor(value).detach().cpu().reshape(-1)
    words = [str(x) if isinstance(x, (int, bool)) else f"{x:{form}}" for x in flat[:_MOST_NUMBERS].tolist()]
    return " ".join([*words, *(["…"] if len(flat) > _MOST_NUMBERS else [])])

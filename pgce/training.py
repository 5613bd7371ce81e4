"""The run that all agents share: rollouts in, steps, evaluations, a result out."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from torch import Tensor, nn

from pgce import dashboards, envs, films, hooks, processes
from pgce.checkpoint import CheckpointError, check_like, load_model
from pgce.envs.state import exactness
from pgce.envs.vectorize import check_same_spaces
from pgce.evaluation import Evaluation
from pgce.logger import due
from pgce.metrics import summary
from pgce.optimizer import resolve_device
from pgce.policy_gradient import After, Agent, Envs
from pgce.records import read_json
from pgce.rollout import Collector, Rollout
from pgce.run import Also, Run
from pgce.spaces import actions
from pgce.trainer import Batch, Report, Trainer, train

__all__ = ["begin_from", "train_agent"]

_LEVELS = {
    "exact": "exactly as if it had not been stopped",
    "reseeded": "with new episodes and seeds in the environments, whose state cannot be saved",
}
_POLICY = "actor.", "torso.networks.0.", "normalize."
"""How the names of what a policy is made of begin."""
_OWN = "collector", "kept", "epoch", "groups", "shuffle", "random", "scale", "agent", "played"
"""Keys of a training's state that differ between processes."""
_GIVEN = {"arrays"}
"""What `BC.train` adds to the settings: whoever resumes a run gives it again."""
_KEPT = 500
"""Rounds of which each is written; of twice as many every second, and so on."""
_SMALL = 100_000  # parameters of a network that a GPU hardly helps
_LARGE = 100  # a feature by which a network is saturated
_NEAR = 0.1, 1e5  # what episodes return of which a critic learns rewards as they are


def train_agent(agent: Agent, after: After | None, metrics: Also | None) -> Run:
    """Open the environments, which are closed whatever happens, and train.

    Args:
        agent: with the settings of the run, which are checked.
        after: as `Agent.train` takes it.
        metrics: as `Agent.train` takes it.
    """
    options = agent.env_options
    ranks = processes.size()
    eval_id, many = agent.eval_env_id or agent.env_id, -(-agent.eval_episodes // ranks)
    if agent.num_envs % (ranks * agent.group_size):
        raise ValueError(
            f"processes have equally many environments: num_envs is {agent.num_envs}, processes are {ranks}"
        )
    with closing(envs.make(agent.env_id, agent.num_envs // ranks, **options)) as train_envs:
        if agent.capture_video:  # after `make`, which refuses or imports a module
            films.check(agent.env_id, agent.env_kwargs)
        if isinstance(train_envs, (SyncVectorEnv, AsyncVectorEnv)):
            many = min(many, train_envs.num_envs)  # only a native one steps any number at once
        with closing(envs.make(eval_id, many, **options)) as eval_envs:
            check_same_spaces(train_envs, eval_envs)
            return _Training(agent, train_envs, eval_envs, after, metrics)()


def begin_from(folder: Path, model: nn.Module) -> None:
    """Give a model the weights of a run, as far as both have them: a policy without a critic, say.

    Raises:
        CheckpointError: a weight that both have is of another shape, they have none in common, or one of
            the policy or its normaliser is missing in one of them.
        FileNotFoundError: the folder has no weights.
    """
    given, own = load_model(folder), model.state_dict()
    shared = {name: given[name] for name in own if name in given}
    if not shared:
        raise CheckpointError(f"{folder} has other networks: {', '.join(given)} are not {', '.join(own)}")
    check_like(f"{folder} as a start", shared, {name: own[name] for name in shared})
    if apart := sorted(name for name in given.keys() ^ own.keys() if name.startswith(_POLICY)):
        raise CheckpointError(
            f"a policy begins with all weights of another, and its normaliser (norm_obs): {apart[0]} is only "
            f"in {folder if apart[0] in given else 'the new one'}"
        )
    model.load_state_dict(shared, strict=False)


class _Training:
    """What `train_agent` makes: the run with all of its state, which is saved and taken up here."""

    def __init__(
        self, agent: Agent, train_envs: Envs, eval_envs: Envs, evaluated: After | None, metrics: Also | None
    ) -> None:
        self.agent, self.evaluated = agent, evaluated
        self.tracked = processes.any_of(metrics is not None)  # all tell their numbers then, or none
        self.current = copy.copy(agent)  # its scheduled settings change; one for all the run
        device = resolve_device(agent.device)
        seeds = np.random.SeedSequence(agent.seed).generate_state(5).tolist()
        network_seed, env_seed, action_seed, evaluation_seed, order_seed = seeds
        if processes.size() > 1:  # the same network and evaluations; the rest of its own
            apart = np.random.SeedSequence(agent.seed, spawn_key=(0, processes.rank()))
            _, env_seed, action_seed, _, order_seed = apart.generate_state(5).tolist()
        self.head = actions(train_envs.single_action_space, agent.continuous).head
        terms = self.current.terms(self.head)
        torch.manual_seed(network_seed)
        self.model = hooks.build_model(self.current, train_envs).to(device)
        unread = None if agent.init is None else self._begin_from(Path(agent.init))
        with _named():
            self.acting = hooks.acting(self.current, self.model).to(device)
        self.collector = Collector(
            train_envs,
            self.acting,
            agent.num_steps,
            seed=env_seed,
            generator=torch.Generator(device).manual_seed(action_seed),
            device=device,
            continuous=agent.continuous,
        )
        with _named():
            self.examples = hooks.examples(self.current, self.collector)
        if self.examples is not None and processes.size() > 1:
            raise ValueError(
                f"one process learns from recorded examples: there are {processes.size()} of {agent.learner}"
            )
        memory = getattr(self.model.policy, "state_size", 0)
        own = self.examples is None and (
            agent.lag > 1 or {*self.acting.parameters()} <= {*self.model.parameters()}
        )
        if self.collector.state_size != memory or (memory and not own):
            raise ValueError(
                "an agent with a memory learns from what it does itself: another policy acts here"
            )
        self.trainer = Trainer(self.model, terms, agent.build_optimizer(self.model), by_row=True)
        self.evaluation = Evaluation(agent, eval_envs, self.model.policy, evaluation_seed, device)
        self.groups = np.random.SeedSequence(env_seed)
        self.shuffle = torch.Generator().manual_seed(order_seed)
        self.kept: deque[Rollout] = deque(maxlen=agent.kept)
        self.recent: deque[tuple[float, int]] = deque(maxlen=100)  # return and length of the last episodes
        self.seen: Tensor | None = None  # observations that the normaliser is still to take in
        self.steps, self.round, self.stopped = 0, 0, "budget"
        self.values: dict[str, float] = {}  # what was logged last
        self.unsaved: list[str] = []  # what the checkpoint that is gone on from lacks
        self.epoch, self.batch = self.shuffle.get_state(), 0  # of recorded examples: its order, those taken
        self.run = Run(agent, agent.env_id, metrics)
        with self.run.or_released():
            if self.run.checkpoints.found is not None:
                self.load_state_dict(self.run.checkpoints.found.state)
            elif unread is not None:
                raise unread
            self._say(device)
            vars(self).pop("level", None)  # that of the checkpoint: what can be saved now is tried anew

    def __call__(self) -> Run:
        """Learn until the end, and tell the result."""
        agent, run, evaluation = self.agent, self.run, self.evaluation
        with run:
            if not self.finished or evaluation.steps < self.steps:
                with run.training(agent.total_timesteps, self.unit):
                    rounds = self._rounds() if self.examples is None else self._epochs(self.examples)
                    train(self.trainer, rounds, stop=self.current.stop, after=self._after)
                    if self.stopped == "budget" and evaluation.steps < self.steps:
                        if run.checkpoints.final:  # an evaluation may take long, or fail
                            self._save()
                        evaluation.solved(run, self.steps)
                        self.stopped = "budget" if evaluation.steps == self.steps else run.interrupted
                    evaluation.film(run, self.steps)
                if run.checkpoints.final or run.interrupted:
                    self._save()
            scores = evaluation.result()
            result = {"env_id": agent.env_id, "steps": self.steps, "stopped": self.stopped, **scores}
            result["skipped_updates"] = self.trainer.optimizer.skipped
            ended = (
                f"stopped ({self.stopped}) after {self.steps:,} {self.unit}, {run.seconds:.1f} s of training"
            )
            if evaluation.returns is not None:
                score = f"{scores['eval_mean']:.1f} ± {scores['eval_std']:.1f}"
                ended = f"mean return {score} over {scores['eval_episodes']} evaluation episodes; {ended}"
            if self.values:
                run.say(learned=_shown(self.values))
                spent = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run.spent.items())
                run.say(spent=f"{spent}; the rest of {run.seconds:.2f} s of training in updates")
            run.finish(self.model, result, ended)
        return run

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do in a run that is resumed."""
        budget = self.agent.total_timesteps
        piece = 1 if self.examples is not None else self.agent.num_envs * self.agent.num_steps
        return self.stopped != "budget" or (self.steps > 0 and self.steps + piece > budget)

    @property
    def unit(self) -> str:
        """What the budget counts."""
        return "steps" if self.examples is None else "examples"

    def _rounds(self) -> Iterator[Iterable[Batch]]:
        """A rollout each."""
        agent, model, collector = self.agent, self.model, self.collector
        while self.steps == 0 or self.steps + agent.num_envs * agent.num_steps <= agent.total_timesteps:
            self._progress()
            if agent.group_size > 1:
                collector.reset(int(self.groups.spawn(1)[0].generate_state(1)[0]), agent.group_size)
                if model.reward_scale is not None:  # of episodes that do not go on
                    model.reward_scale.running.zero_()
            with self.run.part("collect"):
                rollout = collector.collect()
            if model.normalize is not None:
                self.seen = rollout.observation[:-1][rollout.valid]
            if self.steps == 0:
                self._normalize()  # the policy hardly looks yet
            ended = zip(rollout.episode_return.tolist(), rollout.episode_length.tolist(), strict=True)
            for steps, episodes in processes.everyones([rollout.steps, [*ended]]):
                self.steps += steps
                self.recent.extend(map(tuple, episodes))
            self.kept.append(rollout.scaled(model.reward_scale))
            batch = Batch.joined([hooks.prepare(self.current, each, model) for each in self.kept])
            self._draw(batch)
            counts = processes.any_of(batch.count > 0)
            yield hooks.batches(self.current, batch, self.shuffle) if counts else ()

    def _epochs(self, examples: Batch) -> Iterator[Iterable[Batch]]:
        """An epoch each, or less where an evaluation is due earlier."""
        agent = self.agent
        assert not isinstance(examples.input, dict)
        if self.steps == 0:
            self.seen = examples.input
            self._normalize()
        self._draw(examples)
        self._progress()
        size = min(len(examples), agent.eval_freq)
        batches: list[Batch] = []
        begun = self.steps
        self.shuffle.set_state(self.epoch)  # the order of the epoch that is under way
        done = self.batch
        while True:
            self.epoch, self.batch, rows = self.shuffle.get_state(), 0, 0
            for batch in hooks.batches(self.current, examples, self.shuffle):
                self.batch += 1
                rows += len(batch)
                if self.batch <= done:
                    continue
                if self.steps and self.steps + len(batch) > agent.total_timesteps:
                    if batches:
                        yield batches
                    return
                batches.append(batch)
                self.steps += len(batch)
                if self.steps >= begun + size:
                    yield batches
                    batches, begun = [], self.steps
                    self._progress()
            if rows == 0:
                raise ValueError("batches gives the steps of an epoch: it gave no row of the examples")
            done = 0

    def _draw(self, batch: Batch) -> None:
        """Write what the networks look like, before the first round; refuse terms that do not fit."""
        if self.round == 0:
            example = next(batch.split(1)).input
            hooks.check_outputs(self.trainer.terms, self.model, example)
            with self.run.part("log"):
                dashboards.network(self.run.logger, self.model, example)

    def _progress(self) -> None:
        """Set what depends on how far the run is."""
        progress = self.trainer.optimizer.progress = self.steps / self.agent.total_timesteps
        if self.agent.schedules:
            vars(self.current).update(self.agent.scheduled(progress))
            self.trainer.terms = self.current.terms(self.head)

    def _normalize(self) -> None:
        """Take what was seen (B, D) into the normaliser, whose features are the first of it; once."""
        if self.model.normalize is not None and self.seen is not None:  # in all processes, or in none
            self.model.normalize.update(self.seen[:, : len(self.model.normalize.mean)])
        self.seen = None

    def _after(self, n: int, reports: dict[str, Report]) -> bool:
        """Log, evaluate, save, and say whether the run ends after this round."""
        agent, run = self.agent, self.run
        self.round += 1
        self._normalize()  # not within the round, in which the policy's input stays the same
        if agent.lag > 1 and self.round % agent.lag == 0:
            self.acting.load_state_dict(self.model.policy.state_dict())
        if reports:  # some row of this round counted
            self._log(reports)
            if self.steps - self.evaluation.steps >= agent.eval_freq:
                self._evaluate(next(iter(reports.values())))
        self.stopped = run.interrupted or self.stopped
        if run.checkpoints.due:
            self._save()
        run.ended_round()
        return self.stopped != "budget"

    def _log(self, reports: dict[str, Report]) -> None:
        """Write what the round came to."""
        run, kept = self.run, due(self.round, _KEPT)
        with run.part("log"):
            if kept or self.tracked:
                values = self.values = self._numbers(reports)
                run.logger.scalars(self.steps, values, kept=kept)
                run.bar.update(self.steps, _shown(values))

    def _numbers(self, reports: dict[str, Report]) -> dict[str, float]:
        """What a round came to, by tag."""
        run, optimizer = self.run, self.trainer.optimizer
        if processes.size() > 1:  # each has its rows' share of a loss
            losses = processes.sum_of([report.loss.item() for report in reports.values()])
            pairs = zip(reports.items(), losses, strict=True)
            reports = {
                name: dataclasses.replace(each, loss=each.loss.new_tensor(x)) for (name, each), x in pairs
            }
        values = {
            **summary({name: _of_all(report) for name, report in reports.items()}, self.trainer.terms),
            **hooks.metrics(self.current, reports),
            "train/learning_rate": optimizer.last_rate,
            "train/grad_norm": optimizer.grad_norm,
            "train/skipped": optimizer.skipped,
            "time/fps": self.steps / run.seconds,
            "time/epoch": self.round if self.examples is None else self.steps / len(self.examples),
        }
        if self.examples is None:
            collecting = run.spent["collect"]
            values["time/collect_fps"] = self.steps / collecting
            values["time/learn_fps"] = self.steps / (run.seconds - collecting)
        if self.recent:
            returns, lengths = zip(*self.recent, strict=True)
            values["rollout/ep_rew_mean"], values["rollout/ep_len_mean"] = fmean(returns), fmean(lengths)
            values["rollout/ep_rew_min"], values["rollout/ep_rew_max"] = min(returns), max(returns)
        return values

    def _evaluate(self, first: Report) -> None:
        """Evaluate, and note if that ends the run. Sometimes write what the first term saw, and a film."""
        run, evaluation = self.run, self.evaluation
        evaluation.number += 1
        if evaluation.number == 1:
            self._hint(weighs=first.weight is not None)
        if evaluation.number & (evaluation.number - 1) == 0:  # 1, 2, 4, 8, …
            with run.part("log"):
                dashboards.batch(run.logger, self.steps, first, self.head)
            evaluation.film(run, self.steps)
        solved = evaluation.solved(run, self.steps)
        if (
            self.evaluated is not None
            and evaluation.steps == self.steps  # else it was cut short
            and self.evaluated(self.steps, evaluation.result()["eval_mean"])
        ):
            self.stopped = "after"
        if solved:
            self.stopped = "threshold"

    def _hint(self, *, weighs: bool) -> None:
        """Tell what hardly lets it learn, if something does. Returns matter where something `weighs`."""
        agent, returns = self.agent, {episode[0] for episode in self.recent}
        greatest = max(map(abs, returns), default=0.0)
        if agent.critic and not agent.norm_reward and greatest and not _NEAR[0] <= greatest <= _NEAR[1]:
            self.run.say(
                hint=f"episodes return up to ±{greatest:g}: a critic is sooner right on rewards near 1, "
                "which --norm-reward makes of them"
            )
        largest = self.kept[-1].observation.abs().max().item() if self.kept else 0.0
        if not agent.norm_obs and agent.network != "transformer" and largest > _LARGE:
            self.run.say(
                hint=f"observations hold numbers up to ±{largest:g}: a network learns sooner from features "
                "near 1, as --norm-obs makes them"
            )
        if weighs and len(self.recent) > 1 and len(returns) == 1:
            self.run.say(
                hint=f"all episodes so far returned {returns.pop():g}: nothing says what is better. "
                "More exploration (--ent-coef, --log-std-init) or a denser reward may"
            )
        seen = self.steps / agent.num_envs
        if agent.norm_reward and not self.recent and seen * (1 - agent.gamma) < 1:
            self.run.say(
                hint=f"--norm-reward scales by what {self.steps:,} steps told, in which no episode ended: "
                "its scale is a guess until some have"
            )
        size = sum(parameter.numel() for parameter in self.model.parameters())
        if self.collector.device.type == "cuda" and size < _SMALL:
            self.run.say(
                hint=f"a network of {size:,} parameters is often faster with --device cpu than on a GPU"
            )

    def _save(self) -> None:
        self.run.logger.flush()  # what was logged until a checkpoint is not lost after it
        self.run.checkpoints.save(self.steps, self.state_dict(), _OWN)

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on as if it had not been stopped: plain data and tensors."""
        try:
            collector = self.collector.state_dict(environments=self.level == "exact")
        except ValueError:  # the environments hold something now that they did not when it was tried
            self.level = "reseeded"
            collector = self.collector.state_dict(environments=False)
        return {
            "model": self.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "acting": self.acting.state_dict() if self.agent.lag > 1 else {},
            "made": self._made,
            "collector": collector,
            "kept": [rollout.state_dict() for rollout in self.kept],
            "recent": [list(episode) for episode in self.recent],
            "steps": self.steps,
            "round": self.round,
            "stopped": self.stopped,
            "seconds": self.run.seconds,
            "spent": dict(self.run.spent),
            "epoch": self.epoch,
            "batch": self.batch,
            "groups": self.groups.n_children_spawned,
            "shuffle": self.shuffle.get_state(),
            "random": torch.get_rng_state(),
            "evaluation": self.evaluation.state_dict(),
            "played": self.evaluation.played() if self.level == "exact" else None,
            "level": self.level,
            "agent": self.current.state_dict(),
            "unsaved": self._unsaved(),
            "scale": None if self.model.reward_scale is None else self.model.reward_scale.running,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` told."""
        check_like("model", state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        if self.agent.lag > 1:  # where there was none, the policy that acted was the model's own
            self.acting.load_state_dict(state["acting"] or self.model.policy.state_dict())
        fresh = np.random.SeedSequence(self.agent.seed, spawn_key=(self.run.attempt, processes.rank()))
        reseed, level = int(fresh.generate_state(1)[0]), state["level"]
        made = state.get("made", self._made)  # which older checkpoints have not
        try:
            if made["collector"] != self._made["collector"]:  # whose state would undo the change
                raise ValueError(f"they were made by {made['collector']}")
            self.collector.load_state_dict(state["collector"], reseed=reseed)
        except ValueError as error:  # also of a state that came after all that was tried
            warnings.warn(f"new episodes begin in the environments: {error}", RuntimeWarning, stacklevel=2)
            self.collector.load_state_dict({**state["collector"], "environments": None}, reseed=reseed)
            level = "reseeded"
        if level != "reseeded" and self.model.reward_scale is not None:
            self.model.reward_scale.running.copy_(state["scale"])
        place = self.collector.device
        kept = [Rollout.from_state(each, self.head, place) for each in state["kept"]]
        steps = self.agent.num_steps  # sequences of another length make no batch with those to come
        self.kept.extend(each for each in kept if each.state is None or len(each.reward) == steps)
        self.recent.extend(map(tuple, state["recent"]))
        self.steps, self.round = state["steps"], state["round"]
        ends = {"after", "threshold"} if self.agent.stop_at_threshold else {"after"}
        self.stopped = state["stopped"] if state["stopped"] in ends else "budget"
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.groups = np.random.SeedSequence(self.groups.entropy, n_children_spawned=state["groups"])
        self.shuffle.set_state(state["shuffle"])
        self.evaluation.load_state_dict(state["evaluation"])
        if state.get("played") is not None and made["played"] == self._made["played"]:
            self.evaluation.restore(state["played"])
        self.current.load_state_dict(state.get("agent", {}))  # which older checkpoints have not
        self.unsaved, self.level = state.get("unsaved", []), level
        self.run.restored(state["seconds"], state["spent"])
        torch.set_rng_state(state["random"])  # last: what is built draws from it

    @property
    def _made(self) -> dict[str, str]:
        """What environments are made by, of which some state is saved: by the name under which it is."""
        agent = self.agent
        ids = {"collector": agent.env_id, "played": agent.eval_env_id or agent.env_id}
        return {name: json.dumps([env_id, agent.env_kwargs], sort_keys=True) for name, env_id in ids.items()}

    @cached_property
    def level(self) -> str:
        """How exactly the environments can be resumed."""
        agent = self.agent
        options = {**agent.env_options, "env_restarts": 0}  # it fails at the first fault
        if isinstance(self.collector.envs, AsyncVectorEnv):
            options["vectorization"] = "sync"  # whose states are the same
        return exactness(lambda: envs.make(agent.env_id, min(agent.num_envs, 4), **options))

    def _unsaved(self) -> list[str]:
        """What an agent keeps beside its settings, if it does not say what of it is to be saved."""
        if type(self.current).state_dict is not Agent.state_dict:
            return []
        settings = {field.name for field in dataclasses.fields(self.agent)}
        return sorted(vars(self.current).keys() - settings - _GIVEN)

    @property
    def _exactness(self) -> str:
        """In words, how exactly a run goes on that is resumed."""
        if not self.unsaved:
            return _LEVELS[self.level]
        how = "" if self.level == "exact" else f"{_LEVELS[self.level]}, and "
        kind = type(self.agent).__name__
        return f"{how}without {', '.join(self.unsaved)}, which {kind}.state_dict does not give"

    def _say(self, device: torch.device) -> None:
        """Tell what will be done."""
        agent, goal, examples = self.agent, self.evaluation.threshold, self.examples
        apart = getattr(self.collector.envs.unwrapped, "processes", None)
        how = self.collector.mode.name + (f", in {len(apart)} processes" if apart else "")
        source = f"{agent.num_envs} environments ({how}) × {agent.num_steps} steps"
        if examples is not None:
            source = f"{len(examples):,} examples that were recorded"
        ends = "at the end of the budget"
        if goal is not None:
            ends = f"when {agent.eval_episodes} evaluation episodes average {goal:g}, twice in a row"
        terms = self.trainer.terms.items()
        self.run.say(
            learner=f"{agent.learner} on {agent.env_id}, seed {agent.seed}, {device}",
            minimises=" + ".join(f"{t.coefficient:g} · mean(w · H) of {n}" for n, t in terms),
            collects=f"{source}, {agent.total_timesteps:,} {self.unit} at most",
            stops=ends,
            folder=str(self.run.path),
        )
        if self.run.attempt > 1:
            how = f"at {self.steps:,} {self.unit}, the {self.run.attempt}. attempt"
            self.run.say(resumes=f"{how}; {self._exactness}")

    def _begin_from(self, folder: Path) -> Exception | None:
        """Begin as another policy; what is wrong with it, if a run that goes on may not need it."""
        agent = self.agent
        try:
            with _named():
                self._check_start(folder)
                begin_from(folder, self.model)
        except (OSError, ValueError) as error:
            if agent.run is None or not (Path(agent.runs_dir) / agent.run / "attempts.json").exists():
                raise
            return error
        return None

    def _check_start(self, folder: Path) -> None:
        """Refuse weights that mean something else here, which no shape tells."""
        config = read_json(folder / "config.json", {})
        for name in ("activation", "continuous"):
            own = getattr(self.agent, name)
            if (its := config.get(name, own)) != own:
                raise ValueError(
                    f"a policy begins as another of the same {name}: {its} in {folder}, here {own}"
                )


@contextmanager
def _named() -> Iterator[None]:
    """Inside, a file that is not there is a wrong setting, which named it."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error


def _of_all(report: Report) -> Report:
    """The report of all processes' rows, whose batch has the columns alone."""
    if processes.size() == 1:
        return report
    joined, columns = processes.joined, report.batch.columns
    cross_entropy = joined(report.cross_entropy)
    return dataclasses.replace(
        report,
        logits=joined(report.logits),
        target=joined(report.target),
        cross_entropy=cross_entropy,
        weight=None if report.weight is None else joined(report.weight),
        batch=Batch(cross_entropy, {name: joined(column) for name, column in columns.items()}),
    )


def _shown(values: Mapping[str, float]) -> str:
    """The numbers beside the bar."""
    words = [f"H {values['objective/cross_entropy']:.3f}"]
    if "rollout/ep_rew_mean" in values:
        words = [f"return {values['rollout/ep_rew_mean']:.1f}", f"length {values['rollout/ep_len_mean']:.0f}"]
    words.append(f"w {values['objective/weight_mean']:.2f} ± {values['objective/weight_std']:.2f}")
    speed = f"{values['time/fps']:,.0f}/s"
    if "time/collect_fps" in values:
        share = values["time/fps"] / values["time/collect_fps"]
        speed += f" ({share:.0%} collecting)"
    return " · ".join([*words, speed])

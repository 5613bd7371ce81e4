"""What policy-gradient agents share: their settings, the loop of a run, and its evaluations."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import create_empty_array

from pgce import envs
from pgce.choices import Continuous, Memory, Network, Schedule, Std, check_choice
from pgce.envs.vectorize import Vectorization
from pgce.run import Learner, Run, cpu_threads

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from typing_extensions import Self

    from pgce.heads import PolicyHead
    from pgce.networks import ActorCritic
    from pgce.rollout import Collector, Rollout
    from pgce.trainer import Batch, Report, Reports, Rule, TargetRule, Term

__all__ = ["ActorCriticAgent", "Agent", "Minibatched", "TrainedAgent"]

Envs = VectorEnv[Any, Any, Any]
After = Callable[[int, float], bool | None]


def _pairs(words: list[str]) -> dict[str, Any]:
    if len(words) % 2:
        raise ValueError(f"a schedule follows each name: the words are {' '.join(words)}")
    return dict(zip(words[::2], words[1::2], strict=True))


# As tyro reads a dict by itself, a preset that has one would change the flag.
Schedules = Annotated[
    dict[str, Schedule],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[NAME {{{','.join(get_args(Schedule))}}} ...]",
        instance_from_str=_pairs,
        is_instance=lambda given: isinstance(given, dict),
        str_from_instance=lambda given: [word for pair in given.items() for word in pair],
    ),
]


@dataclass(kw_only=True)
class Agent(Learner):
    """Settings that every policy-gradient agent has, and the run that they share.

    A learner adds its own settings, its `terms` and the columns that they read (`prepare`).

    Example:
        >>> import tempfile
        >>> from pgce.agents import Reinforce
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Reinforce(quiet=True, runs_dir=folder).train("CartPole-v1", total_timesteps=2_048)
        >>> run.result["eval_episodes"], run.result["stopped"]
        (100, 'budget')
    """

    env_id: Annotated[str, tyro.conf.arg(aliases=["--env"])] = "CartPole-v1"
    """Gymnasium environment."""
    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 200_000
    """Environment steps to take at most."""
    num_envs: int = 16
    """Environments stepped together (N)."""
    num_steps: int = 128
    """Steps in each environment a rollout (T)."""
    vectorization: Vectorization = "auto"
    """How environments are stepped together; auto takes a native vector environment where there is one."""
    allow_import: bool = False
    """Permit ids of the form module:Env-v0, whose module is imported and so run."""
    gamma: float = 0.99
    """Discount a step."""
    norm_obs: bool = False
    """Normalise observations by running statistics, which are saved with the policy."""
    norm_reward: bool = False
    """Scale rewards by the running standard deviation of their discounted sum."""
    continuous: Continuous = "gaussian"
    """Distribution of the actions of a Box space: a clipped Gaussian, one squashed by tanh, or Beta."""
    network: Network = "auto"
    """A perceptron, or for images the deep Q-network's; IMPALA's, of images; a transformer, of tokens, with a
    layer for each of `hidden_sizes`, which are then all alike."""
    shared_torso: bool = False
    """Let policy and value share all layers but their last."""
    memory: Memory | None = None
    """A recurrent layer before the last, so that the policy remembers what it saw in its episode."""
    memory_size: int = 64
    """Units of the recurrent layer."""
    std: Std = "learned"
    """σ of a Gaussian policy: learned, the same for all observations; given by the network; or fixed."""
    log_std_init: float = 0.0
    """Logarithm of a Gaussian policy's σ at the start."""
    norm_adv: bool = True
    """Divide the weights by their standard deviation, once a rollout."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    vf_coef: float = 0.5
    """Coefficient of the value term."""
    schedules: Schedules = dataclasses.field(default_factory=dict)
    """Settings that fall over the run as the learning rate may: ent_coef linear, say."""
    init: str | None = None
    """Run of an agent with the same networks, whose weights are those at the start."""
    eval_env_id: str | None = None
    """Environment to evaluate on, with the same spaces; the training environment's if not given."""
    eval_freq: int = 10_000
    """Environment steps between evaluations."""
    eval_episodes: int = 100
    """Episodes an evaluation."""
    eval_greedy: bool = False
    """Evaluate the most probable action instead of sampled ones."""
    stop_at_threshold: bool = True
    """Stop when two evaluations in a row, on different seeds, reach the environment's reward threshold."""

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Settings that are better than the default on an environment, by its id."""

    @classmethod
    def preset(cls, env_id: str, **settings: Any) -> Self:
        """The agent for an environment: its preset, if there is one, and the settings given."""
        return cls(**{"env_id": env_id, **cls.PRESETS.get(env_id, {}), **settings})

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """The preset of the environment that a command line names."""
        env_id = cls.env_id
        for word, following in zip(words, [*words[1:], ""], strict=True):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") in ("--env", "--env-id"):
                env_id = value if equals else following
        return cls.preset(env_id)

    def defaults(self) -> Agent:
        """The preset of the environment, whose name is itself told unless it is the default."""
        return dataclasses.replace(self.preset(self.env_id), env_id=type(self).env_id)

    @property
    def critic(self) -> bool:
        """Whether a value is learned beside the policy."""
        return False

    def weight(self) -> str | Rule:
        """The weight of an action: a column, or a rule."""
        return "advantage"

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        self.at_least_one(
            "total_timesteps", "num_envs", "num_steps", "eval_freq", "eval_episodes", "memory_size"
        )
        if self.num_envs % self.group_size:
            raise ValueError(
                f"groups are of equal size: num_envs is {self.num_envs}, a group has {self.group_size}"
            )
        check_choice("network", self.network, Network)
        if self.memory is not None:
            check_choice("memory", self.memory, Memory)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma lies in [0, 1]: gamma is {self.gamma}")
        if self.schedules:
            self._check_schedules()

    def _check_schedules(self) -> None:
        """Refuse what cannot fall, and what would fall out of its range."""
        fixed = {field.name for field in dataclasses.fields(Learner)} | {"log_std_init"}
        if self.norm_reward:
            fixed.add("gamma")  # whose rewards' scale is of all the run
        can = [
            field.name
            for field in dataclasses.fields(self)
            if field.type in ("float", "float | None", float) and field.name not in fixed
        ]
        for name, schedule in self.schedules.items():
            check_choice(f"the schedule of {name}", schedule, Schedule)
            if name == "learning_rate":
                raise ValueError("the schedule of learning_rate is lr_schedule: schedules has it")
            if name not in can:
                raise ValueError(f"what can fall over the run is {', '.join(can)}: it is {name!r}")
            if not getattr(self, name):
                raise ValueError(
                    f"what falls over the run is a number above 0: {name} is {getattr(self, name)}"
                )
        last = max(0.0, 1 - self.num_envs * self.num_steps / self.total_timesteps)
        settings: dict[str, Any] = {**self.scheduled(last), "schedules": {}}
        try:
            dataclasses.replace(self, **settings).check()
        except ValueError as error:
            raise ValueError(f"in the last round, by schedules: {error}") from None

    def scheduled(self, progress: float) -> dict[str, float]:
        """The settings that `schedules` names, as they are after a share of the run.

        Args:
            progress: the share, 0 to 1.

        Example:
            >>> from pgce.agents import PPO
            >>> PPO(clip_coef=0.2, schedules={"clip_coef": "linear"}).scheduled(0.75)
            {'clip_coef': 0.05}
        """
        from pgce.optimizer import schedule_factor

        return {
            name: getattr(self, name) * schedule_factor(schedule, progress)
            for name, schedule in self.schedules.items()
        }

    def terms(self, head: PolicyHead) -> dict[str, Term]:
        """The objective: the weighted cross-entropy of the actions taken, and what goes with it."""
        from pgce import heads
        from pgce.trainer import Term

        terms = {"policy": Term(head, target="action", weight=self.weight(), output="policy")}
        if self.critic:
            value = self.value_target
            terms["value"] = Term(heads.Gaussian(), value, coefficient=self.vf_coef, output="value")
        if self.ent_coef:
            terms["entropy"] = Term(
                head,
                target=lambda logits, batch: head.entropy_target(logits),
                coefficient=-self.ent_coef,
                output="policy",
            )
        return terms

    @property
    def value_target(self) -> str | TargetRule:
        """What the value is learned from: a column, or a rule."""
        return "return"

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The rollout as a batch, with the columns that the terms read."""
        raise NotImplementedError

    def batches(self, batch: Batch, generator: torch.Generator) -> Iterable[Batch]:
        """The steps of one round; one step on the whole batch unless the learner says otherwise."""
        return [batch]

    def examples(self, collector: Collector) -> Batch | None:
        """Recorded examples that are learned from, in epochs; None acts in the environments instead."""
        return None

    def acting(self, model: ActorCritic) -> nn.Module:
        """The policy that acts: the learner's own, or a copy of it where there is a lag."""
        return model.policy if self.lag == 1 else copy.deepcopy(model.policy)

    @property
    def group_size(self) -> int:
        """Environments in a row that begin every rollout in the same state; 1 lets episodes go on."""
        return 1

    @property
    def kept(self) -> int:
        """How many rollouts are learned from, the last ones."""
        return 1

    @property
    def lag(self) -> int:
        """Rounds after which the policy that acts is brought up to date; 1 is always."""
        return 1

    def stop(self, reports: Reports) -> bool:
        """Whether a round ends after this step."""
        return False

    def standardised(
        self, advantage: Tensor, returns: Tensor, valid: Tensor, *, center: bool = True
    ) -> Tensor:
        """Advantages (T, N) of returns (T, N), divided by their standard deviation if `norm_adv`."""
        from pgce.weights import whiten

        if not self.norm_adv or not bool(valid.any()):
            return advantage
        rounding = 1e-5 * returns[valid].abs().max()  # returns that differ by less are alike
        return whiten(advantage, valid, center=center, floor=rounding)

    def train(
        self, env_id: str | None = None, total_timesteps: int | None = None, *, after: After | None = None
    ) -> Run:
        """Train with these settings.

        Args:
            env_id: replaces the setting of that name.
            total_timesteps: likewise, in environment steps.
            after: called after every evaluation during training with the steps so far and the mean return;
                True ends the run, whose result then says that it stopped by "after".

        Returns:
            The run: its folder, result and trained model.
        """
        changes = {"env_id": env_id, "total_timesteps": total_timesteps}
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        agent = copy.copy(self)
        vars(agent).update(given)
        with cpu_threads(self.threads):
            return _train_agent(agent, after)


@dataclass(kw_only=True)
class ActorCriticAgent(Agent):
    """An agent with a critic: the weight is built on the generalised advantage estimate, or on n steps.

    Example:
        >>> from pgce.agents import A2C
        >>> A2C(gae_lambda=0.9).critic
        True
    """

    gae_lambda: float = 0.95
    """λ of the generalised advantage estimate: 1 is the return less the value, 0 looks one step ahead."""
    n_step: int | None = None
    """Steps of reward before the value stands in; replaces GAE(λ)."""

    @property
    def critic(self) -> bool:
        """Whether a value is learned beside the policy: it is."""
        return True

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda lies in [0, 1]: it is {self.gae_lambda}")
        if self.n_step is not None:
            self.at_least_one("n_step")
            if "gae_lambda" in self.schedules:
                raise ValueError("n_step replaces GAE(λ): schedules has gae_lambda, which is not read")

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The columns "advantage", "return", "value" and "cross_entropy" (of the policy that acted)."""
        from pgce.returns import gae, n_step

        assert model.value is not None
        value, next_value = rollout.values(model.value)
        ends = rollout.terminated, rollout.truncated
        if self.n_step is None:
            advantage = gae(rollout.reward, *ends, value, next_value, self.gamma, self.gae_lambda)
        else:
            advantage = n_step(rollout.reward, *ends, next_value, self.gamma, self.n_step) - value
        returns = advantage + value
        columns = {"return": returns, "value": value, "cross_entropy": rollout.cross_entropy}
        advantage = self.standardised(advantage, returns, rollout.valid)
        return rollout.batch({**columns, "advantage": advantage})


@dataclass(kw_only=True)
class Minibatched(Agent):
    """An agent that takes several steps on a rollout: passes over its rows in random order, cut in pieces.

    Example:
        >>> from pgce.agents import PPO
        >>> PPO(update_epochs=10, num_minibatches=8).update_epochs
        10
    """

    update_epochs: int = 4
    """Passes over a rollout."""
    num_minibatches: int = 4
    """Steps a pass."""

    def check(self) -> None:
        """Refuse settings that are out of their range."""
        super().check()
        self.at_least_one("update_epochs", "num_minibatches")

    def batches(self, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
        """Minibatches of the rollout in random order, epoch after epoch."""
        for _ in range(self.update_epochs):
            yield from batch.shuffled(self.num_minibatches, generator)


def _train_agent(agent: Agent, after: After | None) -> Run:
    """Check the settings and open the environments, which are closed whatever happens."""
    agent.check()
    eval_id, many = agent.eval_env_id or agent.env_id, agent.eval_episodes
    options: dict[str, Any] = {"vectorization": agent.vectorization, "allow_import": agent.allow_import}
    with closing(envs.make(agent.env_id, agent.num_envs, **options)) as train_envs:
        if isinstance(train_envs, (SyncVectorEnv, AsyncVectorEnv)):
            many = min(many, agent.num_envs)  # only a native one steps any number at once
        with closing(envs.make(eval_id, many, **options)) as eval_envs:
            return _learn(agent, train_envs, eval_envs, after)


def _learn(agent: Agent, train_envs: Envs, eval_envs: Envs, evaluated: After | None) -> Run:
    """The run that all agents share: rollouts in, steps, evaluations, a result out."""
    import torch

    from pgce import metrics
    from pgce.checkpoint import load_tensors
    from pgce.optimizer import resolve_device
    from pgce.policies import actor_critic
    from pgce.rollout import Collector
    from pgce.spaces import actions
    from pgce.trainer import Batch, Trainer, train

    device = resolve_device(agent.device)
    seeds = np.random.SeedSequence(agent.seed).generate_state(5).tolist()
    head = actions(train_envs.single_action_space, agent.continuous).head
    current = copy.copy(agent)  # whose scheduled settings change; one for all the run: it may keep a state
    terms = current.terms(head)
    torch.manual_seed(seeds[0])
    model = actor_critic(agent, train_envs).to(device)
    if agent.init is not None:
        model.load_state_dict(load_tensors(Path(agent.init) / "model.safetensors"), strict=False)
    acting = current.acting(model).to(device)
    collector = Collector(
        train_envs,
        acting,
        agent.num_steps,
        seed=seeds[1],
        generator=torch.Generator(device).manual_seed(seeds[2]),
        device=device,
        continuous=agent.continuous,
    )
    examples = current.examples(collector)
    memory = 0 if model.torso is None else model.torso.state_size
    if collector.state_size != memory or (memory and examples is not None):
        raise ValueError("an agent with a memory learns from what it does itself: another policy acts here")
    trainer = Trainer(model, terms, agent.build_optimizer(model))
    evaluation = _Evaluation(agent, eval_envs, model.policy, seeds[3], device)

    run = Run(agent, agent.env_id, ["eval/mean_reward", "rollout/ep_rew_mean"])
    ends, goal = "at the end of the budget", evaluation.threshold
    if goal is not None:
        ends = f"when {agent.eval_episodes} evaluation episodes average {goal:g}, twice in a row"
    unit = "steps" if examples is None else "examples"
    source = f"{agent.num_envs} environments ({collector.mode.name}) × {agent.num_steps} steps"
    if examples is not None:
        source = f"{len(examples):,} examples that were recorded"
    run.say(
        learner=f"{agent.learner} on {agent.env_id}, seed {agent.seed}, {device}",
        minimises=" + ".join(f"{t.coefficient:g} · mean(w · H) of {n}" for n, t in terms.items()),
        collects=f"{source}, {agent.total_timesteps:,} {unit} at most",
        stops=ends,
        folder=str(run.path),
    )
    groups = np.random.SeedSequence(seeds[1])
    shuffle = torch.Generator().manual_seed(seeds[4])
    kept: deque[Rollout] = deque(maxlen=agent.kept)
    steps, stopped = 0, "budget"
    recent: deque[tuple[float, int]] = deque(maxlen=100)  # return and length of the last episodes

    def rounds() -> Iterator[Iterable[Batch]]:
        nonlocal steps
        while steps == 0 or steps + agent.num_envs * agent.num_steps <= agent.total_timesteps:
            trainer.optimizer.progress = progress = steps / agent.total_timesteps
            if agent.schedules:
                vars(current).update(agent.scheduled(progress))
                trainer.terms = current.terms(head)
            if agent.group_size > 1:
                collector.reset(int(groups.spawn(1)[0].generate_state(1)[0]), agent.group_size)
            rollout = collector.collect()
            steps += rollout.steps
            recent.extend(zip(rollout.episode_return, rollout.episode_length, strict=True))
            seen = rollout.observation[:-1][rollout.valid]
            if model.normalize is not None and steps == rollout.steps:
                model.normalize.update(seen[:, : len(model.normalize.mean)])  # the policy hardly looks yet
            if model.reward_scale is not None:
                done = rollout.terminated | rollout.truncated
                reward = model.reward_scale(rollout.reward, done, rollout.valid)
                rollout = dataclasses.replace(rollout, reward=reward)
            kept.append(rollout)
            batch = Batch.joined([current.prepare(each, model) for each in kept])
            yield current.batches(batch, shuffle) if batch.count else ()
            if model.normalize is not None and steps > rollout.steps:
                # After the round: within it the policy's input stays the same. (A mask follows the features.)
                model.normalize.update(seen[:, : len(model.normalize.mean)])

    def epochs(examples: Batch) -> Iterator[Iterable[Batch]]:
        """Rounds of an epoch, or shorter ones where an evaluation is due earlier."""
        nonlocal steps
        if model.normalize is not None:
            assert isinstance(examples.input, torch.Tensor)
            model.normalize.update(examples.input[:, : len(model.normalize.mean)])
        size = min(len(examples), agent.eval_freq)
        batches: list[Batch] = []
        begun = 0
        for batch in chain.from_iterable(agent.batches(examples, shuffle) for _ in count()):
            if steps and steps + len(batch) > agent.total_timesteps:
                break
            batches.append(batch)
            steps += len(batch)
            if steps >= begun + size:
                yield batches
                batches, begun = [], steps
                trainer.optimizer.progress = begun / agent.total_timesteps
        if batches:
            yield batches

    def after(n: int, reports: dict[str, Report]) -> bool:
        nonlocal stopped
        if agent.lag > 1 and (n + 1) % agent.lag == 0:
            acting.load_state_dict(model.policy.state_dict())
        if not reports:  # no row of this round counted
            return run.interrupted
        values = {
            **metrics.summary(reports, trainer.terms),
            "train/learning_rate": trainer.optimizer.learning_rate,
            "train/grad_norm": trainer.optimizer.grad_norm,
            "time/fps": steps / run.seconds,
            "time/epoch": n + 1 if examples is None else steps / len(examples),
        }
        shown = f"cross-entropy {values['objective/cross_entropy']:.3f}"
        if recent:
            values["rollout/ep_rew_mean"], values["rollout/ep_len_mean"] = np.mean(recent, 0).tolist()
            shown = f"return {values['rollout/ep_rew_mean']:.1f}"
        run.logger.scalars(steps, values)
        run.bar.update(steps, shown)
        if steps - evaluation.steps >= agent.eval_freq:
            run.logger.distributions(steps, next(iter(reports.values())))
            if evaluation.solved(run, steps):
                stopped = "threshold"
            elif evaluated is not None and evaluated(steps, evaluation.result()["eval_mean"]):
                stopped = "after"
        if run.interrupted:
            stopped = "interrupt"
        return stopped != "budget"

    with run.logger, run.training(agent.total_timesteps, unit):
        batches = rounds() if examples is None else epochs(examples)
        train(trainer, batches, stop=current.stop, after=after)
        if stopped == "budget" and evaluation.steps < steps:
            evaluation.solved(run, steps)
    result = {"env_id": agent.env_id, "steps": steps, "stopped": stopped, **evaluation.result()}
    summary = f"stopped ({stopped}) after {steps:,} {unit} and {run.seconds:.1f} s of training"
    if evaluation.returns is not None:
        score = f"{result['eval_mean']:.1f} ± {result['eval_std']:.1f}"
        summary = f"mean return {score} over {result['eval_episodes']} evaluation episodes; {summary}"
    run.finish(model, result, summary)
    return run


class TrainedAgent:
    """An agent as its run left it: what acts, and how well.

    Args:
        folder: of the run.
        device: where the policy computes.

    Attributes:
        model: the networks.
        env_id: what it was trained on.

    Raises:
        FileNotFoundError: the folder holds no trained agent.
        ValueError: its settings are damaged, or its environment cannot be made.

    Example:
        >>> import tempfile, gymnasium, pgce
        >>> from pgce.policy_gradient import TrainedAgent
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.PPO.preset("CartPole-v1", quiet=True, runs_dir=folder).train()
        ...     agent = TrainedAgent(run.path)
        >>> observation, info = gymnasium.make("CartPole-v1").reset(seed=0)
        >>> bool(agent.act(observation) in (0, 1))
        True
        >>> bool(agent.evaluate(episodes=10).mean() > 400)
        True
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        from pgce.checkpoint import load_tensors
        from pgce.optimizer import resolve_device
        from pgce.policies import actor_critic
        from pgce.rollout import Collector

        path = Path(folder)
        try:
            config = json.loads((path / "config.json").read_bytes())
            known = {field.name for field in dataclasses.fields(Agent)}
            settings: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in config.items()
                if name in known
            }
            self._settings = Agent(**settings)
        except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path / 'config.json'} is damaged: {error!r}") from error
        tensors = load_tensors(path / "model.safetensors")
        self.env_id = self._settings.env_id
        self.device = resolve_device(device)
        self._options: dict[str, Any] = {"allow_import": self._settings.allow_import}
        if self._settings.vectorization == "envpool":  # whose environments Gymnasium may not know
            self._options["vectorization"] = "envpool"
        with closing(envs.make(self.env_id, 1, **self._options)) as one:
            critic = any(name.startswith("critic.") for name in tensors)
            self.model = actor_critic(self._settings, one, critic=critic)
            how: dict[str, Any] = {"device": self.device, "continuous": self._settings.continuous}
            self._collector = Collector(one, self.model.policy, 1, seed=0, **how)
        self.model.load_state_dict(tensors)
        self.model.to(self.device).eval()
        self._state: Tensor | None = None

    def reset(self) -> None:
        """Forget what was seen: an episode begins. Only a policy with a memory needs to be told."""
        self._state = None

    def act(self, observation: Any, *, action_mask: Any = None, greedy: bool = True) -> Any:
        """The action for one observation, as `step` takes it: the most probable, or drawn.

        Args:
            observation: as the environment gives it.
            action_mask: which actions are allowed, where `info["action_mask"]` tells.
            greedy: take the most probable action.
        """
        action, self._state = self._collector.act(observation, action_mask, greedy=greedy, state=self._state)
        return action

    def evaluate(
        self, episodes: int = 100, *, env_id: str | None = None, seed: int = 0, greedy: bool = True
    ) -> NDArray[np.float64]:
        """Undiscounted returns (E,) of fresh episodes, on its own environment or another."""
        with closing(envs.make(env_id or self.env_id, min(episodes, 16), **self._options)) as many:
            return self._play(many, episodes, seed, greedy)

    def record(
        self, path: str | Path, episodes: int = 100, *, seed: int = 0, greedy: bool = True
    ) -> NDArray[np.float64]:
        """Play fresh episodes, and write them as an .npz file that `pgce.agents.BC(data=path)` learns from.

        Returns:
            The undiscounted returns (E,).

        Raises:
            ValueError: the path does not end in .npz.
        """
        from pgce.demonstrations import Recorder

        if Path(path).suffix != ".npz":
            raise ValueError(f"a file of demonstrations ends in .npz: it is {str(path)!r}")
        with closing(envs.make(self.env_id, min(episodes, 16), **self._options)) as many:
            recorder = Recorder(many, episodes)
            returns = self._play(recorder, episodes, seed, greedy)
        recorder.save(path)
        return returns

    def export(self, path: str | Path) -> Path:
        """Write the policy, its normaliser included, as a program that needs no pgce.

        It takes N >= 1 observations, float32, as `pgce.spaces.observations` encodes them: (N, D), Discrete
        parts one-hot and everything flattened in the space's order, and after them the action mask (K zeros
        and ones) where the environment has one; images (N, C, H, W) in [0, 1]. It gives "logits", which the
        policy's head reads, and "action", the most probable: Discrete and MultiDiscrete count from 0, a Box
        is flat and not yet clipped.

        Args:
            path: ends in .pt2, read by `torch.export.load(path).module()`, or in .onnx.

        Raises:
            ValueError: the path ends otherwise.
            ImportError: an .onnx file, and the packages of the extra "export" are not installed.
        """
        from pgce.exporting import export
        from pgce.spaces import actions

        envs = self._collector.envs
        head = actions(envs.single_action_space, self._settings.continuous).head
        example = self._collector.encode(create_empty_array(envs.single_observation_space, 2))
        return export(self.model.policy, head, example, path)

    def _play(self, many: Envs, episodes: int, seed: int, greedy: bool) -> NDArray[np.float64]:
        import torch

        from pgce.rollout import evaluate

        generator = torch.Generator(self.device).manual_seed(seed)
        options: dict[str, Any] = {"generator": generator, "device": self.device, "greedy": greedy}
        options["continuous"] = self._settings.continuous
        return evaluate(many, self.model.policy, episodes, seed=seed, **options)[0]


class _Evaluation:
    """Fresh episodes on environments of their own, on new seeds every time."""

    def __init__(self, agent: Agent, eval_envs: Envs, policy: nn.Module, seed: int, device: Any) -> None:
        spec = eval_envs.spec
        self.threshold = spec.reward_threshold if spec is not None and agent.stop_at_threshold else None
        self.steps = 0  # when the last evaluation was made
        self.returns: NDArray[np.float64] | None = None
        self._agent, self._envs, self._policy, self._device = agent, eval_envs, policy, device
        self._seeds = np.random.SeedSequence(seed)

    def solved(self, run: Run, steps: int) -> bool:
        """Evaluate; a threshold that is reached must be reached again, since one evaluation may be lucky.

        The last evaluation is what is logged and what the result tells. Training time stands still.
        """
        goal = math.inf if self.threshold is None else self.threshold
        self.steps = steps
        with run.paused():
            returns, lengths = self._evaluate()
            if returns.mean() >= goal:
                returns, lengths = self._evaluate()
        self.returns = returns
        scores = {"eval/mean_reward": float(returns.mean()), "eval/mean_ep_length": float(lengths.mean())}
        run.logger.scalars(steps, scores)
        return scores["eval/mean_reward"] >= goal

    def _evaluate(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        import torch

        from pgce.rollout import evaluate

        env_seed, action_seed = self._seeds.spawn(1)[0].generate_state(2).tolist()
        return evaluate(
            self._envs,
            self._policy,
            self._agent.eval_episodes,
            seed=env_seed,
            generator=torch.Generator(self._device).manual_seed(action_seed),
            device=self._device,
            greedy=self._agent.eval_greedy,
            continuous=self._agent.continuous,
        )

    def result(self) -> dict[str, Any]:
        """The last evaluation; nothing where none was made."""
        if self.returns is None:
            return {"eval_mean": None, "eval_std": None, "eval_episodes": 0}
        return {
            "eval_mean": float(self.returns.mean()),
            "eval_std": float(self.returns.std()),
            "eval_episodes": len(self.returns),
        }

"""What policy-gradient agents share: their settings, the loop of a run, and its evaluations."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from pgce import envs, processes
from pgce.choices import Continuous, Memory, Network, Schedule, Std, check_type
from pgce.envs.state import exactness
from pgce.envs.vectorize import Vectorization, check_same_spaces
from pgce.flags import pairs, words_of
from pgce.run import Also, Learner, Run

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from typing_extensions import Self

    from pgce.heads import PolicyHead
    from pgce.networks import ActorCritic
    from pgce.rollout import Collector, Rollout
    from pgce.trainer import Batch, Input, Report, Reports, Rule, TargetRule, Term

__all__ = ["ActorCriticAgent", "Agent", "Minibatched"]

Envs = VectorEnv[Any, Any, Any]
_LEVELS = {
    "exact": "exactly as if it had not been stopped",
    "reseeded": "with new episodes and seeds in the environments, whose state cannot be saved",
}
After = Callable[[int, float], bool | None]


def _named(value: str) -> tyro.constructors.PrimitiveConstructorSpec[dict[str, Any]]:
    """A flag of names, each with a value. As tyro reads a dict by itself, a preset would change the flag."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar=f"[NAME {value} ...]",
        instance_from_str=pairs,
        is_instance=lambda given: isinstance(given, dict),
        str_from_instance=words_of,
    )


Schedules = Annotated[dict[str, Schedule], _named(f"{{{','.join(get_args(Schedule))}}}")]
EnvKwargs = Annotated[dict[str, Any], _named("VALUE")]


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
    env_kwargs: EnvKwargs = dataclasses.field(default_factory=dict)
    """Arguments that all environments are made with: max_episode_steps 500 is_slippery false, say."""
    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 200_000
    """Environment steps to take at most."""
    num_envs: int = 16
    """Environments stepped together (N)."""
    num_steps: int = 128
    """Steps in each environment a rollout (T)."""
    vectorization: Vectorization = "auto"
    """How environments are stepped together; auto takes a native vector environment where there is one, else
    the faster of sync and async."""
    step_timeout: float | None = 60.0
    """Seconds that environments in other processes have for a step; None is for ever."""
    env_restarts: int = 0
    """How often an environment that fails is made anew, its episode cut, before the run ends."""
    env_workers: int | None = None
    """Processes by async, which share the environments out; one a core if not given."""
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
    capture_video: bool = False
    """Film an episode at evaluations 1, 2, 4, 8 and so on, and at the end, into the folder videos/."""

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
        for word, following in zip(words, [*words, ""][1:], strict=True):
            name, equals, value = word.partition("=")
            if name.replace("_", "-") in ("--env", "--env-id"):
                env_id = value if equals else following
        return cls.preset(env_id)

    def defaults(self) -> Agent:
        """The preset of the environment, whose name is itself told unless it is the default."""
        return dataclasses.replace(self.preset(self.env_id), env_id=type(self).env_id)

    @property
    def configuration(self) -> dict[str, Any]:
        """What a run's config.json holds: also whether the networks are the agent's own."""
        own = type(self).build_model is not Agent.build_model
        return {**super().configuration, "own_model": own}

    @property
    def critic(self) -> bool:
        """Whether a value is learned beside the policy."""
        return False

    @property
    def env_options(self) -> dict[str, Any]:
        """How its environments are made, beside their number: arguments of `pgce.envs.make`."""
        names = "vectorization", "allow_import", "step_timeout", "env_restarts", "env_workers"
        return {**self.env_kwargs, **{name: getattr(self, name) for name in names}}

    def weight(self) -> str | Rule:
        """The weight of an action: a column, or a rule."""
        return "advantage"

    def check(self) -> None:
        """Refuse settings that are not of their type, or out of their range."""
        super().check()
        self.at_least_one(
            "total_timesteps", "num_envs", "num_steps", "eval_freq", "eval_episodes", "memory_size"
        )
        if self.num_envs % self.group_size:
            raise ValueError(
                f"groups are of equal size: num_envs is {self.num_envs}, a group has {self.group_size}"
            )
        self.check_env_kwargs()
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma lies in [0, 1]: gamma is {self.gamma}")
        if self.schedules:
            self._check_schedules()

    def check_env_kwargs(self) -> None:
        """Refuse what is not the environments' own, and what cannot be saved."""
        if taken := self.env_kwargs.keys() & inspect.signature(envs.make).parameters.keys():
            raise ValueError(f"arguments of environments are their own: env_kwargs has {min(taken)}")
        try:
            json.dumps(self.env_kwargs)
        except (TypeError, ValueError) as error:
            raise ValueError(f"env_kwargs is plain data, which is saved: {error}") from None

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
            check_type(f"the schedule of {name}", schedule, Schedule)
            if name == "learning_rate":
                raise ValueError("the schedule of learning_rate is lr_schedule: schedules has it")
            if name not in can:
                raise ValueError(f"what can fall over the run is {', '.join(can)}: it is {name!r}")
            if not getattr(self, name):
                raise ValueError(
                    f"what falls over the run is a number above 0: {name} is {getattr(self, name)}"
                )
        last = max(0.0, 1 - self.num_envs * self.num_steps / self.total_timesteps)
        then = copy.copy(self)
        vars(then).update(self.scheduled(last), schedules={})
        try:
            then.check()
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

    def build_model(self, envs: Envs) -> ActorCritic:
        """The networks, with fresh weights; `pgce.policies.actor_critic` tells what environments say of them.

        One of one's own is a module with

        - `forward(x)`: the outputs by name, "policy" (logits), "value" if there is one, (B,), and those that
          further terms read;
        - `policy` and `value`: modules that give one of them, the value or None where there is none;
        - `normalize` and `reward_scale`: None, or as in `pgce.networks.ActorCritic`.

        x is (B, D), as `pgce.spaces.observations` encodes observations. `pgce.load(run, agent=...)` takes the
        class, which makes the networks of a run again.
        """
        from pgce.policies import actor_critic

        return actor_critic(self, envs)

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The rollout as a batch, with the columns that the terms read."""
        raise ValueError(f"an agent has a method prepare(rollout, model): {type(self).__name__} has none")

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

    def stop(self, reports: Reports) -> bool | None:
        """Whether a round ends after this step; None never does."""
        return None

    def metrics(self, reports: Reports) -> Mapping[str, float]:
        """Numbers to log as train/own/{name}, of the last step of a round that is logged."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What else than settings the agent keeps from round to round, for checkpoints: tensors, plain data.

        Each process has its own.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave, tensors on the CPU, in a run that is resumed."""

    def standardised(
        self, advantage: Tensor, returns: Tensor, valid: Tensor, *, center: bool = True
    ) -> Tensor:
        """Advantages (T, N) of returns (T, N), divided by their standard deviation if `norm_adv`."""
        from pgce.weights import whiten

        if not self.norm_adv:
            return advantage
        greatest = processes.greatest(returns.masked_select(valid).abs())
        rounding = 1e-5 * greatest  # returns that differ by less are alike
        return whiten(advantage, valid, center=center, floor=rounding)

    def train(
        self,
        env_id: str | None = None,
        total_timesteps: int | None = None,
        *,
        after: After | None = None,
        metrics: Also | None = None,
    ) -> Run:
        """Train with these settings.

        Args:
            env_id: replaces the setting of that name.
            total_timesteps: likewise, in environment steps.
            after: called after every evaluation during training with the steps so far and the mean return;
                True ends the run, whose result then says that it stopped by "after".
            metrics: called with every step at which numbers are logged, and the numbers by tag: a tracker of
                your own, such as `wandb.log(dict(values), step=step)`.

        Returns:
            The run: its folder, result and trained model.
        """
        changes = {"env_id": env_id, "total_timesteps": total_timesteps}
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        agent = copy.copy(self)
        vars(agent).update(given)
        with agent.computing():
            return _train_agent(agent, after, metrics)


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

    critic = True

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
        return batch.shuffled(self.num_minibatches, generator, self.update_epochs)


def _train_agent(agent: Agent, after: After | None, metrics: Also | None) -> Run:
    """Open the environments, which are closed whatever happens."""
    if agent.capture_video:
        from pgce import films

        films.check(agent.env_id, agent.env_kwargs)
    options = agent.env_options
    ranks = processes.size()
    eval_id, many = agent.eval_env_id or agent.env_id, -(-agent.eval_episodes // ranks)
    if agent.num_envs % (ranks * agent.group_size):
        raise ValueError(
            f"processes have equally many environments: num_envs is {agent.num_envs}, processes are {ranks}"
        )
    with closing(envs.make(agent.env_id, agent.num_envs // ranks, **options)) as train_envs:
        if isinstance(train_envs, (SyncVectorEnv, AsyncVectorEnv)):
            many = min(many, train_envs.num_envs)  # only a native one steps any number at once
        with closing(envs.make(eval_id, many, **options)) as eval_envs:
            check_same_spaces(train_envs, eval_envs)
            return _Training(agent, train_envs, eval_envs, after, metrics)()


def begin_from(folder: Path, model: nn.Module) -> None:
    """Give a model the weights of a run, as far as both have them: a policy without a critic, say.

    Raises:
        CheckpointError: a weight that both have is of another shape, or they have none in common.
        FileNotFoundError: the folder has no weights.
    """
    from pgce.checkpoint import CheckpointError, check_like, load_model

    given, own = load_model(folder), model.state_dict()
    shared = {name: given[name] for name in own if name in given}
    if not shared:
        raise CheckpointError(f"{folder} has other networks: {', '.join(given)} are not {', '.join(own)}")
    check_like(f"{folder} as a start", shared, {name: own[name] for name in shared})
    model.load_state_dict(shared, strict=False)


class _Training:
    """The run that all agents share: rollouts in, steps, evaluations, a result out.

    Args:
        agent: its settings.
        train_envs: to learn in.
        eval_envs: to be evaluated in.
        evaluated: sees every evaluation.
        metrics: sees all that is logged.
    """

    def __init__(
        self,
        agent: Agent,
        train_envs: Envs,
        eval_envs: Envs,
        evaluated: After | None,
        metrics: Also | None,
    ) -> None:
        import torch

        from pgce.optimizer import resolve_device
        from pgce.rollout import Collector
        from pgce.spaces import actions
        from pgce.trainer import Trainer

        self.agent, self.evaluated = agent, evaluated
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
        self.model = self.current.build_model(train_envs).to(device)
        if agent.init is not None:
            begin_from(Path(agent.init), self.model)
        self.acting = self.current.acting(self.model).to(device)
        self.collector = Collector(
            train_envs,
            self.acting,
            agent.num_steps,
            seed=env_seed,
            generator=torch.Generator(device).manual_seed(action_seed),
            device=device,
            continuous=agent.continuous,
        )
        self.examples = self.current.examples(self.collector)
        if self.examples is not None and processes.size() > 1:
            raise ValueError(
                f"one process learns from recorded examples: there are {processes.size()} of {agent.learner}"
            )
        memory = getattr(self.model.policy, "state_size", 0)
        if self.collector.state_size != memory or (memory and self.examples is not None):
            raise ValueError(
                "an agent with a memory learns from what it does itself: another policy acts here"
            )
        self.trainer = Trainer(self.model, terms, agent.build_optimizer(self.model), by_row=True)
        self.evaluation = _Evaluation(agent, eval_envs, self.model.policy, evaluation_seed, device)
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
            self._say(device)

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

    @property
    def _exactness(self) -> str:
        """In words, how exactly a run goes on that is resumed."""
        if not self.unsaved:
            return _LEVELS[self.level]
        how = "" if self.level == "exact" else f"{_LEVELS[self.level]}, and "
        kind = type(self.agent).__name__
        return f"{how}without {', '.join(self.unsaved)}, which {kind}.state_dict does not give"

    def _unsaved(self) -> list[str]:
        """What an agent keeps beside its settings, if it does not say what of it is to be saved."""
        if type(self.current).state_dict is not Agent.state_dict:
            return []
        settings = {field.name for field in dataclasses.fields(self.agent)}
        return sorted(vars(self.current).keys() - settings - _GIVEN)

    @cached_property
    def level(self) -> str:
        """How exactly the environments can be resumed."""
        agent, options = self.agent, self.agent.env_options
        if isinstance(self.collector.envs, AsyncVectorEnv):
            options["vectorization"] = "sync"  # whose states are the same
        return exactness(lambda: envs.make(agent.env_id, min(agent.num_envs, 4), **options))

    def state_dict(self) -> dict[str, Any]:
        """All that a run needs to go on as if it had not been stopped: plain data and tensors."""
        import torch

        return {
            "model": self.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "acting": self.acting.state_dict() if self.agent.lag > 1 else {},
            "collector": self.collector.state_dict(environments=self.level == "exact"),
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
            "level": self.level,
            "agent": self.current.state_dict(),
            "unsaved": self._unsaved(),
            "scale": None if self.model.reward_scale is None else self.model.reward_scale.running,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` told."""
        import torch

        from pgce.checkpoint import check_like
        from pgce.rollout import Rollout

        check_like("model", state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        if self.model.reward_scale is not None:
            self.model.reward_scale.running.copy_(state["scale"])
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        if self.agent.lag > 1:
            self.acting.load_state_dict(state["acting"])
        fresh = np.random.SeedSequence(self.agent.seed, spawn_key=(self.run.attempt, processes.rank()))
        self.collector.load_state_dict(state["collector"], reseed=int(fresh.generate_state(1)[0]))
        place = self.collector.device
        self.kept.extend(Rollout.from_state(each, self.head, place) for each in state["kept"])
        self.recent.extend(map(tuple, state["recent"]))
        self.steps, self.round = state["steps"], state["round"]
        self.stopped = state["stopped"] if state["stopped"] in ("budget", "threshold", "after") else "budget"
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.groups = np.random.SeedSequence(self.groups.entropy, n_children_spawned=state["groups"])
        self.shuffle.set_state(state["shuffle"])
        self.evaluation.load_state_dict(state["evaluation"])
        self.current.load_state_dict(state.get("agent", {}))  # which older checkpoints have not
        self.unsaved = state.get("unsaved", [])
        self.run.restored(state["seconds"], state["spent"])
        torch.set_rng_state(state["random"])  # last: what is built draws from it

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

    def __call__(self) -> Run:
        """Learn until the end, and tell the result."""
        from pgce.trainer import train

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

    def _rounds(self) -> Iterator[Iterable[Batch]]:
        """A rollout each."""
        from pgce.trainer import Batch

        agent, current, model, collector = self.agent, self.current, self.model, self.collector
        while self.steps == 0 or self.steps + agent.num_envs * agent.num_steps <= agent.total_timesteps:
            self._progress()
            if agent.group_size > 1:
                collector.reset(int(self.groups.spawn(1)[0].generate_state(1)[0]), agent.group_size)
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
            if model.reward_scale is not None:
                done = rollout.terminated | rollout.truncated
                reward = model.reward_scale(rollout.reward, done, rollout.valid)
                rollout = dataclasses.replace(rollout, reward=reward)
            self.kept.append(rollout)
            batch = Batch.joined([self._prepared(each) for each in self.kept])
            self._draw(batch)
            yield current.batches(batch, self.shuffle) if processes.any_of(batch.count > 0) else ()

    def _prepared(self, rollout: Rollout) -> Batch:
        """The rollout as the agent makes a batch of it."""
        from pgce.trainer import Batch

        batch: object = self.current.prepare(rollout, self.model)
        if not isinstance(batch, Batch):
            raise ValueError(f"prepare gives a Batch, as rollout.batch does: it gave {type(batch).__name__}")
        return batch

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
            self.epoch, self.batch = self.shuffle.get_state(), 0
            for batch in self.current.batches(examples, self.shuffle):
                self.batch += 1
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
            done = 0

    def _draw(self, batch: Batch) -> None:
        """Write what the networks look like, before the first round; refuse terms that do not fit."""
        from pgce import dashboards

        if self.round == 0:
            example = next(batch.split(1)).input
            self._check_outputs(example)
            with self.run.part("log"):
                dashboards.network(self.run.logger, self.model, example)

    def _check_outputs(self, example: Input) -> None:
        """Refuse a term whose output the model does not give."""
        from pgce.networks import evaluating

        with evaluating(self.model):
            outputs = self.model(example)
        names = list(outputs) if isinstance(outputs, Mapping) else []
        for name, term in self.trainer.terms.items():
            if term.output not in names:
                raise ValueError(
                    f"a term reads an output of the model by its name, of {', '.join(names) or 'none'}: "
                    f"that of {name} is {term.output!r}"
                )

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
        self.stopped = run.interrupted or self.stopped
        if run.checkpoints.due:
            self._save()
        run.ended_round()
        return self.stopped != "budget"

    def _save(self) -> None:
        self.run.logger.flush()  # what was logged until a checkpoint is not lost after it
        self.run.checkpoints.save(self.steps, self.state_dict(), _OWN)

    def _log(self, reports: dict[str, Report]) -> None:
        """Write what the round came to, and evaluate if it is time."""
        from pgce import dashboards
        from pgce.logger import due

        if processes.size() > 1:  # each has its rows' share of a loss
            losses = processes.sum_of([report.loss.item() for report in reports.values()])
            pairs = zip(reports.items(), losses, strict=True)
            reports = {
                name: dataclasses.replace(each, loss=each.loss.new_tensor(x)) for (name, each), x in pairs
            }
        run, evaluation, first = self.run, self.evaluation, next(iter(reports.values()))
        kept = due(self.round, _KEPT)
        with run.part("log"):
            if kept or run.logger.also is not None:
                values = self.values = self._numbers(reports)
                run.logger.scalars(self.steps, values, kept=kept)
                run.bar.update(self.steps, _shown(values))
        if self.steps - evaluation.steps >= self.agent.eval_freq:
            evaluation.number += 1
            if evaluation.number == 1:
                self._hint()
            if evaluation.number & (evaluation.number - 1) == 0:  # 1, 2, 4, 8, …
                with run.part("log"):
                    dashboards.batch(run.logger, self.steps, first, self.head)
                evaluation.film(run, self.steps)
            if evaluation.solved(run, self.steps):
                self.stopped = "threshold"
            elif (
                self.evaluated is not None
                and evaluation.steps == self.steps  # else it was cut short
                and self.evaluated(self.steps, evaluation.result()["eval_mean"])
            ):
                self.stopped = "after"

    def _hint(self) -> None:
        """Tell what hardly lets it learn, if something does."""
        agent, returns = self.agent, {episode[0] for episode in self.recent}
        if len(self.recent) > 1 and len(returns) == 1:
            self.run.say(
                hint=f"all episodes so far returned {returns.pop():g}: nothing says what is better. "
                "More exploration (--ent-coef, --log-std-init) or a denser reward may"
            )
        if agent.norm_reward and not self.recent:
            self.run.say(
                hint=f"--norm-reward scales by what {self.steps:,} steps told, in which no episode ended: "
                "its scale is a guess until some have"
            )
        size = sum(parameter.numel() for parameter in self.model.parameters())
        if self.collector.device.type == "cuda" and size < _SMALL:
            self.run.say(
                hint=f"a network of {size:,} parameters is often faster with --device cpu than on a GPU"
            )

    def _numbers(self, reports: dict[str, Report]) -> dict[str, float]:
        """What a round came to, by tag."""
        from pgce import metrics

        run, optimizer = self.run, self.trainer.optimizer
        values = {
            **metrics.summary(reports, self.trainer.terms),
            **{f"train/own/{name}": float(value) for name, value in self.current.metrics(reports).items()},
            "train/learning_rate": optimizer.learning_rate,
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


_SMALL = 100_000  # parameters of a network that a GPU hardly helps
_KEPT = 500
"""Rounds of which each is written; of twice as many every second, and so on."""


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


_PATIENCE = 5.0  # seconds that an evaluation has after a signal to stop

_OWN = "collector", "kept", "epoch", "groups", "shuffle", "random", "scale", "agent"
"""Keys of a training's state that differ between processes."""

_GIVEN = {"arrays"}
"""What `BC.train` adds to the settings: whoever resumes a run gives it again."""


class _Evaluation:
    """Fresh episodes on environments of their own, on new seeds every time."""

    def __init__(self, agent: Agent, eval_envs: Envs, policy: nn.Module, seed: int, device: Any) -> None:
        spec = eval_envs.spec
        self.threshold = spec.reward_threshold if spec is not None and agent.stop_at_threshold else None
        self.steps, self.number = 0, 0  # when the last evaluation was made; how many were
        self._filmed = -1
        self.returns: NDArray[np.float64] | None = None
        self._agent, self._envs, self._policy, self._device = agent, eval_envs, policy, device
        self._seeds = np.random.SeedSequence(seed)

    def solved(self, run: Run, steps: int) -> bool:
        """Evaluate; a threshold that is reached must be reached again, since one evaluation may be lucky.

        The last evaluation is what is logged and what the result tells. Training time stands still. One that
        a signal to stop finds has some seconds for its end; if it is cut short, none was made.
        """
        goal = math.inf if self.threshold is None else self.threshold
        every = self._agent.eval_episodes
        with run.paused():
            returns, lengths = self._evaluate(run)
            if len(returns) == every and returns.mean() >= goal:
                returns, lengths = self._evaluate(run)
        if len(returns) < every:
            return False
        self.steps, self.returns = steps, returns
        scores = {"eval/mean_reward": float(returns.mean()), "eval/mean_ep_length": float(lengths.mean())}
        run.logger.scalars(steps, scores)
        return scores["eval/mean_reward"] >= goal

    def film(self, run: Run, steps: int) -> None:
        """Film an episode, if that is wanted; training time stands still."""
        from pgce import films
        from pgce.rollout import Collector, Player

        agent = self._agent
        if not agent.capture_video or processes.rank() > 0 or steps == self._filmed:
            return
        with run.paused():
            how: dict[str, Any] = {"device": self._device, "continuous": agent.continuous}
            with closing(envs.make(agent.env_id, 1, **agent.env_options)) as one:
                player = Player(Collector(one, self._policy, 1, seed=0, **how))
                shown = agent.env_id, agent.env_kwargs
                episode = films.play(player, *shown, seed=agent.seed, greedy=True)
                frames = [frame for frame, _ in episode if frame is not None]
            file = films.save(run.path / "videos" / f"{steps}.gif", frames)
            run.logger.film(steps, "eval/episode", file)
            if find_spec("imageio_ffmpeg") is not None:
                films.save(file.with_suffix(".mp4"), frames)
        self._filmed = steps

    def _evaluate(self, run: Run) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        import torch

        from pgce.rollout import evaluate

        ranks, rank = processes.size(), processes.rank()  # each plays its share of the episodes
        seeds = self._seeds.spawn(1)[0].generate_state(2 * ranks).reshape(ranks, 2)
        env_seed, action_seed = seeds[rank].tolist()
        own = evaluate(
            self._envs,
            self._policy,
            len(range(rank, self._agent.eval_episodes, ranks)),
            seed=env_seed,
            generator=torch.Generator(self._device).manual_seed(action_seed),
            device=self._device,
            greedy=self._agent.eval_greedy,
            continuous=self._agent.continuous,
            stop=lambda: run.waited > _PATIENCE,
        )
        every = processes.everyones([each.tolist() for each in own])
        returns, lengths = ([one for part in each for one in part] for each in zip(*every, strict=True))
        return np.array(returns), np.array(lengths)

    def state_dict(self) -> dict[str, Any]:
        """What was evaluated, and the seeds that were used."""
        spawned = self._seeds.n_children_spawned
        return {"steps": self.steps, "number": self.number, "returns": self.returns, "spawned": spawned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.steps, self.number, self.returns = state["steps"], state["number"], state["returns"]
        self._seeds = np.random.SeedSequence(self._seeds.entropy, n_children_spawned=state["spawned"])

    def result(self) -> dict[str, Any]:
        """The last evaluation; nothing where none was made."""
        if self.returns is None:
            return {"eval_mean": None, "eval_std": None, "eval_episodes": 0}
        return {
            "eval_mean": float(self.returns.mean()),
            "eval_std": float(self.returns.std()),
            "eval_episodes": len(self.returns),
        }

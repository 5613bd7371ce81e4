"""What policy-gradient agents share: their settings, and the hooks by which one differs from another."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import tyro
from gymnasium.vector import VectorEnv

from pgce import envs, processes
from pgce.choices import Continuous, Memory, Network, Schedule, Std, check_type
from pgce.envs.vectorize import Vectorization
from pgce.flags import pairs, value_of, words_of
from pgce.run import Also, Learner, Run

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    import torch
    from torch import Tensor, nn
    from typing_extensions import Self

    from pgce.heads import PolicyHead
    from pgce.networks import ActorCritic
    from pgce.rollout import Collector, Rollout
    from pgce.trainer import Batch, Reports, Rule, TargetRule, Term

__all__ = ["ActorCriticAgent", "Agent", "Minibatched"]

Envs = VectorEnv[Any, Any, Any]
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
    """Gymnasium environment; of a command line its preset, if there is one, gives the other defaults."""
    env_kwargs: EnvKwargs = dataclasses.field(default_factory=dict)
    """Arguments that all environments are made with: max_episode_steps 500 is_slippery false, say."""
    total_timesteps: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 200_000
    """Environment steps to take at most, but one rollout in any case."""
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
    """Normalise observations, but for images and tokens, by running statistics, saved with the policy."""
    norm_reward: bool = False
    """Scale rewards by the running standard deviation of their discounted sum."""
    continuous: Continuous = "gaussian"
    """Distribution of the actions of a Box space: a clipped Gaussian, one squashed by tanh, or Beta."""
    network: Network = "auto"
    """A perceptron, or for images of 7 × 7 pixels and more the deep Q-network's; IMPALA's, of images; a
    transformer, of tokens, with a layer for each of `hidden_sizes`, which are then all alike."""
    shared_torso: bool = False
    """Let policy and value share all layers but their last."""
    memory: Memory | None = None
    """A recurrent layer before the last, so that the policy remembers what it saw in its episode."""
    memory_size: int = 64
    """Units of the recurrent layer."""
    std: Std = "learned"
    """σ of a Gaussian policy: learned, the same for all observations; given by the network; or fixed."""
    log_std_init: float = 0.0
    """Logarithm of a Gaussian policy's σ at the start, in half the distance of an action's bounds; in units
    of 1 where there are none, and before tanh."""
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
    READ_ONCE: ClassVar[frozenset[str]] = frozenset({"log_std_init", "step_timeout"})
    """Numbers that cannot fall over a run, since it reads them once."""

    @classmethod
    def preset(cls, env_id: str, **settings: Any) -> Self:
        """The agent for an environment: its preset, if there is one, and the settings given."""
        return cls(**{"env_id": env_id, **cls.PRESETS.get(env_id, {}), **settings})

    @classmethod
    def from_words(cls, words: Sequence[str]) -> Self:
        """The preset of the environment that a command line names."""
        env_id = value_of(words, "--env", "--env-id")
        return cls.preset(cls.env_id if env_id is None else env_id)

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
        self.at_least_one("group_size", "kept", "lag")  # by whatever setting a learner tells them
        if self.num_envs % self.group_size:
            raise ValueError(
                f"groups are of equal size: num_envs is {self.num_envs}, a group has {self.group_size}"
            )
        self.check_env_kwargs()
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma lies in [0, 1]: gamma is {self.gamma}")
        if not abs(self.log_std_init) <= 20:
            raise ValueError(f"log_std_init lies in [-20, 20]: it is {self.log_std_init}")
        if self.vf_coef < 0:
            raise ValueError(f"vf_coef is at least 0: it is {self.vf_coef}")
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
        fixed = {field.name for field in dataclasses.fields(Learner)} | self.READ_ONCE
        can = [
            field.name
            for field in dataclasses.fields(self)
            if field.type in ("float", "float | None", float) and field.name not in fixed
        ]
        for name, schedule in self.schedules.items():
            check_type(f"the schedule of {name}", schedule, Schedule)
            if name == "learning_rate":
                raise ValueError("the schedule of learning_rate is lr_schedule: schedules has it")
            if name == "gamma" and self.norm_reward:
                raise ValueError("where norm_reward scales by discounted sums gamma stays: schedules has it")
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
        """Environments in a row that play one episode a rollout, from one state; 1 lets episodes go on."""
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
            from pgce.training import train_agent

            return train_agent(agent, after, metrics)


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
        """The columns "advantage", by GAE(λ) or n steps, "return", "value", and the actor's cross-entropy."""
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

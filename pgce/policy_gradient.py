"""What policy-gradient agents share: their settings, the loop of a run, and its evaluations."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from pgce import envs
from pgce.envs.vectorize import Vectorization
from pgce.run import Learner, Run, cpu_threads

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    from numpy.typing import NDArray
    from torch import nn

    from pgce.heads import PolicyHead
    from pgce.networks import ActorCritic
    from pgce.rollout import Rollout
    from pgce.trainer import Batch, Report, Term

__all__ = ["Agent"]

Envs = VectorEnv[Any, Any, Any]


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
    norm_adv: bool = True
    """Divide the weights by their standard deviation, once a rollout."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus."""
    vf_coef: float = 0.5
    """Coefficient of the value term."""
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

    def terms(self, head: PolicyHead) -> dict[str, Term]:
        """The objective: term "policy", and what else the learner minimises."""
        raise NotImplementedError

    def prepare(self, rollout: Rollout, model: ActorCritic) -> Batch:
        """The rollout as a batch, with the columns that the terms read."""
        raise NotImplementedError

    def batches(self, batch: Batch) -> Iterable[Batch]:
        """The steps of one round; one step on the whole batch unless the learner says otherwise."""
        return [batch]

    def train(self, env_id: str | None = None, total_timesteps: int | None = None) -> Run:
        """Train with these settings.

        Args:
            env_id: replaces the setting of that name.
            total_timesteps: likewise, in environment steps.

        Returns:
            The run: its folder, result and trained model.
        """
        changes = {"env_id": env_id, "total_timesteps": total_timesteps}
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        with cpu_threads(self.threads):
            return _train_agent(dataclasses.replace(self, **given) if given else self)


def _train_agent(agent: Agent) -> Run:
    """Check the settings and open the environments, which are closed whatever happens."""
    agent.at_least_one("total_timesteps", "num_envs", "num_steps", "eval_freq", "eval_episodes")
    if not 0 <= agent.gamma <= 1:
        raise ValueError(f"gamma lies in [0, 1]: gamma is {agent.gamma}")
    eval_id, many = agent.eval_env_id or agent.env_id, agent.eval_episodes
    options: dict[str, Any] = {"vectorization": agent.vectorization, "allow_import": agent.allow_import}
    with closing(envs.make(agent.env_id, agent.num_envs, **options)) as train_envs:
        if isinstance(train_envs, (SyncVectorEnv, AsyncVectorEnv)):
            many = min(many, agent.num_envs)  # only a native one steps any number at once
        with closing(envs.make(eval_id, many, **options)) as eval_envs:
            return _learn(agent, train_envs, eval_envs)


def _learn(agent: Agent, train_envs: Envs, eval_envs: Envs) -> Run:
    """The run that all agents share: rollouts in, steps, evaluations, a result out."""
    import torch

    from pgce import metrics
    from pgce.optimizer import resolve_device
    from pgce.rollout import Collector
    from pgce.spaces import actions
    from pgce.trainer import Trainer, train

    device = resolve_device(agent.device)
    seeds = np.random.SeedSequence(agent.seed).generate_state(4).tolist()
    terms = agent.terms(actions(train_envs.single_action_space).head)
    torch.manual_seed(seeds[0])
    model = _network(agent, train_envs, any(t.output == "value" for t in terms.values())).to(device)
    collector = Collector(
        train_envs,
        model.policy,
        agent.num_steps,
        seed=seeds[1],
        generator=torch.Generator(device).manual_seed(seeds[2]),
        device=device,
    )
    trainer = Trainer(model, terms, agent.build_optimizer(model))
    evaluation = _Evaluation(agent, eval_envs, model.policy, seeds[3], device)

    run = Run(agent, agent.env_id, ["eval/mean_reward", "rollout/ep_rew_mean"])
    ends, goal = "at the end of the budget", evaluation.threshold
    if goal is not None:
        ends = f"when {agent.eval_episodes} evaluation episodes average {goal:g}, twice in a row"
    run.say(
        learner=f"{agent.learner} on {agent.env_id}, seed {agent.seed}, {device}",
        minimises=" + ".join(f"{t.coefficient:g} · mean(w · H) of {n}" for n, t in terms.items()),
        collects=f"{agent.num_envs} environments ({collector.mode.name}) × {agent.num_steps} steps, "
        f"{agent.total_timesteps:,} steps at most",
        stops=ends,
        folder=str(run.path),
    )
    steps, stopped = 0, "budget"
    recent: deque[tuple[float, int]] = deque(maxlen=100)  # return and length of the last episodes

    def rounds() -> Iterator[Iterable[Batch]]:
        nonlocal steps
        while steps == 0 or steps + agent.num_envs * agent.num_steps <= agent.total_timesteps:
            trainer.optimizer.progress = steps / agent.total_timesteps
            rollout = collector.collect()
            steps += rollout.steps
            recent.extend(zip(rollout.episode_return, rollout.episode_length, strict=True))
            yield agent.batches(agent.prepare(rollout, model))

    def after(n: int, reports: dict[str, Report]) -> bool:
        nonlocal stopped
        values = {
            **metrics.summary(reports, terms),
            "train/learning_rate": trainer.optimizer.learning_rate,
            "train/grad_norm": trainer.optimizer.grad_norm,
            "time/fps": steps / run.seconds,
            "time/epoch": n + 1,
        }
        if recent:
            values["rollout/ep_rew_mean"], values["rollout/ep_len_mean"] = np.mean(recent, 0).tolist()
        run.logger.scalars(steps, values)
        run.bar.update(steps, f"return {values.get('rollout/ep_rew_mean', math.nan):.1f}")
        if steps - evaluation.steps >= agent.eval_freq:
            run.logger.distributions(steps, next(iter(reports.values())))
            if evaluation.solved(run, steps):
                stopped = "threshold"
        if run.interrupted:
            stopped = "interrupt"
        return stopped != "budget"

    with run.logger, run.training(agent.total_timesteps, "steps"):
        train(trainer, rounds(), after=after)
        if stopped == "budget" and evaluation.steps < steps:
            evaluation.solved(run, steps)
    result = {"env_id": agent.env_id, "steps": steps, "stopped": stopped, **evaluation.result()}
    summary = f"stopped ({stopped}) after {steps:,} steps and {run.seconds:.1f} s of training"
    if evaluation.returns is not None:
        score = f"{result['eval_mean']:.1f} ± {result['eval_std']:.1f}"
        summary = f"mean return {score} over {result['eval_episodes']} evaluation episodes; {summary}"
    run.finish(model, result, summary)
    return run


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


def _network(agent: Agent, envs: Envs, critic: bool) -> ActorCritic:
    """Policy and, for a critic, value: perceptrons apart from each other."""
    from pgce.heads import Gaussian
    from pgce.networks import ActorCritic, Value, WithScale, mlp
    from pgce.spaces import actions, observations

    features = observations(envs.single_observation_space).size
    action = actions(envs.single_action_space)
    policy: nn.Module = mlp(features, action.size, agent.hidden_sizes, agent.activation, 0.01)
    if isinstance(action.head, Gaussian):
        policy = WithScale(policy, action.size)
    if not critic:
        return ActorCritic(policy)
    # The standard deviation of a discounted sum of independent rewards of variance 1.
    unit = (1 - min(agent.gamma, 0.9999) ** 2) ** -0.5
    return ActorCritic(policy, Value(mlp(features, 1, agent.hidden_sizes, agent.activation, 1.0), unit))

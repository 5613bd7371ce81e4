"""One run of a learner: its settings, its folder under runs/, its loop, and the result that it ends with."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from pgce import envs
from pgce.choices import Activation, OptimizerName, Schedule
from pgce.envs.vectorize import Vectorization

if TYPE_CHECKING:  # torch costs two seconds, which `--help` need not pay
    from numpy.typing import NDArray
    from torch import nn

    from pgce.heads import Head
    from pgce.networks import ActorCritic
    from pgce.optimizer import Optimizer
    from pgce.rollout import Rollout
    from pgce.trainer import Batch, Report, Term

__all__ = ["Agent", "Learner", "Run", "cpu_threads", "main", "train_or_exit"]

Envs = VectorEnv[Any, Any, Any]


@dataclass(kw_only=True)
class Learner:
    """Settings that every learner has. Each field is a flag of the script and an argument in Python.

    Example:
        >>> from pgce.agents import Supervised
        >>> Supervised(seed=3, hidden_sizes=(32, 32), track=False).command()
        'python -m pgce.agents.supervised --seed 3 --hidden-sizes 32 32 --no-track'
    """

    seed: int = 1
    """Seed of the network, the environments or the order of examples, and the actions."""
    device: str = "auto"
    """Where to compute: auto (the first at hand of cuda, mps, cpu), or one of them."""
    threads: int = 1
    """CPU threads of torch. One is fastest for small networks, and a seed then gives the same run on machines
    with more cores."""
    optimizer: OptimizerName = "adam"
    """Optimizer by name."""
    learning_rate: float = 1e-3
    """Step size."""
    lr_schedule: Schedule = "constant"
    """How the learning rate falls over the run."""
    warmup_steps: int = 0
    """Updates over which the learning rate climbs to its full value."""
    max_grad_norm: float | None = None
    """Limit of the gradient's Euclidean norm."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    activation: Activation = "tanh"
    """After each hidden layer."""
    runs_dir: str = "runs"
    """Folder in which the run gets a folder of its own."""
    track: bool = True
    """Write TensorBoard events."""
    quiet: bool = False
    """Print nothing but errors."""
    json: bool = False
    """Print the result as one JSON object, on the last line of standard output."""

    @property
    def learner(self) -> str:
        """Name of the learner, as its file is called."""
        return type(self).__name__.lower()

    def command(self) -> str:
        """The command line that repeats this run: every setting that is not the default."""
        words = [f"python -m pgce.agents.{self.learner}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{flag}", *map(str, values)]
        return " ".join(words)

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """What the optimizer stack is made with, as `pgce.fit` names it."""
        return {
            "optimizer": self.optimizer,
            "learning_rate": self.learning_rate,
            "schedule": self.lr_schedule,
            "warmup_steps": self.warmup_steps,
            "max_grad_norm": self.max_grad_norm,
        }

    def build_optimizer(self, model: nn.Module) -> Optimizer:
        """The optimizer stack of these settings over the model's parameters."""
        from pgce.optimizer import Optimizer

        settings = self.optimizer_settings
        return Optimizer(model.parameters(), settings.pop("optimizer"), **settings)

    def at_least_one(self, *names: str) -> None:
        """Refuse settings of these names that are below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1: it is {getattr(self, name)}")


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
    """Permit ids of the form module:Env-v0, whose module Gymnasium imports and so runs."""
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

    def terms(self, head: Head) -> dict[str, Term]:
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


class Run:
    """One run of a learner: folder, logger, console, clock. Ends with a result.

    Attributes:
        path: the folder runs/{subject}__{learner}__{seed}__{time}.
        result: what came of it, the same as `--json` prints; empty until the end.
        model: the trained model.
    """

    def __init__(self, settings: Learner, subject: str, metrics: list[str]) -> None:
        import torch

        from pgce.logger import Logger

        self.settings = settings
        self.result: dict[str, Any] = {}
        self.model: Any = None
        self._seconds = 0.0
        self._since: float | None = None
        self._interrupt = threading.Event()
        name = f"{subject.replace('/', '-')}__{settings.learner}__{settings.seed}"
        self.path = _new_folder(Path(settings.runs_dir), name)
        config = dataclasses.asdict(settings)
        versions = {"python": sys.version.split()[0], "torch": str(torch.__version__)}
        versions |= {package: version(package) for package in ("numpy", "gymnasium", "tensorboard")}
        self.write("config.json", config)
        self.write("versions.json", versions)
        (self.path / "command.txt").write_text(settings.command() + "\n")
        shown = {key: value for key, value in config.items() if key not in ("json", "quiet", "runs_dir")}
        self.logger = Logger(self.path if settings.track else None, shown, metrics)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the run's folder."""
        from pgce.checkpoint import write_file

        write_file(self.path / name, (json.dumps(content, indent=2) + "\n").encode())

    def say(self, **facts: str) -> None:
        """Print facts, a line each, unless the run is quiet."""
        if not self.settings.quiet:
            for name, fact in facts.items():
                print(f"{name:>9}  {fact}", flush=True)

    @property
    def seconds(self) -> float:
        """Time spent training so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)

    @contextmanager
    def training(self, total: int, unit: str) -> Iterator[None]:
        """Count the time inside as training, show progress, and let Ctrl-C end it cleanly.

        Args:
            total: where the bar ends.
            unit: what it counts.
        """
        from pgce.logger import Bar

        with Bar(total, unit, quiet=self.settings.quiet) as self.bar, _interruptible(self._interrupt):
            self._since = time.perf_counter()
            try:
                yield
            finally:
                self._seconds, self._since = self.seconds, None

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C was pressed while training."""
        return self._interrupt.is_set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time inside `training` out: evaluation, say."""
        self._seconds, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def finish(self, model: Any, result: Mapping[str, Any], summary: str) -> None:
        """Save the model and the result, and tell where to look."""
        from pgce.checkpoint import save_tensors

        self.model = model
        self.logger.close()
        save_tensors(self.path / "model.safetensors", model.state_dict())
        self.result = {
            "run": str(self.path),
            "learner": self.settings.learner,
            "seed": self.settings.seed,
            **result,
            "train_seconds": round(self.seconds, 3),
            "dropped_events": self.logger.dropped,
        }
        self.write("result.json", self.result)
        self.say(result=summary, model=str(self.path / "model.safetensors"))
        if self.settings.track:
            self.say(dashboard=f"{_tensorboard()} --logdir {self.path}")
        if self.settings.json:
            print(json.dumps(self.result), flush=True)


def main(learner: type[Any], description: str | None) -> None:
    """The command line of a learner: its settings as flags, then its run.

    Exits with 0; 130 after Ctrl-C; 2 for a bad setting or environment, 70 for training that stopped being
    finite, 74 for an input/output error.
    """
    train_or_exit(tyro.cli(learner, description=description))


def train_or_exit(settings: Any) -> None:
    """Train, and turn the outcome into the process's exit code."""
    try:
        run = settings.train()
    except (ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(70)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(74)
    if run.result["stopped"] == "interrupt":
        sys.exit(130)


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Let torch use so many CPU threads inside."""
    import torch

    if number < 1:
        raise ValueError(f"there is at least one thread: threads is {number}")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _interruptible(event: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set the event, so that a run can end cleanly; the second raises as usual."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def handle(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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


def _new_folder(root: Path, name: str) -> Path:
    """A folder that did not exist: two runs that start in the same second get two."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{n}" for n in range(2, 1000))):
        path = root / f"{name}__{stamp}{suffix}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise FileExistsError(f"1000 runs began this second in {root}")


def _tensorboard() -> str:
    """The command to type: the one on the path, or the one of this environment."""
    beside = Path(sys.executable).with_name("tensorboard")
    found = shutil.which("tensorboard")
    if found is not None and Path(found) == beside:
        return "tensorboard"
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m tensorboard.main"

"""An agent as its run left it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from torch import nn

from pgce import envs
from pgce.checkpoint import check_like, load_model
from pgce.demonstrations import Recorder
from pgce.envs.vector_base import at_least
from pgce.envs.vectorize import check_same_spaces
from pgce.exporting import export
from pgce.optimizer import resolve_device
from pgce.policies import actor_critic
from pgce.policy_gradient import Agent
from pgce.rollout import Collector, Player, evaluate
from pgce.spaces import actions

__all__ = ["TrainedAgent"]


class TrainedAgent(Player):
    """An agent as its run left it, or as its last checkpoint has it: what acts, and how well.

    Args:
        folder: of the run.
        device: where the policy computes.
        agent: its class, where that makes networks of its own (`build_model`).
        allow_import: permit an environment's id of the form `module:Env-v0`, for which the module is imported
            and so run. What the run was allowed does not count: its files may be another's.

    Attributes:
        model: the networks.
        env_id: what it was trained on.
        env_kwargs: the arguments that this was made with.

    Raises:
        FileNotFoundError: the folder holds no trained agent.
        ValueError: its settings or, as a CheckpointError, its weights are damaged or do not fit, its
            environment cannot be made, or its networks are its own and the class is not given.

    Example:
        >>> import tempfile, gymnasium, pgce
        >>> from pgce.trained import TrainedAgent
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.PPO.preset("CartPole-v1", quiet=True, runs_dir=folder).train()
        ...     agent = TrainedAgent(run.path)
        >>> observation, info = gymnasium.make("CartPole-v1").reset(seed=0)
        >>> bool(agent.act(observation) in (0, 1))
        True
        >>> bool(agent.evaluate(episodes=10).mean() > 400)
        True
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str = "cpu",
        agent: type[Agent] | None = None,
        allow_import: bool = False,
    ) -> None:
        path = Path(folder)
        try:
            config = json.loads((path / "config.json").read_bytes())
            if config.get("own_model") and agent is None:
                raise ValueError(
                    "an agent with networks of its own is loaded with its class, pgce.load(run, agent=...): "
                    f"{path} is of {config.get('class')}"
                )
            kind = agent or Agent
            known = {field.name for field in dataclasses.fields(kind)}
            self._settings = kind(**{name: value for name, value in config.items() if name in known})
            self._settings.check_env_kwargs()  # which permit nothing
        except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path / 'config.json'} is damaged: {error!r}") from error
        tensors = load_model(path)
        self.env_id, self.env_kwargs = self._settings.env_id, self._settings.env_kwargs
        self.device = resolve_device(device)
        self._options: dict[str, Any] = {**self.env_kwargs, "allow_import": allow_import}
        if self._settings.vectorization == "envpool":  # whose environments Gymnasium may not know
            self._options["vectorization"] = "envpool"
        with closing(envs.make(self.env_id, 1, **self._options)) as one:
            if agent is None:
                critic = any(name.startswith("critic.") for name in tensors)
                self.model = actor_critic(self._settings, one, critic=critic)
            else:
                self.model = self._settings.build_model(one)
            how: dict[str, Any] = {"device": self.device, "continuous": self._settings.continuous}
            super().__init__(Collector(one, self.model.policy, 1, seed=0, **how))
        check_like(f"{path}'s network", tensors, self.model.state_dict())
        self.model.load_state_dict(tensors)
        self.model.to(self.device).eval()

    def evaluate(
        self, episodes: int = 100, *, env_id: str | None = None, seed: int = 0, greedy: bool = True
    ) -> NDArray[np.float64]:
        """Undiscounted returns (E,) of fresh episodes, on its own environment or another.

        Raises:
            ValueError: less than one episode, or an environment with other spaces.
        """
        with closing(envs.make(env_id or self.env_id, _at_once(episodes), **self._options)) as many:
            check_same_spaces(self._collector.envs, many)
            return self._play(many, episodes, seed, greedy)

    def policy_for(self, learner: Agent) -> nn.Module:
        """Its policy, to act in another agent's environments.

        Raises:
            ValueError: they have other spaces, or that agent's actions another distribution.
        """
        space, its = self._collector.envs.single_action_space, self._settings.continuous
        with closing(envs.make(learner.env_id, 1, **learner.env_options)) as many:
            check_same_spaces(self._collector.envs, many)
        if actions(space, its).head != actions(space, learner.continuous).head:
            raise ValueError(
                f"an expert's actions are of its own distribution, {its}: {learner.continuous} is asked for"
            )
        policy: nn.Module = self.model.policy
        return policy

    def record(
        self, path: str | Path, episodes: int = 100, *, seed: int = 0, greedy: bool = True
    ) -> NDArray[np.float64]:
        """Play fresh episodes, and write them as an .npz file that `pgce.agents.BC(data=path)` learns from.

        It has a row a step, the episodes one after the other: "observations", "actions", "rewards",
        "terminations", "truncations" and, where there is one, "action_mask", as
        `pgce.demonstrations.Recorder.arrays` has them.

        Returns:
            The undiscounted returns (E,), in the order of the file's episodes.

        Raises:
            ValueError: the path does not end in .npz, or less than one episode.

        Example:
            >>> import tempfile, numpy as np, pgce
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     run = pgce.agents.Reinforce(quiet=True, runs_dir=folder).train(total_timesteps=2_048)
            ...     returns = pgce.load(run.path).record(folder + "/played.npz", episodes=3)
            ...     with np.load(folder + "/played.npz") as file:
            ...         rewards, ends = file["rewards"], file["terminations"] | file["truncations"]
            >>> begins = np.append(0, ends.nonzero()[0][:-1] + 1)  # each episode's first row
            >>> bool((np.add.reduceat(rewards, begins) == returns).all())
            True
        """
        if Path(path).suffix != ".npz":
            raise ValueError(f"a file of demonstrations ends in .npz: it is {str(path)!r}")
        with closing(envs.make(self.env_id, _at_once(episodes), **self._options)) as many:
            recorder = Recorder(many, episodes)
            returns = self._play(recorder, episodes, seed, greedy)
        recorder.save(path)
        return returns

    def export(self, path: str | Path) -> Path:
        """Write the policy, its normaliser included, as a program that needs no pgce.

        It takes N >= 1 observations, float32, as `pgce.spaces.observations` encodes them: (N, D), Discrete
        parts one-hot and everything flattened in the space's order, then images (C, H, W) in [0, 1], and last
        the mask of actions (K zeros and ones) where there is one. It gives "logits", which the policy's
        head reads, and "action", the most probable: Discrete and MultiDiscrete count from 0, a Box is flat
        and not yet clipped. With a memory it also takes and gives that: see `pgce.exporting.export`.

        Args:
            path: ends in .pt2, read by `torch.export.load(path).module()`, or in .onnx.

        Raises:
            ValueError: the path ends otherwise.
            ImportError: an .onnx file, and the packages of the extra "export" are not installed.
        """
        envs = self._collector.envs
        head = actions(envs.single_action_space, self._settings.continuous).head
        example = self._collector.encode(batch_space(envs.single_observation_space, 2).sample())
        return export(self.model.policy, head, example, path)

    def _play(
        self, many: VectorEnv[Any, Any, Any], episodes: int, seed: int, greedy: bool
    ) -> NDArray[np.float64]:
        generator = torch.Generator(self.device).manual_seed(seed)
        options: dict[str, Any] = {"generator": generator, "device": self.device, "greedy": greedy}
        options["continuous"] = self._settings.continuous
        return evaluate(many, self.model.policy, episodes, seed=seed, **options)[0]


def _at_once(episodes: int) -> int:
    """How many environments play so many episodes."""
    return min(at_least(1, "episodes", episodes), 16)

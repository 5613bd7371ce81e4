"""How well an agent does while it is trained: episodes of its policy, and films of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import closing
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pgce import envs, films, processes
from pgce.envs.state import get_state, set_state
from pgce.networks import evaluating
from pgce.policy_gradient import Agent, Envs
from pgce.rollout import Collector, Player, evaluate
from pgce.run import Run

__all__ = ["Evaluation"]

_PATIENCE = 5.0  # seconds that an evaluation has after a signal to stop


class Evaluation:
    """Fresh episodes on environments of their own, on new seeds every time.

    Args:
        agent: its settings say how many, and how the policy acts.
        eval_envs: that nothing else uses.
        policy: what is evaluated.
        seed: of all evaluations.
        device: where the policy computes.

    Attributes:
        threshold: the mean return that solves the environment; None where there is none, or none is wanted.
        steps: when the last evaluation was made.
        number: how many there were before the end.
        returns: of the last one; None where none was made.
    """

    def __init__(
        self, agent: Agent, eval_envs: Envs, policy: nn.Module, seed: int, device: torch.device
    ) -> None:
        spec = eval_envs.spec
        self.threshold = spec.reward_threshold if spec is not None and agent.stop_at_threshold else None
        self.steps, self.number = 0, 0
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
        every, spawned = self._agent.eval_episodes, self._seeds.n_children_spawned
        with run.paused():
            returns, lengths = self._evaluate(run)
            if len(returns) == every and returns.mean() >= goal:
                returns, lengths = self._evaluate(run)
        if len(returns) < every:
            self._seeds = np.random.SeedSequence(self._seeds.entropy, n_children_spawned=spawned)
            return False
        self.steps, self.returns = steps, returns
        scores = {"eval/mean_reward": float(returns.mean()), "eval/mean_ep_length": float(lengths.mean())}
        run.logger.scalars(steps, scores)
        return scores["eval/mean_reward"] >= goal

    def film(self, run: Run, steps: int) -> None:
        """Film an episode, if that is wanted; training time stands still."""
        agent = self._agent
        if not agent.capture_video or processes.rank() > 0 or steps == self._filmed:
            return
        with run.paused():
            place, how = self._device, agent.continuous
            with closing(envs.make(agent.env_id, 1, **agent.env_options)) as one:
                player = Player(Collector(one, self._policy, 1, seed=0, device=place, continuous=how))
                with evaluating(self._policy):
                    episode = films.play(player, agent.env_id, agent.env_kwargs, seed=agent.seed, greedy=True)
                    frames: Iterable[Any] = (frame for frame, _, _ in episode if frame is not None)
                    file = run.path / "videos" / f"{steps}.gif"
                    if find_spec("imageio_ffmpeg") is not None:
                        frames = [*frames]
                        films.save(file.with_suffix(".mp4"), frames)
                    films.save(file, frames)
            run.logger.film(steps, "eval/episode", file)
        self._filmed = steps

    def _evaluate(self, run: Run) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        ranks, rank = processes.size(), processes.rank()  # each plays its share of the episodes
        seeds = self._seeds.spawn(1)[0].generate_state(2 * ranks).reshape(ranks, 2)
        env_seed, action_seed = seeds[rank].tolist()
        with evaluating(self._policy):
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

    def played(self) -> dict[str, Any] | None:
        """The environments' state, of which some outlives a reset; None where there is none to be had."""
        if self.returns is None:
            return None
        try:
            return get_state(self._envs)
        except ValueError:  # they may be others than those that are trained in
            return None

    def restore(self, played: Mapping[str, Any]) -> None:
        """Go on in environments that were played in."""
        try:
            envs.reset(self._envs, 0)  # they are to be what the others were, then
            set_state(self._envs, played)
        except ValueError as error:
            warnings.warn(f"evaluations begin in new environments: {error}", RuntimeWarning, stacklevel=2)

    def result(self) -> dict[str, Any]:
        """The last evaluation; nothing where none was made."""
        if self.returns is None:
            return {"eval_mean": None, "eval_std": None, "eval_episodes": 0}
        return {
            "eval_mean": float(self.returns.mean()),
            "eval_std": float(self.returns.std()),
            "eval_episodes": len(self.returns),
        }

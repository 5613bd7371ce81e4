"""What all environments vectorised in NumPy share: time limit, autoreset, masks, checks; and N = 1."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

__all__ = ["NumpyVectorEnv", "SingleEnv", "Step"]

Step = tuple[Any, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]
"""Observation (N, ...), reward (N,), terminated (N,), truncated (N,), info."""


class NumpyVectorEnv(VectorEnv[Any, NDArray[Any], Any]):
    """N environments of which a subclass says how all begin, move and look, one array operation for all.

    A subclass writes `_begin`, `_advance`, `_observe` and, where there is any, `_info`; the rest is here, as
    Gymnasium's SyncVectorEnv and TimeLimit have it:

    - NEXT_STEP: the step after an end ignores that environment's action, and begins its next episode.
    - SAME_STEP: the step that ends an episode also begins the next. `info["final_obs"][i]` is the last
      observation where `info["_final_obs"]` (N,), and `info["final_info"]` what came with it.
    - DISABLED: `reset(options={"reset_mask": mask})` begins those of the mask (N,).
    - Every info has a mask `_key` (N,) beside it, which says whose it is.

    One generator, `np_random`, draws for all. `reset` also takes N seeds: then each environment begins where
    its own seed says, so that two of the same seed begin alike.

    Args:
        num_envs: N.
        autoreset_mode: a mode or its value.
        max_episode_steps: an episode is truncated after so many, also where the last one terminates it;
            None or −1, as in `gymnasium.make`, is never.
        observation_space: of one environment.
        action_space: of one environment: Discrete from 0, or Box.

    Raises:
        ValueError: fewer than one environment, an unknown mode or no positive limit; actions that are not
            one an environment, of the space's kind and range (a Box's bounds are the environment's own
            matter); a wrong reset mask or option; a step before a reset.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Discrete
        >>> from pgce.envs.vector_base import NumpyVectorEnv
        >>> class Count(NumpyVectorEnv):
        ...     def __init__(self, num_envs):
        ...         super().__init__(num_envs, "NextStep", 3, Discrete(9), Discrete(2))
        ...         self._count = np.zeros(num_envs, np.int64)
        ...
        ...     def _begin(self, rows, options):
        ...         self._count[rows] = 0
        ...
        ...     def _advance(self, actions):
        ...         self._count += actions
        ...         return self._count.astype(float), self._count == 2
        ...
        ...     def _observe(self):
        ...         return self._count.copy()
        >>> envs = Count(2)
        >>> observation, info = envs.reset(seed=0)
        >>> [envs.step(np.array([0, 1]))[0].tolist() for _ in range(4)]
        [[0, 1], [0, 2], [0, 0], [0, 1]]
    """

    reset_options: ClassVar[frozenset[str]] = frozenset()
    """What `_begin` reads from the options of `reset`."""

    def __init__(
        self,
        num_envs: int,
        autoreset_mode: AutoresetMode | str,
        max_episode_steps: int | None,
        observation_space: gym.Space[Any],
        action_space: Discrete | Box,
    ) -> None:
        num_envs = at_least(1, "num_envs", num_envs)
        self._limit: int | None = None
        if max_episode_steps is not None and max_episode_steps != -1:
            self._limit = at_least(1, "max_episode_steps (None or -1 is no limit)", max_episode_steps)
        self.num_envs = num_envs
        self._mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self._mode}
        self.single_observation_space = observation_space
        self.single_action_space = action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._choices = np.uint64(action_space.n if isinstance(action_space, Discrete) else 0)
        self._elapsed = np.zeros(num_envs, np.int64)
        self._over = np.zeros(num_envs, np.bool_)  # whose episode ended, and the next has not begun
        self._any_over = False
        self._has_begun = False

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        """Draw the first state of new episodes in the environments `rows`."""
        raise NotImplementedError

    def _advance(self, actions: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Move all environments; return new arrays: reward (N,) and terminated (N,).

        Environments that are over move too: what becomes of them is overwritten by `_begin`.
        """
        raise NotImplementedError

    def _observe(self) -> Any:
        """The observations (N, ...) of the present states, in arrays that nothing else holds."""
        raise NotImplementedError

    def _info(self) -> dict[str, NDArray[Any]]:
        """Info (N, ...) on the present states, in arrays that nothing else holds."""
        return {}

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all environments, or in those of `options["reset_mask"]` (N,)."""
        chosen = dict(options or {})
        mask = np.asarray(chosen.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        # Integers would be taken as indices.
        if mask.dtype != np.bool_ or mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(
                f"a reset mask is boolean, of shape ({self.num_envs},), and True somewhere: it is {mask!r}"
            )
        if unknown := chosen.keys() - self.reset_options:
            known = ", ".join(sorted({"reset_mask", *self.reset_options}))
            raise ValueError(f"options of reset are {known}: there is no {', '.join(sorted(unknown))}")
        if not (self._has_begun or mask.all()):
            raise ValueError(f"the first reset is of all environments: its reset mask is {mask!r}")
        if seed is None or isinstance(seed, (int, np.integer)):
            super().reset(seed=None if seed is None else int(seed))
            self._restart(mask.nonzero()[0], chosen)
        else:
            self._restart_each(mask.nonzero()[0], chosen, [int(one) for one in seed])
        self._over[mask] = False
        self._any_over = bool(self._over.any())
        self._has_begun = True
        return self._observe(), self._with_masks(self._info(), mask)

    def step(self, actions: NDArray[Any]) -> Step:
        """One step of each environment, or the reset that its autoreset mode puts in its place."""
        if not self._has_begun:
            raise ValueError(f"environments are reset before their first step: {self} have not been")
        if self._any_over and self._mode == AutoresetMode.DISABLED:
            raise ValueError(
                f"a finished environment is reset before its next step: {self._over.nonzero()[0]} are not"
            )
        reward, terminated = self._advance(self._checked(actions))
        self._elapsed += 1
        if self._limit is None:
            truncated = np.zeros(self.num_envs, np.bool_)
        else:
            truncated = self._elapsed >= self._limit
        if self._any_over:  # NEXT_STEP
            rows = self._over.nonzero()[0]
            self._restart(rows, {})
            reward[rows], terminated[rows], truncated[rows] = 0.0, False, False
        done = terminated | truncated
        any_done = bool(np.count_nonzero(done))  # sooner told than any()
        info: dict[str, Any] = {}
        if any_done and self._mode == AutoresetMode.SAME_STEP:
            info["final_obs"], info["_final_obs"] = self._each(self._observe(), done), done
            info["final_info"], info["_final_info"] = self._with_masks(self._info(), done), done.copy()
            self._restart(done.nonzero()[0], {})
        else:
            self._over, self._any_over = done, any_done
        if state := self._info():
            info |= self._with_masks(state, np.ones(self.num_envs, np.bool_))
        return self._observe(), reward, terminated, truncated, info

    def _restart(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        self._begin(rows, options)
        self._elapsed[rows] = 0

    def _restart_each(self, rows: NDArray[np.int64], options: dict[str, Any], seeds: list[int]) -> None:
        if len(seeds) != self.num_envs or min(seeds) < 0:
            raise ValueError(
                f"a seed is an integer of at least 0, for all or for each of {self.num_envs} environments: "
                f"there are {len(seeds)}, from {min(seeds, default=None)}"
            )
        for row in rows:
            self.np_random, _ = seeding.np_random(seeds[row])
            self._restart(row[None], options)
        self.np_random = np.random.default_rng(seeds)  # for all that follows

    def _with_masks(self, info: dict[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, Any]:
        """The info of the environments in the mask, 0 elsewhere, and the mask beside each."""
        masked: dict[str, Any] = {}
        every = not info or bool(mask.all())
        for key, value in info.items():
            if not every:
                value[~mask] = 0
            masked[key], masked[f"_{key}"] = value, mask.copy()
        return masked

    def _each(self, observation: Any, mask: NDArray[np.bool_]) -> NDArray[Any]:
        """`observation` so that [i] is that of environment i, if it is in the mask."""
        if isinstance(observation, np.ndarray):
            return observation
        rows = np.full(self.num_envs, None, dtype=object)
        columns = zip(*(column[mask].tolist() for column in observation), strict=True)
        rows[mask] = np.fromiter(columns, dtype=object)
        return rows

    def _checked(self, actions: NDArray[Any]) -> NDArray[Any]:
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:  # (N, 1) would be broadcast to (N, N)
            raise ValueError(f"one action an environment: {actions.shape} is not {self.action_space.shape}")
        space = self.single_action_space
        if isinstance(space, Discrete):
            if actions.dtype.kind not in "iu":
                raise ValueError(f"actions in {space} are integers: their dtype is {actions.dtype}")
            actions = actions.astype(np.int64, copy=False)
            bad = actions.view(np.uint64) >= self._choices  # unsigned, what is below 0 is above every n
            if not np.count_nonzero(bad):
                return actions
        else:
            if actions.dtype.kind not in "fiu":
                raise ValueError(f"actions in {space} are real numbers: their dtype is {actions.dtype}")
            finite = np.isfinite(actions)
            if np.count_nonzero(finite) == finite.size:
                return actions
            bad = ~finite.reshape(self.num_envs, -1).all(1)
        wrong = (bad & ~self._over).nonzero()[0]
        if wrong.size:
            few = wrong[:8]
            more = f", and {wrong.size - 8} others likewise" if wrong.size > 8 else ""
            raise ValueError(
                f"actions are in {space}: environments {few} got {', '.join(map(str, actions[few]))}{more}"
            )
        actions = actions.copy()
        actions[bad] = 0  # these are ignored, whatever they are
        return actions


class SingleEnv(gym.Env[Any, Any]):
    """One environment, made of its vector version with N = 1, so that its rules are written once.

    Args:
        kwargs: what the vector version takes.

    Raises:
        ValueError: as the vector version.

    Example:
        >>> from pgce.envs.probes import ActionProbe
        >>> env = ActionProbe()
        >>> observation, info = env.reset(seed=0)
        >>> env.step(int(observation[0] > 0))[1:4]
        (1.0, True, False)
    """

    metadata: dict[str, Any] = {"render_modes": []}
    vector_version: ClassVar[type[Any]]
    """Called with num_envs, autoreset_mode and the arguments."""

    def __init__(self, **kwargs: Any) -> None:
        self._vector: NumpyVectorEnv = self.vector_version(1, AutoresetMode.DISABLED, **kwargs)
        self.observation_space = self._vector.single_observation_space
        self.action_space = self._vector.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._vector.np_random = self.np_random
        observation, info = self._vector.reset(options=options)
        return observation[0], self._first(info)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step."""
        observation, reward, terminated, truncated, info = self._vector.step(np.asarray(action)[None])
        ends = bool(terminated[0]), bool(truncated[0])
        return observation[0], float(reward[0]), *ends, self._first(info)

    @staticmethod
    def _first(info: dict[str, Any]) -> dict[str, Any]:
        return {key: value[0] for key, value in info.items() if f"_{key}" in info}


def at_least(least: int, name: str, value: int) -> int:
    """The value of an argument, refused if it is no whole number, or less."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} is a whole number, at least {least}: it is {value!r}")
    return int(value)

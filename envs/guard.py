"""What a faulty environment gives is refused; one that fails is named, and may be replaced."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from pgce.envs.infos import together
from pgce.envs.soundness import Unsound, action_fault, look, sound_batch
from pgce.envs.state import _restore, get_state, set_state

__all__ = ["EnvironmentFault", "GuardedSyncVectorEnv"]

Make = Callable[[], gym.Env[Any, Any]]


class EnvironmentFault(RuntimeError):
    """An environment raised, hung, died, or gave what its spaces do not allow.

    Args:
        message: what happened, where.
        index: which environment.
        seed: of its last reset that had one; None is none.
        episode: its number since that reset, from 1.
        step: in the episode, from 1; 0 is its reset.
        trace: the environment's traceback, or the stack of its process; "" where there is none.

    Example:
        >>> from pgce.envs.guard import EnvironmentFault
        >>> fault = EnvironmentFault("environment 3 of CartPole-v1 raised", index=3)
        >>> fault.index, fault.step
        (3, 0)
    """

    def __init__(
        self,
        message: str,
        *,
        index: int | None = None,
        seed: int | None = None,
        episode: int = 0,
        step: int = 0,
        trace: str = "",
    ) -> None:
        super().__init__(message)
        self.index, self.seed, self.episode, self.step, self.trace = index, seed, episode, step, trace


class _Trace(Exception):
    """A traceback of another process, to be shown as the cause of an error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class _Guarded(VectorEnv[Any, Any, Any]):
    """What both kinds share: where each environment is, how often one may be replaced."""

    restarts = 0
    """How many sub-environments were replaced so far."""

    def _guard(self, name: str, restarts: int, mode: AutoresetMode) -> None:
        self._name, self._restarts_left, self._same = name, restarts, mode is AutoresetMode.SAME_STEP
        self._next = mode is AutoresetMode.NEXT_STEP
        self._fault: EnvironmentFault | None = None
        self._observations: Any
        n = self.num_envs
        self._autoreset_envs = np.zeros(n, np.bool_)  # whose next step only resets them
        self._seeds: list[int | None] = [None] * n
        self._fresh: dict[int, int] = {}  # seeds of the first reset of environments made anew
        self._episode, self._length = np.zeros(n, np.int64), np.zeros(n, np.int64)

    def _plan(self, seed: Any, options: Any) -> tuple[list[int | None], list[int], dict[str, Any] | None]:
        """A seed for each environment, which of them to reset, and the other options."""
        self._usable()
        n = self.num_envs
        if isinstance(seed, (int, np.integer)):
            seed = range(seed, seed + n)
        seeds: list[int | None] = [None] * n if seed is None else list(seed)
        if len(seeds) != n:
            raise ValueError(f"there is a seed for each of {n} environments: {len(seeds)} are given")
        mask = np.ones(n, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = options["reset_mask"]
            fits = isinstance(mask, np.ndarray) and mask.shape == (n,) and mask.dtype == np.bool_
            if not (fits and mask.any()):
                raise ValueError(f"reset_mask is an array of {n} bools, one true at least: it is {mask!r}")
            options = {name: value for name, value in options.items() if name != "reset_mask"}
        for i in mask.nonzero()[0]:
            given = seeds[i]
            if given is not None:
                self._seeds[i], self._episode[i] = int(given), 0
        self._episode[mask] += 1
        self._length[mask] = 0
        self._autoreset_envs[mask] = False
        return seeds, mask.nonzero()[0].tolist(), options

    def _begin_step(self, actions: Any) -> None:
        self._usable()
        problem = action_fault(self.single_action_space, actions, self.num_envs)
        if problem is not None:
            raise ValueError(f"actions of {self._name}: {problem}")
        again = self._autoreset_envs
        self._length += 1
        if True in again.tolist():
            if not self._next:
                raise ValueError(
                    f"environments {again.nonzero()[0].tolist()} of {self._name} ended: reset them"
                )
            self._length[again] = 0
            self._episode[again] += 1

    def _end_step(self, done: NDArray[np.bool_]) -> None:
        if self._same:
            self._length[done] = 0
            self._episode[done] += 1
        else:
            self._autoreset_envs = done

    def _usable(self) -> None:
        if self._fault is not None:
            old = self._fault
            raise EnvironmentFault(
                f"environments after a fault are of no more use: {old}", index=old.index
            ) from old

    def _failure(
        self, i: int, what: str, trace: str = "", cause: BaseException | None = None
    ) -> EnvironmentFault:
        """The fault of environment i, where it now is."""
        place: dict[str, Any] = {"seed": self._seeds[i]}
        place |= {"episode": int(self._episode[i]), "step": int(self._length[i])}
        told = ", ".join(f"{name} {value}" for name, value in place.items())
        fault = EnvironmentFault(
            f"environment {i} of {self._name} ({told}) {what}", index=i, trace=trace, **place
        )
        fault.__cause__ = cause or (_Trace(trace) if trace else None)
        return fault

    def _spend(self, fault: EnvironmentFault, counts: bool = True) -> int:
        """Take one of the restarts, if it counts, or raise the fault: the seed of the one made anew."""
        if counts:
            if not self._restarts_left:
                self._fault = fault
                raise fault
            self._restarts_left -= 1
            self.restarts += 1
            warnings.warn(
                f"{fault}: made anew, {self._restarts_left} restarts left", RuntimeWarning, stacklevel=2
            )
        before = self._seeds[fault.index or 0]
        drawn = np.random.SeedSequence(before, spawn_key=(self.restarts,)).generate_state(1)
        return int(drawn[0])

    def get_state(self) -> dict[str, Any]:
        """What `pgce.envs.state` saves: alike in one process and in several, which may take each other's.

        Raises:
            ValueError: an environment holds what is no plain data.
        """
        return {
            "environments": self._states(),
            "observations": deepcopy(self._observations),
            "ended": self._autoreset_envs.copy(),
            "seeds": list(self._seeds),
            "fresh": list(self._fresh.items()),
            "episode": self._episode.copy(),
            "length": self._length.copy(),
            "restarts": [self.restarts, self._restarts_left],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` told.

        Raises:
            ValueError: the state is of other environments.
        """
        if len(state["environments"]) != self.num_envs:
            raise ValueError(
                f"the state is of {len(state['environments'])} environments: there are {self.num_envs}"
            )
        self._set_states(state["environments"])
        self._observations = _restore(self._observations, state["observations"], "observations")
        self._autoreset_envs = np.array(state["ended"], np.bool_)
        self._seeds, self._fresh = list(state["seeds"]), dict(state["fresh"])
        self._episode, self._length = np.array(state["episode"]), np.array(state["length"])
        allowed = self.restarts + self._restarts_left  # which may be more than they were
        self.restarts = state["restarts"][0]
        self._restarts_left = max(0, allowed - self.restarts)

    def _states(self) -> list[Any]:
        raise NotImplementedError

    def _set_states(self, states: list[Any]) -> None:
        raise NotImplementedError

    def _cut(self, last: Any) -> tuple[Any, ...]:
        """The step of an environment that was replaced: it ends the episode where it was last seen."""
        return last, 0.0, False, True, {"env_restarted": True}

    def _final(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        """The info of an episode's end, in the step that also resets."""
        told = {key: info[key] for key in ("env_restarted",) if key in info}
        return {"final_obs": deepcopy(observation), "final_info": info, **told}  # a reset may reuse its array


class GuardedSyncVectorEnv(_Guarded, SyncVectorEnv):
    """Environments one after the other, whose faults are named and never learned from.

    Args:
        env_fns: what makes each.
        name: of the environment, for messages.
        autoreset_mode: when one that ended is reset.
        restarts: how many that fail are made anew, all together, each with its episode truncated and
            `info["env_restarted"]` set; the next fault is raised.

    Raises:
        EnvironmentFault: by reset and step, and by every use after that.

    Example:
        >>> import gymnasium as gym
        >>> from pgce.envs.guard import GuardedSyncVectorEnv
        >>> envs = GuardedSyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, "CartPole-v1")
        >>> envs.reset(seed=1)[0].shape
        (2, 4)
        >>> envs.step([0, 5])
        Traceback (most recent call last):
        ValueError: actions of CartPole-v1: they are in Discrete(2): [0, 5]
    """

    def __init__(
        self,
        env_fns: Sequence[Make],
        name: str,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        restarts: int = 0,
    ) -> None:
        made: list[gym.Env[Any, Any]] = []

        def kept(make: Make) -> gym.Env[Any, Any]:
            made.append(make())
            return made[-1]

        try:
            SyncVectorEnv.__init__(
                self, [partial(kept, make) for make in env_fns], autoreset_mode=autoreset_mode
            )
        except BaseException:
            for env in made:
                with suppress(Exception):
                    env.close()
            raise
        self.env_fns = env_fns
        self._guard(name, restarts, autoreset_mode)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes, in all environments or those of `options["reset_mask"]`."""
        seeds, chosen, options = self._plan(seed, options)
        observations = self._last()
        told: dict[int, dict[str, Any]] = {}
        for i in chosen:
            observations[i], told[i] = self._reset(i, seeds[i], options)
        return self._batched(observations), together(self.num_envs, told)

    def step(self, actions: Any) -> Any:
        """One step of each environment; of those to be reset, their reset."""
        self._begin_step(actions)
        observations: list[Any] = []
        rewards: list[Any] = []
        terminations: list[Any] = []
        truncations: list[Any] = []
        told: dict[int, dict[str, Any]] = {}
        same, space = self._same, self.single_observation_space
        reward: Any
        turns = zip(
            iterate(self.action_space, actions), self.envs, self._autoreset_envs.tolist(), strict=True
        )
        for i, (action, env, again) in enumerate(turns):
            if again:
                observation, info = self._reset(i)
                reward, terminated, truncated = 0.0, False, False
            else:
                try:
                    observation, reward, terminated, truncated, info = env.step(action)
                    if same and (terminated or truncated):
                        look(space, observation, reward, terminated, truncated)
                except (Exception, SystemExit) as error:
                    observation, reward, terminated, truncated, info = self._replaced(i, error)
                if same and (terminated or truncated):
                    reward = float(reward)  # as with observations: it may be an array
                    info = self._final(observation, info)
                    observation, more = self._reset(i)
                    info = more | info
            observations.append(observation)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
            if info:
                told[i] = info
        batch = sound_batch(space, observations, rewards, terminations, truncations)
        if batch is None:  # look closer
            for i, step in enumerate(zip(observations, rewards, terminations, truncations, strict=True)):
                try:
                    look(space, *step)
                except Unsound as error:
                    *found, info = self._replaced(i, error)
                    observations[i], rewards[i], terminations[i], truncations[i] = found
                    if self._same:
                        info = self._final(observations[i], info)
                        observations[i], _ = self._reset(i)
                    told[i] = {**told.get(i, {}), **info}
            batch = self._batched(observations)
        self._observations = batch
        ends = np.array([terminations, truncations], np.bool_)
        self._end_step(ends[0] | ends[1])
        return batch, np.array(rewards, np.float64), ends[0], ends[1], together(self.num_envs, told)

    def _batched(self, observations: list[Any]) -> Any:
        space = self.single_observation_space
        empty: Any = create_empty_array(space, self.num_envs)
        self._observations = concatenate(space, observations, empty)
        return self._observations

    def _last(self) -> list[Any]:
        return list(iterate(self.observation_space, self._observations))

    def _reset(self, i: int, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Reset one environment; one that fails is made anew, as long as it may."""
        while True:
            fresh = self._fresh.pop(i, None)
            seed = fresh if seed is None else seed
            try:
                observation, info = self.envs[i].reset(seed=seed, options=options)
                look(self.single_observation_space, observation)
            except (Exception, SystemExit) as error:
                self._replace(i, error)
                seed = None
            else:
                return observation, info

    def _replaced(self, i: int, error: BaseException) -> tuple[Any, ...]:
        last = self._last()[i]
        self._replace(i, error)
        return self._cut(last)

    def _replace(self, i: int, error: BaseException) -> None:
        """Make an environment anew, or raise its fault."""
        while True:
            seed = self._spend(self._failure(i, *_told(error), error))
            with suppress(Exception):
                self.envs[i].close()
            try:
                self.envs[i] = self.env_fns[i]()
            except Exception as again:
                error = again
            else:
                self._fresh[i] = seed
                return

    def _states(self) -> list[Any]:
        return [get_state(env) for env in self.envs]

    def _set_states(self, states: list[Any]) -> None:
        for env, state in zip(self.envs, states, strict=True):
            set_state(env, state)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments. Where that fails, what was learned in them is no worse for it."""
        for i, env in enumerate(getattr(self, "envs", ())):
            try:
                env.close()
            except Exception as error:
                if self._fault is None:
                    warnings.warn(
                        f"environment {i} of {self._name} cannot be closed: {type(error).__name__}: {error}",
                        RuntimeWarning,
                        stacklevel=2,
                    )


def _told(error: BaseException) -> tuple[str, str]:
    """What went wrong, in words, and the traceback."""
    if isinstance(error, Unsound):
        return f"gave {error}", ""
    return f"raised {type(error).__name__}: {error}", "".join(traceback.format_exception(error))

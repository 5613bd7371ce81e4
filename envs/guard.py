"""Vector environments that refuse what a faulty one gives, and end or replace one that hangs or dies."""

from __future__ import annotations

import ctypes
import faulthandler
import math
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    batch_space,
    concatenate,
    create_empty_array,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
    write_to_shared_memory,
)
from numpy.typing import NDArray

__all__ = ["EnvironmentFault", "GuardedAsyncVectorEnv", "GuardedSyncVectorEnv", "action_fault", "step_fault"]

Make = Callable[[], gym.Env[Any, Any]]

_LARGEST = float(np.finfo(np.float32).max)  # policies compute in float32
_NUMBERS = {int, float, *(np.dtype(kind).type for kind in "bhilqBHILQefd")}
_BOOLEANS = {bool, np.bool_}
_CLOSING = 3.0  # seconds that workers have to close their environments


class EnvironmentFault(RuntimeError):
    """An environment raised, hung, died, or gave what its spaces do not allow.

    Args:
        message: what happened, where.
        index: which environment.
        seed: of its last reset that had one; None is none.
        episode: the how manieth since that reset, from 1.
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


class _Unsound(Exception):
    """What an environment gave is refused."""


class _Trace(Exception):
    """A traceback of another process, to be shown as the cause of an error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def step_fault(space: Space[Any], observation: Any, *outcome: Any) -> str | None:
    """What is wrong with what one environment gave; None is nothing.

    An observation has the space's parts and shapes, and a dtype that casts into theirs within its kind
    (float64 to float32, integers to floats); it is finite in float32. A discrete one is in range.

    Args:
        space: of the observations.
        observation: of one environment.
        outcome: what else its step gave: reward, terminated, truncated. None of it after a reset.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Box
        >>> from pgce.envs.guard import step_fault
        >>> space = Box(-1, 1, (4,))
        >>> step_fault(space, np.zeros(1, np.float32))
        'an observation of shape (1,): (4,) is expected'
        >>> step_fault(space, np.zeros(4), 1.0, "False", False)
        "terminated 'False' of type str: a bool is expected"
        >>> step_fault(space, np.zeros(4), 1.0, False, False)
    """
    problem = _observation_fault(space, observation, "an observation")
    if problem is None and outcome:
        reward, *ends = outcome
        if type(reward) not in _NUMBERS and not _is_scalar_array(reward, "iuf"):
            return f"a reward {_shown(reward)}: a number is expected"
        if not abs(float(reward)) <= _LARGEST:
            return f"a reward that is not finite in float32: {reward!r}"
        for name, end in zip(("terminated", "truncated"), ends, strict=True):
            if type(end) not in _BOOLEANS and not _is_scalar_array(end, "b"):
                return f"{name} {_shown(end)}: a bool is expected"
    return problem


def _observation_fault(space: Space[Any], value: Any, name: str) -> str | None:
    if isinstance(space, Dict):
        if not isinstance(value, Mapping) or set(value) != set(space.spaces):
            return f"{name} {_shown(value)}: a dict of {', '.join(map(str, space.spaces))} is expected"
        parts = [(part, value[key], f"{name}'s part {key!r}") for key, part in space.spaces.items()]
    elif isinstance(space, Tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(space.spaces):
            return f"{name} {_shown(value)}: a tuple of {len(space.spaces)} is expected"
        parts = [
            (p, v, f"{name}'s part {i}") for i, (p, v) in enumerate(zip(space.spaces, value, strict=True))
        ]
    elif isinstance(space, (Box, MultiDiscrete, MultiBinary, Discrete)):
        return _array_fault(space, value, name)
    else:
        return None if space.contains(value) else f"{name} {_shown(value)}: one of {space} is expected"
    return next(filter(None, (_observation_fault(*part) for part in parts)), None)


def _array_fault(space: Any, value: Any, name: str) -> str | None:
    usual = type(value) is np.ndarray and value.dtype == np.float32 == space.dtype
    if usual and value.shape == space.shape and np.isfinite(value).all():
        return None
    scalar = space.shape == () and type(value) in _NUMBERS
    if not scalar and not isinstance(value, np.ndarray):
        return f"{name} {_shown(value)}: an array of shape {space.shape}, {space.dtype} is expected"
    array = np.asarray(value)
    if array.shape != space.shape:
        return f"{name} of shape {array.shape}: {space.shape} is expected"
    python = type(value) in (int, float)  # has the dtype that it is given
    dtype = np.dtype(np.int8) if type(value) is int else array.dtype
    if not (python and dtype.kind == "i") and not np.can_cast(dtype, space.dtype, "same_kind"):
        return f"{name} of {dtype}: {space.dtype} is expected"
    if array.dtype.kind == "f" and not (np.abs(array) <= _LARGEST).all():
        bad = array[~(np.abs(array) <= _LARGEST)].flat[0]
        return f"{name} that is not finite in float32: it has {bad}"
    low, high = _bounds(space)
    if low is None and array.dtype != space.dtype and space.dtype.kind in "iu":
        low, high = np.iinfo(space.dtype).min, np.iinfo(space.dtype).max
    if low is not None and not ((low <= array) & (array <= high)).all():
        return f"{name} that is out of range: {array.tolist()} is not in {space}"
    return None


def _bounds(space: Space[Any]) -> Any:
    """The lowest and highest numbers of a discrete space; of others None."""
    if isinstance(space, Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, MultiBinary) else (None, None)


def _is_scalar_array(value: Any, kinds: str) -> bool:
    return isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in kinds


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) < 60 else text[:60] + '…'} of type {type(value).__name__}"


def action_fault(space: Space[Any], actions: Any, num_envs: int) -> str | None:
    """What is wrong with a batch of actions; None is nothing.

    Args:
        space: of one environment's actions.
        actions: N on the first axis of every array.
        num_envs: N.

    Example:
        >>> import numpy as np
        >>> from gymnasium.spaces import Discrete
        >>> from pgce.envs.guard import action_fault
        >>> action_fault(Discrete(2), np.array([0, 1, 2]), 3)
        'they are in Discrete(2): [0, 1, 2]'
        >>> action_fault(Discrete(2), np.array([0, 1]), 3)
        'each of 3 environments has one of shape (): they have shape (2,)'
    """
    if isinstance(space, (Dict, Tuple)):
        keys: Any = space.spaces if isinstance(space, Dict) else range(len(space.spaces))
        try:
            parts = [(space[key], actions[key], num_envs) for key in keys]
        except (KeyError, IndexError, TypeError):
            return f"they have the parts of {space}: {_shown(actions)}"
        return next(filter(None, (action_fault(*part) for part in parts)), None)
    if not isinstance(space, (Box, Discrete, MultiDiscrete, MultiBinary)):
        return None if len(actions) == num_envs else f"there are {num_envs}: {len(actions)} are given"
    array = np.asarray(actions)
    shape = space.shape or ()
    if array.shape != (num_envs, *shape):
        return f"each of {num_envs} environments has one of shape {shape}: they have shape {array.shape}"
    if isinstance(space, Box):
        if array.dtype.kind not in "iuf":
            return f"they are numbers: they are of {array.dtype}"
        low, high = space.low, space.high
        if not ((low <= array) & (array <= high)).all():
            slack = 1e-5 * np.maximum(1.0, np.abs(np.nan_to_num([low, high])))  # of rounding
            low, high = low - slack[0], high + slack[1]
        fine = ((low <= array) & (array <= high) & np.isfinite(array)).all()
        return None if fine else f"they are in {space}: {array.tolist()}"
    if array.dtype.kind not in "iu" and not (array.dtype.kind == "b" and isinstance(space, MultiBinary)):
        return f"they are integers: they are of {array.dtype}"
    low, high = _bounds(space)
    if isinstance(space, Discrete):
        numbers = array.tolist()
        fine = low <= min(numbers) and max(numbers) <= high
    else:
        fine = bool(((low <= array) & (array <= high)).all())
    return None if fine else f"they are in {space}: {array.tolist()}"


class _Guarded(VectorEnv[Any, Any, Any]):
    """What both kinds share: where each environment is, how often one may be replaced."""

    restarts = 0
    """How many sub-environments were replaced so far."""

    def _guard(self, name: str, restarts: int, mode: AutoresetMode) -> None:
        self._name, self._restarts_left, self._same = name, restarts, mode is AutoresetMode.SAME_STEP
        self._next = mode is AutoresetMode.NEXT_STEP
        self._fault: EnvironmentFault | None = None
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
            if (
                not isinstance(mask, np.ndarray)
                or mask.shape != (n,)
                or mask.dtype != np.bool_
                or not mask.any()
            ):
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

    def _spend(self, fault: EnvironmentFault) -> int:
        """Take one of the restarts, or raise the fault: the seed of the environment made anew."""
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

    def _lost(self, last: Any) -> tuple[Any, ...]:
        """The step of an environment that was replaced: it ends the episode where it was last seen."""
        return last, 0.0, False, True, {"env_restarted": True}

    def _final(self, observation: Any, info: dict[str, Any]) -> dict[str, Any]:
        """The info of an episode's end, in the step that also resets."""
        told = {key: info[key] for key in ("env_restarted",) if key in info}
        return {"final_obs": observation, "final_info": info, **told}


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
        SyncVectorEnv.__init__(self, env_fns, autoreset_mode=autoreset_mode)
        self._guard(name, restarts, autoreset_mode)
        space = self.single_observation_space
        self._plain = isinstance(space, (Box, Discrete, MultiDiscrete, MultiBinary))
        self._shape, self._dtype = (self.num_envs, *(space.shape or ())), space.dtype
        self._low, self._high = _bounds(space)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes, in all environments or those of `options["reset_mask"]`."""
        seeds, chosen, options = self._plan(seed, options)
        observations = self._last()
        infos: dict[str, Any] = {}
        for i in chosen:
            observations[i], info = self._reset(i, seeds[i], options)
            infos = self._add_info(infos, info, i)
        return self._batched(observations), infos

    def step(self, actions: Any) -> Any:
        """One step of each environment; of those to be reset, their reset."""
        self._begin_step(actions)
        observations: list[Any] = []
        rewards: list[Any] = []
        terminations: list[Any] = []
        truncations: list[Any] = []
        infos: dict[str, Any] = {}
        same = self._same
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
                        self._look(observation, reward, terminated, truncated)
                except Exception as error:
                    observation, reward, terminated, truncated, info = self._replaced(i, error)
                if same and (terminated or truncated):
                    info = self._final(observation, info)
                    observation, more = self._reset(i)
                    info |= more
            observations.append(observation)
            rewards.append(reward)
            terminations.append(terminated)
            truncations.append(truncated)
            if info:
                infos = self._add_info(infos, info, i)
        batch = self._sound(observations, rewards, terminations, truncations)
        if batch is None:  # look closer
            for i, step in enumerate(zip(observations, rewards, terminations, truncations, strict=True)):
                try:
                    self._look(*step)
                except _Unsound as error:
                    *found, info = self._replaced(i, error)
                    observations[i], rewards[i], terminations[i], truncations[i] = found
                    if self._same:
                        info = self._final(observations[i], info)
                        observations[i], _ = self._reset(i)
                    infos = self._add_info(infos, info, i)
            batch = self._batched(observations)
        self._observations = batch
        ends = np.array([terminations, truncations], np.bool_)
        self._end_step(ends[0] | ends[1])
        return batch, np.array(rewards, np.float64), ends[0], ends[1], infos

    def _sound(self, observations: list[Any], rewards: list[Any], *ends: list[Any]) -> Any:
        """The batch of observations if a quick look at all of them finds nothing wrong, else None."""
        if not (self._plain and set(map(type, rewards)) <= _NUMBERS):
            return None
        if not set(map(type, ends[0] + ends[1])) <= _BOOLEANS:
            return None
        if not sum(map(abs, map(float, rewards))) <= _LARGEST:
            return None
        if list in set(map(type, observations)):
            return None
        try:
            batch = np.array(observations)
        except ValueError:  # of different shapes
            return None
        if batch.shape != self._shape or batch.dtype != self._dtype:
            return None
        if self._low is not None:
            return batch if ((self._low <= batch) & (batch <= self._high)).all() else None
        if batch.dtype.kind == "f":
            fine = np.isfinite(batch) if batch.itemsize <= 4 else np.abs(batch) <= _LARGEST
            return batch if fine.all() else None
        return batch

    def _look(self, *step: Any) -> None:
        problem = step_fault(self.single_observation_space, *step)
        if problem is not None:
            raise _Unsound(problem)

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
                self._look(observation)
            except Exception as error:
                self._replace(i, error)
                seed = None
            else:
                return observation, info

    def _replaced(self, i: int, error: Exception) -> tuple[Any, ...]:
        last = self._last()[i]
        self._replace(i, error)
        return self._lost(last)

    def _replace(self, i: int, error: Exception) -> None:
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

    def close_extras(self, **kwargs: Any) -> None:
        """Close the environments; that of one that failed may fail too."""
        for env in getattr(self, "envs", ()):
            try:
                env.close()
            except Exception:
                if self._fault is None:
                    raise


class GuardedAsyncVectorEnv(_Guarded, AsyncVectorEnv):
    """Environments in a process each, which are never waited for in vain and leave nothing behind.

    A process that gives no answer in time is asked for its stack and killed; one that died is told at once.
    The processes leave Ctrl-C to this one, and end with it however it ends.

    Args:
        env_fns: what makes each.
        name: of the environment, for messages.
        autoreset_mode: when one that ended is reset.
        restarts: as `GuardedSyncVectorEnv` has it; a process that hung or died is replaced likewise.
        step_timeout: seconds that reset, step and call may take; making environments may take 60 at least.
            None waits for ever.
        context: start method of the processes, as `multiprocessing` names it; None is its default.

    Raises:
        EnvironmentFault: by reset and step, and by every use after that; when made, for an environment that
            cannot be made in its process.

    Example:
        >>> import gymnasium as gym
        >>> from pgce.envs.guard import GuardedAsyncVectorEnv
        >>> envs = GuardedAsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2, "CartPole-v1", step_timeout=9)
        >>> envs.reset(seed=1)[0].shape
        (2, 4)
        >>> envs.close()
    """

    def __init__(
        self,
        env_fns: Sequence[Make],
        name: str,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        restarts: int = 0,
        step_timeout: float | None = 60.0,
        context: str | None = None,
    ) -> None:
        self.env_fns, self.num_envs, self.step_timeout = env_fns, len(env_fns), step_timeout
        self.autoreset_mode = autoreset_mode
        one = env_fns[0]()
        self.metadata = {**one.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = one.render_mode
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        one.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._guard(name, restarts, autoreset_mode)
        self._context = cast("Any", multiprocessing.get_context(context))
        try:
            self._buffer: Any = create_shared_memory(
                self.single_observation_space, self.num_envs, self._context
            )
        except gym.error.CustomSpaceError as error:
            raise ValueError(
                f"{name}: observations of {self.single_observation_space} need sync: {error}"
            ) from None
        self.observations: Any = read_from_shared_memory(
            self.single_observation_space, self._buffer, self.num_envs
        )
        n = self.num_envs
        self.processes: list[Any] = [None] * n
        self.parent_pipes: list[Any] = [None] * n
        self._stacks: list[Any] = [None] * n
        self._dead = set(range(n))
        # Before multiprocessing, at the end of the program, waits for them.
        Finalize(self, _kill, (self.processes,), exitpriority=10)
        self._poller = select.poll() if hasattr(select, "poll") else None
        self._pollers: dict[int, Any] = {}
        self._owner: dict[int, tuple[int, bool]] = {}  # of a file descriptor; whether it is a pipe's
        self._state = AsyncState.DEFAULT
        try:
            for i in range(n):
                self._start(i)
                self._send(i, "make", None)
            for i, (fine, told) in self._answers(range(n), self._making_time).items():
                if not fine:
                    self._made_anew(i, self._failure(i, *told))
                else:
                    self._same_spaces(i, told)
        except BaseException:
            self.close(terminate=True)
            raise

    @property
    def _making_time(self) -> float | None:
        return None if self.step_timeout is None else max(60.0, self.step_timeout)

    def _same_spaces(self, i: int, spaces: tuple[Space[Any], Space[Any]]) -> None:
        ours = self.single_observation_space, self.single_action_space
        if spaces != ours:
            raise RuntimeError(
                f"environments of {self._name} have the same spaces: {i} has {spaces}, 0 has {ours}"
            )

    def _start(self, i: int) -> None:
        """Start the process of environment i."""
        ours, theirs = self._context.Pipe()
        stack, dumped = self._context.Pipe(duplex=False)
        # The kernel's signal at a parent's death comes with the end of the thread that made the process.
        by_main = threading.current_thread() is threading.main_thread()
        process = self._context.Process(
            target=_work,
            name=f"Worker<{self._name}>-{i}",
            args=(i, CloudpickleWrapper(self.env_fns[i]), theirs, dumped, self._buffer, self._same, by_main),
            daemon=True,
        )
        process.start()
        theirs.close()
        dumped.close()
        self.processes[i], self.parent_pipes[i], self._stacks[i] = process, ours, stack
        self._dead.discard(i)
        if self._poller is not None:
            self._pollers[i] = select.poll()
            self._pollers[i].register(ours.fileno(), select.POLLIN)
            for fd, is_pipe in ((ours.fileno(), True), (process.sentinel, False)):
                self._owner[fd] = i, is_pipe
                self._poller.register(fd, select.POLLIN)

    def _send(self, i: int, command: str, data: Any) -> None:
        if i not in self._dead:
            with suppress(OSError):  # of a process that died, which `_answers` tells
                self.parent_pipes[i].send((command, data))

    def _prompt(self, waiting: set[int]) -> dict[int, tuple[bool, Any]]:
        """What processes answer soon, asked one after the other: most do, and each wake-up less counts."""
        answers: dict[int, tuple[bool, Any]] = {}
        for i in sorted(waiting):
            if not self._pollers[i].poll(50):
                break
            try:
                answers[i] = self.parent_pipes[i].recv()
            except (EOFError, OSError):
                break
        return answers

    def _ready(self, seconds: float) -> tuple[set[int], set[int]]:
        """The environments whose process has something to read, and those whose process died."""
        if self._poller is not None:
            things = [self._owner[fd] for fd, _ in self._poller.poll(1000 * seconds)]
        else:
            alive = [i for i in range(self.num_envs) if i not in self._dead]
            owner: dict[Any, Any] = {self.parent_pipes[i]: (i, True) for i in alive}
            owner |= {self.processes[i].sentinel: (i, False) for i in alive}
            things = [owner[thing] for thing in wait(list(owner), seconds)]
        return {i for i, is_pipe in things if is_pipe}, {i for i, is_pipe in things if not is_pipe}

    def _answers(self, asked: Iterable[int], limit: float | None) -> dict[int, tuple[bool, Any]]:
        """What each process answers: true and what it was asked for, or false and what went wrong."""
        waiting = set(asked)
        answers: dict[int, tuple[bool, Any]] = {i: (False, self._death(i)) for i in waiting & self._dead}
        waiting -= self._dead
        if self._poller is not None:
            answers |= self._prompt(waiting)
            waiting -= set(answers)
        left = math.inf if limit is None else limit
        while waiting and (self._restarts_left or all(fine for fine, _ in answers.values())):
            begun = time.monotonic()
            readable, died = self._ready(min(left, 1.0))
            for i in readable | died:
                answer: tuple[bool, Any] | None = None
                if i in readable:  # what it said before it died counts
                    with suppress(EOFError, OSError):
                        answer = self.parent_pipes[i].recv()
                if answer is None:
                    answer = False, self._death(i)
                if i in waiting:
                    answers[i] = answer
                    waiting.discard(i)
            left -= min(time.monotonic() - begun, 1.0)  # less than the clock tells, had this process slept
            if left <= 0:
                answers |= {i: (False, self._hung(i, limit)) for i in waiting}
                break
        return dict(sorted(answers.items()))

    def _death(self, i: int) -> tuple[str, str]:
        process = self.processes[i]
        process.join(1)
        self._bury(i)
        code = process.exitcode
        if code is not None and code < 0:
            return f"died: its process was killed by signal {-code} ({signal.Signals(-code).name})", ""
        return f"died: its process ended with exit code {code}", ""

    def _hung(self, i: int, limit: float | None) -> tuple[str, str]:
        """Ask a process that hangs where it is, and end it."""
        trace = ""
        if hasattr(signal, "SIGUSR1"):
            with suppress(OSError):
                os.kill(self.processes[i].pid, signal.SIGUSR1)
                patience = 1.0
                while self._stacks[i].poll(patience):
                    part = os.read(self._stacks[i].fileno(), 65536)
                    if not part:
                        break
                    trace, patience = trace + part.decode(errors="replace"), 0.1
        self._bury(i)
        lines = [line.strip() for line in trace.splitlines() if line.startswith("  File ")]
        where = f", in {lines[0]}" if lines else ""
        return f"hangs: no answer in {limit:g} s (step_timeout){where}", trace

    def _bury(self, i: int) -> None:
        """End the process of environment i, and what leads to it."""
        process = self.processes[i]
        if i in self._dead or process is None:
            return
        self._dead.add(i)
        if self._poller is not None:
            for fd in (self.parent_pipes[i].fileno(), process.sentinel):
                self._poller.unregister(fd)
                del self._owner[fd]
        process.kill()
        process.join(1)
        self.parent_pipes[i].close()
        self._stacks[i].close()

    def _made_anew(self, i: int, fault: EnvironmentFault) -> int:
        """Replace environment i, or raise its fault: the seed it is to begin with."""
        while True:
            seed = self._spend(fault)
            if i in self._dead:
                self._start(i)
            self._send(i, "make", None)
            fine, told = self._answers([i], self._making_time)[i]
            if fine:
                self._same_spaces(i, told)
                return seed
            fault = self._failure(i, *told)

    def _first(self, i: int, fine: bool, told: Any) -> dict[str, Any]:
        """The info of a reset that environment i answered; if it failed, of one made anew."""
        while not fine:
            seed = self._made_anew(i, self._failure(i, *told))
            self._send(i, "reset", (seed, None))
            fine, told = self._answers([i], self.step_timeout)[i]
        info: dict[str, Any] = told
        return info

    def reset_async(self, seed: Any = None, options: dict[str, Any] | None = None) -> None:
        """Tell all environments, or those of `options["reset_mask"]`, to reset."""
        self._assert_is_running()
        self._idle()
        seeds, self._asked, options = self._plan(seed, options)
        for i in self._asked:
            self._send(i, "reset", (self._seed_of(i, seeds[i]), options))
        self._state = AsyncState.WAITING_RESET

    def _seed_of(self, i: int, seed: int | None) -> int | None:
        """That of an environment made anew is its own."""
        fresh = self._fresh.pop(i, None)
        return fresh if seed is None else seed

    def _idle(self) -> None:
        self._usable()
        if self._state != AsyncState.DEFAULT:
            raise gym.error.AlreadyPendingCallError(
                f"{self._state.value} is still to be waited for", self._state.value
            )

    def _pending(self, state: AsyncState, timeout: float | None) -> float | None:
        self._assert_is_running()
        self._usable()
        if self._state != state:
            raise gym.error.NoAsyncCallError(f"{state.value} was not asked for", state.value)
        return self.step_timeout if timeout is None else timeout

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observations, and the info."""
        limit = self._pending(AsyncState.WAITING_RESET, timeout)
        infos: dict[str, Any] = {}
        for i, answer in self._answers(self._asked, limit).items():
            infos = self._add_info(infos, self._first(i, *answer), i)
        self._state = AsyncState.DEFAULT
        return deepcopy(self.observations), infos

    def step_async(self, actions: Any) -> None:
        """Tell each environment to step, or to reset where its episode has ended."""
        self._assert_is_running()
        self._idle()
        self._begin_step(actions)
        turns = zip(iterate(self.action_space, actions), self._autoreset_envs.tolist(), strict=True)
        for i, (action, again) in enumerate(turns):
            if again:
                self._send(i, "reset", (self._seed_of(i, None), None))
            else:
                self._send(i, "step", action)
        self._state = AsyncState.WAITING_STEP

    def step_wait(self, timeout: float | None = None) -> Any:
        """What the steps gave."""
        limit = self._pending(AsyncState.WAITING_STEP, timeout)
        n = self.num_envs
        rewards, terminated, truncated = np.zeros(n), np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        infos: dict[str, Any] = {}
        for i, (fine, told) in self._answers(range(n), limit).items():
            if self._autoreset_envs[i]:
                info = self._first(i, fine, told)
            else:
                rewards[i], terminated[i], truncated[i], info = told if fine else self._replaced(i, told)
            infos = self._add_info(infos, info, i)
        self._end_step(terminated | truncated)
        self._state = AsyncState.DEFAULT
        return deepcopy(self.observations), rewards, terminated, truncated, infos

    def _replaced(self, i: int, told: tuple[str, str]) -> tuple[Any, ...]:
        """The step of an environment that was replaced. What was last seen is still in the shared memory."""
        last = deepcopy(list(iterate(self.observation_space, self.observations))[i])
        self._fresh[i] = self._made_anew(i, self._failure(i, *told))
        _, *outcome, info = self._lost(last)
        if self._same:
            info = self._final(last, info)
            self._send(i, "reset", (self._seed_of(i, None), None))
            info |= self._first(i, *self._answers([i], self.step_timeout)[i])
        return *outcome, info

    def call_async(self, name: str, /, *args: object, **kwargs: object) -> None:
        """Call a method of each environment, or get an attribute."""
        self._assert_is_running()
        self._idle()
        for i in range(self.num_envs):
            self._send(i, "call", (name, args, kwargs))
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """What the calls return. An error of one is raised as it is; the environments stay in use."""
        results = self._results(self._pending(AsyncState.WAITING_CALL, timeout))
        self._state = AsyncState.DEFAULT
        return results

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment, to a value of its own where a list or tuple is given."""
        self._assert_is_running()
        self._idle()
        each = values if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(
                f"there is a value for each of {self.num_envs} environments: {len(each)} are given"
            )
        for i, value in enumerate(each):
            self._send(i, "set", (name, value))
        self._results(self.step_timeout)

    def _results(self, limit: float | None) -> tuple[Any, ...]:
        restarts, self._restarts_left = self._restarts_left, 0  # a call is no step to be made up for
        answers = self._answers(range(self.num_envs), limit)
        self._restarts_left = restarts
        for i, (fine, told) in answers.items():
            if not fine:
                self._fault = self._failure(i, *told)
                raise self._fault
            if isinstance(told, _Failed):
                self._state = AsyncState.DEFAULT
                raise told.error from _Trace(told.trace)
        return tuple(told for _, told in answers.values())

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the processes, in 5 seconds at most, and by force those that don't end by themselves."""
        alive = [i for i in range(self.num_envs) if i not in self._dead]
        patience = time.monotonic() + (_CLOSING if timeout is None else min(timeout, _CLOSING))
        if terminate or (self._state != AsyncState.DEFAULT and self._fault is None):
            patience = 0.0
        for i in alive:
            if patience:
                self._send(i, "close", None)
            else:
                self.processes[i].kill()
        for i in alive:
            self.processes[i].join(max(patience - time.monotonic(), 0.2 / len(alive)))
        for i in alive:
            self._bury(i)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process is not None:
            with suppress(ValueError):  # it was closed
                process.kill()


class _Failed:
    """A call that an environment answered with an error."""

    def __init__(self, error: Exception, trace: str) -> None:
        self.error, self.trace = error, trace


def _told(error: Exception) -> tuple[str, str]:
    """What went wrong, in words, and the traceback."""
    if isinstance(error, _Unsound):
        return f"gave {error}", ""
    return f"raised {type(error).__name__}: {error}", "".join(traceback.format_exception(error))


def _work(
    index: int, make: Make, pipe: Any, dumped: Any, buffer: Any, same_step: bool, by_main: bool
) -> None:
    """One environment in a process of its own."""
    _end_with_parent(by_main)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the terminal
    # So may SIGTERM, and the one who trains has a last step to finish. Unlike an ignored signal, a handler
    # is not inherited by programs that the environment starts, and that it may want to terminate.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=dumped.fileno(), all_threads=True)
    env: Any = None
    space: Any = None

    def reset(seed: int | None = None, options: Any = None) -> dict[str, Any]:
        observation, info = env.reset(seed=seed, options=options)
        look(observation)
        write_to_shared_memory(space, index, observation, buffer)
        told: dict[str, Any] = info
        return told

    def look(*step: Any) -> None:
        problem = step_fault(space, *step)
        if problem is not None:
            raise _Unsound(problem)

    def answer(command: str, data: Any) -> Any:
        nonlocal env, space
        if command == "step":
            observation, *outcome, info = env.step(data)
            look(observation, *outcome)
            if same_step and (outcome[1] or outcome[2]):
                info = {"final_info": info, "final_obs": observation, **reset()}
            else:
                write_to_shared_memory(space, index, observation, buffer)
            return *outcome, info
        if command == "reset":
            return reset(*data)
        if command == "make":
            if env is not None:
                with suppress(Exception):
                    env.close()
            env = make()
            space = env.observation_space
            return space, env.action_space
        name, *rest = data
        try:
            if command == "set":
                return env.set_wrapper_attr(name, *rest)
            found = env.get_wrapper_attr(name)
            return found(*rest[0], **rest[1]) if callable(found) else found
        except Exception as error:
            return _Failed(_sendable(error), traceback.format_exc())

    try:
        while True:
            command, data = pipe.recv()
            if command == "close":
                break
            try:
                reply = True, answer(command, data)
            except Exception as error:
                reply = False, _told(error)
            try:
                pipe.send(reply)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                pipe.send((False, _told(error)))
    except (EOFError, OSError):  # nobody listens
        pass
    finally:
        if env is not None:
            env.close()


def _sendable(error: Exception) -> Exception:
    """The error, or one that tells the same where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent(by_main: bool) -> None:
    """Let this process end when the one that started it does, however that ends."""
    parent = os.getppid()
    if sys.platform == "linux" and by_main:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    known = multiprocessing.parent_process()
    forked = multiprocessing.get_start_method(allow_none=True) != "forkserver"
    if forked and known is not None and os.getppid() != known.pid:  # it ended before
        os._exit(1)
    if not (sys.platform == "linux" and by_main):
        threading.Thread(target=watch, daemon=True).start()

"""What a faulty environment gives is refused; one that fails is named, and may be replaced."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray

from pgce.envs.state import _restore, get_state, set_state

__all__ = [
    "EnvironmentFault",
    "GuardedSyncVectorEnv",
    "action_fault",
    "columns_of",
    "sound_batch",
    "step_fault",
]

Make = Callable[[], gym.Env[Any, Any]]
Column = tuple[list[int], NDArray[Any]]  # which environments, and what each has

_LARGEST = float(np.finfo(np.float32).max)  # policies compute in float32
_NUMBERS = {int, float, *(np.dtype(kind).type for kind in "bhilqBHILQefd")}
_BOOLEANS = {bool, np.bool_}


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
        if not abs(reward if type(reward) is int else float(reward)) <= _LARGEST:
            return f"a reward that is not finite in float32: {reward!r}"
        for name, end in zip(("terminated", "truncated"), ends, strict=True):
            if type(end) not in _BOOLEANS and not _is_scalar_array(end, "b"):
                return f"{name} {_shown(end)}: a bool is expected"
    return problem


def look(space: Space[Any], *step: Any) -> None:
    """Refuse what a step gave that is wrong, or an observation."""
    problem = step_fault(space, *step)
    if problem is not None:
        raise _Unsound(problem)


def sound_batch(
    space: Space[Any], observations: list[Any], rewards: list[Any], *ends: list[Any]
) -> NDArray[Any] | None:
    """The batch of observations if a quick look at steps finds nothing wrong; None is to look at each closer.

    Args:
        space: of the observations.
        observations: one an environment.
        rewards: one an environment.
        ends: terminated of each, truncated of each.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.guard import sound_batch
        >>> space = Box(-1, 1, (2,))
        >>> sound_batch(space, [np.zeros(2, np.float32)] * 3, [1.0] * 3, [False] * 3, [False] * 3).shape
        (3, 2)
        >>> sound_batch(space, [np.zeros(2, np.float32)] * 3, [1.0, 2.0, "3"], [False] * 3, [False] * 3)
    """
    if not isinstance(space, (Box, Discrete, MultiDiscrete, MultiBinary)):
        return None
    if not (set(map(type, rewards)) <= _NUMBERS and set(map(type, ends[0] + ends[1])) <= _BOOLEANS):
        return None
    if list in set(map(type, observations)):
        return None
    try:
        small = sum(map(abs, map(float, rewards))) <= _LARGEST
        batch = np.array(observations)
    except Exception:  # of different shapes, tensors of a GPU, integers that no float holds
        return None
    if not small:
        return None
    if batch.shape != (len(observations), *(space.shape or ())) or batch.dtype != space.dtype:
        return None
    low, high = limits(space)
    if low is not None:
        return batch if ((low <= batch) & (batch <= high)).all() else None
    if batch.dtype.kind == "f":
        fine = np.isfinite(batch) if batch.itemsize <= 4 else np.abs(batch) <= _LARGEST
        return batch if fine.all() else None
    return batch


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
    usual = type(value) is np.ndarray and value.dtype == space.dtype and value.shape == space.shape
    usual = usual and value.dtype.kind == "f" and value.ndim == 1 and value.size > 0
    if usual and np.maximum.reduce(np.abs(value)) <= _LARGEST:
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
    low, high = limits(space)
    if low is None and array.dtype != space.dtype and space.dtype.kind in "iu":
        low, high = np.iinfo(space.dtype).min, np.iinfo(space.dtype).max
    if low is not None and not ((low <= array) & (array <= high)).all():
        return f"{name} that is out of range: {array.tolist()} is not in {space}"
    return None


def limits(space: Space[Any]) -> Any:
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
        if array.dtype.kind not in ("iufb" if space.dtype == np.bool_ else "iuf"):
            return f"they are numbers: they are of {array.dtype}"
        low, high = space.low, space.high
        if not ((low <= array) & (array <= high)).all():
            slack = 1e-5 * np.maximum(1.0, np.abs(np.nan_to_num([low, high])))  # of rounding
            low, high = low - slack[0], high + slack[1]
        fine = ((low <= array) & (array <= high) & np.isfinite(array)).all()
        return None if fine else f"they are in {space}: {array.tolist()}"
    if array.dtype.kind not in "iu" and not (array.dtype.kind == "b" and isinstance(space, MultiBinary)):
        return f"they are integers: they are of {array.dtype}"
    low, high = limits(space)
    if isinstance(space, Discrete):
        numbers = array.tolist()
        fine = low <= min(numbers) and max(numbers) <= high
    else:
        fine = bool(((low <= array) & (array <= high)).all())
    return None if fine else f"they are in {space}: {array.tolist()}"


def columns_of(told: Mapping[int, dict[str, Any]]) -> tuple[dict[str, Column], dict[int, dict[str, Any]]]:
    """Infos of some environments by key: which have it, and what; and what cannot be put into arrays.

    Args:
        told: by environment.

    Example:
        >>> from pgce.envs.guard import columns_of
        >>> columns_of({0: {"x": 1.0, "name": "a"}, 2: {"x": 3.0}})
        ({'x': ([0, 2], array([1., 3.]))}, {0: {'name': 'a'}})
    """
    by_key: dict[str, tuple[list[int], list[Any]]] = {}
    if len({tuple(info) for info in told.values()}) == 1:  # all tell the same, as most do
        every = [*told]
        by_key = {key: (every, [info[key] for info in told.values()]) for key in told[every[0]]}
    else:
        for i, info in told.items():
            for key, value in info.items():
                which, values = by_key.setdefault(key, ([], []))
                which.append(i)
                values.append(value)
    columns: dict[str, Column] = {}
    rest: dict[int, dict[str, Any]] = {}
    for key, (which, values) in by_key.items():
        if _alike(values) and key != "final_obs":
            columns[key] = which, np.array(values)
        else:
            for i, value in zip(which, values, strict=True):
                rest.setdefault(i, {})[key] = value
    return columns, rest


def _alike(values: list[Any]) -> bool:
    """Whether they are numbers, or arrays of one shape and kind."""
    kinds = set(map(type, values))
    if kinds == {np.ndarray}:
        first = values[0]
        return not first.dtype.hasobject and all(_fits(value, first.shape, first.dtype) for value in values)
    return all(kind in (int, float, bool) or issubclass(kind, np.number) for kind in kinds)


def _fits(array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return array.shape == shape and (array.dtype == dtype or {array.dtype.kind, dtype.kind} <= {*"biuf"})


def _objects(values: Iterable[Any]) -> NDArray[Any]:
    """An array (n,) of n things, arrays among them."""
    return np.fromiter(values, np.dtype(object))


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
        self.restarts, self._restarts_left = state["restarts"]

    def _states(self) -> list[Any]:
        raise NotImplementedError

    def _set_states(self, states: list[Any]) -> None:
        raise NotImplementedError

    def _told_together(
        self, told: Mapping[int, dict[str, Any]], *columns: dict[str, Column]
    ) -> dict[str, Any]:
        """The info of all environments as Gymnasium has it, from that of each, or from columns.

        What is of several shapes or types, which Gymnasium refuses or casts, is in an array of objects.
        """
        column, rest = columns_of(told)
        infos: dict[str, Any] = {}
        for each in (*columns, column):
            for key, (which, values) in each.items():
                self._add(infos, key, which, values)
        for key in dict.fromkeys(key for info in rest.values() for key in info):
            own = {i: rest[i][key] for i in sorted(rest) if key in rest[i]}
            nested = key not in infos and all(isinstance(part, dict) for part in own.values())
            if nested and key != "final_obs":
                infos[key], infos[f"_{key}"] = self._told_together(own), np.zeros(self.num_envs, np.bool_)
                infos[f"_{key}"][[*own]] = True
            else:
                self._add(infos, key, [*own], _objects(own.values()))
        return infos

    def _add(self, infos: dict[str, Any], key: str, which: list[int], values: NDArray[Any]) -> None:
        """Put what some environments tell by a key beside what others do."""
        n = self.num_envs
        if key not in infos:
            if which == [*range(n)]:
                infos[key], infos[f"_{key}"] = values, np.ones(n, np.bool_)
                return
            infos[key] = np.zeros((n, *values.shape[1:]), values.dtype)
            if values.dtype == object:
                infos[key].fill(None)
            infos[f"_{key}"] = np.zeros(n, np.bool_)
        array, mask = infos[key], infos[f"_{key}"]
        if _fits(values, (len(which), *array.shape[1:]), array.dtype):
            array = array.astype(np.result_type(array, values), copy=False)
        else:
            array, values = _objects(array), _objects(values)
            array[~mask] = None
        array[which], mask[which] = values, True
        infos[key] = array

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
        return self._batched(observations), self._told_together(told)

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
                    info |= more
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
                except _Unsound as error:
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
        return batch, np.array(rewards, np.float64), ends[0], ends[1], self._told_together(told)

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
    if isinstance(error, _Unsound):
        return f"gave {error}", ""
    return f"raised {type(error).__name__}: {error}", "".join(traceback.format_exception(error))

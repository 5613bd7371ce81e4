"""The state of environments, so that a run that was stopped can go on as if it had not been.

Gymnasium has no such thing. What is saved here is plain data only: an environment's numbers, strings, arrays
and generators, its wrappers' and its vector's, unless it has `get_state()` and `set_state(state)` of its own.
An environment that holds anything else (a physics engine, say) cannot be saved; and whether one that can be
saved goes on exactly is tried, not believed: see `exactness`.
"""

from __future__ import annotations

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from enum import Enum, Flag
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from gymnasium.wrappers.utils import RunningMeanStd
from numpy.typing import NDArray

__all__ = ["exactness", "get_state", "set_state"]

Envs = VectorEnv[Any, Any, Any]
_CONSTANT = (gym.Space, EnvSpec, type, np.dtype)
_ENVIRONMENTS = (gym.Env, VectorEnv, RunningMeanStd)  # the last is what wrappers that normalise count by
_NUMBERS = (type(None), bool, int, float, str, np.generic)
_PATIENCE = 2.0  # seconds of a trial, before and after the restoration


def get_state(envs: Envs | gym.Env[Any, Any]) -> dict[str, Any]:
    """All that a vector environment and its sub-environments are, or a single one, as nested plain data.

    Raises:
        ValueError: it holds something that is no plain data, by its name; or runs in other processes.

    Example:
        >>> import numpy as np, pgce.envs
        >>> from pgce.envs.state import get_state, set_state
        >>> envs, others = (pgce.envs.make("CartPole-v1", 2) for _ in range(2))
        >>> _ = pgce.envs.reset(envs, 1), pgce.envs.reset(others, 2)
        >>> set_state(others, get_state(envs))
        >>> bool((envs.step(np.array([0, 1]))[0] == others.step(np.array([0, 1]))[0]).all())
        True
    """
    if isinstance(envs, AsyncVectorEnv) and not hasattr(envs, "get_state"):
        raise ValueError(f"environments in other processes cannot be saved: {envs}")
    state: dict[str, Any] = _saved(envs, type(envs.unwrapped).__name__)
    return state


def set_state(envs: Envs | gym.Env[Any, Any], state: Mapping[str, Any]) -> None:
    """Make an environment, made and reset as the other was, what `get_state` told.

    Raises:
        ValueError: the state is of another kind of environment, or it does not become that.
    """
    name = type(envs.unwrapped).__name__
    _restore(envs, state, name)
    if "own" not in state and not _equal(_saved(envs, name), state):
        raise ValueError(f"{name} is not what it was saved as after all of that was restored")


def exactness(make: Callable[[], Envs], steps: int = 50) -> str:
    """How a run in such environments can be resumed.

    Two of them are made. One is stepped at random, saved, and stepped further; the other is restored from
    what was saved, and given the same actions.

    Args:
        make: gives a new vector environment.
        steps: to compare after the restoration; fewer of environments that need more than 2 s for them.

    Returns:
        "exact" if all that the two gave was equal bit for bit; else "reseeded": in a run that is resumed,
        new episodes begin, with seeds that no attempt before had.

    Example:
        >>> import pgce.envs
        >>> from pgce.envs.state import exactness
        >>> exactness(lambda: pgce.envs.make("CartPole-v1", 2))
        'exact'
    """
    try:
        with closing(make()) as envs, closing(make()) as others:
            actions = copy.deepcopy(envs.action_space)
            actions.seed(0)
            drawn = [actions.sample() for _ in range(2 * steps)]
            envs.reset(seed=1)
            others.reset(seed=2)
            for action in _in_time(drawn[:steps]):
                one_step(envs, action)
            set_state(others, copy.deepcopy(get_state(envs)))
            same = all(
                _equal(*(_timeless(one_step(each, action)) for each in (envs, others)))
                for action in _in_time(drawn[steps:])
            )
            if same:  # as far as it goes: of some environments only a reset draws
                same = _equal(*(each.reset() for each in (envs, others)))
    except Exception:  # it can't be saved, or made twice, or fails, or refuses actions that a mask forbids
        return "reseeded"
    return "exact" if same else "reseeded"


def _in_time(actions: list[Any]) -> Iterator[Any]:
    """Actions, one at least, as long as patience lasts."""
    ends = time.monotonic() + _PATIENCE
    for action in actions:
        yield action
        if time.monotonic() > ends:
            return


def _timeless(told: Any) -> Any:
    """What a step told but for the statistics of episodes, which have the time that they took."""
    if isinstance(told, tuple):
        return tuple(map(_timeless, told))
    if isinstance(told, dict):
        timed = isinstance(told.get("episode"), dict) and "t" in told["episode"]
        return {key: _timeless(value) for key, value in told.items() if not (timed and key == "episode")}
    return told


def one_step(envs: Envs, action: Any) -> Any:
    """What a step gives, and with DISABLED autoreset what the reset after it gives."""
    results = envs.step(action)
    done = results[2] | results[3]
    if envs.metadata.get("autoreset_mode") == AutoresetMode.DISABLED and done.any():
        return results, envs.reset(options={"reset_mask": done})
    return results


def _saved(thing: Any, name: str) -> Any:
    """Plain data of an object: of an environment all its attributes that are no constants."""
    if isinstance(thing, Enum):  # before the numbers, which some are too
        return {"member": thing.value if isinstance(thing, Flag) else thing.name}
    if isinstance(thing, _NUMBERS):
        return thing
    if isinstance(thing, np.ndarray) and thing.dtype != object:
        return thing.copy()
    if isinstance(thing, np.random.Generator):
        return {"generator": copy.deepcopy(thing.bit_generator.state)}
    if isinstance(thing, (list, tuple, deque)):
        items = [_saved(item, f"{name}[{n}]") for n, item in enumerate(thing)]
        return tuple(items) if isinstance(thing, tuple) else items
    if isinstance(thing, dict) and all(isinstance(key, str) for key in thing):
        return {key: _saved(item, f"{name}[{key!r}]") for key, item in _changing(thing)}
    if isinstance(thing, _ENVIRONMENTS):
        if hasattr(thing, "get_state") and hasattr(thing, "set_state") and not isinstance(thing, gym.Wrapper):
            return {"own": _saved(thing.get_state(), f"{name}.get_state()")}
        return {key: _saved(item, f"{name}.{key}") for key, item in _changing(vars(thing))}
    raise ValueError(f"only plain data can be saved: {name} is {type(thing).__name__}")


def _changing(items: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Those that are no constants: functions, spaces, types, data that cannot be written."""
    for key, item in items.items():
        if isinstance(item, _CONSTANT) or _is_function(item):
            continue
        if isinstance(item, np.ndarray) and not item.flags.writeable:
            continue
        if isinstance(item, (list, tuple)) and item and all(map(_is_function, item)):
            continue
        if key in ("metadata", "spec", "_ezpickle_args", "_ezpickle_kwargs"):
            continue
        yield key, item


def _is_function(thing: Any) -> bool:
    return callable(thing) and not isinstance(thing, _ENVIRONMENTS)


def _restore(thing: Any, state: Any, name: str, shared: _Shared | None = None) -> Any:
    """What `thing` becomes by a saved state.

    An environment and its generators are changed themselves. What else it holds may be a constant of its
    module or class, that all start from: it is replaced, by one copy wherever one array was.
    """
    if isinstance(thing, _ENVIRONMENTS):
        if "own" in state:
            own_setter: Any = thing
            if not hasattr(thing, "set_state"):
                raise ValueError(f"the state is of another environment: {name} has no set_state")
            own_setter.set_state(state["own"])
            return thing
        own = dict(_changing(vars(thing)))
        if own.keys() != state.keys():
            other = sorted(own.keys() ^ state.keys())
            raise ValueError(f"the state is of another environment: only one {name} has {other}")
        if own.get("num_envs") != state.get("num_envs"):
            raise ValueError(f"the state is of {state['num_envs']} environments: there are {own['num_envs']}")
        shared = _Shared(own)
        for key, value in state.items():
            setattr(thing, key, _restore(own[key], value, f"{name}.{key}", shared))
        return thing
    if isinstance(state, dict) and state.keys() == {"generator"}:
        generator = thing if isinstance(thing, np.random.Generator) else np.random.default_rng()
        generator.bit_generator.state = state["generator"]
        return generator
    if isinstance(state, dict) and state.keys() == {"member"}:
        kind: Any = type(thing)
        if not isinstance(thing, Enum):
            raise ValueError(f"a member of an Enum takes the place of another: {name} is {kind.__name__}")
        return kind(state["member"]) if isinstance(thing, Flag) else kind[state["member"]]
    if isinstance(thing, np.ndarray) and isinstance(state, np.ndarray):
        if thing.shape != state.shape or thing.dtype != state.dtype:
            return state.copy()
        array = thing if shared is None else shared.place(thing, state)
        array[...] = state
        return array
    if isinstance(state, (list, tuple)):
        alike = isinstance(thing, (list, tuple, deque)) and len(thing) == len(state)
        pairs = enumerate(zip(thing if alike else [None] * len(state), state, strict=True))
        restored = [_restore(item, value, f"{name}[{n}]", shared) for n, (item, value) in pairs]
        if isinstance(thing, deque):
            return deque(restored, thing.maxlen)
        if isinstance(thing, tuple):
            return thing._make(restored) if hasattr(thing, "_make") else tuple(restored)
        return type(state)(restored)
    if isinstance(state, dict):
        items = copy.copy(thing) if isinstance(thing, dict) else {}
        for key, value in state.items():
            items[key] = _restore(items.get(key), value, f"{name}[{key!r}]", shared)
        for key in [key for key, _ in _changing(items) if key not in state]:
            del items[key]
        return items
    return copy.deepcopy(state)


class _Shared:
    """Arrays of an environment that share memory, which they do also when they are restored."""

    def __init__(self, own: Any) -> None:
        arrays: dict[int, Any] = {}
        parts = [own]
        while parts:
            part = parts.pop()
            if isinstance(part, dict):
                parts += part.values()
            elif isinstance(part, (list, tuple, deque)):
                parts += part
            elif isinstance(part, np.ndarray):
                arrays[id(part)] = part
        viewed = {id(_memory(array)) for array in arrays.values() if array.base is not None}
        # Views stay as they are if it holds what they are views of: else that may be a constant's.
        self._views = {key for key, array in arrays.items() if id(_memory(array)) in viewed & arrays.keys()}
        self._copies: dict[tuple[int, bytes], NDArray[Any]] = {}

    def place(self, array: NDArray[Any], state: NDArray[Any]) -> NDArray[Any]:
        """Where a saved array is put; one that was there by two names, in one place."""
        if id(array) in self._views:
            return array
        return self._copies.setdefault((id(array), state.tobytes()), array.copy("K"))


def _memory(array: Any) -> Any:
    """The array that an array is a view of; itself if of none."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _equal(one: Any, other: Any) -> bool:
    """Whether all that two steps gave is the same, bit for bit."""
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray) and one.dtype == object:
        return all(map(_equal, one.tolist(), other.tolist()))
    return bool(
        np.array_equal(np.asarray(one), np.asarray(other), equal_nan=np.asarray(one).dtype.kind == "f")
    )

"""Whether what an environment gives, and is given, is what its spaces allow; in words where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from numpy.typing import NDArray

__all__ = ["Unsound", "action_fault", "limits", "look", "sound_batch", "step_fault"]

_LARGEST = float(np.finfo(np.float32).max)  # policies compute in float32
_NUMBERS = {int, float, *(np.dtype(kind).type for kind in "bhilqBHILQefd")}
_BOOLEANS = {bool, np.bool_}


class Unsound(Exception):
    """What an environment gave is refused."""


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
        >>> from pgce.envs.soundness import step_fault
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
        raise Unsound(problem)


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
        >>> from pgce.envs.soundness import sound_batch
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
    return batch if batch.dtype.kind != "f" or _finite(batch).all() else None


def _finite(array: NDArray[Any]) -> NDArray[np.bool_]:
    """Which of the floating numbers are finite in float32."""
    fine: NDArray[np.bool_] = np.isfinite(array) if array.itemsize <= 4 else np.abs(array) <= _LARGEST
    return fine


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
    usual = usual and value.dtype.char in "fd" and value.ndim == 1 and value.size > 0
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
    if array.dtype.kind == "f" and not (fine := _finite(array)).all():
        bad = array[~fine].flat[0]
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
        >>> from pgce.envs.soundness import action_fault
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

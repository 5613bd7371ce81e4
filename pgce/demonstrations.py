"""Recorded behaviour: observations, actions taken on them, what came of it; from arrays, files and Minari."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from pgce.choices import Continuous
from pgce.disk import write_file
from pgce.envs.soundness import limits
from pgce.returns import discounted
from pgce.rollout import Collector, told_mask
from pgce.spaces import actions, apply_mask, encode_actions, entries
from pgce.trainer import Batch

__all__ = ["Recorder", "demonstrations"]

Source = str | Path | Mapping[str, Any]
"""An .npz file, the id of a Minari data set, or arrays by name."""


_OUTCOME = "rewards", "terminations", "truncations"


def demonstrations(
    source: Source, collector: Collector, continuous: Continuous = "gaussian", gamma: float | None = None
) -> Batch:
    """Recorded observations, as the collector's policy sees them, and column "action": M examples in memory.

    Arrays are named "observations" and "actions", as the environment's spaces have them with M rows on the
    first axis, and, where the environment's info tells which actions are allowed, "action_mask" (M, K);
    without it all of them are. A Dict or Tuple is a dict or tuple of arrays, or an array each, named by its
    path: "observations/speed", "actions/0".

    With a discount there is also the column "return": the return to go, from "rewards", "terminations" and
    "truncations", (M,) each. A row is then a step, and the rows of an episode follow each other until one in
    which it terminated or was truncated; what would have come after a truncation, or the last row, counts 0.

    Args:
        source: a file that ends in .npz, else the id of a Minari data set; or the arrays by name.
        collector: of the environments that the policy is for.
        continuous: distribution of the actions of a Box space.
        gamma: discount of the column "return" a step, in [0, 1]; None leaves it out.

    Raises:
        ValueError: an array is missing; has another length, shape or type than the space's, or numbers that
            are not finite or that the space or the mask does not allow; or the file is no .npz file.
        ImportError: a Minari data set is asked for, and minari is not installed.
        FileNotFoundError: there is no such file or data set on this machine.

    Example:
        >>> import numpy as np, pgce.envs
        >>> from pgce.demonstrations import demonstrations
        >>> from pgce.networks import mlp
        >>> from pgce.rollout import Collector
        >>> collector = Collector(pgce.envs.make("CartPole-v1", 1), mlp(4, 2), num_steps=1, seed=0)
        >>> data = {"observations": np.zeros((3, 4), np.float32), "actions": np.array([0, 1, 1])}
        >>> demonstrations(data, collector)["action"]
        tensor([0, 1, 1])
        >>> demonstrations({**data, "actions": np.array([0, 1, 2])}, collector)
        Traceback (most recent call last):
        ...
        ValueError: actions lie in 0 to 1: row 2 has 2
        >>> outcome = {
        ...     "rewards": np.ones(3),
        ...     "terminations": np.arange(3) == 1,
        ...     "truncations": np.zeros(3, bool),
        ... }
        >>> demonstrations({**data, **outcome}, collector, gamma=0.5)["return"]
        tensor([1.5000, 1.0000, 1.0000])
    """
    seen, acted = collector.envs.single_observation_space, collector.envs.single_action_space
    arrays = source if isinstance(source, Mapping) else _read(source, seen, acted)
    if missing := [name for name in ("observations", "actions") if not _has(arrays, name)]:
        raise ValueError(
            f'demonstrations are "observations" and "actions": {", ".join(missing)} missing, there are '
            f"{', '.join(map(str, arrays)) or 'no arrays'}"
        )
    observation, action = _nested(seen, arrays, "observations"), _nested(acted, arrays, "actions")
    leaves = [*_leaves(seen, observation, "observations"), *_leaves(acted, action, "actions")]
    many = len(leaves[0][2]) if leaves[0][2].ndim else 0
    for space, name, array in leaves:
        _check(space, name, array, many)
    mask = arrays.get("action_mask")
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != (many, collector.mask_size) or mask.dtype.kind not in "biu":
            raise ValueError(
                f"an action mask is boolean, of shape {(many, collector.mask_size)} here: it has dtype "
                f"{mask.dtype} and shape {mask.shape}"
            )
    how = actions(acted, continuous)
    columns = {"action": encode_actions(acted, action)}
    if gamma is not None:
        columns["return"] = _returns(arrays, many, gamma)
    columns = {name: column.to(collector.device) for name, column in columns.items()}
    batch = Batch(collector.encode(observation, mask), columns)
    logits = torch.zeros(how.logits_shape, device=collector.device).expand(many, *how.logits_shape)
    how.head.check(logits, batch["action"])
    if collector.mask_size and isinstance(batch.input, torch.Tensor):
        logits = apply_mask(logits, batch.input[:, -collector.mask_size :] > 0.5, how.head)
        forbidden = how.head.cross_entropy(logits, batch["action"]) > 1e3
        if bool(forbidden.any()):
            raise ValueError(
                f"an action that was taken was allowed: the mask forbids that of row "
                f"{int(forbidden.nonzero()[0])}"
            )
    return batch


class Recorder(VectorWrapper[Any, Any, Any, Any, Any]):
    """Environments that keep what they showed, what was done and what came of it, in their first episodes.

    Every environment keeps a fixed share of the episodes, as `pgce.rollout.evaluate` counts them.

    Args:
        envs: any vector environment.
        episodes: that are kept in all.

    Example:
        >>> import pgce.envs
        >>> from pgce.demonstrations import Recorder
        >>> from pgce.networks import mlp
        >>> from pgce.rollout import evaluate
        >>> recorder = Recorder(pgce.envs.make("CartPole-v1", 4), episodes=10)
        >>> returns, lengths = evaluate(recorder, mlp(4, 2), episodes=10, seed=1)
        >>> arrays = recorder.arrays()
        >>> sorted(arrays)
        ['actions', 'observations', 'rewards', 'terminations', 'truncations']
        >>> ends = (arrays["terminations"] | arrays["truncations"]).nonzero()[0] + 1
        >>> bool((ends == lengths.cumsum()).all())
        True
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], episodes: int) -> None:
        super().__init__(envs)
        n = envs.num_envs
        self._left = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
        self._resetting = np.zeros(n, np.bool_)  # environments whose next step only resets them
        self._observation: Any = None
        self._mask: NDArray[np.bool_] | None = None
        self._kept: dict[str, list[NDArray[Any]]] = {}
        self._begun = 0  # episodes, each of which has a number
        self._number = np.zeros(n, np.int64)  # of the one that an environment is in
        self._numbers: list[NDArray[np.int64]] = []  # of the rows that are kept
        self._ended: list[NDArray[np.int64]] = []
        self._acted = np.zeros(n, np.bool_)  # where the present episode has had a step

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all environments, or in those of `options["reset_mask"]`."""
        before, which = self._mask, (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        observation, info = self.env.reset(seed=seed, options=options)  # takes the mask out of the options
        self._begin(which)
        self._see(observation, info)
        if self._mask is not None and before is not None:
            self._mask = np.where(which[:, None], self._mask, before)
        return observation, info

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Keep the rows that count, and step all environments."""
        rows = (self._left > 0) & ~self._resetting
        shown = (self.env.single_observation_space, self._observation, "observations")
        done = (self.env.single_action_space, actions, "actions")
        for _, name, array in (*_leaves(*shown), *_leaves(*done)):
            self._kept.setdefault(name, []).append(array[rows])
        if self._mask is not None:
            self._kept.setdefault("action_mask", []).append(self._mask[rows])
        observation, reward, terminated, truncated, info = self.env.step(actions)
        # A step in which an environment failed is none of its episode, as a Collector has it.
        failed = np.asarray(info.get("env_restarted", np.zeros(self.num_envs, np.bool_)))
        self._numbers.append(np.where(failed, -1, self._number)[rows])
        ends = np.array([terminated, truncated], np.bool_)  # some environments tell them by numbers
        for name, array in zip(_OUTCOME, (np.asarray(reward), *ends), strict=True):
            self._kept.setdefault(name, []).append(array[rows])
        over = ends[0] | ends[1]
        self._ended.append(self._number[over & rows])
        self._begin(over)
        self._left = self._left - (over & ~self._resetting & (self._acted | ~failed))
        self._acted = ~over & ~self._resetting
        if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
            self._resetting = over
        self._see(observation, info)
        return observation, reward, terminated, truncated, info

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was kept, by name, as `demonstrations` takes it: a row a step, M in all.

        "observations" and "actions", an array each or one of every part of the space; "rewards" (M,);
        "terminations" and "truncations" (M,), bool; and "action_mask" (M, K), bool, where there is one.

        The rows of an episode follow each other, and its last is the only one in which it terminated or was
        truncated. Episodes come in the order of their ends, as the returns of `pgce.rollout.evaluate` do; one
        that has not ended is left out. What was shown after an episode's last action is not kept.
        """
        if not self._kept:
            return {}
        number, ended = np.concatenate(self._numbers), np.concatenate(self._ended)
        rank = np.full(self._begun + 1, -1)  # the last is that of no episode
        rank[ended] = np.arange(len(ended))
        order = np.argsort(rank[number], kind="stable")[np.count_nonzero(rank[number] < 0) :]
        arrays = {name: np.concatenate(parts)[order] for name, parts in self._kept.items()}
        arrays["truncations"] |= (np.diff(number[order], append=-1) != 0) & ~arrays["terminations"]
        return arrays

    def save(self, path: str | Path) -> None:
        """Write what was kept as an .npz file."""
        content = BytesIO()
        np.savez_compressed(content, **self.arrays())  # type: ignore[arg-type]
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_file(Path(path), content.getvalue())

    def _begin(self, which: NDArray[np.bool_]) -> None:
        """Episodes in these environments have numbers of their own from now on."""
        self._number = np.where(which, self._begun + np.cumsum(which) - 1, self._number)
        self._begun += int(np.count_nonzero(which))

    def _see(self, observation: Any, info: Mapping[str, Any]) -> None:
        self._observation, self._mask = observation, told_mask(info)


def _read(source: str | Path, seen: gym.Space[Any], acted: gym.Space[Any]) -> dict[str, NDArray[Any]]:
    """The arrays of a file or of a Minari data set, by name."""
    if Path(source).suffix.lower() != ".npz":
        return _minari(str(source), seen, acted)
    if Path(source).exists() and not is_zipfile(source):
        raise ValueError(f"an .npz file is what numpy.savez writes: {source} is none")
    with np.load(source, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _minari(name: str, seen: gym.Space[Any], acted: gym.Space[Any]) -> dict[str, NDArray[Any]]:
    """A Minari data set's observations that an action followed, and the actions."""
    try:
        import minari
    except ImportError as error:
        raise ImportError(
            f'{name} is no .npz file; as a Minari data set it needs minari: pip install "pgce[minari]"'
        ) from error
    parts: dict[str, list[NDArray[Any]]] = {}
    for episode in minari.load_dataset(name).iterate_episodes():
        recorded = {key: getattr(episode, key) for key in ("observations", "actions", *_OUTCOME)}
        if (mask := (episode.infos or {}).get("action_mask")) is not None:
            recorded["action_mask"] = mask
        for key, value in recorded.items():
            space = {"observations": seen, "actions": acted}.get(key)
            for _, path, array in _leaves(space, value, key):
                parts.setdefault(path, []).append(array[: len(episode)])
    return {path: np.concatenate(arrays) for path, arrays in parts.items()}


def _returns(arrays: Mapping[str, Any], many: int, gamma: float) -> torch.Tensor:
    """The return to go of every row (M,)."""
    if missing := [name for name in _OUTCOME if name not in arrays]:
        raise ValueError(
            f"a return is of {', '.join(_OUTCOME)}: {', '.join(missing)} missing, there are "
            f"{', '.join(map(str, arrays))}"
        )
    reward, terminated, truncated = (np.asarray(arrays[name]) for name in _OUTCOME)
    for name, array in zip(_OUTCOME, (reward, terminated, truncated), strict=True):
        kinds = "biuf" if name == "rewards" else "biu"
        if array.shape != (many,) or array.dtype.kind not in kinds or not np.isfinite(array).all():
            rule = "finite numbers" if name == "rewards" else "true or false"
            raise ValueError(
                f"{name} are {rule}, one a row, {(many,)}: they have dtype {array.dtype}, shape {array.shape}"
            )
    column = [torch.as_tensor(array)[:, None] for array in (reward.astype(np.float64), terminated, truncated)]
    return discounted(column[0], column[1].bool(), column[2].bool(), gamma)[:, 0].float()


def _has(arrays: Mapping[str, Any], name: str) -> bool:
    return any(key == name or key.startswith(f"{name}/") for key in arrays)


def _nested(space: gym.Space[Any], arrays: Mapping[str, Any], name: str) -> Any:
    """The arrays of one name as the space nests them."""
    if name in arrays:
        return arrays[name]
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        raise ValueError(f"demonstrations have every part of a space: {name} is missing, of {space}")
    parts = {key: _nested(entry, arrays, f"{name}/{key}") for key, entry in entries(space)}
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def _leaves(
    space: gym.Space[Any] | None, value: Any, name: str
) -> Iterator[tuple[gym.Space[Any], str, NDArray[Any]]]:
    """Each single space in a space, its path and its array."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield space, name, np.asarray(value)  # type: ignore[misc]
        return
    for key, entry in entries(space):
        try:
            own = value[key]
        except (KeyError, IndexError, TypeError):
            raise ValueError(
                f"demonstrations have every part of a space: {name}/{key} is missing, of {space}"
            ) from None
        yield from _leaves(entry, own, f"{name}/{key}")


def _check(space: gym.Space[Any], name: str, array: NDArray[Any], many: int) -> None:
    """Refuse an array that is not `many` rows of the space's."""
    shape = (many, *(space.shape or ()))
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} are numbers: they have dtype {array.dtype}")
    if not array.ndim or not len(array):
        raise ValueError(f"{name} have one row or more: they have shape {array.shape}")
    if len(array) != many:
        raise ValueError(f"one row of {name} an observation, {many}: there are {len(array)}")
    if array.shape != shape:
        raise ValueError(f"{name} have shape {shape}, as {space} does: they have shape {array.shape}")
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if not (finite := np.isfinite(array)).all():
            at = tuple(np.argwhere(~finite)[0].tolist())
            raise ValueError(f"{name} are finite: row {at[0]} has {array[at]}")
        return
    if array.dtype.kind == "f":
        raise ValueError(f"{name} are whole numbers, as {space} has them: they have dtype {array.dtype}")
    low, high = (space.low, space.high) if isinstance(space, spaces.Box) else limits(space)
    if (odd := (array < low) | (array > high)).any():
        at = tuple(np.argwhere(odd)[0].tolist())
        edges = (np.broadcast_to(edge, shape[1:])[at[1:]] for edge in (low, high))
        raise ValueError(f"{name} lie in {' to '.join(map(str, edges))}: row {at[0]} has {array[at]}")

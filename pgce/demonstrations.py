"""Recorded behaviour: observations and the actions that were taken on them, from arrays, files and Minari."""

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

from pgce.checkpoint import write_file
from pgce.choices import Continuous
from pgce.rollout import Collector, told_mask
from pgce.spaces import actions, apply_mask, encode_actions
from pgce.trainer import Batch

__all__ = ["Recorder", "demonstrations"]

Source = str | Path | Mapping[str, Any]
"""An .npz file, the id of a Minari data set, or arrays by name."""


def demonstrations(source: Source, collector: Collector, continuous: Continuous = "gaussian") -> Batch:
    """Recorded observations, as the collector's policy sees them, and column "action": M examples in memory.

    Arrays are named "observations" and "actions", as the environment's spaces have them with M rows on the
    first axis, and, where the environment's info tells which actions are allowed, "action_mask" (M, K);
    without it all of them are. A Dict or Tuple is a dict or tuple of arrays, or an array each, named by its
    path: "observations/speed", "actions/0".

    Args:
        source: a file that ends in .npz, else the id of a Minari data set; or the arrays by name.
        collector: of the environments that the policy is for.
        continuous: distribution of the actions of a Box space.

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
    batch = Batch(
        collector.encode(observation, mask), {"action": encode_actions(acted, action).to(collector.device)}
    )
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
    """Environments that keep what they showed and what was done, in their first episodes.

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
        >>> sorted(arrays), len(arrays["actions"]) == int(lengths.sum())
        (['actions', 'observations'], True)
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], episodes: int) -> None:
        super().__init__(envs)
        n = envs.num_envs
        self._left = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
        self._resetting = np.zeros(n, np.bool_)  # environments whose next step only resets them
        self._observation: Any = None
        self._mask: NDArray[np.bool_] | None = None
        self._kept: dict[str, list[NDArray[Any]]] = {}

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin new episodes in all environments, or in those of `options["reset_mask"]`."""
        observation, info = self.env.reset(seed=seed, options=options)
        before = self._mask
        self._see(observation, info)
        if options and "reset_mask" in options and self._mask is not None and before is not None:
            self._mask = np.where(options["reset_mask"][:, None], self._mask, before)
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
        over = terminated | truncated
        self._left = self._left - (over & ~self._resetting)
        if self.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP:
            self._resetting = over
        self._see(observation, info)
        return observation, reward, terminated, truncated, info

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was kept, by name, as `demonstrations` takes it."""
        return {name: np.concatenate(parts) for name, parts in self._kept.items()}

    def save(self, path: str | Path) -> None:
        """Write what was kept as an .npz file."""
        content = BytesIO()
        np.savez_compressed(content, **self.arrays())  # type: ignore[arg-type]
        write_file(Path(path), content.getvalue())

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
        recorded = {"observations": episode.observations, "actions": episode.actions}
        if (mask := (episode.infos or {}).get("action_mask")) is not None:
            recorded["action_mask"] = mask
        for key, space in (("observations", seen), ("actions", acted), ("action_mask", None)):
            if key in recorded:
                for _, path, array in _leaves(space, recorded[key], key):
                    parts.setdefault(path, []).append(array[: len(episode)])
    return {path: np.concatenate(arrays) for path, arrays in parts.items()}


def _entries(space: gym.Space[Any] | None) -> list[tuple[Any, gym.Space[Any]]] | None:
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return list(enumerate(space.spaces)) if isinstance(space, spaces.Tuple) else None


def _has(arrays: Mapping[str, Any], name: str) -> bool:
    return any(key == name or key.startswith(f"{name}/") for key in arrays)


def _nested(space: gym.Space[Any], arrays: Mapping[str, Any], name: str) -> Any:
    """The arrays of one name as the space nests them."""
    if name in arrays:
        return arrays[name]
    entries = _entries(space)
    if entries is None:
        raise ValueError(f"demonstrations have every part of a space: {name} is missing, of {space}")
    parts = {key: _nested(entry, arrays, f"{name}/{key}") for key, entry in entries}
    return parts if isinstance(space, spaces.Dict) else tuple(parts.values())


def _leaves(
    space: gym.Space[Any] | None, value: Any, name: str
) -> Iterator[tuple[gym.Space[Any], str, NDArray[Any]]]:
    """Each single space in a space, its path and its array."""
    entries = _entries(space)
    if entries is None:
        yield space, name, np.asarray(value)  # type: ignore[misc]
        return
    for key, entry in entries:
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
    low, high = _limits(space)
    if (odd := (array < low) | (array > high)).any():
        at = tuple(np.argwhere(odd)[0].tolist())
        edges = (np.broadcast_to(edge, shape[1:])[at[1:]] for edge in (low, high))
        raise ValueError(f"{name} lie in {' to '.join(map(str, edges))}: row {at[0]} has {array[at]}")


def _limits(space: Any) -> tuple[Any, Any]:
    """The least and the greatest whole numbers of a space."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    start = np.asarray(space.start)
    return start, start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1

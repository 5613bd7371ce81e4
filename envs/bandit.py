"""A classifier's data set as an environment: the same examples, but only a reward for the right class."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgce.envs import datasets
from pgce.envs.vector_base import NumpyVectorEnv

__all__ = ["ClassificationBandit", "VectorClassificationBandit"]

Split = Literal["train", "test"]


class ClassificationBandit(gym.Env[NDArray[np.float32], np.int64]):
    """Name the class of one example.

    ## Description
    A contextual bandit that shows what REINFORCE has to do with classification: an action a drawn from the
    policy p earns 1 if it is the label y. The expected gradient of reward · H(a, p) over a ~ p is p_y times
    that of the cross-entropy H(y, p): the same direction, smaller where the policy seldom tries the label.

    ## Action space
    `Discrete(K)`: a class.

    ## Observation space
    `Box(D)`, float32: the features of one example, between the least and greatest of the data.

    ## Rewards
    1 for the right class, else 0.

    ## Starting state
    An example drawn uniformly.

    ## Episode end
    It terminates after one step; the last observation is the example that was classified.

    ## Arguments
    `features` (M, D) and `labels` (M,) in 0..K−1; or `data`, what `pgce.envs.datasets.load` takes, and
    `split`, "train" or "test".

    Raises:
        ValueError: features and labels that don't fit each other, or neither or both of them and `data`; an
            action that is no class.

    Example:
        >>> import numpy as np
        >>> from pgce.envs import ClassificationBandit
        >>> env = ClassificationBandit(np.eye(3), np.array([0, 1, 2]))
        >>> features, info = env.reset(seed=0)
        >>> env.step(features.argmax())[1:4]
        (1.0, True, False)
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        features: NDArray[Any] | None = None,
        labels: NDArray[Any] | None = None,
        *,
        data: str | None = None,
        split: Split = "train",
    ) -> None:
        self._features, self._labels = _examples(features, labels, data, split)
        self.observation_space, self.action_space = _spaces(self._features, self._labels)
        self._row = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw an example."""
        super().reset(seed=seed)
        self._row = int(self.np_random.integers(len(self._labels)))
        return self._features[self._row].copy(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Pay for the right class; the episode is over."""
        if not self.action_space.contains(np.asarray(action)):
            raise ValueError(f"actions are in {self.action_space}: it is {action!r}")
        reward = float(action == self._labels[self._row])
        return self._features[self._row].copy(), reward, True, False, {}


class VectorClassificationBandit(NumpyVectorEnv):
    """N of `ClassificationBandit`.

    Args:
        num_envs: N.
        autoreset_mode: SAME_STEP by default, since every step ends an episode; then `info["final_obs"]`
            (N, D) holds the examples that were classified.
        max_episode_steps: truncates.
        features: (M, D).
        labels: (M,), class ids in 0..K−1.
        data: instead of both, the name of a data set.
        split: which part of it.

    Raises:
        ValueError: as `NumpyVectorEnv` and `ClassificationBandit`.

    Example:
        >>> import numpy as np
        >>> from pgce.envs import VectorClassificationBandit
        >>> envs = VectorClassificationBandit(2, features=np.eye(3), labels=np.array([0, 1, 2]))
        >>> features, info = envs.reset(seed=0)
        >>> envs.step(features.argmax(-1))[1]
        array([1., 1.])
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        max_episode_steps: int | None = None,
        *,
        features: NDArray[Any] | None = None,
        labels: NDArray[Any] | None = None,
        data: str | None = None,
        split: Split = "train",
    ) -> None:
        self._features, self._labels = _examples(features, labels, data, split)
        spaces = _spaces(self._features, self._labels)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, *spaces)
        self._row = np.zeros(num_envs, np.int64)
        self._terminated = np.ones(num_envs, np.bool_)

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        self._row[rows] = self.np_random.integers(len(self._labels), size=len(rows))

    def _advance(self, actions: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        right = actions == self._labels.take(self._row)
        return right.astype(np.float64), self._terminated.copy()

    def _observe(self) -> NDArray[np.float32]:
        return self._features.take(self._row, 0)


def _examples(
    features: NDArray[Any] | None, labels: NDArray[Any] | None, data: str | None, split: Split
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    if (data is None) == (features is None or labels is None) or (features is None) != (labels is None):
        given = {"features": features is not None, "labels": labels is not None, "data": data is not None}
        names = " and ".join(name for name, is_given in given.items() if is_given) or "nothing"
        raise ValueError(f"a bandit takes features and labels, or the name of a data set: it got {names}")
    if data is not None:
        if split not in ("train", "test"):
            raise ValueError(f'split is "train" or "test": it is {split!r}')
        loaded = datasets.load(data)
        if loaded.task != "classification":
            raise ValueError(f"a bandit's data set has one class an example: {data!r} is for {loaded.task}")
        if split == "train":
            return loaded.train_inputs, loaded.train_labels
        return loaded.test_inputs, loaded.test_labels
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        features, labels = np.asarray(features).astype(np.float32), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1] or len(labels) == 0:
        raise ValueError(
            f"features are (M, D) and labels (M,): they have shapes {features.shape} and {labels.shape}"
        )
    if not np.isfinite(features).all():
        count = int((~np.isfinite(features)).sum())
        raise ValueError(f"features are finite in float32: {count} of {features.size} are not")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are integers from 0: their dtype is {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"labels are integers from 0: the least {labels.min()}")
    return features, labels.astype(np.int64)


def _spaces(
    features: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[gym.Space[Any], gym.spaces.Discrete]:
    low, high = features.min(), features.max()
    box = gym.spaces.Box(low, high, features.shape[1:], np.float32)
    return box, gym.spaces.Discrete(int(labels.max()) + 1)

"""Environments that each test one thing of a learner, in a second: where it fails says what is broken.

In the order to try them: `ValueProbe` (does the critic learn?), `DiscountProbe` (does it discount?),
`TruncationProbe` (does it tell a cut from an end?), `ActionProbe` (does the policy learn?), `MaskProbe`
(does it obey a mask?), `MemoryProbe` (does it remember?).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgce.envs.vector_base import NumpyVectorEnv, SingleEnv, at_least

__all__ = [
    "ActionProbe",
    "ActionProbeVectorEnv",
    "DiscountProbe",
    "DiscountProbeVectorEnv",
    "MaskProbe",
    "MaskProbeVectorEnv",
    "MemoryProbe",
    "MemoryProbeVectorEnv",
    "TruncationProbe",
    "TruncationProbeVectorEnv",
    "ValueProbe",
    "ValueProbeVectorEnv",
]

Ends = tuple[NDArray[np.float64], NDArray[np.bool_]]


class ValueProbeVectorEnv(NumpyVectorEnv):
    """N of `ValueProbe`. Further arguments and errors are those of `NumpyVectorEnv`.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.probes import ValueProbeVectorEnv
        >>> envs = ValueProbeVectorEnv(4)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(np.zeros(4, int))[1] == observation[:, 0]
        array([ True,  True,  True,  True])
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        space = Box(-1.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(2))
        self._sign = np.ones(num_envs, np.float32)

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        self._sign[rows] = _signs(self.np_random, len(rows))

    def _advance(self, actions: NDArray[np.int64]) -> Ends:
        return self._sign.astype(np.float64), np.ones(self.num_envs, np.bool_)

    def _observe(self) -> NDArray[np.float32]:
        return self._sign[:, None].copy()


class ValueProbe(SingleEnv):
    """The reward is what is seen, whatever is done: only a value can be learned, V(x) = x.

    ## Action space
    `Discrete(2)`, without effect.

    ## Observation space
    `Box(1)`, float32: −1 or 1.

    ## Rewards
    The observation.

    ## Starting state
    −1 or 1, equally likely.

    ## Episode end
    It terminates after one step.

    Example:
        >>> from pgce.envs.probes import ValueProbe
        >>> env = ValueProbe()
        >>> observation, info = env.reset(seed=0)
        >>> env.step(0)[1] == float(observation[0])
        True
    """

    vector_version = ValueProbeVectorEnv


class DiscountProbeVectorEnv(NumpyVectorEnv):
    """N of `DiscountProbe`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        length: steps of an episode.

    Raises:
        ValueError: a length below 1.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.probes import DiscountProbeVectorEnv
        >>> envs = DiscountProbeVectorEnv(1, length=3)
        >>> observation, info = envs.reset(seed=0)
        >>> [envs.step(np.array([0]))[1].item() for _ in range(3)]
        [0.0, 0.0, 1.0]
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        length: int = 2,
    ) -> None:
        self._length = at_least(1, "length", length)
        space = Box(0.0, 1.0, (length,), np.float32)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(2))
        self._time = np.zeros(num_envs, np.int64)

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        self._time[rows] = 0

    def _advance(self, actions: NDArray[np.int64]) -> Ends:
        self._time += 1
        terminated = self._time >= self._length
        return terminated.astype(np.float64), terminated

    def _observe(self) -> NDArray[np.float32]:
        taken: NDArray[np.bool_] = self._time[:, None] == np.arange(self._length)
        return taken.astype(np.float32)


class DiscountProbe(SingleEnv):
    """A reward at the end only: the value of a step is γ to the power of the steps that remain.

    ## Action space
    `Discrete(2)`, without effect.

    ## Observation space
    `Box(length)`, float32: one-hot of the steps taken; all 0 at the end.

    ## Rewards
    1 for the last step, else 0. So V = γ^(length − 1 − steps taken).

    ## Starting state
    No steps taken.

    ## Episode end
    It terminates after `length` steps.

    ## Arguments
    `length`, 2.

    Example:
        >>> from pgce.envs.probes import DiscountProbe
        >>> env = DiscountProbe(length=3)
        >>> env.reset()[0]
        array([1., 0., 0.], dtype=float32)
    """

    vector_version = DiscountProbeVectorEnv


class TruncationProbeVectorEnv(NumpyVectorEnv):
    """N of `TruncationProbe`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        max_episode_steps: truncates; the probe is registered with 2.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.probes import TruncationProbeVectorEnv
        >>> envs = TruncationProbeVectorEnv(1, max_episode_steps=1)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(np.array([0]))[1:4]
        (array([1.]), array([False]), array([ True]))
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        space = Box(0.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(2))

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        pass

    def _advance(self, actions: NDArray[np.int64]) -> Ends:
        return np.ones(self.num_envs), np.zeros(self.num_envs, np.bool_)

    def _observe(self) -> NDArray[np.float32]:
        return np.ones((self.num_envs, 1), np.float32)


class TruncationProbe(SingleEnv):
    """A reward of 1 for ever, in episodes that are cut: V = 1 / (1 − γ), as if nothing were.

    A learner that takes a cut for an end comes out below.

    ## Action space
    `Discrete(2)`, without effect.

    ## Observation space
    `Box(1)`, float32: 1.

    ## Rewards
    1 a step.

    ## Starting state
    The only one.

    ## Episode end
    Never, but for the time limit: pgce/ProbeTruncation-v0 is registered with 2 steps.

    Example:
        >>> import gymnasium as gym, pgce.envs
        >>> env = gym.make("pgce/ProbeTruncation-v0")
        >>> observation, info = env.reset()
        >>> [env.step(0)[2:4] for _ in range(2)]
        [(False, False), (False, True)]
    """

    vector_version = TruncationProbeVectorEnv


class ActionProbeVectorEnv(ValueProbeVectorEnv):
    """N of `ActionProbe`. Further arguments and errors are those of `NumpyVectorEnv`.

    Example:
        >>> from pgce.envs.probes import ActionProbeVectorEnv
        >>> envs = ActionProbeVectorEnv(3)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step((observation[:, 0] > 0).astype(int))[1]
        array([1., 1., 1.])
    """

    def _advance(self, actions: NDArray[np.int64]) -> Ends:
        reward = np.where((actions == 1) == (self._sign > 0), 1.0, -1.0)
        return reward, np.ones(self.num_envs, np.bool_)


class ActionProbe(SingleEnv):
    """The right action depends on what is seen: the policy must learn, the value 1 follows.

    ## Action space
    `Discrete(2)`: "it is −1", "it is 1".

    ## Observation space
    `Box(1)`, float32: −1 or 1.

    ## Rewards
    1 if that is right, else −1.

    ## Starting state
    −1 or 1, equally likely.

    ## Episode end
    It terminates after one step.

    Example:
        >>> from pgce.envs.probes import ActionProbe
        >>> env = ActionProbe()
        >>> observation, info = env.reset(seed=0)
        >>> env.step(int(observation[0] < 0))[1]
        -1.0
    """

    vector_version = ActionProbeVectorEnv


class MemoryProbeVectorEnv(NumpyVectorEnv):
    """N of `MemoryProbe`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        delay: steps from the cue to the question.

    Raises:
        ValueError: a delay below 1.

    Example:
        >>> from pgce.envs.probes import MemoryProbeVectorEnv
        >>> envs = MemoryProbeVectorEnv(3, delay=1)
        >>> cue, info = envs.reset(seed=0)
        >>> answer = (cue[:, 0] > 0).astype(int)
        >>> envs.step(answer)[0].tolist()
        [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]
        >>> envs.step(answer)[1]
        array([1., 1., 1.])
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        delay: int = 2,
    ) -> None:
        self._delay = at_least(1, "delay", delay)
        space = Box(-1.0, 1.0, (2,), np.float32)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(2))
        self._cue = np.ones(num_envs, np.float32)
        self._time = np.zeros(num_envs, np.int64)

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        self._cue[rows] = _signs(self.np_random, len(rows))
        self._time[rows] = 0

    def _advance(self, actions: NDArray[np.int64]) -> Ends:
        terminated = self._time >= self._delay
        self._time += 1
        right = np.where((actions == 1) == (self._cue > 0), 1.0, -1.0)
        return np.where(terminated, right, 0.0), terminated

    def _observe(self) -> NDArray[np.float32]:
        cue, question = np.where(self._time == 0, self._cue, 0.0), self._time == self._delay
        return np.stack((cue, question), axis=1).astype(np.float32)


class MemoryProbe(SingleEnv):
    """Name at the end what was shown at first: a policy without memory earns 0 on average.

    ## Action space
    `Discrete(2)`: "it was −1", "it was 1"; counts at the question only.

    ## Observation space
    `Box(2)`, float32: the cue, −1 or 1, at first, and 0 after that; 1 at the question, else 0.

    ## Rewards
    At the question 1 if the answer is right, else −1; 0 before.

    ## Starting state
    A cue of −1 or 1, equally likely.

    ## Episode end
    It terminates with the answer, after `delay` + 1 steps.

    ## Arguments
    `delay`, 2: steps from the cue to the question.

    Example:
        >>> from pgce.envs.probes import MemoryProbe
        >>> env = MemoryProbe(delay=2)
        >>> cue, info = env.reset(seed=0)
        >>> [env.step(0)[0].tolist() for _ in range(2)]
        [[0.0, 0.0], [0.0, 1.0]]
    """

    vector_version = MemoryProbeVectorEnv


class MaskProbeVectorEnv(NumpyVectorEnv):
    """N of `MaskProbe`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        actions: K.
        length: steps of an episode.

    Raises:
        ValueError: fewer than 2 actions, a length below 1.

    Example:
        >>> from pgce.envs.probes import MaskProbeVectorEnv
        >>> envs = MaskProbeVectorEnv(3)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(info["action_mask"].argmax(1))[1]
        array([1., 1., 1.])
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        actions: int = 4,
        length: int = 4,
    ) -> None:
        self._length = at_least(1, "length", length)
        at_least(2, "actions", actions)
        space = Box(0.0, 1.0, (1,), np.float32)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(actions))
        self._mask = np.ones((num_envs, actions), np.int8)
        self._time = np.zeros(num_envs, np.int64)

    def _draw(self, rows: NDArray[np.int64]) -> None:
        order = self.np_random.random((len(rows), self._mask.shape[1]))
        # Below the mean: at least one, and not all.
        self._mask[rows] = order < order.mean(1, keepdims=True)

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        self._draw(rows)
        self._time[rows] = 0

    def _advance(self, actions: NDArray[np.int64]) -> Ends:
        every = np.arange(self.num_envs)
        reward = np.where(self._mask[every, actions] == 1, 1.0, -1.0)
        self._time += 1
        self._draw(every)
        return reward, self._time >= self._length

    def _observe(self) -> NDArray[np.float32]:
        return np.ones((self.num_envs, 1), np.float32)

    def _info(self) -> dict[str, NDArray[Any]]:
        return {"action_mask": self._mask.copy()}


class MaskProbe(SingleEnv):
    """Only `info["action_mask"]` says which actions are allowed: without it, none is better than another.

    ## Action space
    `Discrete(K)`.

    ## Observation space
    `Box(1)`, float32: always 1.

    ## Rewards
    1 for an allowed action, −1 for another.

    ## Starting state
    `info["action_mask"]` (K,), int8 as in Gymnasium's Taxi, is 1 for the actions that are allowed next: at
    least one and not all, drawn anew after every step.

    ## Episode end
    It terminates after `length` steps.

    ## Arguments
    `actions`, 4: K; `length`, 4.

    Example:
        >>> from pgce.envs.probes import MaskProbe
        >>> env = MaskProbe(actions=3)
        >>> observation, info = env.reset(seed=0)
        >>> env.step(info["action_mask"].argmin())[1]
        -1.0
    """

    vector_version = MaskProbeVectorEnv


def _signs(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    return 2 * generator.integers(2, size=count) - 1

"""Gymnasium's toy text, N at once in NumPy: the same transitions, in every autoreset mode.

`pgce.envs.make("FrozenLake-v1", 8)` takes them. The tables of transitions are those of the installed
Gymnasium's own environments, so that every argument means what it means there. Arguments and errors that are
not explained with each are those of `NumpyVectorEnv`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, Tuple
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgce.envs.vector_base import NumpyVectorEnv

__all__ = ["BlackjackVectorEnv", "CliffWalkingVectorEnv", "FrozenLakeVectorEnv", "TaxiVectorEnv"]

Integers = NDArray[np.int64]


class _TabularVectorEnv(NumpyVectorEnv):
    """N of a Gymnasium environment with a table `P[state][action]` of (probability, next, reward, end)."""

    def __init__(
        self,
        num_envs: int,
        autoreset_mode: AutoresetMode | str,
        max_episode_steps: int | None,
        env: Any,
    ) -> None:
        super().__init__(num_envs, autoreset_mode, max_episode_steps, env.observation_space, env.action_space)
        self._actions = int(env.action_space.n)
        states = range(env.observation_space.n)
        cells = [env.P[state][action] for state in states for action in range(self._actions)]
        self._outcomes = max(map(len, cells))
        # Copies of the last outcome fill a cell; they are never drawn, since the first that can be is.
        table = np.array([[*cell, *[cell[-1]] * (self._outcomes - len(cell))] for cell in cells], np.float64)
        self._cumulative = table[..., 0].cumsum(1)  # (states · actions, outcomes)
        self._probability = table[..., 0].ravel()  # (states · actions · outcomes,), as the next three
        self._next = table[..., 1].ravel().astype(np.int64)
        self._reward = table[..., 2].ravel()
        self._end = table[..., 3].ravel() != 0
        self._first = np.cumsum(env.initial_state_distrib)
        self._state = np.zeros(num_envs, np.int64)
        self._taken = np.ones(num_envs)  # probability of what happened last

    def _uniform(self, rows: Integers | slice) -> NDArray[np.float64]:
        """One draw from [0, 1) for each of these environments."""
        return self.np_random.random(len(self._state[rows]))

    def _begin(self, rows: Integers, options: dict[str, Any]) -> None:
        first = np.searchsorted(self._first, self._uniform(rows), side="right")
        self._state[rows] = first % len(self._first)  # 0 if the sum falls short of 1 by rounding
        self._taken[rows] = 1.0

    def _advance(self, actions: Integers) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        cell = self._state * self._actions + actions
        if self._outcomes > 1:
            drawn = (self._cumulative[cell] > self._uniform(slice(None))[:, None]).argmax(1)
            cell = cell * self._outcomes + drawn
        self._state = self._next[cell]
        self._taken = self._probability[cell]
        return self._reward[cell], self._end[cell]

    def _observe(self) -> Integers:
        return self._state.copy()

    def _info(self) -> dict[str, NDArray[Any]]:
        return {"prob": self._taken.copy()}


class FrozenLakeVectorEnv(_TabularVectorEnv):
    """N of FrozenLake-v1: cross the ice to the goal, and fall into no hole.

    ## Action space
    `Discrete(4)`: left, down, right, up.

    ## Observation space
    `Discrete(rows · columns)`: row · columns + column.

    ## Rewards
    1 for the goal, else 0; or `reward_schedule`.

    ## Starting state
    The tile S; `info["prob"]` is the probability of the last transition, 1 at first.

    ## Episode end
    It terminates in a hole and at the goal.

    Args:
        max_episode_steps: truncates; Gymnasium registers 100, and 200 for the 8x8 map.
        desc: the map, rows of the letters S, F, H and G; the same for all environments.
        map_name: "4x4" or "8x8", where there is no `desc`.
        is_slippery: whether a move may go to either side of what was meant.
        success_rate: probability that it does not; None is Gymnasium's 1/3.
        reward_schedule: for the goal, a hole, and ice; None is Gymnasium's (1, 0, 0).

    Raises:
        ValueError: an unknown map.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.toy_text import FrozenLakeVectorEnv
        >>> envs = FrozenLakeVectorEnv(2, is_slippery=False)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(np.array([1, 2]))[0]
        array([4, 1])
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        desc: Sequence[str] | None = None,
        map_name: str = "4x4",
        is_slippery: bool = True,
        success_rate: float | None = None,
        reward_schedule: tuple[float, float, float] | None = None,
    ) -> None:
        from gymnasium.envs.toy_text.frozen_lake import MAPS, FrozenLakeEnv

        if desc is None and map_name not in MAPS:
            raise ValueError(f"map_name is one of {', '.join(MAPS)}, or desc is a map: it is {map_name!r}")
        newer = {"success_rate": success_rate, "reward_schedule": reward_schedule}  # not in Gymnasium 1.1
        given = {name: value for name, value in newer.items() if value is not None}
        env: Any = FrozenLakeEnv(desc=desc, map_name=map_name, is_slippery=is_slippery, **given)  # type: ignore[arg-type]
        super().__init__(num_envs, autoreset_mode, max_episode_steps, env)


class CliffWalkingVectorEnv(_TabularVectorEnv):
    """N of CliffWalking-v1: walk past a cliff to the goal.

    ## Action space
    `Discrete(4)`: up, right, down, left.

    ## Observation space
    `Discrete(48)`: row · 12 + column.

    ## Rewards
    −1 a step; −100 for the cliff, which leads back to the start.

    ## Starting state
    36, the corner; `info["prob"]` is the probability of the last transition, 1 at first.

    ## Episode end
    It terminates at the goal, 47.

    Args:
        max_episode_steps: truncates; Gymnasium registers none.
        is_slippery: whether a move may go to either side of what was meant.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.toy_text import CliffWalkingVectorEnv
        >>> envs = CliffWalkingVectorEnv(2)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(np.array([0, 1]))[:2]
        (array([24, 36]), array([  -1., -100.]))

    References:
        Sutton and Barto, Example 6.6.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        is_slippery: bool = False,
    ) -> None:
        from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv

        env = CliffWalkingEnv(is_slippery=is_slippery)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, env)


class TaxiVectorEnv(_TabularVectorEnv):
    """N of Taxi-v4: fetch a passenger, and bring him to where he wants to go.

    ## Action space
    `Discrete(6)`: south, north, east, west, pick up, drop off.

    ## Observation space
    `Discrete(500)`: ((row · 5 + column) · 5 + passenger) · 4 + destination; passenger 4 is in the taxi.

    ## Rewards
    20 for a passenger delivered, −10 for a wrong pick-up or drop-off, else −1.

    ## Starting state
    Uniform over the 300 in which the passenger waits elsewhere than at his destination.
    `info["action_mask"]` (N, 6), int8, is 1 for the actions that change the state, and `info["prob"]` the
    probability of the last transition.

    ## Episode end
    It terminates when the passenger is delivered.

    Args:
        max_episode_steps: truncates; Gymnasium registers 200.
        is_rainy: whether the taxi may go to either side of what was meant.
        rainy_probability: that it does not; None is Gymnasium's 0.8.

    Example:
        >>> from pgce.envs.toy_text import TaxiVectorEnv
        >>> envs = TaxiVectorEnv(2)
        >>> observation, info = envs.reset(seed=0)
        >>> following = envs.step(info["action_mask"].argmax(1))[0]
        >>> following != observation
        array([ True,  True])

    References:
        Dietterich (2000).
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        is_rainy: bool = False,
        rainy_probability: float | None = None,
    ) -> None:
        from gymnasium.envs.toy_text.taxi import TaxiEnv

        newer = {"is_rainy": is_rainy or None, "rainy_probability": rainy_probability}
        env: Any = TaxiEnv(**{name: value for name, value in newer.items() if value is not None})  # type: ignore[arg-type]
        super().__init__(num_envs, autoreset_mode, max_episode_steps, env)
        self._masks = np.stack([env.action_mask(state) for state in range(env.observation_space.n)])

    def _info(self) -> dict[str, NDArray[Any]]:
        return {**super()._info(), "action_mask": self._masks[self._state]}


class BlackjackVectorEnv(NumpyVectorEnv):
    """N of Blackjack-v1: come closer to 21 than the dealer, but not beyond.

    ## Action space
    `Discrete(2)`: stick, hit.

    ## Observation space
    `Tuple(Discrete(32), Discrete(11), Discrete(2))`: the player's sum, the dealer's open card (ace 1), and
    whether the player holds an ace that counts 11. For N: a tuple of three arrays (N,).

    ## Rewards
    1 for a win, −1 for a loss, 0 for a draw and for a hit that does not bust.

    ## Starting state
    Two cards each, from an infinite deck. The dealer draws up to 17.

    ## Episode end
    It terminates when the player sticks or goes bust.

    Args:
        max_episode_steps: truncates; Gymnasium registers none.
        natural: a win with an ace and a ten in two cards pays 1.5.
        sab: the rules of Sutton and Barto: such a hand wins but against another, and pays 1.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.toy_text import BlackjackVectorEnv
        >>> envs = BlackjackVectorEnv(3, sab=True)
        >>> (player, dealer, ace), info = envs.reset(seed=0)
        >>> envs.step(np.array([0, 0, 0]))[2]
        array([ True,  True,  True])

    References:
        Sutton and Barto, Example 5.1.
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        natural: bool = False,
        sab: bool = False,
    ) -> None:
        space = Tuple((Discrete(32), Discrete(11), Discrete(2)))
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(2))
        self._pays_natural, self._sab = natural and not sab, sab
        self._open = np.ones(num_envs, np.int64)  # the dealer's first card
        # Hands, the player's and the dealer's: sums with aces as 1, whether there is an ace, whether it is a
        # natural.
        self._sum = np.zeros((2, num_envs), np.int64)
        self._ace, self._natural = np.zeros((2, 2, num_envs), np.bool_)

    def _cards(self, rows: Integers) -> Integers:
        """One card for each of these environments: 1 is an ace; ten, jack, queen and king are 10."""
        return np.minimum(self.np_random.integers(1, 14, len(rows)), 10)

    def _deal(self, hand: int, rows: Integers) -> None:
        card = self._cards(rows)
        self._sum[hand, rows] += card
        self._ace[hand, rows] |= card == 1

    def _begin(self, rows: Integers, options: dict[str, Any]) -> None:
        self._sum[:, rows], self._ace[:, rows] = 0, False
        for hand in (1, 0):
            for card in (0, 1):
                self._deal(hand, rows)
                if hand == 1 and card == 0:
                    self._open[rows] = self._sum[1, rows]
        self._natural[:, rows] = self._ace[:, rows] & (self._sum[:, rows] == 11)

    def _best(self) -> Integers:
        """The sums (2, N), an ace as 11 where that is no bust."""
        return self._sum + 10 * (self._ace & (self._sum <= 11))

    def _advance(self, actions: Integers) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        hits = actions.nonzero()[0]
        self._deal(0, hits)
        self._natural[0, hits] = False
        stick = actions == 0
        while (drawing := (stick & (self._best()[1] < 17)).nonzero()[0]).size:
            self._deal(1, drawing)
        best = self._best()
        score = np.where(best <= 21, best, 0)
        reward = np.sign(score[0] - score[1]).astype(np.float64)
        if self._sab:
            reward[self._natural[0] & ~self._natural[1]] = 1.0
        elif self._pays_natural:
            reward[self._natural[0] & (reward == 1.0)] = 1.5
        bust = best[0] > 21
        return np.where(stick, reward, -1.0 * bust), stick | bust

    def _observe(self) -> tuple[Integers, Integers, Integers]:
        best = self._best()[0]
        return best, self._open.copy(), (best != self._sum[0]).astype(np.int64)

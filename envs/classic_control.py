"""Gymnasium's classic control, N at once in NumPy: the same dynamics, in every autoreset mode.

`pgce.envs.make("Acrobot-v1", 8)` takes them; their spaces, rewards and ends are Gymnasium's own.
Arguments and errors that are not explained with each are those of `NumpyVectorEnv`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgce.envs.vector_base import NumpyVectorEnv

__all__ = [
    "AcrobotVectorEnv",
    "CartPoleVectorEnv",
    "MountainCarContinuousVectorEnv",
    "MountainCarVectorEnv",
    "PendulumVectorEnv",
]

Reals = NDArray[np.float64]


class AcrobotVectorEnv(NumpyVectorEnv):
    """N of Acrobot-v1: swing up two links by a torque on the joint between them.

    ## Action space
    `Discrete(3)`: a torque of −1, 0 or 1 N m.

    ## Observation space
    `Box(6)`, float32: cos θ₁, sin θ₁, cos θ₂, sin θ₂, and the angular velocities, within ±4π and ±9π rad/s.
    θ₁ is 0 where the first link hangs down, θ₂ where the second goes on in its direction.

    ## Rewards
    −1 a step; 0 for the step that reaches the height.

    ## Starting state
    All four numbers uniform in ±0.1; `reset(options={"low": …, "high": …})` sets other bounds.

    ## Episode end
    It terminates where −cos θ₁ − cos(θ₁ + θ₂) > 1.

    Args:
        max_episode_steps: truncates; Gymnasium registers 500.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.classic_control import AcrobotVectorEnv
        >>> envs = AcrobotVectorEnv(2)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(np.array([0, 2]))[1]
        array([-1., -1.])

    References:
        Sutton (1996), with the equations of Sutton and Barto's book.
    """

    reset_options = frozenset({"low", "high"})

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        high = np.array([1, 1, 1, 1, 4 * np.pi, 9 * np.pi], np.float32)
        super().__init__(
            num_envs, autoreset_mode, max_episode_steps, Box(-high, high, dtype=np.float32), Discrete(3)
        )
        self._state = np.zeros((4, num_envs))  # θ₁, θ₂ and their velocities

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        low, high = _bounds(options, -0.1, 0.1)
        self._state[:, rows] = self.np_random.uniform(low, high, (4, len(rows))).astype(np.float32)

    def _advance(self, actions: NDArray[np.int64]) -> tuple[Reals, NDArray[np.bool_]]:
        state, torque, dt = self._state, (actions - 1).astype(np.float64), 0.2
        slope = _acrobot_slope(state, torque)  # fourth-order Runge-Kutta
        total = slope
        slope = _acrobot_slope(state + dt / 2 * slope, torque)
        total = total + 2 * slope
        slope = _acrobot_slope(state + dt / 2 * slope, torque)
        total += 2 * slope
        total += _acrobot_slope(state + dt * slope, torque)
        total *= dt / 6
        state += total
        angles = state[:2]
        angles -= 2 * np.pi * np.ceil((angles - np.pi) / (2 * np.pi))
        _clip(state[2], 4 * np.pi)
        _clip(state[3], 9 * np.pi)
        terminated = -np.cos(angles[0]) - np.cos(angles[0] + angles[1]) > 1.0
        return terminated - 1.0, terminated

    def _observe(self) -> NDArray[np.float32]:
        observation = np.empty((self.num_envs, 6), np.float32)
        angles = self._state[:2].T
        observation[:, 0:4:2] = np.cos(angles)
        observation[:, 1:4:2] = np.sin(angles)
        observation[:, 4:] = self._state[2:].T
        return observation


def _acrobot_slope(state: Reals, torque: Reals) -> Reals:
    """The time derivative (4, N), for links of 1 m and 1 kg, inertia 1 kg m², centres of mass at ½ m."""
    theta1, theta2, speed1, speed2 = state
    sine, cosine = np.sin(theta2), np.cos(theta2)
    d1 = 3.5 + cosine
    d2 = 1.25 + 0.5 * cosine
    phi2 = 4.9 * np.sin(theta1 + theta2)
    phi1 = phi2 + 14.7 * np.sin(theta1) - sine * speed2 * (0.5 * speed2 + speed1)
    ratio = d2 / d1
    slope = np.empty_like(state)
    slope[:2] = state[2:]
    slope[3] = (torque + ratio * phi1 - 0.5 * sine * speed1 * speed1 - phi2) / (1.25 - d2 * ratio)
    slope[2] = -(d2 * slope[3] + phi1) / d1
    return slope


_PUSH = np.array([-10.0, 10.0])  # N, to the left and to the right


class CartPoleVectorEnv(NumpyVectorEnv):
    """N of CartPole-v1: keep a pole upright on a cart, by pushing the cart.

    Gymnasium's own vector version takes half as long again, and knows NEXT_STEP only.

    ## Action space
    `Discrete(2)`: push with 10 N to the left or to the right.

    ## Observation space
    `Box(4)`, float32: position of the cart in m, within ±4.8, its velocity, the pole's angle in rad, within
    ±0.419, its angular velocity.

    ## Rewards
    1 a step.

    ## Starting state
    All four numbers uniform in ±0.05; `reset(options={"low": …, "high": …})` sets other bounds.

    ## Episode end
    It terminates where the cart is beyond ±2.4 m or the pole beyond ±12°.

    Args:
        max_episode_steps: truncates; Gymnasium registers 500.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.classic_control import CartPoleVectorEnv
        >>> envs = CartPoleVectorEnv(2)
        >>> start, info = envs.reset(seed=0)
        >>> observation, *_ = envs.step(np.array([0, 1]))
        >>> (observation - start)[:, 1] > 0
        array([False,  True])

    References:
        Barto, Sutton and Anderson (1983), Neuronlike adaptive elements that can solve difficult learning
        control problems.
    """

    reset_options = frozenset({"low", "high"})

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
    ) -> None:
        angle = 12 * 2 * np.pi / 360
        high = np.array([4.8, np.inf, 2 * angle, np.inf], np.float32)
        super().__init__(
            num_envs, autoreset_mode, max_episode_steps, Box(-high, high, dtype=np.float32), Discrete(2)
        )
        self._state = np.zeros((4, num_envs))  # position and velocity of the cart, angle and its velocity
        self._edge = np.array([[2.4], [angle]])

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        low, high = _bounds(options, -0.05, 0.05)
        self._state[:, rows] = self.np_random.uniform(low, high, (4, len(rows)))

    def _advance(self, actions: NDArray[np.int64]) -> tuple[Reals, NDArray[np.bool_]]:
        places, speeds = self._state[::2], self._state[1::2]
        angle, turning = self._state[2:]
        sine, cosine = np.sin(angle), np.cos(angle)
        change = np.empty_like(speeds)
        push = turning * turning
        push *= 0.05  # mass × half length of the pole
        push *= sine
        push += _PUSH.take(actions)
        push /= 1.1  # mass of both
        change[1] = (9.8 * sine - cosine * push) / (0.5 * (4.0 / 3.0 - 0.1 * (cosine * cosine) / 1.1))
        change[0] = push - 0.05 * change[1] * cosine / 1.1
        places += 0.02 * speeds
        change *= 0.02
        speeds += change
        over = np.abs(places) > self._edge
        return np.ones(self.num_envs), over[0] | over[1]

    def _observe(self) -> NDArray[np.float32]:
        return self._state.T.astype(np.float32, order="C")


class _Car(NumpyVectorEnv):
    """What both mountain cars share; a subclass tells what they are pushed by."""

    reset_options = frozenset({"low", "high"})
    _kept: type[np.floating[Any]] = np.float64  # of the state, between steps

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        goal_velocity: float = 0,
    ) -> None:
        space = Box(np.array([-1.2, -0.07], np.float32), np.array([0.6, 0.07], np.float32))
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, self._forces())
        self._goal_velocity = goal_velocity
        self._state = np.zeros((2, num_envs), self._kept)  # position and velocity

    def _forces(self) -> Discrete | Box:
        """The actions."""
        raise NotImplementedError

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        low, high = _bounds(options, -0.6, -0.4)
        self._state[0, rows] = self.np_random.uniform(low, high, len(rows))
        self._state[1, rows] = 0.0

    def _roll(self, push: Reals) -> NDArray[Any]:
        """Move the cars; return their positions."""
        position: NDArray[Any] = self._state[0]
        velocity: NDArray[Any] = self._state[1]
        velocity += push - 0.0025 * np.cos(3 * position)
        _clip(velocity, 0.07)
        position += velocity
        np.minimum(position, 0.6, out=position)
        np.maximum(position, -1.2, out=position)
        at_wall = position == position.dtype.type(-1.2)
        if np.count_nonzero(at_wall):
            velocity[at_wall & (velocity < 0)] = 0.0  # which stops it
        return position

    def _observe(self) -> NDArray[np.float32]:
        return self._state.T.astype(np.float32, order="C")


class MountainCarVectorEnv(_Car):
    """N of MountainCar-v0: a car too weak for the hill gathers speed on the other one.

    ## Action space
    `Discrete(3)`: push left, not at all, right.

    ## Observation space
    `Box(2)`, float32: position in [−1.2, 0.6] and velocity in ±0.07.

    ## Rewards
    −1 a step.

    ## Starting state
    At rest, at a position uniform in [−0.6, −0.4]; `reset(options={"low": …, "high": …})` sets other bounds.

    ## Episode end
    It terminates at position 0.5 and beyond, if at `goal_velocity` or faster.

    Args:
        max_episode_steps: truncates; Gymnasium registers 200.
        goal_velocity: least velocity at the goal.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.classic_control import MountainCarVectorEnv
        >>> envs = MountainCarVectorEnv(2)
        >>> start, info = envs.reset(seed=0)
        >>> observation, *_ = envs.step(np.array([0, 2]))
        >>> (observation - start)[:, 0] < 0
        array([ True, False])

    References:
        Moore (1990).
    """

    def _forces(self) -> Discrete:
        return Discrete(3)

    def _advance(self, actions: NDArray[np.int64]) -> tuple[Reals, NDArray[np.bool_]]:
        position = self._roll((actions - 1).astype(np.float64) * 0.001)
        terminated = (position >= 0.5) & (self._state[1] >= self._goal_velocity)
        return np.full(self.num_envs, -1.0), terminated


class MountainCarContinuousVectorEnv(_Car):
    """N of MountainCarContinuous-v0: the mountain car with a force, and a price on it.

    ## Action space
    `Box(1)`, float32 in ±1: the force. Beyond that it pushes no more, but costs.

    ## Observation space
    `Box(2)`, float32: position in [−1.2, 0.6] and velocity in ±0.07.

    ## Rewards
    −0.1 · force², and 100 for the goal.

    ## Starting state
    At rest, at a position uniform in [−0.6, −0.4]; `reset(options={"low": …, "high": …})` sets other bounds.

    ## Episode end
    It terminates at position 0.45 and beyond, if at `goal_velocity` or faster.

    Args:
        max_episode_steps: truncates; Gymnasium registers 999.
        goal_velocity: least velocity at the goal.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.classic_control import MountainCarContinuousVectorEnv
        >>> envs = MountainCarContinuousVectorEnv(2)
        >>> observation, info = envs.reset(seed=0)
        >>> envs.step(np.array([[0.0], [-0.5]]))[1]
        array([ 0.   , -0.025])
    """

    _kept = np.float32  # as by Gymnasium, too

    def _forces(self) -> Box:
        return Box(-1.0, 1.0, (1,), np.float32)

    def _advance(self, actions: NDArray[Any]) -> tuple[Reals, NDArray[np.bool_]]:
        force = actions[:, 0].astype(np.float64)
        cost = 0.1 * force * force
        _clip(force, 1.0)
        position = self._roll(force * 0.0015)
        terminated = (position >= np.float32(0.45)) & (self._state[1] >= self._goal_velocity)
        return 100.0 * terminated - cost, terminated


class PendulumVectorEnv(NumpyVectorEnv):
    """N of Pendulum-v1: swing a pendulum up by a torque, and hold it there.

    ## Action space
    `Box(1)`, float32 in ±2 N m: the torque, clipped.

    ## Observation space
    `Box(3)`, float32: cos θ, sin θ and the angular velocity, within ±8 rad/s. θ is 0 upright.

    ## Rewards
    −(θ² + 0.1 · velocity² + 0.001 · torque²), θ in [−π, π), before the step.

    ## Starting state
    θ uniform in ±π and the velocity in ±1; `reset(options={"x_init": …, "y_init": …})` sets other bounds.

    ## Episode end
    Never, but for the time limit.

    Args:
        max_episode_steps: truncates; Gymnasium registers 200.
        g: acceleration of gravity, m/s².

    Example:
        >>> import numpy as np
        >>> from pgce.envs.classic_control import PendulumVectorEnv
        >>> envs = PendulumVectorEnv(2)
        >>> observation, info = envs.reset(seed=0, options={"x_init": 0, "y_init": 0})
        >>> envs.step(np.array([[0.0], [2.0]]))[1]
        array([-0.   , -0.004])
    """

    reset_options = frozenset({"x_init", "y_init"})

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        g: float = 10.0,
    ) -> None:
        high = np.array([1, 1, 8], np.float32)
        super().__init__(
            num_envs,
            autoreset_mode,
            max_episode_steps,
            Box(-high, high, dtype=np.float32),
            Box(-2.0, 2.0, (1,), np.float32),
        )
        self._g = g
        self._state = np.zeros((2, num_envs))  # θ, not wrapped, and its velocity

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        high = np.array([[_number(options, "x_init", np.pi)], [_number(options, "y_init", 1.0)]])
        self._state[:, rows] = high * self.np_random.uniform(-1.0, 1.0, (2, len(rows)))

    def _advance(self, actions: NDArray[Any]) -> tuple[Reals, NDArray[np.bool_]]:
        theta, speed = self._state
        torque = actions[:, 0].astype(np.float64)
        _clip(torque, 2.0)
        wrapped = theta - 2 * np.pi * np.floor((theta + np.pi) / (2 * np.pi))
        reward = -(wrapped * wrapped + 0.1 * speed * speed + 0.001 * torque * torque)
        speed += (1.5 * self._g * np.sin(theta) + 3 * torque) * 0.05
        _clip(speed, 8.0)
        theta += speed * 0.05
        return reward, np.zeros(self.num_envs, np.bool_)

    def _observe(self) -> NDArray[np.float32]:
        observation = np.empty((self.num_envs, 3), np.float32)
        theta, speed = self._state
        observation[:, 0] = np.cos(theta)
        observation[:, 1] = np.sin(theta)
        observation[:, 2] = speed
        return observation


def _clip(array: NDArray[Any], bound: float) -> None:
    """Clip in place; `np.clip` takes several times as long on few numbers."""
    np.minimum(array, bound, out=array)
    np.maximum(array, -bound, out=array)


def _bounds(options: dict[str, Any], low: float, high: float) -> tuple[float, float]:
    low, high = _number(options, "low", low), _number(options, "high", high)
    if low > high:
        raise ValueError(f"low is at most high: they are {low} and {high}")
    return low, high


def _number(options: dict[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is a finite number: it is {value!r}")
    return number

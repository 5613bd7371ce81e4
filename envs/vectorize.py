"""Any Gymnasium environment, many at once, each with a seed of its own."""

from __future__ import annotations

import copy
import inspect
import os
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from importlib import import_module
from traceback import format_exc
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from pgce.envs.guard import EnvironmentFault, GuardedSyncVectorEnv, Make
from pgce.envs.state import one_step
from pgce.envs.vector_base import at_least
from pgce.envs.workers import GuardedAsyncVectorEnv, cores

__all__ = ["EnvPoolVectorEnv", "Vectorization", "check_same_spaces", "make", "reset", "spawn_seeds"]

Vectorization = Literal["auto", "vector_entry_point", "sync", "async", "envpool"]

_LATENCY = 250e-6  # seconds that processes must save a step before they are tried
_GAIN = 0.9

# By entry point, not by id: an id may be registered anew, with another environment behind it.
_VECTOR_VERSIONS = {
    f"gymnasium.envs.{kind}.{module}:{theirs}Env": f"pgce.envs.{kind}:{ours}VectorEnv"
    for kind, module, theirs, ours in (
        ("classic_control", "cartpole", "CartPole", "CartPole"),
        ("classic_control", "acrobot", "Acrobot", "Acrobot"),
        ("classic_control", "mountain_car", "MountainCar", "MountainCar"),
        ("classic_control", "continuous_mountain_car", "Continuous_MountainCar", "MountainCarContinuous"),
        ("classic_control", "pendulum", "Pendulum", "Pendulum"),
        ("toy_text", "frozen_lake", "FrozenLake", "FrozenLake"),
        ("toy_text", "cliffwalking", "CliffWalking", "CliffWalking"),
        ("toy_text", "taxi", "Taxi", "Taxi"),
        ("toy_text", "blackjack", "Blackjack", "Blackjack"),
    )
}


def make(
    env_id: str,
    num_envs: int = 1,
    *,
    vectorization: Vectorization = "auto",
    autoreset_mode: AutoresetMode | str | None = None,
    allow_import: bool = False,
    step_timeout: float | None = 60.0,
    env_restarts: int = 0,
    env_workers: int | None = None,
    **kwargs: Any,
) -> VectorEnv[Any, Any, Any]:
    """A vector environment of `num_envs` copies of a registered environment.

    Args:
        env_id: as registered with Gymnasium.
        num_envs: N >= 1.
        vectorization: "vector_entry_point" is the environment's own vector version, or that of `pgce.envs`
            for Gymnasium's classic control and toy text; "sync" steps one after the other; "async" shares
            them out to processes that step at the same time; "envpool" is EnvPool's version, in C++ threads,
            whose ids need not be Gymnasium's; "auto" takes the vector version where there is one that can
            reset as asked and knows the arguments, else whichever of "sync" and "async" copies of the
            environments are seen to step faster by, in half a second at most.
        autoreset_mode: when a finished environment is reset, as `gymnasium.vector.AutoresetMode` or its
            value ("NextStep", "SameStep", "Disabled"); None is the vector environment's default.
        allow_import: permit ids of the form `module:Env-v0`, for which the module is imported and so run; it
            may lie in the current folder.
        step_timeout: seconds that a step or reset may take by "async"; None is no limit.
        env_restarts: how many environments that fail by "sync" and "async" are made anew, all together;
            0 raises the first fault.
        env_workers: processes by "async"; None is one a core. As many as environments gives each its own.
        kwargs: for the environment.

    Returns:
        The environments; `metadata["autoreset_mode"]` says which mode they are in.

    Raises:
        ValueError: an unknown id, vectorization or autoreset mode, or one that the environment cannot give;
            arguments that it does not take; a number of environments below 1; or an id with a module.
        pgce.envs.guard.EnvironmentFault: an environment or module that fails when it is made or imported; by
            "sync" and "async" also from reset and step.
        ImportError: the module, or a package that the environment needs, is not there.

    Example:
        >>> import pgce.envs
        >>> envs = pgce.envs.make("CartPole-v1", 8)
        >>> envs.observation_space.shape
        (8, 4)
        >>> envs.metadata["autoreset_mode"].name
        'NEXT_STEP'
        >>> pgce.envs.make("Acrobot-v1", 8, autoreset_mode="SameStep")
        AcrobotVectorEnv(Acrobot-v1, num_envs=8)
    """
    num_envs = at_least(1, "num_envs", num_envs)
    if step_timeout is not None and not step_timeout > 0:
        raise ValueError(f"step_timeout is above 0, in seconds, or None: it is {step_timeout}")
    at_least(0, "env_restarts", env_restarts)
    if env_workers is not None and (type(env_workers) is not int or env_workers < 1):
        raise ValueError(f"env_workers is a whole number, at least 1, or None: it is {env_workers!r}")
    if vectorization not in get_args(Vectorization):
        raise ValueError(
            f"vectorization is one of {', '.join(get_args(Vectorization))}: it is {vectorization!r}"
        )
    try:
        mode = None if autoreset_mode is None else AutoresetMode(autoreset_mode)
    except ValueError:
        known = ", ".join(mode.value for mode in AutoresetMode)
        raise ValueError(f"autoreset_mode is None or one of {known}: it is {autoreset_mode!r}") from None
    if not isinstance(env_id, str):
        raise ValueError(f"env_id is a string, as registered with Gymnasium: it is {env_id!r}")
    module, _, name = env_id.rpartition(":")
    if module and not allow_import:
        raise ValueError(f"{env_id!r} names a module, whose code would be run: allow_import=True permits it")
    try:
        if module:
            if os.getcwd() not in sys.path and "" not in sys.path:  # a script knows its own folder only
                sys.path.append(os.getcwd())
            import_module(module)
        if vectorization == "envpool":
            envs: VectorEnv[Any, Any, Any] = EnvPoolVectorEnv(name, num_envs, **kwargs)
        else:
            apart = {"step_timeout": step_timeout, "workers": env_workers}
            envs = _make(_spec(name), num_envs, vectorization, mode, kwargs, env_restarts, apart)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id} needs a package that is not installed: {error}") from None
    except (ValueError, ImportError, gym.error.Error, EnvironmentFault):
        raise
    except Exception as error:
        if kwargs and isinstance(error, TypeError):
            raise ValueError(f"{env_id} cannot be made with {kwargs}: {error}") from error
        raise EnvironmentFault(
            f"{env_id} cannot be made: {type(error).__name__}: {error}", trace=format_exc()
        ) from error
    made = envs.metadata.get("autoreset_mode")
    # A rollout read by the wrong mode has wrong transitions, and no error.
    if not isinstance(made, AutoresetMode) or mode not in (None, made):
        envs.close()
        raise ValueError(
            f'{env_id} says how it resets in metadata["autoreset_mode"], an AutoresetMode: '
            f"it has {made!r}, {mode or 'any'} was asked for"
        )
    return envs


def check_same_spaces(own: VectorEnv[Any, Any, Any], other: VectorEnv[Any, Any, Any]) -> None:
    """Refuse other environments than a policy was made for.

    Raises:
        ValueError: with the spaces that differ.

    Example:
        >>> import pgce.envs
        >>> from pgce.envs.vectorize import check_same_spaces
        >>> check_same_spaces(pgce.envs.make("CartPole-v1"), pgce.envs.make("Taxi-v4"))
        Traceback (most recent call last):
        ValueError: the spaces are alike: action_space of CartPole-v1 is Discrete(2), of Taxi-v4 Discrete(6)
    """
    for space in ("action_space", "observation_space"):
        one, two = (getattr(envs, f"single_{space}") for envs in (own, other))
        if one != two:
            names = [getattr(envs.spec, "id", str(envs)) for envs in (own, other)]
            raise ValueError(f"the spaces are alike: {space} of {names[0]} is {one}, of {names[1]} {two}")


class EnvPoolVectorEnv(VectorEnv[Any, Any, Any]):
    """EnvPool's version of an environment, with Gymnasium's spaces of a batch and with seeds that reset.

    EnvPool takes seeds only where it makes environments, so a reset with a seed makes them anew. It resets in
    the step after an end (NEXT_STEP). An episode that terminates on the very step of its time limit is
    truncated there, not both as in Gymnasium.

    Args:
        env_id: one of `envpool.list_all_envs()`.
        num_envs: N.
        kwargs: for `envpool.make`.

    Raises:
        ImportError: EnvPool is not installed.
        ValueError: EnvPool has no such environment.

    Example:
        >>> from pgce.envs import make
        >>> envs = make("CartPole-v1", 8, vectorization="envpool")  # doctest: +SKIP
    """

    def __init__(self, env_id: str, num_envs: int, **kwargs: Any) -> None:
        try:
            self._envpool: Any = import_module("envpool")
        except ImportError as error:
            raise ImportError(f"vectorization envpool needs EnvPool, pip install envpool: {error}") from None
        if env_id not in self._envpool.list_all_envs():
            raise ValueError(f"environments are EnvPool's own: it has no {env_id!r}")
        self._made_with = {"task_id": env_id, "env_type": "gymnasium", "num_envs": num_envs, **kwargs}
        self._begin()
        self.num_envs = num_envs
        self.spec = gym.registry.get(env_id)
        self.metadata = dict(self._pool.metadata)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def _begin(self, **more: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds that float32 rounds
            self._pool: Any = self._envpool.make(**self._made_with, **more)
            self.single_observation_space = self._pool.observation_space
            self.single_action_space = self._pool.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin new episodes in all environments."""
        if seed is not None:
            seeds = [each >> 1 for each in spawn_seeds(seed, self.num_envs)]  # of 31 bits, as EnvPool's are
            self._pool.close()
            self._begin(seed=seeds)
        return self._pool.reset()

    def step(self, actions: Any) -> Any:
        """One step of each environment; of one whose episode ended, its reset."""
        return self._pool.step(actions)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the pool."""
        self._pool.close()


def _spec(name: str) -> gym.envs.registration.EnvSpec:
    try:
        return gym.spec(name)
    except gym.error.Error as error:
        raise ValueError(f"environments are registered with Gymnasium: {error}") from None


def _make(
    spec: gym.envs.registration.EnvSpec,
    num_envs: int,
    vectorization: Vectorization,
    autoreset_mode: AutoresetMode | None,
    kwargs: dict[str, Any],
    restarts: int,
    apart: dict[str, Any],
) -> VectorEnv[Any, Any, Any]:
    theirs = (None, "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv")
    if spec.vector_entry_point in theirs and vectorization in ("auto", "vector_entry_point"):
        # None is what an environment has anyway, and our versions draw nothing.
        own_kwargs = {name: value for name, value in kwargs.items() if (name, value) != ("render_mode", None)}
        try:
            spec, kwargs = _with_vector_version(spec, own_kwargs), own_kwargs
        except ValueError as error:
            if vectorization == "vector_entry_point" and spec.vector_entry_point is None:
                raise ValueError(f"{error}: take sync or async") from None
    own = spec.vector_entry_point
    chosen: dict[str, Any] = {} if autoreset_mode is None else {"autoreset_mode": autoreset_mode}
    creator: Any = None
    if own is not None and vectorization in ("auto", "vector_entry_point"):
        creator = load_env_creator(own) if isinstance(own, str) else own
        if vectorization == "auto" and spec.entry_point is not None and not _does_all(creator, spec, kwargs):
            creator = None
    if creator is not None:
        if "autoreset_mode" in inspect.signature(creator).parameters:
            return gym.make_vec(spec, num_envs, "vector_entry_point", **chosen, **kwargs)
        if autoreset_mode in (None, _mode(creator)):
            return gym.make_vec(spec, num_envs, "vector_entry_point", **kwargs)
        if vectorization == "vector_entry_point":
            raise ValueError(
                f"{spec.id}'s own vector version resets by {_mode(creator)}: {autoreset_mode} was asked for"
            )
    if spec.entry_point is None:
        raise ValueError(
            f"{spec.id} has only a vector version of its own, no single one to vectorise by sync or async: "
            f"vectorization is {vectorization}, autoreset_mode {autoreset_mode}"
        )
    singles = [partial(gym.make, spec, **kwargs)] * num_envs
    resets = autoreset_mode or AutoresetMode.NEXT_STEP
    mode = "async" if vectorization == "async" else "sync"
    if vectorization == "auto" and num_envs > 1 and cores() > 1:
        mode = _faster(singles, spec.id, resets, apart["workers"])
    envs: VectorEnv[Any, Any, Any]
    if mode == "async":
        envs = GuardedAsyncVectorEnv(singles, spec.id, resets, restarts, **apart)
    else:
        envs = GuardedSyncVectorEnv(singles, spec.id, resets, restarts)
    envs.spec = copy.deepcopy(spec)  # by which gymnasium.make_vec makes the like
    more = {"num_envs": num_envs, "vectorization_mode": mode, **({"vector_kwargs": chosen} if chosen else {})}
    envs.spec.kwargs = {**spec.kwargs, **kwargs, **more}
    return envs


def _faster(singles: Sequence[Make], name: str, mode: AutoresetMode, workers: int | None) -> str:
    """Whether copies of the environments step faster by sync or by async, of which the messages take time."""
    number, few = len(singles), min(len(singles), 4)
    try:
        with closing(GuardedSyncVectorEnv(singles[:few], name, mode)) as some:
            together = _seconds(some, 0.05) * number / few
        if together * (1 - 1 / min(number, workers or cores())) < _LATENCY:
            return "sync"
        patience = max(1.0, 20 * together)
        with closing(GuardedAsyncVectorEnv(singles, name, mode, 0, patience, workers)) as apart:
            return "async" if _seconds(apart, 0.2) < _GAIN * together else "sync"
    except Exception:  # which training will meet and tell, if it is the environment's
        return "sync"


def _seconds(envs: VectorEnv[Any, Any, Any], limit: float) -> float:
    """Of a step with random actions."""
    envs.action_space.seed(0)
    actions = [envs.action_space.sample() for _ in range(8)]
    envs.reset(seed=0)
    one_step(envs, actions[0])
    steps, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < limit:
        one_step(envs, actions[steps % len(actions)])
        steps += 1
    return (time.perf_counter() - begun) / steps


def _with_vector_version(
    spec: gym.envs.registration.EnvSpec, kwargs: dict[str, Any]
) -> gym.envs.registration.EnvSpec:
    """The spec with the vector version of `pgce.envs`, in a copy: Gymnasium's registry stays as it is."""
    if not isinstance(spec.entry_point, str) or spec.entry_point not in _VECTOR_VERSIONS:
        raise ValueError(f"{spec.id} has no vector version of its own")
    if spec.additional_wrappers:
        raise ValueError(f"{spec.id} has wrappers for single environments, and so no vector version")
    version = _VECTOR_VERSIONS[spec.entry_point]
    known = inspect.signature(load_env_creator(version)).parameters
    for name, value in {**spec.kwargs, **kwargs}.items():
        # Where None is no default it means something that ours don't do, such as a random map for each.
        if name not in known or (value is None and known[name].default is not None):
            raise ValueError(f"{spec.id}'s vector version in pgce.envs takes no {name}={value!r}")
    spec = copy.copy(spec)
    spec.vector_entry_point = version
    return spec


def _does_all(creator: Any, spec: gym.envs.registration.EnvSpec, kwargs: dict[str, Any]) -> bool:
    """Whether an environment's own vector version has the wrappers and arguments that the single one has."""
    known = inspect.signature(creator).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    return not spec.additional_wrappers and (takes_all or {*spec.kwargs, *kwargs} <= known.keys())


def _mode(creator: Any) -> AutoresetMode | None:
    mode: AutoresetMode | None = getattr(creator, "metadata", {}).get("autoreset_mode")
    return mode


def spawn_seeds(seed: int, num_envs: int) -> list[int]:
    """One seed an environment, from independent streams (seed + i would share them between runs).

    Args:
        seed: >= 0.
        num_envs: N >= 1.

    Returns:
        N integers in [0, 2³²); the first ones don't depend on N.

    Raises:
        ValueError: a seed below 0, or one that is no integer: None would not be reproducible.

    Example:
        >>> from pgce.envs import spawn_seeds
        >>> len({s for run in range(20) for s in spawn_seeds(run, 20)})
        400
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"a seed is an integer of at least 0: it is {seed!r}")
    children = np.random.SeedSequence(seed).spawn(num_envs)
    return [int(child.generate_state(1)[0]) for child in children]


def reset(envs: VectorEnv[Any, Any, Any], seed: int) -> tuple[Any, dict[str, Any]]:
    """Reset all environments, each with a seed of its own that `seed` decides.

    Args:
        envs: N environments, in vector wrappers or not. Those with one generator for all get one seed.
        seed: >= 0.

    Returns:
        The observations, N rows, and the info, as `envs.reset` gives them.

    Raises:
        ValueError: a seed below 0, or one that is no integer.

    Example:
        >>> import pgce.envs
        >>> envs = pgce.envs.make("CartPole-v1", 2, vectorization="sync")
        >>> observation, info = pgce.envs.reset(envs, seed=1)
        >>> bool((observation[0] == observation[1]).all())
        False
    """
    seeds: Any = spawn_seeds(seed, envs.num_envs)
    if not isinstance(envs.unwrapped, (SyncVectorEnv, AsyncVectorEnv)):
        seeds = seeds[0]  # one generator draws for all
    return envs.reset(seed=seeds)

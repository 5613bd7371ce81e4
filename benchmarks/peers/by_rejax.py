"""rejax, whose environments are gymnax's: python benchmarks/peers/by_rejax.py ppo --seed 1."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import Any

import jax
import numpy as np
from common import EVERY, SAME, Clock, Solving, arguments, tell
from rejax import PPO

# What rejax publishes for CartPole-v1.
PUBLISHED = {
    "num_envs": 5, "num_steps": 100, "num_epochs": 5, "num_minibatches": 5, "learning_rate": 7.5e-4,
    "max_grad_norm": 0.5, "gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.01,
    "vf_coef": 0.5,
}  # fmt: skip
NUMBERS = {
    "num_steps": SAME.steps, "num_epochs": SAME.epochs, "num_minibatches": SAME.minibatches,
    "learning_rate": SAME.rate, "max_grad_norm": SAME.norm, "gamma": SAME.gamma,
    "gae_lambda": SAME.gae_lambda, "clip_eps": SAME.clip, "ent_coef": 0.0, "vf_coef": SAME.value,
}  # fmt: skip


def make(**settings: Any) -> Any:
    kwargs = {"activation": "tanh", "hidden_layer_sizes": (SAME.hidden, SAME.hidden)}
    return PPO.create(env="CartPole-v1", agent_kwargs=kwargs, normalize_observations=False, **settings)


def compiled(algorithm: Any, seed: int, rounds: int) -> tuple[Any, Any, float]:
    """A state, the function that trains it so many rounds, and the seconds that it took to compile."""
    begun = time.perf_counter()
    key = jax.random.PRNGKey(seed)
    begin = jax.jit(algorithm.init_state).lower(key).compile()
    state = begin(key)

    def several(state: Any) -> Any:
        return jax.lax.fori_loop(0, rounds, lambda _, state: algorithm.train_iteration(state), state)

    learn = jax.jit(several).lower(state).compile()
    return state, learn, time.perf_counter() - begun


def solve(given: Namespace) -> None:
    """Compiling is inside the clock, as training is not possible without."""
    algorithm = make(**PUBLISHED)
    rows = algorithm.iteration_size
    keys = iter(jax.random.split(jax.random.PRNGKey(given.seed + 1_000), 100_000))
    sample = jax.jit(lambda params, seen, key: algorithm.actor.apply(params, seen, key, method="act"))
    solving = Solving(lambda seen: np.asarray(sample(state.actor_ts.params, seen, next(keys))), given.seed)
    rounds = -(-EVERY // rows)
    state, learn, compiling = compiled(algorithm, given.seed, rounds)
    for done in range(rounds * rows, (given.total or 200_000) + 1, rounds * rows):
        state = jax.block_until_ready(learn(state))
        if solving(done):
            break
    solving.tell(compile_seconds=compiling)


def steps(given: Namespace) -> None:
    """PPO with the numbers that all have."""
    algorithm = make(num_envs=given.num_envs, **NUMBERS)
    rounds = max(1, given.total // algorithm.iteration_size)
    clock = Clock()
    state, learn, compiling = compiled(algorithm, given.seed, rounds)
    jax.block_until_ready(learn(state))
    tell(seconds=clock.seconds, compile_seconds=compiling, steps=rounds * algorithm.iteration_size)


if __name__ == "__main__":
    given = arguments()
    if given.what == "ppo":
        solve(given)
    else:
        steps(given)

"""rejax (JAX), with its own numbers for CartPole, or the same for all.

python rejax_.py WORK SEED
"""

from __future__ import annotations

import time

import jax
import numpy as np
from common import Clock, tell, work
from rejax import get_algo

WHAT, SEED = work()
OWN = {
    "num_envs": 5, "num_steps": 100, "num_epochs": 5, "num_minibatches": 5, "learning_rate": 7.5e-4,
    "max_grad_norm": 0.5, "gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.01,
    "vf_coef": 0.5,
}  # fmt: skip
number = OWN["num_envs"] if WHAT == "ppo" else int(WHAT.split()[1])
same = {} if WHAT == "ppo" else {"num_envs": number, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4}
algo = get_algo("ppo").create(env="CartPole-v1", agent_kwargs={"activation": "tanh"}, **{**OWN, **same})
piece = number * (100 if WHAT == "ppo" else 32)
rounds = 4 if WHAT == "ppo" else 10
key = jax.random.PRNGKey(SEED)


@jax.jit
def some(state):
    """A few rounds."""
    return jax.lax.scan(lambda state, _: (algo.train_iteration(state), None), state, None, rounds)[0]


@jax.jit
def sampled(params, observation, key):
    """Actions of many observations."""
    return algo.actor.apply(params, observation, key, method="act")


def act(observation):
    """Sampled actions."""
    global key
    key, own = jax.random.split(key)
    return np.asarray(sampled(state.actor_ts.params, observation, own))


if WHAT == "ppo":
    clock, steps = Clock(act, every=2_000), 0
    state = jax.jit(algo.init_state)(key)
    while steps < 400_000 and not clock.solved(steps):
        state = jax.block_until_ready(some(state))
        steps += rounds * piece
    clock.tell()
else:
    clock = Clock()
    state = jax.block_until_ready(some(jax.jit(algo.init_state)(key)))
    compiled, began, steps = time.perf_counter() - clock.since, time.perf_counter(), 0
    while steps < 2_000_000:
        state = some(state)
        steps += rounds * piece
    jax.block_until_ready(state)
    tell(time.perf_counter() - began, steps, 0.0, compiling=compiled)

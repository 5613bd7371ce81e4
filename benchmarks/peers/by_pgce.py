"""pgce: python benchmarks/peers/by_pgce.py ppo --seed 1."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import warnings
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
from common import EPISODES, EVERY, LATER, SAME, arguments, tell

import pgce
import pgce.envs


def train(kind: type[Any], given: Namespace, **settings: Any) -> None:
    """Train by preset and settings, and tell."""
    with tempfile.TemporaryDirectory() as folder:
        how = {"quiet": True, "runs_dir": folder, "device": "cpu", "seed": given.seed, **settings}
        agent = kind.preset(given.env_id, **how)
        result = agent.train(total_timesteps=given.total).result
    if int(os.environ.get("RANK", "0")) == 0:
        solved = {"solved": result["stopped"] == "threshold"} if agent.stop_at_threshold else {}
        tell(seconds=result["train_seconds"], steps=result["steps"], **solved)


def throughput(given: Namespace, **settings: Any) -> None:
    """Train without evaluations."""
    how = {"stop_at_threshold": False, "eval_freq": 10**9, "eval_episodes": 1}
    train(pgce.agents.PPO, given, **how, **settings)


def same_numbers(given: Namespace) -> None:
    """PPO with the numbers that all have."""
    throughput(
        given, num_envs=given.num_envs, num_steps=SAME.steps, update_epochs=SAME.epochs,
        num_minibatches=SAME.minibatches, hidden_sizes=(SAME.hidden, SAME.hidden),
        memory=given.memory, memory_size=SAME.hidden,
        learning_rate=SAME.rate, lr_schedule="constant", gamma=SAME.gamma, gae_lambda=SAME.gae_lambda,
        clip_coef=SAME.clip, vf_coef=SAME.value, max_grad_norm=SAME.norm, norm_obs=False, norm_reward=False,
    )  # fmt: skip


def defaults(given: Namespace) -> None:
    """PPO with no setting but the steps, and what it then reaches."""
    with tempfile.TemporaryDirectory() as folder:
        how = {"quiet": True, "runs_dir": folder, "device": "cpu", "seed": given.seed}
        agent = pgce.agents.PPO(**how, stop_at_threshold=False, eval_freq=10**9)
        run = agent.train(given.env_id, given.total)
        trained, seed = pgce.load(run.path), LATER + given.seed
        greedy, sampled = (
            float(trained.evaluate(EPISODES, seed=seed, greedy=best).mean()) for best in (True, False)
        )
    tell(seconds=run.result["train_seconds"], steps=run.result["steps"], greedy=greedy, sampled=sampled)


def random_actions(given: Namespace) -> None:
    """Environments alone, in so many processes."""
    if given.processes == 1:
        steps, seconds = _steps(given, 0)
    else:
        with multiprocessing.get_context("fork").Pool(given.processes) as pool:
            each = pool.starmap(_steps, [(given, n) for n in range(given.processes)], chunksize=1)
        steps, seconds = sum(steps for steps, _ in each), max(seconds for _, seconds in each)
    tell(seconds=seconds, steps=steps)


def _steps(given: Namespace, rank: int) -> tuple[int, float]:
    each = given.num_envs // given.processes
    if given.vectorization == "gymnasium":
        envs: Any = _gymnasium(given.env_id, each)
    else:
        envs = pgce.envs.make(given.env_id, each, vectorization=given.vectorization)
    envs.action_space.seed(given.seed + rank)
    actions = [envs.action_space.sample() for _ in range(64)]  # before, since spaces are slow
    envs.reset(seed=given.seed + rank)
    for action in actions[:8]:
        envs.step(action)
    rounds, seconds, begun = 0, 0.0, time.perf_counter()
    while seconds < given.seconds:
        for action in actions:
            envs.step(action)
        rounds += len(actions)
        seconds = time.perf_counter() - begun
    envs.close()
    return rounds * each, seconds


def _gymnasium(env_id: str, number: int) -> Any:
    import gymnasium as gym

    return gym.vector.SyncVectorEnv([lambda: gym.make(env_id) for _ in range(number)])


def objective(given: Namespace) -> None:
    """A loss and its gradient for two seconds, ten times in turn with the same written by hand."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(given.seed)
    logits = torch.randn(given.batch, given.classes, generator=generator, requires_grad=True)
    target = torch.randint(given.classes, (given.batch,), generator=generator)
    weight = torch.randn(given.batch, generator=generator)

    def own() -> torch.Tensor:
        return pgce.weighted_cross_entropy(logits, target, weight)

    def by_hand() -> torch.Tensor:
        return (weight * F.cross_entropy(logits, target, reduction="none")).mean()

    times: dict[Callable[[], torch.Tensor], list[float]] = {own: [], by_hand: []}
    order = [*times.items()]
    ends = time.perf_counter() + 2 * given.seconds
    while time.perf_counter() < ends or len(times[own]) < 20:
        for form, seen in order:
            for _ in range(10):  # so that memory is as the form itself leaves it
                logits.grad = None
                begun = time.perf_counter()
                form().backward()
                seen.append(time.perf_counter() - begun)
        order.reverse()
    told, beside = ({"seconds": float(np.median(seen[10:])), "steps": len(seen)} for seen in times.values())
    tell(**told, beside=beside)


def main() -> None:
    """Do what the command line says."""
    warnings.simplefilter("ignore")
    given = arguments()
    match given.what:
        case "ppo":
            train(pgce.agents.PPO, given, eval_freq=EVERY)
        case "reinforce":
            train(pgce.agents.Reinforce, given, eval_freq=EVERY, baseline="mean")
        case "steps":
            same_numbers(given)
        case "robots":
            throughput(given, vectorization=given.vectorization)
        case "defaults":
            defaults(given)
        case "random":
            random_actions(given)
        case "objective":
            objective(given)
        case _:
            raise SystemExit(f"there is no {given.what}")


if __name__ == "__main__":
    main()

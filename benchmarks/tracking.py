"""What TensorBoard events, metrics and pictures cost: PPO on CartPole-v1, 64 environments, with and without.

    python benchmarks/tracking.py

Whole runs in one process, in turn; the clock of training, evaluation left out, and of all that `train` does.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import pgce

PAIRS = 9


def seconds(track: bool) -> tuple[float, float]:
    """Of training, and of everything."""
    with tempfile.TemporaryDirectory() as folder:
        agent = pgce.agents.PPO.preset(
            "CartPole-v1", num_envs=64, track=track, quiet=True, runs_dir=folder, device="cpu",
            stop_at_threshold=False, eval_episodes=1,
        )  # fmt: skip
        began = time.perf_counter()
        run = agent.train(total_timesteps=200_000)
        return run.result["train_seconds"], time.perf_counter() - began


def main() -> None:
    """Measure, and print."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    seconds(True)  # imports
    rows = [(seconds(True), seconds(False)) for _ in range(PAIRS)]
    for place, name in enumerate(("training", "everything")):
        ratios = [on[place] / off[place] for on, off in rows]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"{name}: {middle:.3f} times with tracking [{low:.3f}, {high:.3f}], {PAIRS} pairs")


if __name__ == "__main__":
    main()

"""How much faster two processes train than one, where environments take most of the time.

    python benchmarks/processes.py
    python benchmarks/processes.py --env-id LunarLander-v3

PPO with one thread a process, the same number of environments in all, evaluation left out. The median of
the ratios is told. Two processes wait for each other at every update: a core that something else uses too
holds up both, so that only a machine with as many free cores tells what they bring.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def steps_a_second(number: int, env_id: str, steps: int, *settings: str) -> float:
    """Environment steps a second of training, by so many processes; settings as PPO's flags."""
    with tempfile.TemporaryDirectory() as folder:
        agent = [
            "-m", "pgce.agents.ppo", "--env-id", env_id, "--num-envs", "16", "--num-steps", "256",
            "--total-timesteps", str(steps), "--eval-episodes", "2", "--eval-freq", "1000000000",
            "--no-stop-at-threshold", "--vectorization", "sync", "--runs-dir", folder, "--quiet",
            "--run", "it", "--device", "cpu", *settings,
        ]  # fmt: skip
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        words = agent if number == 1 else [*launch, agent[0], "--", *agent[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *words], check=True, env=environment, timeout=600)
        result = json.loads((Path(folder) / "it" / "result.json").read_text())
    return result["steps"] / result["train_seconds"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="Humanoid-v5")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    ratios = []
    print(f"{given.env_id}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for _ in range(given.repeats):
        one, several = (steps_a_second(n, given.env_id, given.steps) for n in (1, given.processes))
        ratios.append(several / one)
        print(f"{one:8,.0f} steps/s by 1, {several:8,.0f} by {given.processes}: {ratios[-1]:.2f} times")
    print(f"median {statistics.median(ratios):.2f} times")


if __name__ == "__main__":
    main()

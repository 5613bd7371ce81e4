"""How much faster two processes train than one, where environments take most of the time.

    python benchmarks/processes.py
    python benchmarks/processes.py --env-id LunarLander-v3

PPO with one thread a process, the same number of environments in all, evaluation left out; the medians of
ratios are told. Processes wait for each other at every update, so that each is as slow as the slowest core at
the time. What the machine had to give is told beside it: as many separate runs at once, which never wait.
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

NUMBER = 16  # of environments in all


def steps_a_second(number: int, env_id: str, steps: int, *settings: str, apart: bool = False) -> float:
    """Environment steps a second of training by so many processes; settings as PPO's flags.

    `apart` each trains an agent of its own, on its share of environments and steps.
    """
    runs = number if apart else 1
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for n in range(runs):
            agent = [
                "-m", "pgce.agents.ppo", "--env-id", env_id, "--num-envs", str(NUMBER // runs),
                "--num-steps", "256", "--total-timesteps", str(steps // runs), "--eval-episodes", "2",
                "--eval-freq", "1000000000", "--no-stop-at-threshold", "--vectorization", "sync",
                "--runs-dir", folder, "--quiet", "--run", str(n), "--device", "cpu",
                "--update-epochs", "4", "--num-minibatches", "4", "--no-norm-obs", "--no-norm-reward",
                *settings,
            ]  # fmt: skip
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
            words = agent if apart or number == 1 else [*launch, agent[0], "--", *agent[1:]]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen([sys.executable, *words], env=environment))
        if any(process.wait(600) for process in started):
            raise SystemExit("a run failed: see above")
        files = (Path(folder) / str(n) / "result.json" for n in range(runs))
        results = [json.loads(file.read_text()) for file in files]
    return sum(result["steps"] / result["train_seconds"] for result in results)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env-id", default="Humanoid-v5")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    ratios, of = [], (given.env_id, given.steps)
    print(f"{given.env_id}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for _ in range(given.repeats):
        one, several = (steps_a_second(n, *of) for n in (1, given.processes))
        apart = steps_a_second(given.processes, *of, apart=True)
        ratios.append((several / one, apart / one, several / apart))
        print(
            f"{one:8,.0f} steps/s by 1, {several:8,.0f} by {given.processes}: {several / one:.2f} times; "
            f"{apart:8,.0f} by separate runs: {apart / one:.2f} times",
            flush=True,
        )
    together, separate, share = (statistics.median(each) for each in zip(*ratios, strict=True))
    print(f"median {together:.2f} times; separate runs {separate:.2f} times, of which that is {share:.2f}")


if __name__ == "__main__":
    main()

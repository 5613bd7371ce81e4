"""What the agents reach with their presets, beside published returns of the same algorithm.

    python benchmarks/agents.py PPO LunarLander-v3     train on five seeds, add to the CSV, show
    python benchmarks/agents.py --show                 make the table from the CSV only

Needs gymnasium[box2d,mujoco] for their environments. After training, 100 episodes on environments and seeds
of their own, once with the most probable action (as published figures have it), once with sampled ones.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from shared import RESULTS, iqm, put_into_readme, read, write

SEEDS = range(1, 6)
# Best published return of the algorithm, environment steps, source.
PUBLISHED = {
    ("PPO", "CartPole-v1"): (500.0, 100_000, "RL Zoo"),
    ("PPO", "Acrobot-v1"): (-73.5, 1_000_000, "RL Zoo"),
    ("PPO", "MountainCar-v0"): (-110.4, 1_000_000, "RL Zoo"),
    ("PPO", "MountainCarContinuous-v0"): (88.3, 20_000, "RL Zoo"),
    ("PPO", "Pendulum-v1"): (-172.2, 100_000, "RL Zoo"),
    ("PPO", "LunarLander-v3"): (242.1, 1_000_000, "RL Zoo, v2"),
    ("PPO", "LunarLanderContinuous-v3"): (270.9, 1_000_000, "RL Zoo, v2"),
    ("PPO", "HalfCheetah-v5"): (5819.1, 1_000_000, "RL Zoo, v3"),
    ("PPO", "Hopper-v5"): (2410.4, 1_000_000, "RL Zoo, v3"),
    ("PPO", "Swimmer-v5"): (281.6, 1_000_000, "RL Zoo, v3"),
    ("PPO", "Walker2d-v5"): (3478.8, 1_000_000, "RL Zoo, v3"),
    ("A2C", "CartPole-v1"): (500.0, 500_000, "RL Zoo"),
    ("A2C", "Acrobot-v1"): (-83.4, 500_000, "RL Zoo"),
}


def run(name: str, env_id: str, seed: int) -> dict[str, object]:
    """Train once, and evaluate both ways."""
    import warnings

    import pgce

    warnings.simplefilter("ignore")  # of MuJoCo's own models
    with tempfile.TemporaryDirectory() as folder:
        agent = getattr(pgce.agents, name).preset(
            env_id, seed=seed, quiet=True, track=False, runs_dir=folder, stop_at_threshold=False,
            eval_freq=10**9, device="cpu",
        )  # fmt: skip
        result = agent.train()
        trained = pgce.load(result.path)
        greedy, sampled = (trained.evaluate(100, seed=10_000 + seed, greedy=g).mean() for g in (True, False))
    return {
        "agent": name,
        "env_id": env_id,
        "seed": seed,
        "steps": result.result["steps"],
        "seconds": result.result["train_seconds"],
        "greedy": f"{greedy:.2f}",
        "sampled": f"{sampled:.2f}",
        "command": agent.command().replace(f" --runs-dir {folder}", "").replace(" --quiet --no-track", ""),
    }


def measure(name: str, env_ids: list[str]) -> None:
    """All seeds on each environment, in two processes; the CSV grows as they come."""
    with ProcessPoolExecutor(2) as pool:
        for env_id in env_ids:
            new = list(pool.map(run, [name] * len(SEEDS), [env_id] * len(SEEDS), SEEDS))
            old = read("agents.csv") if (RESULTS / "agents.csv").exists() else []
            kept = [row for row in old if (row["agent"], row["env_id"]) != (name, env_id)]
            write("agents.csv", [*kept, *new])
            print(name, env_id, [row["greedy"] for row in new], flush=True)


def table() -> str:
    """The results as a Markdown table."""
    groups = defaultdict(list)
    for row in read("agents.csv"):
        groups[row["agent"], row["env_id"]].append(row)
    lines = [
        "| agent, environment | steps | return, IQM [95 %] | sampled actions | published | training s |",
        "|---|---|---|---|---|---|",
    ]
    for (agent, env_id), rows in sorted(groups.items()):
        cells = []
        for kind in ("greedy", "sampled"):
            mean, low, high = iqm(np.array([float(row[kind]) for row in rows]))
            cells.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
        best = float(cells[0].split()[0])
        steps = int(np.median([float(row["steps"]) for row in rows]))
        figure = PUBLISHED.get((agent, env_id))
        published = "" if figure is None else f"{figure[0]:.1f} at {figure[1]:,} ({figure[2]})"
        if figure is not None and best >= figure[0] and steps <= figure[1]:
            cells[0] = f"**{cells[0]}**"
        seconds = np.median([float(row["seconds"]) for row in rows])
        lines.append(f"| {agent}, {env_id} | {steps:,} | {' | '.join(cells)} | {published} | {seconds:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure(sys.argv[1], sys.argv[2:])
    put_into_readme("agents", table())

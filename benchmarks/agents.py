"""What the agents reach with their presets, beside published returns of the same algorithm.

    python benchmarks/agents.py PPO LunarLander-v3 Hopper-v5 A2C CartPole-v1
                                          train on five seeds each, into the CSV as they come; then show
    python benchmarks/agents.py --show    make table and picture from the CSV only

Needs gymnasium[box2d,mujoco] for their environments. After training, 100 episodes on environments and seeds
of their own, once with the most probable action (as published figures have it), once with sampled ones. The
curves are the mean return of the last 100 episodes of training, whose actions are sampled.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from shared import ROOT, command, iqm, merge, put_into, read

SEEDS = range(1, 6)
POINTS = 50  # of a curve
RUN = ("agent", "env_id", "seed")
# Best published return of the algorithm on one of the environment's versions: return, steps, source.
PUBLISHED = {
    ("PPO", "CartPole-v1"): (500.0, 100_000, "RL Zoo"),
    ("PPO", "Acrobot-v1"): (-73.5, 1_000_000, "RL Zoo"),
    ("PPO", "MountainCar-v0"): (-110.4, 1_000_000, "RL Zoo"),
    ("PPO", "MountainCarContinuous-v0"): (88.3, 20_000, "RL Zoo"),
    ("PPO", "Pendulum-v1"): (-172.2, 100_000, "RL Zoo"),
    ("PPO", "LunarLander-v3"): (242.1, 1_000_000, "RL Zoo, v2"),
    ("PPO", "LunarLanderContinuous-v3"): (270.9, 1_000_000, "RL Zoo, v2"),
    ("PPO", "BipedalWalker-v3"): (287.9, 5_000_000, "RL Zoo"),
    ("PPO", "HalfCheetah-v5"): (5819.1, 1_000_000, "RL Zoo, v3"),
    ("PPO", "Hopper-v5"): (2609.3, 1_000_000, "Tianshou, v3, best of training"),
    ("PPO", "InvertedDoublePendulum-v5"): (9231.3, 1_000_000, "Tianshou, v3, best of training"),
    ("PPO", "Swimmer-v5"): (281.6, 1_000_000, "RL Zoo, v3"),
    ("PPO", "Walker2d-v5"): (4000.0, 1_000_000, "Kostrikov, quoted by Tianshou, best of training"),
    ("A2C", "CartPole-v1"): (500.0, 500_000, "RL Zoo"),
    ("A2C", "Acrobot-v1"): (-83.4, 500_000, "RL Zoo"),
    ("A2C", "MountainCar-v0"): (-111.3, 1_000_000, "RL Zoo"),
    ("A2C", "LunarLander-v3"): (155.8, 200_000, "RL Zoo, v2"),
    ("A2C", "MountainCarContinuous-v0"): (91.2, 100_000, "RL Zoo"),
    ("A2C", "Pendulum-v1"): (-163.0, 1_000_000, "RL Zoo"),
}


def run(name: str, env_id: str, seed: int) -> tuple[dict[str, object], list[dict[str, object]]]:
    """Train once, and evaluate both ways: a row of the results, and the rows of a curve."""
    import warnings

    import pgce
    from pgce.records import Record

    warnings.simplefilter("ignore")  # of MuJoCo's own models
    with tempfile.TemporaryDirectory() as folder:
        how = {"quiet": True, "runs_dir": folder, "stop_at_threshold": False, "eval_freq": 10**9}
        agent = getattr(pgce.agents, name).preset(env_id, seed=seed, device="cpu", **how)
        result = agent.train()
        trained = pgce.load(result.path)
        greedy, sampled = (trained.evaluate(100, seed=10_000 + seed, greedy=g).mean() for g in (True, False))
        seen = Record.read(result.path).curve("rollout/ep_rew_mean")
    which: dict[str, object] = {"agent": name, "env_id": env_id, "seed": seed}
    steps = np.linspace(seen[0][0], seen[0][-1], POINTS).round()
    curve = [
        {**which, "step": int(step), "return": f"{value:.2f}"}
        for step, value in zip(steps, np.interp(steps, *seen), strict=True)
    ]
    row = {
        **which,
        "steps": result.result["steps"],
        "seconds": result.result["train_seconds"],
        "greedy": f"{greedy:.2f}",
        "sampled": f"{sampled:.2f}",
        "command": command(agent),
    }
    return row, curve


def measure(pairs: list[tuple[str, str]]) -> None:
    """Every agent and environment on all seeds, in two processes; the CSVs grow as they come."""
    with ProcessPoolExecutor(2) as pool:
        tasks = [pool.submit(run, *pair, seed) for pair in pairs for seed in SEEDS]
        for task in as_completed(tasks):
            row, curve = task.result()
            merge("agents.csv", [row], RUN)
            merge("agents_curves.csv", curve, RUN)
            print(row["agent"], row["env_id"], row["seed"], row["greedy"], row["sampled"], flush=True)


def pairs(words: list[str]) -> list[tuple[str, str]]:
    """Agents, each followed by its environments."""
    found, name = [], ""
    for word in words:
        if "-v" in word:
            found.append((name, word))
        else:
            name = word
    return found


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


def draw() -> None:
    """Learning curves: interquartile mean over seeds, shaded 95 % interval; a panel an environment."""
    from PIL import Image

    from pgce.pictures import learning_curves

    curves = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in read("agents_curves.csv"):
        point = (float(row["step"]), float(row["return"]))
        curves[row["env_id"]][row["agent"]][row["seed"]].append(point)
    panels = {
        env_id: {name: [np.array(curve).T for curve in seeds.values()] for name, seeds in agents.items()}
        for env_id, agents in sorted(curves.items())
    }
    Image.fromarray(learning_curves(panels)).save(ROOT / "docs" / "agents.png", optimize=True)


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure(pairs(sys.argv[1:]))
    draw()
    put_into("docs/results.md", "agents", table())

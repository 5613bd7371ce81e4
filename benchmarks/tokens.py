"""Tasks of tokens by reward alone: the share of answers that are exact, every token right.

    python benchmarks/tokens.py            train on five seeds, write the CSV, show
    python benchmarks/tokens.py --show     make the table from the CSV only

After training by preset to the environment's threshold, 1,000 fresh episodes with the most probable tokens
and 1,000 with sampled ones. Only an exact answer has a return of 1.
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict

import numpy as np
from shared import command, put_into, read, write

AGENTS = ("PPO", "RLOO", "GRPO")
ENVIRONMENTS = ("pgce/Copy-v0", "pgce/Reverse-v0", "pgce/Reverse8x10-v0")
SEEDS = range(1, 6)
EPISODES = 1_000


def run(name: str, env_id: str, seed: int) -> dict[str, object]:
    """Train once, and evaluate both ways."""
    import pgce

    with tempfile.TemporaryDirectory() as folder:
        agent = getattr(pgce.agents, name).preset(
            env_id, seed=seed, quiet=True, track=False, runs_dir=folder, device="cpu"
        )
        result = agent.train()
        trained = pgce.load(result.path)
        returns = [trained.evaluate(EPISODES, seed=10_000 + seed, greedy=greedy) for greedy in (True, False)]
    greedy, sampled = (np.mean(each == 1) for each in returns)
    return {
        "agent": name,
        "env_id": env_id,
        "seed": seed,
        "steps": result.result["steps"],
        "seconds": result.result["train_seconds"],
        "stopped": result.result["stopped"],
        "greedy": f"{greedy:.3f}",
        "sampled": f"{sampled:.3f}",
        "command": command(agent),
    }


def table() -> str:
    """The results as a Markdown table."""
    groups = defaultdict(list)
    for row in read("tokens.csv"):
        groups[row["env_id"], row["agent"]].append(row)
    lines = [
        "| environment, agent | exact answers, median | lowest seed | sampled tokens, median | lowest seed "
        "| steps | training s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (env_id, agent), rows in groups.items():
        columns = {
            name: [float(row[name]) for row in rows] for name in ("greedy", "sampled", "steps", "seconds")
        }
        shares = [
            f"{100 * f(columns[kind]):.1f} %" for kind in ("greedy", "sampled") for f in (np.median, min)
        ]
        steps, seconds = np.median(columns["steps"]), np.median(columns["seconds"])
        lines.append(f"| {env_id}, {agent} | {' | '.join(shares)} | {steps:,.0f} | {seconds:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--show" not in sys.argv:
        rows = []
        for env_id in ENVIRONMENTS:
            for name in AGENTS:
                rows += [run(name, env_id, seed) for seed in SEEDS]
                print(name, env_id, [row["greedy"] for row in rows[-len(SEEDS) :]], flush=True)
        write("tokens.csv", rows)
    put_into("docs/results.md", "tokens", table())

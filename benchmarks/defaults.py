"""What PPO reaches with no setting but the steps, as on an environment that has no preset, beside SB3's.

    python benchmarks/defaults.py LunarLander-v3 Reacher-v5
                                          train on five seeds each, into the CSV as they come; then show
    python benchmarks/defaults.py --show  make the table from the CSV only

Both libraries run as `benchmarks/speed.py` runs them: in environments of their own, a process a run, with one
thread on one core. After training, 100 episodes on seeds of their own, once with the most probable action,
once with sampled ones.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
from comparisons import Program
from shared import iqm, merge, put_into, read
from speed import install, run

SEEDS, STEPS, FILE = range(1, 6), 200_000, "defaults.csv"
NAMES = {"pgce": "pgce", "sb3": "SB3"}
KINDS = {"greedy": "most probable action", "sampled": "sampled actions"}


def measure(env_ids: list[str]) -> None:
    """Every library and environment on all seeds; a row of the CSV as soon as it is known."""
    for env_id in env_ids:
        for seed in SEEDS:
            for place, name in NAMES.items():
                if not install(place):
                    raise SystemExit(f"{name} could not be installed")
                told = run(
                    Program(name, place, place, f"defaults --env-id {env_id}"), seed, f"--total {STEPS}", 1
                )
                if "error" in told:
                    raise SystemExit(f"{name}, {env_id}, seed {seed}: {told['error']}")
                row: dict[str, object] = {"library": name, "env_id": env_id, "seed": seed}
                row |= {key: f"{told[key]:.2f}" for key in ("steps", "seconds", *KINDS)}
                merge(FILE, [row], ("library", "env_id", "seed"))
                print(*row.values(), flush=True)


def table() -> str:
    """The results as a Markdown table."""
    found = defaultdict(list)
    for row in read(FILE):
        found[row["env_id"], row["library"]].append(row)
    heads = [f"{name}, {how}" for how in KINDS.values() for name in NAMES.values()]
    lines = [f"| environment | {' | '.join(heads)} | training s |", "|---" * (len(heads) + 2) + "|"]
    for env_id in dict.fromkeys(env_id for env_id, _ in found):
        cells = []
        for kind in KINDS:
            each = {
                name: iqm(np.array([float(row[kind]) for row in found[env_id, name]]))
                for name in NAMES.values()
            }
            best = max(each, key=lambda name: each[name][0])
            for name, (mean, low, high) in each.items():
                cell = f"{mean:.1f} [{low:.1f}, {high:.1f}]"
                cells.append(f"**{cell}**" if name == best else cell)
        seconds = (
            f"{np.median([float(row['seconds']) for row in found[env_id, name]]):.0f}"
            for name in NAMES.values()
        )
        lines.append(f"| {env_id} | {' | '.join(cells)} | {', '.join(seconds)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure(sys.argv[1:])
    put_into("docs/results.md", "defaults", table())

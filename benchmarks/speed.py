"""How fast pgce trains beside other packages: whole runs in fresh processes, in turn, on one core.

    python benchmarks/speed.py             # everything, five times: some 40 minutes
    python benchmarks/speed.py ppo         # a part: ppo, reinforce, "steps 64", "steps 512"
    python benchmarks/speed.py --show      # make the table from the CSV only

Each package is installed into an environment of its own, .bench/NAME, as benchmarks/peers/NAME.txt has it.
The clock runs while a package trains, JAX's compilation included, and stands still while it is evaluated.
`ppo` and `reinforce` train CartPole-v1 until 100 episodes of sampled actions average 475, twice in a row,
each package with the settings that it publishes for it (evaluated every 5,000 steps; Tianshou and rejax every
2,000). `steps` has the same numbers for all: so many environments × 32 steps, 4 epochs of 4 minibatches, two
networks of 64–64 tanh units. Stable-Baselines3 gets Gymnasium's NumPy environments there, since its own are
far slower.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
import venv
from collections import defaultdict
from pathlib import Path

from shared import RESULTS, ROOT, put_into_readme, read, write

PARTS = {
    "ppo": ["sb3", "rejax"],
    "reinforce": ["tianshou"],
    "steps 64": ["sb3"],
    "steps 512": ["sb3", "rejax"],
}
TITLES = {
    "ppo": "PPO, CartPole-v1 to 475, seconds",
    "reinforce": "REINFORCE, CartPole-v1 to 475, seconds",
    "steps 64": "PPO, 64 environments, steps/s",
    "steps 512": "PPO, 512 environments, steps/s",
}
NAMES = {"ours": "pgce", "sb3": "Stable-Baselines3", "rejax": "rejax", "tianshou": "Tianshou"}
PEERS = Path(__file__).parent / "peers"
SEEDS = range(1, 6)


def python(name: str) -> str:
    """The interpreter of a package's environment, which is made if it is not there."""
    if name == "ours":
        return sys.executable
    folder = ROOT / ".bench" / name
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
        command = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "-r",
            f"{PEERS / name}.txt",
        ]
        subprocess.run(command, check=True)
    return str(folder / "bin" / "python")


def run(name: str, part: str, seed: int) -> dict[str, object]:
    """One run of a package: a row."""
    one = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    file = PEERS / ("ours.py" if name == "ours" else f"{name}_.py")
    core = max(os.sched_getaffinity(0))
    began = time.perf_counter()
    done = subprocess.run(
        ["taskset", "-c", str(core), python(name), str(file), part, str(seed)],
        capture_output=True, text=True, check=True, env={**os.environ, **one}, timeout=900,
    )  # fmt: skip
    wall = time.perf_counter() - began
    told = json.loads(done.stdout.splitlines()[-1])
    row = {"part": part, "package": name, "seed": seed, "process": round(wall, 2), "compiling": 0.0}
    return row | {key: round(value, 3) for key, value in told.items()}


def measure(parts: list[str]) -> None:
    """All parts, package by package in turn; the CSV grows as rows come."""
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for part in parts:
        for seed in SEEDS:
            for name in ["ours", *PARTS[part]]:
                row = run(name, part, seed)
                old = read("speed.csv") if (RESULTS / "speed.csv").exists() else []
                kept = [r for r in old if (r["part"], r["package"], r["seed"]) != (part, name, str(seed))]
                write("speed.csv", [*kept, row])
                print(*row.values(), flush=True)


def table() -> str:
    """Medians, and the median of the ratios run by run."""
    found = defaultdict(lambda: defaultdict(dict))
    for row in read("speed.csv"):
        found[row["part"]][row["package"]][row["seed"]] = row
    lines = [
        "| | package | median [smallest, largest] | pgce against it | process, s | MiB |",
        "|---|---|---|---|---|---|",
    ]
    for part, packages in found.items():
        rate = part.startswith("steps")

        def figure(row: dict[str, str], rate: bool = rate) -> float:
            seconds, steps = float(row["seconds"]), float(row["steps"])
            if rate:
                return steps / seconds
            return seconds if float(row["score"]) >= 475 else float("inf")

        own = {seed: figure(row) for seed, row in packages["ours"].items()}
        for name in ["ours", *PARTS[part]]:
            rows = packages[name]
            figures = {seed: figure(row) for seed, row in rows.items()}
            form = ",.0f" if rate else ".2f"
            middle, low, high = (f(figures.values()) for f in (statistics.median, min, max))
            ratio = statistics.median(own[seed] / figures[seed] for seed in figures)
            process = statistics.median(float(row["process"]) for row in rows.values())
            mib = statistics.median(float(row["mib"]) for row in rows.values())
            against = "" if name == "ours" else f"{ratio:.2f} ×"
            told = f"{middle:{form}} [{low:{form}}, {high:{form}}]".replace("inf", "not reached")
            title = TITLES[part] if name == "ours" else ""
            lines.append(f"| {title} | {NAMES[name]} | {told} | {against} | {process:.1f} | {mib:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure(sys.argv[1:] or list(PARTS))
    put_into_readme("speed", table())

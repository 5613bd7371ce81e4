"""What the learners reach, over seeds: tables and curves as CSV, and the picture in the README.

    python benchmarks/learning.py          train everything again (three to twelve minutes), then show
    python benchmarks/learning.py --show   make picture and table from the committed CSV only

Scores are the interquartile mean over seeds with a 95 % bootstrap interval (Agarwal et al., 2021, Deep
reinforcement learning at the edge of the statistical precipice).
"""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict

import numpy as np
from shared import ROOT, command, iqm, put_into, read, write

SEEDS = range(1, 6)

BANDIT = {
    "env_id": "pgce/DigitsBandit-v0",
    "eval_env_id": "pgce/DigitsBanditTest-v0",
    "eval_greedy": True,
    "eval_episodes": 1000,
    "eval_freq": 4_000,
    "total_timesteps": 400_000,
    "stop_at_threshold": False,
    "num_envs": 256,
    "num_steps": 1,
    "hidden_sizes": (256,),
    "activation": "relu",
    "learning_rate": 3e-3,
    "ent_coef": 0.05,
}
AGENTS = ("PPO", "A2C", "RLOO", "GRPO", "AWR", "VTrace", "CEM")
BASELINES = ("mean", "critic", "none")
# Experiment: learner, settings. Settings that are not named here are the defaults.
EXPERIMENTS = {
    **{f"CartPole-v1 to 475, baseline {name}": ("Reinforce", {"baseline": name}) for name in BASELINES},
    **{f"CartPole-v1 to 475, {name}": (name, {}) for name in AGENTS},
    **{
        f"CartPole-v1, baseline {name}": ("Reinforce", {"stop_at_threshold": False, "baseline": name})
        for name in BASELINES
    },
    "digits, cross-entropy": ("Supervised", {}),
    "digits, cross-entropy, smoothing 0.1": ("Supervised", {"label_smoothing": 0.1}),
    "digits as a bandit, REINFORCE": ("Reinforce", BANDIT),
}
PANELS = {
    "REINFORCE on CartPole-v1": (
        "environment steps",
        "mean return of 100 episodes",
        ["CartPole-v1, baseline mean", "CartPole-v1, baseline critic", "CartPole-v1, baseline none"],
    ),
    "One network, digits, two weights": (
        "examples seen",
        "accuracy on held-out digits",
        ["digits, cross-entropy", "digits as a bandit, REINFORCE"],
    ),
}


def measure() -> None:
    """Train every experiment on every seed; write one row a run, and one row a point of a curve."""
    import pgce
    from pgce.records import Record

    runs, curves = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, (learner, settings) in EXPERIMENTS.items():
            for seed in SEEDS:
                kind, tag = getattr(pgce.agents, learner), "eval/accuracy"
                how = {"quiet": True, "runs_dir": folder, "device": "cpu"}
                if learner != "Supervised":
                    how["env_id"] = settings.get("env_id", "CartPole-v1")
                    kind, tag = kind.preset, "eval/mean_reward"
                agent = kind(seed=seed, **{**how, **settings})
                run = agent.train()
                result = run.result
                runs.append(
                    {
                        "experiment": name,
                        "seed": seed,
                        "score": result.get("eval_mean", result.get("test_accuracy")),
                        "steps": result.get("examples", result["steps"]),
                        "train_seconds": result["train_seconds"],
                        "stopped": result["stopped"],
                        "command": command(agent),
                    }
                )
                curves += [
                    {"experiment": name, "seed": seed, "step": int(step), "value": round(value, 5)}
                    for step, value in zip(*Record.read(run.path).curve(tag), strict=True)
                ]
                print(name, seed, runs[-1]["score"], flush=True)
    write("learning.csv", runs)
    write("learning_curves.csv", curves)


def table() -> str:
    """The results as a Markdown table."""
    by_experiment = defaultdict(list)
    for row in read("learning.csv"):
        by_experiment[row["experiment"]].append(row)
    lines = [
        "| experiment | score, IQM [95 %] | lowest seed | steps or examples, median | training s, median |",
        "|---|---|---|---|---|",
    ]
    for name, rows in by_experiment.items():
        score = np.array([float(row["score"]) for row in rows])
        mean, low, high = iqm(score)
        digits = 1 if score.max() > 1 else 4
        steps = int(np.median([float(row["steps"]) for row in rows]))
        seconds = np.median([float(row["train_seconds"]) for row in rows])
        lines.append(
            f"| {name} | {mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] | "
            f"{score.min():.{digits}f} | {steps:,} | {seconds:.2f} |"
        )
    return "\n".join(lines)


def draw() -> None:
    """The curves: interquartile mean over seeds, shaded 95 % interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    points = defaultdict(lambda: defaultdict(list))
    for row in read("learning_curves.csv"):
        points[row["experiment"]][row["seed"]].append((float(row["step"]), float(row["value"])))
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for axis, (title, (x, y, names)) in zip(axes, PANELS.items(), strict=True):
        for name in names:
            seeds = [np.array(curve).T for curve in points[name].values()]
            grid = np.linspace(max(s[0][0] for s in seeds), min(s[0][-1] for s in seeds), 100)
            mean, low, high = iqm(np.stack([np.interp(grid, *seed) for seed in seeds]))
            label = name.split(", ")[-1]
            (line,) = axis.plot(grid, mean, label=label)
            axis.fill_between(grid, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        axis.set(title=title, xlabel=x, ylabel=y)
        axis.grid(alpha=0.3)
        axis.legend(loc="lower right")
    axes[0].axhline(475, color="grey", linewidth=0.8, linestyle="--")
    axes[1].set_xscale("log")
    axes[0].xaxis.set_major_formatter(lambda step, _: f"{step / 1000:.0f}k")
    (ROOT / "docs").mkdir(exist_ok=True)
    figure.savefig(ROOT / "docs" / "learning.png", dpi=110, metadata={"Software": ""})


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure()
    draw()
    put_into("docs/results.md", "results", table())

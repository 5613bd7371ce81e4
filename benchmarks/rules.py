"""What each rule for targets and weights does on real data, beside plain cross-entropy.

    python benchmarks/rules.py          train everything again (a few minutes on two cores), then show
    python benchmarks/rules.py --show   make picture and table from the committed CSV only

Ten seeds; each splits the data anew (a stratified quarter is tested on), corrupts the training part anew and
trains anew. Settings were chosen by hand on other seeds. Gains are differences within a seed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from shared import ROOT, iqm, put_into, read, write

SEEDS = range(101, 111)
ONES = {"hidden_sizes": (256,), "epochs": 60, "batch_size": 32, "schedule": "cosine", "device": "cpu"}
DECAY = {"optimizer": "adamw", "optimizer_options": {"weight_decay": 1.0}}

# Problem: what is measured; settings of all; and the techniques, of which the first is what others gain over.
PROBLEMS = {
    "digits": (
        "accuracy",
        ONES,
        {
            "cross-entropy": {},
            "label smoothing 0.1": {"label_smoothing": 0.1},
            "soft labels 0.9/0.1": {"soft_labels": (0.9, 0.1)},
            "labels redrawn 0.1": {"redraw": 0.1},
            "mixup 0.2": {"mixup": 0.2},
            "CutMix 1": {"cutmix": 1.0},
            "Poly-1 1": {"poly1_epsilon": 1.0},
            "focal 2": {"focal_gamma": 2.0},
        },
    ),
    "breast cancer": (
        "log_loss",
        {**ONES, "epochs": 300},
        {
            "cross-entropy": {},
            "label smoothing 0.01": {"label_smoothing": 0.01},
            "label smoothing 0.05": {"label_smoothing": 0.05},
            "mixup 0.2": {"mixup": 0.2},
            "focal 2": {"focal_gamma": 2.0},
        },
    ),
    "digits, 40 % of labels random": (
        "accuracy",
        {**ONES, "epochs": 100},
        {
            "cross-entropy": {},
            "generalised CE 0.7": {"gce_q": 0.7},
            "mean absolute error": {"gce_q": 1.0},
            "symmetric CE 0.1, 1": {"symmetric": (0.1, 1.0)},
            "forward correction": {"noise": 0.4},
            "backward correction": {"noise": 0.4, "correction": "backward"},
            "label smoothing 0.4": {"label_smoothing": 0.4},
            "mixup 1": {"mixup": 1.0},
        },
    ),
    "digits, classes 100:1": (
        "balanced_accuracy",
        {**ONES, **DECAY},
        {
            "cross-entropy": {},
            "cross-entropy, no weight decay": {"optimizer": "adam", "optimizer_options": None},
            "class balance": {"class_weight": "balanced"},
            "effective number 0.999": {"class_weight": "effective_number"},
            "balanced sampling": {"sampler": "balanced"},
            "logit adjustment 1": {"logit_adjustment": 1.0},
        },
    ),
    "is it an 8? 2 % are": (
        "average_precision",
        {**ONES, "epochs": 30},
        {
            "cross-entropy": {},
            "focal 1": {"focal_gamma": 1.0},
            "focal 2": {"focal_gamma": 2.0},
            "class balance": {"class_weight": "balanced"},
            "focal 2, class balance": {"focal_gamma": 2.0, "class_weight": "balanced"},
        },
    ),
    "digits, a tenth of the labels": (
        "accuracy",
        {**ONES, "epochs": 100},
        {
            "cross-entropy": {},
            "distilled, T = 1": {"teacher": True, "temperature": 1.0, "teacher_share": 0.9},
            "distilled, T = 2": {"teacher": True, "temperature": 2.0, "teacher_share": 0.9},
            "distilled, T = 4": {"teacher": True, "temperature": 4.0, "teacher_share": 0.9},
        },
    ),
    "diabetes, every tenth target + 300": (
        "mae",
        {"hidden_sizes": (), "epochs": 200, "batch_size": 32, "learning_rate": 0.01, "device": "cpu"},
        {
            "squared error": {},
            "Huber 30": {"huber_delta": 30.0},
            "absolute error": {"distribution": "laplace"},
            "pinball 0.5": {"quantile": 0.5},
        },
    ),
}
SHOWN = ("accuracy", "balanced_accuracy", "average_precision", "log_loss", "ece", "mae")


def data(problem: str, seed: int):
    """Training and test part of a problem, as its name says."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    name = (
        "breast_cancer" if problem == "breast cancer" else "diabetes" if "diabetes" in problem else "digits"
    )
    X, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    regression = name == "diabetes"
    X, X_test, y, y_test = train_test_split(
        X, y, test_size=0.25, stratify=None if regression else y, random_state=seed
    )
    shift, scale = (0.0, 16.0) if name == "digits" else (X.mean(0), X.std(0))
    X, X_test = (((part - shift) / scale).astype(np.float32) for part in (X, X_test))
    rng = np.random.default_rng(seed)
    if "random" in problem:
        y = np.where(rng.random(len(y)) < 0.4, rng.integers(0, 10, len(y)), y)
    elif "100:1" in problem:
        rows = []
        for k, label in enumerate(rng.permutation(10)):
            members = rng.permutation(np.flatnonzero(y == label))
            rows += members[: max(1, round(len(members) * 100 ** (-k / 9)))].tolist()
        X, y = X[rows], y[rows]
    elif "an 8" in problem:
        y, y_test = (y == 8).astype(int), (y_test == 8).astype(int)
        others, eights = np.flatnonzero(y == 0), rng.permutation(np.flatnonzero(y))
        rows = np.r_[others, eights[: round(0.02 * len(others))]]
        X, y = X[rows], y[rows]
    elif regression:
        y = y + np.where(rng.random(len(y)) < 0.1, 300.0, 0.0)
    return X, X_test, y, y_test


def run(problem: str, technique: str, seed: int) -> dict[str, object]:
    """Train once; what the test part says."""
    import torch
    from sklearn.metrics import average_precision_score
    from sklearn.model_selection import train_test_split

    import pgce

    torch.set_num_threads(1)
    _, base, techniques = PROBLEMS[problem]
    settings = {**base, **techniques[technique], "random_state": seed}
    X, X_test, y, y_test = data(problem, seed)
    if "cutmix" in settings:
        X, X_test = X.reshape(-1, 8, 8), X_test.reshape(-1, 8, 8)
    if settings.get("teacher"):
        teacher = {**ONES, "epochs": 30, "random_state": seed}
        settings["teacher"] = pgce.Classifier(**teacher).fit(X, y)  # which saw all labels
    if "tenth of the labels" in problem:
        X, _, y, _ = train_test_split(X, y, train_size=0.1, stratify=y, random_state=seed)
    kind = pgce.Regressor if "diabetes" in problem else pgce.Classifier
    estimator = kind(**settings).fit(X, y)
    scores = estimator.evaluate(X_test, y_test)
    if "an 8" in problem:
        scores["average_precision"] = average_precision_score(y_test, estimator.predict_proba(X_test)[:, 1])
    row: dict[str, object] = {"problem": problem, "technique": technique, "seed": seed}
    return row | {name: f"{scores[name]:.5f}" if name in scores else "" for name in SHOWN}


def measure() -> None:
    """Every technique on every seed, in two processes; one row a run."""
    jobs = [(p, t, s) for p, (_, _, techniques) in PROBLEMS.items() for t in techniques for s in SEEDS]
    rows = []
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(run, *zip(*jobs, strict=True)):
            rows.append(row)
            if row["seed"] == SEEDS[-1]:
                print(row["problem"], "|", row["technique"], flush=True)
    write("rules.csv", rows)


def scores() -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """By problem, technique and measure, one number a seed."""
    found: dict = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in read("rules.csv"):
        for name in SHOWN:
            if row[name]:
                found[row["problem"]][row["technique"]][name].append(float(row[name]))
    return {
        problem: {t: {m: np.array(v) for m, v in measures.items()} for t, measures in techniques.items()}
        for problem, techniques in found.items()
    }


def _sign(measure: str) -> int:
    """A gain in what is to be small is a difference downwards."""
    return -1 if measure in ("log_loss", "mae") else 1


def table() -> str:
    """The results as a Markdown table."""
    lines = [
        "| problem | technique | score, IQM [95 %] | gain | log-loss | ECE |",
        "|---|---|---|---|---|---|",
    ]
    for problem, techniques in scores().items():
        measure = PROBLEMS[problem][0]
        base = next(iter(techniques.values()))[measure]
        for i, (technique, measures) in enumerate(techniques.items()):
            values = measures[measure]
            digits = 1 if measure == "mae" else 3
            mean, low, high = iqm(values)
            gain = ""
            if i:
                g, g_low, g_high = iqm(_sign(measure) * (values - base))
                clear = "**" if g_low > 0 else ""
                gain = f"{clear}{g:+.{digits}f}{clear} [{g_low:+.{digits}f}, {g_high:+.{digits}f}]"
            rest = [f"{iqm(measures[m])[0]:.3f}" if m in measures else "" for m in ("log_loss", "ece")]
            named = f"{problem}: {measure.replace('_', ' ')}" if not i else ""
            score = f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            lines.append(f"| {named} | {technique} | {score} | {gain} | {' | '.join(rest)} |")
    return "\n".join(lines)


def draw() -> None:
    """The gains with their intervals, a panel a problem."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = list(PROBLEMS)[1:]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for axis in axes[len(shown) :]:
        axis.axis("off")
    found = scores()
    for axis, problem in zip(axes, shown, strict=False):
        measure = PROBLEMS[problem][0]
        base, *others = found[problem].values()
        names = list(found[problem])
        gains = [iqm(_sign(measure) * (other[measure] - base[measure])) for other in others]
        means, low, high = np.array(gains).T
        places = np.arange(len(means))[::-1]
        axis.errorbar(means, places, xerr=[means - low, high - means], fmt="o", capsize=3)
        axis.axvline(0, color="grey", linewidth=0.8, linestyle="--")
        axis.set_yticks(places, names[1:], fontsize=8)
        axis.set_title(problem, fontsize=9)
        axis.set_xlabel(f"gain in {measure.replace('_', ' ')} over {names[0]}", fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    figure.savefig(ROOT / "docs" / "rules.png", dpi=110, metadata={"Software": ""})


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure()
    draw()
    put_into("docs/results.md", "rules", table())

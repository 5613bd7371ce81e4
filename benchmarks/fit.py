"""What an epoch of `pgce.fit` costs beside a loop written by hand, and beside skorch.

    python benchmarks/fit.py       60,000 × 784 → 128 → 10, batches of 128, Adam; one thread (a minute)

skorch is measured if it is installed (pip install skorch). All take turns in one process; a ratio is the
median of the ratios within a turn.
"""

from __future__ import annotations

import csv
import platform
import time
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import pgce

RESULTS = Path(__file__).parent / "results" / "fit.csv"
EXAMPLES, FEATURES, HIDDEN, CLASSES, BATCH, TURNS = 60_000, 784, 128, 10, 128, 7


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def by_hand(inputs, labels, fused=False):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    for rows in torch.randperm(len(inputs)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()


def by_pgce(inputs, labels):
    pgce.fit(network(), (inputs, labels), epochs=1, batch_size=BATCH, device="cpu")


def by_classifier(inputs, labels):
    estimator = pgce.Classifier(hidden_sizes=(HIDDEN,), epochs=1, batch_size=BATCH, device="cpu")
    estimator.fit(inputs.numpy(), labels.numpy())


def by_skorch(inputs, labels):
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        network(), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, max_epochs=1, batch_size=BATCH,
        train_split=None, iterator_train__shuffle=True, verbose=0,
    )  # fmt: skip
    net.fit(inputs, labels)


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(EXAMPLES, FEATURES, generator=generator)
    labels = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    programs = {
        "by hand": by_hand,
        "by hand, fused Adam": lambda x, y: by_hand(x, y, fused=True),
        "pgce.fit": by_pgce,
        "pgce.Classifier": by_classifier,
        "skorch": by_skorch,
    }
    try:
        import skorch
    except ImportError:
        del programs["skorch"]
        print("skorch is not installed: left out")
    else:
        print(f"skorch {skorch.__version__}", end=", ")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread")
    seconds = defaultdict(list)
    for turn in range(TURNS + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program(inputs, labels)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    base = np.array(seconds["by hand"])
    rows = []
    for name, values in seconds.items():
        ratios = np.array(values) / base
        low, median, high = np.percentile(ratios, [25, 50, 75])
        rows.append([name, f"{np.median(values):.3f}", f"{median:.3f}", f"{low:.3f}", f"{high:.3f}"])
        print(
            f"{name:22s} {np.median(values):6.3f} s an epoch, {median:.2f} [{low:.2f}, {high:.2f}] × by hand"
        )
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["program", "seconds", "ratio to by hand", "25 %", "75 %"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()

"""What an epoch of `pgce.fit` costs beside a loop written by hand, and beside skorch.

    python benchmarks/fit.py          60,000 × 784 → 128 → 10, batches of 128, Adam, one thread (a minute)
    python benchmarks/fit.py --show   make the table from the committed CSV only

Needs skorch (pip install skorch). All take turns in one process; a ratio is the median of the turns'.
"""

from __future__ import annotations

import platform
import sys
import time
import warnings
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from shared import put_into, read, write
from torch import nn

import pgce

EXAMPLES, FEATURES, HIDDEN, CLASSES, BATCH, TURNS = 60_000, 784, 128, 10, 128, 7


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))


def by_hand(inputs, labels, fused=False, batch=BATCH):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), fused=fused)
    for rows in torch.randperm(len(inputs)).split(batch):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()


def by_pgce(inputs, labels, precision="float32", batch=BATCH):
    pgce.fit(network(), (inputs, labels), epochs=1, batch_size=batch, precision=precision, device="cpu")


def by_classifier(inputs, labels):
    estimator = pgce.Classifier(hidden_sizes=(HIDDEN,), epochs=1, batch_size=BATCH, device="cpu")
    estimator.fit(inputs.numpy(), labels.numpy())


def by_skorch(inputs, labels, batch=BATCH):
    from skorch import NeuralNetClassifier

    net = NeuralNetClassifier(
        network(), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, max_epochs=1, batch_size=batch,
        train_split=None, iterator_train__shuffle=True, verbose=0,
    )  # fmt: skip
    net.fit(inputs, labels)


def examples(number=EXAMPLES):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(number, FEATURES, generator=generator)
    return inputs, torch.randint(CLASSES, (number,), generator=generator)


def measure() -> None:
    import skorch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    inputs, labels = examples()
    programs = {
        "by hand": by_hand,
        "by hand, fused Adam": lambda x, y: by_hand(x, y, fused=True),
        "pgce.fit": by_pgce,
        "pgce.fit, bfloat16": lambda x, y: by_pgce(x, y, "bfloat16"),
        "pgce.Classifier": by_classifier,
        f"skorch {skorch.__version__}": by_skorch,
    }
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, one thread")
    seconds = defaultdict(list)
    for turn in range(TURNS + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            program(inputs, labels)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, values in seconds.items():
        row: dict[str, object] = {"program": name, "seconds": f"{np.median(values):.3f}"}
        for other in ("by hand", f"skorch {skorch.__version__}"):
            low, median, high = np.percentile(np.array(values) / seconds[other], [25, 50, 75])
            row[f"× {other.split()[0]}"] = f"{median:.2f} [{low:.2f}, {high:.2f}]"
        rows.append(row)
    write("fit.csv", rows)


def table() -> str:
    """The results as a Markdown table."""
    lines = [
        "| 60,000 × 784 → 128 → 10, batches of 128 | s an epoch | × by hand [quartiles] | × skorch |",
        "|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row.values())} |" for row in read("fit.csv")])


if __name__ == "__main__":
    if "--show" not in sys.argv:
        measure()
    put_into("docs/speed.md", "fit", table())

"""Time and memory of `linear_cross_entropy` beside the plain form and torch's own, forward and backward.

    python benchmarks/linear_cross_entropy.py                       both sizes (ten minutes), and the CSV
    python benchmarks/linear_cross_entropy.py --size 512 64 1000    one size B D K, no CSV
    python benchmarks/linear_cross_entropy.py --show                the tables from the committed CSV only

Every measurement is a fresh process, the forms take turns, and each is warmed up on a few rows. Memory is the
peak of the resident set above what inputs and gradients take (Linux; elsewhere it is left out).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from shared import put_into, read, write

SIZES = [(4096, 512, 128_256), (512, 64, 1000)]  # examples B, features D, classes K
FORMS = {
    "plain": "F.linear + weighted_cross_entropy",
    "pgce": "linear_cross_entropy",
    "torch none": 'torch F.linear_cross_entropy, reduction="none", times the weight',
    "torch mean": 'torch F.linear_cross_entropy, reduction="mean", UNWEIGHTED: it has no weight a row',
}

SHORT = {
    "plain": "logits held",
    "pgce": "`linear_cross_entropy`",
    "torch none": "torch's, each row, then weighted",
    "torch mean": "torch's, *unweighted*",
}


def loss_of(form, hidden, matrix, label, weight):
    """The mean weighted cross-entropy by one of the forms ("torch mean": without the weight)."""
    import torch
    import torch.nn.functional as F

    from pgce.objective import linear_cross_entropy, weighted_cross_entropy

    if form == "plain":
        return weighted_cross_entropy(F.linear(hidden, matrix), label, weight)
    if form == "pgce":
        return linear_cross_entropy(hidden, matrix, label, weight)
    options = torch.nn.LinearCrossEntropyOptions()  # without them torch, too, holds all logits
    if form == "torch mean":
        return F.linear_cross_entropy(hidden, matrix, label, options=options)
    return (weight * F.linear_cross_entropy(hidden, matrix, label, reduction="none", options=options)).mean()


def inputs(size):
    """Hidden states, matrix, class ids and signed weights, the same in every process."""
    import torch

    examples, features, classes = size
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(examples, features, generator=generator).requires_grad_()
    matrix = torch.randn(classes, features, generator=generator).mul_(features**-0.5).requires_grad_()
    label = torch.randint(classes, (examples,), generator=generator)
    return hidden, matrix, label, torch.randn(examples, generator=generator)


def resident(field):
    """Bytes of the resident set, "VmRSS", or of its peak, "VmHWM"; NaN where there is no /proc."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def forget_peak():
    """Set the peak of the resident set to what it is now."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def child(form, size, threads, calls):
    """One process: seconds of a call (the median of `calls`, and each) and peak bytes, printed as JSON."""
    import torch

    torch.set_num_threads(threads)
    tiny = inputs((8, 4, 10))
    loss_of("plain", *tiny).backward()
    if form == "equal":
        gradients = []
        for each in ("plain", "pgce"):
            hidden, matrix, label, weight = inputs(size)
            loss_of(each, hidden, matrix, label, weight).backward()
            gradients.append((hidden.grad, matrix.grad))
        differences = [float((b - a).norm() / a.norm()) for a, b in zip(*gradients, strict=True)]
        print(json.dumps(differences))
        return
    loss_of(form, *tiny).backward()
    hidden, matrix, label, weight = inputs(size)
    seconds, peaks = [], []
    for _ in range(calls):
        hidden.grad = matrix.grad = None
        forget_peak()
        before = resident("VmRSS")
        start = time.perf_counter()
        loss_of(form, hidden, matrix, label, weight).backward()
        seconds.append(time.perf_counter() - start)
        gradients = sum(value.grad.numel() * value.grad.itemsize for value in (hidden, matrix))
        peaks.append(resident("VmHWM") - before - gradients)
    # Later calls reuse what the allocator kept of the first, which so shows the most.
    print(json.dumps({"seconds": statistics.median(seconds), "bytes": peaks[0], "each": seconds}))


def process(form, size, threads, calls):
    """What `child` prints, in a fresh process."""
    command = [sys.executable, __file__, "--child", form, "--size", *map(str, size)]
    command += ["--threads", str(threads), "--calls", str(calls)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(size, threads, rounds):
    """One row a form: medians and range over the rounds, and ratios to the plain form."""
    calls = 1 if size[0] * size[2] > 10**7 else 200
    taken = {form: [] for form in FORMS}
    for turn in range(rounds):
        for form, results in taken.items():
            if turn >= 3 and statistics.median(r["seconds"] for r in results) > 20:
                continue  # three of the slow ones are enough
            results.append(process(form, size, threads, calls))
            print(turn, form, results[-1], flush=True)
    differences = process("equal", size, threads, 1)
    rows = []
    for form, results in taken.items():
        seconds = [r["seconds"] for r in results]
        rows.append(
            dict(zip("BDK", size, strict=True))
            | {
                "form": form,
                "threads": threads,
                "repetitions": len(seconds),
                "seconds_median": float(f"{statistics.median(seconds):.4g}"),
                "seconds_min": float(f"{min(seconds):.4g}"),
                "seconds_max": float(f"{max(seconds):.4g}"),
                "mib_beyond_median": round(statistics.median(r["bytes"] for r in results) / 2**20, 1),
                "mib_beyond_max": round(max(r["bytes"] for r in results) / 2**20, 1),
                "gradient_hidden_difference": f"{differences[0]:.1e}" if form == "pgce" else "",
                "gradient_matrix_difference": f"{differences[1]:.1e}" if form == "pgce" else "",
            }
        )
    for row in rows:
        row["time_ratio"] = round(row["seconds_median"] / rows[0]["seconds_median"], 3)
        row["memory_ratio"] = round(row["mib_beyond_median"] / max(rows[0]["mib_beyond_median"], 0.1), 3)
    return rows


def show(rows):
    """The rows as one table a size."""
    for size in dict.fromkeys((row["B"], row["D"], row["K"]) for row in rows):
        of_size = [row for row in rows if (row["B"], row["D"], row["K"]) == size]
        print(f"\nB, D, K = {size[0]}, {size[1]}, {size[2]}, float32, {of_size[0]['threads']} threads")
        print(
            f"{'':12}{'seconds, median [range], n':>32}{'× plain':>9}{'MiB beyond, median':>20}{'× plain':>9}"
        )
        for row in of_size:
            spread = f"{float(row['seconds_median']):.4g} [{row['seconds_min']}, {row['seconds_max']}]"
            print(
                f"{row['form']:12}{spread + ', ' + str(row['repetitions']):>32}{row['time_ratio']:>9}"
                f"{row['mib_beyond_median']:>20}{row['memory_ratio']:>9}"
            )
            if row["gradient_hidden_difference"]:
                found = f"{row['gradient_hidden_difference']}, {row['gradient_matrix_difference']}"
                print(f"{'':12}relative difference of the gradients on hidden, matrix: {found}")
    print()
    for form, meaning in FORMS.items():
        print(f"{form:12}{meaning}")


def table() -> str:
    """The committed results as a Markdown table."""
    lines = [
        "| B × D × K | form | s, median | × plain | MiB beyond inputs and gradients | × plain |",
        "|---|---|---|---|---|---|",
    ]
    for row in read("linear_cross_entropy.csv"):
        size = f"{int(row['B']):,} × {row['D']} × {int(row['K']):,}" if row["form"] == "plain" else ""
        cells = [size, SHORT[row["form"]], row["seconds_median"], row["time_ratio"], row["mib_beyond_median"]]
        lines.append(f"| {' | '.join([*cells, row['memory_ratio']])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch, 2")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, 5 (3 of what takes over 20 s)")
    parser.add_argument("--size", type=int, nargs=3, metavar=("B", "D", "K"), help="only this size, no CSV")
    parser.add_argument("--show", action="store_true", help="print the committed results")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--calls", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.size, given.threads, given.calls)
        return
    if given.size:
        show(measure(tuple(given.size), given.threads, given.rounds))
        return
    if not given.show:
        rows = [row for size in SIZES for row in measure(size, given.threads, given.rounds)]
        write("linear_cross_entropy.csv", rows)
    show(read("linear_cross_entropy.csv"))
    put_into("docs/speed.md", "linear", table())


if __name__ == "__main__":
    main()

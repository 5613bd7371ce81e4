"""What a step, an update and a sum over processes cost as things grow: the figures of docs/scaling.md.

    python benchmarks/scale.py                  all (ten minutes, on a machine that is left alone)
    python benchmarks/scale.py envs ranks       parts, by name: envs, width, batch, vocabulary, ranks
    python benchmarks/scale.py width batch --device cuda      on a GPU: rows beside those of the CPU
    python benchmarks/scale.py --quick          once and tiny, into .bench/: does everything run?
    python benchmarks/scale.py --show           make picture and page from the committed CSV only

Every point is a fresh process with one thread on one core (ranks: one core each), a few repeats, and lines of
the CSV as soon as it ends. Memory is the peak of the resident set above what it was when all was imported and
warm. What is computed from the rows stands in benchmarks/rounds.py.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import linear_cross_entropy
import rounds
from linear_cross_entropy import forget_peak, resident
from processes import steps_a_second
from shared import RESULTS, ROOT, put_into, read, write
from speed import BENCH, on_cores, processor

from pgce.envs.workers import cores

Point = tuple[str, int, str, list[float]]
"""Case, size, what was measured, and each repeat's number."""
T, EPOCHS, MINIBATCHES = rounds.T, rounds.EPOCHS, rounds.MINIBATCHES
EXAMPLES = 65_536  # a multiple of all batches, about as many as MNIST has
SIZES = {
    "envs": (1, 4, 16, 64, 256, 1024, 4096),
    "width": (16, 32, 64, 128, 256, 512, 1024),
    "batch": (16, 64, 256, 1024, 4096, 16_384),
    "vocabulary": (10, 100, 1000, 10_000, 32_000, 128_000),
    "ranks": (),
}
QUICK = {"envs": (1, 4), "width": (16, 32), "batch": (256, 1024), "vocabulary": (10, 100), "ranks": ()}
PARAMETERS = (1, 100, 1000, 10_000, 100_000, 1_000_000, 10_000_000)
_NUMPY = "--vectorization", "vector_entry_point"  # the environments of the other parts
RANKS = {  # environment, steps, settings of PPO
    "Humanoid-v5, 16 × 256": ("Humanoid-v5", 20_000, ()),
    "CartPole-v1, 16 × 256, hidden 256, 256": (
        "CartPole-v1",
        40_000,
        (*_NUMPY, "--hidden-sizes", "256", "256"),
    ),
    **{
        rounds.case(n): ("CartPole-v1", 200_000, (*_NUMPY, "--num-envs", str(n), "--num-steps", str(T)))
        for n in rounds.CHECKED
    },
}


def ppo(device: str, seconds: float, repeats: int, **settings) -> tuple[dict[str, list[float]], object]:
    """Repeats of PPO on CartPole-v1: steps/s, µs of a step of all environments, µs of an update; network."""
    import pgce

    def train(count: int):
        seen = {}
        with tempfile.TemporaryDirectory() as folder:
            agent = pgce.agents.PPO(
                num_steps=T, update_epochs=EPOCHS, num_minibatches=MINIBATCHES, norm_obs=False,
                norm_reward=False, device=device,
                track=False, quiet=True, runs_dir=folder, stop_at_threshold=False, eval_episodes=1,
                eval_freq=10**9, **settings,
            )  # fmt: skip
            run = agent.train(
                total_timesteps=agent.num_envs * T * count, metrics=lambda _, values: seen.update(values)
            )
        return run, seen["time/epoch"]  # rounds: a step that only resets is no step, so there are some more

    train(1)
    run, count = train(1)  # tells how many are enough
    count = max(1, min(round(seconds * count / run.result["train_seconds"]), 500))
    told = defaultdict(list)
    for _ in range(repeats):
        run, done = train(count)
        spent = run.result["spent"]
        told["steps/s"].append(run.result["steps"] / run.result["train_seconds"])
        told["collect µs"].append(1e6 * spent["collect"] / (done * T))
        told["update µs"].append(1e6 * spent["learn"] / (done * EPOCHS * MINIBATCHES))
    return told, run.model


def of_envs(n: int, given: argparse.Namespace) -> Iterator[Point]:
    """PPO by the number of environments; memory; and a step of the environments alone."""
    import pgce.envs

    ppo(given.device, 0.0, 0, num_envs=1)
    before = resident("VmRSS")
    forget_peak()
    told, _ = ppo(given.device, given.seconds, given.repeats, num_envs=n)
    told["MiB"] = [(resident("VmHWM") - before) / 2**20]
    envs = pgce.envs.make("CartPole-v1", n)
    envs.reset(seed=1)
    actions = [envs.action_space.sample() for _ in range(10)]
    for _ in range(given.repeats):
        calls, begun = 0, time.perf_counter()
        while time.perf_counter() < begun + given.seconds / 3:
            envs.step(actions[calls % 10])
            calls += 1
        told["environment µs"].append(1e6 * (time.perf_counter() - begun) / calls)
    yield from (("", n, name, values) for name, values in told.items())


def of_width(width: int, given: argparse.Namespace) -> Iterator[Point]:
    """PPO by the width of two hidden layers, and GFLOP/s of all that is done in its updates."""
    told, model = ppo(given.device, given.seconds, given.repeats, num_envs=64, hidden_sizes=(width, width))
    matrices = [each for each in model.parameters() if each.ndim == 2]
    # Forward, on the weights, on the inputs; the first layers need no gradient of their inputs.
    flops = sum((4 if each.shape[1] == 4 else 6) * each.numel() for each in matrices)
    rows = 64 * T / MINIBATCHES
    told["GFLOP/s"] = [flops * rows / value / 1e3 for value in told["update µs"]]
    told["parameters"] = [float(sum(each.numel() for each in model.parameters()))]
    yield from (("", width, name, values) for name, values in told.items())


def of_batch(size: int, given: argparse.Namespace) -> Iterator[Point]:
    """Examples a second of `pgce.fit`, an epoch each, or 512 steps of one."""
    from fit import examples, network

    import pgce

    data = examples(EXAMPLES)
    used = min(EXAMPLES, (8 if given.quick else 512) * size)

    def some(batch, generator):  # rows from all over the memory that all take
        return pgce.samplers.shuffled(batch, generator)[:used]

    for precision in ("float32", "bfloat16"):
        history = pgce.fit(
            network(), data, epochs=1 + given.repeats, batch_size=size, precision=precision,
            sampler=some, device=given.device,
        )  # fmt: skip
        ends = history["seconds"]
        rates = [used / (end - begin) for begin, end in pairwise(ends)]
        yield precision, size, "examples/s", rates


def of_sums(_: int, given: argparse.Namespace) -> Iterator[Point]:
    """One sum over the processes that torchrun started, of as many float32 as a network has parameters."""
    import torch
    import torch.distributed as dist

    from pgce import processes

    torch.set_num_threads(1)
    processes.join("cpu")
    for name, add in {"shared memory": processes.total, "gloo": dist.all_reduce}.items():
        for size in PARAMETERS:
            numbers, calls = torch.zeros(size), max(3, int(given.seconds * min(1000, 10**7 // size)))
            values = []
            for _ in range(given.repeats + 1):
                dist.barrier()
                begun = time.perf_counter()
                for _ in range(calls):
                    add(numbers)
                values.append(1e6 * (time.perf_counter() - begun) / calls)
            yield f"{name}, {processes.size()} ranks", size, "sum µs", values[1:]


def child(part: str, size: int, given: argparse.Namespace) -> None:
    """One process: its points, printed as JSON."""
    import torch

    torch.set_num_threads(1)
    points = [*globals()[f"of_{part}"](size, given)]
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(points))


def process(part: str, size: int, given: argparse.Namespace, ranks: int = 1) -> list[Point]:
    """What `child` prints, in a fresh process or several."""
    words = [__file__, "--child", part, "--size", str(size), "--device", given.device]
    words += ["--repeats", str(given.repeats), "--seconds", str(given.seconds)]
    words += ["--quick"] if given.quick else []
    if ranks > 1:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "--", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with on_cores(ranks):
        done = subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))


def measured(part: str, given: argparse.Namespace) -> Iterator[list[Point]]:
    """The points of a part, as they come."""
    sizes = (QUICK if given.quick else SIZES)[part]
    if (part, given.device, given.quick) == ("width", "cuda", False):
        sizes += (2048, 4096)
    for size in sizes:
        if part != "vocabulary":
            yield process(part, size, given)
            continue
        for form in ("plain", "pgce"):
            shape = (rounds.EXAMPLES, rounds.FEATURES, size)
            with on_cores(1):
                told = linear_cross_entropy.process(form, shape, 1, 1 + max(2, min(200, 50_000 // size)))
            name = linear_cross_entropy.FORMS[form].split(" + ")[-1]
            times = [1e3 * value for value in told["each"][1:]]  # the first asks for memory
            yield [(name, size, "ms", times), (name, size, "MiB", [told["bytes"] / 2**20])]
    if part != "ranks":
        return
    numbers = [2**i for i in range(10) if 2**i <= cores()]
    if len(numbers) == 1:
        raise SystemExit("ranks are measured on two cores or more: one may be used")
    for number in numbers[1:]:
        yield process("sums", 0, given, number)
    for name, (env_id, steps, settings) in RANKS.items():
        if env_id == "Humanoid-v5" and not find_spec("mujoco"):
            print(f"{name} is left out: it needs MuJoCo, of the extra envs", flush=True)
            continue
        rates = defaultdict(list)
        for _ in range(given.repeats):
            for number in numbers:
                with on_cores(number):
                    rate = steps_a_second(
                        number, env_id, 8192 if given.quick else steps, "--no-track", *settings
                    )
                rates[number].append(rate)
        yield [(name, number, "steps/s", values) for number, values in rates.items()]


def measure(part: str, given: argparse.Namespace, file: Path) -> None:
    """Write the rows of a part on this device in place of those that are there."""
    rows: list[dict[str, object]] = [*read(file)] if file.exists() else []
    device = "cpu" if part in ("vocabulary", "ranks") else given.device
    rows = [row for row in rows if (row["part"], row["device"]) != (part, device)]
    machine = processor()
    if device == "cuda":
        import torch

        machine = torch.cuda.get_device_name()
    for points in measured(part, given):
        for name, size, quantity, values in points:
            numbers = statistics.median(values), min(values), max(values)
            middle, low, high = (float(f"{number:.4g}") for number in numbers)
            rows.append(
                {
                    "part": part, "device": device, "case": name, "size": size, "quantity": quantity,
                    "median": middle, "lowest": low, "highest": high, "repeats": len(values),
                    "machine": f"{machine}, {os.cpu_count()} cores", "load": f"{os.getloadavg()[0]:.1f}",
                }
            )  # fmt: skip
            print(part, name, size, quantity, f"{middle:g} [{low:g}, {high:g}]", flush=True)
        write(file, rows)


PANELS = (  # title, part, quantities, axes
    ("PPO on CartPole-v1", "envs", ("steps/s",), "environments N", "steps/s"),
    ("… its time", "envs", ("collect µs", "update µs", "environment µs"), "environments N", "µs"),
    ("… its memory", "envs", ("MiB",), "environments N", "peak MiB"),
    ("PPO, 64 environments", "width", ("steps/s", "GFLOP/s"), "units of two hidden layers", ""),
    ("pgce.fit, 784 → 128 → 10", "batch", ("examples/s",), "batch B", "examples/s"),
    (f"B {rounds.EXAMPLES:,}, D {rounds.FEATURES}", "vocabulary", ("ms",), "classes K", "ms"),
    ("… its memory", "vocabulary", ("MiB",), "classes K", "MiB beyond inputs and gradients"),
    ("One sum over processes", "ranks", ("sum µs",), "parameters P", "µs"),
)


def draw(rows: list[dict[str, str]], file: Path) -> None:
    """Small multiples: the medians, shaded from lowest to highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(14, 6.2), layout="constrained")
    for axis, (title, part, quantities, x, y) in zip(axes.flat, PANELS, strict=True):
        lines = defaultdict(list)
        for row in rows:
            if row["part"] == part and row["quantity"] in quantities:
                several = len(quantities) > 1
                names = [row["case"], row["quantity"] if several else "", row["device"].replace("cpu", "")]
                numbers = [float(row[name]) for name in ("size", "median", "lowest", "highest")]
                lines[", ".join(filter(None, names))].append(numbers)
        for name, points in lines.items():
            size, middle, low, high = zip(*points, strict=True)
            (drawn,) = axis.plot(size, middle, marker=".", label=name)
            axis.fill_between(size, low, high, alpha=0.2, color=drawn.get_color(), linewidth=0)
        axis.set(title=title, xlabel=x, ylabel=y)
        if lines:
            axis.set(xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        if len(lines) > 1:
            axis.legend(fontsize=8)
    figure.savefig(file, dpi=90, metadata={"Software": ""})
    plt.close(figure)


def main() -> None:
    """Measure what is asked for, then show all there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=", ".join(SIZES))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of width, batch and envs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a repeat, about")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.size, given)
        return
    parts = given.parts or [part for part in SIZES if given.device == "cpu" or part in ("width", "batch")]
    if unknown := set(parts) - set(SIZES):
        parser.error(f"parts are {', '.join(SIZES)}: there is no {', '.join(unknown)}")
    if given.quick:
        given.repeats, given.seconds = 1, 0.02
    folder = BENCH if given.quick else RESULTS
    folder.mkdir(exist_ok=True)
    file = folder / "scale.csv"
    if not given.show:
        print(f"{processor()}, {cores()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        for part in parts:
            measure(part, given, file)
    rows = read(file)
    draw(rows, BENCH / "scale.png" if given.quick else ROOT / "docs" / "scale.png")
    if missing := set(SIZES) - {row["part"] for row in rows}:
        print(f"the page is written when all parts are measured, on a CPU: {', '.join(missing)} are missing")
    if given.quick or missing:
        return
    for marker, text in rounds.tables(rows).items():
        put_into("docs/scaling.md", marker, text)


if __name__ == "__main__":
    main()

"""What a GPU makes of agents, updates, fits and losses, beside a CPU or torch by hand.

    python benchmarks/gpu.py                all (about four minutes), results/gpu.csv, docs/speed.md
    python benchmarks/gpu.py fit update     parts, by name: envs, update, fit, objective, linear; no CSV
    python benchmarks/gpu.py --quick        once and small, no CSV: does everything run?
    python benchmarks/gpu.py --show         the committed CSV, printed and into docs/speed.md

A number is the median of its repeats, which take turns with those it is compared to.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from functools import partial

import torch
import torch.nn.functional as F
from linear_cross_entropy import inputs as linear_inputs
from linear_cross_entropy import loss_of
from shared import put_into, read, write
from torch import nn

import pgce
from pgce.heads import Categorical
from pgce.networks import ActorCritic, Value, mlp
from pgce.optimizer import Optimizer

T, ROWS, EXAMPLES, FEATURES = 32, 2048, 60_000, 784


def medians(unit, cases, repeats):
    """Name, unit, and median, least and most of the repeats of functions that return a number each."""
    found = defaultdict(list)
    for _ in range(repeats):
        for name, measure in cases.items():
            found[name].append(measure())
    return [(name, unit, statistics.median(x), min(x), max(x)) for name, x in found.items()]


def seconds(function):
    """Of a call, to its end on the device."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def envs(quick):
    """Steps a second of PPO on CartPole-v1, and the share of its time that collecting takes."""
    for n in (64,) if quick else (64, 512, 4096):
        shares = {}
        rounds = 2 if quick else max(6, 40 * 64 // n)

        def steps_a_second(device, n=n, rounds=rounds, shares=shares):
            with tempfile.TemporaryDirectory() as folder:
                agent = pgce.agents.PPO(
                    num_envs=n, num_steps=T, update_epochs=4, num_minibatches=4, norm_obs=False,
                    norm_reward=False, device=device, track=False, quiet=True, runs_dir=folder,
                    stop_at_threshold=False, eval_episodes=1, eval_freq=10**9,
                )  # fmt: skip
                result = agent.train("CartPole-v1", total_timesteps=n * T * rounds).result
            shares[device] = result["spent"]["collect"] / result["train_seconds"]
            return result["steps"] / result["train_seconds"]

        kinds = {"cuda": lambda: steps_a_second("cuda"), "cpu": lambda: steps_a_second("cpu")}
        for measure in kinds.values():
            measure()
        yield from ((f"PPO, {n} × {T}", *row) for row in medians("steps/s", kinds, 1 if quick else 3))
        yield from ((f"PPO, {n} × {T}", how, "of it collecting", *[x] * 3) for how, x in shares.items())


def update(quick):
    """Microseconds of a step of an actor and a critic on a minibatch."""
    for width in (64,) if quick else (64, 256, 1024):

        def made(recorded, waiting=False, device="cuda", width=width):
            torch.manual_seed(0)
            model = ActorCritic(mlp(4, 2, (width, width)), Value(mlp(4, 1, (width, width)))).to(device)
            stack = Optimizer(model.parameters(), max_grad_norm=0.5)
            stack.defers = stack.defers and not waiting
            trainer = pgce.Trainer(model, pgce.agents.PPO().terms(Categorical()), stack)
            if not recorded:
                trainer._recorder = None
            x = torch.randn(ROWS // 4, 4, device=device)
            columns = {name: x[:, 0].clone() for name in ("advantage", "return", "cross_entropy", "value")}
            batch = pgce.Batch(x, {"action": (x[:, 1] > 0).long(), **columns})
            many = 10 if quick else 200
            if device == "cpu" and not quick:
                many = min(many, max(3, 2_000_000 // width**2))

            def steps(many=many):
                for _ in range(many):
                    trainer.step(batch)
                trainer.look()

            steps()
            return lambda many=many: 1e6 * seconds(steps) / many

        cases = {
            "replayed": made(True),
            "one by one": made(False),
            "one by one, each waited for": made(False, waiting=True),
            "cpu": made(False, device="cpu"),
        }
        yield from ((f"update, hidden {width}", *row) for row in medians("µs", cases, 1 if quick else 5))


def fit(quick):
    """Seconds of an epoch of `pgce.fit`, and of a loop by hand."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(EXAMPLES, FEATURES, generator=g), torch.randint(10, (EXAMPLES,), generator=g)
    placed, epochs = (x.cuda(), y.cuda()), 2 if quick else 8

    class Own(nn.Sequential):
        """A model whose steps are not recorded, since nobody knows what it does."""

    def network(kind=nn.Sequential):
        torch.manual_seed(0)
        return kind(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, 10)).cuda()

    for size in (4096,) if quick else (128, 4096):

        def ours(kind=nn.Sequential, size=size):
            model = network(kind)
            history = pgce.fit(model, placed, epochs=epochs, batch_size=size, device="cuda")["seconds"]
            return (history[-1] - history[0]) / (epochs - 1)

        def by_hand(size=size):
            model = network()
            adam = torch.optim.Adam(model.parameters(), fused=True)

            def epoch():
                for rows in torch.randperm(EXAMPLES).cuda().split(size):
                    adam.zero_grad()
                    F.cross_entropy(model(placed[0][rows]), placed[1][rows]).backward()
                    adam.step()

            epoch()
            return seconds(lambda: [epoch() for _ in range(epochs - 1)]) / (epochs - 1)

        own = partial(ours, Own)
        cases = {"pgce.fit": ours, "pgce.fit, one by one": own, "torch by hand": by_hand}
        yield from ((f"epoch, batches of {size}", *row) for row in medians("s", cases, 1 if quick else 3))


def objective(quick):
    """Microseconds of loss and gradient, 4,096 examples."""
    for classes in (10,) if quick else (2, 10, 1000, 32_000):
        torch.manual_seed(0)
        logits = torch.randn(4096, classes, device="cuda", requires_grad=True)
        target, weight = torch.randint(classes, (4096,), device="cuda"), torch.randn(4096, device="cuda")
        losses = {
            "weighted_cross_entropy": lambda z=logits, y=target, w=weight: pgce.weighted_cross_entropy(
                z, y, w
            ),
            "torch by hand": lambda z=logits, y=target, w=weight: (
                w * F.cross_entropy(z, y, reduction="none")
            ).mean(),
        }

        def measured(loss, many=10 if quick else 100):
            def calls():
                for _ in range(many):
                    logits.grad = None  # noqa: B023
                    loss().backward()

            calls()
            return lambda: 1e6 * seconds(calls) / many

        cases = {name: measured(loss) for name, loss in losses.items()}
        yield from ((f"loss, K = {classes:,}", *row) for row in medians("µs", cases, 1 if quick else 5))


def linear(quick):
    """Milliseconds and memory of the loss of a large vocabulary, beside all logits held."""
    size = (512, 64, 1000) if quick else (4096, 512, 128_256)
    values = [value.detach().cuda() for value in linear_inputs(size)]
    name = "vocabulary, " + " × ".join(f"{n:,}" for n in size)
    peaks = {}

    def measured(form):
        def call():
            hidden, matrix = (value.clone().requires_grad_() for value in values[:2])
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            time_of = seconds(lambda: loss_of(form, hidden, matrix, *values[2:]).backward())
            gradients = sum(value.grad.numel() * value.grad.itemsize for value in (hidden, matrix))
            peaks[form] = (torch.cuda.max_memory_allocated() - before - gradients) / 2**20
            return 1e3 * time_of

        call()
        return call

    cases = {"linear_cross_entropy": measured("pgce"), "logits held": measured("plain")}
    yield from ((name, *row) for row in medians("ms", cases, 1 if quick else 9))
    for form, label in (("pgce", "linear_cross_entropy"), ("plain", "logits held")):
        yield name, label, "MiB", peaks[form], peaks[form], peaks[form]


PARTS = {part.__name__: part for part in (envs, update, fit, objective, linear)}
FIELDS = ("card", "torch", "what", "how", "unit", "median", "least", "most")


def show(rows):
    """Print the rows as a table."""
    print(f"{rows[0]['card']}, torch {rows[0]['torch']}")
    for row in rows:
        print(f"{row['what']:<36} {row['how']:<28} {float(row['median']):>12,.4g} {row['unit']}")


def table():
    """The medians of the CSV as a Markdown table, a line for each thing that was measured."""
    rows, lines = read("gpu.csv"), defaultdict(list)
    for row in rows:
        median = float(row["median"])
        told = f"{median:,.0f}" if median >= 100 else f"{median:.3g}"
        lines[row["what"], row["unit"]].append(f"{row['how']} {told}")
    head = f"| {rows[0]['card']}, torch {rows[0]['torch']} | unit | median |\n|---|---|---|\n"
    return head + "\n".join(
        f"| {what} | {unit} | {'; '.join(told)} |" for (what, unit), told in lines.items()
    )


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}: there is no {min(unknown)}")
    if given.show:
        show(read("gpu.csv"))
        put_into("docs/speed.md", "gpu", table())
        return
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device at hand")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # as agents do
    card, rows = torch.cuda.get_device_name(), []
    for name in given.parts or PARTS:
        for row in PARTS[name](given.quick):
            numbers = [f"{number:.4g}" for number in row[3:]]
            rows.append(dict(zip(FIELDS, (card, torch.__version__, *row[:3], *numbers), strict=True)))
            show(rows[-1:])
    show(rows)
    if not given.parts and not given.quick:
        write("gpu.csv", rows)
        put_into("docs/speed.md", "gpu", table())


if __name__ == "__main__":
    main()

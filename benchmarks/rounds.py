"""The time of a round from measured costs, and what it says of more ranks: the tables of docs/scaling.md.

Costs are lines, a fixed part and one for each row, through the points of benchmarks/results/scale.csv. What
is not measured is an assumption, and stands in `LINKS`, `GPU` and `HEAVY`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

__all__ = ["CHECKED", "EPOCHS", "EXAMPLES", "FEATURES", "MINIBATCHES", "T", "case", "tables"]

Rows = list[dict[str, str]]
T, EPOCHS, MINIBATCHES = 32, 4, 4
UPDATES = EPOCHS * MINIBATCHES
EXAMPLES, FEATURES = 1024, 128  # of the curve over vocabularies
CHECKED = (64, 1024)  # environments of the runs that the arithmetic is held against
HEAVY = 1e-3  # seconds that one step of a heavy environment takes
LINKS = {  # bytes a second, and seconds a message
    "NVLink": (300e9, 5e-6),
    "InfiniBand, 400 Gbit/s a GPU": (50e9, 10e-6),
    "Ethernet, 25 Gbit/s": (25e9 / 8, 30e-6),
    "Ethernet, 1 Gbit/s": (1e9 / 8, 50e-6),
}
GPU = 200e12, 1e-3  # FLOP/s that products in bfloat16 reach, and seconds of an update that has hardly a row


def case(envs: int) -> str:
    """What a run that the arithmetic is held against is called."""
    return f"CartPole-v1, {envs:,} × {T}"


def over(a: float, b: float) -> float:
    """a / b, where a line may have no fixed part, or nothing else."""
    return a / b if b else math.inf


@dataclass(frozen=True)
class Line:
    """A cost: fixed + each · x, in seconds or bytes; and by how much its points lie off it at most."""

    fixed: float
    each: float
    off: float

    @classmethod
    def through(cls, points: list[tuple[float, float]]) -> Line:
        """The line with the least squares of relative errors whose parts are not negative."""
        x, y = np.array(points).T
        (fixed, each), _ = nnls(np.stack([1 / y, x / y], 1), np.ones(len(y)))
        return cls(fixed, each, float(abs((fixed + each * x) / y - 1).max()))

    def __call__(self, x: float) -> float:
        """The cost at a size."""
        return self.fixed + self.each * x

    @property
    def half(self) -> float:
        """The size at which the two parts are equal."""
        return over(self.fixed, self.each)


def medians(rows: Rows, part: str, quantity: str, case: str = "", device: str = "cpu") -> dict[int, float]:
    """A measured curve, by size."""
    wanted = (part, quantity, case, device)
    names = ("part", "quantity", "case", "device")
    return {
        int(row["size"]): float(row["median"]) for row in rows if tuple(row[name] for name in names) == wanted
    }


def costs(rows: Rows) -> dict[str, Line]:
    """What is measured on one core, in seconds and bytes, by name."""
    environment, collect, update = (
        medians(rows, "envs", f"{name} µs") for name in ("environment", "collect", "update")
    )
    found = {
        "environments": [(n, value / 1e6) for n, value in environment.items()],
        "policy": [(n, (value - environment[n]) / 1e6) for n, value in collect.items()],
        "update": [(n * T / MINIBATCHES, value / 1e6) for n, value in update.items()],
        "rollout": [(n * T, value * 2**20) for n, value in medians(rows, "envs", "MiB").items() if n > 64],
    }
    for precision in ("float32", "bfloat16"):
        rates = medians(rows, "batch", "examples/s", precision)
        found[precision] = [(size, size / rate) for size, rate in rates.items()]
    for name in ("shared memory", "gloo"):
        times = medians(rows, "ranks", "sum µs", f"{name}, 2 ranks")
        found[name] = [(4 * size, value / 1e6) for size, value in times.items()]
    return {name: Line.through(points) for name, points in found.items()}


def round_of(
    cost: dict[str, Line], envs: int, ranks: int, add: Callable[[float], float], parameters: float,
    heavy: float = 0.0,
) -> dict[str, float]:  # fmt: skip
    """Seconds of a round of PPO by what takes them.

    Args:
        cost: as measured.
        envs: N, of all ranks.
        ranks: R.
        add: bytes -> seconds of a sum over ranks.
        parameters: P.
        heavy: seconds of a step of one environment, in place of the measured ones.
    """
    own = envs / ranks
    rows = own * T / MINIBATCHES
    return {
        "environments": T * (heavy * own if heavy else cost["environments"](own)),
        "policy": T * cost["policy"](own),
        "updates": UPDATES * cost["update"](rows),
        "sums": UPDATES * add(4 * parameters) if ranks > 1 else 0.0,
    }


def network(ranks: int, link: str) -> Callable[[float], float]:
    """Bytes -> seconds of a sum over ranks, in a ring or by trees, whichever is sooner."""
    bandwidth, latency = LINKS[link]

    def seconds(size: float) -> float:
        ring = 2 * (ranks - 1) * (latency + size / ranks / bandwidth)
        trees = 2 * math.ceil(math.log2(ranks)) * latency + 2 * size / bandwidth
        return min(ring, trees)

    return seconds


def neighbours(cost: dict[str, Line], ranks: int) -> Callable[[float], float]:
    """The same by shared memory: each tells every other one, and adds up what all have written."""
    two = cost["shared memory"]
    return lambda size: (ranks - 1) * two.fixed + ranks / 2 * two.each * size


def number(value: float) -> str:
    """Three digits, for people."""
    return "∞" if math.isinf(value) else f"{float(f'{value:.3g}'):,.10g}"


def markdown(head: str, lines: list[list[str]]) -> str:
    """A table."""
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(line)} |" for line in lines)])


def table_of_costs(rows: Rows) -> str:
    """Fixed part, part a row, where they are equal."""
    cost = costs(rows)
    names = {
        "environments": ("a step of CartPole-v1, NumPy", "an environment"),
        "policy": ("the policy's call, 64 × 64 units, and storing", "an environment"),
        "update": ("an update of PPO, 64 × 64 units", "a row"),
        "float32": ("a step of `pgce.fit`, 784 → 128 → 10", "a row"),
        "bfloat16": ("the same in bfloat16", "a row"),
        "shared memory": ("a sum over 2 processes, shared memory", "a MiB"),
        "gloo": ("a sum over 2 processes, gloo", "a MiB"),
    }
    lines = []
    for key, (title, each) in names.items():
        unit = each.split()[1]
        line, scale = cost[key], 2**20 if unit == "MiB" else 1
        half = f"{number(line.half / scale)} {unit}{'' if unit == 'MiB' else 's'}"
        cells = number(1e6 * line.fixed), f"{number(1e6 * scale * line.each)} {each}", half
        lines.append([title, *cells, f"{100 * line.off:.0f} %"])
    machine = next(row["machine"] for row in rows if row["device"] == "cpu")
    load = [float(row["load"]) for row in rows]
    told = f"Measured on: {machine}, with a load average of {min(load):g} to {max(load):g}."
    if max(load) > 3:  # two processes, and torchrun
        told += " **The machine was busy with something else: times are too long, and not equally so.**"
    head = "one core, one thread | fixed, µs | µs for each | equal at | points off the line, at most"
    return f"{markdown(head, lines)}\n\n{told}"


def table_of_checks(rows: Rows) -> str:
    """Runs of whole processes, beside what the formula says."""
    cost, lines = costs(rows), []
    parameters = medians(rows, "width", "parameters")[64]
    for row in rows:
        if row["part"] != "ranks" or row["quantity"] != "steps/s":
            continue
        ranks, alone = int(row["size"]), medians(rows, "ranks", "steps/s", row["case"])[1]
        middle, low, high = (float(row[name]) for name in ("median", "lowest", "highest"))
        told = {case(envs): envs for envs in CHECKED}
        computed = ""
        if row["case"] in told:
            envs = told[row["case"]]
            parts = round_of(cost, envs, ranks, neighbours(cost, ranks), parameters)
            computed = number(envs * T / sum(parts.values()))
        spread = f"{number(middle)} [{number(low)}, {number(high)}]"
        lines.append([row["case"], str(ranks), spread, f"{middle / alone:.2f}", computed])
    return markdown("PPO, N × T | ranks | steps/s, measured | × one | steps/s, computed", lines)


def table_of_ranks(rows: Rows) -> str:
    """A machine of 64 cores, computed."""
    cost, lines, envs = costs(rows), [], 1024
    parameters = medians(rows, "width", "parameters")[64]
    for ranks in (1, 4, 16, 64):
        line = [str(ranks)]
        for heavy in (0.0, HEAVY):
            one, parts = (round_of(cost, envs, r, neighbours(cost, r), parameters, heavy) for r in (1, ranks))
            whole = sum(parts.values())
            most = max(parts, key=parts.__getitem__)
            line += [
                number(envs * T / whole),
                f"{sum(one.values()) / whole:.1f}",
                f"{most}, {100 * parts[most] / whole:.0f} %",
            ]
        lines.append(line)
    head = "ranks | CartPole-v1, steps/s | × one | most time"
    head += f" | {1e3 * HEAVY:g} ms a step, steps/s | × one | most time"
    return markdown(head, lines)


def table_of_limits(rows: Rows) -> str:
    """What saturates where, on cores as the measured one."""
    cost = costs(rows)
    stepping = Line(
        cost["environments"].fixed + cost["policy"].fixed,
        cost["environments"].each + cost["policy"].each,
        0.0,
    )
    update, shared, gloo = cost["update"], cost["shared memory"], cost["gloo"]
    rest = cost["policy"].each + EPOCHS * update.each
    plain = medians(rows, "vocabulary", "MiB", "weighted_cross_entropy")
    logit = 2**20 * plain[max(plain)] / EXAMPLES / max(plain)
    lines = [
        [
            "environments on cores",
            "t_env above t_policy + epochs · t_row: more cores help, by ranks or workers",
            f"a step of one takes more than {number(1e6 * rest)} µs",
        ],
        [
            "the policy's call",
            "N/R below fixed / each of a step: more ranks hardly help",
            f"fewer than {number(stepping.half)} environments a rank",
        ],
        [
            "the update's fixed cost",
            "rows of a minibatch a rank below t_fixed / t_row",
            f"fewer than {number(update.half)} rows: N/R below {number(update.half * MINIBATCHES / T)}"
            f" at T = {T}, {MINIBATCHES} minibatches",
        ],
        [
            "meeting, shared memory",
            "a sum's fixed part · (R − 1) above t_fixed",
            f"more than {number(1 + over(update.fixed, shared.fixed))} ranks",
        ],
        [
            "meeting, gloo",
            "a sum's fixed part beside t_fixed",
            f"{number(over(gloo.fixed, update.fixed))} of t_fixed for 2 ranks",
        ],
        [
            "the rollout in memory",
            "T · N/R · bytes a row above what there is",
            f"more than {number(16 * 2**30 / cost['rollout'].each)} rows a rank for 16 GiB",
        ],
        [
            "a vocabulary in memory",
            f"B · K · {number(logit)} bytes above what there is: take `linear_cross_entropy`",
            f"B · K above {number(16 * 2**30 / logit)} for 16 GiB",
        ],
    ]
    return markdown("what saturates | when | with the costs measured here", lines)


def table_of_links(rows: Rows) -> str:
    """Rows a rank at which summing the gradient takes as long as computing it."""
    core = 1e9 * max(medians(rows, "width", "GFLOP/s").values())
    lines = []
    for name, flops in (("a core as here", core), ("a GPU", GPU[0])):
        line = [f"{name}, {number(flops / 1e9)} GFLOP/s"]
        line += [number(8 / bandwidth * flops / 6) for bandwidth, _ in LINKS.values()]
        lines.append(line)
    return markdown(" | ".join(["computing", *LINKS]), lines)


def table_of_gpus() -> str:
    """Nodes of 8 GPUs: milliseconds of an update, and the share of them that computes."""
    flops, fixed = GPU
    lines = []
    for parameters, rows in ((1e6, 65_536), (1e8, 262_144), (1e9, 1_048_576)):
        for ranks in (1, 8, 64, 512):
            computing = 6 * parameters * rows / ranks / flops
            line = [f"{parameters / 1e6:,.0f} M", f"{rows:,}", str(ranks), number(1e3 * computing)]
            for link in list(LINKS)[:3]:
                if (link == "NVLink") != (ranks == 8) or ranks == 1:  # what connects the ranks
                    line.append("")
                    continue
                add = network(ranks, link)
                whole = fixed + computing + add(16) + add(4 * parameters)
                line.append(f"{number(1e3 * whole)}, {100 * computing / whole:.0f} %")
            lines.append(line)
    head = "P | rows in all | GPUs | computing, ms | " + " | ".join(list(LINKS)[:3])
    return markdown(head, lines)


def assumptions() -> str:
    """What is not measured."""
    links = [
        f"{name} {number(bandwidth / 1e9)} GB/s and {number(1e6 * latency)} µs a message"
        for name, (bandwidth, latency) in LINKS.items()
    ]
    return (
        f"Assumed, not measured: {'; '.join(links)}; a GPU that reaches {number(GPU[0] / 1e12)} TFLOP/s in "
        f"products of bfloat16 and needs {number(1e3 * GPU[1])} ms for an update of hardly a row."
    )


def table_of_memory(rows: Rows) -> str:
    """What rollouts and logits take."""
    lines = []
    for what, n, t, d, k in (
        ("CartPole-v1", 4096, 32, 4, 2),
        ("a robot, 348 numbers", 4096, 32, 348, 17),
        ("frames, 4 × 84 × 84", 1024, 128, 4 * 84 * 84, 6),
    ):
        size = n * t * (4 * (d + k) + 31)
        lines.append([f"rollout, {what}", f"N {n:,}, T {t}", f"{number(size / 2**20)} MiB"])
    plain, chunked = (
        medians(rows, "vocabulary", "MiB", form)
        for form in ("weighted_cross_entropy", "linear_cross_entropy")
    )
    most = max(plain)
    logits = 4 * EXAMPLES * most / 2**20
    shape = f"B {EXAMPLES:,}, K {most:,}"
    lines += [
        ["logits, one copy", shape, f"{number(logits)} MiB"],
        ["`weighted_cross_entropy`, measured", shape, f"{number(plain[most])} MiB"],
        ["`linear_cross_entropy`, measured", shape, f"{number(chunked[most])} MiB"],
        [
            "`weighted_cross_entropy`, computed",
            f"B 65,536, K {most:,}",
            f"{number(plain[most] * 65_536 / EXAMPLES)} MiB",
        ],
    ]
    return markdown("what | size | memory", lines)


def findings(rows: Rows) -> str:
    """What the curves say, in numbers."""
    cost = costs(rows)
    speed = medians(rows, "envs", "steps/s")
    width = medians(rows, "width", "GFLOP/s")
    held, chunked = (
        medians(rows, "vocabulary", "ms", name) for name in ("weighted_cross_entropy", "linear_cross_entropy")
    )
    ratios = [f"{number(held[size] / chunked[size])} at K = {size:,}" for size in held]
    best = max(speed, key=speed.__getitem__)
    rates = [medians(rows, "batch", "examples/s", name) for name in ("float32", "bfloat16")]
    both = [f"{number(rates[1][size] / rates[0][size])} at {size:,}" for size in rates[0]]
    sums = [
        f"{number(medians(rows, 'ranks', 'sum µs', f'{name}, 2 ranks')[10_000])} µs by {name}"
        for name in ("shared memory", "gloo")
    ]
    lines = [
        f"**Environments.** PPO: {number(speed[1])} steps/s with one, {number(speed[best])} with {best:,}.",
        f"**Memory.** The peak grows by {number(cost['rollout'].each)} bytes a row of the rollout: "
        "what is stored, and the layers of both networks on the rows of a minibatch.",
        f"**Width.** Updates reach {number(width[min(width)])} GFLOP/s with {min(width)} units, "
        f"{number(max(width.values()))} at best.",
        f"**Batch.** `pgce.fit`: {number(rates[0][min(rates[0])])} examples/s in batches of {min(rates[0])} "
        f"and {number(max(rates[0].values()))} at best. In bfloat16 so many times as fast: "
        f"{', '.join(both)}.",
        "**Vocabulary.** `linear_cross_entropy` is so many times as fast as holding the logits: "
        f"{', '.join(ratios)}.",
        f"**Sums.** 10,000 numbers of two processes take {', '.join(sums)}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def tables(rows: Rows) -> dict[str, str]:
    """What stands between the page's markers."""
    return {
        "findings": findings(rows),
        "costs": table_of_costs(rows),
        "checks": table_of_checks(rows),
        "limits": table_of_limits(rows),
        "ranks": table_of_ranks(rows),
        "assumptions": assumptions(),
        "links": table_of_links(rows),
        "gpus": table_of_gpus(),
        "memory": table_of_memory(rows),
    }

"""How fast pgce is beside its peers: a table, a picture and a JSON file, by `make bench`.

    python benchmarks/speed.py                    all (more than an hour, on a machine that is left alone)
    python benchmarks/speed.py ppo envs           parts, by name
    python benchmarks/speed.py fit --turns 7      other than five turns
    python benchmarks/speed.py --quick            once with tiny budgets, into .bench/: does everything run?
    python benchmarks/speed.py --show             make table, picture and JSON from the committed CSV only

Every peer has an environment of its own under .bench/, made from benchmarks/peers/*.txt; one that can't be
installed is named and left out. Programs take turns, each run a fresh process with one thread on one core
(two cores where it says so), and a line of the CSV as soon as it ends. The clock is that of training: it
begins when networks and environments are made, stands still during evaluations, and runs while something is
compiled. CartPole-v1 is solved when 100 fresh episodes with sampled actions average 475 twice in a row,
looked at about every 5,000 steps. Ratios are taken turn by turn, above 1 where pgce is ahead.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from comparisons import MEASURED, PARTS, Case, Program, ahead, value
from shared import RESULTS, ROOT, put_into

PEERS, BENCH = Path(__file__).parent / "peers", ROOT / ".bench"
COLUMNS = ("part", "case", "program", "turn", *MEASURED, "error")
LIMIT = 1_800  # seconds of a run
TINY = "--total 12000 --examples 8192 --seconds 0.1"
ONE_THREAD = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
OWN = re.compile("random|pgce")  # shares of what is possible, and ways of pgce, are in the table only
SUMMED_UP = ("ppo", "reinforce", "steps", "kinds", "robots", "fit", "memory", "start")  # parts
# Parts that are programs of their own, which tell by themselves, and what makes them quick.
APART = {
    "ranks": ("processes.py", "--steps 8192 --repeats 1"),
    "linear": ("linear_cross_entropy.py", "--size 512 64 1000 --rounds 1"),
}
KEPT = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(2**32))


def python(place: str) -> Path:
    """The interpreter of an environment."""
    return BENCH / place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@cache
def install(place: str) -> bool:
    """Make an environment, unless it is there; say whether it can be used."""
    wanted, stamp = PEERS / f"{place}.txt", BENCH / place / ".installed"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return True
    print(f"installing {wanted.relative_to(ROOT)} into .bench/{place}", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(BENCH / place)], check=False)
    pip = [str(python(place)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if made.returncode or subprocess.run([*pip, "-r", str(wanted)], cwd=ROOT, check=False).returncode:
        print(f"{place} could not be installed: its programs are left out", flush=True)
        return False
    stamp.write_text(wanted.read_text())
    return True


def versions(place: str) -> str:
    """What an environment has of the packages that its requirements name, and of those that count."""
    lines = (PEERS / f"{place}.txt").read_text().splitlines()
    names = {line.split("==")[0].split("[")[0] for line in lines if not line.startswith("-")}
    names |= {"torch", "jax", "gymnasium", "numpy"}
    words = [str(python(place)), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
    listed = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in listed}
    return ", ".join(f"{name} {found[name]}" for name in sorted(names) if name in found)


def processor() -> str:
    """The model of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@contextmanager
def on_cores(number: int) -> Iterator[None]:
    """Let what is started inside run on the last cores only, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[-number:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def run(program: Program, seed: int, more: str, cores: int) -> dict[str, Any]:
    """Run a program once in a process of its own."""
    words = [str(python(program.place))]
    if program.ranks > 1:
        words += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(program.ranks)]
    words += [str(PEERS / f"by_{program.runner}.py"), *f"{program.words} --seed {seed} {more}".split()]
    variables = {**os.environ, **ONE_THREAD, **(KEPT if program.keeps_memory else {})}
    begun = time.perf_counter()
    try:
        with on_cores(cores):
            done = subprocess.run(
                words, cwd=BENCH, env=variables, timeout=LIMIT, capture_output=True,
                text=True, check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {LIMIT} s"}
    told = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not told:
        print(done.stderr[-2_000:], file=sys.stderr, flush=True)
        last = (done.stderr.strip().splitlines() or ["no result"])[-1]
        return {"error": f"exit code {done.returncode}: {last[:100]}"}
    return {**json.loads(told[-1]), "process_seconds": round(time.perf_counter() - begun, 3)}


def measure(part: str, case: Case, turns: int, more: str, file: Path) -> None:
    """All programs of a case in turn, as often as asked for; one that fails is left out from there on."""
    programs = [program for program in case.programs if install(program.place)]
    print(f"{part}: {case.title}", flush=True)
    told: dict[str, Any] = {}
    for turn in range(1, turns + 1):
        for program in tuple(programs):
            if program.runner:
                told = run(program, turn, more, case.cores)
            else:
                told = told.get("beside", {"error": "the program before it told nothing of it"})
            row = {"part": part, "case": case.title, "program": program.name, "turn": str(turn)}
            row |= {name: str(told.get(name, "")) for name in (*MEASURED, "error")}
            with file.open("a", newline="") as out:
                csv.DictWriter(out, COLUMNS).writerow(row)
            if row["error"]:
                programs.remove(program)
                print(f"  {program.name}: {row['error']}", flush=True)
            else:
                numbers = ", ".join(f"{number(value(name, row))} {name}" for name in case.measures)
                print(f"  {turn} {program.name}: {numbers}", flush=True)


def without(file: Path, parts: list[str]) -> None:
    """Leave a CSV without the rows of these parts."""
    kept = [row for row in read(file) if row["part"] not in parts]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        writer.writeheader()
        writer.writerows(kept)


def read(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is none."""
    if not file.exists():
        return []
    with file.open(newline="") as rows:
        return list(csv.DictReader(rows))


def number(value: float) -> str:
    """Three digits or so, for people."""
    if math.isinf(value):
        return "∞"
    for least, unit, letter in ((999_500, 1e6, "M"), (10_000, 1e3, "k")):
        if value >= least:
            return f"{value / unit:.3g} {letter}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def middle(values: list[float]) -> tuple[float, ...]:
    """Median, lowest and highest of what is a number; nothing of nothing."""
    known = [each for each in values if not math.isnan(each)]
    return (statistics.median(known), min(known), max(known)) if known else ()


def spread(values: list[float]) -> str:
    """Median, lowest and highest, for people."""
    return "{} [{}, {}]".format(*map(number, found)) if (found := middle(values)) else ""


@dataclass(frozen=True)
class Comparison:
    """Two programs of a case by one measure, turn by turn; a ratio is NaN where neither solved."""

    part: str
    case: Case
    measure: str
    names: tuple[str, str]
    own: list[float]
    other: list[float]
    ratios: list[float]


def comparisons(rows: list[dict[str, str]]) -> Iterator[Comparison]:
    """The first program of every case beside each other one."""
    runs: dict[tuple[str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        if not row["error"]:
            runs[row["case"], row["program"]][row["turn"]] = row
    for part, case in ((part, case) for part, cases in PARTS.items() for case in cases):
        own, *others = ((program.name, runs[case.title, program.name]) for program in case.programs)
        for name, (other, theirs) in product(case.measures, others):
            turns = [turn for turn in own[1] if turn in theirs]
            pairs = [[value(name, each[turn]) for turn in turns] for each in (own[1], theirs)]
            ratios = [ahead(name, *pair) for pair in zip(*pairs, strict=True)]
            if turns:
                yield Comparison(part, case, name, (own[0], other), *pairs, ratios)


def table(folder: Path = RESULTS) -> str:
    """The results as a Markdown table."""
    rows = read(folder / "speed.csv")
    lines = ["| what | by | pgce | the other | pgce is × ahead |", "|---|---|---|---|---|"]
    for each in comparisons(rows):
        by = f"{' / '.join(each.names)}, {each.measure}"
        cells = each.case.title, by, spread(each.own), spread(each.other), spread(each.ratios)
        lines.append(f"| {' | '.join(cells)} |")
    machine = {row["name"]: row["value"] for row in read(folder / "speed_machine.csv")}
    if rows and machine:
        lines += ["", "; ".join(f"{name}: {text}" for name, text in machine.items()) + "."]
    if rows:
        lines += ["", "![How many times as fast pgce is](speed.png)"]
    return "\n".join(lines)


def summary(folder: Path = RESULTS) -> str:
    """How far ahead of other packages, in the median: a line a case and measure, for the README."""
    lines = ["| what | pgce | is × ahead of |", "|---|---|---|"]
    found: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for each in comparisons(read(folder / "speed.csv")):
        if each.part in SUMMED_UP and not OWN.match(each.names[1]):
            found[each.case.title, each.measure].append(each)
    for (title, measure), beside in found.items():
        own = number(middle(beside[0].own)[0])
        others = (f"{each.names[1]} {number(middle(each.ratios)[0])}" for each in beside)
        lines.append(f"| {title}: {measure} | {own} | {' · '.join(others)} |")
    return "\n".join(lines)


def as_json(folder: Path = RESULTS) -> str:
    """All results as JSON: four digits, "inf" of what was not solved, null as the ratio if neither was."""

    def rounded(value: float) -> float | str | None:
        return None if math.isnan(value) else float(f"{value:.4g}") if math.isfinite(value) else "inf"

    def numbers(values: list[float]) -> dict[str, Any]:
        of_all = zip(("median", "lowest", "highest"), middle(values) or (math.nan,) * 3, strict=True)
        return {name: rounded(each) for name, each in of_all} | {"turns": [rounded(each) for each in values]}

    told = {row["name"]: row["value"] for row in read(folder / "speed_machine.csv")}
    machine = told.pop("CPU", None)
    packages = {place: dict(each.split() for each in text.split(", ")) for place, text in told.items()}
    found = [
        {
            "part": each.part, "case": each.case.title, "measure": each.measure, "names": each.names,
            "own": numbers(each.own), "other": numbers(each.other), "ahead": numbers(each.ratios),
        }
        for each in comparisons(read(folder / "speed.csv"))
    ]  # fmt: skip
    content = {"machine": machine, "versions": packages, "comparisons": found}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def draw(rows: list[dict[str, str]], file: Path) -> None:
    """The median ratios to other packages as bars, with lines from the lowest to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [
        (f"{each.case.title}: {each.names[1]}, {each.measure}", list(filter(math.isfinite, each.ratios)))
        for each in comparisons(rows)
        if any(map(math.isfinite, each.ratios)) and not OWN.match(each.names[1])
    ]
    if not bars:
        return
    center = [statistics.median(ratios) for _, ratios in bars]
    figure, axis = plt.subplots(figsize=(9, 0.6 + 0.2 * len(bars)), layout="constrained")
    colors = ["C0" if each >= 1 else "C3" for each in center]
    axis.barh([label for label, _ in bars], [each - 1 for each in center], left=1, color=colors, height=0.7)
    axis.hlines(range(len(bars)), [min(r) for _, r in bars], [max(r) for _, r in bars], color="black", lw=0.8)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda each, _: f"{each:g}")
    axis.set_xlabel("pgce is × ahead: median, lowest to highest turn")
    axis.set_ylim(len(bars) - 0.4, -0.6)
    axis.tick_params(axis="y", labelsize=7)
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=100, metadata={"Software": ""})


def tell_machine(places: list[str], file: Path) -> None:
    """Print what is measured on and with, and keep it beside the results."""
    told = {row["name"]: row["value"] for row in read(file)}
    told |= {"CPU": f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"}
    told |= {place: versions(place) for place in places if (BENCH / place / ".installed").exists()}
    for name, text in told.items():
        print(f"{name}: {text}", flush=True)
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerows([("name", "value"), *told.items()])


def main() -> None:
    """Measure what is asked for, then show all there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    parts = given.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}: there is no {', '.join(unknown)}")
    folder = BENCH if given.quick else RESULTS
    folder.mkdir(exist_ok=True)
    file = folder / "speed.csv"
    if not given.show:
        places = [program.place for part in parts for case in PARTS[part] for program in case.programs]
        usable = [place for place in dict.fromkeys(places) if install(place)]
        tell_machine(usable, folder / "speed_machine.csv")
        print(f"load of the machine: {os.getloadavg()[0]:.1f}", flush=True)
        without(file, parts)
        for part in parts:
            for case in PARTS[part]:
                measure(part, case, 1 if given.quick else given.turns, TINY if given.quick else "", file)
        for part in (part for part in parts if part in APART and install("pgce")):
            name, tiny = APART[part]
            words = [str(python("pgce")), str(Path(__file__).parent / name)]
            subprocess.run([*words, *(tiny.split() if given.quick else [])], check=False)
    (folder / "speed.json").write_text(as_json(folder), encoding="utf-8")
    draw(read(file), BENCH / "speed.png" if given.quick else ROOT / "docs" / "speed.png")
    if given.quick:
        print(table(BENCH))
    else:
        put_into("docs/speed.md", "speed", table())
        put_into("README.md", "speed", summary())


if __name__ == "__main__":
    main()

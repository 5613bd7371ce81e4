"""What the benchmarks share: results as CSV, interquartile means, tables in pages."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

from pgce.metrics import interquartile_mean as iqm

__all__ = ["RESULTS", "ROOT", "command", "iqm", "merge", "put_into", "read", "write"]

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]


def read(name: str) -> list[dict[str, str]]:
    """The rows of a committed CSV."""
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def write(name: str, rows: list[dict[str, object]]) -> None:
    """Write rows to a CSV."""
    with (RESULTS / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def merge(name: str, rows: list[dict[str, object]], run: tuple[str, ...]) -> None:
    """Put a run's rows in the place of those that a CSV has of it; `run` are the columns that tell which."""
    new = tuple(str(rows[0][key]) for key in run)
    old = read(name) if (RESULTS / name).exists() else []
    kept = [row for row in old if tuple(row[key] for key in run) != new]
    write(name, sorted([*kept, *rows], key=lambda row: tuple(str(row[key]) for key in run)))


def command(agent: Any) -> str:
    """What repeats a run, into the folder where runs usually are."""
    return replace(agent, runs_dir="runs", quiet=False, track=True).command()


def put_into(page: str, marker: str, table: str) -> None:
    """Replace what stands between <!-- marker --> and <!-- /marker --> in a page, named from the top."""
    file = ROOT / page
    start, rest = file.read_text(encoding="utf-8").split(f"<!-- {marker} -->")
    _, end = rest.split(f"<!-- /{marker} -->")
    text = f"{start}<!-- {marker} -->\n{table}\n<!-- /{marker} -->{end}"
    file.write_text(text, encoding="utf-8")

"""What the benchmarks share: results as CSV, interquartile means, tables in the README."""

from __future__ import annotations

import csv
from pathlib import Path

from pgce.metrics import interquartile_mean as iqm

__all__ = ["RESULTS", "ROOT", "iqm", "put_into", "put_into_readme", "read", "write"]

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


def put_into(page: Path, marker: str, table: str) -> None:
    """Replace what stands between <!-- marker --> and <!-- /marker -->."""
    start, rest = page.read_text(encoding="utf-8").split(f"<!-- {marker} -->")
    _, end = rest.split(f"<!-- /{marker} -->")
    text = f"{start}<!-- {marker} -->\n{table}\n<!-- /{marker} -->{end}"
    page.write_text(text, encoding="utf-8")


def put_into_readme(marker: str, table: str) -> None:
    """The same in the README."""
    put_into(ROOT / "README.md", marker, table)

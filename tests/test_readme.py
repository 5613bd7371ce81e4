"""What the README says happens, happens."""

from __future__ import annotations

import re
import runpy
import shlex

import pytest
import tyro

import pgce
from pgce.agents import Reinforce, Supervised
from pgce.command import AGENTS, COMMANDS
from pgce.flags import parse


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def test_the_examples_run(readme, tmp_path, monkeypatch):
    """All Python blocks, one after the other, as a reader would paste them (with a smaller budget)."""
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 4
    code = "\n".join(blocks).replace("total_timesteps=200_000", "total_timesteps=5_000")
    script = tmp_path / "readme.py"
    script.write_text(code.replace("epochs=30", "epochs=2"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(script))
    assert names["loss"].item() == pytest.approx((1 - 0.5) * 0.6931 / 2, abs=1e-3)
    assert names["run"].path.parts[0] == "runs"


def test_the_commands_parse(readme, repository):
    text = readme.replace("\\\n", " ")
    commands = re.findall(
        r"^    (?:\.venv/bin/)?python (?:-m |)(\S*(?:reinforce|supervised)\S*) (.*)$", text, re.M
    )
    assert len(commands) >= 6
    for name, flags in commands:
        learner = Reinforce if "reinforce" in name else Supervised
        words = shlex.split(flags.split("#")[0])
        if "--help" not in words:
            tyro.cli(learner, args=words)
        if name.endswith(".py"):
            assert (repository / name).is_file()


def test_the_commands_of_pgce_exist(readme):
    lines = re.findall(r"^    pgce (\w+) (.*?)(?:#.*)?$", readme, re.MULTILINE)
    assert len(lines) >= 8
    for command, words in lines:
        assert command in COMMANDS
        if command in ("train", "classify"):
            name, *flags = shlex.split(words)
            learner = Supervised if command == "classify" else getattr(pgce.agents, AGENTS[name])
            assert parse(learner, flags) is not None
    for name in set(COMMANDS) - {command for command, _ in lines}:
        assert f"`{name}`" in readme


def test_the_lines_that_differ_are_those_of_the_agents(readme, repository):
    (block,) = re.findall(r"```diff\n(.*?)```", readme, re.DOTALL)
    pairs = re.findall(r"^ # (\w+\.py): .*\n[-+](.*)$", block, re.M)
    assert len(pairs) == 5
    for name, line in pairs:
        assert line in (repository / "agents" / name).read_text(encoding="utf-8"), name


def test_links_and_make_targets_exist(readme, repository):
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert (repository / link).is_file(), link
    makefile = (repository / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", readme, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_results_are_the_committed_ones(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    for name, page, marker, made in (
        ("learning", "docs/results.md", "results", "table"),
        ("agents", "docs/results.md", "agents", "table"),
        ("defaults", "docs/results.md", "defaults", "table"),
        ("rules", "docs/results.md", "rules", "table"),
        ("tokens", "docs/results.md", "tokens", "table"),
        ("speed", "docs/speed.md", "speed", "table"),
        ("speed", "README.md", "speed", "summary"),
        ("fit", "docs/speed.md", "fit", "table"),
        ("linear_cross_entropy", "docs/speed.md", "linear", "table"),
        ("gpu", "docs/speed.md", "gpu", "table"),
    ):
        benchmark = runpy.run_path(str(repository / "benchmarks" / f"{name}.py"))
        text = (repository / page).read_text(encoding="utf-8")
        shown = text.split(f"<!-- {marker} -->\n")[1].split(f"\n<!-- /{marker} -->")[0]
        assert shown == benchmark[made](), name


def test_speed_as_json_is_the_committed_one(repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    as_json = runpy.run_path(str(repository / "benchmarks" / "speed.py"))["as_json"]
    assert (repository / "benchmarks" / "results" / "speed.json").read_text(encoding="utf-8") == as_json()

"""The documentation: every block of it runs, its generated pages are whole, and the site builds."""

from __future__ import annotations

import csv
import doctest
import importlib.util
import inspect
import os
import re
import runpy
import subprocess
import sys
import types

import pytest

import pgce
from pgce import agents
from pgce.logger import TAGS
from pgce.policy_gradient import Agent

PAGES = ["new_agent", "trackers", "from/stable_baselines3", "from/cleanrl", "from/skorch", "from/keras"]


def python(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def docs(repository):
    folder = repository / "docs"
    if not folder.is_dir():
        pytest.skip("needs the documentation")
    return folder


@pytest.fixture
def made(docs):
    spec = importlib.util.spec_from_file_location("hooks", docs / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    return hooks.pages()


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(docs, page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python((docs / f"{page}.md").read_text(encoding="utf-8"))
    assert blocks
    module = types.ModuleType("page")  # where what is defined there is looked up
    monkeypatch.setitem(sys.modules, "page", module)
    for block in blocks:
        exec(compile(block, page, "exec"), vars(module))


def test_hooks_are_those_of_an_agent(docs):
    page = (docs / "new_agent.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) (?:\(p\) )?\|", page, re.MULTILINE)
    names = re.findall(r"\w+", " ".join(rows))
    assert len(names) > 14
    for name in names:
        assert inspect.getdoc(vars(Agent)[name])


def test_the_derivation_holds(docs):
    failed, tried = doctest.testfile(str(docs / "derivation.md"), module_relative=False)
    assert tried > 60
    assert failed == 0


def test_every_page_of_code_is_tried(docs):
    with_code = {
        str(page.relative_to(docs).with_suffix(""))
        for page in docs.rglob("*.md")
        if python(page.read_text(encoding="utf-8"))
    }
    assert with_code == {*PAGES, "tour"}  # the tour as a whole, below


def test_every_script_of_the_gallery_has_its_picture(docs):
    page = (docs / "gallery.md").read_text(encoding="utf-8")
    names = {script.stem for script in (docs / "gallery").glob("*.py")}
    assert len(names) >= 10
    for name in names:
        assert f'--8<-- "gallery/{name}.py"' in page
        assert f"(gallery/{name}.png)" in page
        assert (docs / "gallery" / f"{name}.png").stat().st_size < 100_000


def test_pages_that_are_made_are_whole(made):
    assert all(f"`{tag}`" in made["tags.md"] for tag in TAGS)
    rows = [line for page in made.values() for line in page.splitlines() if line.startswith("| `")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3, 4}
    for name in agents.__all__:
        assert f"\n## {name}\n" in made["learners.md"]
    assert "| `clip_coef` | `0.2` |" in made["learners.md"]
    modules = {name for name in pgce.__all__ if name.islower() and hasattr(getattr(pgce, name), "__path__")}
    public = {pgce._HOME.get(name, f"pgce.{name}") for name in pgce.__all__}
    homes = public - {"pgce.agents"} - modules
    for home in homes:
        page = f"reference/{home.removeprefix('pgce.')}.md"
        assert f"::: {home}\n" in made[page]


def test_figures_on_scaling_are_the_committed_ones(docs, repository, monkeypatch):
    monkeypatch.syspath_prepend(repository / "benchmarks")
    tables = runpy.run_path(str(repository / "benchmarks" / "rounds.py"))["tables"]
    with (repository / "benchmarks" / "results" / "scale.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    page = (docs / "scaling.md").read_text(encoding="utf-8")
    for marker, text in tables(rows).items():
        assert f"<!-- {marker} -->\n{text}\n<!-- /{marker} -->" in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning(repository, tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "trainer" / "index.html").exists()


@pytest.mark.slow
def test_the_tour_as_it_stands(docs, tmp_path):
    done = subprocess.run(
        [sys.executable, str(docs / "tour.py"), str(tmp_path / "tour")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    kept = sorted((tmp_path / "tour").glob("*.txt"))
    assert len(kept) == len(re.findall(r"^```(?:sh|python)$", (docs / "tour.md").read_text(), re.MULTILINE))
    assert os.path.getsize(tmp_path / "tour" / "work" / "pole.gif") > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "confusion", "outliers", "imbalance"])
def test_a_script_of_the_gallery(docs, name, tmp_path):
    script = tmp_path / f"{name}.py"
    script.write_text((docs / "gallery" / f"{name}.py").read_text(encoding="utf-8"))
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)
    assert (tmp_path / f"{name}.png").stat().st_size > 1_000

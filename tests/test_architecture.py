"""The idea must be visible in the code: one place where a weight meets a loss, one backward, one loop."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import pgce

PACKAGE = Path(pgce.__file__).parent
SOURCES = sorted({path.resolve(): path for path in PACKAGE.rglob("*.py")}.values())
for folder in ("agents", "envs"):  # a link that is not followed, or a checkout without links
    if not any(folder in path.parts for path in SOURCES):
        SOURCES += sorted((PACKAGE.parent / folder).glob("*.py"))


@cache
def code(path):
    """The source without comments and docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.unparse(tree)


@pytest.mark.parametrize(
    ("pattern", "home"),
    [
        (r"\.backward\(", "trainer.py"),
        (r"weight \* cross_entropy", "objective.py"),
        (r"\.torch_optimizer\.step\(", "optimizer.py"),
        (r"trainer\.step\(", "trainer.py"),
        (r"\bFileWriter\(", "logger.py"),
        (r"envs\.step\(", "rollout.py state.py"),  # the second tries whether a saved state is all there is
    ],
)
def test_stands_once_in_the_source(pattern, home):
    assert len(SOURCES) > 15
    found = [path.name for path in SOURCES for _ in re.findall(pattern, code(path))]
    assert sorted(found) == home.split()


def test_agents_are_short():
    for path in SOURCES:
        if path.parent.name == "agents":
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 150, path


def test_public_names_are_few_and_exist():
    names = [name for name in pgce.__all__ if not hasattr(getattr(pgce, name), "__path__")]
    for name in names:
        assert getattr(pgce, name).__doc__, name
    classes_and_functions = [n for n in names if callable(getattr(pgce, n))]
    assert len(classes_and_functions) <= 15

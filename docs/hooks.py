"""Pages of the documentation that are made from the code, so that a fact stands in one place."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from pgce import agents
from pgce.logger import TAGS
from pgce.policy_gradient import Agent
from pgce.run import Learner

ROOT = Path(__file__).parents[1]


def on_config(config: Any) -> Any:
    """List the reference, a page a module."""
    config["nav"].append({"Python reference": list(references())})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> dict[str, str]:
    """Text of the pages that are made, by file."""
    return {"learners.md": learners(), "tags.md": tags(), **references()}


def learners() -> str:
    """A section a learner: what it is, from its file, and its settings."""
    text = [
        "# Learners",
        "Every setting is a flag of the script (`--clip-coef 0.1`), of `pgce train`, and an argument in "
        "Python (`pgce.agents.PPO(clip_coef=0.1)`). A learner's table has what is its own, or has another "
        "default than [all agents](#settings-of-all-agents) and [all learners](#settings-of-all-learners).",
    ]
    for name in agents.__all__:
        learner = getattr(agents, name)
        module = import_module(f"pgce.agents.{name.lower()}")
        text += [f"## {name}", _prose(str(inspect.getdoc(module)))]
        text += [f"File: `agents/{name.lower()}.py`."]
        shared = Agent if issubclass(learner, Agent) else Learner
        text += [settings(learner, but=shared)]
        if presets := getattr(learner, "PRESETS", {}):
            text += [
                "Presets, which `pgce train` and the script take by themselves, and in Python "
                f"`{name}.preset(env_id)`: " + ", ".join(f"`{each}`" for each in presets) + "."
            ]
    text += ["## Settings of all agents", settings(Agent, but=Learner)]
    text += ["## Settings of all learners", settings(Learner)]
    return "\n\n".join(text) + "\n"


def settings(learner: type[Any], but: type[Any] | None = None) -> str:
    """A table of a learner's settings, without those that another has with the same default."""
    known = {} if but is None else {field.name: _default(field) for field in fields(but)}
    told = documented(learner)
    rows = ["| setting | default | |", "|---|---|---|"]
    for field in fields(learner):
        default = _default(field)
        if known.get(field.name, MISSING) != default:
            rows.append(_row(f"`{field.name}`", f"`{default}`", " ".join(told[field.name].split())))
    return "\n".join(rows) if len(rows) > 2 else ""


def documented(learner: type[Any]) -> dict[str, str]:
    """What stands below each setting."""
    told = {}
    for kind in reversed([each for each in learner.__mro__ if each.__module__.startswith("pgce")]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                told[ast.unparse(field.target)] = ast.literal_eval(below.value)
    return told


def tags() -> str:
    """Every TensorBoard tag."""
    rows = [_row(f"`{tag}`", meaning) for tag, meaning in TAGS.items()]
    head = [
        "# TensorBoard tags\n",
        "The x-axis is environment steps, or examples seen. Numbers lie in `metrics.jsonl` too, a JSON",
        "object a line; the newest of each picture in the run's folder `pictures/`.\n",
        "| tag | what it is |",
        "|---|---|",
    ]
    return "\n".join([*head, *rows]) + "\n"


def references() -> dict[str, str]:
    """A page a module."""
    found = {}
    for file in sorted((ROOT / "pgce").glob("*.py")):
        if file.stem not in ("__init__", "__main__"):
            found[f"reference/{file.stem}.md"] = f"# pgce.{file.stem}\n\n::: pgce.{file.stem}\n"
    for file in sorted((ROOT / "envs").glob("*.py")):
        name = "pgce.envs" if file.stem == "__init__" else f"pgce.envs.{file.stem}"
        found[f"reference/{name[5:]}.md"] = f"# {name}\n\n::: {name}\n"
    return found


def _row(*cells: str) -> str:
    """A row of a table, whose cells may hold what would end them."""
    return " | ".join(["", *(cell.replace("|", r"\|") for cell in cells), ""]).strip()


def _default(field: Any) -> Any:
    return field.default if field.default is not MISSING else field.default_factory()


def _prose(text: str) -> str:
    """A docstring as Markdown: what it has of code is indented already."""
    return text.replace("_", "\\_") if "    " not in text else text

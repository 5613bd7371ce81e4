"""Settings from the words of a command line: tyro's parser, with short errors and settings from a file."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import tyro

__all__ = ["from_config", "home_of", "nearest", "pairs", "parse", "program_of", "value_of", "words_of"]

T = TypeVar("T")

_NOT_KEPT = {"run", "resume", "allow_change", "allow_import"}
"""Settings in a run's config.json that another does not take over: its folder, and what no file permits."""


def parse(
    kind: Any,
    words: Sequence[str],
    *,
    prog: str | None = None,
    description: str | None = None,
    default: Any = None,
    unknown: bool = False,
) -> Any:
    """The settings, or what the function returns, that the words say.

    An error is told in at most three lines, and ends the process with exit code 2.

    Args:
        kind: a dataclass, or a function with annotations.
        words: of the command line, after the program's name.
        prog: the program's name, for the help.
        description: for the help; the docstring if not given.
        default: settings that the words change.
        unknown: also return the words that are not understood, instead of refusing them.

    Example:
        >>> from pgce.agents import PPO
        >>> from pgce.flags import parse
        >>> parse(PPO, ["--gamma", "0.9"]).gamma
        0.9
        >>> parse(PPO, ["--gama", "0.9"])
        Traceback (most recent call last):
        ...
        SystemExit: 2
    """
    told = io.StringIO()
    called = kind if isinstance(kind, type) else _later(kind)
    try:
        with redirect_stderr(told):
            options: dict[str, Any] = {"prog": prog, "description": description}
            if default is not None:  # None would be one, of which what is required is a part
                options["default"] = default
            result: Any = tyro.cli(called, args=list(words), return_unknown_args=unknown, **options)  # type: ignore[call-overload]
    except SystemExit as ended:
        if ended.code:
            print(_short(told.getvalue()), file=sys.stderr)
        raise
    return result if called is kind else result()


def _later(function: Callable[..., T]) -> Callable[..., Callable[[], T]]:
    """A function of the same signature that returns the call: what it says is not an error of the words."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Callable[[], T]:
        return partial(function, *args, **kwargs)

    return call


def from_config(kind: type[T], file: str | Path) -> T:
    """The settings that a run's config.json has, for a run of its own.

    Args:
        kind: the learner.
        file: config.json, or the run's folder.

    Raises:
        ValueError: the file is damaged, of another learner, or has settings that this one does not.
        FileNotFoundError: there is none.

    Example:
        >>> import json, pathlib, tempfile
        >>> from pgce.agents import PPO
        >>> from pgce.flags import from_config
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "config.json"
        >>> _ = file.write_text(json.dumps({"learner": "ppo", "gamma": 0.9, "hidden_sizes": [32, 32]}))
        >>> from_config(PPO, file).hidden_sizes
        (32, 32)
    """
    path = Path(file)
    path = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_bytes())
        learner, own = content.pop("learner", kind.__name__.lower()), home_of(kind)
        home = content.pop("class", own)  # which older runs do not tell
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if learner != kind.__name__.lower():
        raise ValueError(f"{path} has settings of {learner}: these are of {kind.__name__.lower()}")
    if home != own:
        raise ValueError(f"{path} has settings of the class {home}: these are of {own}")
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    content.pop("own_model", None)
    unknown = sorted(content.keys() - known)
    if unknown:
        raise ValueError(f"{path} has settings that {learner} does not: {', '.join(unknown)}")
    return kind(**{name: value for name, value in content.items() if name not in _NOT_KEPT})


def home_of(kind: type[Any]) -> str:
    """Where a class is, "module:Class"; of a script the module that it would be imported as.

    Example:
        >>> from pgce.agents import PPO
        >>> from pgce.flags import home_of
        >>> home_of(PPO)
        'pgce.agents.ppo:PPO'
    """
    *_, program = program_of(kind)
    module = Path(program).stem if program.endswith(".py") else program
    return f"{module}:{kind.__qualname__}"


def program_of(kind: type[Any]) -> list[str]:
    """The first words of a command line that runs the file of a class: python -m module, or python file.py.

    Example:
        >>> from pgce.agents import PPO
        >>> from pgce.flags import program_of
        >>> program_of(PPO)
        ['python', '-m', 'pgce.agents.ppo']
    """
    module = kind.__module__
    if module in ("__main__", "__mp_main__"):  # the second in processes that were started
        main, spec = sys.modules[module], sys.modules[module].__spec__
        file = Path(getattr(main, "__file__", "__main__.py"))  # which a notebook has not
        own = Path(import_module("pgce.agents").__path__[0])  # agents of the package, which are scripts too
        if spec is None and file.resolve().parent != own.resolve():
            return ["python", os.path.relpath(file)]
        module = f"pgce.agents.{file.stem}" if spec is None else spec.name
    return ["python", "-m", module]


def value_of(words: Sequence[str], *flags: str) -> str | None:
    """The value of the last of these flags among the words; None where there is none.

    Example:
        >>> from pgce.flags import value_of
        >>> value_of(["--seed", "3", "--env_id=Taxi-v4"], "--env", "--env-id")
        'Taxi-v4'
    """
    found = None
    for word, following in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") in flags:
            found = value if equals else following
    return found


def pairs(words: Sequence[str]) -> dict[str, Any]:
    """Names, each with a value after it: a number, true or True, false, null or None, a list, or a word.

    Raises:
        ValueError: a name has no value.

    Example:
        >>> from pgce.flags import pairs, words_of
        >>> pairs(["map_name", "8x8", "is_slippery", "false"])
        {'map_name': '8x8', 'is_slippery': False}
        >>> words_of({"map_name": "8x8", "level": "3"})
        ['map_name', '8x8', 'level', "'3'"]
    """
    if len(words) % 2:
        raise ValueError(f"a value follows each name: the words are {' '.join(words)}")
    return {name: _value(word) for name, word in zip(words[::2], words[1::2], strict=True)}


def words_of(values: Mapping[str, Any]) -> list[str]:
    """The words that `pairs` reads as these values."""
    return [word for name, value in values.items() for word in (name, _word(value))]


def _value(word: str) -> Any:
    try:
        return _WORDS[word] if word in _WORDS else ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word


# As JSON has them, since a word "false" would count as true; and as Python writes what it does not read.
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}
_WORDS |= {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def _word(value: Any) -> str:
    plain = isinstance(value, str) and _value(value) == value and not value.startswith("-")
    return value if plain else repr(value)  # what begins with "-" would be a flag


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """The name, if it is known.

    Raises:
        ValueError: it is not; the message says which is nearest.

    Example:
        >>> from pgce.flags import nearest
        >>> nearest("pop", ["ppo", "a2c"], "an agent")
        Traceback (most recent call last):
        ...
        ValueError: an agent is one of ppo, a2c: it is 'pop' (did you mean ppo?)
    """
    names = list(known)
    if name in names:
        return name
    close = difflib.get_close_matches(name.lower(), names, 1, 0.5)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ValueError(f"{what} is one of {', '.join(names)}: it is {name!r}{hint}")


def _short(told: str) -> str:
    """A message of tyro's without its frame: what is wrong, what may be meant, where there is help."""
    lines = [line.strip("│╭╰╮╯─ ") for line in told.splitlines()]
    lines = [line if line.strip("-") else "" for line in lines]  # rules, where the output is not UTF-8
    body = itertools.dropwhile(lambda line: not line, lines[1:])
    wrong = " ".join(itertools.takewhile(bool, body)) or told.strip()
    meant = [line for line in lines if line.startswith("--")]
    help_ = " ".join(itertools.dropwhile(lambda line: not line.startswith("For full help"), lines)).strip()
    hint = f"perhaps you meant {', '.join(meant[:3])}" if any("meant" in line for line in lines) else ""
    if not hint and meant:
        hint = meant[0]
    return "\n".join([f"error: {wrong}", *(line for line in (hint, help_) if line)])

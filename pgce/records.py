"""Runs as they lie under runs/: what was trained, what came of it, their curves. Needs no torch."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgce.folders import Lock

__all__ = ["METRICS", "SCORES", "Record", "groups", "runs"]

METRICS = "metrics.jsonl"
"""The file of numbers: an object a line, "step" and values by tag, null where one is not finite. It needs no
TensorBoard to be read."""
SCORES = "eval_mean", "test_accuracy", "test_r2"
"""What a result is judged by: the first of these that it has."""
UNSHOWN = {"json", "quiet", "runs_dir", "run", "resume", "allow_change", "checkpoint_every", "profile"}
MAY_CHANGE = {*UNSHOWN, "track", "capture_video", "tensorboard"}
"""What may differ between seeds of one experiment, or in a run that goes on: it changes nothing learned."""
STOPS = {"interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
"""Why a run stopped, if a signal stopped it."""
_CURVES = "rollout/ep_rew_mean", "eval/accuracy", "eval/r2", "objective/loss"


@dataclass(frozen=True)
class Record:
    """One run's folder, as far as it can be read.

    Attributes:
        path: of the folder.
        config: the settings, and whose they are.
        result: what came of it; empty as long as it has not ended.

    Raises:
        ValueError: the folder holds no run, or its files are damaged.

    Example:
        >>> import tempfile, pgce
        >>> from pgce.records import Record
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = pgce.agents.Reinforce(quiet=True, runs_dir=folder).train(total_timesteps=4_096)
        ...     record = Record.read(run.path)
        ...     steps, values = record.curve("rollout/ep_rew_mean")
        >>> record.state, record.subject, record.learner, bool(steps[-1] > 2_000)
        ('finished (budget)', 'CartPole-v1', 'reinforce', True)
    """

    path: Path
    config: dict[str, Any]
    result: dict[str, Any]

    @classmethod
    def read(cls, folder: str | Path) -> Record:
        """The record of a run's folder."""
        path = Path(folder)
        if not (path / "config.json").is_file():
            hint = ", ".join(sorted(each.name for each in path.parent.glob("*") if each.is_dir())[:5])
            raise ValueError(
                f"a run is a folder with a config.json: {str(path)!r} has none (there are: {hint})"
            )
        return cls(path, _object(path / "config.json"), _object(path / "result.json"))

    @property
    def learner(self) -> str:
        """Name of the learner."""
        return str(self.config.get("learner", "?"))

    @property
    def subject(self) -> str:
        """What was learned: the environment's id, or the data."""
        return str(self.config.get("env_id", self.config.get("data", "?")))

    @property
    def state(self) -> str:
        """Running, finished, or unfinished, and why."""
        if self.result:
            return f"finished ({self.result.get('stopped', '?')})"
        try:
            Lock(self.path, patience=0).release()
        except ValueError:
            return "running"
        except OSError:  # a folder that is not ours to write
            return "unfinished"
        return "resumable" if (self.path / "checkpoints" / "last").exists() else "unfinished"

    @property
    def score(self) -> tuple[str, float] | None:
        """What the run is judged by, and how well it did: the mean of its last evaluation, say."""
        for name in SCORES:
            if isinstance(self.result.get(name), (int, float)):
                return name, float(self.result[name])
        return None

    def curve(self, tag: str | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Steps and values of a tag; without one, of the return, or of what there is like it.

        Raises:
            ValueError: the run has no such numbers.
        """
        rows, file = [], self.path / METRICS
        if file.is_file():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    rows.append(json.loads(line))
                except ValueError:  # the last one, of a run that was killed
                    continue
        tags = sorted({name for row in rows for name, value in row.items() if value is not None} - {"step"})
        wanted = _CURVES if tag is None else (tag,)
        name = next((each for each in wanted if each in tags), None)
        if name is None:
            raise ValueError(
                f"{self.path} has no numbers of {' or '.join(wanted)}: it has {', '.join(tags) or 'none'}"
            )
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        steps, values = np.array(points, np.float64).T
        return steps, values


def runs(root: str | Path) -> list[Record]:
    """All runs in a folder, the oldest first.

    Raises:
        ValueError: the folder does not exist.

    Example:
        >>> import tempfile
        >>> from pgce.records import runs
        >>> runs(tempfile.mkdtemp())
        []
    """
    if not Path(root).is_dir():
        raise ValueError(f"runs lie in a folder: {str(root)!r} is none")
    found = [path.parent for path in Path(root).glob("*/config.json")]
    return [Record.read(path) for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def groups(records: list[Record]) -> dict[tuple[str, str], list[Record]]:
    """Runs of one learner on one subject together, by (subject, learner): seeds of the same experiment.

    Where settings differ beyond the seed, those that do are told with the learner.

    Example:
        >>> from pathlib import Path
        >>> from pgce.records import Record, groups
        >>> configs = [{"learner": "ppo", "data": "x", "seed": n, "gamma": 0.9 + n // 2} for n in range(3)]
        >>> [key for key in groups([Record(Path(), config, {}) for config in configs])]
        [('x', 'ppo gamma 0.9'), ('x', 'ppo gamma 1.9')]
    """
    same: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        same.setdefault((record.subject, record.learner), []).append(record)
    result: dict[tuple[str, str], list[Record]] = {}
    for (subject, learner), several in same.items():
        names = sorted({name for record in several for name in record.config} - {"seed", *MAY_CHANGE})
        first = several[0].config
        differ = [n for n in names if any(record.config.get(n) != first.get(n) for record in several)]
        for record in several:
            told = " ".join([learner, *(f"{name} {record.config.get(name)}" for name in differ)])
            result.setdefault((subject, told), []).append(record)
    return result


def read_json(file: Path, otherwise: Any) -> Any:
    """What a JSON file of a run holds; if there is none, `otherwise`."""
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        return otherwise
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def _object(file: Path) -> dict[str, Any]:
    content = read_json(file, {})
    return content if isinstance(content, dict) else {}

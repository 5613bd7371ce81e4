"""TensorBoard, JSON lines and console. Every tag stands in one table; a failing log never stops training."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TextIO

import numpy as np
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.projector import ProjectorConfig
from torch import Tensor
from torch.utils.tensorboard import FileWriter
from torch.utils.tensorboard.summary import custom_scalars, histogram, hparams, pr_curve, text

from pgce.disk import write_file
from pgce.records import METRICS

__all__ = ["LAYOUT", "SHOWN", "TAGS", "Bar", "Logger", "due"]

TAGS = {
    "rollout/ep_rew_mean": "mean undiscounted return of the last 100 training episodes",
    "rollout/ep_rew_min": "smallest return of the last 100 training episodes",
    "rollout/ep_rew_max": "largest return of the last 100 training episodes",
    "rollout/ep_len_mean": "mean length of the last 100 training episodes, in environment steps",
    "eval/mean_reward": "mean undiscounted return of the evaluation episodes",
    "eval/mean_ep_length": "mean length of the evaluation episodes, in environment steps",
    "eval/accuracy": "share of held-out examples classified right",
    "eval/loss": "mean cross-entropy of held-out examples, in nats",
    "eval/top_5_accuracy": "share of held-out examples whose label is among the five most probable",
    "eval/balanced_accuracy": "mean share classified right of each class, of held-out examples",
    "eval/f1_macro": "mean F1 score of the classes, of held-out examples",
    "eval/roc_auc": "area under the ROC curve, of held-out examples; mean of one class against the rest",
    "eval/average_precision": "area under the precision–recall curve, mean of the labels",
    "eval/label_accuracy": "share of held-out labels that are right, where an example has several",
    "eval/log_loss": "mean −log probability of the label of held-out examples, in nats",
    "eval/brier": "mean squared error of the probabilities of held-out examples",
    "eval/ece": "expected calibration error of held-out examples: mean |confidence − share right|",
    "eval/mse": "mean squared error of held-out examples",
    "eval/mae": "mean absolute error of held-out examples",
    "eval/r2": "coefficient of determination of held-out examples",
    "eval/own": "numbers that `metrics` of your own gives of held-out examples, as eval/own/{name}",
    "eval/confusion_matrix": "picture: how often each class was taken for each, of held-out examples",
    "eval/reliability": "picture: the share right against the confidence, of held-out examples",
    "eval/confidently_wrong": "picture: the wrong held-out examples of which the classifier is surest",
    "eval/pr_curve": "precision–recall curve of each class, as eval/pr_curve/{class}",
    "eval/penultimate": "projector: what the last layer reads of held-out examples",
    "objective/loss": "what was minimised: the sum of the terms, each coefficient · mean(w · H)",
    "objective/cross_entropy": "mean H(y, p) of the first term over a batch, in nats",
    "objective/weight_mean": "mean weight w of the first term over a batch",
    "objective/weight_std": "standard deviation of the weight w of the first term over a batch",
    "train/accuracy": "share of the epoch's examples classified right, each before its update",
    "train/entropy": "mean entropy of the policy, in nats",
    "train/value_loss": "the value term of the objective",
    "train/entropy_loss": "the entropy term of the objective: it has the entropy's gradient, not its value",
    "train/{name}_loss": "another term of the objective, by its name",
    "train/own": "numbers that an agent's own `metrics` gives of a step's reports, as train/own/{name}",
    "train/explained_variance": "1 − Var(return − value)/Var(return): 1 is perfect",
    "train/approx_kl": "mean ρ − 1 − log ρ of the last step, in nats; ρ the ratio to the policy that acted",
    "train/clip_fraction": "share of the last step's actions whose weight the clip set to 0",
    "train/learning_rate": "step size of the last update",
    "train/skipped": "updates left out so far, since the gradient was not finite",
    "train/grad_norm": "Euclidean norm of the gradient before clipping",
    "time/fps": "environment steps, or examples, a second of training time",
    "time/collect_fps": "environment steps a second of the time spent in environments and policy",
    "time/learn_fps": "environment steps a second of the time spent in updates",
    "time/epoch": "passes over the data set, or rollouts, so far",
    "distribution/weight": "histogram of the weight w of the first term",
    "distribution/cross_entropy": "histogram of H(y, p) of the first term, in nats",
    "distribution/advantage": "histogram of what the weight is made of: the advantage, or the return",
    "distribution/action": "histogram of the actions: their numbers, or the values of all dimensions",
    "run/settings": "text: the command that repeats the run, and its settings",
    "batch/rows": "picture: a few rows of the batch, as y, p, w and the gradient on the logits, w · (p − y)",
    "eval/episode": "film of an episode, where `capture_video` asks for it; also a file under videos/",
}
"""Every tag that is written, and what it means. The x-axis is environment steps, or examples seen."""

LAYOUT = {
    "pgce": {
        "Evaluation: reward, or accuracy": ["Multiline", ["eval/mean_reward", "eval/accuracy"]],
        "Training: return, or accuracy": ["Multiline", ["rollout/ep_rew_mean", "train/accuracy"]],
        "Training and held-out loss": ["Multiline", ["objective/loss", "eval/loss"]],
        "Training and held-out accuracy": ["Multiline", ["train/accuracy", "eval/accuracy"]],
        "The objective": ["Multiline", ["objective/loss", "objective/cross_entropy"]],
        "The weight: mean and spread": ["Multiline", ["objective/weight_mean", "objective/weight_std"]],
        "Training return: mean, smallest, largest": [
            "Margin",
            ["rollout/ep_rew_mean", "rollout/ep_rew_min", "rollout/ep_rew_max"],
        ],
        "The policy: change and share clipped": ["Multiline", ["train/approx_kl", "train/clip_fraction"]],
        "The policy: entropy": ["Multiline", ["train/entropy"]],
        "The critic: explained variance": ["Multiline", ["train/explained_variance"]],
        "Speed: all, collecting, learning": ["Multiline", ["time/fps", "time/collect_fps", "time/learn_fps"]],
    }
}
"""The charts of the Custom Scalars tab."""


SHOWN = "eval/mean_reward", "rollout/ep_rew_mean", "eval/accuracy", "eval/loss"
"""The metrics of the HParams tab. Every run names all, though it has some: the tab reads the list of one."""


class Logger:
    """Writes one run's TensorBoard events and metrics.jsonl; errors are counted, told once, never raised.

    Hyper-parameters go to the HParams tab of this same run, with the last values of `SHOWN`.

    Args:
        folder: of the run; None writes nothing.
        hyperparameters: shown in the HParams tab.
        resumed: the step from which a run goes on, whose folder has events: what they tell of later steps is
            forgotten; −1 of all. None begins a run.
        also: called with every step and its numbers by tag: another tracker, say. What it raises ends the
            run.

    Attributes:
        also: as given.
        dropped: events that could not be written.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from pgce.logger import Logger
        >>> with Logger(Path(tempfile.mkdtemp()), {"learning_rate": 0.1}) as logger:
        ...     logger.scalars(100, {"eval/loss": 0.5})
        >>> logger.dropped
        0
    """

    def __init__(
        self,
        folder: Path | None,
        hyperparameters: Mapping[str, Any] | None = None,
        resumed: int | None = None,
        also: Callable[[int, Mapping[str, float]], object] | None = None,
    ) -> None:
        self.dropped = 0
        self.also = also
        self._process = os.getpid()
        self._lines: IO[str] | None = None
        self._folder = folder
        self._writer: FileWriter | None = None
        self._session_end: Summary | None = None
        if folder is not None:
            self._guard(lambda: self._open(folder, hyperparameters or {}, resumed))

    def _open(self, folder: Path, hyperparameters: Mapping[str, Any], resumed: int | None) -> None:
        if resumed is not None:
            _make_older(folder)
            _forget(folder / METRICS, resumed)
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / METRICS).open("a", 1, encoding="utf-8")  # each line at once, for who looks on
        self._writer = FileWriter(str(folder))
        # At every start but the first, TensorBoard forgets what it has of that step and later ones.
        begun = Event(session_log=SessionLog(status=SessionLog.START))
        self._writer.add_event(begun, 0 if resumed is None else resumed + 1)
        shown = {
            name: value if isinstance(value, (bool, int, float, str)) else str(value)
            for name, value in hyperparameters.items()
        }
        # Through the main writer: SummaryWriter.add_hparams would open a second run.
        experiment, start, self._session_end = hparams(shown, dict.fromkeys(SHOWN, 0.0))
        self._writer.add_summary(experiment)
        self._writer.add_summary(start)
        self._writer.add_summary(custom_scalars(LAYOUT))

    @property
    def writes(self) -> bool:
        """Whether there are events that are written to."""
        return self._writer is not None

    def scalars(self, step: int, values: Mapping[str, float], *, kept: bool = True) -> None:
        """Write numbers by tag at `step`, as one event and one line; if not `kept`, only tell `also`.

        Raises:
            KeyError: a tag is not in `TAGS`.
        """
        for tag in values:
            _defined(tag)
        if self.also is not None:
            self.also(step, values)
        if not kept:
            return
        if self._lines is not None:
            numbers = {tag: float(value) for tag, value in values.items()}
            told = {tag: number if math.isfinite(number) else None for tag, number in numbers.items()}
            self._guard(partial(print, json.dumps({"step": step, **told}), file=self._lines))
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(lambda: summary, step)

    def histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Write the distribution of the finite `values`; with none of them, nothing."""
        _defined(tag)
        if self._writer is None:
            return
        array = values.detach().float().cpu().numpy().ravel()
        finite = array[np.isfinite(array)]
        if finite.size:
            self._write(lambda: histogram(tag, finite, bins="auto"), step)

    def image(self, step: int, tag: str, picture: NDArray[np.uint8] | None) -> None:
        """Write a picture (H, W, 3) of bytes, and the newest as pictures/*.png; None writes nothing."""
        _defined(tag)
        folder = self._folder
        if picture is None or folder is None:
            return

        def write() -> None:
            encoded = BytesIO()
            Image.fromarray(picture).save(encoded, "PNG")
            file = folder / "pictures" / f"{tag.rpartition('/')[2]}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(encoded.getvalue())
            self._encoded(step, tag, encoded.getvalue(), picture.shape)

        self._guard(write)

    def film(self, step: int, tag: str, file: Path) -> None:
        """Write a .gif file as a picture that moves."""
        _defined(tag)

        def write() -> None:
            with Image.open(file) as first:
                width, height = first.size
            self._encoded(step, tag, file.read_bytes(), (height, width, 3))

        self._guard(write)

    def _encoded(self, step: int, tag: str, content: bytes, shape: tuple[int, ...]) -> None:
        image = Summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=content)
        self._write(lambda: Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def text(self, tag: str, markdown: str) -> None:
        """Write a text for the Text tab."""
        _defined(tag)
        self._write(lambda: text(tag, markdown), 0)

    def graph(self, graph: GraphDef) -> None:
        """Write what a network computes."""
        writer = self._writer
        if writer is not None:
            self._guard(lambda: writer.add_event(Event(graph_def=graph.SerializeToString())))

    def pr_curves(
        self, step: int, tag: str, target: Tensor, probability: Tensor, names: Sequence[str]
    ) -> None:
        """Write the precision–recall curve of each class against the rest, as {tag}/{name}.

        Args:
            step: the x-axis.
            tag: of the group.
            target: class ids (B,), or zeros and ones (B, K).
            probability: (B, K).
            names: of the classes, K.
        """
        _defined(tag)
        p = probability.detach().float().cpu().numpy()
        y = target.detach().cpu().numpy()
        truth = y > 0.5 if y.ndim == 2 else y[:, None] == np.arange(p.shape[1])
        for k, name in enumerate(names):
            labels, predictions = truth[:, k], p[:, k]
            if labels.any():
                self._write(partial(pr_curve, f"{tag}/{name}", labels, predictions, 127), step)

    def embedding(
        self, tag: str, vectors: Tensor, labels: Sequence[str], sprite: NDArray[np.uint8] | None = None
    ) -> None:
        """Write vectors (B, D) with a label each for the projector, as files in the run's folder.

        Args:
            tag: names them; one a run.
            vectors: (B, D).
            labels: B words.
            sprite: pictures of the examples (B, H, W), or None.
        """
        _defined(tag)
        folder = self._folder
        if folder is None or self._writer is None:
            return

        def write() -> None:
            stem = tag.replace("/", "_")
            config = ProjectorConfig()
            entry = config.embeddings.add(tensor_name=tag)
            entry.tensor_path, entry.metadata_path = f"{stem}.tsv", f"{stem}_labels.tsv"
            np.savetxt(folder / entry.tensor_path, vectors.detach().float().cpu().numpy(), "%.5g", "\t")
            (folder / entry.metadata_path).write_text("\n".join(labels) + "\n", encoding="utf-8")
            if sprite is not None:
                height, width = sprite.shape[1:]
                entry.sprite.image_path = f"{stem}.png"
                entry.sprite.single_image_dim.extend([width, height])
                Image.fromarray(_mosaic(sprite)).save(folder / entry.sprite.image_path)
            (folder / "projector_config.pbtxt").write_text(text_format.MessageToString(config))

        self._guard(write)

    def flush(self) -> None:
        """Bring what was written to the disk."""
        if self._writer is not None:
            self._guard(self._writer.flush)
        if self._lines is not None:
            self._guard(self._lines.flush)

    def close(self) -> None:
        """End the run in the HParams tab and close the file."""
        if self._lines is not None:
            self._guard(self._lines.close)
            self._lines = None
        if self._writer is None:
            return
        if (end := self._session_end) is not None:
            self._write(lambda: end, None)
        self._guard(self._writer.close)
        self._writer = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Logger:
        """The same, which copies of an estimator, as scikit-learn's `clone` makes them, write to as well."""
        return self

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, summary: Callable[[], Summary], step: int | None) -> None:
        writer = self._writer
        if writer is not None:
            self._guard(lambda: writer.add_summary(summary(), step))

    def _guard(self, action: Callable[[], object]) -> None:
        if os.getpid() != self._process:  # a fork has no writing thread, and would wait for it for ever
            self.dropped += 1
            return
        try:
            action()
        except Exception as error:
            self.dropped += 1
            if self.dropped == 1:
                warnings.warn(
                    f"TensorBoard events are being dropped, training goes on: {error!r}",
                    RuntimeWarning,
                    stacklevel=4,
                )


def due(n: int, number: int) -> bool:
    """Whether the nth event is written: each of the first 2 · number, then every second, fourth and so on.

    Example:
        >>> from pgce.logger import due
        >>> [n for n in range(20) if due(n, 4)]
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16]
    """
    return n % (1 << max((n // number).bit_length() - 1, 0)) == 0


def _make_older(folder: Path) -> None:
    """Rename event files that, by a clock put back, would be read after those to come."""
    files = sorted(folder.glob("events.out.tfevents.*"))
    stamps = [path.name.split(".")[3] for path in files]
    if stamps and stamps[-1] >= f"{int(time.time()):010d}":  # which the next file will have
        for number, (path, stamp) in enumerate(zip(files, stamps, strict=True)):
            path.rename(path.with_name(path.name.replace(stamp, f"{number:010d}", 1)))


def _forget(file: Path, step: int) -> None:
    """Leave out the lines after a step, and one that was cut off."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            continue
    write_file(file, "".join(f"{line}\n" for line in kept).encode())


def _defined(tag: str) -> None:
    own = tag.startswith(("eval/own/", "train/own/")) or (tag.startswith("train/") and tag.endswith("_loss"))
    if tag not in TAGS and not own:
        raise KeyError(f"every tag is defined in pgce.logger.TAGS: {tag!r} is not")


def _mosaic(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures (B, H, W) side by side in a square, as the projector wants them."""
    number, height, width = pictures.shape
    side = math.ceil(number**0.5)
    padded = np.zeros((side * side, height, width), np.uint8)
    padded[:number] = pictures
    rows = padded.reshape(side, side, height, width).swapaxes(1, 2)
    return rows.reshape(side * height, side * width)


class Bar:
    """Progress on standard error: a bar on a terminal, else a line at every tenth of the way.

    Args:
        total: where progress ends.
        unit: what is counted.
        quiet: show nothing.
        stream: where to write.

    Example:
        >>> import sys
        >>> from pgce.logger import Bar
        >>> with Bar(200, "steps", stream=sys.stdout) as bar:
        ...     for done in range(0, 201, 50):
        ...         bar.update(done, f"return {done}")
        50/200 steps · return 50
        100/200 steps · return 100
        150/200 steps · return 150
        200/200 steps · return 200
    """

    def __init__(self, total: int, unit: str, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.total = total
        self.unit = unit
        self._stream = sys.stderr if stream is None else stream
        self._quiet = quiet
        self._next = total / 10
        self._shown = 0.0
        self._progress: Progress | None = None
        if not quiet and self._stream.isatty():
            self._progress = Progress(
                TextColumn("{task.completed:,.0f}/{task.total:,.0f} " + unit),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._progress.add_task("", total=total)

    def update(self, done: int, text: str) -> None:
        """Show that `done` of the total is done."""
        if self._quiet:
            return
        if self._progress is not None:
            now = time.monotonic()
            if now - self._shown > 0.1:
                self._shown = now
                self._progress.update(self._task, completed=done, description=text)
        elif done >= self._next:
            self._next = (done * 10 // self.total + 1) * self.total / 10
            print(f"{done:,}/{self.total:,} {self.unit} · {text}", file=self._stream, flush=True)

    def __enter__(self) -> Bar:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._progress.stop()

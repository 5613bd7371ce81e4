"""Train, evaluate and apply any model on a data set, for those who have data rather than an environment."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pgce import checking, dashboards, processes
from pgce.checkpoint import Checkpoints, check_like
from pgce.choices import OptimizerName, Precision, Schedule, check_type, check_types
from pgce.data import Data, Inputs, as_source, pieces
from pgce.heads import Categorical, Head, plain
from pgce.logger import TAGS, Logger, due
from pgce.machine import fast_products
from pgce.metrics import HIGHER_IS_BETTER, LOWER_IS_BETTER, factors, right
from pgce.networks import evaluating
from pgce.objective import objective
from pgce.optimizer import SETTINGS, Optimizer, resolve_device
from pgce.samplers import shuffled
from pgce.trainer import Batch, Report, Rule, TargetRule, Term, Trainer, train
from pgce.weights import one

__all__ = ["History", "evaluate", "fit", "predict", "predict_proba"]

Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]
"""(target, the head's mean) -> numbers by name, such as `metrics.classification`."""

Augment = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""(inputs, targets, generator) -> both changed, such as `targets.mixup`."""

Mode = Literal["auto", "min", "max"]


@dataclass
class History:
    """What `fit` measured, a row an epoch.

    Attributes:
        epochs: for each epoch "epoch" (from 1), "examples" seen and "steps" taken so far, "seconds" of
            training so far (evaluation, logging and callbacks left out), "loss" (mean over its examples) and
            of a classifier "accuracy", each example as it was before its update (those of updates that were
            left out do not count), "learning_rate" and "grad_norm" of its last step, updates "skipped" so
            far, and with validation data "val_loss", of a classifier "val_accuracy", "val_{name}_loss" of
            each further term, and what `metrics` gives.
        best_epoch: the epoch whose weights were kept, with `patience`.
        stopped: why training ended: "epochs", "patience" or "after".

    Example:
        >>> from pgce.fitting import History
        >>> History([{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.25}])["loss"]
        [0.5, 0.25]
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped: str = "epochs"

    def __getitem__(self, name: str) -> list[float]:
        """One column, an entry an epoch."""
        return [row[name] for row in self.epochs]


def fit(
    model: nn.Module,
    data: Data,
    *,
    head: Head | None = None,
    target: str | TargetRule = "target",
    weight: str | Rule | None = None,
    terms: Mapping[str, Term] | None = None,
    sampler: Callable[[Batch, torch.Generator], Tensor] = shuffled,
    augment: Augment | None = None,
    validation: Data | None = None,
    metrics: Metrics | None = None,
    patience: int | None = None,
    monitor: str = "val_loss",
    mode: Mode = "auto",
    epochs: int = 20,
    batch_size: int = 128,
    micro_batch_size: int | None = None,
    optimizer: OptimizerName | Optimizer = "adam",
    learning_rate: float = 1e-3,
    schedule: Schedule = "constant",
    warmup_steps: int = 0,
    max_grad_norm: float | None = None,
    precision: Precision = "float32",
    ema_decay: float | None = None,
    max_skips: int = 0,
    compile: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    log: Logger | str | Path | Callable[[], Logger] | None = None,
    checkpoints: str | Path | Callable[[], Checkpoints] | None = None,
    history: History | None = None,
    after: Callable[[dict[str, float], Report], bool | None] | None = None,
    **options: Any,
) -> History:
    """Train `model` in place by weighted cross-entropy; every epoch sees each example once, in random order.

    Args:
        model: (B, ...) -> logits (B, K), or what the head reads. Moved to `device`, and trained in training
            mode; of a model in that mode, parts that are not (a frozen batch norm's running mean) stay so.
        data: (inputs, targets) or (inputs, targets, sample_weight), arrays or tensors; a mapping with
            "input" and columns by name; a Dataset or a DataLoader of such (its first batch is looked at
            before the first epoch, so that a stream is begun once more); or a `Batch`, which a DataLoader
            may yield too. Inputs may be a mapping of arrays, with which the model is then called. What lies
            in memory moves to the device as a whole.
        head: what the logits mean; None is `Categorical()`.
        target: the column with y, or a rule (logits, batch) -> y.
        weight: the column with w, or a rule (cross_entropy, batch) -> w, such as `weights.one`. None is
            "sample_weight" where the data have it and the sampler does not draw by it, else 1. Of data with
            a "sample_weight" that neither `weight` nor `terms` read, it is warned.
        terms: several weighted cross-entropies instead of the one that the last three name. Validation is by
            the first; of the others it tells the mean cross-entropy, if their target is a column.
        sampler: which examples of data in memory an epoch sees (`pgce.samplers`); a DataLoader has its own, a
            Dataset is shuffled, and a stream in order.
        augment: (inputs, targets, generator) -> both changed, such as `targets.mixup`; before each step.
        validation: held-out data, evaluated after every epoch, with the averaged weights if there are any.
            They are scored, and `augment` changes, the column that `target` names; "target" if it is a rule.
            All count the same: a "sample_weight" of theirs is not read.
        metrics: further numbers of the validation data, such as `pgce.metrics.classification`.
        patience: epochs without a better `monitor` after which training stops. The best weights are kept.
        monitor: the column of the history to watch.
        mode: whether its least ("min") or greatest value ("max") is the best; "auto" knows the names of
            `pgce.metrics`.
        epochs: passes over the data.
        batch_size: examples a step; the last batch of an epoch may be smaller.
        micro_batch_size: examples that go through the model at once, if fewer than a batch (less memory).
        optimizer: by name, as the next seven and `options`: see `pgce.optimizer.Optimizer`. Or an optimizer
            stack of the model's parameters, with settings of its own, which goes on from its state.
        learning_rate: step size.
        schedule: of the learning rate over all epochs.
        warmup_steps: updates until the learning rate is whole.
        max_grad_norm: limit of the gradient's norm, or None.
        precision: "bfloat16" or "float16" of the matrix products.
        ema_decay: of the moving average of the parameters; the average is what is kept.
        max_skips: how many updates in a row may be left out since the gradient was not finite.
        compile: run the model through torch's compiler (some seconds at the first step).
        seed: of the order of examples, of augmentation and of dropout.
        device: "auto", "cpu", "cuda", "mps". On a CPU and on CUDA, steps of models that consist of torch's
            modules are recorded and replayed, which is several times as fast where models are small; of a
            class of your own if it has an attribute `recordable = True` (see `pgce.graphs.constant`).
        log: folder to write TensorBoard events into; or a logger, or a function that makes one, called when
            all is checked.
        checkpoints: folder to save everything in, once a minute and at the end of an epoch; where it holds a
            checkpoint of the same data, settings, and names and coefficients of terms, training goes on from
            that exactly as if it had not been stopped (a DataLoader with a generator of its own starts that
            anew). Or a function that tells, called after `log`.
        history: of earlier calls, which this one goes on with: its rows, and what is logged, count on from
            there, as the steps of an optimizer stack do.
        after: called after every epoch with its row of the history and the report of its last whole batch;
            True ends training.
        options: what torch's optimizer of that name takes.

    Returns:
        The history of training.

    Raises:
        ValueError: data that don't fit each other, the model or the head, or a checkpoint of others; found
            before the first step.
        TypeError: an option that torch's optimizer of that name does not take.
        FloatingPointError: loss or gradient stopped being finite; the model is as before that step.

    Example:
        >>> import torch, pgce
        >>> _ = torch.manual_seed(0)
        >>> inputs, labels = torch.randn(200, 2), torch.arange(200) % 2
        >>> inputs[:, 0] += 6.0 * labels
        >>> model = pgce.networks.mlp(2, 2)
        >>> history = pgce.fit(model, (inputs, labels), epochs=20, learning_rate=0.01, device="cpu")
        >>> pgce.evaluate(model, (inputs, labels))["accuracy"] > 0.98
        True
        >>> history["loss"][-1] < history["loss"][0]
        True
    """
    settings = locals()
    check_types({name: settings[name] for name in settings.keys() - {"data", "validation"}}, fit)
    if epochs < 1 or batch_size < 1:
        raise ValueError(
            f"epochs and batch size are at least 1: epochs is {epochs}, batch_size is {batch_size}"
        )
    if patience is not None and (validation is None or patience < 1):
        raise ValueError(
            f"patience is at least 1 epoch and needs validation data: it is {patience}, "
            f"validation is {'missing' if validation is None else 'given'}"
        )
    if terms is not None and (head is not None or target != "target" or weight is not None):
        raise ValueError("head, target and weight are those of the terms: give one or the other")
    batch_size, seed = int(batch_size), int(seed)  # torch takes no whole numbers of NumPy
    processes.join(str(device))
    place = resolve_device(device)
    model.to(place)
    for tensor in model.state_dict().values():
        processes.first(tensor)
    generator = torch.Generator().manual_seed(seed)
    source = as_source(data, place, batch_size, generator)
    if sampler is not shuffled and not isinstance(source, Batch):
        raise ValueError(
            "a sampler is of data in memory: these come from a "
            f"{type(data).__name__}, for whose DataLoader torch has samplers of its own"
        )
    held_out = None if validation is None else as_source(validation, place, batch_size)
    first = _first(source, place, "data")
    if terms is None:
        if weight is None:
            told = "sample_weight" in first.columns and checking.drawn_by(sampler) != "sample_weight"
            weight = "sample_weight" if told else one
        terms = {"label": Term(Categorical() if head is None else head, target, weight)}
    for name, term in terms.items():
        check_type(f"the term {name}", term, Term)
    checking.warn_of_double_correction(sampler, next(iter(terms.values())).weight)
    own = {name: settings[name] for name in SETTINGS} | options
    if isinstance(optimizer, Optimizer):
        checking.check_stack(optimizer, model, own)
        stack = optimizer
    else:
        stack = Optimizer(model.parameters(), optimizer, **own)
    trainer = Trainer(model, terms, stack, micro_batch_size)
    read = checking.check(model, terms, first, "data")
    if weight is not one:  # or it is told that all weigh the same
        checking.warn_of_unread_weights(first, read, sampler)
    history = history or History()
    fitting = _Fitting(
        trainer, source, epochs, batch_size, sampler, augment, after, generator, seed, place, history
    )
    if held_out is not None:
        fitting.validate(held_out, metrics)
        if patience is not None:
            fitting.watch(patience, monitor, mode)
    forked = torch.random.fork_rng([place] if place.type == "cuda" else [])
    with forked, fast_products(_multiplications(model, source, batch_size)), ExitStack() as opened:
        if compile:  # for the time of the call
            opened.callback(setattr, model, "_compiled_call_impl", model._compiled_call_impl)
            model.compile()
        if not isinstance(log, (str, Path)):
            fitting.logger = log if log is None or isinstance(log, Logger) else log()
        if isinstance(checkpoints, (str, Path)):
            fitting.of = checking.identity(source, batch_size, trainer, sampler=sampler, augment=augment)
            fitting.keeper = Checkpoints(Path(checkpoints)).together()
        elif checkpoints is not None:  # whoever gives a function looks itself at what they are of
            fitting.keeper = checkpoints()
        torch.manual_seed(seed + 1_000_003 * processes.rank())
        fitting.go_on()
        if isinstance(log, (str, Path)):
            folder = Path(log) if processes.rank() == 0 else None
            fitting.logger = opened.enter_context(Logger(folder, resumed=fitting.seen or None))
        fitting.run()
    return fitting.history


@dataclass
class _Fitting:
    """What `fit` does for the loop: an epoch's batches in, a row of the history out; and all of its state."""

    trainer: Trainer
    source: Batch | DataLoader[Any]
    epochs: int
    batch_size: int
    sampler: Callable[[Batch, torch.Generator], Tensor]
    augment: Augment | None
    after: Callable[[dict[str, float], Report], bool | None] | None
    generator: torch.Generator
    seed: int
    place: torch.device
    history: History

    def __post_init__(self) -> None:
        self.model, self.stack = self.trainer.model, self.trainer.optimizer
        self.still = [part for part in self.model.modules() if self.model.training and not part.training]
        self.name, self.main = next(iter(self.trainer.terms.items()))
        self.column = self.main.target if isinstance(self.main.target, str) else "target"
        self.classifies = isinstance(plain(self.main.head), Categorical)
        self.ranks, self.rows = processes.size(), 0
        # Of what processes do differently; alone, one does it all.
        self.augmenting = self.generator
        if self.ranks > 1:
            self.augmenting = torch.Generator().manual_seed(self.seed + 1_000_003 * processes.rank())
        self.held_out: Batch | DataLoader[Any] | None = None
        self.patience: int | None = None
        self.logger: Logger | None = None
        self.keeper: Checkpoints | None = None
        self.of: dict[str, Any] = {}  # what must be as it was, for training to go on
        self.earlier = len(self.history.epochs)  # rows of earlier calls
        last = self.history.epochs[-1] if self.earlier else {"examples": 0.0, "seconds": 0.0}
        self.best: dict[str, Tensor] = {}
        self.seconds = last["seconds"]
        self.seen, self.skipped = int(last["examples"]), self.stack.skipped  # of all processes; updates
        # Of the epoch that is under way:
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.learned, self.judged = 0, 0  # examples of updates that were made; their targets, maybe several
        self.whole: list[Report] = []

    def validate(self, held_out: Batch | DataLoader[Any], metrics: Metrics | None) -> None:
        """Score these data after each epoch, if they fit the model and its terms."""
        tested = _first(held_out, self.place, "validation")
        self.scored = {self.name: replace(self.main, target=self.column, weight=one)} | {
            name: replace(term, weight=one)
            for name, term in self.trainer.terms.items()
            if isinstance(term.target, str) and term.target in tested.columns
        }
        checking.check(self.model, self.scored, tested, "validation")
        self.held_out, self.metrics = held_out, metrics

    def watch(self, patience: int, monitor: str, mode: Mode) -> None:
        """Stop after so many epochs in which this column of the history became no better."""
        known = {"loss", *self._scores()}
        if monitor not in known:
            raise ValueError(f"monitor is one of {', '.join(sorted(known))}: it is {monitor!r}")
        watched = monitor.removeprefix("val_")
        lower = LOWER_IS_BETTER | {f"{name}_loss" for name in self.scored}
        if mode == "auto" and watched not in lower | HIGHER_IS_BETTER:
            raise ValueError(f'mode is "min" or "max" of a metric of your own: monitor is {monitor!r}')
        self.patience, self.monitor = patience, monitor
        self.least = mode == "min" or (mode == "auto" and watched in lower)

    def go_on(self) -> None:
        """Take up what a checkpoint has, if there is one."""
        self.history.best_epoch, self.history.stopped = None, "epochs"
        found = None if self.keeper is None else self.keeper.found
        # A checkpoint with no more epochs than there are is of an earlier call.
        if found is not None and len(found.state["history"]["epochs"]) > self.earlier:
            self.load_state_dict(found.state)

    def run(self) -> None:
        """Train to the end, and leave the best or the averaged weights in the model."""
        history = self.history
        done = self.epochs if history.stopped == "patience" else len(history.epochs) - self.earlier
        history.stopped = "patience" if history.stopped == "patience" else "epochs"
        self.since = time.perf_counter()
        self.stack.go_on()
        train(self.trainer, map(self._epoch, range(done, self.epochs)), stop=self._record, after=self._finish)
        if self.best:
            self.model.load_state_dict(self.best)
        else:
            self.stack.keep_average()

    def _epoch(self, n: int) -> Iterator[Batch]:
        """The batches of an epoch, of several processes each its rows."""
        self.learned = self.judged = 0
        for values in (self.losses, self.hits, self.whole):
            values.clear()
        self.model.train()
        for part in self.still:
            part.training = False
        source, place, size = self.source, self.place, self.batch_size
        if isinstance(source, Batch):
            index = self.sampler(source, self.generator).to(place)
            parts: float = -(-len(index) // size)
            batches: Iterator[Batch] = (source.rows(rows) for rows in index.split(size))
        else:
            batches = pieces(source, place, size)
            parts = _length(source)
        i = -1
        for i, batch in enumerate(batches):
            self.stack.progress = min((n + i / parts) / self.epochs, 1.0)
            if self.ranks > 1:
                self.rows = len(batch)
                batch = batch.rows(torch.arange(processes.rank(), self.rows, self.ranks, device=place))
            yield batch if self.augment is None else self._augmented(batch)
        if i < 0:
            raise ValueError(f"data: {_NO_BATCH}: this one has none in epoch {n + 1}")

    def _augmented(self, batch: Batch) -> Batch:
        assert self.augment is not None
        if isinstance(batch.input, dict):
            raise ValueError("augmentation takes inputs that are one tensor: they are a dict")
        inputs, target = self.augment(batch.input, batch[self.column], self.augmenting)
        return Batch(inputs, {**batch.columns, self.column: target}, batch.mask)

    def _record(self, reports: dict[str, Report]) -> bool:
        """Note what a step tells; an epoch goes on."""
        report = reports[self.name]
        size = len(report.batch) if self.ranks == 1 else self.rows
        self.seen += size
        if self.stack.skipped == self.skipped:
            self.learned += size
            first, *others = (each.loss for each in reports.values())
            self.losses.append(sum(others, first) * size)
            if self.classifies:
                found = right(report, self.main.head)
                self.hits.append(found.sum())
                self.judged += found.numel()
        self.skipped = self.stack.skipped
        if not self.whole or size >= len(self.whole[0].batch):
            self.whole[:] = [report]
        return False

    def _finish(self, _: int, reports: dict[str, Report]) -> bool | None:
        """Add a row to the history; log, save, and say whether training ends."""
        history, stack = self.history, self.stack
        n = len(history.epochs)
        row = self._row(n)
        stop: bool | None = False
        with stack.averaged():
            row |= self._scores()
            history.epochs.append(row)
            if self.patience is not None:
                watched = [each[self.monitor] for each in history.epochs[self.earlier :]]
                if _best(watched, least=self.least) == n - self.earlier:
                    history.best_epoch = n + 1
                    self.best.update({k: v.detach().clone() for k, v in self.model.state_dict().items()})
                elif n + 1 - (history.best_epoch or self.earlier) >= self.patience:
                    history.stopped, stop = "patience", True
            if self.logger is not None:
                _log(self.logger, row, self.whole[0], self.main.head)
            if self.after is not None and self.after(row, self.whole[0]):
                history.stopped, stop = "after", True
        ends, keeper = stop or n + 1 == self.earlier + self.epochs, self.keeper
        if keeper is not None and (keeper.due or (ends and (keeper.final or history.stopped == "after"))):
            if self.logger is not None:
                self.logger.flush()  # what was logged until a checkpoint is not lost after it
            keeper.save(self.seen, self.state_dict(), ("augmenting", "random", "device_random"))
        self.since = time.perf_counter()
        return stop

    def _row(self, n: int) -> dict[str, float]:
        """What the steps of an epoch came to."""
        none = torch.zeros((), device=self.place)
        # It is waited for the device: the epoch is over. Where no update was made there is no loss.
        loss = (processes.total(sum(self.losses, none)) / (self.learned or math.nan)).item()
        accuracy = processes.total(sum(self.hits, none))
        (targets,) = processes.sum_of([float(self.judged)])
        for buffer in self.model.buffers():  # of process 0, for all to be evaluated alike
            processes.first(buffer)
        self.seconds += time.perf_counter() - self.since
        return {
            "epoch": n + 1.0,
            "examples": float(self.seen),
            "steps": float(self.stack.steps),
            "seconds": self.seconds,
            "loss": loss,
            **({"accuracy": accuracy.item() / targets if targets else math.nan} if self.classifies else {}),
            "learning_rate": self.stack.last_rate,
            "grad_norm": self.stack.grad_norm,
            "skipped": float(self.stack.skipped),
        }

    def _scores(self) -> dict[str, float]:
        """Of the held-out data, if there are any."""
        if self.held_out is None:
            return {}
        scores = _scores(self.model, self.held_out, self.scored, self.metrics)
        return {f"val_{name}": value for name, value in scores.items()}

    def state_dict(self) -> dict[str, Any]:
        """All that training needs to go on as if it had not been stopped."""
        return {
            "of": self.of,
            "model": self.model.state_dict(),
            "frozen": [name for name, p in self.model.named_parameters() if not p.requires_grad],
            "optimizer": self.stack.state_dict(),
            "history": asdict(self.history),
            "earlier": self.earlier,
            "best": self.best,
            "seen": self.seen,
            "seconds": self.seconds,
            "generator": self.generator.get_state(),
            "augmenting": None if self.ranks == 1 else self.augmenting.get_state(),
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self.place) if self.place.type == "cuda" else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, if it is of the same data and settings."""
        then = state.get("of") or {}
        changed = {key: now for key, now in self.of.items() if then.get(key, now) != now}
        if changed:
            differ = ", ".join(f"{key} {then[key]} -> {now}" for key, now in changed.items())
            where = "" if self.keeper is None else f" ({self.keeper.folder})"
            raise ValueError(f"a checkpoint goes on with the same data and settings: {differ}{where}")
        check_like("model", state["model"], self.model.state_dict())
        self.model.load_state_dict(state["model"])
        for name in state.get("frozen", ()):
            self.model.get_parameter(name).requires_grad_(False)
        self.stack.load_state_dict(state["optimizer"])
        self.history, self.earlier = History(**state["history"]), state.get("earlier", 0)
        self.best.update({name: value.to(self.place) for name, value in state["best"].items()})
        self.seen, self.seconds = state["seen"], state["seconds"]
        self.skipped = self.stack.skipped
        self.generator.set_state(state["generator"])
        if state["augmenting"] is not None:
            self.augmenting.set_state(state["augmenting"])
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"], self.place)


def evaluate(
    model: nn.Module,
    data: Data,
    *,
    head: Head | None = None,
    target: str = "target",
    output: str | int | None = None,
    metrics: Metrics | None = None,
    batch_size: int = 4096,
) -> dict[str, float]:
    """Mean cross-entropy "loss" in nats, of a classifier with class ids "accuracy", and what `metrics` gives.

    Args:
        model: in evaluation mode for the time of the call.
        data: as `fit` takes it; all examples count the same, whatever "sample_weight" they have.
        head: what the logits mean; None is `Categorical()`.
        target: the column with y.
        output: key of the model's output to read; None where it has only one.
        metrics: (target, the head's mean) -> numbers, such as `pgce.metrics.classification`.
        batch_size: examples that go through the model at once.

    Raises:
        ValueError: data without that column, or that don't fit the model or the head.

    Example:
        >>> import torch, pgce
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> pgce.evaluate(model, (torch.eye(2), torch.tensor([0, 0])))["accuracy"]
        0.5
    """
    term = Term(Categorical() if head is None else head, target, output=output)
    return _scores(model, data, {"label": term}, metrics, batch_size)


def predict(
    model: nn.Module,
    inputs: Inputs | Data,
    *,
    head: Head | None = None,
    output: str | int | None = None,
    batch_size: int = 4096,
) -> Tensor:
    """The head's most probable outcome for each input, on the CPU: class ids of a classifier.

    Args:
        model: in evaluation mode for the time of the call.
        inputs: an array or tensor (B, ...), or a mapping of such; or data as `fit` takes it (a mapping with
            "input").
        head: what the logits mean; None is `Categorical()`.
        output: key of the model's output to read; None where it has only one.
        batch_size: examples that go through the model at once.

    Example:
        >>> import torch, pgce
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> pgce.predict(model, torch.eye(2))
        tensor([0, 1])
    """
    head = Categorical() if head is None else head
    return head.mode(_logits(model, inputs, output, batch_size)).cpu()


def predict_proba(
    model: nn.Module,
    inputs: Inputs | Data,
    *,
    head: Head | None = None,
    output: str | int | None = None,
    batch_size: int = 4096,
) -> Tensor:
    """The head's mean for each input, on the CPU: probabilities (B, K) of a classifier.

    Args:
        model: in evaluation mode for the time of the call.
        inputs: an array or tensor (B, ...), or a mapping of such; or data as `fit` takes it (a mapping with
            "input").
        head: what the logits mean; None is `Categorical()`.
        output: key of the model's output to read; None where it has only one.
        batch_size: examples that go through the model at once.

    Example:
        >>> import torch, pgce
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> pgce.predict_proba(model, torch.eye(2))
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    head = Categorical() if head is None else head
    return head.mean(_logits(model, inputs, output, batch_size)).cpu()


def _logits(model: nn.Module, inputs: Any, output: str | int | None, batch_size: int) -> Tensor:
    """Of inputs alone, or of all data."""
    arrays = isinstance(inputs, Tensor) or hasattr(inputs, "__array__")  # as a DataFrame has it
    named = isinstance(inputs, Mapping) and "input" not in inputs
    data = {"input": inputs} if arrays or named else inputs
    ((logits, _),) = _outputs(model, data, [(output, None)], batch_size)
    return logits


def _scores(
    model: nn.Module, data: Data, terms: Mapping[str, Term], metrics: Metrics | None, batch_size: int = 4096
) -> dict[str, float]:
    """What `evaluate` says by the first term, and "{name}_loss" of each other; targets are columns."""
    main, *others = terms.values()
    wanted = [(term.output, str(term.target)) for term in terms.values()]
    (logits, target), *rest = _outputs(model, data, wanted, batch_size)
    scores = {"loss": _mean_cross_entropy(main.head, logits, target)}
    if isinstance(plain(main.head), Categorical) and not target.is_floating_point():
        scores["accuracy"] = (main.head.mode(logits) == target).double().mean().item()
    for name, other, found in zip([*terms][1:], others, rest, strict=True):
        scores[f"{name}_loss"] = _mean_cross_entropy(other.head, *found)
    return scores if metrics is None else {**scores, **metrics(target, main.head.mean(logits))}


def _mean_cross_entropy(head: Head, logits: Tensor, target: Tensor) -> float:
    head.check(logits, target)
    each = head.cross_entropy(logits, target)
    return objective(each, None, max(each.numel(), 1)).item()


def _outputs(
    model: nn.Module, data: Data, wanted: Sequence[tuple[str | int | None, str | None]], batch_size: int
) -> list[tuple[Tensor, Tensor]]:
    """Logits and targets of all examples, for each (output, column) wanted; no targets where that is None.

    In evaluation mode, without gradient, and in one pass.
    """
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in wanted]
    source = as_source(data, place, batch_size)
    with evaluating(model), fast_products(_multiplications(model, source, batch_size)):
        for batch in pieces(source, place, batch_size):
            try:
                outputs, examples = model(batch.input), batch.counted()
            except RuntimeError:
                checking.check_dtype(model, batch, "data")
                raise
            for (output, column), (logits, targets) in zip(wanted, found, strict=True):
                read = checking.output_of(outputs, output)
                if read.shape[:1] != (len(batch),):
                    raise ValueError(f"a model gives a row an example: of {len(batch)}, {tuple(read.shape)}")
                logits.append(read if batch.mask is None else read[batch.mask])
                targets.append(torch.empty(0) if column is None else checking.column_of(examples, column))
    if not found[0][0]:
        raise ValueError(f"{_NO_BATCH}: this one has none")
    return [(_in_one(logits), _in_one(targets)) for logits, targets in found]


def _in_one(parts: Sequence[Tensor]) -> Tensor:
    """What batches have, one after the other."""
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if len(shapes) > 1:
        raise ValueError(
            "batches that are evaluated have examples of one shape, or masks (B, L) of the steps that count: "
            f"these give {shapes[0]} and {shapes[-1]}"
        )
    return torch.cat([*parts])


def _multiplications(model: nn.Module, source: Batch | DataLoader[Any], batch_size: int) -> int:
    """Of the largest product of a batch with a matrix of weights; 0 where batches may have many shapes."""
    rows = min(batch_size, len(source)) if isinstance(source, Batch) else 0
    return rows * max((p.numel() for p in model.parameters() if p.ndim == 2), default=0)


def _first(source: Batch | DataLoader[Any], place: torch.device, name: str) -> Batch:
    """All data that lie in memory, or a loader's first batch."""
    found = source if isinstance(source, Batch) else next(pieces(source, place, 1), None)
    if found is None:
        raise ValueError(f"{name}: {_NO_BATCH}: this one has none")
    return found


_NO_BATCH = "a loader has at least one batch, and a stream begins anew whenever it is gone through"


def _best(values: list[float], *, least: bool) -> int:
    """Where the best value stands, the first of equals; one that is no number is the worst."""
    worst = math.inf if least else -math.inf
    known = [worst if math.isnan(value) else value for value in values]
    return known.index(min(known) if least else max(known))


def _length(loader: DataLoader[Any]) -> float:
    try:
        return len(loader)
    except TypeError:  # of a stream
        return math.inf


def _log(logger: Logger, row: Mapping[str, float], report: Report, head: Head) -> None:
    """Write an epoch's numbers and histograms, the more seldom the longer the run is."""
    n, step = int(row["epoch"]), int(row["examples"])
    if due(n, 200):
        values = {
            **factors(report),
            **{_tag(key[4:]): value for key, value in row.items() if key.startswith("val_")},
            "objective/loss": row["loss"],
            "train/learning_rate": row["learning_rate"],
            "train/grad_norm": row["grad_norm"],
            "train/skipped": row["skipped"],
            "time/fps": row["examples"] / row["seconds"],
            "time/epoch": row["epoch"],
        }
        if "accuracy" in row:
            values["train/accuracy"] = row["accuracy"]
        logger.scalars(step, values)
    if due(n, 10):
        dashboards.batch(logger, step, report, head)


def _tag(name: str) -> str:
    """Under which a metric of held-out examples is logged."""
    return f"eval/{name}" if f"eval/{name}" in TAGS else f"eval/own/{name}"

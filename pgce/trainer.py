"""One step for every learner: cross-entropy → weight → objective → backward → optimizer. And the one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pgce import graphs, processes
from pgce.choices import check_types
from pgce.heads import Head
from pgce.machine import keep_memory
from pgce.objective import objective
from pgce.optimizer import Optimizer
from pgce.weights import one

__all__ = ["Batch", "Input", "Report", "Rule", "TargetRule", "Term", "Trainer", "count", "train"]

Input = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """B examples: what the model is called with, and the named columns that rules and metrics read.

    Args:
        input: (B, ...), or a dict of such tensors.
        columns: "action", "advantage", "target", "sample_weight", …; (B, ...) each, or (B, L, ...) for
            sequences of L steps.
        mask: (B,), or (B, L) of sequences; bool, True where an example counts; None counts all.

    Raises:
        ValueError: the first axes differ in length, or the mask is not boolean.

    Example:
        >>> import torch
        >>> from pgce import Batch
        >>> batch = Batch(
        ...     torch.eye(3), {"action": torch.tensor([2, 0, 1])}, torch.tensor([True, False, True])
        ... )
        >>> batch.count
        2
        >>> batch.counted()["action"]
        tensor([2, 1])
        >>> [len(part) for part in batch.shuffled(2)]
        [1, 1]
    """

    input: Input
    columns: Mapping[str, Tensor]
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        size, mask = len(self), self.mask
        for name, column in (*self.columns.items(), *([] if mask is None else [("mask", mask)])):
            if column.shape[:1] != (size,):
                raise ValueError(
                    f"one row an example: input has {size}, {name} has shape {tuple(column.shape)}"
                )
        if mask is not None and mask.dtype != torch.bool:
            raise ValueError(f"a mask is boolean: it has dtype {mask.dtype}")

    def __len__(self) -> int:
        """B, masked examples included."""
        return self._some.shape[0]

    @property
    def _some(self) -> Tensor:
        """The input, or one of its tensors."""
        return next(iter(self.input.values())) if isinstance(self.input, dict) else self.input

    @cached_property
    def tensors(self) -> dict[tuple[str, str | None], Tensor]:
        """All but the mask, by ("input", name or None) and ("column", name)."""
        inputs = self.input if isinstance(self.input, dict) else {None: self.input}
        found: dict[tuple[str, str | None], Tensor] = {("input", n): value for n, value in inputs.items()}
        found.update({("column", name): value for name, value in self.columns.items()})
        return found

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """What it has in common with batches of other rows: names, shapes and types."""
        return tuple((name, value.shape[1:], value.dtype) for name, value in self.tensors.items())

    @property
    def origin(self) -> tuple[Batch, Tensor | None]:
        """The batch whose rows these are, and their numbers there; None if they are all of them."""
        return self, None

    def __getitem__(self, name: str) -> Tensor:
        """The column `name`."""
        try:
            return self.columns[name]
        except KeyError:
            raise KeyError(
                f"the batch has no column {name!r}: it has {', '.join(self.columns) or 'none'}"
            ) from None

    @property
    def count(self) -> int:
        """How many examples count: rows, or steps of sequences, where the mask is True."""
        return len(self) if self.mask is None else int(self.mask.sum())

    @cached_property
    def total(self) -> float:
        """How many examples count in the batches of all processes.

        All ask each other at once, where they do not know it: the parts that `shuffled` makes do.
        """
        return processes.sum_of([float(self.count)])[0]

    def with_columns(self, **columns: Tensor) -> Batch:
        """The same examples with further columns.

        Raises:
            ValueError: the batch has a column of that name, or one has another number of rows.
        """
        if taken := columns.keys() & self.columns.keys():
            raise ValueError(f"the batch has a column {min(taken)!r} already: name yours otherwise")
        return Batch(self.input, {**self.columns, **columns}, self.mask)

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """The examples of batches of one kind, one after the other.

        Raises:
            ValueError: there is no batch, or only some have a mask.
        """
        first = batches[0]
        if len(batches) == 1:
            return first
        masks = [batch.mask for batch in batches if batch.mask is not None]
        if len(masks) not in (0, len(batches)):
            raise ValueError(f"all batches have a mask, or none: {len(masks)} of {len(batches)} have one")
        together = {name: torch.cat([b.tensors[name] for b in batches]) for name in first.tensors}
        return first.with_tensors(together, torch.cat(masks) if masks else None)

    def split(self, size: int | None) -> Iterator[Batch]:
        """The batch in pieces of `size` rows, the last of them smaller; None leaves it whole."""
        if size is None or size >= len(self):
            yield self
        else:
            for start in range(0, len(self), size):
                yield self.rows(slice(start, start + size))

    def with_tensors(
        self, tensors: Mapping[tuple[str, str | None], Tensor], mask: Tensor | None = None
    ) -> Batch:
        """The batch that has these in the place of its own `tensors`, and this mask."""
        inputs = {name: value for (kind, name), value in tensors.items() if kind == "input"}
        columns = {str(name): value for (kind, name), value in tensors.items() if kind == "column"}
        whole: Any = inputs if isinstance(self.input, dict) else inputs[None]
        return Batch(whole, columns, mask)

    def rows(self, index: Tensor | slice) -> Batch:
        """The rows that `index` names: by number (b,), by boolean (B,), or as a slice, which copies none."""
        if self.mask is None and isinstance(index, Tensor) and index.dtype == torch.int64:
            return _Rows(self, index.to(self._some.device))
        chosen = {name: value[index] for name, value in self.tensors.items()}
        return self.with_tensors(chosen, None if self.mask is None else self.mask[index])

    def counted(self) -> Batch:
        """The examples that count, without a mask; (count, ...) also where the mask is (B, L)."""
        if self.mask is None:
            return self
        every = Batch(self.input, self.columns)
        return every.rows(self.mask.nonzero().squeeze(1) if self.mask.ndim == 1 else self.mask)

    def shuffled(
        self, parts: int, generator: torch.Generator | None = None, passes: int = 1
    ) -> Iterator[Batch]:
        """The rows that count in random order, cut into `parts` batches of nearly equal size.

        Sequences, whose mask is (B, L), stay whole. Within a part rows of a large batch on a CPU may keep the
        order in which they lie in memory, where they are found sooner.

        Args:
            parts: how many batches; fewer come if there are fewer rows. Of several processes all make as
                many, of nearly equal size together, of which some may have no row of this one.
            generator: of random numbers, on the CPU.
            passes: how often, each time in another order.
        """
        if parts < 1:
            raise ValueError(f"a batch is cut into one or more parts: parts is {parts}")
        kept, rows = self, torch.arange(len(self), device=self._some.device)
        if self.mask is not None and self.mask.ndim == 1:
            kept, rows = Batch(self.input, self.columns), self.mask.nonzero().squeeze(1)
        scattered = rows.is_cpu and len(rows) >= _SCATTERED
        every = processes.everyones(len(rows))
        parts = min(parts, max(sum(every), 1))
        # Parts take rows in turn, those of the first process last: it logs what the last part came to.
        before = sum(every[processes.rank() + 1 :])
        sizes = [len(rows) // parts + ((n - before) % parts < len(rows) % parts) for n in range(parts)]
        for _ in range(passes):
            order = torch.randperm(len(rows), generator=generator).to(rows.device, non_blocking=True)
            order = rows.index_select(0, order)
            for n, index in enumerate(order.split(sizes)):
                if scattered:
                    index.numpy().sort()
                part = kept.rows(index)
                if kept.mask is None:  # all know all parts' sizes: the first have a row more
                    vars(part)["total"] = float(sum(every) // parts + (n < sum(every) % parts))
                yield part


_SCATTERED = 2**13  # rows, of which caches do not hold all


class _Rows(Batch):
    """Rows of a batch by number, gathered when somebody looks; a recorded step gathers them itself."""

    _source: Batch
    _index: Tensor

    def __init__(self, source: Batch, index: Tensor) -> None:
        vars(self).update(kind=source.kind, _source=source, _index=index)

    def __len__(self) -> int:
        return int(self._index.shape[0])  # sooner told than len

    @cached_property
    def _gathered(self) -> Batch:
        tensors = self._source.tensors.items()
        return self._source.with_tensors(
            {name: value.index_select(0, self._index) for name, value in tensors}
        )

    @property
    def input(self) -> Input:
        """The rows of the input."""
        return self._gathered.input

    @property
    def columns(self) -> Mapping[str, Tensor]:
        """The rows of the columns."""
        return self._gathered.columns

    @property
    def origin(self) -> tuple[Batch, Tensor | None]:
        """The batch, and the rows' numbers."""
        return self._source, self._index


Rule = Callable[[Tensor, Batch], Tensor | None]
"""(cross_entropy, batch) -> weight, one number an example that counts; sees constants, writes into none.

The batch has two columns more than the learner gave it: "logits", what the head read, and "y", what it
scored.
"""

TargetRule = Callable[[Tensor, Batch], Tensor]
"""(logits, batch) -> target; sees constants, writes into none."""


def count(batch: Batch) -> int:
    """The examples that count, at least 1: the divisor of a mean over the batch.

    Where the head gives several cross-entropies of a row, as of a sequence or of several labels, each counts.
    """
    return max(batch.count, 1)


@dataclass(frozen=True)
class Term:
    """One weighted cross-entropy of an objective that may have several.

    Args:
        head: what the logits mean.
        target: name of the column with y, or a rule (logits, batch) -> y.
        weight: name of the column with w, or a rule (cross_entropy, batch) -> w. A rule sees the detached
            cross-entropy −log p(y): for an action taken that is −log π(a|s).
        coefficient: factor on the whole term.
        output: key of the model's output to read; None where it has only one.
        divisor: n, from the whole batch.

    Raises:
        ValueError: an argument is of another type, such as a loss of torch in place of a head.

    Example:
        >>> from pgce import Term, heads
        >>> Term(heads.Categorical(), target="action", weight="advantage", output="policy").coefficient
        1.0
    """

    head: Head
    target: str | TargetRule = "target"
    weight: str | Rule = one
    coefficient: float = 1.0
    output: str | int | None = None
    divisor: Callable[[Batch], Tensor | float] = count

    def __post_init__(self) -> None:
        check_types(vars(self), Term)


@dataclass(frozen=True)
class Report:
    """What one term saw in one step: constants, from which every metric is computed.

    Of a step that is replayed all hold until the next step.

    Attributes:
        logits: what the head read, of the examples that count.
        target: y.
        cross_entropy: H(y, p) in nats.
        weight: w, or None where it is 1.
        loss: coefficient · Σ w · H / divisor.
        batch: the examples that count.
    """

    logits: Tensor
    target: Tensor
    cross_entropy: Tensor
    weight: Tensor | None
    loss: Tensor
    batch: Batch


_ACROSS = (nn.modules.batchnorm._NormBase,)  # layers that look at all rows of a batch


class Trainer:
    """A model, the terms of its objective, and the optimizer: all that a step needs.

    Args:
        model: called with `batch.input`; returns a tensor, or a mapping or sequence that `Term.output`
            indexes.
        terms: named; their losses add up.
        optimizer: over the model's parameters.
        micro_batch_size: rows that go through the model at once; None is all. The gradients of the pieces add
            up to that of the batch, whose update alone is made: less memory, the same step (but for layers
            that look across a batch, such as batch normalisation).
        by_row: model and rules look at each row by itself, and rules at each step of a sequence, so that a
            recorded step serves smaller batches, and sequences of which some steps do not count.

    Steps on batches of one shape are recorded and replayed (`pgce.graphs`) where model, heads and rules are
    known to depend on nothing else: those of torch and of this package, and your own which say so.

    Example:
        >>> import torch
        >>> from pgce import Batch, Term, Trainer, heads
        >>> from pgce.optimizer import Optimizer
        >>> model = torch.nn.Linear(4, 2)
        >>> terms = {"label": Term(heads.Categorical())}
        >>> trainer = Trainer(model, terms, Optimizer(model.parameters(), "adam", learning_rate=0.1))
        >>> batch = Batch(torch.eye(4), {"target": torch.tensor([0, 1, 0, 1])})
        >>> losses = [trainer.step(batch)["label"].loss.item() for _ in range(100)]
        >>> losses[-1] < 0.01 < losses[0]
        True
    """

    def __init__(
        self,
        model: nn.Module,
        terms: Mapping[str, Term],
        optimizer: Optimizer,
        micro_batch_size: int | None = None,
        *,
        by_row: bool = False,
    ) -> None:
        if not terms:
            raise ValueError("an objective has at least one term: terms is empty")
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"a piece has at least one row: micro_batch_size is {micro_batch_size}")
        self.micro_batch_size = micro_batch_size
        self.model = model
        self.terms = dict(terms)
        self.optimizer = optimizer
        # Of deferred updates: the losses of the last, and of the last that was finite or first that was not.
        self._last, self._losses = torch.empty(2, 0)
        self._recorder: graphs.Recorder | None = None
        across = any(isinstance(module, _ACROSS) for module in model.modules())
        self._by_row = by_row and not across and all(term.divisor is count for term in terms.values())
        if micro_batch_size is None and not optimizer.scales and self._recordable():
            place = optimizer.device
            if optimizer.defers:
                self._recorder = graphs.Recorder(self._launch, by_row=self._by_row, device=place)
            elif place.type == "cpu" and (self._by_row or processes.size() == 1):
                step = partial(self._backward, looks=False)
                self._recorder = graphs.Recorder(step, by_row=self._by_row, device=place)
        self._recorded, self._changes = tuple(self.terms.values()), 0
        self._undisturbed = False
        self._looked: tuple[object, ...] | None = None  # the state of a model that nobody else changes
        keep_memory()

    def step(self, batch: Batch) -> dict[str, Report]:
        """One update on one batch; the report of each term, as it was before the update.

        Raises:
            FloatingPointError: loss or gradient is not finite; the model is left as it was. (On a GPU that is
                found later, see `look`.)
        """
        if batch.mask is not None and batch.mask.ndim == 1:  # the model need not see rows that don't count
            batch = batch.counted()
        if self.optimizer.deferred:
            return self._deferred(batch)
        taped = self._recorder is not None and not self.optimizer.defers
        reports = self._replayed(batch) if taped else self._backward(batch)
        try:
            self.optimizer.update()
        except FloatingPointError as error:  # the losses are those of this process's rows
            raise self._with_losses(error, [report.loss.item() for report in reports.values()]) from None
        return reports

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Inside, nothing but steps changes model and gradients, which are looked at once, by the first."""
        self._undisturbed = True
        try:
            yield
        finally:
            self._undisturbed, self._looked = False, None

    def look(self) -> None:
        """Wait for deferred updates, if there are any (`train` does so after each round).

        Raises:
            FloatingPointError: loss or gradient was not finite; the model is left as it was before that step.
        """
        self._end(self.optimizer.look)

    def _deferred(self, batch: Batch) -> dict[str, Report]:
        """A step whose end is not waited for."""
        self.optimizer.set_rates()
        if len(self._losses) != len(self.terms):
            place = batch._some.device
            self._last, self._losses = torch.zeros(2, len(self.terms), device=place)
            self._repeated = graphs.Repeated(self._update, place)
        if (state := self._state(batch)) is None:
            reports = self._launch(batch)
        else:
            assert self._recorder is not None  # it has a state
            reports = self._recorder(batch, len(batch), *state)
        self._end(self.optimizer.launched)
        return reports

    def _state(self, batch: Batch) -> tuple[object, ...] | None:
        """What a recorded step depends on beside the batch; None if this is not to be one."""
        if (terms := tuple(self.terms.values())) != self._recorded:  # someone replaced them
            self._recorded, self._changes = terms, self._changes + 1
            if self.optimizer.defers or not self._recordable():
                self._recorder = None
        if self._recorder is None or len(batch) == 0:
            return None
        if batch.mask is not None and (self.optimizer.defers or not self._by_row or self._changes):
            return None  # sequences take long to record: not again whenever terms change
        if (state := self._looked) is None and not torch.is_autocast_enabled(self.optimizer.device.type):
            state = graphs.state_of(self.model)
            if self._undisturbed:
                self._looked = state
        return None if state is None else (state, self.optimizer.constants, self._changes)

    def _recordable(self) -> bool:
        terms = self.terms.values()
        rules = [rule for t in terms for rule in (t.target, t.weight, t.head, t.divisor)]
        counts = all(term.divisor is count for term in terms)
        return graphs.constant(self.model, *rules) and (counts or not self._by_row)

    def _replayed(self, batch: Batch) -> dict[str, Report]:
        """As `_backward`, by a CPU that replays what it can."""
        total = max(batch.total, 1.0) if self._by_row else None
        known = self._looked is not None
        if (state := self._state(batch)) is not None and self._recorder is not None:
            if not known:
                self.optimizer.adopt_gradients()
            try:
                reports = self._recorder(batch, total or len(batch), *state)
            except (IndexError, RuntimeError):  # whose words are those of torch: heads know better ones
                reports = {}
            if reports and all(math.isfinite(report.loss.item()) for report in reports.values()):
                return reports
        return self._backward(batch, total=total)

    def _end(self, end: Callable[[], None]) -> None:
        """The end of a deferred step, or of several; an error tells the losses too."""
        try:
            end()
        except FloatingPointError as error:
            raise self._with_losses(error, self._losses.tolist()) from None

    def _with_losses(self, error: FloatingPointError, losses: list[float]) -> FloatingPointError:
        found = ", ".join(f"{name} {loss:g}" for name, loss in zip(self.terms, losses, strict=True))
        return FloatingPointError(f"{error} (losses: {found})")

    def _launch(
        self, batch: Batch, counts: Tensor | None = None, total: Tensor | None = None
    ) -> dict[str, Report]:
        """All that a step asks of the device, which is not asked what came of it."""
        reports = self._backward(batch, counts, total)
        self._last.copy_(torch.stack([report.loss for report in reports.values()]))
        self.optimizer.adopt_gradients()
        self._repeated(self.optimizer.constants)
        return reports

    def _update(self) -> None:
        """The update from gradients that are there: the same for every batch."""
        torch.where(self.optimizer.not_finite == 0, self._last, self._losses, out=self._losses)
        self.optimizer.launch()

    def _backward(
        self,
        batch: Batch,
        counts: Tensor | None = None,
        total: Tensor | float | None = None,
        *,
        looks: bool = True,
    ) -> dict[str, Report]:
        """The gradient of the objective; the report of each term.

        Args:
            batch: the examples.
            counts: which of its rows count, (B,), or (B, L) of sequences; bool; None is what its mask says.
            total: the divisor, if it is known.
            looks: whether losses may be looked at.
        """
        divisors = self._divisors(batch) if total is None else dict.fromkeys(self.terms, total)
        pieces: list[dict[str, Report]] = []
        with self.optimizer.gathering():
            for piece in batch.split(self.micro_batch_size):
                loss, reports = self._objective(piece, divisors, counts, looks=looks)
                self.optimizer.scaled(loss).backward()
                pieces.append(reports)
        if len(pieces) > 1:
            reports = {name: _joined([piece[name] for piece in pieces], batch) for name in self.terms}
        return reports

    def _divisors(self, batch: Batch) -> dict[str, Tensor | float]:
        """Of the whole batch, in however many pieces and processes it is."""
        if processes.size() == 1:
            return {name: term.divisor(batch) for name, term in self.terms.items()}
        return {
            name: max(batch.total, 1.0)
            if t.divisor is count
            else processes.sum_of([float(t.divisor(batch))])[0]
            for name, t in self.terms.items()
        }

    def _objective(
        self, batch: Batch, divisors: Mapping[str, Tensor | float], counts: Tensor | None, *, looks: bool
    ) -> tuple[Tensor, dict[str, Report]]:
        """The sum of the terms' losses on a batch, or a piece of one, and what each term saw.

        `counts` is the mask of a batch that is recorded: all of it is computed, and what does not count adds
        nothing to the loss.
        """
        with self.optimizer.autocast():
            outputs = self.model(batch.input)
        examples = batch.counted()
        losses: list[Tensor] = []
        reports: dict[str, Report] = {}
        for name, term in self.terms.items():
            logits = outputs if term.output is None else outputs[term.output]
            if batch.mask is not None:
                logits = logits[batch.mask]
            constant = logits.detach()
            written = constant._version
            target = _apply(term.target, constant, examples)
            cross_entropy = term.head.cross_entropy(logits, target)
            seen = examples
            if callable(term.weight) and term.weight is not one:
                seen = examples.with_columns(logits=constant, y=target)
            known = cross_entropy.detach()
            versions = written, known._version
            weight = None if term.weight is one else _apply(term.weight, known, seen)
            if (constant._version, known._version) != versions:  # which the loss is made of
                raise ValueError(f"rules write into nothing that they are given: one of the term {name} did")
            used = weight if counts is None else _of_rows(counts, weight, known)
            divisor = divisors[name]
            counted = 1 if counts is None else counts.ndim  # axes
            if term.divisor is count and cross_entropy.ndim > counted:  # a row has several
                divisor = divisor * math.prod(cross_entropy.shape[counted:])
            loss = objective(cross_entropy, used, divisor, looks=looks)
            loss = loss if term.coefficient == 1 else term.coefficient * loss
            losses.append(loss)
            reports[name] = Report(constant, target, known, weight, loss.detach(), examples)
        return sum(losses[1:], losses[0]), reports


def _of_rows(counts: Tensor, weight: Tensor | None, like: Tensor) -> Tensor:
    """The weights, 1 if None, of the rows that count; 0 of the others."""
    counts = counts.view(*counts.shape, *[1] * (like.ndim - counts.ndim))
    return (torch.ones_like(like) if weight is None else weight).where(counts, 0)


def _joined(pieces: list[Report], batch: Batch) -> Report:
    """One report of the whole batch from those of its pieces."""
    weights = [piece.weight for piece in pieces]
    return Report(
        torch.cat([piece.logits for piece in pieces]),
        torch.cat([piece.target for piece in pieces]),
        torch.cat([piece.cross_entropy for piece in pieces]),
        None if weights[0] is None else torch.cat([w for w in weights if w is not None]),
        torch.stack([piece.loss for piece in pieces]).sum(),
        batch.counted(),
    )


Value = TypeVar("Value", Tensor, Tensor | None)


def _apply(rule: str | Callable[[Tensor, Batch], Value], given: Tensor, batch: Batch) -> Value:
    if isinstance(rule, str):
        return batch[rule]
    with torch.no_grad():
        return rule(given, batch)


Reports = dict[str, Report]


def train(
    trainer: Trainer,
    rounds: Iterable[Iterable[Batch]],
    stop: Callable[[Reports], bool | None] | None = None,
    after: Callable[[int, Reports], bool | None] | None = None,
) -> None:
    """The one loop: every round is some batches, every batch is a step.

    Within a round only steps change the model and its gradients: to freeze a layer, say, is for `after`.

    Args:
        trainer: takes the steps.
        rounds: an epoch of a data set each, or one rollout each (in so many passes as the learner makes).
        stop: sees the reports of a step; True ends the round (PPO's limit on the KL divergence, say), None
            is what all processes say who need not hear each other.
        after: called after round n = 0, 1, … with the reports of its last step (none if it was empty): logs,
            evaluates, saves; True ends training.

    Example:
        >>> import torch
        >>> from pgce import Batch, Term, Trainer, heads, train
        >>> from pgce.optimizer import Optimizer
        >>> model = torch.nn.Linear(4, 2)
        >>> trainer = Trainer(model, {"label": Term(heads.Categorical())}, Optimizer(model.parameters()))
        >>> batch = Batch(torch.eye(4), {"target": torch.tensor([0, 1, 0, 1])})
        >>> train(trainer, ([batch] for epoch in range(3)), after=lambda n, reports: print("epoch", n))
        epoch 0
        epoch 1
        epoch 2
    """
    for n, batches in enumerate(rounds):
        reports: Reports = {}
        with trainer.undisturbed():
            for batch in batches:
                reports = trainer.step(batch)
                ends = None if stop is None else stop(reports)
                if ends is not None and processes.any_of(ends):
                    break
        trainer.look()
        if after is not None and processes.any_of(bool(after(n, reports))):
            break

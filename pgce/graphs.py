"""Steps recorded once and replayed for batches of the same shape, by a CUDA graph or on a CPU by a tape.

A small network's step takes a device a fraction of the time that Python takes to ask for it, kernel by
kernel. A recording is asked for at once. It holds its numbers and choices, but for what tensors hold: so only
that is recorded which is known to depend on nothing else (`constant`), and which does not ask the device for
numbers. Of other models' steps a GPU records the update alone.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from pgce.heads import Transformed
from pgce.perceptrons import has_hooks
from pgce.tapes import Tape, bare
from pgce.weights import Product

if TYPE_CHECKING:
    from pgce.trainer import Batch, Report

__all__ = ["Recorder", "Repeated", "Replayed", "constant", "filled_size", "state_of"]

Step = Callable[..., "dict[str, Report]"]
"""(batch, which rows count, how many do in all) -> reports, without a look at what the device computes.

The last two are left out where all rows of the batch count, and nothing else.
"""

_WAITS = "called a synchronizing CUDA operation"  # as torch says it
_WATCHED = 2  # steps on batches of a shape, before its recording, in which nothing must wait for the device
_MOST = 8  # recordings: of further shapes a GPU makes none, and a CPU drops the oldest
_KNOWN = 1_000  # shapes, and other things that steps depend on, of which it is known that they were seen


class Recorder:
    """Takes a learner's steps: the first on batches of a shape one by one, later ones by replay.

    A GPU records nothing of a step that waits for the device, since what it would read is of one batch. A CPU
    records the first step while it takes it, unless that needs more time than asking for it. Recorded or not,
    a CPU computes the same from the same batch, bit by bit.

    Args:
        step: all that a step asks of the device.
        by_row: a batch may be filled up with rows that do not count: then a recording serves all sizes up to
            its own.
        device: a GPU, or the CPU.
    """

    def __init__(self, step: Step, *, by_row: bool, device: torch.device) -> None:
        self.possible = True
        self._step, self._by_row, self._on_gpu = step, by_row, device.type == "cuda"
        self._seen: dict[Any, int] = {}
        self._recordings: dict[Any, _Graph | _Taped] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._on_gpu else None  # no two replay at a time

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": {}, "_recordings": {}}  # which are of these tensors only

    def __call__(self, batch: Batch, total: float, *state: Any) -> dict[str, Report]:
        """The reports of a step on `batch`.

        Args:
            batch: the examples.
            total: how many count in all processes, by which means are divided if `by_row`.
            state: what else the step depends on.
        """
        size = filled_size(len(batch)) if self._by_row else len(batch)
        key = size, batch.kind, batch.mask is None, state
        if (recording := self._recordings.get(key)) is not None:
            return recording(batch, total)
        if len(self._seen) == _KNOWN:
            self._seen.clear()
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if not self._on_gpu:
            return self._by_tape(batch, total, size, key if self.possible and seen == 1 else None)
        if not self.possible:
            return self._step(batch)
        if seen <= _WATCHED:
            return self._watched(batch)
        if len(self._recordings) == _MOST:
            return self._step(batch)
        try:
            recording = self._recordings[key] = _Graph(self._step, batch, size, self._by_row, self._pool)
        except RuntimeError:  # nothing was computed: what was to be recorded cannot be
            self.possible = False
            return self._step(batch)
        return recording(batch, total)

    def _by_tape(self, batch: Batch, total: float, size: int, key: Any) -> dict[str, Report]:
        """A step as it is replayed, recorded if there is a key for it."""
        if key is None and not self._by_row:
            return self._step(batch)
        recording = _Taped(self._step, batch, size, self._by_row)
        tape = None if key is None else Tape()
        reports = recording.first(total, tape)
        if tape is not None:
            self.possible = tape.possible
            if tape.whole:
                self._recordings[key] = recording
                if len(self._recordings) > _MOST:
                    del self._recordings[next(iter(self._recordings))]  # the oldest
        return reports

    def _watched(self, batch: Batch) -> dict[str, Report]:
        """A step; if something in it waits for the device, no step is recorded."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                reports = self._step(batch)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for each in found:
            if _WAITS in str(each.message):
                self.possible = False
            elif not str(each.message).startswith("Synchronization debug mode is a prototype"):
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        return reports


class Replayed:
    """A function of tensors, without gradients, that a CPU replays.

    What it gives, and random numbers it draws, are what the function gives, bit by bit; it holds until the
    next call.

    Args:
        function: tensors -> tensors.
        parts: what it calls: it is replayed if all are `constant`.

    Example:
        >>> import torch
        >>> from pgce.graphs import Replayed
        >>> network = torch.nn.Linear(2, 1, bias=False)
        >>> double = Replayed(lambda x: (network(2 * x),), network)
        >>> bool((double(torch.ones(3, 2))[0] == network(2 * torch.ones(3, 2))).all())
        True
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], *parts: Any) -> None:
        self._function, self._parts = function, parts
        self._state: object = None
        self._possible = True  # with this state
        self._play: Callable[[], None] | None = None
        self._given: list[Tensor] = []
        self._kinds: object = None
        self._results: Sequence[Tensor] = ()

    def look(self) -> None:
        """Note what the parts have become. Whoever changes them calls it before the next call."""
        states = [state_of(part) for part in self._parts if isinstance(part, nn.Module)]
        state = None if None in states or not constant(*self._parts) else tuple(states)
        if state != self._state:
            self._state, self._possible, self._play = state, True, None

    def __call__(self, *given: Tensor) -> Sequence[Tensor]:
        """What the function gives for these."""
        if self._state is None or not self._possible or given[0].device.type != "cpu":
            return self._function(*given)
        kinds = [(value.shape, value.dtype) for value in given]
        if self._play is None or self._kinds != kinds:
            self._kinds, self._play = kinds, None
            with torch.inference_mode(False), torch.no_grad():
                self._given = [value.clone() for value in given]
                with Tape() as tape:
                    results = self._function(*self._given)
                if not tape.whole:
                    self._possible = False
                    return results
                self._play, self._results = tape.close(results)
            return results
        for place, value in zip(self._given, given, strict=True):
            place.copy_(value)
        self._play()
        return self._results


class Repeated:
    """What a device does again and again on the same tensors: a GPU once as it is, then by replay.

    Within a recording of more it is as it is.

    Args:
        act: asks it of the device, without a look at what that computes.
        device: other devices than GPUs do it as it is.
    """

    def __init__(self, act: Callable[[], None], device: torch.device) -> None:
        self._act, self._replays = act, device.type == "cuda"
        self._state: object = None
        self._known = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, state: object) -> None:
        """Do it; `state` is what it depends on beside tensors."""
        if self._state != state:
            self._state, self._graph, self._known = state, None, False
        if not self._replays or torch.cuda.is_current_stream_capturing():
            self._act()
        elif self._graph is not None:
            self._graph.replay()
        elif not self._known:
            self._known = True
            self._act()
        else:
            graph = torch.cuda.CUDAGraph()
            try:
                with _recording(graph):
                    self._act()
            except RuntimeError:  # nothing was done: what was to be recorded cannot be
                self._replays = False
                self._act()
            else:
                self._graph = graph
                graph.replay()


class _Recording:
    """A step on tensors that stay where they are, and are kept as long; each batch is copied into them."""

    def __init__(self, step: Step, batch: Batch, size: int, by_row: bool) -> None:
        given, self._size = batch.tensors, size
        rows = torch.arange(size, device=next(iter(given.values())).device)
        repeated = rows % len(batch)
        self._tensors = {name: value[repeated] for name, value in given.items()}
        self._mask = None if batch.mask is None else batch.mask[repeated]
        self._places: dict[int, dict[tuple[str, str | None], Tensor]] = {}  # by the number of rows
        self._told = len(batch), float(len(batch))
        self._counts = rows < len(batch)
        self._total = torch.tensor(float(len(batch)), device=rows.device)
        self._static = batch.with_tensors(self._tensors)
        self._step, self._by_row = step, by_row

    def _fill(self, batch: Batch, total: float) -> None:
        source, index = batch.origin
        rows = len(batch)
        if (places := self._places.get(rows)) is None:
            places = self._places[rows] = {name: place[:rows] for name, place in self._tensors.items()}
        for name, value in source.tensors.items():
            place = places[name]
            if index is None:
                place.copy_(value, non_blocking=True)
            else:
                torch.index_select(value, 0, index, out=place)
        if self._mask is not None and batch.mask is not None:
            self._mask[:rows].copy_(batch.mask)
        self._tell(rows, total)

    def _tell(self, rows: int, total: float) -> None:
        if self._told != (rows, total):
            self._told = rows, total
            self._counts[:rows] = True
            self._counts[rows:] = False
            self._total.fill_(total)

    def _take(self) -> dict[str, Report]:
        if self._by_row:
            counts = self._counts
            if self._mask is not None:
                counts = counts.unsqueeze(1) & self._mask
            return self._step(self._static, counts, self._total)
        return self._step(self._static)


class _Graph(_Recording):
    """By a CUDA graph."""

    def __init__(self, step: Step, batch: Batch, size: int, by_row: bool, pool: Any) -> None:
        super().__init__(step, batch, size, by_row)
        self._graph = torch.cuda.CUDAGraph()
        with _recording(self._graph, pool):
            self._reports = self._take()

    def __call__(self, batch: Batch, total: float) -> dict[str, Report]:
        """The step on a batch."""
        self._fill(batch, total)
        self._graph.replay()
        return {
            name: replace(_cut(report, batch, slice(len(batch))), loss=report.loss.clone())
            for name, report in self._reports.items()
        }


class _Taped(_Recording):
    """By a CPU's tape."""

    def first(self, total: float, tape: Tape | None) -> dict[str, Report]:
        """The step on the batch that this was made for, taken down on a tape."""
        self._tell(rows := self._told[0], total)
        with tape or nullcontext():
            taken = self._take()
        if tape is not None and tape.whole:
            seen = [value for report in taken.values() for value in _fields(report).values()]
            self._play, places = tape.close(seen)
            place: Iterator[Any] = iter(places)
            self._reports = {
                name: replace(report, **{field: next(place) for field in _fields(report)})
                for name, report in taken.items()
            }
            self._cuts: dict[int, dict[str, Report]] = {}
        return self._cut(taken, rows)

    def __call__(self, batch: Batch, total: float) -> dict[str, Report]:
        """The step on a batch."""
        with bare():
            self._fill(batch, total)
        self._play()
        rows = len(batch)
        if self._mask is not None:
            return self._cut(self._reports, rows)
        if rows not in self._cuts:
            self._cuts[rows] = self._cut(self._reports, rows)
        return self._cuts[rows]

    def _cut(self, reports: dict[str, Report], rows: int) -> dict[str, Report]:
        some = slice(rows) if self._mask is None else self._mask & self._counts.unsqueeze(1)
        batch = self._static.rows(some)
        return {name: _cut(report, batch, some) for name, report in reports.items()}


@contextmanager
def _recording(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    """Inside, what is asked of the device is recorded, not done.

    Python collects no garbage there: another recording in it, torn down, would spoil this one.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # others use the device
            yield
    finally:
        if collects:
            gc.enable()


def _fields(report: Report) -> dict[str, Any]:
    """The tensors of a report, by name."""
    return {name: value for name, value in vars(report).items() if isinstance(value, Tensor)}


def _cut(report: Report, batch: Batch, some: slice | Tensor) -> Report:
    """What was reported of the rows that count, which are those of the batch."""
    return replace(
        report,
        logits=report.logits[some],
        target=report.target[some],
        cross_entropy=report.cross_entropy[some],
        weight=None if report.weight is None else report.weight[some],
        batch=batch,
    )


def filled_size(rows: int) -> int:
    """The rows of the recording that serves so many: up to an eighth more, so that few serve all.

    Example:
        >>> from pgce.graphs import filled_size
        >>> [filled_size(rows) for rows in (1, 9, 488, 500, 512, 513)]
        [1, 9, 512, 512, 512, 576]
    """
    step = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // step) * step


def constant(*parts: Any) -> bool:
    """Whether models, heads and rules are known to compute the same of the same tensors whenever called.

    Those are known whose code is torch's or this package's, without hooks, and not compiled. What others read
    beside their arguments, nobody can tell but their authors, by an attribute: `recordable = True` of a
    module's class, or of a function. In an agent it also says that each row is looked at by itself.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from pgce import heads, weights
        >>> from pgce.graphs import constant
        >>> constant(torch.nn.Linear(2, 2), heads.Categorical(), "action", partial(weights.focal, gamma=1.0))
        True
        >>> constant(print)
        False
    """
    return all(_is_constant(part) for part in parts)


def _is_constant(part: Any) -> bool:
    if isinstance(part, (str, int, float, Tensor, type(None))):
        return True
    if isinstance(part, tuple):
        return constant(*part)
    if isinstance(part, partial):
        return constant(part.func, *part.args, *part.keywords.values())
    if isinstance(part, Product):
        return constant(*part.rules)
    if isinstance(part, Transformed):
        return constant(part.transform, part.head)
    if isinstance(part, nn.Module):
        return all(_known(type(module)) and not has_hooks(module) for module in part.modules())
    own = part if hasattr(part, "__qualname__") else type(part)  # a function, or an object that is called
    return _known(own)


def state_of(model: nn.Module) -> tuple[object, ...] | None:
    """What a recording of a model depends on beside what its tensors hold.

    None if hooks must be called, or a buffer is sparse, which has no one memory.

    Example:
        >>> import torch
        >>> from pgce.graphs import state_of
        >>> model = torch.nn.Linear(2, 2)
        >>> before = state_of(model)
        >>> before == state_of(model), before == state_of(model.eval())
        (True, False)
        >>> handle = model.register_forward_hook(print)
        >>> print(state_of(model))
        None
    """
    if _has_any_global_hook():
        return None
    modules, found = [model], list[object]()
    for module in modules:  # which grow meanwhile
        if has_hooks(module):
            return None
        own = module.__dict__  # sooner told than attributes
        kind = type(module)
        if (names := _SETTINGS.get(kind)) is None:
            names = _SETTINGS[kind] = [n for n in own.keys() - _TORCHS if isinstance(own[n], Hashable)]
        found += kind, own["training"]
        if names:
            found += map(own.get, names)
        for value in own["_parameters"].values():
            if value is not None:
                if value._backward_hooks or value._post_accumulate_grad_hooks:
                    return None
                found += value.data_ptr(), value.requires_grad
        for value in own["_buffers"].values():
            if value is not None:
                if value.layout is not torch.strided:
                    return None
                found.append(value.data_ptr())
        if children := own["_modules"]:
            modules += [child for child in children.values() if child is not None]
    state = tuple(found)
    try:
        hash(state)
    except TypeError:  # a setting is a list, say, that was hashable in the first layer of its class
        state = tuple(map(repr, state))
    return state


_SETTINGS: dict[type, list[str]] = {}
"""Names of attributes that are neither parts nor those of every module, by class."""
_TORCHS = frozenset(nn.Module().__dict__)


def _known(code: Any) -> bool:
    # A function that wraps another has its module's name, by functools.wraps, but not its globals.
    home = getattr(code, "__module__", "")
    if isinstance(code, FunctionType):
        home = code.__globals__.get("__name__")
    own = str(home).partition(".")[0] in ("torch", "pgce")
    return own or getattr(code, "recordable", False) is True

"""Steps that a GPU repeats by itself: recorded once as a CUDA graph, replayed for batches of the same shape.

A small network's step takes a GPU a fraction of the time that Python takes to ask for it, kernel by kernel.
A recording is asked for at once. It holds its numbers and choices, but for what tensors hold: so only that is
recorded which is known to depend on nothing else (`constant`), and which does not ask the device for numbers.
Of other models' steps the update alone is recorded.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pgce.heads import Transformed
from pgce.weights import Product

if TYPE_CHECKING:
    from pgce.trainer import Batch, Report

__all__ = ["Recorder", "Repeated", "constant", "filled_size"]

Step = Callable[..., "dict[str, Report]"]
"""(batch, which rows count or none) -> reports, without a look at what the device computes."""

_WAITS = "called a synchronizing CUDA operation"  # as torch says it
_WATCHED = 2  # steps on batches of a shape, before its recording, in which nothing must wait for the device
_MOST = 8  # recordings; batches of further shapes are steps as any


class Recorder:
    """Takes a learner's steps: the first on batches of a shape one by one, later ones by replay.

    Nothing is recorded of a step that waits for the device, since what it would read is of one batch.

    Args:
        step: all that a step asks of the device.
        by_row: a batch may be filled up with rows that do not count: then a recording serves all sizes up to
            its own.
    """

    def __init__(self, step: Step, *, by_row: bool) -> None:
        self.possible = True
        self._step, self._by_row = step, by_row
        self._seen: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()  # for all: no two are replayed at a time

    def __call__(self, batch: Batch, *state: Any) -> dict[str, Report]:
        """The reports of a step on `batch`; `state` is what else the step depends on."""
        if not self.possible or len(batch) == 0 or batch.mask is not None:
            return self._step(batch)
        size = filled_size(len(batch)) if self._by_row else len(batch)
        key = (
            size,
            state,
            *((name, value.shape[1:], value.dtype) for name, value in _tensors(batch).items()),
        )
        if (recording := self._recordings.get(key)) is not None:
            return recording(batch)
        seen = self._seen[key] = self._seen.get(key, 0) + 1
        if seen <= _WATCHED:
            return self._watched(batch)
        if len(self._recordings) == _MOST:
            return self._step(batch)
        try:
            recording = self._recordings[key] = _Recording(self._step, batch, size, self._by_row, self._pool)
        except RuntimeError:  # nothing was computed: what was to be recorded cannot be
            self.possible = False
            return self._step(batch)
        return recording(batch)

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

    def __init__(self, step: Step, batch: Batch, size: int, by_row: bool, pool: Any) -> None:
        given = _tensors(batch)
        self._rows = torch.arange(size, device=next(iter(given.values())).device)
        self._tensors = {name: value[self._rows % len(batch)] for name, value in given.items()}
        self._number = torch.full((), len(batch), device=self._rows.device)
        columns = {name: self._tensors["column", name] for name in batch.columns}
        inputs: Any = self._tensors.get(("input", None))
        if isinstance(batch.input, dict):
            inputs = {name: self._tensors["input", name] for name in batch.input}
        static = replace(batch, input=inputs, columns=columns)
        self._graph = torch.cuda.CUDAGraph()
        with _recording(self._graph, pool):
            self._reports = step(static, self._rows < self._number) if by_row else step(static)

    def __call__(self, batch: Batch) -> dict[str, Report]:
        """The step on a batch."""
        rows = len(batch)
        for name, value in _tensors(batch).items():
            self._tensors[name][:rows].copy_(value, non_blocking=True)
        self._number.fill_(rows)
        self._graph.replay()
        return {name: _cut(report, batch) for name, report in self._reports.items()}


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


def _cut(report: Report, batch: Batch) -> Report:
    """What was reported of the rows that count."""
    some = slice(len(batch))
    return replace(
        report,
        logits=report.logits[some],
        target=report.target[some],
        cross_entropy=report.cross_entropy[some],
        weight=None if report.weight is None else report.weight[some],
        loss=report.loss.clone(),
        batch=batch,
    )


def _tensors(batch: Batch) -> dict[tuple[str, str | None], Tensor]:
    """All tensors of a batch but the mask."""
    inputs: Mapping[Any, Tensor] = batch.input if isinstance(batch.input, dict) else {None: batch.input}
    given = {("input", name): value for name, value in inputs.items()}
    return given | {("column", name): value for name, value in batch.columns.items()}


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
    module's class, or of a function.

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
    if isinstance(part, partial):
        return constant(part.func, *part.args, *part.keywords.values())
    if isinstance(part, Product):
        return constant(*part.rules)
    if isinstance(part, Transformed):
        return constant(part.transform, part.head)
    if isinstance(part, nn.Module):
        return all(map(_is_plain, part.modules()))
    own = part if hasattr(part, "__qualname__") else type(part)  # a function, or an object that is called
    return _known(own)


def _is_plain(module: nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    changed = hooks or module._backward_pre_hooks or module._compiled_call_impl or "forward" in vars(module)
    return _known(type(module)) and not changed


def _known(code: Any) -> bool:
    own = str(getattr(code, "__module__", "")).partition(".")[0] in ("torch", "pgce")
    return own or getattr(code, "recordable", False) is True

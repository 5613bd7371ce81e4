"""What a CPU computes again and again on the same tensors: taken down once, played without Python's share.

A small network's step takes torch and Python longer to say than a CPU to compute: modules, autograd and
checks are passed through for every product. A tape is the plain list of operations that were left of them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Tape", "bare", "once"]

_MOST = 64 * 2**20  # bytes
_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_PLACE = {"dtype", "layout", "device", "pin_memory"}  # of tensors made from nothing; those are made already
# Operations that give nothing, and the same whatever tensors hold.
_EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
_CONSTANT = {"arange", "full", "full_like", "ones", "ones_like", "scalar_tensor", "zeros", "zeros_like"}
# Operations that torch's Python functions of that name do with the same arguments, called faster.
_EACH = {"add", "div", "exp", "ge", "gt", "le", "log", "lt", "mul", "neg", "sigmoid", "sub", "where"}
_DIRECT = _EACH | {"_log_softmax", "_log_softmax_backward_data", "addmm", "argmax", "bmm", "dot", "mm"}
_IN_PLACE = _EACH | {"tanh_backward"}  # may leave each number where they read it

bare: Any = torch._C._AutoDispatchBelowADInplaceOrView
"""A context in which torch goes straight to its kernels: past autograd, and past the count of writes."""


class Tape(TorchDispatchMode):
    """Inside, torch's operations on a CPU are computed and taken down; `close` makes them callable.

    Tensors that were there before, such as parameters, their gradients and inputs, are read and written where
    they are. All others lie in memory of the tape, which they share as soon as one is not used any more. What
    Python decided is kept, and so are its numbers; so nothing may have been decided by what a tensor holds.

    Attributes:
        possible: whether nothing was seen that depends on what a tensor holds.
        whole: whether all is on the tape, which ends where operations give more than 64 MiB: those take more
            time than what leads to them.

    Example:
        >>> import torch
        >>> from pgce.tapes import Tape
        >>> x = torch.tensor([1.0, 2.0])
        >>> with Tape() as tape:
        ...     total = (2 * x).sum()
        >>> replay, (again,) = tape.close([total])
        >>> x.fill_(5.0)
        tensor([5., 5.])
        >>> replay()
        >>> total.item(), again.item()
        (6.0, 20.0)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.possible = self.whole = True
        self._operations: list[_Operation] = []
        self._bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """To skip torch's compiler is to load it, which takes seconds; it does not see what is recorded."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and take down."""
        result = func(*args, **(kwargs or {}))
        if self.whole and not _aside.now:
            kind, given = _kind(func), _tensors(args, kwargs)
            told = result if isinstance(result, (tuple, list)) else [result]
            blind = not given  # it tells of types, say
            plain = all(map(_is_plain, given)) and all(v is None or _is_plain(v) for v in told)
            self.possible = (blind or plain) and not _depends(func, args)
            if self.possible:
                outputs = [value.detach() for value in _tensors(result)]  # autograd may still reuse it
                if kind.owns:
                    self._bytes += sum(value.nbytes for value in outputs)
                homes = frozenset(map(_home, given)), frozenset(map(_home, outputs))
                self._operations.append(_Operation(func, kind, args, kwargs or {}, outputs, given, *homes))
            self.whole = self.possible and self._bytes <= _MOST
            if not self.whole:
                self._operations.clear()
        return result

    def close(self, results: Iterable[Tensor]) -> tuple[Callable[[], None], list[Tensor]]:
        """What plays the tape, and where it leaves the results.

        Args:
            results: of what was taken down; or tensors that were there before, which stay.
        """
        results = list(results)
        written = set[int]()
        for op in self._operations:
            if op.kind.writes:
                written |= op.made.union(map(_home, _tensors(_written(op))))
        constants = set[int]()
        for op in self._operations:
            if op.kind.name in _CONSTANT or (op.read and op.read <= constants and not op.kind.draws):
                constants |= op.made - written
        memory = _Memory(self._operations, {_home(value) for value in results}, constants)
        calls: list[Callable[[], object]] = []
        for n, op in enumerate(self._operations):
            memory.begin(n, op)
            # Views are there already, and empty memory is: the next operation writes it.
            if op.kind.writes or not (op.made <= op.read or op.kind.name in _EMPTY):
                call = _call(op, memory.placed(op.args), memory.placed(op.kwargs), memory.placed(op.outputs))
                if op.made and op.made <= constants:
                    call()
                else:
                    calls.append(call)
            memory.end(n)
        self._operations = []
        played = tuple(calls)

        def play() -> None:
            with bare():
                for call in played:
                    call()

        return play, [memory.placed(value) for value in results]


class _Aside(threading.local):
    now = False  # whether what this thread computes is not taken down


_aside = _Aside()


@contextmanager
def once() -> Iterator[None]:
    """Inside, what a step looks at is not taken down: it is looked at when the step is recorded, not again.

    That is for checks: of what is the same for all batches, or of what torch itself refuses, if later. What
    is computed here is not used outside.

    Example:
        >>> import torch
        >>> from pgce.tapes import Tape, once
        >>> x = torch.tensor([1.0])
        >>> with Tape() as tape:
        ...     with once():
        ...         positive = bool(x > 0)
        ...     y = 2 * x
        >>> tape.whole
        True
    """
    before, _aside.now = _aside.now, True
    try:
        yield
    finally:
        _aside.now = before


class _Kind(NamedTuple):
    """What is known of all operations by one function."""

    name: str
    writes: bool  # to what it is given
    owns: bool  # what it gives has memory of its own
    draws: bool  # and is something else whenever it is called
    depends: bool  # or it, or its shape, depends on numbers that a tensor holds


@cache
def _kind(func: Any) -> _Kind:
    schema = func._schema
    owns = all(value.alias_info is None for value in schema.returns)
    draws = torch.Tag.nondeterministic_seeded in func.tags
    depends = not _DATA.isdisjoint(func.tags)
    return _Kind(func.overloadpacket.__name__, schema.is_mutable, owns, draws, depends)


class _Operation(NamedTuple):
    """One that was computed: by what, of what, and what it gave; `read` and `made` are storages of that."""

    func: Any
    kind: _Kind
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    given: list[Tensor]
    read: frozenset[int]
    made: frozenset[int]


class _Memory:
    """Where a tape's tensors lie: those that it makes in memory that is used anew after their last use."""

    def __init__(self, operations: list[_Operation], results: set[int], constants: set[int]) -> None:
        known = set[int]()
        last: dict[int, int] = {}  # by storage, the last operation that uses it
        self._made: dict[int, dict[int, int]] = {}  # by operation, storages and their bytes
        for n, op in enumerate(operations):
            known |= op.read  # made by an operation, or there before
            if not op.made <= known:
                new = (value for value in op.outputs if _home(value) not in known)
                self._made[n] = {_home(value): value.untyped_storage().nbytes() for value in new}
                known |= op.made
            last.update(dict.fromkeys(op.read | op.made, n))
        self._over: dict[int, list[int]] = defaultdict(list)  # by operation, storages not used after it
        for home in last.keys() - results - constants:
            self._over[last[home]].append(home)
        self._constants = constants  # whose memory was nobody's before
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._free: dict[int, list[torch.UntypedStorage]] = defaultdict(list)

    def begin(self, n: int, op: _Operation) -> None:
        """Give memory to what operation n makes: if it can, where it reads what nobody else will."""
        for home, size in self._made.get(n, {}).items():
            if (read := self._read_last(n, op)) is not None:
                self._over[n].remove(read)
                self._storages[home] = self._storages[read]
                continue
            free = [] if home in self._constants else self._free[size]
            self._storages[home] = free.pop() if free else torch.UntypedStorage(size)

    def _read_last(self, n: int, op: _Operation) -> int | None:
        """A storage of which each number may be overwritten by what is computed of it."""
        if op.kind.name not in _IN_PLACE or not op.made.isdisjoint(self._constants):
            return None
        over = [home for home in self._over[n] if home in self._storages and home in op.read]
        wanted = _layout(op.outputs[0])
        return next((h for h in over if all(_layout(v) == wanted for v in op.given if _home(v) == h)), None)

    def end(self, n: int) -> None:
        """Take the memory of what operation n was the last to use."""
        for home in self._over[n]:
            if (storage := self._storages.get(home)) is not None:
                self._free[storage.nbytes()].append(storage)

    def placed(self, value: Any) -> Any:
        """The same with every tensor where it lies while the tape plays."""
        if isinstance(value, (tuple, list)):
            return type(value)(self.placed(each) for each in value)
        if isinstance(value, dict):
            return {name: self.placed(each) for name, each in value.items()}
        if not isinstance(value, Tensor):
            return value
        storage = self._storages.get(_home(value))
        if storage is None:
            return value.detach()
        place = value.storage_offset(), value.shape, value.stride()
        return torch.empty(0, dtype=value.dtype).set_(storage, *place)


def _home(value: Tensor) -> int:
    """The storage of a tensor; views share one."""
    return cast("int", value.untyped_storage()._cdata)


def _layout(value: Tensor) -> tuple[Any, ...]:
    """How a tensor lies in its storage, and how long that is."""
    place = value.shape, value.stride(), value.storage_offset()
    return value.dtype, *place, value.untyped_storage().nbytes()


def _tensors(*values: Any) -> list[Tensor]:
    """All tensors among arguments."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += _tensors(*value)
        elif isinstance(value, dict):
            found += _tensors(*value.values())
    return found


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor that has a memory, and nothing else."""
    return type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided


def _depends(func: Any, args: Any) -> bool:
    """Whether what it gives, or its shape, depends on numbers that a tensor holds."""
    if func is torch.ops.aten.index.Tensor:  # by numbers its shape is known, by booleans not
        return any(value.dtype in (torch.bool, torch.uint8) for value in _tensors(args[1]))
    return _kind(func).depends


def _written(op: _Operation) -> list[Any]:
    """The arguments that an operation writes."""
    arguments = op.func._schema.arguments
    given = {**dict(zip((a.name for a in arguments), op.args, strict=False)), **op.kwargs}
    marked = [a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return [given[name] for name in marked if name in given]


def _call(op: _Operation, args: Any, kwargs: Any, outputs: list[Tensor]) -> Callable[[], object]:
    """What does an operation once more, and leaves its outputs where they are; all lie in their places."""
    func, name = op.func, op.kind.name
    if func is torch.ops.aten._foreach_add_.Scalar and len(args[0]) == 1:  # of an optimizer's steps
        return partial(args[0][0].add_, args[1])
    if op.kind.writes and not (outputs and op.kind.owns):
        own = getattr(Tensor, name, None) if name.endswith("_") and not name.startswith("_") else None
        return partial(own or func._op, *args, **kwargs)
    if name == "mm" and args[0].shape[1] == 1:  # sums of one product each
        return partial(torch.mul, *args, out=outputs[0])
    if (name in _DIRECT or func is torch.ops.aten.sum.dim_IntList) and len(outputs) == 1:
        args = _scalars_placed(args) if name in _EACH else args
        return partial(getattr(torch, name), *args, **kwargs, out=outputs[0])
    out = _out(func)
    if out is not None and len(out[1]) == len(outputs):
        overload, names, read = out
        known = {key: value for key, value in kwargs.items() if key in read}
        return partial(overload._op, *args, **known, **dict(zip(names, outputs, strict=True)))
    return partial(_copied, func, args, kwargs, outputs)


@cache
def _out(func: Any) -> tuple[Any, list[str], frozenset[str]] | None:
    """The same operation into memory that is given: it, the names of that, and those of what it reads."""
    for overload in (getattr(func.overloadpacket, each) for each in func.overloadpacket.overloads()):
        arguments = overload._schema.arguments
        names = [a.name for a in arguments if a.is_out]
        read = {a.name: str(a.type) for a in arguments if not a.is_out}
        wanted = {
            a.name: str(a.type) for a in func._schema.arguments if a.name in read or a.name not in _PLACE
        }
        if names and read == wanted and not func._schema.is_mutable:
            return overload, names, frozenset(read)
    return None


def _scalars_placed(args: Any) -> Any:
    """Numbers as tensors, which torch makes of them whenever it is called."""
    first = args[0]
    if not isinstance(first, Tensor) or first.dtype not in (torch.float32, torch.float64):
        return args
    return [torch.tensor(a, dtype=first.dtype) if type(a) in (int, float) else a for a in args]


def _copied(func: Any, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
    for value, output in zip(_tensors(func(*args, **kwargs)), outputs, strict=True):
        output.copy_(value)

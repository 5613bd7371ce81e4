"""Data sets of every kind as batches: arrays, tensors, torch's Dataset and DataLoader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pgce.trainer import Batch, Input

__all__ = ["Array", "Data", "Inputs", "as_batch", "as_source", "as_tensor", "ordered", "pieces"]

Array = Tensor | NDArray[Any]
Inputs = Array | Mapping[str, Array]
"""What the model is called with: one array, or several by name."""
Data = (
    Batch
    | Mapping[str, Inputs]
    | tuple[Inputs, Array]
    | tuple[Inputs, Array, Array]
    | Dataset[Any]
    | DataLoader[Any]
)
"""(inputs, targets) or (inputs, targets, sample_weight); a mapping with "input" and columns; a `Batch`; or
torch's Dataset of such tuples or mappings, or its DataLoader of these, or of a `Batch` each. Inputs are an
array, or a mapping of arrays."""

_COLUMNS = ("input", "target", "sample_weight")


def as_tensor(array: Array) -> Tensor:
    """A tensor as it is; an array as a tensor, float64 as float32, and uint16 to uint64 as int64.

    Example:
        >>> import numpy as np
        >>> from pgce.data import as_tensor
        >>> as_tensor(np.zeros(2)).dtype
        torch.float32
    """
    if isinstance(array, Tensor):
        return array
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"data are numbers: the array has dtype {values.dtype}")
    dtype: Any = values.dtype.newbyteorder("=")
    if dtype == np.float64:
        dtype = np.float32
    elif dtype in (np.uint16, np.uint32, np.uint64):  # with which torch can do next to nothing
        dtype = np.int64
    # torch warns of memory that is not to be written
    return torch.as_tensor(ordered(np.require(values, dtype, "W")))


def ordered(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy of one that runs backwards through memory, which torch does not take.

    Example:
        >>> import numpy as np
        >>> from pgce.data import ordered
        >>> ordered(np.arange(3)[::-1]).strides
        (8,)
    """
    return array.copy() if any(stride < 0 for stride in array.strides) else array


def as_batch(data: Any, device: torch.device | None = None) -> Batch:
    """Examples in memory as one batch with columns "target" and, where given, "sample_weight", on `device`.

    Args:
        data: any `Data` but a loader. Float64 arrays become float32; float64 tensors stay.
        device: None is the CPU.

    Raises:
        ValueError: no example, or different numbers of them.

    Example:
        >>> import numpy as np
        >>> from pgce.data import as_batch
        >>> as_batch((np.zeros((5, 3)), np.arange(5)))["target"]
        tensor([0, 1, 2, 3, 4])
        >>> as_batch({"input": {"age": np.arange(2), "height": np.ones(2)}, "target": np.zeros(2)}).input
        {'age': tensor([0, 1]), 'height': tensor([1., 1.])}
    """
    device = device or torch.device("cpu")
    if isinstance(data, TensorDataset):
        data = data.tensors
    if isinstance(data, Sequence):
        if len(data) not in (2, 3):
            raise ValueError(
                f"data are (inputs, targets) or (inputs, targets, sample_weight): there are {len(data)}"
            )
        data = dict(zip(_COLUMNS, data, strict=False))
    if isinstance(data, Mapping):
        if "input" not in data:
            raise ValueError(f'data by name have an "input": there are {", ".join(map(repr, data))}')
        columns = {name: as_tensor(array) for name, array in data.items() if name != "input"}
        data = Batch(_as_input(data["input"]), columns)
    if not isinstance(data, Batch):
        raise TypeError(
            "data are (inputs, targets), a mapping with both, a Batch, a Dataset or a DataLoader: "
            f"they are {type(data).__name__}"
        )
    if len(data) == 0:
        raise ValueError("a data set has at least one example: this one has none")
    if data.count == 0:
        raise ValueError(f"a data set has at least one example that counts: all {len(data)} are masked")
    moved = {name: value.to(device) for name, value in data.tensors.items()}
    return data.with_tensors(moved, None if data.mask is None else data.mask.to(device))


def _as_input(inputs: Inputs) -> Input:
    if not isinstance(inputs, Mapping):
        return as_tensor(inputs)
    named = {name: as_tensor(array) for name, array in inputs.items()}
    shapes = {name: tuple(values.shape) for name, values in named.items()}
    if len({shape[:1] for shape in shapes.values()}) != 1:
        raise ValueError(f"inputs by name have one row an example each: their shapes are {shapes}")
    return named


def as_source(
    data: Data, device: torch.device, batch_size: int, generator: torch.Generator | None = None
) -> Batch | DataLoader[Any]:
    """The whole data set on `device` where it lies in memory, else a loader of its batches.

    Args:
        data: of any kind.
        device: of data in memory; a loader's batches are moved one by one.
        batch_size: of a Dataset's batches; a DataLoader has its own.
        generator: shuffles a Dataset; None leaves it in order, as an IterableDataset always is.

    Example:
        >>> import torch
        >>> from pgce.data import as_source
        >>> len(as_source((torch.eye(3), torch.arange(3)), torch.device("cpu"), batch_size=2))
        3
    """
    if isinstance(data, DataLoader):
        return data
    if isinstance(data, Dataset) and not isinstance(data, TensorDataset):
        shuffles = generator is not None and not isinstance(data, IterableDataset)
        return DataLoader(data, int(batch_size), shuffle=shuffles, generator=generator)
    return _rows_that_count(as_batch(data, device))


def _rows_that_count(batch: Batch) -> Batch:
    """Without the rows that a mask leaves out; sequences, of which it leaves out steps, stay whole."""
    return batch if batch.mask is not None and batch.mask.ndim > 1 else batch.counted()


def pieces(source: Batch | DataLoader[Any], device: torch.device, size: int) -> Iterator[Batch]:
    """The data in order, in batches on `device` of at most `size` examples (a loader's are its own).

    Example:
        >>> import torch
        >>> from pgce.data import as_batch, pieces
        >>> batch = as_batch((torch.eye(3), torch.arange(3)))
        >>> [len(piece) for piece in pieces(batch, torch.device("cpu"), size=2)]
        [2, 1]
    """
    if isinstance(source, Batch):
        yield from source.split(size)
    else:
        for item in source:
            yield _rows_that_count(as_batch(item, device))

"""Infos of several environments as Gymnasium has them: an array for each key, and which it is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Column", "columns_of", "together"]

Column = tuple[list[int], NDArray[Any]]  # which environments, and what each has


def columns_of(told: Mapping[int, dict[str, Any]]) -> tuple[dict[str, Column], dict[int, dict[str, Any]]]:
    """Infos of some environments by key: which have it, and what; and what cannot be put into arrays.

    Args:
        told: by environment.

    Example:
        >>> from pgce.envs.infos import columns_of
        >>> columns_of({0: {"x": 1.0, "name": "a"}, 2: {"x": 3.0}})
        ({'x': ([0, 2], array([1., 3.]))}, {0: {'name': 'a'}})
    """
    by_key: dict[str, tuple[list[int], list[Any]]] = {}
    if len({tuple(info) for info in told.values()}) == 1:  # all tell the same, as most do
        every = [*told]
        by_key = {key: (every, [info[key] for info in told.values()]) for key in told[every[0]]}
    else:
        for i, info in told.items():
            for key, value in info.items():
                which, values = by_key.setdefault(key, ([], []))
                which.append(i)
                values.append(value)
    columns: dict[str, Column] = {}
    rest: dict[int, dict[str, Any]] = {}
    for key, (which, values) in by_key.items():
        if _alike(values) and key != "final_obs":
            columns[key] = which, np.array(values)
        else:
            for i, value in zip(which, values, strict=True):
                rest.setdefault(i, {})[key] = value
    return columns, rest


def _alike(values: list[Any]) -> bool:
    """Whether they are numbers, or arrays of one shape and kind."""
    kinds = set(map(type, values))
    if kinds == {np.ndarray}:
        first = values[0]
        return not first.dtype.hasobject and all(_fits(value, first.shape, first.dtype) for value in values)
    return all(kind in (int, float, bool) or issubclass(kind, np.number) for kind in kinds)


def _fits(array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return array.shape == shape and (array.dtype == dtype or {array.dtype.kind, dtype.kind} <= {*"biuf"})


def _objects(values: Iterable[Any]) -> NDArray[Any]:
    """An array (n,) of n things, arrays among them."""
    return np.fromiter(values, np.dtype(object))


def together(
    num_envs: int, told: Mapping[int, dict[str, Any]], *columns: dict[str, Column]
) -> dict[str, Any]:
    """The info of all environments as Gymnasium has it, from that of each, or from columns.

    What is of several shapes or types, which Gymnasium refuses or casts, is in an array of objects.

    Args:
        num_envs: N.
        told: by environment.
        columns: as `columns_of` gives them.

    Example:
        >>> from pgce.envs.infos import together
        >>> together(2, {1: {"x": 3.0}})
        {'x': array([0., 3.]), '_x': array([False,  True])}
    """
    column, rest = columns_of(told)
    infos: dict[str, Any] = {}
    for each in (*columns, column):
        for key, (which, values) in each.items():
            _add(num_envs, infos, key, which, values)
    for key in dict.fromkeys(key for info in rest.values() for key in info):
        own = {i: rest[i][key] for i in sorted(rest) if key in rest[i]}
        nested = key not in infos and all(isinstance(part, dict) for part in own.values())
        if nested and key != "final_obs":
            infos[key], infos[f"_{key}"] = together(num_envs, own), np.zeros(num_envs, np.bool_)
            infos[f"_{key}"][[*own]] = True
        else:
            _add(num_envs, infos, key, [*own], _objects(own.values()))
    return infos


def _add(n: int, infos: dict[str, Any], key: str, which: list[int], values: NDArray[Any]) -> None:
    """Put what some environments tell by a key beside what others do."""
    if key not in infos:
        if which == [*range(n)]:
            infos[key], infos[f"_{key}"] = values, np.ones(n, np.bool_)
            return
        infos[key] = np.zeros((n, *values.shape[1:]), values.dtype)
        if values.dtype == object:
            infos[key].fill(None)
        infos[f"_{key}"] = np.zeros(n, np.bool_)
    array, mask = infos[key], infos[f"_{key}"]
    if _fits(values, (len(which), *array.shape[1:]), array.dtype):
        array = array.astype(np.result_type(array, values), copy=False)
    else:
        array, values = _objects(array), _objects(values)
        array[~mask] = None
    array[which], mask[which] = values, True
    infos[key] = array

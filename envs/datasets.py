"""Labelled data: sets of scikit-learn by name, tables, arrays and folders of images, with a part held out."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zipfile import is_zipfile

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMES", "Dataset", "load"]

Task = Literal["classification", "multilabel", "regression"]

_LOADED = ("digits", "iris", "wine", "breast_cancer", "diabetes", "linnerud")
_MADE = (
    *("moons", "circles", "blobs", "classification", "gaussian_quantiles", "hastie_10_2"),
    *("multilabel_classification", "regression", "friedman1", "friedman2", "friedman3"),
    *("sparse_uncorrelated", "s_curve", "swiss_roll"),
)
_FETCHED = ("covtype", "california_housing", "olivetti_faces", "lfw_people")
# The function of sklearn.datasets is called load_iris, and so on.
_PREFIX = {n: p for p, names in (("load", _LOADED), ("make", _MADE), ("fetch", _FETCHED)) for n in names}
_OPTIONS: dict[str, dict[str, float]] = {
    "moons": {"noise": 0.2},  # without noise every point is certain
    "circles": {"noise": 0.1, "factor": 0.5},
    "lfw_people": {"min_faces_per_person": 70},
}
_TARGETS = ("target", "label", "class", "y")
_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_CLASSES = 100  # of a target of integers
_MOST_WORDS = 1000  # of a text feature: each becomes a column

NAMES = (*_LOADED, *_MADE)
"""What `load` knows by name without a network."""


class Dataset(NamedTuple):
    """A data set cut in two.

    Attributes:
        train_inputs: (M, D), float32; images of a folder or of an .npz file (M, C, H, W) or (M, H, W).
        train_labels: int64 class ids (M,); of a multilabel task int64 zeros and ones (M, L); of a regression
            float64 (M,) or (M, n_outputs), in the unit they came in.
        test_inputs: (M', ...), float32.
        test_labels: (M',) or (M', ...).
        classes: K, or L; 0 for a regression.
        class_names: of each class; () for a regression.
        image_shape: (H, W) or (C, H, W) of an input that is an image, else None.
        task: what the labels are for.

    Example:
        >>> from pgce.envs import datasets
        >>> datasets.load("iris").class_names
        ('setosa', 'versicolor', 'virginica')
    """

    train_inputs: NDArray[np.float32]
    train_labels: NDArray[Any]
    test_inputs: NDArray[np.float32]
    test_labels: NDArray[Any]
    classes: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...] | None
    task: Task


class _Source(NamedTuple):
    inputs: NDArray[Any]
    target: NDArray[Any]
    standardised: NDArray[np.bool_] | bool = True  # which features are to be, (D,) or all
    names: Sequence[str] = ()  # of the classes, where the source has any
    image_shape: tuple[int, ...] | None = None


def load(source: str, target: str | None = None, test_size: float = 0.25) -> Dataset:
    """A data set from scikit-learn, a file or a folder; the split is always the same.

    A source that is no name below and has a suffix or a path separator, or exists, is a path (`./digits` is a
    folder of that name). It is one of

    - a name, `moons` or `make_moons`: what scikit-learn comes with or generates (`NAMES`; 1000 examples,
      random_state 0, noise 0.2 for moons and 0.1 for circles with factor 0.5, else scikit-learn's defaults),
      or downloads to its cache (covtype, california_housing, olivetti_faces, and lfw_people of at least 70
      faces a person);
    - a .csv or .parquet file, a row an example. Text, categorical and bool features are one-hot encoded, with
      the values in the whole file, at most 1000 a feature;
    - an .npz file with arrays X and y, or inputs and labels. Bytes of shape (M, H, W) or (M, C, H, W) are
      images;
    - a folder with a sub-folder of images a class. Images have one size; they are greyscale if all of them
      are, else RGB. Transparency is dropped; what else lies there or is hidden is passed over.

    Pixels lie in [0, 1]. Every other numeric feature has mean 0 and standard deviation 1 over the training
    part (0 everywhere if it is constant there).

    The target's type tells the task. Text, categories and bools are classes. So are integers with at most 100
    distinct values, which are seldom amounts; with more they are a regression. Floats always are one: write
    classes as integers or text, and amounts as floats. An .npz file's matrix of integers or bools (M, L) is
    several labels an example, each 0 or 1. Classes are numbered in their sorted order, and the split is
    stratified by them.

    Args:
        source: name or path.
        target: column of a .csv or .parquet file that is to be predicted; None takes the one called target,
            label, class or y.
        test_size: share of the examples that is held out.

    Raises:
        ValueError: an unknown name or kind of file, nothing at that path, no or several target columns,
            features or targets that are missing, not finite or of another type, labels that don't fit the
            inputs, images that cannot be read or are of several sizes, fewer than 2 classes, a class too
            small to be in both parts, or a `test_size` outside (0, 1).
        ImportError: a table, and pandas or pyarrow is not installed.
        OSError: the download failed.

    Example:
        >>> from pgce.envs import datasets
        >>> data = datasets.load("digits")
        >>> data.train_inputs.shape, data.test_inputs.shape, data.classes, data.image_shape
        ((1347, 64), (450, 64), 10, (8, 8))
        >>> datasets.load("diabetes").task
        'regression'
    """
    if not 0 < test_size < 1:
        raise ValueError(f"test_size is a share between 0 and 1: it is {test_size!r}")
    prefix, _, rest = source.partition("_")
    name = rest if _PREFIX.get(rest) == prefix else source
    path = Path(source)
    is_table = name not in _PREFIX and path.suffix.lower() in (".csv", ".parquet")
    if target is not None and not is_table:
        raise ValueError(f"target is a column of a .csv or .parquet file: {source!r} is none, for {target!r}")
    if name in _PREFIX:
        read = _scikit_learn(name)
    elif not source or not (path.suffix or "/" in source or "\\" in source or path.exists()):
        known = [*_PREFIX, *(f"{prefix}_{name}" for name, prefix in _PREFIX.items())]
        close = get_close_matches(source.lower(), known, cutoff=0.7)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"a data set is a path or one of {', '.join(_PREFIX)}: it is {source!r}{hint}")
    elif not path.exists():
        raise ValueError(f"there is no file or folder {source!r}")
    elif path.is_dir():
        read = _folder(path)
    elif is_table:
        read = _table(path, target)
    elif path.suffix.lower() == ".npz":
        read = _arrays(path)
    else:
        raise ValueError(f"a file of data is .csv, .parquet or .npz: it is {source!r}")
    return _split(read, test_size)


def _scikit_learn(name: str) -> _Source:
    from sklearn import datasets

    make = getattr(datasets, f"{_PREFIX[name]}_{name}")
    options = _OPTIONS.get(name, {})
    if name in _MADE:
        inputs, target = make(n_samples=1000, random_state=0, **options)
        if name == "hastie_10_2":  # its classes −1 and 1 are floats
            target = target.astype(np.int64)
        return _Source(inputs, target)
    try:
        found = make(**options)
    except OSError as error:
        raise OSError(f"{name} is not in scikit-learn's cache, and its download failed: {error}") from error
    names = found.get("target_names", ())
    if "images" not in found:
        return _Source(found.data, found.target, names=names)
    pixels = found.data / (16 if name == "digits" else 1)
    return _Source(pixels, found.target, False, names, found.images.shape[1:])


def _table(path: Path, target: str | None) -> _Source:
    try:
        import pandas as pd

        frame = pd.read_csv(path) if path.suffix.lower() == ".csv" else pd.read_parquet(path)
    except ImportError as error:
        raise ImportError(f'{path} needs pandas and pyarrow: pip install "pgce[tables]"') from error
    except ValueError as error:  # which does not say of which file
        raise ValueError(f"pandas cannot read {path} as a table: {error}") from error
    wanted = _TARGETS if target is None else (target,)
    columns = ", ".join(map(repr, frame.columns))
    chosen = [column for column in wanted if column in frame.columns]
    if len(chosen) != 1 or len(frame.columns) < 2:
        names = " or ".join(map(repr, wanted))
        raise ValueError(f"a table has features and one target, {names}: the columns of {path} are {columns}")
    unnamed = [column for column in frame.columns if str(column).startswith("Unnamed: ")]
    if unnamed:  # most often row numbers, which tell the label of a sorted table
        raise ValueError(f"every column has a name, row numbers too: the columns of {path} are {columns}")
    types = pd.api.types
    numeric = [c for c in frame if types.is_numeric_dtype(frame[c]) and not types.is_bool_dtype(frame[c])]
    lacking = frame.isna()
    lacking[numeric] |= np.isinf(frame[numeric].to_numpy(np.float64, na_value=np.nan))
    counts = [f"{n} of column {column!r}" for column, n in lacking.sum().items() if n]
    if counts:
        raise ValueError(f"no value is missing or infinite: {', '.join(counts)} are, in {len(frame)} rows")
    encoded = [c for c in frame if c not in numeric and c != chosen[0]]
    for column in [*encoded, *({*chosen} - {*numeric})]:
        values = frame[column]
        is_text = types.is_string_dtype(values) or types.is_bool_dtype(values)
        if not is_text and not isinstance(values.dtype, pd.CategoricalDtype):
            raise ValueError(f"a column has numbers, text, categories or bools: {column!r} {values.dtype}")
        if column in encoded and (distinct := values.nunique()) > _MOST_WORDS:
            raise ValueError(f"a text feature has at most {_MOST_WORDS} values: {column!r} has {distinct}")
    y = frame.pop(chosen[0])
    labels = y.to_numpy() if types.is_numeric_dtype(y) else np.asarray(y.astype(str), str)
    words = frame.astype(dict.fromkeys(encoded, str))  # categories that no row has get no column
    inputs = pd.get_dummies(words, columns=encoded, dtype=np.float64).to_numpy(np.float64)
    # The encoded columns come last.
    return _Source(inputs, labels, np.arange(inputs.shape[1]) < frame.shape[1] - len(encoded))


def _arrays(path: Path) -> _Source:
    if not is_zipfile(path):
        raise ValueError(f"an .npz file is what numpy.savez writes: {path} is none")
    with np.load(path, allow_pickle=False) as file:
        pair = next((p for p in (("X", "y"), ("inputs", "labels")) if {*p} <= {*file.files}), None)
        if pair is None:
            arrays = ", ".join(file.files)
            raise ValueError(f"an .npz file has arrays X and y, or inputs and labels: {path} has {arrays}")
        X, y = (file[name] for name in pair)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if X.ndim < 2 or y.ndim not in (1, 2) or len(X) != len(y):
        raise ValueError(f"inputs are (M, ...) and labels (M,) or (M, L): they are {X.shape} and {y.shape}")
    if X.dtype.kind not in "biuf" or y.dtype.kind not in ("biufU" if y.ndim == 1 else "biuf"):
        raise ValueError(f"inputs are numbers, labels too or (M,) text: they are {X.dtype} and {y.dtype}")
    if not np.isfinite(X).all():
        raise ValueError(f"inputs are finite: {(~np.isfinite(X)).sum()} of {X.size} numbers are not")
    if X.dtype != np.uint8 or X.ndim not in (3, 4):
        return _Source(X.astype(np.float64), y)
    if X.ndim == 4 and X.shape[1] not in (1, 3):
        raise ValueError(f"images are (M, H, W) or (M, C, H, W) with 1 or 3 channels: they are {X.shape}")
    return _Source(np.divide(X, 255, dtype=np.float32), y, False, image_shape=X.shape[1:])


def _folder(path: Path) -> _Source:
    from PIL import Image

    folders = [p for p in sorted(path.glob("[!.]*")) if p.is_dir()]
    files = [[f for f in sorted(p.glob("[!.]*")) if f.suffix.lower() in _IMAGES] for p in folders]
    empty = [folder.name for folder, inside in zip(folders, files, strict=True) if not inside]
    if empty or not folders:
        raise ValueError(
            f"a folder of images has a sub-folder a class with images ({', '.join(_IMAGES)}): "
            f"{path} has {f'none in {empty}' if empty else 'no sub-folder'}"
        )
    pixels: list[NDArray[np.uint8]] = []
    paths = [file for inside in files for file in inside]
    for file in paths:
        try:
            with Image.open(file) as image:
                if image.mode[0] in "IF":  # Pillow would clip them
                    raise ValueError(f"an image has 8 bits a channel: {file} is of mode {image.mode}")
                grey = image.mode in ("1", "L", "LA")
                pixels.append(np.atleast_3d(np.asarray(image.convert("L" if grey else "RGB"))))
        except OSError as error:
            raise ValueError(f"Pillow cannot read {file}: {error}") from error
        (height, width, _), (H, W, _) = pixels[-1].shape, pixels[0].shape
        if (height, width) != (H, W):
            raise ValueError(f"images have one size: {file} is {width}×{height}, {paths[0]} {W}×{H}")
    channels = max(image.shape[2] for image in pixels)
    images = np.stack([np.broadcast_to(image, (H, W, channels)) for image in pixels])
    images = images.transpose(0, 3, 1, 2)  # (M, C, H, W)
    target = np.array([file.parent.name for file in paths])
    return _Source(np.divide(images, 255, dtype=np.float32), target, False, image_shape=images.shape[1:])


def _split(source: _Source, test_size: float) -> Dataset:
    from sklearn.model_selection import train_test_split

    task, labels, names = _labels(source)
    stratify = labels if task == "classification" else None
    train, test, train_labels, test_labels = train_test_split(
        source.inputs, labels, test_size=test_size, stratify=stratify, random_state=0
    )
    if task == "classification" and (trained := len(np.unique(train_labels))) < len(names):
        raise ValueError(f"each class is trained on: test_size {test_size} leaves {trained} of {len(names)}")
    if source.standardised is not False:
        # A constant column's computed deviation may be 1e-17: the range tells. In units of its
        # power of two, which round nothing, no square overflows or vanishes.
        spread = np.ptp(train, axis=0)
        varies = source.standardised & (spread > 0)
        shift = np.where(source.standardised, train.mean(0), 0.0)
        unit = np.where(varies, np.ldexp(0.5, np.frexp(spread)[1]), 1.0)
        scale = np.where(varies, unit * (train / unit).std(0), 1.0)
        train, test = (train - shift) / scale, (test - shift) / scale
    train, test = (part.astype(np.float32, copy=False) for part in (train, test))
    return Dataset(train, train_labels, test, test_labels, len(names), names, source.image_shape, task)


def _labels(source: _Source) -> tuple[Task, NDArray[Any], tuple[str, ...]]:
    """The task, its labels and the names of the classes."""
    target, kind = source.target, source.target.dtype.kind
    if target.ndim == 2 and kind != "f":
        if not np.isin(target, (0, 1)).all():
            raise ValueError(f"several labels an example are 0 or 1 each: they are {np.unique(target)[:10]}")
        return "multilabel", target.astype(np.int64), tuple(map(str, range(target.shape[1])))
    values, labels = np.unique(target, return_inverse=True)
    if kind == "f" or (kind in "iu" and len(values) > _MOST_CLASSES):
        with np.errstate(over="ignore"):
            finite = np.isfinite(target.astype(np.float32))
        if not finite.all():
            raise ValueError(f"targets are finite in float32: {(~finite).sum()} of {finite.size} are not")
        return "regression", target.astype(np.float64), ()
    names = tuple(map(str, source.names if len(source.names) == len(values) else values))
    if len(names) < 2:
        raise ValueError(f"a classification has at least 2 classes: it has {', '.join(names) or 'none'}")
    counts = np.bincount(labels)
    if counts.min() < 2:
        amount = "; write the target as floats for a regression" if kind in "iu" else ""
        rare = names[counts.argmin()]
        raise ValueError(f"a class has at least 2 examples, to be split: {rare!r} has {counts.min()}{amount}")
    return "classification", labels.astype(np.int64), names

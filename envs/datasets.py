"""Labelled data sets that come with scikit-learn, each with a fixed quarter held out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["NAMES", "Dataset", "load"]

NAMES = ("digits", "iris", "wine", "breast_cancer")
"""What `load` knows."""


class Dataset(NamedTuple):
    """A data set cut in two.

    Attributes:
        train_inputs: (M, D), float32.
        train_labels: (M,), int64 class ids.
        test_inputs: (M', D), float32.
        test_labels: (M',), int64 class ids.
        classes: K.

    Example:
        >>> from pgce.envs import datasets
        >>> datasets.load("iris").classes
        3
    """

    train_inputs: NDArray[np.float32]
    train_labels: NDArray[np.int64]
    test_inputs: NDArray[np.float32]
    test_labels: NDArray[np.int64]
    classes: int


def load(name: str) -> Dataset:
    """A data set by name; the split is stratified by class and always the same.

    Pixels of digits lie in [0, 1]; features of the others have mean 0 and standard deviation 1 over the
    training part.

    Args:
        name: one of `NAMES`.

    Returns:
        Three quarters to train on and one to test on.

    Raises:
        ValueError: the name is not known.
        ImportError: scikit-learn is not installed.

    Example:
        >>> from pgce.envs import datasets
        >>> data = datasets.load("digits")
        >>> data.train_inputs.shape, data.test_inputs.shape, data.classes
        ((1347, 64), (450, 64), 10)
    """
    if name not in NAMES:
        raise ValueError(f"a data set is one of {', '.join(NAMES)}: it is {name!r}")
    try:
        from sklearn import datasets
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('data sets come with scikit-learn: pip install "pgce[data]"') from error
    inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        inputs, labels, test_size=0.25, stratify=labels, random_state=0
    )
    if name == "digits":
        shift, scale = 0.0, 16.0
    else:
        shift, scale = train.mean(0), train.std(0)

    def scaled(array: NDArray[Any]) -> NDArray[np.float32]:
        return ((array - shift) / scale).astype(np.float32)

    return Dataset(
        scaled(train),
        train_labels.astype(np.int64),
        scaled(test),
        test_labels.astype(np.int64),
        int(labels.max()) + 1,
    )

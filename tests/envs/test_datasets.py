"""The data sets: pinned, so that a score today and a score in a year are of the same examples."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pgce.envs import datasets

# Of each class: how many to train on, how many held out.
COUNTS = {
    "digits": (
        [133, 136, 133, 137, 136, 136, 136, 134, 131, 135],
        [45, 46, 44, 46, 45, 46, 45, 45, 43, 45],
    ),
    "iris": ([37, 37, 38], [13, 13, 12]),
    "wine": ([44, 53, 36], [15, 18, 12]),
    "breast_cancer": ([159, 267], [53, 90]),
}
# Sums of position · label: other rows, or the same in another order, give another number.
ORDER = {
    "digits": (4054593, 453081),
    "iris": (6297, 773),
    "wine": (8026, 881),
    "breast_cancer": (56094, 6841),
}
FEATURES = {"digits": 64, "iris": 4, "wine": 13, "breast_cancer": 30}


@pytest.mark.parametrize("name", datasets.NAMES)
def test_the_split_is_fixed_and_stratified(name):
    data = datasets.load(name)
    for labels, counts, order in zip(
        (data.train_labels, data.test_labels), COUNTS[name], ORDER[name], strict=True
    ):
        assert np.bincount(labels).tolist() == counts
        assert int(np.arange(len(labels)) @ labels) == order
    assert data.classes == len(COUNTS[name][0])
    assert data.train_inputs.shape == (len(data.train_labels), FEATURES[name])
    assert data.test_inputs.shape == (len(data.test_labels), FEATURES[name])
    train, test = (np.array(counts) for counts in COUNTS[name])
    # A quarter of each class, but for the rounding to whole examples.
    assert (abs(test - (train + test) / 4) <= 1).all()


@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_example_is_in_one_part(name):
    from sklearn import datasets as originals

    inputs, labels = getattr(originals, f"load_{name}")(return_X_y=True)
    data = datasets.load(name)
    ours = np.concatenate([data.train_inputs, data.test_inputs]).astype(np.float64)
    our_labels = np.concatenate([data.train_labels, data.test_labels])
    # Scaling keeps the order in each feature, so sorting by all of them brings the same examples together.
    rows, their_rows = (np.lexsort([*x.T, y]) for x, y in ((ours, our_labels), (inputs, labels)))
    ours, inputs = ours[rows], inputs[their_rows]
    assert (our_labels[rows] == labels[their_rows]).all()
    for feature in np.ptp(inputs, axis=0).nonzero()[0]:
        assert np.corrcoef(ours[:, feature], inputs[:, feature])[0, 1] == pytest.approx(1, abs=1e-6)


def test_pixels_are_sixteenths():
    data = datasets.load("digits")
    for inputs in (data.train_inputs, data.test_inputs):
        assert inputs.min() == 0
        assert inputs.max() == 1
        assert (inputs * 16 == np.round(inputs * 16)).all()


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_features_are_standardised_by_the_training_part_alone(name):
    data = datasets.load(name)
    train, test = data.train_inputs.astype(np.float64), data.test_inputs.astype(np.float64)
    assert train.mean(0) == pytest.approx(0, abs=1e-6)
    assert train.std(0) == pytest.approx(1, abs=1e-6)
    # The held-out part is scaled by the same numbers, so its own are near but not the same.
    assert abs(test.mean(0)).max() < 0.5
    assert abs(test.mean(0)).max() > 1e-3


def test_arrays_are_one_s_own():
    """What one caller writes, the next doesn't see."""
    datasets.load("iris").train_inputs[:] = np.nan
    assert np.isfinite(datasets.load("iris").train_inputs).all()


@pytest.mark.parametrize("name", ["mnist", "Iris", "", "load_iris"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=rf"one of digits, iris, wine, breast_cancer: it is {name!r}"):
        datasets.load(name)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r'pip install "pgce\[data\]"'):
        datasets.load("iris")

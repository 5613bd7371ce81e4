"""The data sets: pinned, so that a score today and a score in a year are of the same examples."""

from __future__ import annotations

import inspect
import subprocess
import sys
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

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
TOYS = (*COUNTS, "diabetes", "linnerud")
FEATURES = {"digits": 64, "iris": 4, "wine": 13, "breast_cancer": 30}


@pytest.mark.parametrize("name", COUNTS)
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


@pytest.mark.parametrize("name", COUNTS)
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
    assert data.image_shape == (8, 8)


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


def test_class_names():
    assert datasets.load("iris").class_names == ("setosa", "versicolor", "virginica")
    assert datasets.load("digits").class_names == tuple("0123456789")
    assert datasets.load("moons").class_names == ("0", "1")
    assert datasets.load("hastie_10_2").class_names == ("-1", "1")


@pytest.mark.parametrize("name", datasets.NAMES)
def test_every_set_of_scikit_learn(name):
    data = datasets.load(name)
    parts = (data.train_inputs, data.test_inputs, data.train_labels, data.test_labels)
    assert all(np.isfinite(part).all() for part in parts)
    assert data.train_inputs.dtype == data.test_inputs.dtype == np.float32
    assert len(data.test_labels) == len(data.test_inputs)
    examples = len(data.train_inputs) + len(data.test_inputs)
    assert len(data.test_inputs) == np.ceil(examples / 4)
    assert examples == 1000 or name in TOYS
    assert data.train_labels.dtype == (np.float64 if data.task == "regression" else np.int64)
    assert data.classes == len(data.class_names)
    assert (data.classes == 0) == (data.task == "regression")
    if data.task == "classification":
        assert set(data.train_labels.tolist()) == set(range(data.classes))
    again = datasets.load(f"{'load' if name in TOYS else 'make'}_{name}")
    assert all((a == b).all() for a, b in zip(data[:4], again[:4], strict=True)), "the same each time"


def test_names_are_all_that_scikit_learn_has():
    from sklearn import datasets as originals

    toy, made = set(), set()
    for function in vars(originals).values():
        name = getattr(function, "__name__", "")
        if name.startswith(("load_", "make_")):
            arguments = inspect.signature(function).parameters
            if name.startswith("load_") and "as_frame" in arguments:
                toy.add(name[5:])
            if name.startswith("make_") and "n_samples" in arguments and "n_components" not in arguments:
                made.add(name[5:])
    assert toy | made - {"low_rank_matrix"} == set(datasets.NAMES)


def test_tasks():
    tasks = {name: datasets.load(name).task for name in datasets.NAMES}
    assert tasks.pop("multilabel_classification") == "multilabel"
    regressions = {name for name, task in tasks.items() if task == "regression"}
    friedman = {"friedman1", "friedman2", "friedman3"}
    others = {"regression", "sparse_uncorrelated", "s_curve", "swiss_roll"}
    assert regressions == {"diabetes", "linnerud"} | friedman | others
    assert datasets.load("linnerud").train_labels.shape == (15, 3)
    several = datasets.load("multilabel_classification")
    assert several.train_labels.shape == (750, several.classes) == (750, 5)
    assert set(np.unique(several.train_labels)) == {0, 1}
    assert datasets.load("diabetes").train_labels.max() > 300, "in its own unit"


def test_the_share_held_out():
    data = datasets.load("iris", test_size=0.5)
    assert np.bincount(data.train_labels).tolist() == np.bincount(data.test_labels).tolist() == [25] * 3


@pytest.mark.parametrize("name", ["covtype", "california_housing", "olivetti_faces", "lfw_people"])
def test_a_failed_download_names_the_data_set(name, monkeypatch):
    def offline(**_):
        raise URLError("no route")

    monkeypatch.setattr(f"sklearn.datasets.fetch_{name}", offline)
    with pytest.raises(OSError, match=rf"^{name} is not in scikit-learn's cache.* failed: .*no route"):
        datasets.load(name)


ROWS = 40


def table(**columns):
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    made = {"size": generator.normal(5, 3, ROWS), "count": np.arange(ROWS), "same": [0.1] * ROWS}
    made |= {"colour": ["red", "green", "blue", "green"] * 10, "old": [True, False] * 20}
    return pandas.DataFrame(made | columns)


def write(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_a_table(suffix, tmp_path):
    frame = table(species=["cat", "dog", "dog", "ant"] * 10)
    path = tmp_path / f"animals{suffix}"
    if suffix == ".CSV":
        frame.to_csv(path, index=False)
    else:
        write(frame, path)
    data = datasets.load(str(path), "species")
    assert data[4:] == (3, ("ant", "cat", "dog"), None, "classification")
    assert data.train_inputs.shape == (30, 3 + 3 + 2)
    assert data.train_inputs.dtype == np.float32
    assert data.test_inputs.shape == (10, 8)
    assert np.bincount(data.test_labels).tolist() in ([2, 3, 5], [3, 2, 5])
    numbers, words = np.split(data.train_inputs.astype(np.float64), [3], axis=1)
    assert numbers.mean(0) == pytest.approx(0, abs=1e-6)
    assert numbers[:, :2].std(0) == pytest.approx(1, abs=1e-6)
    assert data.test_inputs[:, 2] == pytest.approx(0, abs=1e-6), "a constant column stays one"
    assert set(np.unique(words)) == {0, 1}
    assert (words[:, :3].sum(1) == 1).all()
    assert (words[:, 3:].sum(1) == 1).all()
    # Columns are in sorted order: blue, green, red, False, True. Cats are red and old, ants green and not.
    assert (words[data.train_labels == 1] == [0, 0, 1, 0, 1]).all()
    assert (words[data.train_labels == 0] == [0, 1, 0, 1, 0]).all()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("target", "task", "names"),
    [
        (["b", "a"] * 20, "classification", ("a", "b")),
        ([True, False] * 20, "classification", ("False", "True")),
        ([7, -1] * 20, "classification", ("-1", "7")),
        ([0.0, 1.0] * 20, "regression", ()),
    ],
)
def test_the_target_tells_the_task(suffix, target, task, names, tmp_path):
    data = datasets.load(write(table(y=target), tmp_path / f"table{suffix}"))
    assert (data.task, data.class_names, data.classes) == (task, names, len(names))
    assert len(data.train_labels) == 30


@pytest.mark.parametrize(("distinct", "task"), [(100, "classification"), (101, "regression")])
def test_integers_are_classes_up_to_a_hundred(distinct, task, tmp_path):
    values = np.arange(2 * distinct * 2) % distinct
    np.savez(tmp_path / "a.npz", X=values[:, None], y=values)
    assert datasets.load(str(tmp_path / "a.npz"), test_size=0.5).task == task


def test_pandas_own_types(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = table().assign(
        label=pandas.Categorical(["low", "high"] * 20, ["low", "high", "none"]),
        colour=pandas.Categorical(["a", "b"] * 20, ["b", "c", "a"]),
        old=pandas.array([True, False] * 20, "boolean"),
        count=pandas.array(range(ROWS), "Int64"),
    )
    data = datasets.load(write(frame, tmp_path / "a.parquet"))
    assert data.class_names == ("high", "low")
    assert data.train_inputs.shape == (30, 3 + 2 + 2)
    frame["label"] = pandas.array([0, 1] * 20, "Int64")
    assert datasets.load(write(frame, tmp_path / "a.parquet")).class_names == ("0", "1")


@pytest.mark.parametrize("column", ["target", "label", "class", "y"])
def test_the_target_has_a_usual_name(column, tmp_path):
    path = write(table(**{column: ["b", "a"] * 20}), tmp_path / "a.csv")
    assert datasets.load(path).class_names == ("a", "b")
    assert datasets.load(path, "colour").class_names == ("blue", "green", "red")


@pytest.mark.parametrize(
    ("columns", "target", "message"),
    [
        ({}, None, r"'target' or 'label' or 'class' or 'y': the columns of .* are 'size', 'count', 'same'"),
        ({}, "price", r"one target, 'price': the columns of .* are 'size'"),
        ({"y": 1, "label": 2}, None, "one target, 'target' or"),
        ({"": range(ROWS)}, "old", "every column has a name, .*'Unnamed: 5'"),
        (
            {"size": [None, 1.5] * 20, "y": [None, *"a" * 39]},
            None,
            "20 of column 'size', 1 of column 'y' are",
        ),
        ({"size": [np.inf, *[1.5] * 39]}, "old", "infinite: 1 of column 'size' are, in 40 rows"),
        ({"colour": [None, *"a" * 39]}, "old", "missing or infinite: 1 of column 'colour'"),
        ({"colour": [*"abcdefgh"] * 5, "y": "a"}, None, "at least 2 classes: it has a"),
        ({"y": range(ROWS)}, None, "at least 2 examples.*'0' has 1; write the target as floats"),
        ({"y": ["rare", *"ab" * 19, "a"]}, None, "at least 2 examples, to be split: 'rare' has 1$"),
    ],
)
def test_tables_that_are_refused(columns, target, message, tmp_path):
    path = write(table(**columns), tmp_path / "a.csv")
    with pytest.raises(ValueError, match=message):
        datasets.load(path, target)


def test_columns_that_are_refused(tmp_path):
    pandas = pytest.importorskip("pandas")
    when = pandas.date_range("2020-01-01", periods=ROWS)
    for column, target in (("when", "old"), ("y", None)):
        path = write(table(**{column: when}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=rf"numbers, text, categories or bools: '{column}' datetime64"):
            datasets.load(path, target)
    text = pandas.DataFrame({"name": [f"n{i}" for i in range(1001)], "y": 0.5})
    with pytest.raises(ValueError, match="at most 1000 values: 'name' has 1001"):
        datasets.load(write(text, tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("y\n1\n", "a table has features and one target"),
        ("", "pandas cannot read .*a.csv as a table: No columns"),
        ("x,y\n", "at least 2 classes: it has none"),
        ("größe,y\n1,2\n", "pandas cannot read .*a.csv as a table: 'utf-8' codec can't decode"),
        ("x,y\n1,2\n1,2,3,4\n", "pandas cannot read .*a.csv as a table: .*Expected 2 fields in line 3"),
    ],
)
def test_tables_that_cannot_be_read_or_hold_nothing(content, message, tmp_path):
    pytest.importorskip("pandas")
    (tmp_path / "a.csv").write_text(content, "latin-1")
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path / "a.csv"))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_without_pandas_the_error_says_what_to_install(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"a{suffix}"
    path.touch()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'pip install "pgce\[tables\]"'):
        datasets.load(str(path))


def npz(path, **arrays):
    np.savez(path / "a.npz", **arrays)
    return str(path / "a.npz")


def test_arrays(tmp_path):
    X = np.random.default_rng(0).normal(3, 2, (20, 3))
    y = np.arange(20) % 2
    data = datasets.load(npz(tmp_path, X=X, y=y, other=y))
    assert data.train_inputs.mean(0) == pytest.approx(0, abs=1e-6)
    assert data[4:] == (2, ("0", "1"), None, "classification")
    text = datasets.load(npz(tmp_path, inputs=X, labels=np.array(["no", "yes"])[y]))
    assert text.class_names == ("no", "yes")
    for ours, theirs in zip(data[:4], text[:4], strict=True):
        assert (ours == theirs).all()
    assert datasets.load(npz(tmp_path, X=X, y=y[:, None])).task == "classification", "a column is (M,)"
    assert datasets.load(npz(tmp_path, X=X.reshape(20, 3, 1), y=y)).train_inputs.shape == (15, 3, 1)
    amounts = datasets.load(npz(tmp_path, X=X, y=X))
    assert (amounts.task, amounts.train_labels.shape) == ("regression", (15, 3))
    assert np.concatenate([amounts.train_labels, amounts.test_labels]).sum() == pytest.approx(X.sum())
    several = datasets.load(npz(tmp_path, X=X, y=X > 3))
    assert several.task == "multilabel"
    assert several.class_names == ("0", "1", "2")
    # The columns are the signs of X − 3 in both.
    assert (several.train_labels == (amounts.train_labels > 3)).all()


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (3, 5, 4)])
def test_bytes_are_images(shape, tmp_path):
    X = np.random.default_rng(0).integers(256, size=(20, *shape), dtype=np.uint8)
    data = datasets.load(npz(tmp_path, X=X, y=X.reshape(20, -1)[:, 0] / 255))
    assert data.image_shape == data.train_inputs.shape[1:] == shape
    assert data.train_inputs.dtype == np.float32
    assert data.train_inputs.reshape(15, -1)[:, 0] == pytest.approx(data.train_labels)
    flat = datasets.load(npz(tmp_path, X=X.reshape(20, -1), y=np.arange(20) % 2))
    assert flat.image_shape is None
    assert flat.train_inputs.mean(0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_amounts_keep_their_digits(kind, tmp_path):
    y = (1_700_000_000 + np.arange(200)).astype(kind)
    data = datasets.load(npz(tmp_path, X=np.arange(400.0).reshape(200, 2), y=y))
    assert data.task == "regression"
    assert sorted([*data.train_labels, *data.test_labels]) == y.tolist()


@pytest.mark.parametrize("unit", [1e200, 1e-200])
def test_features_whose_squares_no_float_holds(unit, tmp_path):
    X, y = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    usual, other = (datasets.load(npz(tmp_path, X=values, y=y)) for values in (X, X * unit))
    assert other.train_inputs == pytest.approx(usual.train_inputs, abs=1e-6)
    assert other.test_inputs == pytest.approx(usual.test_inputs, abs=1e-6)


GOOD = np.ones((8, 2)), np.arange(8) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": GOOD[0], "y": GOOD[1]}, "X and y, or inputs and labels: .* has x_train, y"),
        ({"X": GOOD[0], "y": GOOD[1][:5]}, r"are \(8, 2\) and \(5,\)"),
        ({"X": GOOD[0][:, 0], "y": GOOD[1]}, r"are \(8,\) and \(8,\)"),
        ({"X": GOOD[0].astype(str), "y": GOOD[1]}, r"they are <U32 and int64"),
        ({"X": GOOD[0], "y": GOOD[0].astype(str)}, r"they are float64 and <U32"),
        ({"X": GOOD[0] * 1j, "y": GOOD[1]}, r"they are complex128 and int64"),
        ({"X": GOOD[0] * np.nan, "y": GOOD[1]}, "finite: 16 of 16"),
        ({"X": GOOD[0], "y": GOOD[1] * 1e300}, "float32: 4 of 8"),
        ({"X": GOOD[0], "y": GOOD[0].astype(int) * 2}, "0 or 1 each"),
        ({"X": np.zeros((8, 4, 4, 3), np.uint8), "y": GOOD[1]}, r"1 or 3 channels: they are \(8, 4, 4, 3\)"),
        ({"X": GOOD[0].astype(object), "y": GOOD[1]}, "allow_pickle=False"),
        ({"X": GOOD[0][:0], "y": GOOD[1][:0]}, "it has none"),
        ({"X": GOOD[0][:1], "y": GOOD[1][:1] / 2}, "train set will be empty"),
    ],
)
def test_arrays_that_are_refused(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        datasets.load(npz(tmp_path, **arrays))


def picture(path, size=(6, 4), mode="RGB", colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_a_folder_of_images(tmp_path):
    for k in range(8):
        picture(tmp_path / "cat" / f"{k}.png", colour=(255, 0, 51))
        picture(tmp_path / "dog" / f"{k}.JPG", colour=(0, 0, 255))
    (tmp_path / "cat" / "notes.txt").touch()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "cat" / "._0.png").touch()
    (tmp_path / "README.md").touch()
    data = datasets.load(str(tmp_path))
    assert data[4:] == (2, ("cat", "dog"), (3, 4, 6), "classification")
    assert data.train_inputs.shape == (12, 3, 4, 6)
    assert data.test_inputs.dtype == np.float32
    assert np.bincount(data.test_labels).tolist() == [2, 2]
    cat = data.train_inputs[data.train_labels == 0]
    assert (cat == np.array([1, 0, 0.2], np.float32)[:, None, None]).all()
    assert data.train_inputs[data.train_labels == 1].mean((0, 2, 3)) == pytest.approx([0, 0, 1], abs=0.02)


def test_grey_images_have_one_channel_among_themselves(tmp_path):
    for k in range(4):
        picture(tmp_path / "a" / f"{k}.png", mode="L", colour=51)
        picture(tmp_path / "b" / f"{k}.png", mode=("LA", "1")[k % 2], colour=0)
    grey = datasets.load(str(tmp_path))
    assert grey.train_inputs.shape == (6, 1, 4, 6)
    assert grey.image_shape == (1, 4, 6)
    picture(tmp_path / "b" / "0.png", mode="RGBA", colour=(0, 0, 0, 9))
    mixed = datasets.load(str(tmp_path))
    assert mixed.image_shape == (3, 4, 6)
    assert (mixed.train_inputs == grey.train_inputs).all()
    assert mixed.train_inputs[mixed.train_labels == 0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no sub-folder"),
        ({"a/0.png": {}, "b/0.txt": b"", "c/1.txt": b""}, r"has none in \['b', 'c'\]"),
        ({"a/0.png": {}, "b/0.png": {"size": (4, 6)}}, r"b/0.png is 4×6, .*a/0.png 6×4"),
        ({"a/0.png": {}, "b/0.png": b"no image"}, "Pillow cannot read .*b/0.png"),
        ({"a/0.png": {"mode": "I;16"}}, "8 bits a channel: .*a/0.png is of mode I;16"),
        ({"a/0.png": {}}, "at least 2 classes: it has a"),
        ({"a/0.png": {}, "a/1.png": {}, "b/0.png": {}}, "'b' has 1$"),
    ],
)
def test_folders_that_are_refused(files, message, tmp_path):
    for name, content in files.items():
        if isinstance(content, dict):
            picture(tmp_path / name, **content)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        datasets.load(str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mnist", r"a path or one of digits, iris, .*, lfw_people: it is 'mnist'$"),
        ("Iris", "it is 'Iris'; did you mean iris"),
        ("make_moon", "it is 'make_moon'; did you mean make_moons"),
        ("fetch_iris", "it is 'fetch_iris'"),
        ("covertype", "did you mean covtype"),
        ("", "it is ''"),
        ("none.csv", "there is no file or folder 'none.csv'"),
        ("some/where", "there is no file or folder 'some/where'"),
        ("notes.txt", r"\.csv, \.parquet or \.npz: it is 'notes.txt'"),
        ("notes", r"\.csv, \.parquet or \.npz: it is 'notes'"),
        ("broken.npz", r"numpy\.savez writes: broken\.npz is none"),
        ("broken.parquet", "pandas cannot read broken.parquet as a table: .*Parquet"),
    ],
)
def test_sources_that_are_refused(source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "notes", "broken.npz", "broken.parquet"):
        (tmp_path / name).write_text("text, and long enough for a footer")
    if source.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message):
        datasets.load(source)


def test_a_name_is_the_data_set_whatever_lies_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    assert datasets.load("iris").classes == 3
    with pytest.raises(ValueError, match="has no sub-folder"):
        datasets.load("./iris")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test_size": 0}, "between 0 and 1: it is 0"),
        ({"test_size": 1.0}, r"it is 1\.0"),
        ({"test_size": np.nan}, "it is nan"),
        ({"test_size": 0.01}, "test_size = 2 should be greater or equal to the number of classes = 3"),
        ({"target": "species"}, "a column of a .csv or .parquet file: 'iris' is none, for 'species'"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        datasets.load("iris", **arguments)


def test_a_class_that_would_only_be_held_out(tmp_path):
    path = npz(tmp_path, X=np.zeros((42, 1)), y=np.array([0] * 40 + [1] * 2))
    with pytest.raises(ValueError, match=r"test_size 0\.9 leaves 1 of 2"):
        datasets.load(path, test_size=0.9)


def test_importing_it_is_cheap():
    heavy = "{'pandas', 'PIL', 'sklearn'}"
    code = f"import sys, runpy; runpy.run_path({datasets.__file__!r}); print({heavy} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"

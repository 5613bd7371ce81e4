"""Classifier and Regressor: scikit-learn's own checks, and what every rule does to the loss."""

from __future__ import annotations

import copy
import json
import math
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_digits, make_multilabel_classification
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as H

import pgce
from pgce import Classifier, Regressor
from pgce.checkpoint import CheckpointError, load_files, save_files
from pgce.logger import Logger


def name(check):
    return getattr(check, "func", check).__name__


CHECKS = [
    pytest.param(estimator, check, id=f"{type(estimator).__name__}-{number}-{name(check)}")
    for kind in (Classifier, Regressor)
    for number, (estimator, check) in enumerate(estimator_checks_generator(kind(device="cpu")))
]


@pytest.mark.parametrize(("estimator", "check"), CHECKS)
def test_scikit_learn_s_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the checks provoke and raise some of their own
        check(estimator)


def digits(number=400):
    X, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(y))[:number]
    return (X[rows] / 16).astype(np.float32), y[rows]


def linear(features, classes, seed=0):
    g = torch.Generator().manual_seed(seed)
    module = nn.Linear(features, classes, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return module


RNG = np.random.default_rng(0)
# An epoch of SGD on all rows is one step: parameters before less those after are the gradient.
STEP = {"optimizer": "sgd", "learning_rate": 1.0, "epochs": 1, "batch_size": 10_000, "device": "cpu"}


def step(estimator, module, *data):
    """Loss and gradient of (weight, bias) of the first step from `module`."""
    estimator.set_params(module=module, **STEP)
    estimator.fit(*data)
    trained = getattr(estimator.module_, "network", estimator.module_)
    with torch.no_grad():
        gradient = [a - b for a, b in zip(module.parameters(), trained.parameters(), strict=True)]
    return estimator.history_["loss"][0], [g.numpy() for g in gradient]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference(module, X, Y, w, epsilon):
    """mean(w · H) and its gradient by hand, for rows Y (B, K) of distributions and weights w (B, K).

    The loss of a soft target is the expected loss of a label k drawn from it: Σ_k Y_k w_k H(smooth(e_k), p).
    """
    W, b = (p.detach().numpy() for p in module.parameters())
    z = X @ W.T + b
    log_p = z - z.max(1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(1, keepdims=True))
    K = Y.shape[1]
    loss, dz = 0.0, np.zeros_like(z)
    for k in range(K):
        smooth = (1 - epsilon) * np.eye(K)[k] + epsilon / K
        factor = Y[:, k] * w[:, k]
        loss += (factor * -(smooth * log_p).sum(1)).sum()
        dz += factor[:, None] * (softmax(z) - smooth)
    total = (Y * w).sum()  # weights are scaled to mean 1
    return loss / total, [dz.T @ X / total, dz.sum(0) / total]


@pytest.mark.parametrize("block", range(10))
def test_composition_equals_a_numpy_reference(block):
    """class_weight × sample_weight × smoothing × soft targets, value and gradient: 100 cases a block."""
    rng = np.random.default_rng(block)
    for _ in range(100):
        K, D, B = rng.integers(2, 6), rng.integers(1, 5), rng.integers(12, 30)
        X = rng.normal(size=(B, D))
        module = linear(int(D), int(K), int(rng.integers(1000)))
        label = np.r_[np.arange(K), rng.integers(0, K, B - K)]
        soft = rng.random() < 0.5
        Y = rng.dirichlet(np.ones(K), B) if soft else np.eye(K)[label]
        epsilon = rng.choice([0.0, rng.random()])
        kind = rng.integers(4)
        sample_weight = rng.choice([0.0, 0.5, 1.0, 3.0], B) if rng.random() < 0.7 else None
        s = np.ones(B) if sample_weight is None else sample_weight
        if kind == 0 or (sample_weight is not None and ((s[:, None] * Y).sum(0) == 0).any()):
            class_weight, v = None, np.ones(K)
        elif kind == 1:
            v = rng.uniform(0.1, 5, K)
            class_weight = dict(enumerate(v.tolist()))
        else:
            number = (s[:, None] * Y).sum(0)
            if kind == 2:
                class_weight, v = "balanced", number.sum() / (K * number)
            else:
                class_weight, v = "effective_number", 1 / (1 - 0.999**number)
        if not s.any():
            continue
        estimator = Classifier(class_weight=class_weight, label_smoothing=float(epsilon))
        loss, gradient = step(estimator, module, X, Y if soft else label, sample_weight)
        expected, expected_gradient = reference(module, X, Y, s[:, None] * v, epsilon)
        assert loss == pytest.approx(expected, rel=1e-9)
        for ours, theirs in zip(gradient, expected_gradient, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-10)


def test_only_the_ratios_of_weights_count():
    """Also of those that are beyond the network's precision."""
    rng = np.random.default_rng(0)
    X, label, s = rng.normal(size=(40, 3)).astype(np.float32), np.arange(40) % 4, rng.uniform(0.1, 2, 40)
    for class_weight in (None, "balanced"):
        estimator = Classifier(class_weight=class_weight, epochs=1, random_state=0)
        one, *others = (estimator.fit(X, label, unit * s).history_["loss"] for unit in (1.0, 1e-60, 1e60))
        for loss in others:
            assert loss == pytest.approx(one)


def test_class_weights_are_of_what_a_label_stands_for():
    """Sure to c: as the rows that say so. Noisy labels: in expectation the loss of the clean ones."""
    X, label, s = RNG.normal(size=(40, 3)), np.arange(40) % 4, RNG.uniform(0.1, 2, 40)
    module = linear(3, 4)
    for class_weight in ("balanced", dict(enumerate([1.0, 2.0, 5.0, 9.0]))):
        further = {"class_weight": class_weight, "label_smoothing": 0.1}
        sure = step(Classifier(confidence=0.7, **further), module, X, label, s)
        rows = step(Classifier(**further), module, X, 0.7 * np.eye(4)[label] + 0.3 / 4, s)
        assert sure[0] == pytest.approx(rows[0])
        np.testing.assert_allclose(sure[1][0], rows[1][0])
    T = np.full((4, 4), 0.1) + 0.6 * np.eye(4)
    pairs = np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)  # clean and noisy label
    X, share = RNG.normal(size=(4, 3)), T[pairs] / 4
    clean = step(Classifier(class_weight=class_weight), module, X, np.arange(4))
    noisy = Classifier(class_weight=class_weight, noise=T, correction="backward")
    noisy = step(noisy, module, X[pairs[0]], pairs[1], share)
    for ours, theirs in zip(noisy[1], clean[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_labels_that_some_classes_never_get_are_corrected_where_the_network_is_sure():
    X, label = 1000 * np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32), np.arange(200) % 3
    T = 0.7 * np.eye(3) + 0.3 * np.roll(np.eye(3), 1, 1)
    fitted = Classifier(noise=T, epochs=3, random_state=0, device="cpu").fit(X, label)
    assert np.isfinite(fitted.history_["loss"]).all()


def test_focal_and_further_rules_multiply():
    X, label = RNG.normal(size=(40, 3)), np.arange(40) % 4
    module = linear(3, 4)
    with torch.no_grad():
        p = module(torch.as_tensor(X)).softmax(-1)[torch.arange(40), label].numpy()
    s = RNG.uniform(0.1, 2, 40)
    focal = (1 - p) ** 2 - 2 * p * (1 - p) * np.log(p)
    w = focal * p**0.5 * s / s.mean()
    estimator = Classifier(focal_gamma=2.0, weight=lambda h, b: (-0.5 * h).exp())
    loss, gradient = step(estimator, module, X, label, s)
    assert loss == pytest.approx((w * -np.log(p)).mean(), rel=1e-9)
    z = X @ module.weight.detach().numpy().T + module.bias.detach().numpy()
    dz = w[:, None] * (softmax(z) - np.eye(4)[label]) / 40
    np.testing.assert_allclose(gradient[0], dz.T @ X, rtol=1e-9)


def test_mixup_mixes_weights_as_well():
    """λ w_a H(a) + (1 − λ) w_b H(b) for every pair, class weights included."""
    X, label = RNG.normal(size=(30, 3)), np.arange(30) % 3
    s, v = RNG.uniform(0.1, 2, 30), np.array([1.0, 2.0, 5.0])
    module, mixed = linear(3, 3), {}

    def spy(inputs, target, generator, *, alpha):
        mixed["inputs"], mixed["target"] = original(inputs, target, generator, alpha=alpha)
        return mixed["inputs"], mixed["target"]

    original = pgce.targets.mixup
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pgce.targets, "mixup", spy)
        estimator = Classifier(mixup=1.0, class_weight=dict(enumerate(v)), random_state=0)
        loss, _ = step(estimator, module, X, label, s)
    scale = s.sum() / (s * v[label]).sum()
    log_p = module(mixed["inputs"]).log_softmax(-1).detach().numpy()
    rows = mixed["target"].numpy()
    np.testing.assert_allclose(rows.sum(), 30)
    assert loss == pytest.approx(-(rows * v * scale * log_p).sum() / 30, rel=1e-9)


@pytest.mark.parametrize("pos_weight", [None, (1.0, 4.0, 0.5)])
def test_mixup_of_several_labels_mixes_weights_as_well(pos_weight):
    """λ w_a H(a) + (1 − λ) w_b H(b) for every pair and label."""
    rng = np.random.default_rng(0)
    X, Y, s = rng.normal(size=(30, 3)), rng.integers(0, 2, (30, 3)), rng.uniform(0.1, 2, 30)
    module, seen = linear(3, 3), []

    def keep(inputs, target, generator, alpha):
        own = [X[:, 0].tolist().index(x) for x in inputs[:, 0]]
        seen[:] = own, own[::-1]
        return tuple(0.3 * each + 0.7 * each.flip(0) for each in (inputs, target))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pgce.targets, "mixup", keep)
        estimator = Classifier(mixup=1.0, pos_weight=pos_weight, label_smoothing=0.1, random_state=0)
        loss, _ = step(estimator, module, X, Y, s)
    c = np.where(Y == 1, 1.0 if pos_weight is None else pos_weight, 1.0) * (s / s.mean())[:, None]
    X, c, y = (torch.as_tensor(each) for each in (X, c, 0.9 * Y + 0.05))
    own, other = seen
    with torch.no_grad():
        z = module(0.3 * X[own] + 0.7 * X[other])
    expected = 0.3 * H(z, y[own], c[own]) + 0.7 * H(z, y[other], c[other])
    assert loss == pytest.approx(expected.item(), rel=1e-9)


def accuracy(**settings):
    X, y = digits(600)
    settings = {"epochs": 15, "learning_rate": 0.01, "random_state": 0, "device": "cpu", **settings}
    return Classifier(**settings).fit(X[:400], y[:400]).score(X[400:], y[400:])


@pytest.mark.parametrize(
    "rule",
    [
        {"label_smoothing": 0.1},
        {"soft_labels": (0.9, 0.1)},
        {"confidence": 0.9},
        {"redraw": 0.1},
        {"noise": 0.1},
        {"noise": 0.1, "correction": "backward"},
        {"noise": pgce.targets.noise_matrix(10, 0.1).numpy()},
        {"mixup": 0.2},
        {"mixup": 0.2, "label_smoothing": 0.1, "class_weight": "balanced"},
        {"logit_adjustment": 1.0},
        {"logit_adjustment": 1.0, "noise": 0.1},
        {"class_weight": "balanced"},
        {"class_weight": "effective_number"},
        {"class_weight": "balanced", "confidence": 0.9, "label_smoothing": 0.05},
        {"sampler": "balanced"},
        {"focal_gamma": 2.0},
        {"gce_q": 0.7},
        {"symmetric": (0.5, 0.5)},
        {"poly1_epsilon": 1.0},
        {"ema_decay": 0.9},
        {"precision": "bfloat16"},
        {"early_stopping": True},
        {"optimizer": "sgd", "learning_rate": 0.1, "optimizer_options": {"momentum": 0.9}},
        {"micro_batch_size": 50},
        {"schedule": "cosine", "warmup_steps": 10, "max_grad_norm": 1.0},
    ],
    ids=str,
)
def test_every_rule_learns_digits(rule):
    assert accuracy(**rule) > 0.8


def test_cutmix_takes_images():
    X, y = digits(600)
    images = X.reshape(-1, 8, 8)
    estimator = Classifier(cutmix=1.0, epochs=40, learning_rate=0.01, random_state=0, device="cpu")
    assert estimator.fit(images[:400], y[:400]).score(images[400:], y[400:]) > 0.8
    with pytest.raises(ValueError, match=r"CutMix takes images"):
        estimator.fit(X, y)


def test_a_teacher_is_learned_from():
    """With no share for the labels, which are shuffled: all that is learned comes from the teacher."""
    X, y = digits(800)
    settings = {"epochs": 30, "learning_rate": 0.01, "random_state": 0, "device": "cpu"}
    teacher = Classifier(**settings).fit(X[:400], y[:400])
    student = Classifier(teacher=teacher, teacher_share=1.0, **settings)
    student.fit(X[400:600], np.random.default_rng(0).permutation(y[400:600]))
    assert student.score(X[600:], y[600:]) > 0.85
    other = Classifier(teacher=teacher, **settings)
    with pytest.raises(ValueError, match="the same classes: the teacher's are"):
        other.fit(X, y > 4)


def test_a_teacher_in_cross_validation():
    """scikit-learn clones it with the estimator, and it has to be frozen to stay trained."""
    teacher = LogisticRegression().fit(X, Y)
    how = {"epochs": 1, "device": "cpu"}
    with pytest.raises(NotFittedError, match=r"it is LogisticRegression\(\), not trained .*FrozenEstimator"):
        cross_val_score(Classifier(teacher=teacher, **how), X, Y, cv=2, error_score="raise")
    with pytest.raises(ValueError, match=r"a teacher is a classifier: it is Regressor\(\)"):
        Classifier(teacher=Regressor(**how).fit(X, Y), **how).fit(X, Y)
    frozen = Classifier(teacher=FrozenEstimator(teacher), **how)
    assert np.isfinite(cross_val_score(frozen, X, Y, cv=2)).all()


@pytest.mark.filterwarnings("error")
def test_tables_whose_columns_have_names():
    """Neither the teacher nor what is held out is asked of a table without them."""
    pd = pytest.importorskip("pandas")
    table, labels = pd.DataFrame(X, columns=["a", "b", "c"]), pd.Series(Y)
    scale = ColumnTransformer([("scaled", StandardScaler(), ["a", "c"])])
    teacher = make_pipeline(scale, LogisticRegression()).fit(table, labels)
    how = {"epochs": 1, "device": "cpu"}
    Classifier(teacher=teacher, **how).fit(table, labels, validation=(table, labels))
    Classifier(**how).fit(table, (table > 0).astype(int)).evaluate(table, (table > 0).astype(int))
    regressor = Regressor(**how).fit(table, table["a"], validation=(table, table["a"]))
    Classifier(**how).fit(table, labels, pd.Series(np.ones(30)))
    for kind in ("Int64", "boolean", "uint8"):  # several labels a row, though rows sum to 1
        assert Classifier(**how).fit(table, pd.DataFrame(np.eye(3, dtype=int)[Y]).astype(kind)).multilabel_
    scores = regressor.evaluate(table, table["a"])
    assert scores["mse"] == pytest.approx(((regressor.predict(table) - X[:, 0]) ** 2).mean())


@pytest.mark.parametrize("kind", ["Int64", "boolean"])
def test_labels_that_pandas_may_miss_are_none_of_floats(kind):
    pd = pytest.importorskip("pandas")
    values = (X[:, 0] > 0) if kind == "boolean" else (X[:, 0] > 0) + 2**53  # which a float takes for one
    estimator = Classifier(epochs=1, device="cpu").fit(X, pd.Series(values, dtype=kind))
    np.testing.assert_array_equal(estimator.classes_, np.unique(values))
    assert estimator.predict(X).dtype == values.dtype


def test_soft_labels_are_learned_as_they_are():
    """With one point and y = (0.2, 0.3, 0.5) the probabilities become y."""
    X, P = np.zeros((50, 1)), np.tile([0.2, 0.3, 0.5], (50, 1))
    estimator = Classifier(hidden_sizes=(), epochs=400, learning_rate=0.05, random_state=0, device="cpu")
    p = estimator.fit(X, P).predict_proba(X[:1])
    np.testing.assert_allclose(p, P[:1], atol=1e-3)
    assert estimator.classes_.tolist() == [0, 1, 2]


def test_several_labels():
    X, Y = make_multilabel_classification(400, n_features=10, n_classes=4, random_state=0)
    X = StandardScaler().fit_transform(X)
    settings = {"epochs": 60, "random_state": 0, "device": "cpu"}
    recall = {}
    for name, rule in {
        "plain": {},
        "asymmetric": {"asymmetric": (0.0, 4.0, 0.05)},
        "pos_weight": {"pos_weight": 5.0},
        "focal": {"focal_gamma": 2.0},
        "smooth": {"label_smoothing": 0.1},
        "mixup": {"mixup": 0.2},
    }.items():
        estimator = Classifier(**settings, **rule).fit(X[:300], Y[:300], np.ones(300))
        guess, p = estimator.predict(X[300:]), estimator.predict_proba(X[300:])
        assert guess.shape == p.shape == (100, 4)
        assert (guess == Y[300:]).mean() > 0.7
        recall[name] = guess[Y[300:] == 1].mean()
    assert recall["pos_weight"] > recall["plain"]
    assert recall["asymmetric"] > recall["plain"]


def test_settings_of_numpy():
    how = {"epochs": np.int64(1), "batch_size": np.int64(8), "hidden_sizes": np.array([4]), "device": "cpu"}
    Classifier(early_stopping=True, validation_fraction=np.float32(0.2), **how).fit(X, Y)


def test_in_a_pipeline_a_grid_and_a_calibrator():
    X, y = digits()
    names = np.array([f"digit {k}" for k in range(10)])[y]
    estimator = Classifier(epochs=10, learning_rate=0.01, random_state=0, device="cpu")
    pipeline = make_pipeline(StandardScaler(), estimator)
    grid = GridSearchCV(pipeline, {"classifier__hidden_sizes": [(), (32,)]}, cv=2).fit(X, names)
    assert grid.best_score_ > 0.8
    assert cross_val_score(estimator, X, names, cv=2).min() > 0.7
    calibrated = CalibratedClassifierCV(estimator, cv=2).fit(X, names)
    assert calibrated.score(X, names) > 0.85
    assert set(calibrated.predict(X)) <= set(names)


def test_partial_fit_goes_on_and_warm_start_too():
    X, y = digits()
    estimator = Classifier(learning_rate=0.01, random_state=0, device="cpu")
    for _ in range(10):
        for rows in np.array_split(np.arange(400), 4):
            estimator.partial_fit(X[rows], y[rows], classes=np.arange(10))
    assert estimator.score(X, y) > 0.9
    assert len(estimator.history_.epochs) == 40
    warm = Classifier(epochs=3, warm_start=True, random_state=0, device="cpu")
    losses = [warm.fit(X, y).history_["loss"][-1] for _ in range(4)]
    assert losses == sorted(losses, reverse=True)
    assert len(warm.history_.epochs) == 12
    with pytest.raises(ValueError, match=r"every label is one of the classes .* y holds \[77\]"):
        estimator.partial_fit(X, np.full(400, 77))
    with pytest.raises(ValueError, match=r"classes are as before, .* 9\]: they are \[.* 10\]"):
        estimator.partial_fit(X, y, classes=range(11))


def test_settings_that_change_count_when_training_goes_on():
    X, y = digits()
    estimator = Classifier(epochs=2, warm_start=True, random_state=0, device="cpu").fit(X, y)
    before = estimator.predict_proba(X)
    assert estimator.set_params(learning_rate=1e-12).fit(X, y).history_["learning_rate"][-1] == 1e-12
    np.testing.assert_allclose(estimator.predict_proba(X), before, atol=1e-6)
    steps = estimator.history_["steps"]
    assert steps == sorted(steps)
    with pytest.raises(CheckpointError, match="the state of 'adam' does not fit the optimizer 'sgd'"):
        estimator.set_params(optimizer="sgd").fit(X, y)
    assert estimator.set_params(optimizer="adam").fit(X, y).history_["steps"][-1] > steps[-1]
    with pytest.raises(
        ValueError, match="partial_fit knows of no last pass: schedule is constant, it is 'cos"
    ):
        Classifier(schedule="cosine").partial_fit(X, y, classes=range(10))


def test_what_is_measured_counts_on_when_training_goes_on(tmp_path):
    X, y = digits(100)
    settings = {"epochs": 3, "batch_size": 50, "learning_rate": 1e-6, "random_state": 0, "device": "cpu"}
    estimator = Classifier(warm_start=True, **settings, log=tmp_path / "log", checkpoints=tmp_path / "saved")
    for _ in range(2):
        assert estimator.fit(X, y, validation=(X, y)) is estimator
    estimator.set_params(checkpoints=None, monitor="loss").partial_fit(X, y)
    history = estimator.history_
    assert history["epoch"] == [1, 2, 3, 4, 5, 6, 7]
    assert history["examples"] == [100 * n for n in range(1, 8)]
    assert history["steps"] == [2 * n for n in range(1, 8)]
    assert history["seconds"] == sorted(history["seconds"])
    lines = (tmp_path / "log" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == history["examples"]
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.step for event in events.Scalars("objective/loss")] == history["examples"]
    estimator.set_params(early_stopping=True, patience=2).fit(X, y)
    assert history["epoch"][-3:] == [8, 9, 10]
    assert history.best_epoch == 10


def test_clones_write_to_the_logger_of_the_first(tmp_path):
    with Logger(tmp_path) as logger:
        estimator = clone(Classifier(epochs=2, log=logger, device="cpu")).fit(X, Y)
    assert estimator.log is logger
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize(
    ("kind", "changed", "told"),
    [
        (Classifier, {"hidden_sizes": (3,)}, r"was made by hidden_sizes \(100,\): hidden_sizes is \(3,\)"),
        (Classifier, {"activation": "tanh"}, "was made by activation 'relu': activation is 'tanh'"),
        (Classifier, {"module": nn.Linear(64, 10)}, "was made by module None: module is Linear"),
        (Regressor, {"distribution": "poisson"}, "was made by distribution 'of real values'"),
    ],
)
def test_settings_of_another_network_are_refused_where_the_last_one_stays(kind, changed, told, tmp_path):
    X, y = digits(100)
    estimator = kind(epochs=1, warm_start=True, random_state=0, device="cpu").fit(X, y)
    estimator.set_params(**changed)
    for use in (lambda: estimator.fit(X, y), lambda: pgce.save(estimator, tmp_path)):
        with pytest.raises(ValueError, match=told):
            use()
    estimator.set_params(warm_start=False).fit(X, y)
    assert pgce.save(estimator, tmp_path) == tmp_path


def test_copied_estimators_go_on():
    X, y = digits()
    one = Classifier(random_state=0, device="cpu").partial_fit(X, y, classes=range(10))
    others = [one, copy.deepcopy(one), pickle.loads(pickle.dumps(one))]
    found = [each.partial_fit(X, y).partial_fit(X, y).predict_proba(X) for each in others]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_labels_are_drawn_anew_in_every_pass_and_after_a_checkpoint(tmp_path):
    X, y = digits()
    estimator, drawn = Classifier(redraw=0.5, random_state=0, device="cpu", batch_size=400), []
    estimator.weight = lambda _, batch: drawn.append(batch["y"].sort().values)
    for _ in range(2):
        estimator.partial_fit(X[:400], y[:400], classes=range(10))
    assert not torch.equal(drawn[-2], drawn[-1])

    def fitted(**how):
        return Classifier(redraw=0.5, epochs=4, random_state=0, device="cpu", **how)

    fitted(checkpoints=tmp_path).fit(X, y, after=lambda row, _: row["epoch"] == 2)
    found = [fitted(**how).fit(X, y).predict_proba(X) for how in ({}, {"checkpoints": tmp_path})]
    assert np.array_equal(*found)


def test_a_module_of_one_s_own_is_copied_and_trained_in_its_own_precision():
    X, y = digits()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    before = [p.detach().clone() for p in module.parameters()]
    estimator = Classifier(module=module, epochs=20, learning_rate=0.01, random_state=0, device="cpu")
    images = X.reshape(-1, 1, 8, 8).astype(np.float64)
    assert estimator.fit(images, y).score(images, y) > 0.95
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), before, strict=True))
    assert clone(estimator).get_params()["module"] is not None


def test_a_lower_precision_is_that_of_any_inputs():
    X, y = digits(200)
    how = {"precision": "bfloat16", "epochs": 2, "random_state": 0, "device": "cpu"}
    wide, narrow = (Classifier(**how).fit(X.astype(kind), y) for kind in (np.float64, np.float32))
    assert wide.history_["loss"] == narrow.history_["loss"]
    assert next(wide.module_.parameters()).dtype == torch.float32
    assert Classifier(**how | {"precision": "float32"}).fit(X, y).history_["loss"] != wide.history_["loss"]


@pytest.mark.parametrize(
    "rule",
    [
        {"label_smoothing": 0.1},
        {"soft_labels": (0.9, 0.1)},
        {"confidence": 0.7, "class_weight": "balanced"},
        {"noise": 0.2, "correction": "backward"},
    ],
)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_lower_precision_is_none_of_targets(rule, precision):
    X, y = digits(100)
    found = []
    for each in ("float32", precision):
        estimator = Classifier(precision=each, epochs=1, random_state=0, device="cpu", **rule)
        estimator.fit(X, y, after=lambda row, report: found.append(report.target.clone()))
    assert torch.equal(*found)


def test_early_stopping_and_validation():
    X, y = digits()
    estimator = Classifier(early_stopping=True, patience=3, learning_rate=0.03, random_state=0, device="cpu")
    history = estimator.fit(X, y).history_
    assert history.stopped == "patience"
    assert history.best_epoch == len(history.epochs) - 3
    assert history["examples"][0] == 360
    rows = []
    estimator = Classifier(epochs=2, random_state=0, device="cpu")
    estimator.fit(X, y, validation=(X[:50], y[:50]), after=lambda row, report: rows.append(row))
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["examples"] == 400
    assert rows[1]["val_accuracy"] == estimator.score(X[:50], y[:50])
    for kind in (Classifier, Regressor):
        with pytest.raises(ValueError, match=r"validation is \(inputs, targets\), .* there are 3"):
            kind(device="cpu").fit(X, y, validation=(X, y, np.ones(len(y))))


def regression(number=300):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(number, 2))
    return X, 100 + 30 * X[:, 0] - 10 * X[:, 1], rng


LINEAR = {"hidden_sizes": (), "epochs": 300, "learning_rate": 0.02, "random_state": 0, "device": "cpu"}


@pytest.mark.parametrize("fraction", [0.1, 0.9])
def test_a_part_without_room_for_every_class(fraction):
    """Two of 18 examples of three classes, or all but one, cannot have equal shares of each."""
    how = {"early_stopping": True, "validation_fraction": fraction, "epochs": 1, "device": "cpu"}
    history = Classifier(**how).fit(X[:18], Y[:18]).history_
    assert history["examples"] == [18 - np.ceil(18 * fraction)]


def test_what_is_held_out_is_scored_as_it_is_where_training_mixes():
    w = np.where(Y == 0, 10.0, 1.0)
    how = {"early_stopping": True, "monitor": "val_accuracy", "learning_rate": 1e-9, "epochs": 1}
    plain, mixed = (Classifier(random_state=0, mixup=mixup, **how).fit(X, Y, w) for mixup in (0.0, 0.2))
    for name in ("val_loss", "val_accuracy"):
        assert mixed.history_[name] == pytest.approx(plain.history_[name])


def test_regression_in_the_target_s_own_unit():
    X, y, rng = regression()
    estimator = Regressor(**LINEAR).fit(X, y)
    np.testing.assert_allclose(estimator.predict(X), y, atol=0.5)
    both = Regressor(**LINEAR).fit(X, np.stack([y, -y / 1000], 1))
    np.testing.assert_allclose(both.predict(X)[:, 1], -y / 1000, atol=5e-4)
    # one outlier in ten: least squares follows them, Huber and the median do not
    wild = y + np.where(rng.random(300) < 0.1, 1000, 0)
    off = {
        name: abs(Regressor(**LINEAR, **rule).fit(X, wild).predict(X) - y).mean()
        for name, rule in {
            "mse": {},
            "huber": {"huber_delta": 5.0},
            "mae": {"distribution": "laplace"},
        }.items()
    }
    assert off["mse"] > 60
    assert off["huber"] < 12
    assert off["mae"] < 12


@pytest.mark.parametrize("kind", [np.float64, np.float32])
@pytest.mark.parametrize(("shift", "unit"), [(1.7e9, 100.0), (0.0, 1e-200)])
def test_targets_far_from_0_and_tiny_are_predicted_to_their_last_digits(kind, shift, unit):
    X, y, _ = regression()
    X, y = X.astype(kind), y / y.std()
    usual, other = (Regressor(**LINEAR).fit(X, target) for target in (y, shift + unit * y))
    np.testing.assert_allclose((other.predict(X) - shift) / unit, usual.predict(X), atol=1e-5)


def test_targets_whose_squares_no_float_holds():
    X, y, _ = regression()
    usual, other = (Regressor(**LINEAR).fit(X, target) for target in (y, 1e200 * y))
    np.testing.assert_allclose(other.predict(X) / 1e200, usual.predict(X), atol=1e-9)
    with pytest.raises(ValueError, match=r"targets lie in the network's precision, float32: y holds .*e\+2"):
        Regressor(**LINEAR).fit(X.astype(np.float32), 1e200 * y)


def test_quantiles_expectiles_and_counts():
    X, y, rng = regression(2000)
    noisy = y + 20 * rng.normal(size=2000)
    settings = {**LINEAR, "epochs": 60}
    for tau in (0.1, 0.5, 0.9):
        guess = Regressor(quantile=tau, **settings).fit(X, noisy).predict(X)
        assert (noisy < guess).mean() == pytest.approx(tau, abs=0.03)
        e = noisy - Regressor(expectile=tau, **settings).fit(X, noisy).predict(X)
        assert (np.where(e > 0, tau, 1 - tau) * e).mean() == pytest.approx(0, abs=0.5)
    rate = np.exp(1 + 0.5 * X[:, 0])
    counts = rng.poisson(rate)
    guess = Regressor(distribution="poisson", **settings).fit(X, counts).predict(X)
    assert abs(guess / rate - 1).mean() < 0.08


def test_early_stopping_is_by_the_loss_of_what_is_asked_for():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 2))
    y = 5 + X[:, 0] + 3 * rng.normal(size=2000)
    settings = {"hidden_sizes": (), "epochs": 200, "early_stopping": True, "random_state": 0, "device": "cpu"}
    fitted = Regressor(quantile=0.9, **settings).fit(X, y)
    assert 0.87 < (y < fitted.predict(X)).mean() < 0.93
    unit = y.std()
    for rule, loss in (
        ({"quantile": 0.9}, lambda error: np.where(error < 0, -0.1, 0.9) * error / unit),
        ({"expectile": 0.8}, lambda error: np.where(error < 0, 0.2, 0.8) * (error / unit) ** 2),
        ({"huber_delta": 2.0}, lambda error: special.huber(2.0, error) / unit**2),
    ):
        fitted = Regressor(**rule, **settings | {"epochs": 1, "early_stopping": False})
        (told,) = fitted.fit(X, y, validation=(X, y)).history_["val_loss"]
        assert told == pytest.approx(fitted.evaluate(X, y)["loss"])
        assert told == pytest.approx(loss(y - fitted.predict(X)).mean())


def test_diabetes_as_well_as_ridge():
    X, y = load_diabetes(return_X_y=True)
    estimator = Regressor(hidden_sizes=(), epochs=50, learning_rate=0.02, random_state=0, device="cpu")
    assert cross_val_score(make_pipeline(StandardScaler(), estimator), X, y, cv=5).mean() > 0.46


@pytest.mark.parametrize("folder", ["new", "."])
def test_saved_and_loaded(folder, tmp_path):
    X, y = digits()
    names = np.array([f"n{k}" for k in range(10)])[y]
    rule = pgce.weights.focal
    estimator = Classifier(
        epochs=3, class_weight={f"n{k}": 1.0 + k for k in range(10)}, weight=rule, noise=np.eye(10),
        hidden_sizes=(16, 16), random_state=0, device="cpu",
    ).fit(X, names)  # fmt: skip
    path = pgce.save(estimator, tmp_path / folder)
    files = ["estimator.json", "manifest.json", "model.safetensors"]
    assert sorted(file.name for file in path.iterdir()) == files
    loaded = pgce.load(path)
    np.testing.assert_array_equal(loaded.predict_proba(X), estimator.predict_proba(X))
    assert (loaded.predict(X) == estimator.predict(X)).all()
    ours, theirs = loaded.get_params(), estimator.get_params()
    np.testing.assert_array_equal(ours.pop("noise"), theirs.pop("noise"))
    assert ours == theirs
    np.testing.assert_array_equal(clone(loaded).fit(X, names).predict_proba(X), estimator.predict_proba(X))
    loaded.partial_fit(X, names)


def test_saved_regressor_and_own_module(tmp_path):
    X, y, _ = regression()
    estimator = Regressor(module=nn.Linear(2, 1), epochs=3, random_state=0, device="cpu").fit(X, y)
    pgce.save(estimator, tmp_path)
    loaded = pgce.load(tmp_path, module=nn.Linear(2, 1))
    np.testing.assert_array_equal(loaded.predict(X), estimator.predict(X))
    with pytest.raises(ValueError, match="give one like it as module="):
        pgce.load(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"the saved network does not fit: 'network.weight' has shape \(1, 2\), not"
    ):
        pgce.load(tmp_path, module=nn.Linear(3, 1))


@pytest.mark.parametrize("kind", ["datetime64[D]", "timedelta64[s]"])
def test_labels_that_are_dates(kind, tmp_path):
    labels = np.array([0, 400, 900]).astype(kind)[Y]
    fitted = Classifier(epochs=1, random_state=0, device="cpu").fit(X, labels)
    loaded = pgce.load(pgce.save(fitted, tmp_path))
    assert loaded.classes_.dtype == labels.dtype
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))


def test_tensors_of_an_estimator_are_tensors_when_it_is_loaded(tmp_path):
    X, y, _ = regression()
    how = {"epochs": 2, "random_state": 0, "device": "cpu", "warm_start": True}
    fitted = Regressor(huber_delta=0.5, **how).fit(X, y)
    loaded = pgce.load(pgce.save(fitted, tmp_path / "regressor"))
    assert loaded.evaluate(X, y) == fitted.evaluate(X, y)
    loaded.set_params(early_stopping=True).fit(X, y)
    rule = partial(pgce.weights.per_class, class_weight=torch.tensor([1.0, 3.0]))
    fitted = Classifier(weight=rule, **how).fit(X, y > 0)
    loaded = pgce.load(pgce.save(fitted, tmp_path / "classifier"))
    np.testing.assert_array_equal(loaded.fit(X, y > 0).predict(X), fitted.fit(X, y > 0).predict(X))


def test_where_an_estimator_logged_is_not_saved(tmp_path):
    X, y = digits(100)
    where = {name: str(tmp_path / name) for name in ("log", "checkpoints")}
    saved = pgce.save(Classifier(epochs=1, device="cpu", **where).fit(X, y), tmp_path / "saved")
    loaded = pgce.load(saved)
    assert loaded.log is None
    assert loaded.checkpoints is None
    loaded.partial_fit(X, y)


def test_what_cannot_be_saved_is_named(tmp_path):
    X, y = digits()
    estimator = Classifier(weight=lambda h, b: None, epochs=1, random_state=0, device="cpu").fit(X, y)
    with pytest.warns(UserWarning, match="left out, weight: the loaded Classifier"):
        pgce.save(estimator, tmp_path)
    assert pgce.load(tmp_path).weight is None
    files = load_files(tmp_path)
    save_files(tmp_path, files | {"estimator.json": b'{"pgce": "os.system", "own_module": false}'})
    with pytest.raises(ValueError, match="is damaged: KeyError"):
        pgce.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        pgce.load(tmp_path / "elsewhere")
    with pytest.raises(TypeError, match="it is StandardScaler"):
        pgce.save(StandardScaler(), tmp_path)


X, Y = RNG.normal(size=(30, 3)), np.arange(30) % 3
MULTILABEL = np.arange(60).reshape(30, 2) % 2


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, (X * np.nan, Y), "Input X contains NaN"),
        ({}, (X[:0], Y[:0]), "Found array with 0 sample"),
        ({}, (X, np.zeros(30)), "two classes or more: y holds one class, \\[0.0\\]"),
        ({}, (X, Y[:20]), "inconsistent numbers of samples"),
        ({}, (X, Y, -np.ones(30)), "Negative values in data passed to `sample_weight`"),
        ({}, (X, Y, np.zeros(30)), "every sample_weight is 0|at least one non-zero"),
        ({}, (X, Y, np.ones(29)), "sample_weight.shape == "),
        ({}, (X, X), r"a distribution over the classes in each row .* its smallest value is -"),
        ({}, (X, np.abs(X)), r"rows sum to"),
        ({}, (X, MULTILABEL * 2), "several labels a row are zeros and ones: y spans 0 to 2"),
        ({"class_weight": "auto"}, (X, Y), "it is 'auto'"),
        ({"class_weight": {7: 1.0}}, (X, Y), r"the labels are \[0, 1, 2\], it is \{7: 1.0\}"),
        ({"class_weight": {0: -1.0}}, (X, Y), "a positive number each"),
        (
            {"class_weight": "balanced"},
            (np.float32(X), Y, 1e-60 ** (Y > 0)),
            "class weights lie in the network's precision, float32: they are",
        ),
        ({"class_weight": "balanced"}, (X, MULTILABEL), "of one label a row, y has several: class_weight"),
        ({"pos_weight": 2.0}, (X, Y), "of several labels a row, y has one: pos_weight"),
        (
            {"confidence": 0.9, "soft_labels": (0.9, 0.1)},
            (X, Y),
            "exclude each other: confidence, soft_labels",
        ),
        ({"mixup": 0.2, "cutmix": 1.0}, (X, Y), "exclude each other: mixup, cutmix"),
        ({"confidence": 0.9}, (X, np.eye(3)[Y]), "start from labels, y is a matrix: confidence"),
        ({"sampler": "weighted"}, (X, Y), "weighted sampling needs sample_weight"),
        ({"sampler": "all"}, (X, Y), "it is 'all'"),
        ({"noise": np.eye(2)}, (X, Y), r"K = 3 classes: it has shape \(2, 2\)"),
        ({"label_smoothing": 1.5}, (X, Y), "label_smoothing lies in .*: it is 1.5"),
        ({"label_smoothing": -0.1}, (X, MULTILABEL), "label_smoothing lies in .*: it is -0.1"),
        ({"focal_gamma": -1.0}, (X, Y), "gamma is 0 or more: it is -1.0"),
        ({"gce_q": 2.0}, (X, Y), r"q lies in \[0, 1\]: it is 2.0"),
        ({"symmetric": (0.1, -1.0)}, (X, Y), "beta are 0 or more, log_zero is negative: they are 0.1, -1.0"),
        ({"poly1_epsilon": -2.0}, (X, Y), "epsilon is -1 or more: it is -2.0"),
        ({"batch_size": 0}, (X, Y), "batch_size is 0"),
        ({"module": nn.Linear(5, 3)}, (X, Y), "does not take inputs of shape"),
        ({"module": nn.Linear(3, 2)}, (X, Y), r"logits \(B, 3\), one a class"),
        ({"optimizer": "adma"}, (X, Y), "it is 'adma'"),
    ],
    ids=lambda value: None,
)
def test_classifier_refuses(settings, data, message):
    with pytest.raises(ValueError, match=message):
        Classifier(device="cpu", epochs=1, **settings).fit(*data)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, (X, np.full(30, np.inf)), "Input y contains"),
        ({"distribution": "poisson"}, (X, -np.abs(X[:, 0])), "counts are 0 or more: y holds -"),
        ({"distribution": "cauchy"}, (X, Y), "it is 'cauchy'"),
        ({"distribution": "laplace", "huber_delta": 1.0}, (X, Y), "huber_delta needs gaussian noise"),
        ({"distribution": "poisson", "quantile": 0.5}, (X, Y), "quantile needs laplace noise"),
        ({"quantile": 1.5}, (X, Y), r"tau lies in \(0, 1\): it is 1.5"),
        ({"huber_delta": -1.0}, (X, Y), "delta is positive"),
    ],
    ids=lambda value: None,
)
def test_regressor_refuses(settings, data, message):
    with pytest.raises(ValueError, match=message):
        Regressor(device="cpu", epochs=1, **settings).fit(*data)


def test_a_regressor_s_validation_has_the_columns_that_are_learned():
    with pytest.raises(ValueError, match="y has 2 columns as before: it has 1"):
        Regressor(epochs=1, device="cpu").fit(X, X[:, :2], validation=(X, X[:, 0]))


def test_what_was_trained_is_kept_when_new_data_or_settings_are_refused():
    names = np.array(["a", "b", "c"])[Y]
    estimator = Classifier(epochs=1, random_state=0, device="cpu")
    with pytest.raises(ValueError, match="y holds one class"):
        estimator.fit(X, np.zeros(30))
    with pytest.raises(NotFittedError):
        estimator.predict(X)
    estimator.fit(X, names)
    p, found = estimator.predict_proba(X), estimator.predict(X)
    with pytest.raises(ValueError, match="X has 2 features"):
        estimator.predict(X[:, :2])
    with pytest.raises(ValueError, match="y holds one class"):
        estimator.fit(X[:, :2], np.zeros(30))
    usual = estimator.get_params()
    for wrong in (
        {"label_smoothing": 2.0},
        {"learning_rate": -1.0},
        {"optimizer_options": {"misspelt": 1}},
        {"batch_size": 0},
        {"early_stopping": True, "monitor": "misspelt"},
    ):
        with pytest.raises((ValueError, TypeError)):
            estimator.set_params(**wrong).fit(X, np.array(["x", "y", "z"])[Y])
        estimator.set_params(**usual)
        np.testing.assert_array_equal(estimator.predict_proba(X), p)
        np.testing.assert_array_equal(estimator.predict(X), found)
    estimator.partial_fit(X, names)


def test_images_of_another_size_are_told():
    labels = [0, 1] * 3
    estimator = Classifier(epochs=1, device="cpu").fit(np.ones((6, 1, 4, 4)), labels)
    other = np.ones((6, 1, 5, 5))
    for use in (estimator.predict, lambda images: estimator.partial_fit(images, labels)):
        with pytest.raises(ValueError, match=r"\(1, 4, 4\) as before: X has \(1, 5, 5\)"):
            use(other)


def test_the_docstring_lists_every_setting():
    for kind in (Classifier, Regressor):
        for name, value in kind().get_params().items():
            assert f"    {name}: " in kind.__doc__, name
            assert f"Default: {value!r}." in kind.__doc__


def test_balanced_sampling_and_class_weights_warn():
    estimator = Classifier(class_weight="balanced", sampler="balanced", epochs=1, device="cpu")
    with pytest.warns(UserWarning, match="corrects it twice"):
        estimator.fit(X, Y)
    estimator = Classifier(logit_adjustment=1.0, class_weight="balanced", epochs=1, device="cpu")
    with pytest.warns(UserWarning, match="^logit_adjustment and class_weight correct class frequencies"):
        estimator.fit(X, Y)


@pytest.mark.parametrize("further", [{}, {"mixup": 0.2}])
def test_class_weights_are_of_examples_drawn_by_their_weight(further):
    """Of two labels at one point the second has the share Σ w v there: w by sampling, v by weight."""
    rng = np.random.default_rng(0)
    X, y = np.ones((2000, 1)), rng.integers(0, 2, 2000)
    w, v = np.where(y == 1, 3.0, 1.0), np.where(y == 1, 4.0, 1.0)
    estimator = Classifier(hidden_sizes=(), epochs=60, learning_rate=0.05, schedule="cosine", random_state=0)
    estimator.set_params(sampler="weighted", class_weight={0: 1.0, 1: 4.0}, device="cpu", **further)
    p = estimator.fit(X, y, w).predict_proba(X[:1])[0, 1]
    assert p == pytest.approx((w * v * y).sum() / (w * v).sum(), abs=0.01)


def test_class_weights_leave_the_teacher_s_share():
    """Only their ratios count, so that equal ones change nothing."""
    teacher = Classifier(epochs=1, device="cpu").fit(X, Y)
    weight = RNG.uniform(0.1, 2, len(X))
    plain, equal = (
        step(Classifier(teacher=teacher, class_weight=v), linear(3, 3, 0), X, Y, weight)
        for v in (None, dict.fromkeys(range(3), 100.0))
    )
    assert equal[0] == pytest.approx(plain[0])
    np.testing.assert_allclose(equal[1][0], plain[1][0])


def test_checkpoints_are_of_one_fit(tmp_path):
    """Of other data they are refused, or a cross-validation would go on with what it is tested on."""
    X, y = digits(100)
    Classifier(epochs=1, random_state=0, checkpoints=tmp_path, device="cpu").fit(X, y)
    with pytest.raises(ValueError, match="the same data and settings: data"):
        Classifier(epochs=1, random_state=0, checkpoints=tmp_path, device="cpu").fit(X, y[::-1])
    for rule in ({"label_smoothing": 0.1}, {"focal_gamma": 1.0}, {"noise": 0.1}, {"sampler": "balanced"}):
        with pytest.raises(ValueError, match=r"goes on with the same data and settings: .* -> "):
            Classifier(epochs=2, random_state=0, checkpoints=tmp_path, device="cpu", **rule).fit(X, y)
    with pytest.raises(ValueError, match="partial_fit makes one pass, which has no checkpoints"):
        Classifier(checkpoints=tmp_path).partial_fit(X, y, classes=range(10))


class Overflows(nn.Module):
    """Gives infinity at its second step."""

    def __init__(self):
        super().__init__()
        self.layer, self.steps = nn.Linear(64, 10), 0

    def forward(self, x):
        self.steps += self.training
        return self.layer(x) * (float("inf") if self.training and self.steps == 2 else 1.0)


def test_updates_that_are_not_finite_may_be_left_out():
    X, y = digits(200)
    how = {"module": Overflows(), "epochs": 2, "batch_size": 50, "device": "cpu"}
    with pytest.raises(FloatingPointError):
        Classifier(**how).fit(X, y)
    assert Classifier(max_skips=3, **how).fit(X, y).history_["skipped"] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"module": nn.Linear(64, 12)},
            r"logits \(B, 10\), one a class: .* it gives the shape \(1, 12\)",
        ),
        ({"teacher_share": 2.0}, r"teacher_share lies in \[0, 1\]: it is 2.0"),
        ({"logit_adjustment": -1.0}, "logit_adjustment is 0 or more and finite: it is -1.0"),
        ({"logit_adjustment": math.inf}, "logit_adjustment is 0 or more and finite: it is inf"),
        ({"soft_labels": (0.9,)}, "soft_labels is a sequence of 2"),
        ({"noise": np.ones((10, 10))}, "its rows are probabilities"),
    ],
)
def test_rules_and_networks_out_of_range_are_refused(settings, told):
    X, y = digits(100)
    with pytest.raises(ValueError, match=told):
        Classifier(epochs=1, device="cpu", **settings).fit(X, y)


def test_weights_of_labels_are_above_0():
    X, y = make_multilabel_classification(50, random_state=0)
    with pytest.raises(ValueError, match=r"pos_weight is above 0: it is -1\.0"):
        Classifier(epochs=1, device="cpu", pos_weight=-1.0).fit(X, y)
    with pytest.raises(ValueError, match=r"one number, or one for each of 5 labels: it is \(1\.0, 2\.0\)"):
        Classifier(epochs=1, device="cpu", pos_weight=(1.0, 2.0)).fit(X, y)

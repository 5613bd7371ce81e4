"""Bad input: refused before any work, with a message that names what is wrong; never a silent number."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pgce
from pgce import heads, returns, samplers, targets, weights
from pgce.agents import A2C, CEM, GRPO, PPO, RLOO, Reinforce, Supervised
from pgce.optimizer import Optimizer
from pgce.spaces import actions, observations

INF, NAN = math.inf, math.nan
X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
MODEL: Any = pgce.networks.mlp(4, 3)
NO = torch.zeros(3, 2, dtype=torch.bool)


def loss(logits=(6, 3), target=(0, 1, 2, 0, 1, 2), weight=None, **how):
    logits = torch.zeros(logits) if isinstance(logits, tuple) else logits
    given_ = [
        value if value is None or isinstance(value, torch.Tensor) else torch.tensor(value)
        for value in (target, weight)
    ]
    return pgce.weighted_cross_entropy(logits, *given_, **how)


def fit(inputs=X, labels=Y, **how):
    return pgce.fit(pgce.networks.mlp(4, 3), (inputs, labels), device="cpu", epochs=1, **how)


def classify(**how):
    return pgce.Classifier(epochs=1, device="cpu", **how).fit(X.numpy(), Y.numpy())


def agent(kind, **how):
    return kind(quiet=True, device="cpu", track=False, **how).check()


def spoilt(tensor, value, at=2):
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


# What is called, and what its message says: the rule, and the value that breaks it.
TABLE = [
    # targets (row 27)
    (lambda: loss(target=(0, 1, 2, 0, 1, 3)), "3"),
    (lambda: loss(target=(0, 1, 2, 0, 1, -1)), "-1"),
    (lambda: loss(target=(0, 1, 2, 0, 1, -100)), "-100"),
    (lambda: loss(target=(0.0, 1.0, 2.0, 0.0, 1.0, 2.0)), "target"),
    (lambda: loss(target=torch.zeros(6, dtype=torch.bool)), "bool"),
    (lambda: loss(target=torch.zeros(6, 1, dtype=torch.int64)), r"\(6, 1\)"),
    (lambda: loss(target=torch.zeros(5, dtype=torch.int64)), r"\(5,\)"),
    (lambda: loss(target=torch.zeros(6, 4)), r"\(6, 4\)"),
    (lambda: loss(target=torch.full((6, 3), NAN)), "target"),
    (lambda: loss(target=[0, 1, 2, 0, 1, 2], logits=torch.zeros(6, 3, dtype=torch.int64)), "logits"),
    # logits (row 30)
    (lambda: loss(logits=spoilt(torch.zeros(6, 3), INF)), "logits"),
    (lambda: loss(logits=spoilt(torch.zeros(6, 3), NAN)), "logits"),
    (lambda: loss(logits=torch.tensor([[0.0, -INF, 0.0]]), target=[1]), "logits"),
    (lambda: loss(logits=torch.zeros(6)), r"\(6,\)"),
    # weights (row 29)
    (lambda: loss(weight=[1.0] * 5), r"\(5,\)"),
    (lambda: loss(weight=torch.ones(6, 1)), r"\(6, 1\)"),
    (lambda: loss(weight=torch.ones(1)), r"\(1,\)"),
    (lambda: loss(weight=[1.0] * 5 + [NAN]), "weight"),
    (lambda: loss(weight=[1.0] * 5 + [INF]), "weight"),
    (lambda: loss(weight=torch.ones(6, dtype=torch.complex64)), "weights are real"),
    (lambda: loss(weight=[1.0] * 5 + [-1.0], reduction="weighted_mean"), "negative|>= 0|at least 0"),
    (lambda: loss(weight=[0.0] * 6, reduction="weighted_mean"), "0"),
    (lambda: loss(reduction="average"), "average"),
    (lambda: loss(reduction=0.0), "0"),
    (lambda: loss(mask=torch.ones(6)), "mask"),
    (lambda: loss(mask=torch.ones(5, dtype=torch.bool)), r"\(5,\)"),
    # rules of targets and weights
    (lambda: targets.smooth(torch.eye(2), 1.5), "1.5"),
    (lambda: targets.one_hot(torch.tensor([0, 5]), 2), "5"),
    (lambda: weights.focal(torch.ones(3), gamma=-1.0), "-1"),
    (lambda: weights.inverse_frequency(torch.zeros(3)), "0"),
    (lambda: weights.exponential(torch.ones(3), beta=0.0), "0"),
    (lambda: samplers.balanced(pgce.Batch(X, {"target": X}), torch.Generator()), "class ids"),
    # returns
    (lambda: returns.discounted(torch.ones(3, 2), torch.zeros(3, 1).bool(), NO, 0.9), "shape"),
    (lambda: returns.discounted(torch.ones(3, 2), torch.zeros(3, 2), NO, 0.9), "terminated has dtype"),
    (lambda: returns.discounted(torch.ones(3, 2), NO, NO, 1.1), "1.1"),
    (lambda: returns.discounted(torch.ones(6), NO.flatten(), NO.flatten(), 0.9), r"\(T, N\)"),
    # training (rows 8, 28)
    (lambda: fit(labels=spoilt(Y, 3)), "3"),
    (lambda: fit(labels=spoilt(Y, -100)), "-100"),
    (lambda: fit(labels=Y[:5]), "5"),
    (lambda: fit(inputs=X[:, :3]), "3"),
    (lambda: fit(inputs=spoilt(X, NAN)), "finite"),
    (lambda: fit(inputs=X[:0], labels=Y[:0]), "at least one example"),
    (lambda: pgce.fit(MODEL, (X, Y), epochs=0), "epochs is 0"),
    (lambda: fit(learning_rate=NAN), "nan"),
    (lambda: fit(learning_rate=-1.0), "-1"),
    (lambda: fit(max_skips=-1), "-1"),
    (lambda: fit(optimizer="adagrad"), "adagrad"),
    (lambda: fit(patience=3), "validation is missing"),
    (lambda: pgce.evaluate(MODEL, (X, spoilt(Y, 7))), "7"),
    (lambda: Optimizer([], "adam"), "nothing to train"),
    # estimators
    (lambda: classify(label_smoothing=1.5), "1.5"),
    (lambda: classify(focal_gamma=-1.0), "-1"),
    (lambda: classify(class_weight="balnced"), "balnced"),
    (lambda: classify(class_weight={0: 1.0, 1: -1.0, 2: 1.0}), "-1"),
    (lambda: classify(batch_size=0), "batch_size|batch size"),
    (lambda: pgce.Classifier(epochs=1).fit(spoilt(X, NAN).numpy(), Y.numpy()), "NaN"),
    (lambda: pgce.Classifier(epochs=1).fit(X.numpy(), Y.numpy()[:4]), "4"),
    (lambda: pgce.Classifier(epochs=1).fit(X.numpy(), np.zeros(8, int)), "class"),
    (lambda: pgce.Regressor(epochs=1, quantile=1.5).fit(X.numpy(), Y.numpy() * 1.0), "1.5"),
    # agents' settings
    (lambda: agent(PPO, num_envs=0), "num_envs is at least 1: it is 0"),
    (lambda: agent(PPO, num_steps=2.5), "num_steps is a whole number: it is 2.5"),
    (lambda: agent(PPO, seed=-1), "seed is at least 0: it is -1"),
    (lambda: agent(PPO, seed="a"), "seed is a whole number: it is 'a'"),
    (lambda: agent(PPO, env_kwargs=[1]), "env_kwargs is a mapping: it is"),
    (lambda: PPO(quiet=True, track=False).train(3), "env_id is a string: it is 3"),  # type: ignore[arg-type]
    (lambda: PPO(quiet=True, track=False, eval_env_id="Acrobot-v1").train(), r"of Acrobot-v1 Discrete\(3\)"),
    (lambda: agent(PPO, gamma=1.5), "1.5"),
    (lambda: agent(PPO, clip_coef=-0.1), "-0.1"),
    (lambda: agent(PPO, dual_clip=0.5), "0.5"),
    (lambda: agent(PPO, schedules={"gamma_": "linear"}), "gamma_"),
    (lambda: agent(PPO, schedules={"clip_coef": "linaer"}), "linaer"),
    (lambda: agent(A2C, gae_lambda=2.0), "2"),
    (lambda: agent(A2C, memory="rnn"), "rnn"),
    (lambda: agent(GRPO, num_envs=9), "9"),
    (lambda: agent(Reinforce, num_steps=0), "num_steps"),
    (lambda: RLOO(quiet=True, track=False, learning_rate=0.0).train(), "0"),
    (lambda: CEM(quiet=True, track=False, elite=1.0).train(), "1"),
    (lambda: Supervised(quiet=True, track=False, epochs=0).train("iris"), "epochs"),
    (lambda: Supervised(quiet=True, track=False, huber_delta=1.0).train("iris"), "huber_delta"),
    # environments and spaces (row 18 is in test_environments)
    (lambda: pgce.envs.make("CartPole-v1", 0), "0"),
    (lambda: pgce.envs.make("CartPole-v1", 2, vectorization="fast"), "fast"),  # type: ignore[arg-type]
    (lambda: pgce.envs.make("CartPole-v9", 2), "v9|CartPole"),
    (lambda: pgce.envs.make("CartPole-v1", 2, autoreset_mode="Never"), "Never"),
    (lambda: actions(gym.spaces.Text(5)), "Text"),
    (lambda: actions(gym.spaces.Box(-INF, INF, (2,)), "beta"), "inf|bound"),
    (lambda: observations(gym.spaces.Sequence(gym.spaces.Discrete(3))), "Sequence"),
    (lambda: observations(gym.spaces.Graph(gym.spaces.Discrete(3), None)), "Graph"),
    # files
    (lambda: pgce.save(MODEL, "never"), "Perceptron"),
    (lambda: pgce.load("/nonexistent/folder"), "nonexistent"),
]  # fmt: skip


def test_a_target_of_zeros_hides_no_row_in_which_all_is_forbidden():
    logits = torch.tensor([[0.0, 0.0], [-INF, -INF]], requires_grad=True)
    with pytest.raises(ValueError, match=r"nan at \(1,\): its logits overflow, or all are −inf"):
        pgce.weighted_cross_entropy(logits, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    pgce.weighted_cross_entropy(logits[:1], torch.zeros(1, 2)).backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_a_weight_of_0_hides_no_mean_that_is_infinite():
    """Its loss is 0, its gradient 0 · ∞."""
    mean, weight = torch.tensor([0.0, INF]), torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match=r"logits is inf at \(1,\)"):
        pgce.weighted_cross_entropy(mean, torch.zeros(2), weight, head=pgce.heads.Gaussian())


@pytest.mark.parametrize("number", range(len(TABLE)))
def test_refused(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = TABLE[number]
    with pytest.raises((ValueError, TypeError, OSError, ImportError), match=said):
        call()
    assert not list(tmp_path.iterdir())


def test_no_rows_that_count_are_no_loss():
    """Row 28: 0, with zero gradient, and no parameter changed."""
    for rows, mask in ((0, None), (4, torch.zeros(4, dtype=torch.bool))):
        logits = torch.zeros(rows, 3, requires_grad=True)
        value = pgce.weighted_cross_entropy(logits, torch.zeros(rows, dtype=torch.int64), mask=mask)
        value.backward()
        assert value.item() == 0
        assert not logits.grad.any()
    zero = pgce.weighted_cross_entropy(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.zeros(4))
    assert zero.item() == 0


NUMBERS = st.one_of(
    st.floats(-5, 5, width=32),
    st.sampled_from([0.0, -0.0, 1e-30, 80.0, -80.0, 1e4, -1e4, 1e30, INF, -INF, NAN]),
)
SANE = st.floats(-20, 20, width=32)


@st.composite
def batches(draw):
    """Logits, targets, weights and a mask, most of them right, some of them wrong in one way or several."""
    rows, classes = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    numbers = SANE if draw(st.booleans()) else NUMBERS
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    logits = torch.tensor(
        draw(st.lists(numbers, min_size=rows * classes, max_size=rows * classes)), dtype=dtype
    )
    logits = logits.reshape(rows, classes)
    kind = draw(st.sampled_from(["ids", "ids", "dense", "column", "short", "floats", "outside"]))
    if kind in ("ids", "outside"):
        high = classes + 1 if kind == "outside" else classes - 1
        low = -2 if kind == "outside" else 0
        target = torch.tensor(
            draw(st.lists(st.integers(low, high), min_size=rows, max_size=rows)), dtype=torch.int64
        )
    elif kind == "dense":
        target = torch.tensor(draw(st.lists(numbers, min_size=rows * classes, max_size=rows * classes)))
        target = target.reshape(rows, classes).to(dtype)
    else:
        shape = {"column": (rows, 1), "short": (max(rows - 1, 0),), "floats": (rows,)}[kind]
        target = torch.zeros(shape, dtype=torch.float32 if kind == "floats" else torch.int64)
    weight = None
    if draw(st.booleans()):
        size = rows if draw(st.integers(0, 9)) else rows + 1
        weight = torch.tensor(draw(st.lists(numbers, min_size=size, max_size=size)), dtype=torch.float32)
        if draw(st.integers(0, 9)) == 0:
            weight = weight[:, None]
    mask = None
    if draw(st.booleans()):
        mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows, max_size=rows)), dtype=torch.bool)
    return logits, target, weight, mask, draw(st.sampled_from(["mean", "sum", "weighted_mean"]))


def reference(logits, target, weight, mask, reduction):
    """In float64, a row at a time."""
    rows = [n for n in range(len(logits)) if mask is None or bool(mask[n])]
    losses, added = 0.0, 0.0
    for n in rows:
        z = logits[n].double().numpy()
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        y = np.zeros(len(z)) if target.ndim == 1 else target[n].double().numpy()
        if target.ndim == 1:
            y[int(target[n])] = 1.0
        w = 1.0 if weight is None else float(weight[n])
        if w == 0:
            continue
        losses += w * -sum(y[k] * log_p[k] for k in range(len(z)) if y[k] != 0)
        added += w
    return losses / {"mean": max(len(rows), 1), "sum": 1, "weighted_mean": added or 1.0}[reduction]


def right_or_refused(batch):
    logits, target, weight, mask, reduction = batch
    before = [None if each is None else each.clone() for each in batch[:4]]
    leaf = logits.clone().requires_grad_()
    try:
        value = pgce.weighted_cross_entropy(leaf, target, weight, mask=mask, reduction=reduction)
    except (ValueError, TypeError):
        refused = True
    else:
        refused = False
        assert value.shape == ()
        assert value.isfinite()
        value.backward()
        assert leaf.grad is not None
        sizes = target.double().abs().sum(1) if target.ndim == 2 else torch.ones(len(target))
        sizes = sizes if weight is None else sizes * weight.double().abs()
        if (sizes < 1e38).all():  # else w · y itself is no float32, which an optimizer sees and refuses
            assert leaf.grad.isfinite().all()
        expected = reference(logits, target, weight, mask, reduction)
        exact = 1e-10 if logits.dtype == torch.float64 else 2e-5
        largest = max(
            [1.0, abs(expected), *(abs(w) for w in ([] if weight is None else weight.tolist()) if w == w)]
        )
        scale = largest * max(
            1.0, float(logits.double().abs().nan_to_num(0, 0, 0).max()) if logits.numel() else 1.0
        )
        assert value.item() == pytest.approx(expected, rel=exact, abs=exact * scale)
    for each, old in zip(batch[:4], before, strict=True):
        assert each is old is None or torch.equal(each.nan_to_num(), old.nan_to_num())
    return refused


@settings(max_examples=400)
@given(batches())
def test_right_or_refused(batch):
    right_or_refused(batch)


@pytest.mark.slow
def test_right_or_refused_ten_thousand_times():
    outcomes = []

    @settings(max_examples=10_000)
    @given(batches())
    def many(batch):
        outcomes.append(right_or_refused(batch))

    many()
    assert len(outcomes) >= 10_000
    assert 2_000 < sum(outcomes) < 9_000, "both happen"


HEADS = {
    "Categorical": (heads.Categorical(), 3, lambda n, g: torch.randint(3, (n,), generator=g)),
    "Bernoulli": (heads.Bernoulli(), 3, lambda n, g: torch.randint(2, (n, 3), generator=g).float()),
    "Gaussian": (heads.Gaussian(), 1, lambda n, g: torch.randn(n, 1, generator=g)),
    "Laplace": (heads.Laplace(), 1, lambda n, g: torch.randn(n, 1, generator=g)),
    "Poisson": (heads.Poisson(), 1, lambda n, g: torch.randint(5, (n, 1), generator=g).float()),
}


@pytest.mark.parametrize("name", HEADS)
@settings(max_examples=100)
@given(
    rows=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    wrong=st.sampled_from(["no", "nan", "inf", "rows", "column"]),
)
def test_every_head_is_right_or_refuses(name, rows, seed, wrong):
    head, outputs, draw = HEADS[name]
    g = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(rows, outputs, generator=g), draw(rows, g)
    if wrong in ("nan", "inf"):
        logits[rows // 2] = NAN if wrong == "nan" else INF
    if wrong == "rows":
        target = draw(rows + 1, g)
    weight = torch.ones(rows, 2) if wrong == "column" else None
    if wrong == "no":
        assert pgce.weighted_cross_entropy(logits, target, head=head).isfinite()
    else:
        with pytest.raises(ValueError, match=r"logits|target|weight"):
            pgce.weighted_cross_entropy(logits, target, weight, head=head)


@settings(max_examples=200)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 6),
    n=st.integers(1, 3),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_returns_equal_loops(seed, steps, n, gamma, lam):
    g = torch.Generator().manual_seed(seed)
    reward, value, following = torch.randn(3, steps, n, generator=g, dtype=torch.float64)
    terminated, truncated = torch.rand(2, steps, n, generator=g) < 0.2
    ours = returns.gae(reward, terminated, truncated, value, following, gamma, lam)
    total = returns.discounted(reward, terminated, truncated, gamma, following)
    for i in range(n):
        trace, later = 0.0, None
        for t in reversed(range(steps)):
            alive, goes_on = not terminated[t, i], not (terminated[t, i] or truncated[t, i])
            delta = reward[t, i] + gamma * following[t, i] * alive - value[t, i]
            trace = delta + gamma * lam * trace * goes_on
            assert ours[t, i].item() == pytest.approx(float(trace), abs=1e-10)
            beyond = later if goes_on and later is not None else following[t, i] * alive
            later = reward[t, i] + gamma * beyond
            assert total[t, i].item() == pytest.approx(float(later), abs=1e-10)

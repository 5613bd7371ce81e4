"""`fit` against a torch loop written by hand."""

from __future__ import annotations

import copy
import json
import math
import shutil
import threading
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import pgce
from pgce.checkpoint import Checkpoints
from pgce.data import as_batch
from pgce.heads import Bernoulli, Categorical, Gaussian, Poisson, Transformed, tempered
from pgce.samplers import balanced, weighted
from pgce.targets import distilled, mixup, one_hot
from pgce.weights import focal, per_class, product

DOUBLE = torch.float64


def digits():
    data = pgce.envs.datasets.load("digits")
    return torch.from_numpy(data.train_inputs).double(), torch.from_numpy(data.train_labels)


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()


@pytest.mark.parametrize(("name", "optimizer"), [("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)])
@pytest.mark.parametrize("seed", [1, 2])
def test_parameters_equal_a_hand_written_loop_s(name, optimizer, seed):
    """Three epochs on digits in float64: the same to 1e-10."""
    inputs, labels = digits()
    ours, theirs = network(seed), network(seed)
    pgce.fit(
        ours,
        (inputs, labels),
        optimizer=name,
        learning_rate=1e-2,
        epochs=3,
        batch_size=50,
        seed=seed,
        device="cpu",
    )
    stepper = optimizer(theirs.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for rows in torch.randperm(len(inputs), generator=generator).split(50):
            stepper.zero_grad()
            F.cross_entropy(theirs(inputs[rows]), labels[rows]).backward()
            stepper.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    untrained = next(network(seed).parameters())
    assert (next(ours.parameters()) - untrained).abs().max() > 1e-2


def test_history_validation_and_stopping():
    inputs, labels = digits()
    seen = []

    def after(row, report):
        seen.append(row)
        assert len(report.batch) == 128, "the last whole batch, not the rest of 67"
        return len(seen) == 3

    history = pgce.fit(
        network(0),
        (inputs, labels),
        validation=(inputs[:100], labels[:100]),
        epochs=9,
        after=after,
        device="cpu",
    )
    assert history["epoch"] == [1, 2, 3]
    assert history["examples"] == [1347, 2694, 4041]
    assert history["loss"][2] < history["loss"][0] < math.log(10) + 0.1
    assert history["val_accuracy"][2] > history["val_accuracy"][0]
    assert seen == history.epochs
    assert history["accuracy"][2] > history["accuracy"][0]
    # Of one batch: the share right before its update.
    untrained = pgce.evaluate(network(0), (inputs, labels))["accuracy"]
    assert fitted(batch_size=2000)[1]["accuracy"] == [pytest.approx(untrained)]


def test_the_schedule_runs_to_its_end():
    rates = pgce.fit(
        network(0), digits(), epochs=4, schedule="linear", learning_rate=1.0, optimizer="sgd",
        max_grad_norm=1e-6, device="cpu",
    )["learning_rate"]  # fmt: skip
    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx(0.5, abs=0.03)
    assert 0 < rates[-1] < 0.03
    whole = {"epochs": 3, "batch_size": 2000, "warmup_steps": 4, "learning_rate": 1.0, "device": "cpu"}
    assert pgce.fit(network(0), digits(), **whole)["learning_rate"] == [0.25, 0.5, 0.75]


def test_sample_weight_zero_leaves_an_example_out():
    inputs, labels = digits()
    wrong = labels.clone()
    weight = torch.ones(len(labels), dtype=DOUBLE)
    wrong[::2], weight[::2] = 0, 0.0
    ours, clean = network(0), network(0)
    options = {"epochs": 1, "batch_size": len(labels), "optimizer": "sgd", "device": "cpu"}
    pgce.fit(ours, (inputs, wrong, weight), weight="sample_weight", learning_rate=2.0, **options)
    pgce.fit(clean, (inputs[1::2], labels[1::2]), learning_rate=1.0, **options)
    # w = 0 counts in n: 1347 rows instead of 673
    for a, b in zip(ours.parameters(), clean.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-5)


def test_regression_and_yes_or_no():
    torch.manual_seed(0)
    inputs = torch.randn(300, 3)
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    slope = torch.tensor([1.0, -2.0, 0.5])
    pgce.fit(model, (inputs, inputs @ slope), head=Gaussian(), epochs=60, learning_rate=0.05, device="cpu")
    torch.testing.assert_close(model[0].weight[0], slope, rtol=0, atol=1e-3)
    assert "accuracy" not in pgce.evaluate(model, (inputs, inputs @ slope), head=Gaussian())
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    yes = inputs[:, 0] > 0
    pgce.fit(model, (inputs, yes), head=Bernoulli(), epochs=60, learning_rate=0.1, device="cpu")
    assert (pgce.predict(model, inputs, head=Bernoulli()) == yes).float().mean() > 0.97


def test_layers_that_are_in_evaluation_mode_stay_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).train()
    model[1].eval()
    data = torch.eye(2), torch.arange(2)
    pgce.evaluate(model, data)
    assert [module.training for module in model.modules()] == [True, True, False]
    pgce.fit(model, data, epochs=2, device="cpu")
    assert [module.training for module in model.modules()] == [True, True, False]
    assert model[1].num_batches_tracked == 0
    pgce.fit(model.eval(), data, epochs=2, device="cpu")  # none of it was held back
    assert [module.training for module in model.modules()] == [True, True, True]
    assert model[1].num_batches_tracked == 2


def test_numpy_predicts_in_evaluation_mode_and_leaves_the_mode():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    inputs = np.random.default_rng(0).normal(size=(50, 4))
    model.train()
    first, second = pgce.predict(model, inputs), pgce.predict(model, inputs)
    assert torch.equal(first, second)
    assert model.training
    batch = as_batch((inputs, np.arange(50)))
    assert batch.input.dtype == torch.float32
    assert batch["target"].dtype == torch.int64


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fitted(data=None, **options):
    """The parameters after an epoch on digits in float64."""
    model = network(0)
    history = pgce.fit(model, digits() if data is None else data, **{"epochs": 1, "device": "cpu", **options})
    return parameters(model), history


@pytest.mark.parametrize("size", [1, 7, 50, 128, 1000])
def test_pieces_of_a_batch_make_the_same_step(size):
    """Gradient accumulation: the divisor is the whole batch's, the last piece may be smaller."""
    inputs, labels = digits()
    data = (inputs[:300], labels[:300], torch.rand(300, dtype=DOUBLE))
    whole, a = fitted(data, weight="sample_weight", optimizer="sgd", learning_rate=0.5)
    pieces, b = fitted(
        data, weight="sample_weight", optimizer="sgd", learning_rate=0.5, micro_batch_size=size
    )
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    assert a["loss"] == pytest.approx(b["loss"], abs=1e-12)
    assert a["steps"] == b["steps"] == [3]


def test_every_kind_of_data_trains_the_same():
    inputs, labels = digits()
    whole, history = fitted((inputs, labels), batch_size=2000)
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=2000)
    for data in (
        TensorDataset(inputs, labels),
        loader,
        {"input": inputs, "target": labels},
        pgce.Batch(inputs, {"target": labels}),
        list_dataset(inputs, labels),
    ):
        other, same = fitted(data, batch_size=2000)
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-10)
        assert same["examples"] == history["examples"] == [1347]
    model = network(0)
    scores = pgce.evaluate(model, (inputs, labels))
    assert pgce.evaluate(model, loader) == pytest.approx(scores)
    assert torch.equal(pgce.predict(model, loader), pgce.predict(model, inputs))
    p = pgce.predict_proba(model, inputs)
    torch.testing.assert_close(p, model(inputs).softmax(-1).detach())


def list_dataset(inputs, labels):
    class Pairs(Dataset):
        def __len__(self):
            return len(inputs)

        def __getitem__(self, i):
            return inputs[i], labels[i]

    return Pairs()


def test_a_stream_of_unknown_length_trains():
    inputs, labels = digits()

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(zip(inputs, labels, strict=True))

    _, history = fitted(DataLoader(Stream(), batch_size=100), epochs=2, schedule="linear")
    assert history["examples"] == [1347, 2694]


def test_early_stopping_keeps_the_best_weights():
    inputs, labels = digits()
    held_out = (inputs[700:], labels[700:])
    kept = []

    model = network(0)
    history = pgce.fit(
        model, (inputs[:60], labels[:60]), validation=held_out, patience=5, epochs=400, learning_rate=0.03,
        batch_size=20, after=lambda row, report: kept.append(parameters(model)), device="cpu",
    )  # fmt: skip
    losses = history["val_loss"]
    assert history.stopped == "patience"
    assert history.best_epoch == losses.index(min(losses)) + 1 == len(losses) - 5
    assert torch.equal(parameters(model), kept[history.best_epoch - 1])
    assert not torch.equal(parameters(model), kept[-1])
    assert pgce.evaluate(model, held_out)["loss"] == pytest.approx(min(losses), abs=1e-12)


def test_an_average_that_was_kept_is_none_that_training_goes_on_from():
    inputs, labels = digits()
    settings = {"batch_size": 2000, "device": "cpu"}
    together, apart = network(0), network(0)
    pgce.fit(together, (inputs, labels), epochs=4, ema_decay=0.9, learning_rate=0.01, **settings)
    stack = pgce.optimizer.Optimizer(apart.parameters(), "adam", learning_rate=0.01, ema_decay=0.9)
    for _ in range(2):
        pgce.fit(apart, (inputs, labels), optimizer=stack, epochs=2, **settings)
    torch.testing.assert_close(parameters(apart), parameters(together), rtol=0, atol=1e-12)
    with torch.no_grad():
        changed = apart[0].weight.zero_().clone()
    pgce.fit(apart, (inputs, labels), optimizer=stack, epochs=1, after=lambda *_: True, **settings)
    assert (apart[0].weight - changed).abs().max() < 0.1, "from where it was put"


def test_early_stopping_by_a_metric_that_is_to_rise():
    inputs, labels = digits()
    model = network(0)
    history = pgce.fit(
        model, (inputs[:60], labels[:60]), validation=(inputs[700:], labels[700:]), patience=3, epochs=50,
        monitor="val_f1_macro", metrics=pgce.metrics.classification, learning_rate=0.03, device="cpu",
    )  # fmt: skip
    scores = history["val_f1_macro"]
    assert history.best_epoch == scores.index(max(scores)) + 1
    assert set(history.epochs[0]) >= {"val_roc_auc", "val_ece", "val_brier", "val_top_5_accuracy"}


def test_the_average_of_the_weights_is_what_is_kept():
    """Against the recursion, with its warm-up, on the parameters after each update."""
    inputs, labels = digits()
    ours, theirs = network(0), network(0)
    options = {"epochs": 4, "batch_size": 2000, "learning_rate": 0.01, "device": "cpu"}
    pgce.fit(ours, (inputs, labels), ema_decay=0.5, **options)
    average = parameters(theirs)

    def after(row, report):
        nonlocal average
        n = row["steps"]
        decay = min(0.5, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * parameters(theirs)

    pgce.fit(theirs, (inputs, labels), after=after, **options)
    torch.testing.assert_close(parameters(ours), average, rtol=0, atol=1e-12)
    assert (average - parameters(theirs)).abs().max() > 1e-4


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_reaches_the_same_place(precision):
    inputs, labels = digits()
    data = (inputs.float(), labels)
    models = [network(0).float() for _ in range(2)]
    for model, name in zip(models, ("float32", precision), strict=True):
        pgce.fit(model, data, epochs=5, learning_rate=1e-2, precision=name, device="cpu")
    assert {p.dtype for p in models[1].parameters()} == {torch.float32}
    full, half = (pgce.evaluate(model, data)["loss"] for model in models)
    assert full < 0.3
    assert half == pytest.approx(full, rel=0.05)
    assert half != full


def test_float16_leaves_steps_out_until_the_gradients_fit():
    model = nn.Linear(4, 2)
    stack = pgce.optimizer.Optimizer(model.parameters(), "sgd", learning_rate=1e-3, precision="float16")
    inputs = 100 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    pgce.fit(model, (inputs, inputs[:, 0].gt(0).long()), optimizer=stack, epochs=30, device="cpu")
    assert stack.skipped + stack.steps == 30
    assert 0 < stack.skipped < 15
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_examples_of_updates_left_out_do_not_lower_the_loss():
    calls = []

    def broken(cross_entropy, batch):
        calls.append(len(batch))  # the first of the check, then four an epoch
        lost = len(calls) in (3, 4, 6, 7, 8, 9)
        return torch.full_like(cross_entropy, math.nan if lost else 1.0)

    model = nn.Linear(64, 10).double()
    inputs, labels = digits()
    how = {"learning_rate": 1e-12, "batch_size": 337, "max_skips": 9, "weight": broken, "device": "cpu"}
    history = pgce.fit(model, (inputs, labels), epochs=3, **how)
    loss = pgce.evaluate(model, (inputs, labels))["loss"]
    assert history["skipped"] == [2, 6, 6]
    assert history["loss"][0] == pytest.approx(loss, rel=0.1)
    assert math.isnan(history["loss"][1]), "no update was made"
    assert history["loss"][2] == pytest.approx(loss, rel=1e-6)
    assert history["examples"] == [1347, 2694, 4041]


def test_a_seed_repeats_dropout_and_leaves_torch_s_own_generator_alone():
    def run(seed):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)).double()
        before = torch.get_rng_state()
        pgce.fit(model, digits(), epochs=1, seed=seed, device="cpu")
        assert torch.equal(torch.get_rng_state(), before)
        return parameters(model)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_several_terms_are_one_objective():
    """Half the label, half a teacher at a temperature: Hinton's distillation."""
    inputs, labels = digits()
    teacher, T = network(5), 2.0
    batch = pgce.Batch(inputs, {"target": labels, "teacher": teacher(inputs).detach()})
    terms = {
        "label": pgce.Term(Categorical(), coefficient=0.5),
        "teacher": pgce.Term(
            Transformed(partial(tempered, temperature=T)),
            target=lambda z, b: distilled(b["teacher"], T),
            coefficient=0.5 * T**2,
        ),
    }
    ours, theirs = network(0), network(0)
    options = {"optimizer": "sgd", "learning_rate": 0.5, "device": "cpu"}
    pgce.fit(ours, batch, terms=terms, epochs=3, batch_size=2000, **options)
    stepper = torch.optim.SGD(theirs.parameters(), lr=0.5)
    for _ in range(3):
        stepper.zero_grad()
        z, soft = theirs(inputs), (batch["teacher"] / T).softmax(-1)
        student = (z / T).log_softmax(-1)
        loss = 0.5 * F.cross_entropy(z, labels) + 0.5 * T**2 * F.kl_div(student, soft, reduction="batchmean")
        loss.backward()
        stepper.step()
    torch.testing.assert_close(parameters(ours), parameters(theirs), rtol=0, atol=1e-12)


def test_augmentation_and_sampling():
    inputs, labels = digits()
    rows = one_hot(labels, 10, DOUBLE)
    _, history = fitted((inputs, rows), augment=mixup, epochs=3, learning_rate=0.01)
    assert history["loss"][-1] < history["loss"][0]
    rare = torch.cat([torch.arange(1200), torch.arange(1200)[labels[:1200] == 3]])
    seen = []

    def after(row, report):
        seen.append(report.target)

    fitted((inputs[rare], labels[rare]), sampler=balanced, after=after, batch_size=2000)
    number = torch.bincount(seen[0])
    assert seen[0].numel() == len(rare)
    assert number.max() < 1.4 * number.min()


@pytest.mark.parametrize("sampler", [balanced, weighted])
def test_a_sampler_is_refused_where_others_choose_the_examples(sampler):
    told = TensorDataset(*digits(), torch.rand(len(digits()[0]), dtype=DOUBLE))
    for data in (DataLoader(told, 50), list_dataset(*digits())):
        with pytest.raises(
            ValueError, match=f"in memory: these come from a {type(data).__name__}, for whose"
        ):
            fitted(data, sampler=sampler)
    fitted(told, sampler=sampler)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiling_changes_nothing_but_time():
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    plain, _ = fitted(optimizer="sgd", learning_rate=0.1)
    compiled, _ = fitted(optimizer="sgd", learning_rate=0.1, compile=True)
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-9)


def test_a_model_is_compiled_for_the_time_of_the_call(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda call: call)
    model, seen = network(0), []
    pgce.fit(
        model, (X, Y), epochs=1, compile=True, after=lambda row, _: seen.append(model._compiled_call_impl)
    )
    assert seen == [model._call_impl]
    assert model._compiled_call_impl is None


def test_updates_left_out_do_not_lower_the_loss():
    inputs, labels = torch.randn(64, 3), torch.arange(64) % 2
    model, calls = nn.Linear(3, 2), []

    def weight(cross_entropy, batch):
        calls.append(len(cross_entropy))
        return torch.full_like(cross_entropy, 1.0 if len(calls) % 2 and len(calls) < 82 else math.inf)

    how = {"batch_size": 16, "learning_rate": 1e-9, "max_skips": 9, "device": "cpu"}
    history = pgce.fit(model, (inputs, labels), weight=weight, epochs=21, **how)
    # The rule is called once to be checked; then every second update is left out, and in the last epoch all.
    assert history["skipped"][-2:] == [40, 44]
    loss = pgce.evaluate(model, (inputs, labels))["loss"]
    assert np.mean(history["loss"][:-1]) == pytest.approx(loss, rel=0.1)
    assert math.isnan(history["loss"][-1])
    assert math.isnan(history["accuracy"][-1])


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_cuda_device_trains_as_the_cpu_does(precision):
    inputs, labels = digits()
    data = (inputs.float(), labels, torch.rand(len(labels)))
    losses = {}
    for device in ("cpu", "cuda"):
        model = network(0).float()
        rule = product("sample_weight", partial(per_class, class_weight=torch.linspace(1, 2, 10)), focal)
        used = precision if device == "cuda" else "float32"
        pgce.fit(model, data, weight=rule, epochs=5, learning_rate=0.01, precision=used, device=device)
        assert next(model.parameters()).device.type == device
        losses[device] = pgce.evaluate(model, data)["loss"]
        assert pgce.predict_proba(model, data[0]).device.type == "cpu"
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)


X, Y = torch.randn(6, 64, dtype=DOUBLE), torch.arange(6)


@pytest.mark.parametrize(
    ("head", "target", "told"),
    [
        (Poisson(), -np.ones((4, 3)), "counts are 0 or more: target holds -1"),
        (Bernoulli(), np.full((4, 3), 2), "yes-or-no targets are 0 or 1: target holds values from 2 to 2"),
    ],
)
def test_evaluation_refuses_targets_that_mean_nothing(head, target, told):
    with pytest.raises(ValueError, match=told):
        pgce.evaluate(nn.Linear(4, 3), (np.eye(4), target), head=head)


def test_a_stack_may_be_of_a_part_of_the_model():
    model = network(0)
    stack = pgce.optimizer.Optimizer(model[2].parameters())
    pgce.fit(model, (X, Y), optimizer=stack, epochs=1, device="cpu")
    assert torch.equal(model[0].weight, network(0)[0].weight)
    assert not torch.equal(model[2].weight, network(0)[2].weight)


def test_a_layer_that_is_frozen_after_an_epoch_stays_as_it_is():
    model, seen = network(0), []

    def after(row, report):
        seen.append([layer.weight.detach().clone() for layer in (model[0], model[2])])
        model[0].requires_grad_(row["epoch"] < 2)

    pgce.fit(model, (X, Y), epochs=4, batch_size=3, after=after, device="cpu")
    assert [not torch.equal(a[0], b[0]) for a, b in pairwise(seen)] == [True, False, False]
    assert [not torch.equal(a[1], b[1]) for a, b in pairwise(seen)] == [True, True, True]


def test_what_was_frozen_is_so_after_a_checkpoint(tmp_path):
    def after(row, report):
        model[0].requires_grad_(row["epoch"] < 2)

    how = {"batch_size": 3, "after": after, "device": "cpu"}
    model = whole = network(0)
    pgce.fit(model, (X, Y), epochs=4, **how)
    for epochs in (2, 4):
        model = network(0)
        pgce.fit(model, (X, Y), epochs=epochs, checkpoints=tmp_path, **how)
    assert all(map(torch.equal, model.parameters(), whole.parameters()))


def test_a_layer_that_would_learn_from_now_on_is_told():
    model = network(0)
    model[0].requires_grad_(False)

    def after(row, report):
        model[0].requires_grad_(True)

    told = "2 of the parameters that it left alone do so now"
    with pytest.raises(ValueError, match=told):
        pgce.fit(model, (X, Y), epochs=3, after=after, device="cpu")
    pgce.fit(model, (X, Y), epochs=3, device="cpu")
    assert not torch.equal(model[0].weight, network(0)[0].weight)


def test_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="momentun"):
        pgce.fit(network(0), (X, Y), optimizer="sgd", momentun=0.9, device="cpu")


def test_a_third_part_of_the_data_weighs_unless_told_otherwise():
    inputs, labels = digits()
    weight = torch.rand(len(inputs), dtype=DOUBLE)
    data = (inputs, labels, weight)
    weighs, told, not_so, plain = (
        fitted(data)[1]["loss"],
        fitted(data, weight="sample_weight")[1]["loss"],
        fitted(data, weight=pgce.weights.one)[1]["loss"],
        fitted((inputs, labels))[1]["loss"],
    )
    assert weighs == told != plain == not_so
    assert fitted(TensorDataset(*data))[1]["loss"] == weighs
    assert (
        fitted(data, sampler=weighted)[1]["loss"]
        == fitted(data, sampler=weighted, weight=pgce.weights.one)[1]["loss"]
    )


class Steps(nn.Module):
    """Logits of each step of sequences (B, L), which it takes note of."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(1, 2), set()

    def forward(self, x):
        self.seen.add(tuple(x.shape[1:]))
        return self.layer(x.unsqueeze(-1))


def sequences():
    x = torch.linspace(-3, 3, 30 * 7).reshape(30, 7)
    return x, (x > 0).long(), torch.arange(7) < torch.arange(30).unsqueeze(1) % 7 + 1


@pytest.mark.parametrize("masked", [False, True])
def test_sequences_stay_whole_and_their_steps_are_judged(masked):
    x, y, mask = sequences()
    data = pgce.Batch(x, {"target": y.masked_fill(~mask, -100)}, mask) if masked else (x, y)
    model = Steps()
    how = {"epochs": 60, "batch_size": 10, "learning_rate": 0.1, "device": "cpu"}
    history = pgce.fit(model, data, validation=data, **how)
    assert model.seen == {(7,)}
    assert history["accuracy"][0] < 1
    assert 0.9 < history["accuracy"][-1] <= 1
    assert history["val_accuracy"][-1] == pgce.evaluate(model, data)["accuracy"]
    with torch.no_grad():
        right = (model(x).argmax(-1) == y)[mask if masked else ...].double().mean().item()
    assert history["val_accuracy"][-1] == pytest.approx(right)


def test_a_log_is_closed_also_where_training_fails(tmp_path):
    data, threads = (torch.randn(16, 2), torch.arange(16) % 2), threading.active_count()
    how = {"epochs": 3, "learning_rate": 1e30, "optimizer": "sgd", "log": tmp_path, "device": "cpu"}
    with pytest.raises(FloatingPointError):
        pgce.fit(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), data, **how)
    assert threading.active_count() == threads  # each open log has one that writes


def test_a_log_that_goes_on_from_a_checkpoint_has_every_epoch_once(tmp_path):
    data = torch.randn(16, 2), torch.arange(16) % 2

    def trained(after=None):
        keeper = partial(Checkpoints, tmp_path / "checkpoints", every=0)
        how = {"epochs": 4, "log": tmp_path / "log", "checkpoints": keeper, "device": "cpu"}
        return pgce.fit(nn.Linear(2, 2), data, after=after, **how)

    def killed(row, _):
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(killed)
    history = trained()
    lines = (tmp_path / "log" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == history["examples"]
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.step for event in events.Scalars("objective/loss")] == history["examples"]


def test_batches_of_sequences_of_several_lengths_are_evaluated_by_their_masks():
    model = nn.Embedding(9, 3)
    tokens = [torch.arange(2 * length).view(2, length) % 9 for length in (3, 4)]
    plain = [(x, x % 3) for x in tokens]
    with pytest.raises(ValueError, match=r"masks \(B, L\) .* these give \(3, 3\) and \(4, 3\)"):
        pgce.evaluate(model, DataLoader(plain, batch_size=None))
    masked = [pgce.Batch(x, {"target": y}, torch.ones_like(x, dtype=torch.bool)) for x, y in plain]
    x = torch.cat([x.flatten() for x in tokens])
    scores = pgce.evaluate(model, DataLoader(masked, batch_size=None))
    assert scores == pytest.approx(pgce.evaluate(model, (x, x % 3)))


def test_a_metric_of_one_s_own_has_a_direction_and_is_logged(tmp_path):
    inputs, labels = digits()
    data = (inputs, labels)

    def metrics(target, p):
        return {"wrong": float((p.argmax(1) != target).double().mean())}

    how = {"validation": data, "metrics": metrics, "patience": 9, "monitor": "val_wrong", "epochs": 4}
    with pytest.raises(
        ValueError, match='mode is "min" or "max" of a metric of your own: monitor is \'val_wrong\''
    ):
        fitted(data, **how)
    history = fitted(data, **how, mode="min", log=tmp_path)[1]
    assert history.best_epoch == 1 + int(np.argmin(history["val_wrong"])) > 1
    assert fitted(data, **how, mode="max")[1].best_epoch == 1
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [e.value for e in events.Scalars("eval/own/wrong")] == pytest.approx(history["val_wrong"])


class Halves(nn.Module):
    """Digits, whose upper and lower half it is given by name."""

    def __init__(self):
        super().__init__()
        self.whole = network(0)

    def forward(self, x):
        return self.whole(torch.cat([x["upper"], x["lower"]], 1))


def halves(inputs):
    return {"upper": inputs[:, :32], "lower": inputs[:, 32:]}


class Rows(Dataset[object]):
    """Rows of inputs by name, as a tuple or a mapping."""

    def __init__(self, inputs, labels, form):
        self.data, self.form = (halves(inputs), labels), form

    def __len__(self):
        return len(self.data[1])

    def __getitem__(self, i):
        inputs, label = {name: values[i] for name, values in self.data[0].items()}, self.data[1][i]
        return (inputs, label) if self.form == "tuple" else {"input": inputs, "target": label}


def test_inputs_by_name_train_as_one_tensor_does():
    inputs, labels = digits()
    named, whole = halves(inputs), fitted(batch_size=2000)[0]
    several = [Rows(inputs, labels, form) for form in ("tuple", "mapping")]
    for data in (
        (named, labels),
        {"input": named, "target": labels},
        *several,
        *(DataLoader(rows, batch_size=2000) for rows in several),
        DataLoader([pgce.Batch(named, {"target": labels})], batch_size=None),
    ):
        model = Halves()
        pgce.fit(model, data, validation=data, batch_size=2000, epochs=1, device="cpu")
        torch.testing.assert_close(parameters(model), whole, rtol=0, atol=1e-10)


def test_inputs_by_name_are_predicted():
    inputs, labels = digits()
    named, model = halves(inputs), Halves()
    assert torch.equal(pgce.predict(model, named), pgce.predict(model.whole, inputs))
    assert torch.equal(pgce.predict(model, {"input": named}), pgce.predict(model.whole, inputs))
    p = pgce.predict_proba(model, DataLoader(Rows(inputs, labels, "mapping"), batch_size=100))
    torch.testing.assert_close(p, pgce.predict_proba(model, named))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"upper": X[:, :32], "lower": X[:5, 32:]}, r"\{'upper': \(6, 32\), 'lower': \(5, 32\)\}"),
        ({}, r"\{\}"),
    ],
)
def test_inputs_by_name_have_as_many_rows(inputs, told):
    rule = "inputs by name have one row an example each: their shapes are"
    with pytest.raises(ValueError, match=f"{rule} {told}"):
        pgce.fit(Halves(), (inputs, Y), device="cpu")
    with pytest.raises(ValueError, match=f"{rule} {told}"):
        pgce.predict(Halves(), inputs)


class TwoHeads(nn.Module):
    """Of (B, 3): which of two classes, and a value."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.label, self.value = nn.Linear(3, 2), nn.Linear(3, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return {"label": self.label(x), "value": self.value(x).squeeze(-1)}


def labels_and_values(rows=200):
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    return pgce.Batch(x, {"target": (x[:, 0] > 0).long(), "value": 100 + x[:, 1]})


TERMS = {
    "value": pgce.Term(Gaussian(), target="value", output="value"),
    "label": pgce.Term(Categorical(), output="label"),
    "soft": pgce.Term(Categorical(), target=lambda z, batch: (z / 2).softmax(-1), output="label"),
}
TOLD = {"epochs": 3, "learning_rate": 0.05, "device": "cpu"}


def test_held_out_data_are_scored_by_the_column_of_each_term():
    data, model = labels_and_values(), TwoHeads()
    history = pgce.fit(model, data, terms=TERMS, validation=data, **TOLD)
    value = pgce.evaluate(model, data, head=Gaussian(), target="value", output="value")
    label = pgce.evaluate(model, data, output="label")
    last = history.epochs[-1]
    assert value["loss"] == pytest.approx(
        F.gaussian_nll_loss(model(data.input)["value"], data["value"], torch.ones(200), full=True).item()
    )
    assert {name: x for name, x in last.items() if name.startswith("val_")} == pytest.approx(
        {"val_loss": value["loss"], "val_label_loss": label["loss"]}
    )


def test_held_out_data_go_through_the_model_once_for_all_terms():
    data, model = labels_and_values(), TwoHeads()
    pgce.fit(model, data, terms=TERMS, batch_size=200, **TOLD)
    alone, model.calls = model.calls, 0
    pgce.fit(model, data, terms=TERMS, batch_size=200, validation=data, **TOLD)
    assert model.calls == alone + TOLD["epochs"] + 1  # and once before the first step


def test_a_further_term_can_be_watched():
    data = labels_and_values()
    how = {**TOLD, "terms": TERMS, "validation": data, "patience": 2, "epochs": 4}
    history = pgce.fit(TwoHeads(), data, monitor="val_label_loss", **how)
    assert history.best_epoch == 1 + int(np.argmin(history["val_label_loss"]))


def test_a_further_term_is_scored_where_the_held_out_data_have_its_target():
    data = labels_and_values()
    held_out = pgce.Batch(data.input, {"value": data["value"]})
    history = pgce.fit(TwoHeads(), data, terms=TERMS, validation=held_out, **TOLD)
    assert {name for name in history.epochs[0] if name.startswith("val_")} == {"val_loss"}


def test_early_stopping_looks_at_the_column_that_target_names():
    data = labels_and_values()
    model = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))
    history = pgce.fit(
        model, data, head=Gaussian(), target="value", validation=data, patience=3, epochs=300,
        learning_rate=1.0, device="cpu",
    )  # fmt: skip
    assert min(history["val_loss"]) == pytest.approx(0.5 * math.log(2 * math.pi), abs=1e-3)
    assert pgce.evaluate(model, data, head=Gaussian(), target="value")["loss"] == min(history["val_loss"])


@pytest.mark.parametrize("target", ["label", lambda logits, batch: batch["label"]], ids=["column", "rule"])
def test_a_column_that_is_to_be_scored_is_there(target):
    inputs, labels = digits()
    named, other = pgce.Batch(inputs, {"label": labels}), pgce.Batch(inputs, {"class": labels, "n": labels})
    model = network(0)
    wanted = target if isinstance(target, str) else "target"
    told = f"a target is the name of a column: it is '{wanted}', the columns are class, n"
    with pytest.raises(ValueError, match=f"validation: {told}"):
        pgce.fit(model, named, target=target, validation=other, device="cpu")
    assert torch.equal(parameters(model), parameters(network(0)))
    with pytest.raises(ValueError, match=told):
        pgce.evaluate(model, other, target=wanted)


def test_augmentation_changes_the_column_that_target_names():
    inputs, labels = digits()
    data = pgce.Batch(inputs, {"row": one_hot(labels, 10, DOUBLE), "target": labels})
    seen = []
    fitted(data, target="row", augment=mixup, after=lambda row, report: seen.append(report.target))
    assert not torch.equal(seen[0], seen[0].round())


def test_an_unknown_value_is_never_the_best():
    from pgce.fitting import _best

    assert _best([math.nan, 0.5, 0.4], least=True) == 2
    assert _best([math.nan, 0.5, 0.6, math.nan], least=False) == 2


def test_whole_numbers_of_numpy():
    """As a grid of settings has them."""
    inputs, labels = digits()
    for data in ((inputs, labels), list_dataset(inputs, labels)):
        plain, other = network(0), network(0)
        pgce.fit(plain, data, batch_size=500, seed=3, epochs=1, device="cpu")
        pgce.fit(other, data, batch_size=np.int64(500), seed=np.int64(3), epochs=1, device="cpu")
        assert torch.equal(parameters(plain), parameters(other))
        assert len(pgce.predict(plain, data, batch_size=np.int64(500))) == len(labels)


def test_streams_and_tables_and_loaders_without_a_batch():
    class Rows(IterableDataset):
        def __iter__(self):
            return zip(*digits(), strict=True)

    pandas = pytest.importorskip("pandas")
    inputs, labels = digits()
    assert fitted(Rows(), batch_size=50)[1]["examples"] == [len(inputs)]
    model = network(0)
    table = pandas.DataFrame(inputs.numpy())
    assert torch.equal(pgce.predict(model.float(), table), pgce.predict(model, inputs.float()))
    with pytest.raises(ValueError, match=r"data: a loader has at least one batch.*: this one has none$"):
        fitted(DataLoader(TensorDataset(inputs[:5], labels[:5]), 10, drop_last=True))


def test_a_stream_begins_anew():
    class Once(IterableDataset):
        def __init__(self):
            self.rows = zip(*digits(), strict=True)

        def __iter__(self):
            return self.rows

    message = "a stream begins anew whenever it is gone through: this one has none"
    with pytest.raises(ValueError, match=f"^data: .*{message} in epoch 2"):
        fitted(Once(), epochs=2)
    with pytest.raises(ValueError, match=message):
        fitted(epochs=2, validation=Once())


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_class_ids_without_a_sign(kind):
    found = []
    for ids in (np.arange(4), np.arange(4).astype(kind)):
        torch.manual_seed(0)
        found.append(pgce.fit(nn.Linear(4, 4), (np.eye(4), ids), epochs=2, device="cpu")["loss"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "turned", [np.flipud, lambda x: x.astype(x.dtype.newbyteorder("S"))], ids=["backwards", "bytes"]
)
def test_arrays_that_run_backwards_or_are_of_another_machine(turned):
    X, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 2
    for estimator in (pgce.Classifier(epochs=1, device="cpu"), pgce.Regressor(epochs=1, device="cpu")):
        estimator.fit(turned(X), turned(y), turned(1.0 + y), validation=(turned(X), turned(y)))
        assert (estimator.predict(turned(X)) == estimator.predict(np.ascontiguousarray(turned(X)))).all()
    model = nn.Linear(4, 2)
    pgce.fit(model, (turned(X), turned(y)), epochs=1, device="cpu")
    expected = pgce.predict_proba(model, torch.as_tensor(turned(X).astype(np.float32, order="C")))
    assert torch.equal(pgce.predict_proba(model, turned(X)), expected)


def test_arrays_that_are_not_to_be_written_are_copied(recwarn):
    inputs = np.zeros((4, 3), np.float32)
    inputs.flags.writeable = False
    assert pgce.data.as_tensor(inputs).shape == (4, 3)
    assert not recwarn.list


@pytest.mark.parametrize("head", [Categorical(), Bernoulli(), Gaussian()])
def test_a_loss_is_the_mean_over_all_cross_entropies(head):
    """(B, L) of them, with a mask that is all True or none, whether trained on or evaluated."""
    x = torch.randn(12, 7, 4, generator=torch.Generator().manual_seed(1))
    y = torch.randint(2, (12, 7), generator=torch.Generator().manual_seed(2))
    y = y if isinstance(head, Categorical) else y.float()
    torch.manual_seed(3)
    width = 2 if isinstance(head, Categorical) else 1
    model = nn.Sequential(nn.Linear(4, width), *([] if width == 2 else [nn.Flatten(1)])).double()
    data = pgce.Batch(x.double(), {"target": y})
    expected = pgce.weighted_cross_entropy(model(data.input), y, head=head).item()
    seen, ends = [], []
    for mask in (None, torch.ones(12, 7, dtype=torch.bool)):
        masked = pgce.Batch(data.input, data.columns, mask)
        assert pgce.evaluate(model, masked, head=head)["loss"] == pytest.approx(expected, rel=1e-12)
        trained = copy.deepcopy(model)
        history = pgce.fit(
            trained, masked, head=head, optimizer="sgd", learning_rate=0.5, epochs=1, batch_size=12
        )
        seen.append(history["loss"][0])
        ends.append([parameter.detach() for parameter in trained.parameters()])
    assert seen == pytest.approx([expected] * 2, rel=1e-12)
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-12)

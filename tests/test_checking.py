"""What `fit` refuses before the first step, what it warns of, and which checkpoints are of its training."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from test_fitting import DOUBLE, X, Y, digits, fitted, network
from torch import nn

import pgce
from pgce.heads import Categorical, Gaussian, Transformed, tempered
from pgce.samplers import balanced, weighted
from pgce.targets import mixup
from pgce.weights import focal, per_class, product


def test_correcting_twice_is_warned_of():
    inputs, labels = digits()
    rule = partial(per_class, class_weight=torch.ones(10))
    for weight in (rule, product("sample_weight", rule)):
        data = (inputs, labels, torch.ones(len(labels)))
        with pytest.warns(UserWarning, match="corrects it twice"):
            fitted(data, sampler=balanced, weight=weight)
    with pytest.warns(UserWarning, match="corrects it twice"):
        fitted(data, sampler=weighted, weight="sample_weight")
    fitted(data, sampler=balanced, weight="sample_weight")


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X[:0], Y[:0]), {}, "at least one example"),
        ((X, Y[:5]), {}, r"input has 6, target has shape \(5,\)"),
        ((X,), {}, "there are 1"),
        ((X, Y + 5), {}, r"data: class ids lie in 0\.\.9: target holds ids from 5 to 10"),
        ((X, Y.double()), {}, "data: a target is integer class ids"),
        ((X, Y), {"validation": (X, Y - 1)}, "validation: class ids .* from -1 to 4"),
        ((X * math.nan, Y), {}, "data: inputs, targets and weights are finite"),
        ((X, Y, torch.full((6,), math.inf)), {}, "data: inputs, targets and weights are finite"),
        ((X, Y), {"epochs": 0}, "epochs is 0"),
        ((X, Y), {"batch_size": 0}, "batch_size is 0"),
        ((X, Y), {"optimizer": "sdg"}, "it is 'sdg'"),
        ((X.float(), Y), {}, "inputs are torch.float32, the model is torch.float64"),
        ((X.numpy(), Y), {}, r"float32, but not by a DataLoader\): inputs are torch.float32"),
        ((X[:, :5], Y), {}, r"the model does not take inputs of shape \(6, 5\)"),
        ((X, Y), {"validation": (X.float(), Y)}, "validation: inputs and model are of one dtype"),
        (pgce.Batch(X, {"target": Y}, torch.zeros(6, dtype=torch.bool)), {}, "all 6 are masked"),
        ((X, Y, torch.ones(6, 2)), {"weight": "sample_weight"}, "one weight per example"),
        ((X, Y), {"patience": 3}, "needs validation data: it is 3, validation is missing"),
        (
            (X, Y),
            {"patience": 3, "validation": (X, Y), "monitor": "val_f1"},
            "monitor is one of loss, val_acc",
        ),
        ((X, Y), {"micro_batch_size": 0}, "micro_batch_size is 0"),
        ((X, Y), {"precision": "bf16"}, "it is 'bf16'"),
        ((X, Y), {"ema_decay": 1.0}, "it is 1.0"),
        ((X, Y), {"terms": {"a": pgce.Term(Categorical())}, "head": Gaussian()}, "give one or the other"),
        ((np.array([["a"]]), np.array([0])), {}, "data are numbers: the array has dtype <U1"),
        (
            (X, Y),
            {"weight": "focal"},
            "data: a weight is the name of a column, or a function such as pgce.weights.focal: "
            "it is 'focal', the columns are target",
        ),
        (
            {"input": X, "label": Y, "n": Y},
            {},
            "data: a target is the name of a column: it is 'target', the columns are label, n",
        ),
        ((X, Y), {"weight": "y"}, "it is 'y', the columns are target"),
        (
            (X, Y),
            {"weight": lambda h, b: h * math.nan},
            "data: weights are finite: the term 'label' has one that is nan",
        ),
        (
            (X, Y),
            {
                "terms": {
                    "a": pgce.Term(Categorical()),
                    "b": pgce.Term(Categorical(), weight=lambda h, b: h / 0),
                }
            },
            "the term 'b' has one that is inf",
        ),
    ],
)
def test_fit_refuses_before_the_first_step(data, options, message):
    model = network(0)
    with pytest.raises(ValueError, match=message):
        pgce.fit(model, data, device="cpu", **options)
    for a, b in zip(model.parameters(), network(0).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inputs", [X[:2].float().tolist(), X[0].float()])
def test_predictions_are_of_a_row_an_example(inputs):
    """Two rows as a list are (inputs, targets), whose first row was taken for one example without a batch."""
    with pytest.raises(ValueError, match=r"a model gives a row an example: of 64, \(10,\)"):
        pgce.predict(network(0).float(), inputs)


@pytest.mark.parametrize("inputs", [X.float(), X.numpy()])
def test_evaluation_refuses_inputs_of_another_precision(inputs):
    told = "data: inputs and model are of one dtype .* inputs are torch.float32, the model is torch.float64"
    for call in (
        partial(pgce.evaluate, network(0), (inputs, Y)),
        partial(pgce.predict, network(0), inputs),
        partial(pgce.predict_proba, network(0), inputs),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_a_stack_of_another_model_is_refused():
    model, other = network(0), network(1)
    told = "an optimizer stack is of the model's parameters: 4 of its 4 are not"
    with pytest.raises(ValueError, match=told):
        pgce.fit(model, (X, Y), optimizer=pgce.optimizer.Optimizer(other.parameters()), device="cpu")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_skips": 3, "learning_rate": 0.1}, "learning_rate is 0.1"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"warmup_steps": 5}, "warmup_steps is 5"),
        ({"max_grad_norm": 1.0}, "max_grad_norm is 1.0"),
        ({"precision": "bfloat16"}, "precision is 'bfloat16'"),
        ({"ema_decay": 0.9}, "ema_decay is 0.9"),
        ({"max_skips": 3}, "max_skips is 3"),
        ({"momentum": 0.9}, "momentum is 0.9"),
    ],
)
def test_settings_that_a_stack_would_not_obey_are_refused(settings, told):
    model = network(0)
    stack = pgce.optimizer.Optimizer(model.parameters(), "sgd")
    with pytest.raises(ValueError, match=f"an optimizer stack has settings of its own: {told} beside it"):
        pgce.fit(model, (X, Y), optimizer=stack, device="cpu", **settings)


def of_columns(cross_entropy, batch):
    return batch.columns.get("sample_weight", torch.ones_like(cross_entropy))


@pytest.mark.parametrize(
    ("how", "warns"),
    [
        ({"weight": focal}, True),
        ({"weight": "other"}, True),
        ({"terms": {"label": pgce.Term(Categorical())}}, True),
        ({}, False),
        ({"weight": pgce.weights.one}, False),
        ({"weight": product(focal, "sample_weight")}, False),
        ({"weight": of_columns}, False),
        ({"weight": focal, "sampler": weighted}, False),
        ({"terms": {"label": pgce.Term(Categorical(), target=lambda z, b: b["target"])}}, True),
        (
            {
                "terms": {
                    "label": pgce.Term(Categorical()),
                    "soft": pgce.Term(Categorical(), target=lambda z, b: z * b["sample_weight"].unsqueeze(1)),
                }
            },
            False,
        ),
    ],
)
def test_weights_of_examples_that_no_term_reads_are_warned_of(how, warns, recwarn):
    share = torch.linspace(0.5, 1.5, 6, dtype=DOUBLE)
    fitted(pgce.Batch(X, {"target": Y, "sample_weight": share, "other": share}), **how)
    told = [
        str(w.message) for w in recwarn.list if "sample_weight is given and no term reads" in str(w.message)
    ]
    assert len(told) == warns
    recwarn.clear()
    fitted(pgce.Batch(X, {"target": Y, "sample_weight": torch.ones_like(share), "other": share}), **how)
    assert not recwarn.list


def test_a_rule_may_take_the_deviation_of_a_batch():
    def whitened(cross_entropy, batch):
        return (cross_entropy - cross_entropy.mean()) / cross_entropy.std()

    assert math.isfinite(fitted((X, Y), weight=whitened)[1]["loss"][0])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"learning_rate": 0.5}, "learning_rate 0.01 -> 0.5"),
        ({"batch_size": 7}, "batch_size 50 -> 7"),
        ({"schedule": "linear"}, "schedule constant -> linear"),
        ({"data": (digits()[0], digits()[1].flip(0))}, "data [0-9a-f]{16} -> [0-9a-f]{16}"),
        ({"terms": {"label": pgce.Term(Categorical(), coefficient=0.5)}}, "label.coefficient 1.0 -> 0.5"),
        ({"terms": {"class": pgce.Term(Categorical())}}, r"objective \['label'\] -> \['class'\]"),
        ({"weight": partial(focal, gamma=2.0)}, r"label.weight one -> focal\(gamma=2.0\)"),
        (
            {"weight": partial(per_class, class_weight=torch.ones(10))},
            r"label.weight one -> per_class\(class_weight=[0-9a-f]{16}\)",
        ),
        (
            {"head": Transformed(partial(tempered, temperature=2.0))},
            r"label.head Categorical.* -> Transformed\(transform=tempered\(temperature=2.0\), head=Cat.*\)",
        ),
        ({"sampler": balanced}, "sampler shuffled -> balanced"),
        ({"augment": partial(mixup, alpha=0.2)}, r"augment None -> mixup\(alpha=0.2\)"),
    ],
)
def test_a_checkpoint_goes_on_with_what_it_is_of(tmp_path, changed, told):
    how = {"batch_size": 50, "learning_rate": 0.01, "seed": 0, "checkpoints": tmp_path, "device": "cpu"}
    pgce.fit(network(0), digits(), epochs=1, **how)
    data = changed.pop("data", digits())
    with pytest.raises(ValueError, match=f"goes on with the same data and settings: {told} "):
        pgce.fit(network(0), data, epochs=2, **{**how, **changed})
    history = pgce.fit(network(0), digits(), epochs=2, **how)
    assert history["epoch"] == [1, 2]


class Several(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.layer, self.give = nn.Linear(64, 10).double(), give

    def forward(self, x):
        return self.give(self.layer(x))


@pytest.mark.parametrize(
    ("give", "output", "told"),
    [
        (lambda z: {"a": z, "b": z}, None, r"it gives \['a', 'b'\], the output is None"),
        (lambda z: {"a": z, "b": z}, "c", r"it gives \['a', 'b'\], the output is 'c'"),
        (lambda z: (z, z), None, "it gives tuple, the output is None"),
        (lambda z: (z, z), 2, "it gives tuple, the output is 2"),
        (lambda z: None, None, "it gives NoneType, the output is None"),
    ],
)
def test_several_outputs_are_told(give, output, told):
    terms = {"label": pgce.Term(Categorical(), output=output)}
    with pytest.raises(ValueError, match=f"`output` of a Term, or of the call, names one: {told}"):
        pgce.fit(Several(give), digits(), terms=terms, device="cpu")
    with pytest.raises(ValueError, match=told):
        pgce.evaluate(Several(give), digits(), output=output)

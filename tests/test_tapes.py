"""What a CPU replays is what torch computes, bit by bit, and what cannot be replayed is not."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from functools import partial, wraps

import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from test_graphs import batches
from torch import nn

import pgce
from pgce import Batch, Term, Trainer, graphs, heads, tapes, train, weights
from pgce.graphs import Replayed, state_of
from pgce.networks import ActorCritic, Columns, Recurrent, Torso, Value, mlp
from pgce.optimizer import Optimizer
from pgce.spaces import Masked, actions
from pgce.tapes import Tape

PPO = pgce.agents.PPO(ent_coef=0.01).terms(heads.Categorical())
CLASSIFIER = {"label": Term(heads.Categorical(), target="action")}
FOCAL = {
    "label": Term(
        heads.Categorical(),
        target="action",
        weight=weights.product(
            partial(weights.focal, gamma=2.0),
            partial(weights.per_class, class_weight=torch.rand(3), label="action"),
        ),
    )
}
REGRESSOR = {"value": Term(heads.Gaussian("learned"), target="return")}


class Sequence(nn.Module):
    """A transformer's layer and a recurrent one, over the input as four steps."""

    recordable = True

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.recur = nn.GRU(8, 8, batch_first=True)
        self.read = nn.Linear(8, 3)

    def forward(self, x):
        return self.read(self.recur(self.attend(self.embed(x.unsqueeze(-1))))[0][:, -1])


MODELS = {
    "actor and critic": (lambda: ActorCritic(mlp(4, 3), Value(mlp(4, 1), 3.0)), PPO),
    "relu": (lambda: mlp(4, 3, (16, 8), "relu"), FOCAL),
    "norms and dropout": (
        lambda: nn.Sequential(
            nn.Linear(4, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3), nn.LayerNorm(16),
            nn.Linear(16, 3),
        ),
        CLASSIFIER,
    ),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 4, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(4, 3),
        ),
        CLASSIFIER,
    ),
    "sequences": (Sequence, CLASSIFIER),
    "scale": (lambda: nn.Sequential(nn.Linear(4, 2), nn.Unflatten(1, (2,))), REGRESSOR),
}  # fmt: skip
OPTIMIZERS = [("adam", {"max_grad_norm": 0.5}), ("sgd", {"momentum": 0.9}), ("rmsprop", {"ema_decay": 0.9})]


def trained(kind, sizes, *, records, by_row=False, name="adam", options=None):
    """A trainer after steps on such batches, the losses it saw, and the numbers drawn after them."""
    model, terms = MODELS[kind]
    torch.manual_seed(0)
    network = model()
    trainer = Trainer(network, terms, Optimizer(network.parameters(), name, **(options or {})), by_row=by_row)
    assert trainer._recorder is not None
    trainer._recorder.possible = records
    losses = [[r.loss.item() for r in trainer.step(batch).values()] for batch in batches(sizes)]
    return trainer, losses, torch.rand(3)


def assert_same(one, other):
    assert one[1] == other[1]
    assert torch.equal(one[2], other[2])
    for a, b in zip(*(trainer.model.state_dict().values() for trainer, *_ in (one, other)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
@pytest.mark.parametrize("kind", MODELS)
def test_steps_replayed_are_those_taken_one_by_one(kind, name, options):
    how = {"name": name, "options": options}
    sizes = [16, 16, 9, 16, 9, 16]
    replayed = trained(kind, sizes, records=True, **how)
    assert len(replayed[0]._recorder._recordings) == 2
    assert_same(replayed, trained(kind, sizes, records=False, **how))


@pytest.mark.parametrize("kind", ["actor and critic", "relu", "scale"])
def test_one_recording_serves_smaller_batches(kind):
    sizes = [512, 509, 512, 500, 490, 512]
    replayed = trained(kind, sizes, records=True, by_row=True)
    assert len(replayed[0]._recorder._recordings) == 1
    assert_same(replayed, trained(kind, sizes, records=False, by_row=True))
    alone = trained(kind, sizes, records=False)
    for mine, other in zip(replayed[0].model.parameters(), alone[0].model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_sequences_with_a_mask_are_replayed(kind):
    """Their steps that do not count are computed too, and add nothing."""
    torch.manual_seed(0)
    torso = Torso([Recurrent(mlp(3, 8, (), "tanh"), 8, 8, kind) for _ in range(2)], features=3)
    first = ActorCritic(mlp(16, 3), Value(mlp(16, 1)), torso)
    others = copy.deepcopy(first), copy.deepcopy(first)
    trainers = [Trainer(m, PPO, Optimizer(m.parameters(), "adam"), by_row=True) for m in (first, *others)]
    trainers[1]._recorder.possible = False
    trainers[2]._recorder = None
    for rows in (40, 40, 38, 40):
        (flat,) = batches([rows * 5])
        batch = Batch(
            {
                "observation": flat.input[:, :3].unflatten(0, (rows, 5)),
                "first": torch.rand(rows, 5) < 0.2,
                "state": torch.randn(rows, 1, torso.state_size).expand(-1, 5, -1),
            },
            {name: column.unflatten(0, (rows, 5)) for name, column in flat.columns.items()},
            torch.rand(rows, 5) < 0.8,
        )
        reports = [trainer.step(batch) for trainer in trainers]
        assert len(trainers[0]._recorder._recordings) == 1
        for name, report in reports[0].items():
            assert report.loss == reports[1][name].loss
            assert len(report.logits) == batch.count
            for field in ("logits", "target", "cross_entropy", "weight"):
                mine, theirs = getattr(report, field), getattr(reports[2][name], field)
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
            assert torch.equal(report.batch["action"], reports[2][name].batch["action"])
    for same, one, other in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        assert torch.equal(same, one)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "continuous", "masked"),
    [
        (Discrete(3), "gaussian", True),
        (MultiDiscrete([2, 3]), "gaussian", True),
        (MultiBinary(3), "gaussian", True),
        (Box(-1, 2, (2,)), "gaussian", False),
        (Box(-1, 2, (2,)), "tanh", False),
        (Box(-1, 2, (2,)), "beta", False),
        (Dict(gear=Discrete(3), wheel=Box(-1, 2, (2,))), "tanh", False),
    ],
)
def test_every_kind_of_action_is_replayed(space, continuous, masked):
    """Also where a mask, or the action's density, is computed of what is looked at elsewhere."""
    action, flat = actions(space, continuous), batches([64])[0]
    allowed = (torch.rand(64, action.size) < 0.5) | (torch.arange(action.size) % 2 == 0)
    seen = torch.cat((flat.input, allowed.float()), 1) if masked else flat.input
    found = []
    for records in (True, False):
        torch.manual_seed(0)
        policy = action.wrap(mlp(4, action.size))
        model = ActorCritic(
            Masked(policy, 4, action.head) if masked else policy,
            Value(nn.Sequential(Columns(0, 4), mlp(4, 1))),
        )
        taken = action.head.sample(model.policy(seen).detach(), torch.Generator().manual_seed(0))
        batch = Batch(seen, {**flat.columns, "action": taken})
        terms = pgce.agents.PPO(ent_coef=0.01).terms(action.head)
        trainer = Trainer(model, terms, Optimizer(model.parameters()), by_row=True)
        assert trainer._recorder is not None
        trainer._recorder.possible = records
        losses = [[report.loss.item() for report in trainer.step(batch).values()] for _ in range(3)]
        assert bool(trainer._recorder._recordings) == records
        found.append((trainer, losses, torch.rand(3)))
    assert_same(*found)


@pytest.mark.parametrize(
    "settings",
    [
        {"label_smoothing": 0.1},
        {"soft_labels": (0.9, 0.1)},
        {"confidence": 0.8, "class_weight": "balanced"},
        {"redraw": 0.2},
        {"mixup": 0.2, "class_weight": "balanced"},
        {"noise": 0.2, "correction": "forward", "focal_gamma": 2.0},
        {"noise": 0.2, "correction": "backward"},
        {"logit_adjustment": 1.0},
        {"huber_delta": 1.0},
    ],
    ids=lambda settings: "_".join(settings),
)
def test_every_rule_is_replayed(settings, monkeypatch):
    """Also those that look at what they are given, of which nothing changes from batch to batch."""
    x, y = torch.randn(96, 4).numpy(), torch.randint(3, (96,)).numpy()
    recordings, fitted = [], []
    step = Trainer.step

    def watched(self, batch):
        reports = step(self, batch)
        recordings.append(len(self._recorder._recordings))
        return reports

    monkeypatch.setattr(Trainer, "step", watched)
    for most in (tapes._MOST, 0):
        monkeypatch.setattr(tapes, "_MOST", most)
        kind = pgce.Regressor if "huber_delta" in settings else pgce.Classifier
        estimator = kind(hidden_sizes=(8,), epochs=2, batch_size=32, random_state=0, **settings).fit(x, y)
        fitted.append(estimator.module_.state_dict())
    assert recordings == [1] * 6 + [0] * 6
    for mine, other in zip(*(each.values() for each in fitted), strict=True):
        assert torch.equal(mine, other)


def test_a_label_that_cannot_be_is_told_of_a_recorded_step_too():
    """Labels are looked at when the step is recorded: later torch refuses them, and then they are again."""

    def smoothed(logits, batch):
        return pgce.targets.smooth(pgce.targets.one_hot(batch["action"], 3), 0.1)

    smoothed.recordable = True
    network = mlp(4, 3)
    trainer = Trainer(
        network, {"label": Term(heads.Categorical(), smoothed)}, Optimizer(network.parameters())
    )
    good = batches([16])[0]
    trainer.step(good)
    assert trainer._recorder._recordings
    with pytest.raises(ValueError, match=r"labels lie in 0\.\.2: label holds values from 1 to 3"):
        trainer.step(Batch(good.input, {**good.columns, "action": 1 + good["action"]}))


def test_rows_are_gathered_where_they_are_read():
    """What a recorded step takes of a batch by number is what anyone else finds there."""
    (whole,) = batches([64])
    model, terms = MODELS["actor and critic"]
    torch.manual_seed(0)
    one, other = (
        Trainer(network := model(), terms, Optimizer(network.parameters()), by_row=True) for _ in range(2)
    )
    other.model.load_state_dict(one.model.state_dict())
    index, gathered = torch.randperm(64), []
    for piece in index.split(16) + index.split(15):
        rows = whole.rows(piece)
        reports = one.step(rows)
        gathered.append("_gathered" in vars(rows))
        seen = other.step(
            Batch(whole.input[piece], {n: column[piece] for n, column in whole.columns.items()})
        )
        assert torch.equal(reports["policy"].batch["action"], seen["policy"].batch["action"])
        assert torch.equal(rows["action"], whole["action"][piece])
    assert gathered == [True, False, False, False, True, False, False, False, True], "of each size the first"
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_reports_are_of_the_batch():
    model, terms = MODELS["actor and critic"]
    trainer = Trainer(network := model(), terms, Optimizer(network.parameters()), by_row=True)
    for batch in batches([64, 61, 64, 60]):
        expected = trainer._backward(batch)
        trainer.optimizer.drop_gradients()
        found = trainer.step(batch)
        assert found.keys() == expected.keys()
        for name, report in expected.items():
            for field in ("logits", "target", "cross_entropy", "weight"):
                mine, other = getattr(found[name], field), getattr(report, field)
                if other is None:
                    assert mine is None or bool((mine == 1).all())
                else:
                    torch.testing.assert_close(mine, other)
            torch.testing.assert_close(found[name].loss, report.loss)
            assert torch.equal(found[name].batch["action"], batch["action"])


class Reads(nn.Module):
    """Looks at its numbers, which no recording can."""

    recordable = True

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        y = self.layer(x)
        return 2 * y if y.sum() > 0 else y


class Chooses(Reads):
    """Gives its numbers a shape that depends on them."""

    def forward(self, x):
        return self.layer(x) + x[x > 0].mean()


@pytest.mark.parametrize("kind", [Reads, Chooses])
def test_what_depends_on_numbers_is_not_replayed(kind):
    torch.manual_seed(0)
    models = kind(), kind()
    models[1].load_state_dict(models[0].state_dict())
    ours, theirs = (Trainer(model, CLASSIFIER, Optimizer(model.parameters(), "sgd")) for model in models)
    theirs._recorder = None
    for batch in batches([16] * 5):
        ours.step(batch)
        theirs.step(batch)
    assert not ours._recorder.possible
    for mine, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, other)


def test_large_steps_are_not_kept(monkeypatch):
    monkeypatch.setattr(tapes, "_MOST", 1_000)
    trainer, *_ = large = trained("relu", [16] * 3, records=True)
    assert not trainer._recorder._recordings
    assert trainer._recorder.possible
    assert_same(large, trained("relu", [16] * 3, records=False))


def test_what_changes_is_noticed():
    network, batch = mlp(4, 3), batches([16])[0]
    trainer, seen = Trainer(network, CLASSIFIER, Optimizer(network.parameters(), "sgd")), []
    trainer.step(batch)
    trainer.step(batch)
    handle = network[2].register_forward_hook(lambda *_: seen.append("layer"))
    trainer.step(batch)
    handle.remove()
    handle = network[2].weight.register_hook(lambda g: seen.append("gradient"))
    trainer.step(batch)
    handle.remove()
    trainer.step(batch)
    assert seen == ["layer", "gradient"]
    before = network[2].bias.detach().clone()
    network[2].bias.requires_grad_(False)
    trainer.step(batch)
    assert torch.equal(network[2].bias, before)
    network[2].bias.requires_grad_(True)
    network.zero_grad()  # drops the views that gradients are kept in
    trainer.step(batch)
    assert not torch.equal(network[2].bias, before)


def test_a_step_with_sparse_gradients_is_taken_once():
    layers = nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.BatchNorm1d(20), nn.Linear(20, 3)
    network = nn.Sequential(*layers)
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters(), "sgd"))
    batch = Batch(torch.arange(40).view(8, 5) % 9, {"action": torch.arange(8) % 3})
    for n in range(1, 4):
        trainer.step(batch)
        assert network[2].num_batches_tracked == n


@pytest.mark.parametrize("change", ["rate", "layer"])
def test_settings_and_layers_that_change_are_noticed(change):
    network, batch = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9), nn.Tanh()), batches([16])[0]
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters(), learning_rate=1e-9))
    for _ in range(3):
        trainer.step(batch)
    network[1].p = 0.0
    if change == "layer":
        trainer.step(batch)
        network[2] = nn.ReLU()
    logits = trainer.step(batch)["label"].logits
    torch.testing.assert_close(logits, network.eval()(batch.input))


def test_hooks_of_all_modules_and_the_caller_s_precision_are_noticed():
    network, batch, seen = mlp(4, 3), batches([16])[0], []
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters()))
    for _ in range(3):
        trainer.step(batch)
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        trainer.step(batch)
    finally:
        handle.remove()
    assert network in seen
    with torch.autocast("cpu", torch.bfloat16):
        assert trainer.step(batch)["label"].logits.dtype == torch.bfloat16


def test_a_model_is_looked_at_once_a_round(monkeypatch):
    network, batch, looks, seen = mlp(4, 3), batches([16])[0], [], []
    monkeypatch.setattr(graphs, "state_of", lambda model: (looks.append(model), state_of(model))[1])
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters()))

    def after(n, reports):
        if n == 0:
            network[2].register_forward_hook(lambda *_: seen.append(n))
        network.zero_grad()  # drops the views that gradients are kept in

    before = network[2].bias.detach().clone()
    train(trainer, [[batch] * 3, [batch] * 3], after=after)
    assert looks == [network] * 4, "once, and at each step while hooks keep it from being recorded"
    assert len(seen) == 3
    assert not torch.equal(network[2].bias, before)


def test_a_function_around_one_of_ours_is_not_ours():
    @wraps(weights.focal)
    def watched(*given, **settings):
        return weights.focal(*given, **settings)

    assert watched.__module__ == "pgce.weights"
    assert not graphs.constant(watched)
    assert not graphs.constant(partial(watched, gamma=1.0))


def test_what_writes_and_gives_something_is_replayed():
    given = torch.tensor([-3.0, 2.0, -1.0])
    with Tape() as tape:
        found = nn.functional.rrelu(given, 0.2, 0.2, training=True) * 1
    play, (result,) = tape.close([found])
    given.copy_(torch.tensor([-1.0, -2.0, 3.0]))
    play()
    torch.testing.assert_close(result, torch.tensor([-0.2, -0.4, 3.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_numbers_of_python_are_as_exact_as_torch_has_them(dtype):
    given = torch.linspace(-3, 3, 2_000).to(dtype)
    for function in (lambda x: x * (1 / 3) ** 0.5, lambda x: x / 0.7, lambda x: x + 0.3, lambda x: x - 0.3):
        with Tape() as tape:
            found = function(given)
        play, (result,) = tape.close([found])
        play()
        assert torch.equal(result, function(given))


def test_training_and_evaluation_are_recorded_apart():
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters(), learning_rate=1e-9))
    batch = batches([16])[0]
    for _ in range(2):
        network.train()
        assert (trainer.step(batch)["label"].logits == 0).any()
        network.eval()
        assert (trainer.step(batch)["label"].logits != 0).all()


def test_errors_are_those_of_the_head_and_nothing_is_changed():
    network = mlp(4, 3)
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters()))
    good, bad = batches([8, 8])
    trainer.step(good)
    before = [p.detach().clone() for p in network.parameters()]
    bad["action"][3] = 7
    with pytest.raises(ValueError, match=r"class ids lie in 0\.\.2"):
        trainer.step(bad)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    assert all(not p.grad.any() for p in network.parameters())
    trainer.step(good)


def test_infinite_entropies_without_weight_count_nothing():
    head, losses = heads.Categorical(), []
    term = Term(head, target="action", weight="advantage")
    for records in (True, False):
        torch.manual_seed(0)
        network = nn.Linear(4, 3)
        trainer = Trainer(network, {"policy": term}, Optimizer(network.parameters()))
        trainer._recorder = trainer._recorder if records else None
        for batch in batches([8, 8, 8]):
            batch["advantage"][0] = 0
            batch.input[0] = torch.tensor([1e38, 0, 0, 0])
            losses.append(trainer.step(batch)["policy"].loss.item())
    assert losses[:3] == losses[3:]
    assert all(map(math.isfinite, losses))


def test_a_policy_replayed_is_the_policy():
    policy, head = mlp(4, 3), heads.Categorical()
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]

    def decide(generator):
        def act(x):
            logits = policy(x)
            return logits, head.sample(logits, generator)

        return act

    ours, theirs = Replayed(decide(generators[0]), policy, head), decide(generators[1])
    for n in range(6):
        ours.look()
        with torch.inference_mode():
            x = torch.randn(8 if n != 4 else 5, 4)
            for mine, other in zip(ours(x), theirs(x), strict=True):
                assert torch.equal(mine, other)
        with torch.no_grad():
            policy[2].weight.add_(0.1)
    assert torch.equal(*(g.get_state() for g in generators))
    handle = policy.register_forward_hook(lambda *_: 1 / 0)
    ours.look()
    with pytest.raises(ZeroDivisionError):
        ours(torch.randn(8, 4))
    handle.remove()
    assert state_of(policy) is not None


def test_a_policy_whose_recording_failed_is_recorded_anew():
    """For other shapes, say: what was recorded of the first is not played for them."""
    network, fails = nn.Linear(2, 1), []

    def act(x):
        if fails:
            raise RuntimeError("odd")
        return (network(x),)

    played, x = Replayed(act, network), torch.randn(5, 2)
    played.look()
    played(torch.randn(3, 2))
    fails.append(True)
    with pytest.raises(RuntimeError, match="odd"):
        played(x)
    fails.clear()
    assert torch.equal(played(x)[0], network(x))


def test_trainers_are_copied_and_pickled_after_steps_that_were_recorded():
    network, data = mlp(4, 3), batches([16] * 3)
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters()))
    for batch in data:
        trainer.step(batch)
    others = copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer))
    assert trainer._recorder._recordings
    for batch in data:
        losses = [each.step(batch)["label"].loss.item() for each in (trainer, *others)]
        assert len(set(losses)) == 1


def test_memory_is_shared_but_constants_keep_theirs():
    x = torch.randn(1_000)
    with Tape() as tape:
        y = x
        for _ in range(20):
            y = (y + 1) * torch.ones_like(y)
    play, (z,) = tape.close([y])
    x.copy_(torch.randn(1_000))
    expected = x
    for _ in range(20):
        expected = (expected + 1) * 1
    for _ in range(2):
        play()
        assert torch.equal(z, expected)
    calls = play.__closure__[0].cell_contents
    homes = {call.keywords["out"].data_ptr() for call in calls}
    assert len(homes) <= 3


def test_only_that_is_recorded_which_is_known():
    assert Trainer(nn.Linear(4, 3), CLASSIFIER, Optimizer(nn.Linear(4, 3).parameters()))._recorder is not None
    own = type("Own", (nn.Linear,), {})(4, 3)
    assert Trainer(own, CLASSIFIER, Optimizer(own.parameters()))._recorder is None
    assert not graphs.constant(lambda x: x)


def test_divisors_of_one_s_own_are_kept():
    term = Term(heads.Categorical(), target="action", divisor=lambda batch: 2.0 * len(batch))
    found = []
    for own in (term, Term(heads.Categorical(), target="action")):
        torch.manual_seed(0)
        network = mlp(4, 3)
        trainer = Trainer(network, {"label": own}, Optimizer(network.parameters()), by_row=True)
        found.append([trainer.step(batch)["label"].loss.item() for batch in batches([8] * 3)])
        assert (trainer._recorder is None) == (own is term)  # whose number would be that of the first batch
    assert 2 * found[0][0] == pytest.approx(found[1][0])


def test_batch_normalisation_sees_no_row_that_a_recording_is_filled_up_with():
    network, sizes = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3)), [50, 57, 50]
    found = []
    for by_row in (False, True):
        own = copy.deepcopy(network)
        trainer = Trainer(own, CLASSIFIER, Optimizer(own.parameters()), by_row=by_row)
        found.append([trainer.step(batch)["label"].loss.item() for batch in batches(sizes)])
        found.append(own[1].running_mean.tolist())
    assert found[:2] == found[2:]


def test_no_row_and_a_mask_are_steps_too():
    network = mlp(4, 3)
    trainer = Trainer(network, CLASSIFIER, Optimizer(network.parameters()), by_row=True)
    batch = batches([16])[0]
    masked = Batch(batch.input, batch.columns, torch.arange(16) < 9)
    assert trainer.step(masked)["label"].logits.shape == (9, 3)
    assert trainer.step(masked)["label"].logits.shape == (9, 3)
    none = Batch(batch.input, batch.columns, torch.zeros(16, dtype=torch.bool))
    assert trainer.step(none)["label"].loss.item() == 0


def test_numbers_are_left_where_they_were_read_if_nobody_else_reads_them():
    def computed(x):
        twice = 2 * x
        chain = ((twice + 1).exp() - 0.5) / 3
        square = chain.t() * chain  # reads each place twice
        rows = square[:1] * square
        whole = (rows + rows[0, 0]) * (twice > 1)
        return [whole, torch.where(twice > 0, whole, twice), twice - 1]

    x = torch.randn(3, 3)
    with Tape() as tape:
        taken = computed(x)
    play, found = tape.close(taken)
    for _ in range(3):
        x.normal_()
        play()
        for one, other in zip(found, computed(x), strict=True):
            assert torch.equal(one, other)
    with Tape() as tape:
        y = (2 * x + 1).exp()
    play, _ = tape.close([y])
    calls = play.__closure__[0].cell_contents
    assert len({call.keywords["out"].data_ptr() for call in calls}) == 1 < len(calls)


def test_what_operations_write_without_giving_it_is_no_constant():
    x = torch.ones(3)
    with Tape() as tape:
        sums = torch.zeros(3)
        torch._foreach_add_([sums], [x])
    play, (found,) = tape.close([sums])
    for _ in range(2):
        play()
        assert torch.equal(found, x)


def test_what_follows_from_constants_is_computed_once_but_for_random_numbers():
    with Tape() as tape:
        ones = torch.ones(3)
        three, drawn = 2 * ones + 1, torch.rand_like(ones)
    play, (three, drawn) = tape.close([three, drawn])
    assert len(play.__closure__[0].cell_contents) == 1
    before = drawn.clone()
    play()
    assert three.tolist() == [3, 3, 3]
    assert not torch.equal(drawn, before)


def test_the_gradients_of_a_step_replace_those_that_were_there():
    network, other = mlp(4, 3), nn.Parameter(torch.ones(2))
    optimizer = Optimizer([*network.parameters(), other])
    network(torch.ones(1, 4)).sum().backward()
    first = [p.grad.clone() for p in network.parameters()]
    other.grad.fill_(1.0)
    with optimizer.gathering():
        network(torch.ones(1, 4)).sum().backward()
    for parameter, before in zip(network.parameters(), first, strict=True):
        assert torch.equal(parameter.grad, before)
    assert torch.equal(other.grad, torch.zeros(2))
    with optimizer.gathering():
        pass
    assert not any(p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("recorded", [True, False])
def test_gradients_that_somebody_left_are_none_of_the_next_step(recorded):
    def trained(leaves):
        torch.manual_seed(0)
        model = MODELS["actor and critic"][0]()
        pieces = None if recorded else 8
        trainer = Trainer(model, PPO, Optimizer(model.parameters()), pieces, by_row=True)
        for batch in batches([16, 16, 15]):
            if leaves:
                model(batch.input)["policy"].sum().backward()
            trainer.step(batch)
        return list(model.parameters())

    assert all(map(torch.equal, trained(True), trained(False)))


def test_what_cannot_be_replayed_is_tried_once(monkeypatch):
    tried = []
    monkeypatch.setattr(graphs, "Tape", lambda: tried.append(1) or Tape())
    network = Reads()
    act = Replayed(lambda x: (network(x),), network)
    for _ in range(4):
        act.look()
        act(torch.ones(2, 4))
    assert len(tried) == 1


def test_buffers_that_are_put_elsewhere_are_noticed():
    network, x = nn.BatchNorm1d(4).eval(), torch.randn(8, 4)
    act = Replayed(lambda x: (network(x),), network)
    for mean in (0.0, 1.0):
        network.running_mean = torch.full((4,), mean)
        act.look()
        for _ in range(2):
            with torch.no_grad():
                assert torch.equal(act(x)[0], network(x))


class Mixes(nn.Module):
    """Rows mixed by a sparse matrix, as a graph's neighbours are."""

    recordable = True

    def __init__(self, buffer) -> None:
        super().__init__()
        self.read = nn.Linear(4, 3)
        matrix = torch.eye(8).roll(1, 0)
        sparse = matrix.to_sparse()
        self.matrix = {"buffer": nn.Buffer(sparse, persistent=False), "attribute": sparse}.get(buffer, matrix)

    def forward(self, x):
        return self.read(self.matrix @ x)


@pytest.mark.parametrize("buffer", ["buffer", "attribute"])
def test_a_model_with_a_sparse_matrix_learns_as_with_a_dense_one(buffer):
    def trained(kind):
        torch.manual_seed(0)
        model = Mixes(kind)
        trainer = Trainer(model, CLASSIFIER, Optimizer(model.parameters()))
        return [trainer.step(batch)["label"].loss.item() for batch in batches([8, 8, 8])]

    assert trained(buffer) == pytest.approx(trained("dense"), rel=1e-6)


def test_what_one_thread_looks_at_hides_nothing_from_another():
    looking, taken = threading.Event(), threading.Event()

    def look():
        with tapes.once():
            looking.set()
            taken.wait(10)

    other = threading.Thread(target=look)
    other.start()
    looking.wait(10)
    x = torch.ones(2)
    with Tape() as tape:
        y = x + 1
    taken.set()
    other.join()
    play, (again,) = tape.close([y])
    x.fill_(4.0)
    play()
    assert again.tolist() == [5.0, 5.0]

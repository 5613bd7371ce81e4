"""Steps that nobody waits for, and that a GPU replays, against the same steps one by one."""

from __future__ import annotations

import copy
import gc
import math
import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

import pgce
from pgce import Batch, Term, Trainer, heads, optimizer, training, weights
from pgce.graphs import constant, filled_size, state_of
from pgce.networks import ActorCritic, Value, mlp
from pgce.optimizer import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy
HEAD = heads.Categorical()
TERMS = pgce.agents.PPO(ent_coef=0.01).terms(HEAD)
EVERY = [
    ("adam", {"max_grad_norm": 0.5}),
    ("adamw", {"ema_decay": 0.9, "max_grad_norm": 0.1}),
    ("sgd", {"momentum": 0.9, "warmup_steps": 10}),
    ("sgd", {}),
]


def batches(sizes, device="cpu"):
    g = torch.Generator().manual_seed(1)

    def one(size):
        columns = {
            "action": torch.randint(3, (size,), generator=g),
            "advantage": torch.randn(size, generator=g),
            "return": torch.randn(size, generator=g),
            "cross_entropy": 1 + 0.1 * torch.randn(size, generator=g),
        }
        placed = {name: column.to(device) for name, column in columns.items()}
        return Batch(torch.randn(size, 4, generator=g).to(device), placed)

    return [one(size) for size in sizes]


def spoilt(batch):
    return Batch(batch.input, {**batch.columns, "advantage": batch["advantage"] * math.inf})


def made(name="adam", device="cpu", terms=TERMS, by_row=False, **options):
    torch.manual_seed(0)
    model = ActorCritic(mlp(4, 3), Value(mlp(4, 1))).to(device)
    return Trainer(model, terms, Optimizer(model.parameters(), name, **options), by_row=by_row)


def parts(trainer):
    """Copies of the parameters and of all that the optimizer keeps."""
    stack = trainer.optimizer
    kept = [value for entries in stack.torch_optimizer.state.values() for value in entries.values()]
    tensors = [*trainer.model.parameters(), *kept, *stack._average]
    return [t.detach().clone() for t in tensors if isinstance(t, torch.Tensor)]


def assert_close(ours, theirs, within=1e-6):
    for a, b in zip(parts(ours), parts(theirs), strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within)


@pytest.fixture
def unwaited(monkeypatch):
    monkeypatch.setattr(optimizer, "_UNWAITED", {"cpu"})
    monkeypatch.setattr("pgce.graphs.constant", lambda *parts: False)  # a CPU records nothing


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_updates_that_are_not_waited_for_are_the_same(name, options, monkeypatch):
    plain = made(name, **options)
    monkeypatch.setattr(optimizer, "_UNWAITED", {"cpu"})
    monkeypatch.setattr("pgce.graphs.constant", lambda *parts: False)
    deferred = made(name, **options)
    for n, batch in enumerate(batches([8] * 20)):
        for trainer in (plain, deferred):
            trainer.optimizer.progress = n / 20
            trainer.step(batch)
        assert deferred.optimizer.grad_norm == pytest.approx(plain.optimizer.grad_norm, rel=1e-4)
    deferred.look()
    assert deferred.optimizer.deferred
    assert not plain.optimizer.deferred
    assert (deferred.optimizer.steps, deferred.optimizer.skipped) == (20, 0)
    assert_close(deferred, plain)


def fails_as_it_should(trainer, device):
    """Good steps, one that is not finite, good ones that are not made; and it goes on."""
    some = batches([8] * 12, device)
    for batch in some[:5]:
        trainer.step(batch)
    before = parts(trainer)
    bad = spoilt(some[5])
    trainer.step(bad)
    for batch in some[6:]:
        trainer.step(batch)
    assert not math.isfinite(trainer.optimizer.grad_norm)
    with pytest.raises(
        FloatingPointError, match=r"at update 5; .* left as they were \(losses: policy (nan|-?inf)"
    ):
        trainer.look()
    assert all(torch.equal(a, b) for a, b in zip(parts(trainer), before, strict=True))
    assert (trainer.optimizer.steps, trainer.optimizer.skipped) == (5, 1)
    other = copy.deepcopy(trainer.model)
    trainer.step(some[6])
    trainer.look()
    assert trainer.optimizer.steps == 6
    assert any(
        not torch.equal(a, b) for a, b in zip(trainer.model.parameters(), other.parameters(), strict=True)
    )
    assert all(tensor.isfinite().all() for tensor in parts(trainer))


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.usefixtures("unwaited")
def test_after_one_that_is_not_finite_nothing_changes(name, options):
    fails_as_it_should(made(name, **options), "cpu")


@pytest.mark.usefixtures("unwaited")
def test_it_is_found_by_itself_in_the_end():
    trainer, (batch,) = made(), batches([8])
    trainer.step(batch)
    for _ in range(99):
        trainer.step(spoilt(batch))
    with pytest.raises(FloatingPointError, match="at update 1;"):
        trainer.step(batch)


@pytest.mark.usefixtures("unwaited")
def test_the_first_update_is_waited_for():
    trainer, (batch,) = made("sgd", momentum=0.9), batches([8])
    with pytest.raises(FloatingPointError, match="at update 0;"):
        trainer.step(spoilt(batch))


@pytest.mark.usefixtures("unwaited")
def test_a_state_of_updates_that_failed_is_not_told():
    trainer, (batch,) = made(), batches([8])
    trainer.step(batch)
    trainer.step(spoilt(batch))
    with pytest.raises(FloatingPointError):
        trainer.optimizer.state_dict()


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.usefixtures("unwaited")
def test_a_state_before_the_first_update_is_gone_on_from(name):
    ours, theirs = (made(name, max_grad_norm=1e-3) for _ in range(2))
    start, model = ours.optimizer.state_dict(), copy.deepcopy(ours.model.state_dict())
    some = batches([8] * 4)
    for batch in some:
        ours.step(batch)
    ours.optimizer.load_state_dict(start)
    ours.model.load_state_dict(model)
    ours.optimizer.max_grad_norm = theirs.optimizer.max_grad_norm = None
    for batch in some:
        ours.step(batch)
        theirs.step(batch)
    assert_close(ours, theirs)


def test_what_needs_the_host_waits(monkeypatch):
    monkeypatch.setattr(optimizer, "_UNWAITED", {"cpu"})
    for name, options in (("rmsprop", {}), ("adam", {"max_skips": 1}), ("adam", {"fused": False})):
        assert not made(name, **options).optimizer.defers


def test_rows_that_do_not_count_add_nothing():
    ours, theirs = made("sgd"), made("sgd")
    full, (some,) = batches([16])[0], batches([11])
    filled = Batch(
        torch.cat([some.input, full.input[11:]]),
        {name: torch.cat([column, full[name][11:]]) for name, column in some.columns.items()},
    )
    filled["advantage"][11:] = math.inf
    reports = ours._backward(filled, torch.arange(16) < 11, torch.tensor(11))
    expected = theirs._backward(some)
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for name, report in expected.items():
        torch.testing.assert_close(reports[name].loss, report.loss)


def test_sizes_are_few():
    assert all(rows <= filled_size(rows) <= max(rows + 1, 1.125 * rows) for rows in range(1, 3000))
    assert len({filled_size(rows) for rows in range(1024, 2048)}) <= 9


def test_what_is_known_to_be_constant():
    assert constant(mlp(4, 2), heads.Gaussian("learned"), "action", None, TERMS["policy"].weight)
    assert constant(weights.product("sample_weight", partial(weights.focal, gamma=1.0)), HEAD.entropy_target)

    class Own(nn.Linear):
        pass

    hooked, patched = mlp(4, 2), nn.Linear(4, 2)
    hooked.register_forward_hook(lambda *_: None)
    patched.forward = lambda x: x
    rule = weights.product("sample_weight", lambda cross_entropy, batch: cross_entropy)
    tilted = heads.Transformed(lambda logits: logits)

    class Promised(nn.Linear):
        recordable = True

    assert constant(nn.Sequential(Promised(2, 2), nn.ReLU()))
    for unknown in (Own(2, 2), nn.Sequential(Own(2, 2)), hooked, patched, rule, partial(rule), tilted):
        assert not constant(unknown)


SIZES = [500, 490, 481, 500, 512, 500, 300, 488, 499, 300] * 2


@pytest.mark.gpu
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_replayed_steps_are_the_same(name, options, by_row):
    sizes = SIZES if by_row else [64] * 10 + [17] + [64] * 9
    ours, theirs = (made(name, "cuda", by_row=by_row, **options) for _ in range(2))
    theirs._recorder = None
    for n, batch in enumerate(batches(sizes, "cuda")):
        ours.optimizer.progress = theirs.optimizer.progress = n / 20
        mine, plain = ours.step(batch), theirs.step(batch)
        assert mine["policy"].batch is batch
        for term, report in plain.items():
            for part in ("logits", "target", "cross_entropy", "weight", "loss"):
                found, expected = getattr(mine[term], part), getattr(report, part)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert ours.optimizer.grad_norm == pytest.approx(theirs.optimizer.grad_norm, rel=1e-4)
    ours.look()
    theirs.look()
    assert len(ours._recorder._recordings) == (2 if by_row else 1)
    assert ours.optimizer.steps == theirs.optimizer.steps == 20
    assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_replayed_step_that_is_not_finite(name, options):
    trainer = made(name, "cuda", **options)
    fails_as_it_should(trainer, "cuda")
    assert trainer._recorder._recordings


@pytest.mark.gpu
def test_a_state_that_is_loaded_is_recorded_anew():
    trainer, some = made(device="cuda"), batches([8] * 12, "cuda")
    for batch in some[:6]:
        trainer.step(batch)
    before, model = trainer.optimizer.state_dict(), copy.deepcopy(trainer.model.state_dict())
    ends = []
    for _ in range(2):
        trainer.optimizer.load_state_dict(before)
        trainer.model.load_state_dict(model)
        for batch in some[6:]:
            trainer.step(batch)
        trainer.look()
        ends.append(parts(trainer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.gpu
def test_replayed_dropout_draws_anew():
    model = nn.Sequential(nn.Linear(4, 256), nn.Dropout(), nn.Linear(256, 3)).cuda()
    trainer = Trainer(
        model, {"label": Term(HEAD, "action")}, Optimizer(model.parameters(), learning_rate=1e-9)
    )
    (batch,) = batches([32], "cuda")
    seen = [trainer.step(batch)["label"].logits.clone() for _ in range(8)]
    assert trainer._recorder._recordings
    assert all((a - b).abs().max() > 1e-3 for a, b in pairwise(seen))


@pytest.mark.gpu
def test_what_asks_the_device_is_not_recorded():
    prior = torch.full((3,), 1 / 3, device="cuda")
    head = heads.Transformed(partial(heads.logit_adjusted, prior=prior))  # looks whether it is positive
    trainer = made(device="cuda", terms={"policy": Term(head, "action", output="policy")})
    for batch in batches([8] * 6, "cuda"):
        trainer.step(batch)
    assert not trainer._recorder.possible
    own = Term(HEAD, lambda logits, batch: batch["action"], output="policy")
    assert made(device="cuda", terms={"policy": own})._recorder is None


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit_replays(precision, monkeypatch):
    g = torch.Generator().manual_seed(0)
    data = torch.randn(1000, 20, generator=g), torch.randint(5, (1000,), generator=g)
    ends = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr("pgce.graphs.constant", lambda *parts: False)
        torch.manual_seed(0)
        model = mlp(20, 5, (64, 64))
        history = pgce.fit(model, data, epochs=4, batch_size=128, precision=precision, device="cuda", seed=1)
        ends.append((list(model.parameters()), history["loss"]))
    within = 1e-5 if precision == "float32" else 1e-2
    for a, b in zip(*(parameters for parameters, _ in ends), strict=True):
        torch.testing.assert_close(a, b, rtol=within, atol=within)
    assert ends[0][1] == pytest.approx(ends[1][1], rel=within)


@pytest.mark.gpu
@pytest.mark.parametrize("schedules", [{}, {"ent_coef": "linear"}])
def test_no_step_of_ppo_waits_for_the_device(schedules, tmp_path, monkeypatch):
    step, seen = Trainer.step, []

    def watched(self, batch):
        torch.cuda.set_sync_debug_mode("error" if self.optimizer.deferred else "default")
        try:
            reports = step(self, batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        seen.append(self._recorder is not None and bool(self._recorder._recordings))
        return reports

    monkeypatch.setattr(Trainer, "step", watched)
    agent = pgce.agents.PPO(
        num_envs=64, num_steps=32, total_timesteps=20_000, ent_coef=0.01, schedules=schedules, device="cuda",
        quiet=True, track=False, runs_dir=str(tmp_path), eval_episodes=1, eval_freq=10**9,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = agent.train().result
    assert result["steps"] > 15_000
    assert len(seen) > 100
    assert any(seen) is not bool(schedules)


@pytest.mark.gpu
def test_a_round_of_ppo_waits_twice_a_step_and_a_few_times_more(tmp_path, monkeypatch):
    """For actions and with observations; then to count, to whiten, to look, and for what is logged."""
    after, waited = training._Training._after, []

    def counting(self, n, reports):
        ends = after(self, n, reports)
        waited.append(sum("called a synchronizing" in str(each.message) for each in found))
        return ends

    monkeypatch.setattr(training._Training, "_after", counting)
    agent = pgce.agents.PPO(
        num_envs=16, num_steps=8, total_timesteps=16 * 8 * 9, ent_coef=0.01, device="cuda", quiet=True,
        track=False, runs_dir=str(tmp_path), eval_episodes=1, eval_freq=10**9,
    )  # fmt: skip
    torch.cuda.init()
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            agent.train()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert 2 * 8 <= waited[-1] - waited[-2] <= 2 * 8 + 30


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_updates_of_models_that_are_not_known_are_replayed(name, options, monkeypatch):
    monkeypatch.setattr("pgce.graphs.constant", lambda *parts: False)
    trainer, plain = (made(name, "cuda", **options) for _ in range(2))
    plain.optimizer.defers = False
    for n, batch in enumerate(batches([40, 41] * 10, "cuda")):
        for each in (trainer, plain):
            each.optimizer.progress = n / 20
            each.step(batch)
        trainer.model.zero_grad()
    trainer.look()
    assert trainer._recorder is None
    assert trainer._repeated._graph is not None
    assert_close(trainer, plain)
    trainer.optimizer.max_grad_norm = plain.optimizer.max_grad_norm = 1e-3
    for each in (trainer, plain):
        each.step(batch)
    trainer.look()
    assert_close(trainer, plain)
    fails_as_it_should(made(name, "cuda", **options), "cuda")


@pytest.mark.gpu
def test_recordings_that_nobody_needs_spoil_no_other():
    """A trainer and what it recorded are garbage in a circle, which Python may collect at any time."""
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(3):
            trainer = made(device="cuda")
            for batch in batches([8] * 5, "cuda"):
                trainer.step(batch)
            trainer.look()
            assert trainer._recorder._recordings
    finally:
        gc.set_threshold(*threshold)


@pytest.mark.gpu
def test_class_ids_that_are_none_are_refused_on_a_gpu_too():
    logits, target = torch.zeros(4, 3, device="cuda"), torch.tensor([0, 1, 2, 3], device="cuda")
    with pytest.raises(ValueError, match=r"class ids lie in 0\.\.2: target holds ids from 0 to 3"):
        pgce.weighted_cross_entropy(logits, target, torch.ones(4, device="cuda"))
    assert pgce.weighted_cross_entropy(logits, target - 1 + (target == 0)).item() == pytest.approx(
        math.log(3)
    )


@pytest.mark.gpu
def test_ppo_learns_on_a_gpu(tmp_path):
    agent = pgce.agents.PPO.preset("CartPole-v1", device="cuda", quiet=True, runs_dir=str(tmp_path))
    result = agent.train(total_timesteps=60_000).result
    assert result["eval_mean"] > 100  # at random it is 20


def test_functions_of_a_namespace_without_a_name_are_others():
    """As `exec` makes them."""
    space = {}
    exec("def rule(cross_entropy, batch): return None", space)
    assert not constant(space["rule"])


def test_a_setting_that_is_a_list_in_some_layers_of_a_class():
    """torch keeps how a convolution is padded as a tuple of numbers, or by "same" as a list."""
    model = nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Conv1d(1, 1, 3, padding="same"))
    before = state_of(model)
    assert len({before, state_of(model)}) == 1
    model[1].padding_mode = "circular"
    assert before != state_of(model)
    data = torch.randn(8, 1, 4), torch.arange(8).view(8, 1) % 4
    assert pgce.fit(model, data, epochs=2, device="cpu").stopped == "epochs"

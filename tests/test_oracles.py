"""Every learner's gradient against its textbook loss, in float64 (the rows of the README's table)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import pgce
from pgce.agents import Reinforce, Supervised
from pgce.heads import Categorical, Gaussian
from pgce.networks import ActorCritic, Value, WithScale, mlp
from pgce.optimizer import Optimizer
from pgce.rollout import Rollout

DOUBLE = torch.float64


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


class Recorder(Optimizer):
    """Keeps the gradient instead of taking the step."""

    def step(self):
        self.gradients = [p.grad.clone() for p in self._parameters]


def our_gradients(model, terms, batch):
    recorder = Recorder(model.parameters())
    pgce.Trainer(model, terms, recorder).step(batch)
    return recorder.gradients


def assert_equal(ours, theirs):
    assert any(g.abs().max() > 1e-4 for g in theirs), "a gradient of zero proves nothing"
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


# Classifiers: textbook loss of logits (B, K) and labels (B,).
CLASSIFIERS = {
    "classifier": ({}, lambda z, y: F.cross_entropy(z, y)),
    "label smoothing": (
        {"label_smoothing": 0.1},
        lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    ),
    "soft labels": (
        {"soft_labels": (0.9, 0.1)},
        lambda z, y: -((0.1 + 0.8 * F.one_hot(y, 5)) * z.log_softmax(-1)).sum(-1).mean(),
    ),
}


@pytest.mark.parametrize("row", CLASSIFIERS)
def test_classifier(row):
    settings, textbook = CLASSIFIERS[row]
    torch.manual_seed(0)
    model = mlp(4, 5).double()
    inputs, labels = torch.randn(30, 4, dtype=DOUBLE), torch.arange(30) % 5
    step = {"optimizer": "sgd", "learning_rate": 1.0, "epochs": 1, "batch_size": 30, "device": "cpu"}
    estimator = Supervised(**settings, **step, lr_schedule="constant").estimator("classification")
    trained = estimator.set_params(module=model).fit(inputs.numpy(), labels.numpy()).module_
    ours = [a.detach() - b.detach() for a, b in zip(model.parameters(), trained.parameters(), strict=True)]
    assert_equal(ours, gradients(model, textbook(model(inputs), labels)))


def test_regression_is_half_the_mean_squared_error():
    torch.manual_seed(0)
    model = Value(mlp(4, 1)).double()
    inputs, values = torch.randn(30, 4, dtype=DOUBLE), torch.randn(30, dtype=DOUBLE)
    ours = our_gradients(model, {"value": pgce.Term(Gaussian())}, pgce.Batch(inputs, {"target": values}))
    assert_equal(ours, gradients(model, 0.5 * F.mse_loss(model(inputs), values)))


def policy(head, critic):
    torch.manual_seed(0)
    network = mlp(4, 3) if isinstance(head, Categorical) else WithScale(mlp(4, 3), 3)
    value = Value(mlp(4, 1)) if critic else None
    return ActorCritic(network, value).double()


def fake_rollout(head, steps=12, n=5):
    """Random transitions with ends of both kinds and rows that are no transition."""
    g = torch.Generator().manual_seed(1)
    shape = (steps, n)
    action = torch.randint(3, shape, generator=g)
    if isinstance(head, Gaussian):
        action = torch.randn(*shape, 3, generator=g, dtype=DOUBLE)
    terminated, truncated = torch.rand(2, *shape, generator=g) < 0.15
    return Rollout(
        observation=torch.randn(steps + 1, n, 4, generator=g, dtype=DOUBLE),
        action=action,
        reward=torch.randn(*shape, generator=g, dtype=DOUBLE),
        terminated=terminated,
        truncated=truncated & ~terminated,
        valid=torch.rand(*shape, generator=g) < 0.8,
        final_index=torch.tensor([3, 17]),
        final_observation=torch.randn(2, 4, generator=g, dtype=DOUBLE),
        episode_return=None,
        episode_length=None,
        episode_env=None,
    )


def returns_by_hand(rollout, gamma, next_value):
    """Return to go by the definition, one row at a time."""
    steps, n = rollout.reward.shape
    result = torch.zeros(steps, n, dtype=DOUBLE)
    for i in range(n):
        for t in range(steps):
            discount, k = 1.0, t
            while True:
                result[t, i] += discount * rollout.reward[k, i]
                discount *= gamma
                if rollout.terminated[k, i]:
                    break
                if rollout.truncated[k, i] or k == steps - 1:
                    result[t, i] += discount * next_value[k, i]
                    break
                k += 1
    return result


@pytest.mark.parametrize("head", [Categorical(), Gaussian("learned", event_dims=1)], ids=type)
@pytest.mark.parametrize("norm_adv", [False, True])
@pytest.mark.parametrize("baseline", ["none", "mean", "critic"])
def test_reinforce(baseline, norm_adv, head):
    agent = Reinforce(baseline=baseline, norm_adv=norm_adv, gamma=0.9, ent_coef=0.02, vf_coef=0.7)
    model, rollout = policy(head, baseline == "critic"), fake_rollout(head)
    batch = agent.prepare(rollout, model)
    ours = our_gradients(model, agent.terms(head), batch)

    seen, valid = rollout.observation[:-1], rollout.valid
    if baseline == "critic":
        with torch.no_grad():
            value = model.value(seen.flatten(0, 1)).view(12, 5)
            following = model.value(rollout.observation[1:].flatten(0, 1))
            following[[3, 17]] = model.value(rollout.final_observation)
        returns = returns_by_hand(rollout, 0.9, following.view(12, 5))
        weight = returns - value
    elif baseline == "mean":
        # Solve b = mean(returns completed by b) by iteration: the other way round than the agent does.
        b = torch.zeros((), dtype=DOUBLE)
        for _ in range(100):
            b = returns_by_hand(rollout, 0.9, b.expand(12, 5))[valid].mean()
        returns = returns_by_hand(rollout, 0.9, b.expand(12, 5))
        assert abs(returns[valid].mean() - b) < 1e-12
        weight = returns - b
    else:
        weight = returns = returns_by_hand(rollout, 0.9, torch.zeros(12, 5, dtype=DOUBLE))
    if norm_adv:
        mean = 0 if baseline == "none" else weight[valid].mean()
        weight = (weight - mean) / (weight[valid].std() + 1e-8)

    logits = model.policy(seen[valid])
    if isinstance(head, Categorical):
        density = torch.distributions.Categorical(logits=logits)
    else:
        normal = torch.distributions.Normal(logits[..., 0], logits[..., 1].exp())
        density = torch.distributions.Independent(normal, 1)
    loss = -(weight[valid] * density.log_prob(rollout.action[valid])).mean()
    loss = loss - 0.02 * density.entropy().mean()
    if baseline == "critic":
        loss = loss + 0.7 * 0.5 * F.mse_loss(model.value(seen[valid]), returns[valid])
    assert_equal(ours, gradients(model, loss))


def test_a_reward_that_never_changes_teaches_nothing():
    """With −1 a step and no end, every return completed by the mean is the same: weights are 0, not noise."""
    rollout = fake_rollout(Categorical(), steps=256, n=8)
    nothing = torch.zeros(256, 8, dtype=torch.bool)
    rollout = dataclasses.replace(
        rollout, reward=torch.full((256, 8), -1.0), terminated=nothing, truncated=nothing
    )
    agent = Reinforce(baseline="mean", gamma=0.99)
    batch = agent.prepare(rollout, policy(Categorical(), critic=False))
    torch.testing.assert_close(batch["return"], torch.full((2048,), -100.0))
    assert not batch["advantage"].any()


def test_the_bandit_theorem_exactly():
    """E over a ~ p of REINFORCE's gradient on the bandit is p_y times the gradient of cross-entropy."""
    data = pgce.envs.datasets.load("iris")
    features, labels = data.train_inputs[:20], data.train_labels[:20]
    torch.manual_seed(0)
    model = mlp(4, 3).double()
    for row in range(20):
        env = pgce.envs.ClassificationBandit(features[[row, row]], labels[[row, row]])
        expected = [torch.zeros_like(p) for p in model.parameters()]
        for action in range(3):
            observation, _ = env.reset(seed=0)
            x = torch.from_numpy(observation).double()[None]
            _, reward, terminated, _, _ = env.step(action)
            assert terminated
            logits = model(x)
            p = logits.detach().softmax(-1)[0]
            weight = torch.tensor([reward], dtype=DOUBLE)
            loss = pgce.weighted_cross_entropy(logits, torch.tensor([action]), weight)
            for total, g in zip(expected, gradients(model, loss), strict=True):
                total += p[action] * g
        label = int(labels[row])
        supervised = gradients(model, p[label] * F.cross_entropy(model(x), torch.tensor([label])))
        for a, b in zip(expected, supervised, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)

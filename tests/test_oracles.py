"""Every learner's gradient against its textbook loss, in float64 (the rows of the README's table)."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import pgce
from pgce.agents import A2C, AWR, CEM, GRPO, PPO, RLOO, Reinforce, Supervised, VTrace
from pgce.heads import Categorical, Gaussian
from pgce.networks import ActorCritic, Value, WithScale, mlp
from pgce.optimizer import Optimizer
from pgce.rollout import Rollout

DOUBLE = torch.float64


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


class Recorder(Optimizer):
    """Keeps the gradient instead of taking the step."""

    def update(self):
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
    """Random transitions with ends of both kinds and rows that are no transition, some of them ends."""
    g = torch.Generator().manual_seed(1)
    shape = (steps, n)
    action = torch.randint(3, shape, generator=g)
    if isinstance(head, Gaussian):
        action = torch.randn(*shape, 3, generator=g, dtype=DOUBLE)
    terminated, truncated = torch.rand(2, *shape, generator=g) < 0.15
    reward = torch.randn(*shape, generator=g, dtype=DOUBLE)
    valid = torch.rand(*shape, generator=g) < 0.8
    episodes = int((terminated | truncated).sum())
    return Rollout(
        observation=torch.randn(steps + 1, n, 4, generator=g, dtype=DOUBLE),
        action=action,
        logits=torch.randn(
            *action.shape[:2], 3, *((2,) if isinstance(head, Gaussian) else ()), generator=g, dtype=DOUBLE
        ),
        head=head,
        reward=reward,
        terminated=terminated,
        truncated=truncated & ~terminated,
        valid=valid,
        final_index=torch.tensor([3, 17]),
        final_observation=torch.randn(2, 4, generator=g, dtype=DOUBLE),
        episode_return=torch.randn(episodes, generator=g, dtype=DOUBLE).numpy(),
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


HEADS = {"categorical": Categorical(), "gaussian": Gaussian("learned", event_dims=1)}


def log_density(head, logits, action):
    if isinstance(head, Categorical):
        return torch.distributions.Categorical(logits=logits).log_prob(action)
    normal = torch.distributions.Normal(logits[..., 0], logits[..., 1].exp())
    return torch.distributions.Independent(normal, 1).log_prob(action)


def gae_by_hand(rollout, value, following, gamma, lam):
    """δ summed along the episode, one row at a time."""
    steps, n = rollout.reward.shape
    result = torch.zeros(steps, n, dtype=DOUBLE)
    goes_on = 1 - rollout.terminated.double()
    delta = rollout.reward + gamma * following * goes_on - value
    for i in range(n):
        for t in range(steps):
            for k in range(t, steps):
                result[t, i] += (gamma * lam) ** (k - t) * delta[k, i]
                if rollout.terminated[k, i] or rollout.truncated[k, i]:
                    break
    return result


def values_by_hand(rollout, model):
    with torch.no_grad():
        value = model.value(rollout.observation[:-1].flatten(0, 1)).view(12, 5)
        following = model.value(rollout.observation[1:].flatten(0, 1))
        following[[3, 17]] = model.value(rollout.final_observation)
    return value, following.view(12, 5)


def standardised(advantage, valid):
    return (advantage - advantage[valid].mean()) / (advantage[valid].std() + 1e-8)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("name", ["A2C", "PPO", "PPO dual clip", "PPO value clip", "AWR"])
def test_actor_critics(name, head):
    """Against the loss as published; the value term is vf_coef · ½ · MSE."""
    settings = {"gamma": 0.9, "gae_lambda": 0.8, "vf_coef": 0.7}
    if name == "AWR":
        agent = AWR(beta=0.5, max_weight=3.0, **settings)
    elif name == "A2C":
        agent = A2C(ent_coef=0.02, **settings)
    else:
        more = {"PPO dual clip": {"dual_clip": 1.5}, "PPO value clip": {"clip_vloss": True}}.get(name, {})
        agent = PPO(ent_coef=0.02, **settings, **more)
    model, rollout = policy(head, critic=True), fake_rollout(head)
    # The policy that acted differs from the one that learns: some ratios are clipped on either side.
    old = model.policy(rollout.observation[:-1].flatten(0, 1)).detach().unflatten(0, (12, 5))
    rollout = dataclasses.replace(rollout, logits=old + 0.5 * rollout.logits)
    batch = agent.prepare(rollout, model)
    with torch.no_grad():  # and the critic has moved since
        for p in model.value.parameters():
            p.add_(0.05 * torch.randn(p.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(5)))
    ours = our_gradients(model, agent.terms(head), batch)

    fresh = policy(head, critic=True)
    value, following = values_by_hand(rollout, fresh)
    valid, seen = rollout.valid, rollout.observation[:-1][rollout.valid]
    advantage = gae_by_hand(rollout, value, following, 0.9, 0.8)
    returns, A = (advantage + value)[valid], standardised(advantage, valid)[valid]
    logits = model.policy(seen)
    log_p = log_density(head, logits, rollout.action[valid])
    ratio = (log_p - log_density(head, rollout.logits[valid], rollout.action[valid])).exp()
    V = model.value(seen)
    error = (V - returns).square()
    if name == "AWR":
        loss = -((A / 0.5).exp().clamp(max=3.0) * log_p).mean()
    elif name == "A2C":
        loss = -(A * log_p).mean()
    else:
        surrogate = torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A)
        assert (surrogate < ratio * A).any(), "some are clipped"
        if name == "PPO dual clip":
            assert ((A < 0) & (ratio > 1.5)).any()
            surrogate = torch.where(A < 0, torch.maximum(surrogate, 1.5 * A), surrogate)
        loss = -surrogate.mean()
        if name == "PPO value clip":
            clipped = value[valid] + (V - value[valid]).clamp(-0.2, 0.2)
            assert ((clipped - returns).square() > error).any()
            error = torch.maximum(error, (clipped - returns).square())
    if agent.ent_coef:
        density = reference_entropy(head, logits)
        loss = loss - 0.02 * density.mean()
    assert_equal(ours, gradients(model, loss + 0.7 * 0.5 * error.mean()))


def reference_entropy(head, logits):
    if isinstance(head, Categorical):
        return torch.distributions.Categorical(logits=logits).entropy()
    normal = torch.distributions.Normal(logits[..., 0], logits[..., 1].exp())
    return torch.distributions.Independent(normal, 1).entropy()


def test_grpo():
    """Group-standardised returns of the first episodes, with PPO's clipped surrogate."""
    head = Categorical()
    agent = GRPO(num_envs=4, group=2)
    model, rollout = policy(head, critic=False), fake_rollout(head, n=4)
    old = model.policy(rollout.observation[:-1].flatten(0, 1)).detach().unflatten(0, (12, 4))
    rollout = dataclasses.replace(rollout, logits=old + 0.5 * rollout.logits)
    ours = our_gradients(model, agent.terms(head), agent.prepare(rollout, model))
    done = rollout.terminated | rollout.truncated
    rows = [(t, i) for i in range(4) for t in range(12) if rollout.valid[t, i] and not done[:t, i].any()]
    total = [sum(rollout.reward[t, i].item() for t, i in rows if i == n) for n in range(4)]
    loss = 0.0
    for t, i in rows:
        group = np.array(total[i // 2 * 2 : i // 2 * 2 + 2])
        A = (total[i] - group.mean()) / (group.std(ddof=1) + 1e-4)
        log_p = log_density(head, model.policy(rollout.observation[t, i]), rollout.action[t, i])
        ratio = (log_p - log_density(head, rollout.logits[t, i], rollout.action[t, i])).exp()
        loss = loss - torch.minimum(ratio * A, ratio.clamp(0.8, 1.2) * A) / len(rows)
    assert_equal(ours, gradients(model, loss))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_vtrace(head):
    """Against the definition: products of the capped ratios, one row at a time."""
    agent = VTrace(gamma=0.9, trace_lambda=0.8, vf_coef=0.7, norm_adv=False, max_rho=1.2, max_c=0.9)
    model, rollout = policy(head, critic=True), fake_rollout(head)
    old = model.policy(rollout.observation[:-1].flatten(0, 1)).detach().unflatten(0, (12, 5))
    rollout = dataclasses.replace(rollout, logits=old + 0.5 * rollout.logits)
    ours = our_gradients(model, agent.terms(head), agent.prepare(rollout, model))
    value, following = values_by_hand(rollout, model)
    with torch.no_grad():
        now = log_density(head, old, rollout.action)
        ratio = (now - log_density(head, rollout.logits, rollout.action)).exp()
    assert (ratio > 1.2).any()
    assert (ratio < 0.9).any()
    reward, ended = rollout.reward, rollout.terminated | rollout.truncated
    delta = ratio.clamp(max=1.2) * (reward + 0.9 * following * ~rollout.terminated - value)
    v = value.clone()
    for i in range(5):
        for t in range(12):
            trace = 1.0
            for k in range(t, 12):
                v[t, i] += 0.9 ** (k - t) * trace * delta[k, i]
                if ended[k, i]:
                    break
                trace *= 0.8 * min(0.9, ratio[k, i].item())
    after = following.clone()
    for i in range(5):
        for t in range(11):
            if not ended[t, i]:
                after[t, i] = v[t + 1, i]
    weight = ratio.clamp(max=1.2) * (reward + 0.9 * after * ~rollout.terminated - value)
    valid, seen = rollout.valid, rollout.observation[:-1][rollout.valid]
    log_p = log_density(head, model.policy(seen), rollout.action[valid])
    loss = -(weight[valid] * log_p).mean() + 0.35 * F.mse_loss(model.value(seen), v[valid])
    assert_equal(ours, gradients(model, loss))


@pytest.mark.parametrize("name", ["RLOO", "CEM"])
def test_episodes_and_their_rank(name):
    """Rows of episodes that have not ended, or are no transition, do not count."""
    head = Categorical()
    agent = RLOO(norm_adv=False) if name == "RLOO" else CEM(elite=0.4)
    model, rollout = policy(head, critic=False), fake_rollout(head)
    ours = our_gradients(model, agent.terms(head), agent.prepare(rollout, model))
    done = rollout.terminated | rollout.truncated
    total = rollout.episode_return
    ends = sorted((t, i) for t in range(12) for i in range(5) if done[t, i])
    assert len(ends) == len(total) > 4
    loss, rows = 0.0, 0
    for t in range(12):
        for i in range(5):
            mine = [e for e, (end, env) in enumerate(ends) if env == i and end >= t][:1]
            if not mine or not rollout.valid[t, i]:
                continue
            others = [r for e, r in enumerate(total) if e != mine[0]]
            elite = sorted(total)[-len([r for r in total if r >= np.quantile(total, 0.6)]) :]
            w = (
                total[mine[0]] - sum(others) / len(others)
                if name == "RLOO"
                else float(total[mine[0]] in elite)
            )
            logits = model.policy(rollout.observation[t, i][None])
            loss = loss - w * logits.log_softmax(-1)[0, rollout.action[t, i]]
            rows += 1
    assert_equal(ours, gradients(model, loss / rows))


def test_the_worst_episodes_are_no_elite_however_many_they_are():
    rollout = fake_rollout(Categorical())
    returns = np.zeros(len(rollout.episode_return))
    returns[2] = 1
    rollout = dataclasses.replace(rollout, episode_return=returns)
    weight = CEM(elite=0.4).prepare(rollout, None)["advantage"]
    assert torch.equal(weight, (rollout.episode == 2).flatten().float())


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
        for action in range(env.action_space.n):  # no other is paid
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

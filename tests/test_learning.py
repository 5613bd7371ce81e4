"""The claims of the README, on five seeds (run with: pytest -m slow)."""

from __future__ import annotations

import pytest

import pgce
from pgce.agents import A2C, AWR, CEM, GRPO, PPO, RLOO, Reinforce, Supervised, VTrace

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("baseline", ["mean", "critic"])
def test_reinforce_solves_cartpole(baseline, seed, tmp_path):
    agent = Reinforce(baseline=baseline, seed=seed, quiet=True, runs_dir=str(tmp_path))
    result = agent.train("CartPole-v1", total_timesteps=200_000).result
    assert result["stopped"] == "threshold"
    assert result["steps"] <= 200_000
    assert result["eval_episodes"] == 100
    assert result["eval_mean"] >= 475


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("kind", [A2C, AWR, CEM, GRPO, PPO, RLOO, VTrace])
def test_agents_solve_cartpole(kind, seed, tmp_path):
    agent = kind.preset("CartPole-v1", seed=seed, quiet=True, device="cpu", runs_dir=str(tmp_path))
    result = agent.train().result
    assert result["stopped"] == "threshold"
    assert result["eval_mean"] >= 475


@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("kind", [PPO, RLOO, GRPO])
def test_agents_write_eight_tokens_backwards(kind, seed, tmp_path):
    agent = kind.preset("pgce/Reverse8x10-v0", seed=seed, quiet=True, device="cpu", runs_dir=str(tmp_path))
    run = agent.train()
    assert run.result["stopped"] == "threshold"
    trained = pgce.load(run.path)
    for greedy, share in ((True, 0.95), (False, 0.9)):
        assert (trained.evaluate(1_000, seed=1, greedy=greedy) == 1).mean() >= share


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_classifier_learns_digits(seed, tmp_path):
    result = Supervised(seed=seed, quiet=True, runs_dir=str(tmp_path)).train("digits").result
    assert result["test_accuracy"] >= 0.975

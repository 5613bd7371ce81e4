"""Every learner on every probe that it should solve: where one fails, its name says what is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import pgce
from pgce.agents import A2C, AWR, BC, CEM, GRPO, PPO, RLOO, Reinforce, VTrace

QUICK = {"quiet": True, "track": False, "device": "cpu", "stop_at_threshold": False, "eval_freq": 10**9}
FEW: Any = {"update_epochs": 4, "num_minibatches": 4}
CRITICS = {
    "PPO": PPO(num_steps=32, learning_rate=3e-3, norm_reward=False, **FEW),
    "PPO, value clipped": PPO(num_steps=32, learning_rate=3e-3, clip_vloss=True, norm_reward=False, **FEW),
    "A2C": A2C(learning_rate=1e-2),
    "A2C, n-step": A2C(learning_rate=1e-2, n_step=3),
    "V-trace": VTrace(learning_rate=1e-2),
    "AWR": AWR(num_steps=32),
    "REINFORCE, critic": Reinforce(baseline="critic", num_steps=32, learning_rate=1e-2),
}
POLICIES = {
    **CRITICS,
    "REINFORCE": Reinforce(num_steps=32, learning_rate=1e-2),
    "REINFORCE, no baseline": Reinforce(num_steps=32, learning_rate=1e-2, baseline="none"),
    "RLOO": RLOO(num_steps=32),
    "GRPO": GRPO(num_envs=16, num_steps=8, vectorization="auto", learning_rate=1e-2),
    "CEM": CEM(num_steps=32, learning_rate=1e-2),
}


def trained(agent, env_id, steps, folder, **settings):
    agent = replace(agent, runs_dir=str(folder), **{**QUICK, **settings})
    return pgce.load(agent.train(env_id, total_timesteps=steps).path)


@pytest.mark.parametrize("name", CRITICS)
@pytest.mark.parametrize(
    ("env_id", "seen", "value"),
    [
        ("pgce/ProbeValue-v0", [[-1.0], [1.0]], [-1.0, 1.0]),
        ("pgce/ProbeDiscount-v0", [[1.0, 0.0], [0.0, 1.0]], [0.5, 1.0]),
        ("pgce/ProbeTruncation-v0", [[1.0]], [2.0]),
    ],
)
def test_values(name, env_id, seen, value, tmp_path):
    model = trained(CRITICS[name], env_id, 12_000, tmp_path, gamma=0.5).model
    assert model.value(torch.tensor(seen)).tolist() == pytest.approx(value, abs=0.05)


MEMORY = "pgce/ProbeMemory-v0"
PROBES = [
    ("pgce/ProbeAction-v0", 1.0, {}),
    ("pgce/ProbeMask-v0", 4.0, {}),
    (MEMORY, 1.0, {"memory": "gru", "memory_size": 16}),
]


@pytest.mark.parametrize(
    ("name", "env_id", "score", "settings"),
    [
        pytest.param(
            name,
            *probe,
            marks=[pytest.mark.slow] * (probe[0] == MEMORY and name not in ("A2C", "RLOO")),
        )
        for name in POLICIES
        for probe in PROBES
    ],
)
def test_policies(name, env_id, score, settings, tmp_path):
    agent = trained(POLICIES[name], env_id, 10_000, tmp_path, **settings)
    assert agent.evaluate(50).mean() == score


def test_behaviour_cloning(tmp_path):
    expert = PPO(num_steps=32, runs_dir=str(tmp_path), **QUICK).train("pgce/ProbeAction-v0", 8_000)
    pupil = trained(BC(expert=str(expert.path)), "pgce/ProbeAction-v0", 8_000, tmp_path)
    assert pupil.evaluate(50).mean() == 1.0

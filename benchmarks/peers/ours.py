"""pgce.

python ours.py WORK SEED
"""

from __future__ import annotations

import tempfile
from typing import Any

from common import tell, work

import pgce

WHAT, SEED = work()
SAME: dict[str, Any] = {
    "num_steps": 32, "update_epochs": 4, "num_minibatches": 4, "hidden_sizes": (64, 64),
    "stop_at_threshold": False, "eval_freq": 10**9, "eval_episodes": 1,
}  # fmt: skip
AGENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ppo": ("PPO", {"eval_freq": 5_000}),
    "reinforce": ("Reinforce", {"eval_freq": 5_000}),
    "steps 64": ("PPO", {**SAME, "num_envs": 64, "total_timesteps": 500_000}),
    "steps 512": ("PPO", {**SAME, "num_envs": 512, "total_timesteps": 2_000_000}),
}

name, settings = AGENTS[WHAT]
with tempfile.TemporaryDirectory() as folder:
    agent = getattr(pgce.agents, name).preset(
        "CartPole-v1", seed=SEED, device="cpu", quiet=True, runs_dir=folder, **settings
    )
    result = agent.train().result
tell(result["train_seconds"], result["steps"], result["eval_mean"])

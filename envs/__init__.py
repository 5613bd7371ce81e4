"""Gymnasium environments, and the making of vector environments. Imports nothing of pgce."""

from __future__ import annotations

import gymnasium as gym

from pgce.envs import datasets
from pgce.envs.bandit import ClassificationBandit, VectorClassificationBandit
from pgce.envs.vectorize import make, reset, spawn_seeds

__all__ = [
    "ClassificationBandit",
    "VectorClassificationBandit",
    "datasets",
    "make",
    "reset",
    "spawn_seeds",
]

for _env_id, _split in (("pgce/DigitsBandit-v0", "train"), ("pgce/DigitsBanditTest-v0", "test")):
    if _env_id not in gym.registry:  # this folder may be imported under a second name
        gym.register(
            _env_id,
            entry_point="pgce.envs.bandit:ClassificationBandit",
            vector_entry_point="pgce.envs.bandit:VectorClassificationBandit",
            kwargs={"data": "digits", "split": _split},
            reward_threshold=0.95,
        )

"""Gymnasium environments, and the making of vector environments. Imports nothing of pgce."""

from __future__ import annotations

import gymnasium as gym

from pgce.envs import datasets
from pgce.envs.bandit import ClassificationBandit, VectorClassificationBandit
from pgce.envs.vectorize import make, reset, spawn_seeds

__all__ = ["ClassificationBandit", "VectorClassificationBandit", "datasets", "make", "reset", "spawn_seeds"]

for _env_id, _split in (("pgce/DigitsBandit-v0", "train"), ("pgce/DigitsBanditTest-v0", "test")):
    if _env_id not in gym.registry:  # this folder may be imported under a second name
        gym.register(
            _env_id,
            entry_point="pgce.envs.bandit:ClassificationBandit",
            vector_entry_point="pgce.envs.bandit:VectorClassificationBandit",
            kwargs={"data": "digits", "split": _split},
            reward_threshold=0.95,
        )

# The reward that solves each; None where the reward does not depend on the policy. A share s of right tokens
# is about sᴸ right answers of L: 98 % of them at 0.998 and 8.
for _name, _module, _threshold, _limit, _kwargs in (
    ("ProbeValue", "probes:ValueProbe", None, None, {}),
    ("ProbeDiscount", "probes:DiscountProbe", None, None, {}),
    ("ProbeTruncation", "probes:TruncationProbe", None, 2, {}),
    ("ProbeAction", "probes:ActionProbe", 0.9, None, {}),
    ("ProbeMemory", "probes:MemoryProbe", 0.9, None, {}),
    ("ProbeMask", "probes:MaskProbe", 3.6, None, {}),
    ("Copy", "tokens:Copy", 0.995, None, {}),
    ("Reverse", "tokens:Reverse", 0.995, None, {}),
    ("Reverse8x10", "tokens:Reverse", 0.998, None, {"length": 8, "tokens": 10}),
    ("Addition", "tokens:Addition", 0.99, None, {}),
):
    if f"pgce/{_name}-v0" not in gym.registry:
        gym.register(
            f"pgce/{_name}-v0",
            entry_point=f"pgce.envs.{_module}",
            vector_entry_point=f"pgce.envs.{_module}VectorEnv",
            kwargs=_kwargs,
            reward_threshold=_threshold,
            max_episode_steps=_limit,
        )

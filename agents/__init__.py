"""The learners, one file each; `pgce.agents.Reinforce(...).train("CartPole-v1")` from Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgce.agents.a2c import A2C
    from pgce.agents.awr import AWR
    from pgce.agents.bc import BC
    from pgce.agents.cem import CEM
    from pgce.agents.grpo import GRPO
    from pgce.agents.ppo import PPO
    from pgce.agents.reinforce import Reinforce
    from pgce.agents.rloo import RLOO
    from pgce.agents.supervised import Supervised
    from pgce.agents.vtrace import VTrace

__all__ = ["A2C", "AWR", "BC", "CEM", "GRPO", "PPO", "RLOO", "Reinforce", "Supervised", "VTrace"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"pgce.agents.{name.lower()}"), name)
    raise AttributeError(f"module 'pgce.agents' has no attribute {name!r}")

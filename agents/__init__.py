"""The learners, one file each; `pgce.agents.Reinforce(...).train("CartPole-v1")` from Python."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgce.agents.reinforce import Reinforce
    from pgce.agents.supervised import Supervised

__all__ = ["Reinforce", "Supervised"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"pgce.agents.{name.lower()}"), name)
    raise AttributeError(f"module 'pgce.agents' has no attribute {name!r}")

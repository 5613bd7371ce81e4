"""REINFORCE on CartPole-v1: the return while it learns."""

from pathlib import Path

from PIL import Image

import pgce
from pgce.pictures import learning_curves
from pgce.records import Record

agent = pgce.agents.Reinforce(stop_at_threshold=False, quiet=True)
curve = Record.read(agent.train("CartPole-v1", total_timesteps=100_000).path).curve()
picture = learning_curves({"CartPole-v1": {"REINFORCE": [curve]}})
Image.fromarray(picture).save(Path(__file__).with_suffix(".png"), optimize=True)

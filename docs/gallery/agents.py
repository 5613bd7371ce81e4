"""Four rules for the weight, three seeds each: interquartile mean and interval."""

from pathlib import Path

from PIL import Image

import pgce
from pgce.pictures import learning_curves
from pgce.records import Record

curves = {}
for name in ("Reinforce", "RLOO", "A2C", "PPO"):
    agents = [
        getattr(pgce.agents, name)(seed=seed, stop_at_threshold=False, quiet=True) for seed in (1, 2, 3)
    ]
    curves[name] = [Record.read(a.train("CartPole-v1", total_timesteps=60_000).path).curve() for a in agents]
picture = learning_curves({"CartPole-v1": curves})
Image.fromarray(picture).save(Path(__file__).with_suffix(".png"), optimize=True)

"""Eight rows of a batch of PPO's: the action y, the policy p, the weight w, the gradient w · (p − y)."""

from pathlib import Path

from PIL import Image

import pgce

agent = pgce.agents.PPO(quiet=True, eval_freq=2_000)
run = agent.train("Acrobot-v1", total_timesteps=4_096)
picture = Image.open(run.path / "pictures" / "rows.png")
double = picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
double.save(Path(__file__).with_suffix(".png"), optimize=True)

"""MountainCar-v0: the probability to push right, by place and speed, after training."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import pgce

run = pgce.agents.PPO.preset("MountainCar-v0", quiet=True).train(total_timesteps=300_000)
place, speed = np.linspace(-1.2, 0.6, 120), np.linspace(-0.07, 0.07, 120)
grid = np.stack(np.meshgrid(place, speed), -1).reshape(-1, 2)
with torch.no_grad():
    p = run.model(torch.tensor(grid, dtype=torch.float32))["policy"].softmax(-1)[:, 2]
figure = Figure((4.5, 3.4), layout="constrained")
axes = figure.add_subplot(xlabel="place", ylabel="speed", title="probability to push right")
shown = axes.imshow(p.reshape(120, 120), origin="lower", aspect="auto", extent=(-1.2, 0.6, -0.07, 0.07))
figure.colorbar(shown)
figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)

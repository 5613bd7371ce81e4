"""Twenty examples against a thousand: what counts as the rare class, without and with its weight."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import make_moons

import pgce

X, y = make_moons((1000, 20), noise=0.25, random_state=0)
grid = np.stack(np.meshgrid(np.linspace(-1.5, 2.5, 120), np.linspace(-1.2, 1.8, 120)), -1)
figure = Figure((9, 3), layout="constrained")
rules = {
    "plain": {},
    "class_weight balanced": {"class_weight": "balanced"},
    "focal γ = 2": {"focal_gamma": 2.0},
}
for place, (name, rule) in enumerate(rules.items(), 1):
    classifier = pgce.Classifier(hidden_sizes=(32,), epochs=60, random_state=0, **rule).fit(X, y)
    p = classifier.predict_proba(grid.reshape(-1, 2))[:, 1].reshape(120, 120)
    axes = figure.add_subplot(1, 3, place, title=name)
    axes.contourf(grid[..., 0], grid[..., 1], p, levels=np.linspace(0, 1, 11), cmap="RdBu_r")
    axes.scatter(*X[y == 0].T, c="black", s=2)
    axes.scatter(*X[y == 1].T, c="gold", s=16, edgecolors="black")
figure.savefig(Path(__file__).with_suffix(".png"), dpi=70)

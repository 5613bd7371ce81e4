"""Noise that grows: the 10 %, 50 % and 90 % quantiles, by the weight of the pinball loss."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import pgce

random = np.random.default_rng(0)
X = random.uniform(0, 1, (600, 1)).astype(np.float32)
y = (np.sin(6 * X[:, 0]) + X[:, 0] * random.standard_normal(600)).astype(np.float32)
at = np.linspace(0, 1, 200, dtype=np.float32)[:, None]
figure = Figure((4.5, 3.4), layout="constrained")
axes = figure.add_subplot()
axes.plot(X, y, ".", color="lightgrey", markersize=3)
for quantile in (0.1, 0.5, 0.9):
    model = pgce.Regressor(
        hidden_sizes=(64,), epochs=150, quantile=quantile, distribution="laplace", random_state=0
    )
    axes.plot(at, model.fit(X, y).predict(at), label=f"{quantile:.0%}")
axes.legend()
figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)

"""A line with a few wild points: the squared error, and with Huber's weight min(1, δ/|error|)."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import pgce

random = np.random.default_rng(0)
X = np.linspace(-1, 1, 100)[:, None].astype(np.float32)
y = (2 * X[:, 0] + 0.1 * random.standard_normal(100)).astype(np.float32)
y[80:95] -= 8
figure = Figure((4.5, 3.4), layout="constrained")
axes = figure.add_subplot()
axes.plot(X, y, ".", color="grey")
for name, rule in {"squared error": {}, "Huber, δ = 0.2": {"huber_delta": 0.2}}.items():
    line = pgce.Regressor(hidden_sizes=(), epochs=400, learning_rate=0.02, random_state=0, **rule).fit(X, y)
    axes.plot(X, line.predict(X), label=name)
axes.legend()
figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)

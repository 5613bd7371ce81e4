"""Digits, of which a growing share is labelled wrong: the cross-entropy, and with the weight p^q of GCE."""

from pathlib import Path

import torch
from matplotlib.figure import Figure

import pgce

data = pgce.envs.datasets.load("digits")
shares = [0.0, 0.2, 0.4, 0.6]
figure = Figure((4.5, 3.4), layout="constrained")
axes = figure.add_subplot(xlabel="share of wrong labels", ylabel="right on clean held-out digits")
for name, rule in {"cross-entropy": {}, "GCE, q = 0.7": {"gce_q": 0.7}}.items():
    right = []
    for share in shares:
        noise = pgce.targets.noise_matrix(10, share)
        labels = pgce.targets.draw(torch.tensor(data.train_labels), noise, torch.Generator().manual_seed(0))
        classifier = pgce.Classifier(hidden_sizes=(256,), epochs=40, batch_size=64, random_state=0, **rule)
        right.append(
            classifier.fit(data.train_inputs, labels.numpy()).score(data.test_inputs, data.test_labels)
        )
    axes.plot(shares, right, "o-", label=name)
axes.legend()
figure.savefig(Path(__file__).with_suffix(".png"), dpi=90)

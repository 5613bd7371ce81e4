"""Breast cancer: the share right against the confidence, with hard labels and with smoothed ones."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import pgce
from pgce.pictures import reliability_diagram

data = pgce.envs.datasets.load("breast_cancer")
pictures = []
for smoothing in (0.0, 0.01):
    classifier = pgce.Classifier(hidden_sizes=(64,), epochs=100, label_smoothing=smoothing, random_state=0)
    classifier.fit(data.train_inputs, data.train_labels)
    p = torch.tensor(classifier.predict_proba(data.test_inputs))
    pictures.append(reliability_diagram(torch.tensor(data.test_labels), p))
Image.fromarray(np.concatenate(pictures, 1)).save(Path(__file__).with_suffix(".png"), optimize=True)

"""Digits: how often each was taken for each, of examples that were held out."""

from pathlib import Path

import torch
from PIL import Image

import pgce
from pgce.pictures import confusion_matrix

data = pgce.envs.datasets.load("digits")
classifier = pgce.Classifier(hidden_sizes=(64,), epochs=15).fit(data.train_inputs, data.train_labels)
p = torch.tensor(classifier.predict_proba(data.test_inputs))
picture = confusion_matrix(torch.tensor(data.test_labels), p, [str(digit) for digit in range(10)])
Image.fromarray(picture).save(Path(__file__).with_suffix(".png"), optimize=True)

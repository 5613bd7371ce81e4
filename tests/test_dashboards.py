"""Pictures, curves and vectors of a classifier, read back from its event file."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

import pgce
from pgce import dashboards, heads, pictures
from pgce.logger import Logger


@pytest.fixture(scope="module")
def trained():
    data = pgce.envs.datasets.load("digits")
    torch.manual_seed(0)
    model = pgce.networks.mlp(64, 10, (32,), "relu")
    pgce.fit(model, (data.train_inputs, data.train_labels), epochs=5, learning_rate=0.01, device="cpu")
    return model, data


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    model, data = trained
    folder = tmp_path_factory.mktemp("run")
    batch = pgce.data.as_batch((data.test_inputs, data.test_labels))
    model.train()
    with Logger(folder) as logger:
        dashboards.classifier(logger, 7, model, batch, heads.Categorical(), image_shape=(8, 8))
    assert logger.dropped == 0
    assert model.training
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    return folder, events


def test_pictures_are_png_of_the_size_they_say(written):
    _, events = written
    assert set(events.Tags()["images"]) == {
        "eval/confusion_matrix",
        "eval/reliability",
        "eval/confidently_wrong",
    }
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        image = Image.open(io.BytesIO(event.encoded_image_string))
        assert event.step == 7
        assert (image.width, image.height) == (event.width, event.height)
        assert np.asarray(image).std() > 10, "not blank"


def test_precision_recall_curves_are_scikit_learn_s(written, trained):
    from sklearn.metrics import precision_score, recall_score

    _, events = written
    model, data = trained
    p = pgce.predict_proba(model, data.test_inputs).numpy()
    for k in range(10):
        (event,) = events.Tensors(f"eval/pr_curve/{k}")
        curve = make_ndarray(event.tensor_proto)
        *_, precision, recall = curve
        threshold = 63 / 126
        truth, guess = data.test_labels == k, p[:, k] >= threshold
        assert precision[63] == pytest.approx(precision_score(truth, guess), abs=1e-6)
        assert recall[63] == pytest.approx(recall_score(truth, guess), abs=1e-6)


def test_the_projector_has_what_the_last_layer_reads(written, trained):
    folder, _ = written
    model, data = trained
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (entry,) = config.embeddings
    vectors = np.loadtxt(folder / entry.tensor_path, delimiter="\t")
    expected = model[:2](torch.from_numpy(data.test_inputs)).detach().numpy()
    np.testing.assert_allclose(vectors, expected, rtol=1e-4, atol=1e-4)
    labels = (folder / entry.metadata_path).read_text().split()
    assert labels == [str(label) for label in data.test_labels]
    sprite = np.asarray(Image.open(folder / entry.sprite.image_path))
    assert sprite.shape == (22 * 8, 22 * 8)
    first = data.test_inputs[23].reshape(8, 8)  # row 1, column 1 of 22 × 22
    np.testing.assert_allclose(sprite[8:16, 8:16] / 255, first / data.test_inputs.max(), atol=0.01)


def test_the_surest_errors_come_first(monkeypatch):
    """Of five errors the four surest are shown, with their names."""
    shown = []
    original = pictures._drawn
    monkeypatch.setattr(
        pictures, "_drawn", lambda f: (shown.extend(a.get_title() for a in f.axes), original(f))[1]
    )
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3], [0.55, 0.45], [0.99, 0.01]])
    label = torch.tensor([1, 1, 0, 1, 1, 0])
    pictures.confidently_wrong(np.zeros((6, 3, 5, 5)), label, p, ["cat", "dog"], most=4)
    taken = [title.splitlines() for title in shown]
    assert taken == [
        ["dog taken for cat", "90.0% sure"],
        ["cat taken for dog", "80.0% sure"],
        ["dog taken for cat", "70.0% sure"],
        ["dog taken for cat", "60.0% sure"],
    ]


def test_several_labels_and_other_models(tmp_path):
    """No confusion matrix of several labels; no vectors of a model without a linear layer."""
    batch = pgce.Batch(torch.randn(20, 3), {"target": torch.randint(2, (20, 3))})
    with Logger(tmp_path) as logger:
        dashboards.classifier(logger, 1, nn.Identity(), batch, heads.Bernoulli())
    assert logger.dropped == 0
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["images"] == []
    assert not (tmp_path / "projector_config.pbtxt").exists()


def test_fit_writes_both_curves_by_folder(trained, tmp_path):
    _, data = trained
    model = pgce.networks.mlp(64, 10, (16,))
    held_out = (data.test_inputs, data.test_labels)
    learn = (data.train_inputs, data.train_labels)
    history = pgce.fit(
        model, learn, validation=held_out, metrics=pgce.metrics.classification, epochs=3, log=tmp_path,
        device="cpu",
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    for tag, name in {"objective/loss": "loss", "eval/loss": "val_loss", "eval/ece": "val_ece"}.items():
        assert [e.value for e in events.Scalars(tag)] == pytest.approx(history[name])
    assert [e.step for e in events.Scalars("eval/accuracy")] == history["examples"]
    assert len(events.Histograms("distribution/cross_entropy")) == 3

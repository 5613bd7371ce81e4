"""Pictures, curves and vectors of a classifier, read back from its event file."""

from __future__ import annotations

import io
import sys
import weakref
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from gymnasium.envs.registration import EnvSpec
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig
from tensorboard.util.tensor_util import make_ndarray
from torch import nn

import pgce
from pgce import dashboards, films, heads, pictures
from pgce.logger import Logger
from pgce.trainer import Report


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


def test_a_network_is_drawn_as_it_computes(tmp_path):
    model = nn.ModuleDict({"body": nn.Linear(4, 8), "left": nn.Linear(8, 2), "right": nn.Linear(8, 1)})
    model.forward = lambda x: [model[name](model["body"](x)) for name in ("left", "right")]
    with Logger(tmp_path) as logger:
        dashboards.network(logger, model, torch.zeros(1, 4))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    nodes = {node.name: (node.op, list(node.input)) for node in events.Graph().node}
    assert nodes["input"] == ("Input", [])
    assert nodes["body"] == ("Linear", ["input"])
    assert nodes["left"] == ("Linear", ["body"])
    assert nodes["right"][0] == "Linear"
    assert not any(module._forward_hooks for module in model.modules())


def test_the_heat_map_shows_signs_and_sizes():
    rows = {
        "y": torch.tensor([1, 0]),
        "p": torch.tensor([[0.25, 0.75], [1.0, 0.0]]),
        "w": torch.tensor([2.0, -1.0]),
        "gradient": torch.tensor([[0.5, -0.5], [0.0, 0.0]]),
    }
    picture = pictures.heat_map(rows).astype(int)
    middle = 28 + 7, 28 + 15 + 7  # of the two rows of cells
    red, _, blue = picture[middle[0]].T
    assert (blue > red).any()
    assert (red > blue).any(), "the gradient on the label is negative"
    y = picture[middle[0], 7], picture[middle[0], 22]
    assert y[0].tolist() == [255, 255, 255]
    assert y[1].tolist() == [0, 0, 255]


def test_of_a_batch_without_a_row_nothing_is_shown(tmp_path):
    logits, y, head = torch.zeros(0, 2), torch.zeros(0).long(), heads.Categorical()
    seen = head.cross_entropy(logits, y)
    report = Report(logits, y, seen, seen, seen.sum(), pgce.Batch(logits, {"action": y}))
    with Logger(tmp_path) as logger:
        dashboards.batch(logger, 1, report, head)
    assert not (tmp_path / "pictures").exists()


def test_what_was_written_of_a_run(tmp_path):
    seen = []
    agent = pgce.agents.PPO(quiet=True, runs_dir=str(tmp_path), num_envs=4, num_steps=16, eval_freq=20_000)
    agent.update_epochs, agent.num_minibatches, agent.hidden_sizes, agent.eval_episodes = 1, 1, (4,), 1
    run = agent.train(total_timesteps=64 * 1_100, metrics=lambda step, values: seen.append(step))
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0, "histograms": 0, "images": 0})
    events.Reload()
    written = [event.step for event in events.Scalars("objective/loss")]
    updates = sorted(set(seen))
    assert len(updates) > 1_100
    assert written == [step for n, step in enumerate(updates, 1) if n < 1_000 or n % 2 == 0]
    tags = events.Tags()
    assert set(tags["histograms"]) == {
        f"distribution/{name}" for name in ("weight", "cross_entropy", "advantage", "action")
    }
    assert tags["images"] == ["batch/rows"]
    assert {node.name.split("/")[0] for node in events.Graph().node} == {"input", "torso", "actor", "critic"}
    low, mean, high = (events.Scalars(f"rollout/ep_rew_{name}")[-1].value for name in ("min", "mean", "max"))
    assert low < mean < high
    parts = [1 / events.Scalars(f"time/{name}_fps")[-1].value for name in ("collect", "learn")]
    assert sum(parts) == pytest.approx(1 / events.Scalars("time/fps")[-1].value, rel=0.02)


def test_a_film_is_in_the_run(tmp_path):
    pytest.importorskip("pygame")
    agent = pgce.agents.Reinforce(quiet=True, runs_dir=str(tmp_path), capture_video=True, eval_freq=3_000)
    run = agent.train(total_timesteps=6_144)
    events = EventAccumulator(str(run.path), size_guidance={"images": 0})
    events.Reload()
    shown = events.Images("eval/episode")
    assert [film.step for film in shown] == [
        int(file.stem) for file in sorted((run.path / "videos").glob("*.gif"))
    ]
    with Image.open(io.BytesIO(shown[-1].encoded_image_string)) as film:
        assert film.n_frames > 5
    plain = pgce.agents.Reinforce(quiet=True, runs_dir=str(tmp_path), eval_freq=3_000)
    assert plain.train(total_timesteps=6_144).result["eval_mean"] == run.result["eval_mean"]


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_the_folder_of_a_film_is_made(suffix, tmp_path, monkeypatch):
    codec = SimpleNamespace(imwrite=lambda file, *_, **__: file.write_bytes(b"film"))
    for name in ("imageio", "imageio.v3", "imageio_ffmpeg"):  # which need not be there
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(v3=codec, imwrite=codec.imwrite))
    assert films.save(tmp_path / "new" / f"film{suffix}", [np.zeros((8, 8, 3), np.uint8)]).stat().st_size


def test_few_pictures_of_a_long_film_are_held(tmp_path):
    held = []

    def pictures():
        for n in range(2_000):
            picture = np.full((8, 800, 3), n % 256, np.uint8)
            held.append(weakref.ref(picture))
            yield picture
        assert sum(picture() is not None for picture in held) < 10, "of full size"

    with Image.open(films.save(tmp_path / "long.gif", pictures())) as film:
        assert 150 <= film.n_frames <= 300
        assert film.size == (400, 4)
        film.seek(film.n_frames - 1)
    with pytest.raises(ValueError, match="at least one picture"):
        films.save(tmp_path / "none.gif", [])
    assert not (tmp_path / "none.gif").exists()


class Drawn(gym.Env):
    """Shows itself, if it is made for that."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def render(self):
        return np.zeros((8, 8, 3), np.uint8)


def test_an_environment_that_is_made_to_be_drawn_is_filmed(monkeypatch):
    """One whose pictures the agent sees, say."""
    monkeypatch.setitem(gym.registry, "Drawn-v0", EnvSpec("Drawn-v0", entry_point=Drawn))
    films.check("Drawn-v0", {"render_mode": "rgb_array"})


def test_an_environment_that_cannot_be_filmed_is_refused(tmp_path):
    agent = pgce.agents.Reinforce(runs_dir=str(tmp_path / "runs"), capture_video=True)
    with pytest.raises(ValueError, match="pgce/Copy-v0 cannot be shown by rgb_array"):
        agent.train("pgce/Copy-v0")
    assert not (tmp_path / "runs").exists()


def test_a_reward_that_is_never_found_is_told(tmp_path, capsys):
    agent = pgce.agents.Reinforce(runs_dir=str(tmp_path), eval_freq=2_000, eval_episodes=1)
    run = agent.train("MountainCar-v0", total_timesteps=4_096)
    assert "hint  all episodes so far returned -200" in capsys.readouterr().out
    agent.train("CartPole-v1", total_timesteps=4_096)
    assert "hint" not in capsys.readouterr().out
    clone = pgce.agents.BC(expert=str(run.path), runs_dir=str(tmp_path), eval_freq=4_000, eval_episodes=1)
    clone.train("MountainCar-v0", total_timesteps=5_000)
    assert "hint" not in capsys.readouterr().out, "what an expert earns weighs nothing"


WRAPPERS = {
    "reward": (gym.wrappers.TransformReward, {}),
    "obs": (gym.wrappers.TransformObservation, {"observation_space": gym.spaces.Box(-np.inf, np.inf, (4,))}),
}


@pytest.mark.parametrize(
    ("part", "size", "settings", "told"),
    [
        ("reward", 1e5, {}, True),
        ("reward", 1e-4, {}, True),
        ("reward", 1.0, {}, False),
        ("reward", 1e5, {"norm_reward": True}, False),
        ("obs", 1e3, {}, True),
        ("obs", 1e3, {"norm_obs": True}, False),
    ],
)
def test_sizes_from_which_hardly_anything_is_learned_are_told(part, size, settings, told, tmp_path, capsys):
    wrapper, more = WRAPPERS[part]
    sized = partial(wrapper, func=lambda value: np.float32(size * value), **more)
    gym.register("Sized-v0", entry_point=lambda: sized(gym.make("CartPole-v1")))
    try:
        agent = pgce.agents.A2C(runs_dir=str(tmp_path), eval_freq=500, eval_episodes=1, **settings)
        agent.train("Sized-v0", total_timesteps=1_024)
    finally:
        del gym.registry["Sized-v0"]
    said = capsys.readouterr().out
    assert (f"--norm-{part} makes" in said) == ("hint" in said) == told

"""Exported programs: equal to the policy, for any number of observations, in every kind of space."""

from __future__ import annotations

import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import pgce
from pgce.agents import PPO
from pgce.exporting import export

QUICK = {"quiet": True, "track": False, "device": "cpu", "eval_episodes": 1, "num_envs": 2, "num_steps": 8}
VECTOR = Box(-1, 1, (2, 2))
KINDS = {
    "discrete": (VECTOR, Discrete(3, start=-1), {"norm_obs": False}),
    "normalised": (VECTOR, Discrete(3), {"norm_obs": True}),
    "one-hot": (Tuple((Discrete(3), MultiBinary(2))), MultiBinary(3), {}),
    "multi-discrete": (VECTOR, MultiDiscrete([2, 3, 3]), {}),
    "box": (VECTOR, Box(-1, 1, (3,)), {"norm_obs": True}),
    "tanh": (
        VECTOR,
        Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)),
        {"continuous": "tanh"},
    ),
    "beta": (VECTOR, Box(-1, 1, (3,)), {"continuous": "beta"}),
    "nested": (VECTOR, Dict(a=Discrete(2), b=Tuple((Box(0, 1, (2,)), MultiDiscrete([2, 2])))), {}),
    "image": (Box(0, 255, (12, 12, 3), np.uint8), Discrete(3), {}),
    "numbers that begin elsewhere": (
        Dict(a=Discrete(4, start=5), b=MultiDiscrete([3, 4], start=[2, -1])),
        Discrete(3, start=-1),
        {},
    ),
    "memory": (VECTOR, Box(-1, 1, (3,)), {"memory": "gru", "norm_obs": True}),
    "masked memory": (
        Dict(observation=VECTOR, action_mask=MultiBinary(3)),
        Discrete(3),
        {"memory": "lstm", "shared_torso": True},
    ),
    "tokens": (Box(0, 6, (5,), np.int64), Discrete(3), {"network": "transformer"}),
    "masked": (Dict(observation=VECTOR, action_mask=MultiBinary(3)), Discrete(3), {"norm_obs": True}),
    "masked choices": (
        Dict(observation=VECTOR, action_mask=Tuple((MultiBinary(2), MultiBinary(3)))),
        MultiDiscrete([2, 3]),
        {},
    ),
}


class Any(gym.Env):
    def __init__(self, name):
        self.observation_space, self.action_space, _ = KINDS[name]

    def seen(self):
        """A random observation; its mask allows the first choice of each component, or more."""
        observation = self.observation_space.sample()
        if isinstance(observation, dict):
            masks = observation.get("action_mask", ())
            for mask in masks if isinstance(masks, tuple) else (masks,):
                mask[0] = 1
        return observation

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.seen(), {}

    def step(self, action):
        return self.seen(), float(self.np_random.normal()), bool(self.np_random.random() < 0.2), False, {}


@pytest.fixture
def trained(request, tmp_path):
    """An agent of the kind, its policy's head, and 7 encoded observations."""
    name = request.param
    gym.register("Any-v0", entry_point=Any, kwargs={"name": name})
    try:
        agent = PPO(env_id="Any-v0", runs_dir=str(tmp_path), **KINDS[name][2], **QUICK)
        run = agent.train(total_timesteps=64)
        loaded = pgce.load(run.path)
    finally:
        del gym.registry["Any-v0"]
    collector, env = loaded._collector, Any(name)
    env.observation_space.seed(1)
    rows = [env.seen() for _ in range(7)]
    return loaded, collector._actions.head, collector.encode(collector._stacked(rows))


@pytest.mark.parametrize("trained", KINDS, indirect=True)
def test_the_program_is_the_policy(trained, tmp_path):
    agent, head, seen = trained
    path = agent.export(tmp_path / "made for it" / "policy.pt2")
    program = torch.export.load(path).module()
    for rows in (seen, seen[:1], seen[:2]):
        with torch.no_grad():
            if size := agent._collector.state_size:
                memory = torch.arange(len(rows)) % 2 == 0, torch.randn(len(rows), size)
                expected, state = agent.model.policy.step(rows, *memory)
                logits, action, after = program(rows, *memory)
                torch.testing.assert_close(after, state, rtol=1e-6, atol=1e-6)
            else:
                expected = agent.model.policy(rows)
                logits, action = program(rows)
        torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(action, head.mode(expected), rtol=1e-6, atol=1e-6)


@pytest.fixture
def onnxruntime():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pytest.importorskip(package, reason=f'needs {package}: pip install "pgce[export]"')
    return found


@pytest.mark.parametrize("trained", ["normalised", "tanh", "nested", "image", "masked"], indirect=True)
def test_onnx_is_the_policy(onnxruntime, trained, tmp_path):
    agent, head, seen = trained
    path = agent.export(tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["observation"]
    assert [each.name for each in session.get_outputs()] == ["logits", "action"]
    for rows in (seen, seen[:1]):
        with torch.no_grad():
            expected = agent.model.policy(rows)
        logits, action = session.run(None, {"observation": rows.numpy()})
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(action, head.mode(expected), rtol=1e-5, atol=1e-6)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .pt2 or .onnx: it is .*policy.pt'"):
        export(torch.nn.Linear(2, 2), pgce.heads.Categorical(), torch.zeros(2, 2), tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


def test_without_onnx_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "pgce\[export\]"'):
        export(torch.nn.Linear(2, 2), pgce.heads.Categorical(), torch.zeros(2, 2), tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_our_own_warnings_are_heard(tmp_path):
    class Warns(torch.nn.Linear):
        def forward(self, x):
            warnings.warn_explicit("ours", UserWarning, "networks.py", 1, module="pgce.networks")
            return super().forward(x)

    with pytest.raises(Exception, match="ours"):
        export(Warns(2, 2), pgce.heads.Categorical(), torch.zeros(2, 2), tmp_path / "policy.pt2")

"""What the spaces allow and what they do not, of single steps and of batches of actions."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from pgce.envs.soundness import action_fault, step_fault


def test_parts_are_looked_at():
    space = spaces.Dict({"a": spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiBinary(2)])})
    good = {"a": (3, np.array([0, 1], np.int8))}
    assert step_fault(space, good, 1, np.bool_(False), np.array(True)) is None
    for bad, told in (
        ({"a": (4, good["a"][1])}, "observation's part 'a''s part 0 that is out of range: 4 is not in"),
        ({"a": (0, good["a"][1])}, "out of range: 0 is not in"),
        ({"a": (1.0, good["a"][1])}, "of float64: int64 is expected"),
        ({"a": (1, np.array([0, 2], np.int8))}, "out of range"),
        ({"a": (1, np.array([0], np.int8))}, r"of shape (1,): (2,) is expected"),
        ({"a": (1,)}, "a tuple of 2 is expected"),
        ({"b": good["a"]}, "a dict of a is expected"),
        (None, "a dict of a is expected"),
    ):
        assert told in str(step_fault(space, bad)), told
    image = spaces.Box(0, 255, (2,), np.uint8)
    assert step_fault(image, np.array([0, 255], np.uint8)) is None
    assert "of int64: uint8" in str(step_fault(image, np.array([0, 256])))
    assert "out of range" in str(step_fault(spaces.Box(0, 9, (1,), np.int32), np.array([2**40])))
    assert step_fault(spaces.Box(-1, 1, ()), 0.5) is None
    assert step_fault(spaces.Box(-1, 1, (1,)), np.array([1])) is None, "integers are good floats"
    half = spaces.Box(-1, 1, (2,), np.float16)
    assert step_fault(half, np.array([0.5, 65504], np.float16)) is None
    assert "not finite in float32: it has inf" in str(step_fault(half, np.array([0.5, np.inf], np.float16)))
    assert "one of Text" in str(step_fault(spaces.Text(3), 5))


def test_actions_of_every_space():
    box = spaces.Box(-1, 1, (2,))
    assert action_fault(box, np.ones((3, 2), np.float32), 3) is None
    assert action_fault(spaces.Box(-np.inf, np.inf, (1,)), np.full((1, 1), 1e30), 1) is None
    for bad in (np.nan, 1.1, -np.inf):
        assert "they are in Box" in str(action_fault(box, np.array([[0.0, bad]]), 1))
    flags = np.array([[True, False]])
    assert action_fault(spaces.Box(0, 1, (2,), np.bool_), flags, 1) is None
    assert "they are numbers" in str(action_fault(box, flags, 1))
    several = spaces.MultiDiscrete([2, 3])
    assert action_fault(several, np.array([[1, 2]]), 1) is None
    assert "they are in" in str(action_fault(several, np.array([[2, 0]]), 1))
    assert "they are in" in str(action_fault(spaces.MultiBinary(2), np.array([[2, 0]]), 1))
    nested = spaces.Dict({"a": spaces.Tuple([box, several])})
    assert action_fault(nested, {"a": (np.zeros((1, 2)), np.zeros((1, 2), int))}, 1) is None
    assert "they are in" in str(action_fault(nested, {"a": (np.zeros((1, 2)), np.full((1, 2), 9))}, 1))
    assert "the parts of" in str(action_fault(nested, {"b": 0}, 1))

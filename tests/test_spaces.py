"""Observations in, actions out."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from pgce.heads import Categorical, Gaussian
from pgce.spaces import actions, observations


def test_a_box_of_any_shape_and_type_is_flattened():
    size, encode = observations(Box(0, 255, (3, 2), np.uint8))
    array = encode(np.arange(12, dtype=np.uint8).reshape(2, 3, 2))
    assert size == 6
    assert array.dtype == np.float32
    assert array.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert observations(Box(-1, 1, (), np.float64)).encode(np.zeros(5)).shape == (5, 1)


def test_discrete_observations_become_one_hot_from_their_start():
    size, encode = observations(Discrete(3, start=-1))
    assert size == 3
    assert encode(np.array([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]


def test_discrete_actions_begin_at_their_start():
    head, size, decode = actions(Discrete(3, start=5))
    assert (head, size) == (Categorical(), 3)
    decoded = decode(torch.tensor([0, 2]))
    assert decoded.tolist() == [5, 7]
    assert decoded.dtype == np.int64


def test_box_actions_are_clipped_into_shape_and_type():
    space = Box(np.array([[-1.0], [0.0]]), np.array([[1.0], [np.inf]]), dtype=np.float64)
    head, size, decode = actions(space)
    assert (head, size) == (Gaussian("learned", event_dims=1), 2)
    decoded = decode(torch.tensor([[-3.0, 9.0], [0.5, -1.0]]))
    assert decoded.tolist() == [[[-1.0], [9.0]], [[0.5], [0.0]]]
    assert decoded.dtype == np.float64
    assert all(space.contains(action) for action in decoded)


@pytest.mark.parametrize(
    "space", [gym.spaces.MultiBinary(3), gym.spaces.Dict({"a": Discrete(2)}), gym.spaces.Text(5)]
)
def test_other_spaces_are_refused_by_name(space):
    with pytest.raises(ValueError, match=type(space).__name__):
        observations(space)
    with pytest.raises(ValueError, match=type(space).__name__):
        actions(space)


def test_integer_boxes_are_no_actions_yet():
    with pytest.raises(ValueError, match="floating Box"):
        actions(Box(0, 5, (2,), np.int64))

"""Observations in, actions out."""

from __future__ import annotations

import math
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Text,
    Tuple,
)
from gymnasium.vector import SyncVectorEnv
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from pgce.action_heads import Beta, Joint, MultiCategorical, SquashedGaussian
from pgce.heads import Bernoulli, Categorical, Gaussian
from pgce.networks import WithScale, mlp
from pgce.spaces import actions, apply_mask, observations

PIXELS = Box(0, 255, (6, 5, 3), np.uint8)
ACTIONS = {
    "discrete": Discrete(3, start=-1),
    "discrete, int32": Discrete(4, dtype=np.int32),
    "multi-discrete": MultiDiscrete([3, 2, 4], start=[0, 5, -2]),
    "multi-discrete, two axes": MultiDiscrete(np.array([[2, 3], [4, 5]]), dtype=np.int32),
    "bits": MultiBinary(3),
    "bits, two axes": MultiBinary((2, 3)),
    "box": Box(-1, 2, (3,)),
    "box, scalar": Box(0, 1, ()),
    "box, float16": Box(0, 1, (2, 2), np.float16),
    "box, bounds each": Box(np.array([0.0, -5.0]), np.array([1.0, 5.0]), dtype=np.float64),
    "integer box": Box(-2, 3, (2, 2), np.int64),
    "bytes": Box(0, 255, (3,), np.uint8),
    "flags": Box(0, 1, (2, 2), np.bool_),  # type: ignore[arg-type]
    "dict": Dict(a=Discrete(3, start=5), b=Box(-1, 1, (2,)), c=MultiBinary(2)),
    "tuple": Tuple((MultiDiscrete([2, 3]), Discrete(2))),
    "nested": Dict(
        move=Tuple((Discrete(3), Box(-1, 1, (2, 2)))),
        arm=Dict(grip=MultiBinary((1, 2)), turn=Box(0, 4, ()), mode=MultiDiscrete(np.array([[2], [3]]))),
    ),
}
UNBOUNDED = {
    "unbounded": Box(-np.inf, np.inf, (2,)),
    "half-bounded": Box(np.array([-np.inf, 0], np.float32), np.array([1, np.inf], np.float32)),
    "nested unbounded": Dict(a=Tuple((Box(-np.inf, 0, ()), Discrete(2)))),
}


class Tiny(gym.Env):
    """Checks that every action is in its space."""

    def __init__(self, action_space, observation_space=None):
        self.action_space = action_space
        self.observation_space = observation_space or Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 0.0, False, False, {}


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return np.array_equal(one, other)


@pytest.mark.filterwarnings("ignore:.*Casting input x to numpy array")  # gymnasium of its own scalar Box
@pytest.mark.parametrize(
    ("name", "continuous"),
    [*product(ACTIONS, ("gaussian", "tanh", "beta")), *product(UNBOUNDED, ("gaussian",))],
)
def test_environments_take_what_heads_draw(name, continuous):
    space = {**ACTIONS, **UNBOUNDED}[name]
    action = actions(space, continuous)
    envs = SyncVectorEnv([lambda: Tiny(space)] * 4)
    observation, _ = envs.reset(seed=0)
    policy = action.wrap(mlp(2, action.size))
    logits = policy(torch.from_numpy(observation))
    assert logits.shape == (4, *action.logits_shape)
    assert math.prod(action.logits_shape) == len(action.constant) == action.size + sum(action.constant)
    assert action.head.examples(logits) == (4,)
    for drawn in (action.head.sample(logits), action.head.mode(logits), action.head.sample(8 * logits)):
        decoded = action.decode(drawn)
        assert batch_space(space, 4).contains(decoded) or isinstance(space, Discrete)
        envs.step(decoded)
        cross_entropy = action.head.cross_entropy(logits, drawn)
        assert cross_entropy.isfinite().all()
        action.head.check(logits, drawn)
    gradients = torch.autograd.grad(
        action.head.entropy(logits).sum(), list(policy.parameters()), allow_unused=True
    )
    assert any(each is not None and each.any() for each in gradients)


def test_actions_of_one_part_and_their_heads():
    expected = {
        "discrete": (Categorical(), 3, (3,)),
        "multi-discrete": (MultiCategorical((3, 2, 4)), 9, (9,)),
        "multi-discrete, two axes": (MultiCategorical((2, 3, 4, 5)), 14, (14,)),
        "bits, two axes": (Bernoulli(event_dims=1), 6, (6,)),
        "box": (Gaussian("learned", event_dims=1), 3, (3, 2)),
        "box, scalar": (Gaussian("learned", event_dims=1), 1, (1, 2)),
        "integer box": (MultiCategorical((6,) * 4), 24, (24,)),
    }
    for name, (head, size, shape) in expected.items():
        action = actions(ACTIONS[name])
        assert (action.head, action.size, action.logits_shape) == (head, size, shape)
    assert actions(ACTIONS["box"], "tanh").head == SquashedGaussian(-1.0, 2.0)
    assert actions(ACTIONS["box, bounds each"], "beta").head == Beta((0.0, -5.0), (1.0, 5.0))
    assert actions(ACTIONS["box"], "tanh").size == 3
    assert actions(ACTIONS["box"], "beta").size == 6


def test_discrete_actions_begin_at_their_start():
    decode = actions(Discrete(3, start=5)).decode
    decoded = decode(torch.tensor([0, 2]))
    assert decoded.tolist() == [5, 7]
    assert decoded.dtype == np.int64
    rows = actions(MultiDiscrete([[2], [3]], start=[[7], [-1]], dtype=np.int32)).decode(
        torch.tensor([[1, 2]])
    )
    assert rows.tolist() == [[[8], [1]]]
    assert rows.dtype == np.int32


def test_box_actions_are_clipped_into_shape_and_type():
    space = Box(np.array([[-1.0], [0.0]]), np.array([[1.0], [np.inf]]), dtype=np.float64)
    decoded = actions(space).decode(torch.tensor([[-3.0, 9.0], [0.5, -1.0]]))
    assert decoded.tolist() == [[[-1.0], [9.0]], [[0.5], [0.0]]]
    assert decoded.dtype == np.float64
    assert all(space.contains(action) for action in decoded)
    assert actions(space).decode(torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)).shape == (
        1,
        2,
        1,
    )


def test_dict_actions_are_put_together_in_the_space_s_order():
    space = Dict(b=Discrete(3, start=5), a=Tuple((Box(-1, 1, (2,)), MultiBinary(2))))
    action = actions(space)
    assert isinstance(action.head, Joint)
    first = next(iter(space.spaces))
    flat = [9.0, 0.5, 1.0, 0.0, 2.0] if first == "a" else [2.0, 9.0, 0.5, 1.0, 0.0]
    decoded = action.decode(torch.tensor([flat]))
    expected = {"a": (np.array([[1.0, 0.5]]), np.array([[1, 0]])), "b": np.array([7])}
    assert equal(decoded, expected)
    assert list(decoded) == list(space.spaces)
    assert decoded["b"].dtype == np.int64
    assert decoded["a"][1].dtype == np.int8


def test_a_policy_learns_one_scale_for_every_observation():
    single = actions(Box(-1, 1, (2,))).wrap(mlp(3, 2))
    assert isinstance(single, WithScale)
    network = mlp(3, 3)
    assert actions(Discrete(3)).wrap(network) is network
    action = actions(Tuple((Box(-1, 1, (2,)), Discrete(3), Box(-1, 1, ()))))
    network = mlp(5, action.size)
    policy = action.wrap(network, initial_log_scale=-0.5)
    assert policy.log_scale.tolist() == [-0.5] * 3
    policy.log_scale.data = torch.tensor([0.1, 0.2, 0.3])
    x = torch.randn(4, 5)
    output, logits = network(x), policy(x)
    wide = torch.tensor([0.1, 0.2, 0.3]).expand(4, 3)
    expected = torch.stack(
        (
            *(output[:, 0], wide[:, 0], output[:, 1], wide[:, 1]),
            *(output[:, 2], output[:, 3], output[:, 4]),
            *(output[:, 5], wide[:, 2]),
        ),
        -1,
    )
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(policy(x.view(2, 2, 5)), expected.view(2, 2, -1))  # sequences
    assert "order" not in policy.state_dict()


@pytest.mark.parametrize("continuous", ["tanh", "beta"])
def test_bounded_heads_refuse_boxes_without_bounds(continuous):
    for space in UNBOUNDED.values():
        with pytest.raises(ValueError, match=rf"{continuous} actions need bounds: .* in Box\("):
            actions(space, continuous)
    with pytest.raises(ValueError, match="low is 1, high is 1"):
        actions(Box(1, 1, (2,)), continuous)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Text(5), r"this one is Text\("),
        (Sequence(Discrete(2)), r"this one is Sequence\("),
        (Graph(Discrete(2), None), r"this one is Graph\("),
        (OneOf((Discrete(2), Discrete(3))), r"this one is OneOf\("),
        (Dict(a=Discrete(2), b=Tuple((Text(5),))), r"this one is Text\("),
    ],
)
def test_other_spaces_are_refused_by_name(space, message):
    with pytest.raises(ValueError, match=message):
        observations(space)
    with pytest.raises(ValueError, match=message):
        actions(space)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: actions(Box(0, 300, (2,), np.int64)), "at most 256 values.* one has 301 in Box"),
        (lambda: actions(Box(-np.inf, np.inf, (2,), np.int64)), "at most 256 values"),
        (lambda: actions(Box(0, 1, (2, 0))), "none, Box"),
        (lambda: actions(Dict()), "none, Dict"),
        (lambda: actions(Discrete(2), "normal"), "normal"),  # type: ignore[arg-type]
        (lambda: observations(Tuple(())), "none in Tuple"),
        (
            lambda: observations(Tuple((PIXELS, Box(0, 255, (4, 4, 3), np.uint8)))),
            r"they are \(3, 6, 5\) and \(3, 4, 4\)",
        ),
        (
            lambda: observations(Dict(observation=PIXELS, action_mask=Discrete(3))),
            r"mask is a Box .* this one is Discrete\(3\)",
        ),
        (
            lambda: observations(Discrete(3)).encode(np.array([0, 3])),
            r"of \[3\] values from \[0\]: it is \[3\]",
        ),
        (
            lambda: observations(MultiDiscrete([2, 3], start=[1, 1])).encode(np.array([[1, 1], [1, 0]])),
            r"of \[2, 3\] values from \[1, 1\]: it is \[1, 0\]",
        ),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_box_of_any_shape_and_type_is_flattened():
    size, encode, image, mask = observations(Box(0, 255, (3, 2), np.uint8))
    array = encode(np.arange(12, dtype=np.uint8).reshape(2, 3, 2))
    assert (size, image, mask(array)) == (6, None, None)
    assert array.dtype == np.float32
    assert array.tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert observations(Box(-1, 1, (), np.float64)).encode(np.zeros(5)).shape == (5, 1)
    assert observations(Box(0, 1, (2, 2, 2))).encode(np.zeros((5, 2, 2, 2), np.float32)).shape == (5, 8)
    with_nothing = observations(Dict(forces=Box(-1, 1, (0,)), speed=Box(-1, 1, (2,))))
    assert (
        with_nothing.encode({"forces": np.zeros((5, 0)), "speed": np.ones((5, 2))}).tolist() == [[1, 1]] * 5
    )


def test_discrete_observations_become_one_hot_from_their_start():
    seen = observations(Discrete(3, start=-1))
    assert seen.size == 3
    assert seen.encode(np.array([-1, 1])).tolist() == [[1, 0, 0], [0, 0, 1]]
    seen = observations(MultiDiscrete([[2], [3]], start=[[0], [4]]))
    assert seen.size == 5
    assert seen.encode(np.array([[[1], [4]], [[0], [6]]])).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]
    assert observations(Discrete(1_000_000)).encode(np.array([999_999]))[0, -1] == 1


@pytest.mark.parametrize("shape", [(6, 5, 3), (3, 6, 5), (3, 3, 3)])
def test_images_get_their_channels_first_and_lie_in_0_1(shape):
    seen = observations(Box(0, 200, shape, np.uint8))
    batch = np.random.default_rng(0).integers(0, 201, (4, *shape), np.uint8)
    given, encoded = batch.copy(), seen.encode(batch)
    image = encoded.reshape(4, *seen.image)
    assert (seen.size, seen.vector) == (math.prod(seen.image), 0)
    assert image.dtype == np.float32
    assert encoded.flags.c_contiguous
    expected = batch if shape == (3, 6, 5) else np.moveaxis(batch, -1, 1)
    np.testing.assert_allclose(image, expected / 200, rtol=1e-6)
    assert image.max() <= 1
    assert np.array_equal(batch, given)


def test_everything_beside_images_is_one_vector_in_the_space_s_order():
    space = Dict(
        eye=PIXELS,
        other=Box(0, 255, (1, 6, 5), np.uint8),
        place=Tuple((Discrete(2), MultiBinary((2, 1)))),
        speed=Box(-1, 1, (2,)),
    )
    seen = observations(space)
    assert (seen.size, seen.vector, seen.image) == (6 + 120, 6, (4, 6, 5))
    batch = batch_space(space, 3).sample()
    encoded = seen.encode(batch)
    one_hot = np.eye(2)[batch["place"][0]]
    expected = np.concatenate((one_hot, batch["place"][1][..., 0], batch["speed"]), 1)
    np.testing.assert_allclose(encoded[:, :6], expected)
    assert encoded.dtype == np.float32
    image = encoded[:, 6:].reshape(3, 4, 6, 5)
    np.testing.assert_allclose(image[:, 3], batch["other"][:, 0] / 255, rtol=1e-6)


LEAVES = st.sampled_from(
    [
        Box(-1, 1, (2, 3)),
        Box(-np.inf, np.inf, ()),
        Box(0, 9, (2,), np.int32),
        Discrete(3, start=-1),
        MultiDiscrete([2, 3], start=[1, 0]),
        MultiBinary((2, 2)),
        PIXELS,
    ]
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(Tuple),
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(Dict),
    ),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(SPACES)
def test_vector_environments_observations_are_encoded(space):
    seen = observations(space)
    envs = SyncVectorEnv([lambda: Tiny(Discrete(2), space)] * 3)
    for batch in (envs.reset(seed=0)[0], envs.step(np.zeros(3, np.int64))[0]):
        encoded = seen.encode(batch)
        assert encoded.shape == (3, seen.size)
        assert encoded.dtype == np.float32
        assert seen.vector == seen.size - (math.prod(seen.image) if seen.image else 0)


MASKS = {
    "box": (Box(0, 1, (3,), np.int8), np.array([[1, 0, 1], [0, 1, 0]], np.int8)),
    "bits": (MultiBinary(3), np.array([[1, 0, 1], [0, 1, 0]], np.int8)),
    "tuple": (
        Tuple((MultiBinary(1), Box(0, 1, (2,), np.int8))),
        (np.array([[1], [0]], np.int8), np.array([[0, 1], [1, 0]], np.int8)),
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_no_observation(kind):
    space, array = MASKS[kind]
    seen = observations(Dict(observation=Box(-1, 1, (2,)), action_mask=space))
    batch = {"observation": np.ones((2, 2), np.float32), "action_mask": array}
    assert seen.size == 2
    assert seen.encode(batch).tolist() == [[1, 1], [1, 1]]
    mask = seen.mask(batch)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [[True, False, True], [False, True, False]]
    alone = observations(Dict(action_mask=Box(0, 1, (3,)), more=Discrete(2)))
    assert (alone.size, alone.mask({})) == (5, None)


def rows(head, action):
    """Actions as booleans in the shape of the logits."""
    if isinstance(head, Bernoulli):
        return action.bool()
    sizes = head.sizes if isinstance(head, MultiCategorical) else (4,)
    ids = action.reshape(len(action), -1).unbind(-1)
    return torch.cat([torch.nn.functional.one_hot(y, k) for y, k in zip(ids, sizes, strict=True)], -1).bool()


@pytest.mark.parametrize(
    ("head", "space"),
    [
        (Categorical(), Discrete(4)),
        (MultiCategorical((2, 3, 2)), MultiDiscrete([2, 3, 2])),
        (Bernoulli(event_dims=1), MultiBinary(4)),
    ],
)
def test_forbidden_actions_are_never_drawn(head, space):
    n, width = 2000, actions(space).size
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(n, width, generator=generator)).requires_grad_()
    mask = torch.rand(n, width, generator=generator) < 0.3
    mask |= rows(head, head.sample(logits, generator))  # at least one of each
    masked = apply_mask(logits, mask, head)
    drawn = head.sample(masked, generator)
    for action in (drawn, head.mode(masked)):
        assert not (rows(head, action) & ~mask).any()
    loss = (head.cross_entropy(masked, drawn) - head.entropy(masked)).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()
    assert gradient[mask].any()
    assert head.entropy_target(masked).isfinite().all()


@pytest.mark.parametrize(
    ("mask", "head", "message"),
    [
        (torch.ones(2, 3), Categorical(), "dtype torch.float32"),
        (torch.ones(2, 2).bool(), Categorical(), r"shape \(2, 2\)"),
        (torch.tensor([[True] * 3, [False] * 3]), Categorical(), r"forbids all in row \(1,\)"),
        (
            torch.tensor([[True, True, False], [True] * 3]),
            MultiCategorical((2, 1)),
            r"forbids all of component 1 in row \(0,\)",
        ),
        (torch.ones(2, 3).bool(), MultiCategorical((2, 2)), "the 4 classes"),
        (torch.ones(2, 3).bool(), Gaussian(), "this one is Gaussian"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, head, message):
    with pytest.raises(ValueError, match=message):
        apply_mask(torch.zeros(2, 3), mask, head)

"""Shapes, initialisation and units."""

from __future__ import annotations

import math

import pytest
import torch

from pgce.networks import ActorCritic, Value, WithScale, mlp


def test_mlp_has_the_layers_asked_for():
    layers = mlp(4, 2, hidden=(8, 16), activation="silu")
    assert [type(layer).__name__ for layer in layers] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert [tuple(p.shape) for p in layers.parameters()] == [(8, 4), (8,), (16, 8), (16,), (2, 16), (2,)]
    assert len(mlp(4, 2, hidden=())) == 1


def test_orthogonal_initialisation():
    layers = mlp(32, 8, hidden=(32,), output_gain=0.01)
    for layer, gain in ((layers[0], math.sqrt(2)), (layers[2], 0.01)):
        rows = layer.weight @ layer.weight.T
        torch.testing.assert_close(rows, gain**2 * torch.eye(len(rows)), rtol=1e-4, atol=1e-6)
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"activation": "gelu"}, "it is 'gelu'"), ({"hidden": (8, 0)}, r"\[4, 8, 0, 2\]")],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        mlp(4, 2, **options)


def test_scale_is_learned_and_the_same_for_every_input():
    model = WithScale(mlp(3, 2), components=2, initial_log_scale=-1.0)
    logits = model(torch.randn(5, 3))
    assert logits.shape == (5, 2, 2)
    assert (logits[..., 1] == -1).all()
    logits.sum().backward()
    assert model.log_scale.grad.tolist() == [5.0, 5.0]


def test_value_is_counted_in_its_unit():
    network = mlp(3, 1)
    x = torch.randn(5, 3)
    assert torch.equal(Value(network, unit=7.0)(x), 7 * network(x)[:, 0])
    assert set(ActorCritic(mlp(3, 2))(x)) == {"policy"}

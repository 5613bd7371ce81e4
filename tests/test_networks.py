"""Shapes, initialisation and units."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import prune

import pgce
from pgce.networks import (
    ActorCritic,
    Recurrent,
    Torso,
    Transformer,
    Value,
    WithScale,
    cnn,
    impala,
    linear,
    mlp,
    nature,
)


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


@pytest.mark.parametrize("body", [nature, impala])
def test_networks_of_images_end_in_an_orthogonal_layer(body):
    for orthogonal in (True, False):
        last = body((3, 20, 20), orthogonal=orthogonal)[0][-2]
        least = min(last.weight.shape)
        values = torch.linalg.svdvals(last.weight)
        assert torch.allclose(values, torch.full((least,), math.sqrt(2)), rtol=1e-4) == orthogonal
        assert bool(last.bias.any()) != orthogonal


@pytest.mark.parametrize(
    ("options", "message"),
    [({"activation": "gelu"}, "it is 'gelu'"), ({"hidden": (8, 0)}, r"the widths are \[4, 8, 0\]")],
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


def test_a_transformer_reads_at_the_first_blank():
    """What the last layer computes there is what it computes of all; after the end of a full sequence."""
    torch.manual_seed(0)
    model = Transformer(tokens=5, length=6, width=16, layers=2, heads=2)
    x = torch.tensor([[0, 1, 4, 4, 4, 4], [3, 2, 1, 0, 3, 2], [4, 1, 4, 0, 4, 4]])
    whole = model.tokens(torch.cat([x, torch.full((3, 1), 4)], 1)) + model.places
    for layer in model.layers:
        whole = layer(whole)
    first = torch.tensor([2, 6, 0])
    torch.testing.assert_close(model(x.float()), model.norm(whole[torch.arange(3), first]))


@pytest.mark.parametrize("size", [{"layers": 0}, {"width": 30}, {"width": 0}])
def test_a_transformer_refuses(size):
    with pytest.raises(ValueError, match="its 4 heads divide: there are"):
        Transformer(tokens=3, length=2, **size)


def test_a_transformer_learns_where_no_token_is_blank():
    """Which of two places holds the larger token; the highest one is a token like any other."""
    x = torch.cartesian_prod(torch.arange(6), torch.arange(6)).float()
    torch.manual_seed(0)
    model = torch.nn.Sequential(Transformer(tokens=6, length=2, width=16, layers=1), linear(16, 2))
    learn = x, (x[:, 0] > x[:, 1]).long()
    pgce.fit(model, learn, epochs=100, batch_size=36, learning_rate=1e-2, device="cpu")
    assert pgce.evaluate(model, learn)["accuracy"] == 1


def test_a_transformer_learns_to_read_a_sequence_backwards():
    """The next token of the prompt reversed, from what is written so far."""
    g = torch.Generator().manual_seed(0)
    prompt, at = torch.randint(4, (4096, 4), generator=g), torch.randint(4, (4096,), generator=g)
    answer = prompt.flip(1)
    written = answer.masked_fill(torch.arange(4) >= at[:, None], 4)  # 4 is blank
    inputs, target = torch.cat([prompt, written], 1).float(), answer[torch.arange(4096), at]
    torch.manual_seed(0)
    model = torch.nn.Sequential(Transformer(tokens=5, length=8, width=32, layers=1), linear(32, 4, 0.01))
    learn, held_out = (inputs[:3500], target[:3500]), (inputs[3500:], target[3500:])
    pgce.fit(model, learn, epochs=5, batch_size=64, learning_rate=2e-3, device="cpu")
    assert pgce.evaluate(model, held_out)["accuracy"] > 0.95


@pytest.mark.parametrize(("kind", "theirs"), [("gru", torch.nn.GRU), ("lstm", torch.nn.LSTM)])
def test_a_memory_is_torch_s_own_within_every_episode(kind, theirs):
    """Episodes begin anywhere in a sequence; each is the same as if it had been seen alone."""
    torch.manual_seed(0)
    memory = Recurrent(mlp(3, 4), width=4, size=5, kind=kind).double()
    layer = theirs(4, 5, batch_first=True).double()
    layer.load_state_dict({f"{name}_l0": value for name, value in memory.cell.state_dict().items()})
    x, first = torch.randn(2, 9, 3).double(), torch.zeros(2, 9, dtype=torch.bool)
    first[0, [4, 5]] = first[1, 0] = True
    before = torch.randn(2, memory.state_size).double()
    output, state = memory(x, first, before)
    start = before[:1].chunk(2, -1) if kind == "lstm" else (before[:1],)
    start = tuple(part[None] for part in start)
    for n, rows, given in (
        (0, slice(0, 4), start),
        (0, [4], None),
        (0, slice(5, 9), None),
        (1, slice(0, 9), None),
    ):
        given = given if given is None or kind == "lstm" else given[0]
        expected, last = layer(memory.encoder(x[n : n + 1, rows]), given)
        torch.testing.assert_close(output[n : n + 1, rows], expected, rtol=0, atol=1e-12)
        end = 8 if isinstance(rows, slice) and rows.stop == 9 else 3
        if isinstance(rows, slice):
            whole = torch.cat(last, -1)[0] if kind == "lstm" else last[0]
            torch.testing.assert_close(state[n, end][None], whole, rtol=0, atol=1e-12)
    output.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in memory.parameters())


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_hooks_on_a_memory_s_cell_are_called(kind):
    """By which torch's tools make its weights anew, such as pruned ones."""
    memory, seen = Recurrent(mlp(3, 4), 4, 5, kind), []
    memory.cell.register_forward_hook(lambda *_: seen.append("forward"))
    memory.cell.register_full_backward_hook(lambda *_: seen.append("backward"))
    prune.l1_unstructured(memory.cell, "weight_hh", 0.5)
    given = torch.randn(2, 6, 3), torch.zeros(2, 6, dtype=torch.bool), torch.zeros(2, memory.state_size)
    for _ in range(2):
        memory(*given)[0].sum().backward()
    assert seen == ["forward", "backward"] * 2
    assert memory.cell.weight_hh_orig.grad.abs().sum() > 0


def test_a_torso_steps_as_it_reads_sequences_and_passes_the_mask_on():
    torch.manual_seed(0)
    torso = Torso([Recurrent(mlp(3, 4), 4, 5, "gru"), Recurrent(mlp(3, 4), 4, 6, "lstm")], features=3)
    assert torso.state_size == 5 + 12
    x, first = torch.randn(2, 7, 3 + 2), torch.rand(2, 7) < 0.3
    state = torch.randn(2, 7, 17)
    whole = torso({"observation": x, "first": first, "state": state})
    assert whole.shape == (2, 7, 5 + 6 + 2)
    assert torch.equal(whole[..., -2:], x[..., -2:])
    now = state[:, 0]
    for t in range(7):
        output, now = torso.step(x[:, t], first[:, t], now)
        torch.testing.assert_close(output, whole[:, t])


def test_networks_of_images():
    assert cnn((3, 84, 84), 5)(torch.zeros(2, 3, 84, 84)).shape == (2, 5)
    for body, expected in (
        (nature, [(32, 8), (64, 4), (64, 3)]),
        (impala, [(16, 3)] * 5 + [(32, 3)] * 10),
    ):
        network, width = body((2, 64, 64))
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
        assert [(m.out_channels, *{*m.kernel_size}) for m in convolutions] == expected
        pools = [m for m in network if isinstance(m, torch.nn.MaxPool2d)]
        assert {(m.kernel_size, m.stride, m.padding) for m in pools} <= {(3, 2, 1)}
        assert network(torch.zeros(3, 2, 64, 64)).shape == (3, width)
        with pytest.raises(ValueError, match=r"the image is \(1, 5, 9\)"):
            body((1, 5, 9))


@pytest.mark.parametrize(
    ("side", "strides"),
    [(7, "111"), (13, "111"), (14, "211"), (23, "211"), (24, "221"), (35, "221"), (36, "421"), (84, "421")],
)
def test_networks_of_small_images_are_no_larger_than_of_large_ones(side, strides):
    body, _ = nature((3, side, side))
    assert "".join(str(m.stride[0]) for m in body if isinstance(m, torch.nn.Conv2d)) == strides
    assert sum(p.numel() for p in body.parameters()) <= sum(
        p.numel() for p in nature((3, 84, 84))[0].parameters()
    )
    assert body(torch.zeros(2, 3, side, side)).shape == (2, 512)

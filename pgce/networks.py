"""Networks: from an input to logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgce import memories, processes
from pgce.choices import Activation, Memory, check_type, check_types
from pgce.perceptrons import Perceptron

__all__ = [
    "ActorCritic",
    "Columns",
    "Convolutional",
    "Headed",
    "Normalize",
    "Recurrent",
    "RewardScale",
    "Scaled",
    "Torso",
    "Transformer",
    "Value",
    "WithScale",
    "cnn",
    "hidden_layers",
    "impala",
    "linear",
    "mlp",
    "nature",
]


SMALLEST = 7
"""Pixels in height and in width that convolutions need."""
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def mlp(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    output_gain: float | None = None,
) -> Perceptron:
    """A multi-layer perceptron, (B, inputs) -> (B, outputs).

    Args:
        inputs: D, features of an input.
        outputs: width of the last layer, which has no activation.
        hidden: widths of the hidden layers; () gives a linear model.
        activation: after each hidden layer: "relu", "silu" or "tanh".
        output_gain: orthogonal initialisation with zero biases, gain √2 on hidden layers and this on the
            last; None keeps torch's own initialisation.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    Example:
        >>> import torch
        >>> from pgce.networks import mlp
        >>> mlp(4, 2, hidden=(64, 64))(torch.zeros(8, 4)).shape
        torch.Size([8, 2])

    References:
        Saxe et al. (2014), Exact solutions to the nonlinear dynamics of learning in deep linear networks, for
        orthogonal initialisation.
    """
    layers = hidden_layers(inputs, hidden, activation, orthogonal=output_gain is not None)
    return Perceptron(*layers, linear([inputs, *hidden][-1], outputs, output_gain))


def hidden_layers(
    inputs: int, hidden: Sequence[int] = (64, 64), activation: Activation = "tanh", *, orthogonal: bool = True
) -> Perceptron:
    """All of `mlp` but its last layer: (B, inputs) -> (B, hidden[-1]).

    Args:
        inputs: D, features of an input.
        hidden: widths of the layers; () gives the input itself.
        activation: after each layer: "relu", "silu" or "tanh".
        orthogonal: orthogonal initialisation with gain √2 and zero biases; else torch's own.

    Raises:
        ValueError: a width below 1, or an unknown activation.

    Example:
        >>> import torch
        >>> from pgce.networks import hidden_layers
        >>> hidden_layers(4, (64, 32))(torch.zeros(8, 4)).shape
        torch.Size([8, 32])
    """
    check_types(locals(), hidden_layers)
    widths, gain = [inputs, *hidden], math.sqrt(2) if orthogonal else None
    if min(widths) < 1:
        raise ValueError(f"every layer has at least one unit: the widths are {widths}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [linear(fan_in, fan_out, gain), _ACTIVATIONS[activation]()]
    return Perceptron(*layers)


def linear(inputs: int, outputs: int, gain: float | None = None) -> nn.Linear:
    """A linear layer, (B, inputs) -> (B, outputs).

    Args:
        inputs: features of an input.
        outputs: likewise of an output.
        gain: of an orthogonal initialisation with zero biases; None keeps torch's own.

    Example:
        >>> from pgce.networks import linear
        >>> linear(4, 2, gain=1.0).bias.tolist()
        [0.0, 0.0]
    """
    return _initialised(nn.Linear(inputs, outputs), gain)


T = TypeVar("T", nn.Linear, nn.Conv2d)


def _initialised(layer: T, gain: float | None) -> T:
    """The layer, with orthogonal weights and zero biases if a gain is given."""
    if gain is not None:
        nn.init.orthogonal_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layer


class WithScale(nn.Module):
    """The mean from a network and a learned log σ beside it, the same for every input: logits (B, D, 2).

    Args:
        mean: network (B, ...) -> (B, D).
        components: D.
        initial_log_scale: log σ at the start.
        learned: whether it is a parameter; if not, σ stays what it is.

    Example:
        >>> import torch
        >>> from pgce.networks import WithScale, mlp
        >>> WithScale(mlp(3, 2), components=2)(torch.zeros(8, 3)).shape
        torch.Size([8, 2, 2])
    """

    log_scale: Tensor

    def __init__(
        self, mean: nn.Module, components: int, initial_log_scale: float = 0.0, *, learned: bool = True
    ) -> None:
        super().__init__()
        self.mean = mean
        log_scale = torch.full((components,), initial_log_scale)
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Mean and log σ on the last axis, (B, D, 2)."""
        mean = self.mean(x)
        # One after the other in memory, which is sooner written and read than two by two.
        return torch.stack((mean, self.log_scale.expand_as(mean))).movedim(0, -1)


class Value(nn.Module):
    """A number from a network with one output, in a unit of its own: (B, ...) -> (B,).

    Adam moves every weight by about the learning rate a step: a value of 100 is out of reach of a few hundred
    steps unless the output is counted in a unit of that order.

    Args:
        network: (B, ...) -> (B, 1).
        unit: what an output of 1 stands for, in units of reward.

    Example:
        >>> import torch
        >>> from pgce.networks import Value, mlp
        >>> Value(mlp(4, 1), unit=7.0)(torch.zeros(8, 4)).shape
        torch.Size([8])
    """

    def __init__(self, network: nn.Module, unit: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """The value, (B,)."""
        value: Tensor = self.network(x).squeeze(-1)
        return value if self.unit == 1 else self.unit * value


class Scaled(nn.Module):
    """Real-valued outputs in a unit of their own: (B, ...) -> shift + unit · output, (B, ...).

    Args:
        network: (B, ...) -> (B, D), or of more axes.
        shift: what an output of 0 stands for, (D,).
        unit: what a difference of 1 stands for, (D,).

    Example:
        >>> import torch
        >>> from pgce.networks import Scaled
        >>> Scaled(torch.nn.Identity(), torch.tensor([100.0]), torch.tensor([5.0]))(torch.ones(1, 1))
        tensor([[105.]])
    """

    shift: Tensor
    unit: Tensor

    def __init__(self, network: nn.Module, shift: Tensor, unit: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)
        self.register_buffer("unit", unit)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs in the target's unit, (B, ...)."""
        return torch.addcmul(self.shift, self.unit, self.network(x))


_ROUNDING = 1e-6  # of a number, so much is no difference


class Normalize(nn.Module):
    """Observations with mean 0 and standard deviation 1, by statistics that are saved with the policy.

    Args:
        size: D, features of an observation.
        limit: results are clipped to ±limit.

    Example:
        >>> import torch
        >>> from pgce.networks import Normalize
        >>> normalize = Normalize(1)
        >>> normalize.update(torch.tensor([[1.0], [3.0]]))
        >>> normalize(torch.tensor([[1.0], [3.0]]))
        tensor([[-1.],
                [ 1.]])

    References:
        Chan, Golub and LeVeque (1983), Algorithms for computing the sample variance, for the update.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor

    def __init__(self, size: int, limit: float = 10.0) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, x: Tensor) -> None:
        """Take observations (B, D) into the statistics."""
        number, variance, mean = processes.var_mean(x.double())
        if number == 0:
            return
        total = self.count + number
        share = number / total
        change = mean - self.mean
        spread = (1 - share) * self.variance + share * variance + share * (1 - share) * change.square()
        self.mean += (share * change).to(self.mean.dtype)
        spread = torch.maximum(spread, (_ROUNDING * self.mean.double()).square())
        self.variance.copy_(spread.clamp(max=torch.finfo(self.variance.dtype).max))
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """(x − mean)/std, clipped, in the shape of x (B, D)."""
        return self.scaled(x - self.mean)

    def scaled(self, difference: Tensor) -> Tensor:
        """difference/std, clipped, (B, D); 0 stays 0 also where nothing ever differed."""
        spare = (1e-3 * self.variance).clamp(torch.finfo(self.variance.dtype).tiny, 1e-8)
        return (difference * torch.rsqrt(self.variance + spare)).clamp(-self.limit, self.limit)


class RewardScale(nn.Module):
    """Rewards in units of the standard deviation of their discounted sum, which is saved with the policy.

    Args:
        num_envs: N.
        gamma: discount γ of the sum.
        limit: results are clipped to ±limit.

    Example:
        >>> import torch
        >>> from pgce.networks import RewardScale
        >>> scale, no = RewardScale(1, gamma=0.0), torch.zeros(4, 1, dtype=torch.bool)
        >>> scale(torch.tensor([[2.0], [6.0], [2.0], [6.0]]), no, ~no).T
        tensor([[1., 3., 1., 3.]])

    References:
        Engstrom et al. (2020), Implementation matters in deep RL, on what it does for PPO.
    """

    running: Tensor

    def __init__(self, num_envs: int, gamma: float, limit: float = 10.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.statistics = Normalize(1, limit)
        self.register_buffer("running", torch.zeros(num_envs), persistent=False)

    def forward(self, reward: Tensor, done: Tensor, valid: Tensor) -> Tensor:
        """The rewards (T, N), scaled by all that was seen until now; `done` (T, N) ends a sum.

        Those that are not `valid` (T, N), of steps that only reset, are in no sum.
        """
        sums = torch.empty_like(reward)
        running = self.running
        for t in range(len(reward)):
            running = sums[t] = self.gamma * running + reward[t].where(valid[t], 0)
            running = running * ~done[t]
        self.running.copy_(running)
        self.statistics.update(sums[valid].unsqueeze(1))
        return self.statistics.scaled(reward)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode and no gradient is taken; then each module is as it was."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class Columns(nn.Module):
    """Some of the features of an input: (..., D) -> (..., stop − start).

    Args:
        start: the first of them.
        stop: the first after them.

    Example:
        >>> import torch
        >>> from pgce.networks import Columns
        >>> Columns(0, 2)(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 2.]])
    """

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, x: Tensor) -> Tensor:
        """The columns from `start` to before `stop`."""
        return x[..., self.start : self.stop]


class Transformer(nn.Module):
    """A transformer of tokens: (B, L) -> (B, width), read at the first blank, where the next token goes.

    The highest id is blank, and one more blank follows the last place: a sequence that is full, or of a space
    without blanks, is read there. What is written next depends on where, which the place itself so tells; and
    the last layer is computed at that one place only.

    Args:
        tokens: how many different ones there are, ids 0..tokens − 1.
        length: L.
        width: of a token's vector.
        layers: of attention and perceptron.
        heads: of the attention.

    Raises:
        ValueError: no layer, or a width that the heads do not divide.

    Example:
        >>> import torch
        >>> from pgce.networks import Transformer
        >>> Transformer(tokens=11, length=16, width=64)(torch.zeros(5, 16)).shape
        torch.Size([5, 64])

    References:
        Vaswani et al. (2017), Attention is all you need. Xiong et al. (2020), On layer normalization in the
        transformer architecture, for the normalisation first.
    """

    def __init__(self, tokens: int, length: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        if layers < 1 or width < 1 or width % heads:
            raise ValueError(
                f"a transformer has at least one layer, of a width that its {heads} heads divide: "
                f"there are {layers}, of width {width}"
            )
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.randn(length + 1, width))  # as strong as the tokens
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """The vector at the place that is next, (B, width); x holds whole numbers of any type."""
        blank = self.tokens.num_embeddings - 1
        ids = F.pad(x.long(), (0, 1), value=blank)
        first = (ids == blank).int().argmax(1)
        x = self.tokens(ids) + self.places
        for layer in self.layers[:-1]:
            x = layer(x)
        result: Tensor = self.norm(self.layers[-1](x, first))
        return result


class _Layer(nn.Module):
    """Attention to all places, then a perceptron, both added to what they read: (B, L, D) -> (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.mix = nn.Linear(width, width)
        widen, narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.perceptron = nn.Sequential(nn.LayerNorm(width), widen, nn.GELU(), narrow)

    def forward(self, x: Tensor, place: Tensor | None = None) -> Tensor:
        """All places, or of each sequence only `place` (B,), (B, D)."""
        batch, length, _ = x.shape
        seen = asking = self.norm(x)
        if place is not None:
            row = place + length * torch.arange(batch, device=x.device)
            x, asking = (each.flatten(0, 1).index_select(0, row).unsqueeze(1) for each in (x, seen))
        query = self.query(asking).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, H, ·, D/H)
        key_value = self.key_value(seen).unflatten(2, (2 * self.heads, -1)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(query, *key_value.chunk(2, 1))
        x = x + self.mix(attended.transpose(1, 2).flatten(2))
        x = x + self.perceptron(x)
        return x if place is None else x.squeeze(1)


def cnn(image: tuple[int, int, int], outputs: int, output_gain: float | None = None) -> nn.Sequential:
    """A convolutional network, images (B, C, H, W) -> (B, outputs): `nature` and a last layer.

    Args:
        image: (C, H, W).
        outputs: width of the last layer, which has no activation.
        output_gain: orthogonal initialisation as in `mlp`; None keeps torch's own.

    Raises:
        ValueError: an image below 7 pixels in height or width.

    Example:
        >>> import torch
        >>> from pgce.networks import cnn
        >>> cnn((3, 96, 96), outputs=2)(torch.zeros(5, 3, 96, 96)).shape
        torch.Size([5, 2])
    """
    body, width = nature(image, orthogonal=output_gain is not None)
    return nn.Sequential(*body, linear(width, outputs, output_gain))


def nature(image: tuple[int, int, int], *, orthogonal: bool = True) -> tuple[nn.Sequential, int]:
    """The layers of the deep Q-network before its last, (B, C, H, W) -> (B, 512), and that width.

    They are its own from 36 pixels on; smaller images get kernels of 3, with a stride of 2 in the first layer
    from 14 pixels on, and in the second from 24, so that the last has no more to read than of 84 pixels.

    Args:
        image: (C, H, W).
        orthogonal: orthogonal initialisation with gain √2 and zero biases; else torch's own.

    Raises:
        ValueError: an image below 7 pixels in height or width.

    Example:
        >>> import torch
        >>> from pgce.networks import nature
        >>> body, width = nature((3, 12, 12))
        >>> body(torch.zeros(5, 3, 12, 12)).shape == (5, width)
        True

    References:
        Mnih et al. (2015), Human-level control through deep reinforcement learning.
    """
    channels, least = image[0], min(image[1:])
    small = (32, 3, 2 if least >= 14 else 1), (64, 3, 2 if least >= 24 else 1), (64, 3, 1)
    shapes = ((32, 8, 4), (64, 4, 2), (64, 3, 1)) if least >= 36 else small
    gain = math.sqrt(2) if orthogonal else None
    layers: list[nn.Module] = []
    for filters, kernel, stride in shapes:
        layers += [_initialised(nn.Conv2d(channels, filters, kernel, stride), gain), nn.ReLU()]
        channels = filters
    return _flattened(layers, image, 512, gain)


def impala(image: tuple[int, int, int], *, orthogonal: bool = True) -> tuple[nn.Sequential, int]:
    """The residual network of IMPALA before its last layer, (B, C, H, W) -> (B, 256), and that width.

    Args:
        image: (C, H, W).
        orthogonal: orthogonal initialisation of its last linear layer, with gain √2; else torch's own.

    Raises:
        ValueError: an image below 7 pixels in height or width.

    Example:
        >>> import torch
        >>> from pgce.networks import impala
        >>> body, width = impala((3, 64, 64))
        >>> body(torch.zeros(5, 3, 64, 64)).shape == (5, width)
        True

    References:
        Espeholt et al. (2018), IMPALA: scalable distributed deep-RL with importance weighted actor-learner
        architectures, figure 3 on the right.
    """
    channels = image[0]
    layers: list[nn.Module] = []
    for filters in (16, 32, 32):
        layers += [nn.Conv2d(channels, filters, 3, padding=1), nn.MaxPool2d(3, stride=2, padding=1)]
        layers += [_Residual(filters), _Residual(filters)]
        channels = filters
    return _flattened([*layers, nn.ReLU()], image, 256, math.sqrt(2) if orthogonal else None)


class _Residual(nn.Module):
    """Two convolutions beside the identity, (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.layers = nn.Sequential(nn.ReLU(), first, nn.ReLU(), second)

    def forward(self, x: Tensor) -> Tensor:
        """The input and what the layers add to it."""
        result: Tensor = x + self.layers(x)
        return result


def _flattened(
    layers: list[nn.Module], image: tuple[int, int, int], width: int, gain: float | None
) -> tuple[nn.Sequential, int]:
    """Convolutions, and a layer over all that comes out of them."""
    if min(image[1:]) < SMALLEST:
        told = f"needs {SMALLEST} × {SMALLEST} pixels or more: the image is {image}"
        raise ValueError(f"a convolutional network {told}")
    convolutions = nn.Sequential(*layers, nn.Flatten())
    with torch.no_grad():
        features = convolutions(torch.zeros(1, *image)).shape[1]
    return nn.Sequential(*convolutions, linear(features, width, gain), nn.ReLU()), width


class Convolutional(nn.Module):
    """What networks make of an image and of the features before it: (B, D + CHW) -> (B, V + W).

    Args:
        network: (B, C, H, W) -> (B, W).
        image: (C, H, W), flattened at the end of an input.
        beside: (B, D) -> (B, V), or None where there is nothing but the image.

    Example:
        >>> import torch
        >>> from pgce.networks import Convolutional, linear, nature
        >>> both = Convolutional(nature((1, 8, 8))[0], (1, 8, 8), linear(3, 64))
        >>> both(torch.zeros(5, 3 + 64)).shape
        torch.Size([5, 576])
    """

    def __init__(
        self, network: nn.Module, image: tuple[int, int, int], beside: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.image = image
        self.beside = beside

    def forward(self, x: Tensor) -> Tensor:
        """What the features say, then what is seen."""
        pixels = math.prod(self.image)
        seen: Tensor = self.network(x[:, -pixels:].unflatten(1, self.image))
        return seen if self.beside is None else torch.cat((self.beside(x[:, :-pixels]), seen), 1)


class Recurrent(nn.Module):
    """A network with a memory, over sequences in which episodes may begin: (B, L, D) -> (B, L, size).

    Args:
        encoder: (B, D) -> (B, width), before the memory.
        width: of what the encoder gives.
        size: of the memory.
        kind: "gru" or "lstm".

    Attributes:
        state_size: S, numbers that are carried from step to step: `size`, or for an LSTM twice that.

    Example:
        >>> import torch
        >>> from pgce.networks import Recurrent
        >>> memory = Recurrent(torch.nn.Identity(), width=3, size=8, kind="lstm")
        >>> x, first = torch.zeros(5, 7, 3), torch.zeros(5, 7, dtype=torch.bool)
        >>> output, state = memory(x, first, torch.zeros(5, memory.state_size))
        >>> output.shape, state.shape
        (torch.Size([5, 7, 8]), torch.Size([5, 7, 16]))

    References:
        Hochreiter and Schmidhuber (1997), Long short-term memory; Cho et al. (2014), Learning phrase
        representations using RNN encoder–decoder for statistical machine translation.
    """

    def __init__(self, encoder: nn.Module, width: int, size: int, kind: Memory = "gru") -> None:
        super().__init__()
        check_type("memory", kind, Memory)
        self.encoder = encoder
        self.cell = (_LSTM if kind == "lstm" else _GRU)(width, size)
        self.state_size = 2 * size if kind == "lstm" else size
        for name, parameter in self.cell.named_parameters():
            if name.startswith("weight"):
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The output and the state after every step, (B, L, size) and (B, L, S).

        Args:
            x: (B, L, D).
            first: (B, L), bool: an episode begins with this step, and nothing before it is remembered.
            state: (B, S), before the first step.
        """
        kept = (~first).to(state.dtype).unsqueeze(-1)
        every: Tensor = self.cell(self.encoder(x.flatten(0, 1)), kept, state)
        return every[..., : self.cell.hidden_size], every


class _Cell(nn.RNNCellBase):
    """A cell of torch that goes through sequences, (B · L, width) -> the states, (B, L, S)."""

    kind: type[memories.GRU | memories.LSTM]

    def forward(self, x: Tensor, kept: Tensor, state: Tensor) -> Tensor:
        """The state after every step; see `pgce.memories.scan`."""
        # What the inputs give to the gates, of all steps at once.
        given = F.linear(x, self.weight_ih, self.bias_ih).unflatten(0, kept.shape[:2])
        return memories.scan(self.kind, given, kept, state, self.weight_hh, self.bias_hh)


class _GRU(_Cell, nn.GRUCell):  # type: ignore[misc]
    kind = memories.GRU


class _LSTM(_Cell, nn.LSTMCell):  # type: ignore[misc]
    kind = memories.LSTM


class Torso(nn.Module):
    """What policy and value read instead of the observation; an action mask after it passes through.

    Without memory it is called with observations (B, D + K), and gives (B, H + K). With memory it is called
    with sequences, a dict of "observation" (B, L, D + K), "first" (B, L), bool, where an episode begins, and
    "state" (B, L, S) before each step, of which the first counts; it gives (B, L, H + K).

    Args:
        networks: one (B, D) -> (B, H); or one or two of `Recurrent`, whose outputs lie side by side.
        features: D.

    Attributes:
        state_size: S, numbers that are carried from step to step; 0 is no memory.

    Example:
        >>> import torch
        >>> from pgce.networks import Recurrent, Torso
        >>> torso = Torso([Recurrent(torch.nn.Identity(), 3, 8) for _ in range(2)], features=3)
        >>> output, state = torso.step(torch.zeros(5, 4), torch.ones(5, dtype=torch.bool), torch.zeros(5, 16))
        >>> output.shape, state.shape
        (torch.Size([5, 17]), torch.Size([5, 16]))
    """

    def __init__(self, networks: Sequence[nn.Module], features: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.features = features
        self.sizes = [network.state_size for network in networks if isinstance(network, Recurrent)]
        self.state_size = sum(self.sizes)

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """What policy and value read."""
        if isinstance(x, dict):
            return self._sequence(x["observation"], x["first"], x["state"][:, 0])[0]
        return self._with_mask(self.networks[0](x[..., : self.features]), x)

    def step(self, x: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the output (B, H + K) and the state after it (B, S).

        Args:
            x: (B, D + K).
            first: (B,), bool: an episode begins.
            state: (B, S), before it.
        """
        output, after = self._sequence(x.unsqueeze(1), first.unsqueeze(1), state)
        return output.squeeze(1), after.squeeze(1)

    def _sequence(self, x: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        seen, parts = x[..., : self.features], state.split(self.sizes, -1)
        each = [network(seen, first, part) for network, part in zip(self.networks, parts, strict=True)]
        outputs, states = (torch.cat(side, -1) for side in zip(*each, strict=True))
        return self._with_mask(outputs, x), states

    def _with_mask(self, output: Tensor, x: Tensor) -> Tensor:
        if x.shape[-1] == self.features:
            return output
        return torch.cat((output, x[..., self.features :]), -1)


class Headed(nn.Module):
    """A torso and what reads it, as one network.

    Args:
        torso: from the observation on.
        head: (B, H + K) -> logits, or values (B,).

    Attributes:
        state_size: the torso's.

    Example:
        >>> import torch
        >>> from pgce.networks import Headed, Torso, linear
        >>> Headed(Torso([linear(4, 8)], features=4), linear(8, 2))(torch.zeros(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(self, torso: Torso, head: nn.Module) -> None:
        super().__init__()
        self.torso = torso
        self.head = head
        self.state_size = torso.state_size

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """What the head makes of the torso's output."""
        output: Tensor = self.head(self.torso(x))
        return output

    def step(self, x: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One step with a memory: the head's output, and the state (B, S) after it; see `Torso.step`."""
        hidden, state = self.torso.step(x, first, state)
        return self.head(hidden), state


class ActorCritic(nn.Module):
    """A policy, and beside it a value where one is wanted.

    Args:
        actor: (B, D) -> logits; with a torso, of what that gives.
        critic: (B, D) -> (B,), or None; likewise.
        torso: what both read, or None.
        normalize: the first layer of all, or None.
        reward_scale: of the rewards that the value is learned from, or None.

    Example:
        >>> import torch
        >>> from pgce.networks import ActorCritic, Value, mlp
        >>> outputs = ActorCritic(mlp(4, 2), Value(mlp(4, 1)))(torch.zeros(8, 4))
        >>> outputs["policy"].shape, outputs["value"].shape
        (torch.Size([8, 2]), torch.Size([8]))
    """

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module | None = None,
        torso: Torso | None = None,
        normalize: Normalize | None = None,
        reward_scale: RewardScale | None = None,
    ) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.torso = torso
        self.normalize = normalize
        self.reward_scale = reward_scale

    @property
    def policy(self) -> nn.Module:
        """From the observation to the logits."""
        return self.actor if self.torso is None else Headed(self.torso, self.actor)

    @property
    def value(self) -> nn.Module | None:
        """From the observation to the value (B,), or None."""
        if self.critic is None or self.torso is None:
            return self.critic
        return Headed(self.torso, self.critic)

    def forward(self, x: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs "policy" and, with a critic, "value" (B,)."""
        read = x if self.torso is None else self.torso(x)
        outputs = {"policy": self.actor(read)}
        if self.critic is not None:
            outputs["value"] = self.critic(read)
        return outputs

"""Networks: from an input to logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pgce.choices import Activation, check_choice

__all__ = [
    "ActorCritic",
    "Leading",
    "Normalize",
    "RewardScale",
    "Scaled",
    "Transformer",
    "Value",
    "WithScale",
    "cnn",
    "mlp",
]

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


def mlp(
    inputs: int,
    outputs: int,
    hidden: Sequence[int] = (64, 64),
    activation: Activation = "tanh",
    output_gain: float | None = None,
) -> nn.Sequential:
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
    check_choice("activation", activation, Activation)
    widths = [inputs, *hidden, outputs]
    if min(widths) < 1:
        raise ValueError(f"every layer has at least one unit: the widths are {widths}")
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layer = nn.Linear(fan_in, fan_out)
        if output_gain is not None:
            nn.init.orthogonal_(layer.weight, output_gain if last else math.sqrt(2))
            nn.init.zeros_(layer.bias)
        layers += [layer] if last else [layer, _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


class WithScale(nn.Module):
    """The mean from a network and a learned log σ beside it, the same for every input: logits (B, D, 2).

    Args:
        mean: network (B, ...) -> (B, D).
        components: D.
        initial_log_scale: log σ at the start.

    Example:
        >>> import torch
        >>> from pgce.networks import WithScale, mlp
        >>> WithScale(mlp(3, 2), components=2)(torch.zeros(8, 3)).shape
        torch.Size([8, 2, 2])
    """

    def __init__(self, mean: nn.Module, components: int, initial_log_scale: float = 0.0) -> None:
        super().__init__()
        self.mean = mean
        self.log_scale = nn.Parameter(torch.full((components,), initial_log_scale))

    def forward(self, x: Tensor) -> Tensor:
        """Mean and log σ on the last axis, (B, D, 2)."""
        mean = self.mean(x)
        return torch.stack((mean, self.log_scale.expand_as(mean)), -1)


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
        output: Tensor = self.network(x)
        return self.unit * output.squeeze(-1)


class Scaled(nn.Module):
    """Real-valued outputs in a unit of their own: (B, ...) -> shift + unit · output, (B, D).

    Args:
        network: (B, ...) -> (B, D).
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
        """The outputs in the target's unit, (B, D)."""
        return torch.addcmul(self.shift, self.unit, self.network(x))


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
        if len(x) == 0:
            return
        variance, mean = torch.var_mean(x.double(), 0, correction=0)
        total = self.count + len(x)
        share = len(x) / total
        change = mean - self.mean
        spread = (1 - share) * self.variance + share * variance + share * (1 - share) * change.square()
        if self.count == 0:
            spread = variance
        self.mean += (share * change).to(self.mean.dtype)
        self.variance.copy_(spread)
        self.count.copy_(total)

    def forward(self, x: Tensor) -> Tensor:
        """(x − mean)/std, clipped, in the shape of x (B, D)."""
        scaled = (x - self.mean) * torch.rsqrt(self.variance + 1e-8)
        return scaled.clamp(-self.limit, self.limit)


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
        self.limit = limit
        self.statistics = Normalize(1)
        self.register_buffer("running", torch.zeros(num_envs))

    def forward(self, reward: Tensor, done: Tensor, valid: Tensor) -> Tensor:
        """The rewards (T, N), scaled by all that was seen until now; `done` (T, N) ends a sum."""
        sums = torch.empty_like(reward)
        running = self.running
        for t in range(len(reward)):
            running = sums[t] = self.gamma * running + reward[t]
            running = running * ~done[t]
        self.running.copy_(running)
        self.statistics.update(sums[valid].unsqueeze(1))
        scaled = reward * torch.rsqrt(self.statistics.variance + 1e-8)
        return scaled.clamp(-self.limit, self.limit)


class Leading(nn.Module):
    """The first features of an input: (B, D + K) -> (B, D).

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from pgce.networks import Leading
        >>> Leading(2)(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[1., 2.]])
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        """The first D columns."""
        return x[:, : self.features]


class Transformer(nn.Module):
    """A transformer of tokens: (B, L) -> (B, outputs), read at the first blank, where the next token goes.

    The highest id is blank, and one more blank follows the last place: a sequence that is full, or of a space
    without blanks, is read there. What is written next depends on where, which the place itself so tells; and
    the last layer is computed at that one place only.

    Args:
        tokens: how many different ones there are, ids 0..tokens − 1.
        length: L.
        outputs: width of the output, which has no activation.
        width: of a token's vector.
        layers: of attention and perceptron.
        heads: of the attention.
        output_gain: orthogonal initialisation of the output with zero biases; None keeps torch's own.

    Raises:
        ValueError: no layer, or a width that the heads do not divide.

    Example:
        >>> import torch
        >>> from pgce.networks import Transformer
        >>> Transformer(tokens=11, length=16, outputs=10)(torch.zeros(5, 16)).shape
        torch.Size([5, 10])

    References:
        Vaswani et al. (2017), Attention is all you need. Xiong et al. (2020), On layer normalization in the
        transformer architecture, for the normalisation first.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        outputs: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        output_gain: float | None = None,
    ) -> None:
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
        self.output = nn.Linear(width, outputs)
        if output_gain is not None:
            nn.init.orthogonal_(self.output.weight, output_gain)
            nn.init.zeros_(self.output.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The outputs, (B, outputs); x holds whole numbers of any type."""
        blank = self.tokens.num_embeddings - 1
        ids = F.pad(x.long(), (0, 1), value=blank)
        first = (ids == blank).int().argmax(1)
        x = self.tokens(ids) + self.places
        for layer in self.layers[:-1]:
            x = layer(x)
        result: Tensor = self.output(self.norm(self.layers[-1](x, first)))
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
    """A convolutional network, images (B, C, H, W) -> (B, outputs).

    From 84 pixels on the one of the deep Q-network; smaller images get kernels of 3, without stride.

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

    References:
        Mnih et al. (2015), Human-level control through deep reinforcement learning.
    """
    channels, height, width = image
    if min(height, width) < 7:
        raise ValueError(f"a convolutional network needs 7 × 7 pixels or more: the image is {image}")
    large = min(height, width) >= 36
    shapes = ((32, 8, 4), (64, 4, 2), (64, 3, 1)) if large else ((32, 3, 1), (64, 3, 1), (64, 3, 1))
    layers: list[nn.Module] = []
    for filters, kernel, stride in shapes:
        layers += [nn.Conv2d(channels, filters, kernel, stride), nn.ReLU()]
        channels = filters
    layers.append(nn.Flatten())
    features = nn.Sequential(*layers)(torch.zeros(1, *image)).shape[1]
    layers += [nn.Linear(features, 512), nn.ReLU(), nn.Linear(512, outputs)]
    if output_gain is not None:
        weighted = [layer for layer in layers if isinstance(layer, (nn.Conv2d, nn.Linear))]
        for layer in weighted:
            nn.init.orthogonal_(layer.weight, output_gain if layer is weighted[-1] else math.sqrt(2))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class ActorCritic(nn.Module):
    """A policy, and beside it a value network where one is wanted.

    Args:
        policy: (B, D) -> logits.
        value: (B, D) -> (B,), or None.
        normalize: the first layer of both, or None.
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
        policy: nn.Module,
        value: nn.Module | None = None,
        normalize: Normalize | None = None,
        reward_scale: RewardScale | None = None,
    ) -> None:
        super().__init__()
        self.policy = policy
        self.value = value
        self.normalize = normalize
        self.reward_scale = reward_scale

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The outputs "policy" and, with a value network, "value" (B,)."""
        outputs = {"policy": self.policy(x)}
        if self.value is not None:
            outputs["value"] = self.value(x)
        return outputs

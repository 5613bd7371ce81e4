"""Linear layers with an activation between them, on a CPU: one node of autograd, computed by NumPy.

A layer of a small network takes less time than torch takes to call its operations, and NumPy calls the same
in half of that; its matrix products are at least as fast (OpenBLAS uses all that AMD's processors have, which
torch's MKL does not).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Perceptron", "frozen", "side_by_side"]

Array = NDArray[np.floating[Any]]
Layers = list[tuple[Array, Array]]


class Perceptron(nn.Sequential):
    """Linear layers, in order, each but perhaps the last with one activation after it: (B, D) -> (B, K).

    On a CPU, layers with tanh or ReLU are one node of autograd, with one derivative only (tanh differs from
    torch's by rounding, 1e-7 at most in float32). Layers with hooks run one by one, as do all on other
    devices, under autocast and in a compiler.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pgce.perceptrons import Perceptron
        >>> layers = nn.Linear(2, 512), nn.Tanh(), nn.Linear(512, 1)
        >>> x = torch.randn(64, 2)
        >>> bool((Perceptron(*layers)(x) - nn.Sequential(*layers)(x)).abs().max() < 1e-5)
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        chain = _chain(self) if _is_plain(x) else None
        if chain is None or not chain.reads(x):
            result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return result
        return _together(x, [chain])[0]


def side_by_side(x: Tensor, networks: Sequence[nn.Module]) -> list[Tensor]:
    """What each network gives for the same input, (B, D) -> (B, K) each; perceptrons by one node of autograd.

    Args:
        x: (B, D).
        networks: of it.

    Example:
        >>> import torch
        >>> from pgce.networks import mlp
        >>> from pgce.perceptrons import side_by_side
        >>> [output.shape for output in side_by_side(torch.randn(256, 4), [mlp(4, 2), mlp(4, 1)])]
        [torch.Size([256, 2]), torch.Size([256, 1])]
    """
    chains = [_chain(network) for network in networks] if _is_plain(x) else []
    found = [chain for chain in chains if chain is not None and chain.reads(x)]
    if len(found) == len(networks):
        return _together(x, found)
    return [network(x) for network in networks]


def frozen(network: nn.Module) -> nn.Module:
    """The network with the weights that it has now, for many calls of inputs (B, D) without gradients.

    Of perceptrons in it, on a CPU, the next call takes the memory of this one's hidden layers.

    Args:
        network: any.

    Example:
        >>> import torch
        >>> from pgce.networks import mlp
        >>> from pgce.perceptrons import frozen
        >>> network, x = mlp(4, 2), torch.randn(8, 4)
        >>> bool((frozen(network)(x) == network(x)).all())
        True
    """
    chain = _chain(network)
    if chain is not None:
        return _Frozen(chain)
    if not network._modules:
        return network
    result = copy.copy(network)
    result._modules = {name: child and frozen(child) for name, child in network._modules.items()}
    return result


def _is_plain(x: Tensor) -> bool:
    """Whether a CPU computes, and nobody looks at every operation or changes it."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and x.ndim == 2
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


@dataclass(frozen=True)
class _Activation:
    """h = factor · s + shift with s = apply(inner · z), in place; so layers hold s, and weights all numbers.

    Attributes:
        through: from (a gradient on s, s) that on inner · z, in place of the first.
    """

    apply: Callable[[Array], object]
    through: Callable[[Array, Array], object]
    inner: float = 1.0
    factor: float = 1.0
    shift: float = 0.0


_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input


def _through_sigmoid(gradient: Array, s: Array) -> None:
    g = torch.from_numpy(gradient)
    _sigmoid_backward(g, torch.from_numpy(s), grad_input=g)


def _through_relu(gradient: Array, s: Array) -> None:
    gradient *= s > 0


_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    # tanh z is 2σ(2z) − 1, and torch's σ takes a third of the time of any tanh.
    nn.Tanh: _Activation(lambda z: torch.from_numpy(z).sigmoid_(), _through_sigmoid, 2.0, 2.0, -1.0),
    nn.ReLU: _Activation(lambda z: np.maximum(z, 0, out=z), _through_relu),
}
_TYPES = torch.float32, torch.float64


@dataclass(frozen=True)
class _Chain:
    """The layers of a perceptron: `weights` and `biases` in turn, and how many have the activation after."""

    activation: _Activation
    activated: int
    weights: list[Tensor]
    biases: list[Tensor]

    def reads(self, x: Tensor) -> bool:
        """Whether x is of the type and width of the first layer; else torch is to say that it is not."""
        first = self.weights[0]
        return x.dtype == first.dtype and x.shape[1] == first.shape[1]

    def layers(self) -> Layers:
        """Weight and bias of each layer, for the s before it and the inner · z after it."""
        activation, result = self.activation, []
        for n, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            w, b = weight.detach().numpy(), bias.detach().numpy()
            inner = activation.inner if n < self.activated else 1.0
            if n and activation.shift:
                b = b + activation.shift * w.dot(_ones(w.shape[1], w.dtype))
            scale = inner * activation.factor if n else inner
            result.append((w if scale == 1 else scale * w, b if inner == 1 else inner * b))
        return result


def _chain(network: nn.Module) -> _Chain | None:
    """The layers of a perceptron: linear ones and one kind of activation in turn, without a hook."""
    kind: type[nn.Module] | None = None
    weights: list[Any] = []
    biases: list[Any] = []
    activated = 0
    for layer in _layers(network):
        if layer._forward_hooks or layer._forward_pre_hooks:
            return None
        if layer._backward_hooks or layer._backward_pre_hooks:
            return None
        if type(layer) is nn.Linear and len(weights) == activated:
            weights.append(layer._parameters["weight"])
            biases.append(layer._parameters["bias"])
            for value in weights[-1], biases[-1]:
                if value is None or not value.is_cpu or value.dtype is not weights[0].dtype:
                    return None
        elif type(layer) in _ACTIVATIONS and kind in (None, type(layer)) and len(weights) == activated + 1:
            kind, activated = type(layer), activated + 1
        else:
            return None
    if kind is None or weights[0].dtype not in _TYPES:
        return None
    return _Chain(_ACTIVATIONS[kind], activated, weights, biases)


def _layers(network: nn.Module) -> list[nn.Module]:
    """Its layers, those of sequences in it one by one, and those that have hooks themselves."""
    if type(network) not in (nn.Sequential, Perceptron):
        return [network]
    hooked = network._forward_hooks or network._forward_pre_hooks or network._backward_hooks
    result = [network] if hooked else []
    for layer in network._modules.values():
        if layer is not None:
            result += _layers(layer)
    return result


def _together(x: Tensor, chains: Sequence[_Chain]) -> list[Tensor]:
    """The outputs of perceptrons."""
    if not torch.is_grad_enabled():
        return [torch.from_numpy(_run(x.detach().numpy(), chain, chain.layers())[0]) for chain in chains]
    parameters = [value for chain in chains for value in (*chain.weights, *chain.biases)]
    result: tuple[Tensor, ...] = _Layers.apply(x, chains, *parameters)  # type: ignore[no-untyped-call]
    return [*result]


@lru_cache(maxsize=8)
def _ones(number: int, dtype: np.dtype[Any]) -> Array:
    """So many ones, whose product with rows is their sum, in half of the time."""
    return np.ones(number, dtype)


# As torch, without a warning: who uses the numbers looks whether they are finite.
_quietly = np.errstate(over="ignore", invalid="ignore")


@_quietly
def _run(x: Array, chain: _Chain, layers: Layers, memory: Sequence[Array | None] = ()) -> tuple[Array, ...]:
    """The output, and what each of the `layers` read; what it gives is written into the `memory` there is."""
    activation, seen = chain.activation, [x]
    for n, (weight, bias) in enumerate(layers):
        s = seen[n].dot(weight.T, out=memory[n] if n < len(memory) else None)
        s += bias
        if n < chain.activated:
            activation.apply(s)
            seen.append(s)
    if chain.activated == len(layers):
        s = activation.factor * s + s.dtype.type(activation.shift)
    return s, *seen


class _Layers(torch.autograd.Function):
    """What perceptrons give, and its gradients; their parameters are told for autograd only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chains: Sequence[_Chain], *parameters: Tensor) -> tuple[Tensor, ...]:
        first, outputs = x.detach().numpy(), []
        ctx.watched = [(value, value._version) for value in (x, *parameters)]
        ctx.chains = []
        for chain in chains:
            layers = chain.layers()
            output, *seen = _run(first, chain, layers)
            ctx.chains.append((chain, layers, seen))
            outputs.append(torch.from_numpy(output))
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    @_quietly
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if any(value._version != version for value, version in ctx.watched):
            raise RuntimeError("what a perceptron was computed from has been changed before its gradient")
        ones = _ones(len(ctx.chains[0][2][0]), ctx.chains[0][2][0].dtype)
        on_x: Any = None
        result: list[Tensor] = []
        for gradient, (chain, layers, seen) in zip(gradients, ctx.chains, strict=True):
            activation, on_weights, on_biases = chain.activation, [], []
            g = gradient.numpy()  # on z of layer n
            if chain.activated == len(layers):
                g = (activation.inner * activation.factor) * g
            for n in reversed(range(len(layers))):
                if n < chain.activated:
                    activation.through(g, seen[n + 1])
                s = seen[n]
                # The same numbers, the faster way round.
                on_weight = s.T.dot(g).T if s.shape[1] < g.shape[1] else g.T.dot(s)
                on_bias = ones.dot(g)
                if n and activation.factor != 1:
                    on_weight *= activation.factor
                if n and activation.shift:
                    on_weight += activation.shift * on_bias[:, None]
                on_weights.append(torch.from_numpy(on_weight))
                on_biases.append(torch.from_numpy(on_bias))
                if n == chain.activated and activation.inner != 1:
                    g = activation.inner * g
                if n or ctx.needs_input_grad[0]:
                    g = g.dot(layers[n][0])  # which np.matmul does at a tenth of the speed if g is (B, 1)
            result += [*reversed(on_weights), *reversed(on_biases)]
            if ctx.needs_input_grad[0]:
                g = g if activation.inner == 1 else g / activation.inner
                on_x = g if on_x is None else on_x + g
        return (None if on_x is None else torch.from_numpy(on_x), None, *result)


class _Frozen(nn.Module):
    """A perceptron without gradients."""

    def __init__(self, chain: _Chain) -> None:
        super().__init__()
        self._chain, self._layers = chain, [(w.copy(), b.copy()) for w, b in chain.layers()]
        self._memory: list[Array] = []

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        if not self._memory or len(self._memory[0]) != len(x):
            hidden = self._layers[: self._chain.activated]
            self._memory = [np.empty((len(x), len(bias)), bias.dtype) for _, bias in hidden]
        return torch.from_numpy(_run(x.detach().numpy(), self._chain, self._layers, self._memory)[0])

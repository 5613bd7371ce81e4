"""A trained policy as a program that runs without this package."""

from __future__ import annotations

import copy
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgce.disk import write_file
from pgce.heads import PolicyHead

__all__ = ["export"]


def export(policy: nn.Module, head: PolicyHead, example: Tensor, path: str | Path) -> Path:
    """Write a policy as a torch.export program (.pt2) or as ONNX (.onnx), for any number of observations.

    The program takes "observation" (N, ...), N >= 1, and gives "logits" and "action", their mode. With a
    memory it also takes "first" (N,), bool, where an episode begins, and "state" (N, S), and gives the state
    after.

    Args:
        policy: observations (N, ...) -> logits; or with `state_size` S above 0 and a `step`.
        head: what the logits mean.
        example: observations (2, ...), of the shape and type that the program takes.
        path: ends in .pt2 or .onnx.

    Raises:
        ValueError: the path ends otherwise.
        ImportError: an .onnx file, and onnx and onnxscript are not installed.

    Example:
        >>> import tempfile, torch
        >>> from pgce.exporting import export
        >>> from pgce.heads import Categorical
        >>> policy = torch.nn.Linear(4, 2)
        >>> path = export(policy, Categorical(), torch.zeros(2, 4), tempfile.mkdtemp() + "/policy.pt2")
        >>> logits, action = torch.export.load(path).module()(torch.ones(5, 4))
        >>> logits.shape, action.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """
    path = Path(path)
    if path.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"a policy is exported to a file that ends in .pt2 or .onnx: it is {str(path)!r}")
    size: int = getattr(policy, "state_size", 0)
    program = (_Remembering if size else _Stateless)(copy.deepcopy(policy).cpu(), head)
    program.eval().requires_grad_(False)
    content = BytesIO()
    with warnings.catch_warnings():
        # What torch's exporter says of itself; what comes of our own modules is still heard.
        warnings.filterwarnings("ignore", module=r"(?!pgce\b)")
        inputs = {"observation": example.cpu()}
        if size:
            inputs |= {
                "first": torch.zeros(len(example), dtype=torch.bool),
                "state": torch.zeros(len(example), size),
            }
        many = torch.export.Dim("N")
        exported = torch.export.export(
            program, tuple(inputs.values()), dynamic_shapes={name: {0: many} for name in inputs}
        )
        if path.suffix == ".pt2":
            torch.export.save(exported, content)
        else:
            _onnx(exported, list(inputs), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content.getvalue())
    return path


def _onnx(exported: torch.export.ExportedProgram, inputs: list[str], content: BytesIO) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise ImportError('ONNX needs onnx and onnxscript: pip install "pgce[export]"') from error
    outputs = ["logits", "action", *(["state_after"] if "state" in inputs else [])]
    made = torch.onnx.export(exported, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    assert made is not None
    onnx.save(made.model_proto, content)


class _Stateless(nn.Module):
    """The policy and what it would do: observation (N, ...) -> logits, action."""

    def __init__(self, policy: nn.Module, head: PolicyHead) -> None:
        super().__init__()
        self.policy = policy
        self.head = head

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        logits = self.policy(observation)
        return logits, self.head.mode(logits)


class _Remembering(_Stateless):
    """The same with a memory: observation, first, state -> logits, action, the state after."""

    def forward(self, observation: Tensor, first: Tensor, state: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        step: Any = self.policy.step
        logits, state = step(observation, first, state)
        return logits, self.head.mode(logits), state

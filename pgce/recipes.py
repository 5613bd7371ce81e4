"""Settings of supervised training, once for the estimators and the command line; torch-free for `--help`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

from pgce.choices import Precision

__all__ = ["ClassificationRules", "RegressionRules", "Training", "documented"]

ClassWeight = Literal["balanced", "effective_number"]
Sampler = Literal["balanced", "weighted"]
Correction = Literal["forward", "backward"]
Noise = Literal["gaussian", "laplace", "poisson"]
T = TypeVar("T")


@dataclass(kw_only=True, eq=False, repr=False)
class Training:
    """How long and how a model is trained."""

    epochs: int = 100
    """Passes over the training data."""
    batch_size: int = 128
    """Examples a step."""
    micro_batch_size: int | None = None
    """Examples that go through the model at once, if fewer than a batch: less memory, the same step."""
    early_stopping: bool = False
    """Hold a part of the data out, stop when it no longer improves, and keep the best weights."""
    validation_fraction: float = 0.1
    """Share of the training data held out for early stopping."""
    patience: int = 10
    """Epochs without a better result after which early stopping ends training."""
    precision: Precision = "float32"
    """Precision of the matrix products."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights, which is then what is kept."""
    max_skips: int = 0
    """Updates in a row that may be left out since the gradient was not finite, before training ends."""
    compile: bool = False
    """Run the network through torch's compiler."""


@dataclass(kw_only=True, eq=False, repr=False)
class ClassificationRules:
    """Which target y and which weight w each example gets."""

    label_smoothing: float = 0.0
    """Share ε of the target given to the uniform distribution over all classes."""
    soft_labels: tuple[float, float] | None = None
    """Target at the label and at every other class, such as 0.9 0.1."""
    confidence: float | None = None
    """How sure annotators are of a label, 0 to 1; the rest is given to the uniform distribution."""
    redraw: float = 0.0
    """Probability with which a label is drawn anew among all classes, at every step."""
    noise: float | None = None
    """Share of the training labels known to be drawn among all classes at random, for `correction`."""
    correction: Correction = "forward"
    """How label noise is corrected: through the predicted probabilities, or in the targets."""
    mixup: float = 0.0
    """α > 0 mixes inputs and targets of two examples, by a share drawn from Beta(α, α)."""
    cutmix: float = 0.0
    """α > 0 pastes a rectangle of another image in; its area is drawn from Beta(α, α)."""
    temperature: float = 2.0
    """Temperature at which a teacher's probabilities are learned."""
    teacher_share: float = 0.5
    """Share of the objective that a teacher's probabilities have; the labels have the rest."""
    logit_adjustment: float = 0.0
    """τ > 0 adds τ log(class frequency) to the logits while training, so that rare classes count as much."""
    class_weight: ClassWeight | None = None
    """Weights of the classes: by inverse frequency, or by the effective number of examples."""
    beta: float = 0.999
    """β of the effective number."""
    sampler: Sampler | None = None
    """Draw examples uniformly by class, or in proportion to their sample weight, with replacement."""
    focal_gamma: float = 0.0
    """γ > 0 weighs down what is already classified right (focal loss, full gradient)."""
    gce_q: float | None = None
    """q in [0, 1] of generalised cross-entropy, robust to wrong labels: 0 cross-entropy, 1 absolute error."""
    symmetric: tuple[float, float] | None = None
    """α and β of symmetric cross-entropy, such as 0.1 1.0: robust to wrong labels."""
    poly1_epsilon: float | None = None
    """ε of the Poly-1 loss."""
    asymmetric: tuple[float, float, float] | None = None
    """γ₊, γ₋ and clip of the asymmetric loss, such as 0 4 0.05; of several labels a row."""
    pos_weight: float | None = None
    """Weight of the labels that are 1; of several labels a row."""


@dataclass(kw_only=True, eq=False, repr=False)
class RegressionRules:
    """What a real-valued target means, and which weight each error gets."""

    distribution: Noise = "gaussian"
    """What noise the target has: gaussian (squared error), laplace (absolute error), or poisson (counts)."""
    huber_delta: float | None = None
    """δ in the target's unit: larger errors count linearly (gaussian)."""
    expectile: float | None = None
    """τ in (0, 1): predict this expectile (gaussian)."""
    quantile: float | None = None
    """τ in (0, 1): predict this quantile (laplace)."""


def documented(cls: type[T]) -> type[T]:
    """The dataclass with its fields, defaults and their docstrings listed in its own docstring.

    Example:
        >>> from pgce.recipes import RegressionRules, documented
        >>> print(documented(RegressionRules).__doc__)
        What a real-valued target means, and which weight each error gets.
        ...
            quantile: τ in (0, 1): predict this quantile (laplace). Default: None.
    """
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, SyntaxError):  # no source at hand
            return cls
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in pairwise(statements):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                texts[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(text.value)).split())
    fields = [
        f"    {field.name}: {texts.get(field.name, '')} Default: {field.default!r}."
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    ]
    head, example, tail = inspect.cleandoc(cls.__doc__ or "").partition("Example:")
    cls.__doc__ = "\n".join([head.rstrip(), "", "Args:", *fields, "", example + tail]).rstrip()
    return cls

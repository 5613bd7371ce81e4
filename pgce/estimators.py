"""Classifier and Regressor: the rules of the library behind the interface of scikit-learn."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from pgce import dashboards, heads, metrics, samplers, targets, weights
from pgce.checkpoint import check_like
from pgce.choices import Activation, OptimizerName, Schedule, check_types
from pgce.data import ordered
from pgce.fitting import Augment, History, evaluate, fit, predict_proba
from pgce.logger import Logger
from pgce.networks import Scaled, mlp
from pgce.optimizer import SETTINGS, Optimizer, resolve_device
from pgce.recipes import ClassificationRules, ClassWeight, RegressionRules, Training, documented
from pgce.trainer import Batch, Report, Rule, TargetRule, Term

__all__ = ["Classifier", "Regressor"]

Array = NDArray[Any]
After = Callable[[dict[str, float], Report], bool | None]
Method = TypeVar("Method", bound=Callable[..., Any])


def _kept(method: Method) -> Method:
    """The same, but that a call which is refused, before the first step, leaves the estimator as it was."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(self))
        try:
            return method(self, *args, **kwargs)
        except (TypeError, ValueError):
            stack: Any = getattr(self, "_stack", None)
            if stack is before.get("_stack") or stack.steps == 0:
                vars(self).clear()
                vars(self).update(before)
            raise

    return cast("Method", call)


@dataclass(kw_only=True, eq=False, repr=False)
class _Estimator(Training, BaseEstimator):  # type: ignore[misc]  # scikit-learn publishes no types
    """What a classifier and a regressor share: the network, its training, and its input's validation."""

    _regresses: ClassVar[bool]
    _found: ClassVar[tuple[str, ...]]

    hidden_sizes: Sequence[int] = (100,)
    """Widths of the hidden layers."""
    module: nn.Module | None = None
    """A network of your own, input -> logits (or values); a copy of it is trained."""
    activation: Activation = "relu"
    """After each hidden layer."""
    optimizer: OptimizerName = "adam"
    """Optimizer by name."""
    optimizer_options: Mapping[str, Any] | None = None
    """What torch's optimizer of that name takes, such as weight_decay."""
    learning_rate: float = 3e-3
    """Step size."""
    schedule: Schedule = "constant"
    """How the learning rate falls over the epochs."""
    warmup_steps: int = 0
    """Updates over which the learning rate climbs to its full value."""
    max_grad_norm: float | None = None
    """Limit of the gradient's Euclidean norm."""
    monitor: str = "val_loss"
    """What early stopping watches."""
    warm_start: bool = False
    """Let `fit` go on from the weights of the last call."""
    weight: Rule | None = None
    """A further rule (cross_entropy, batch) -> w of your own."""
    device: str = "auto"
    """Where to compute: auto (the first at hand of cuda, mps, cpu), or one of them."""
    random_state: Any = None
    """Seed, or generator of one, of the network, the order of examples and what is held out."""
    log: Any = None
    """Folder to write TensorBoard events into, or a `pgce.logger.Logger`."""
    checkpoints: Any = None
    """Folder to save everything in while training, and to go on from if it holds a checkpoint."""

    def _checked(self, X: Any, *y: Any, reset: bool) -> Any:
        """Inputs, and where they are given targets, as scikit-learn checks them."""
        options: dict[str, Any] = {"dtype": (np.float64, np.float32), "allow_nd": True, "reset": reset}
        if len(y) > 1:
            raise ValueError(f"validation is (inputs, targets), all of one weight: there are {1 + len(y)}")
        if y:
            options |= {"multi_output": True, "y_numeric": self._regresses}
        return validate_data(self, X, *map(_whole, y), **options)

    def _weights(self, sample_weight: Any, X: Array) -> Array | None:
        if sample_weight is None:
            return None
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return ordered(np.require(weight, requirements="W"))

    def _tensor(self, X: Array, *, fresh: bool = False) -> Tensor:
        """Inputs in the network's precision, which is a new one's that of the data, as in scikit-learn."""
        if not fresh and self.module is None and X.shape[1:] != self._shape:
            raise ValueError(f"examples are of one shape, {self._shape} as before: X has {X.shape[1:]}")
        network = self.module if fresh else self.module_
        dtype: torch.dtype | None = torch.float32
        if network is not None:
            dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), dtype)
        elif resolve_device(self.device).type == "cpu" and self.precision == "float32":
            dtype = None  # a lower precision is float32's, which torch leaves out where all is float64
        return _of_array(X, dtype)

    def _train(
        self,
        outputs: int,
        data: dict[str, Tensor],
        terms: dict[str, Term],
        *,
        fresh: bool,
        one_pass: bool = False,
        validation: Any = None,
        scored: Tensor | None = None,
        after: After | None = None,
        **options: Any,
    ) -> None:
        """Train a new network, or the last one further, whose optimizer then goes on too.

        What is held out is scored by `scored`, if that is not the target that is learned.
        """
        if one_pass and self.checkpoints is not None:
            raise ValueError(
                f"partial_fit makes one pass, which has no checkpoints: checkpoints is {self.checkpoints!r}"
            )
        if one_pass and self.schedule != "constant":
            raise ValueError(
                f"partial_fit knows of no last pass: schedule is constant, it is {self.schedule!r}"
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        place = resolve_device(self.device)
        if fresh:
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                self.module_ = self._built(data["input"], outputs)
            self.history_ = History()
        self._check_made()
        self.module_.to(place)
        settings = {name: getattr(self, name) for name in SETTINGS} | dict(self.optimizer_options or {})
        if fresh or getattr(self, "_made_with", None) != (self.optimizer, settings):
            before = None if fresh else getattr(self, "_stack", None)  # a loaded estimator has none
            stack = Optimizer(self._trained().parameters(), self.optimizer, **settings)
            if before is not None:
                stack.load_state_dict(before.state_dict())
            self._stack, self._made_with = stack, (self.optimizer, settings)
        patience = self.patience if self.early_stopping and not one_pass else None
        if patience is not None and validation is None:
            judged = data if scored is None else {**data, "target": scored}
            rows, held_out = self._split(judged, seed)
            validation = {name: column[held_out] for name, column in judged.items()}
            data = {name: column[rows] for name, column in data.items()}
        self.history_ = fit(
            self._trained(),
            data,
            terms=terms,
            validation=validation,
            patience=patience,
            monitor=self.monitor,
            epochs=1 if one_pass else self.epochs,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            optimizer=self._stack,
            compile=self.compile,
            seed=seed + self._stack.steps,  # not the same order and draws in every call
            device=self.device,
            log=self.log,
            checkpoints=self.checkpoints,
            history=self.history_,
            after=after,
            **options,
        )

    def fitted_state(self) -> dict[str, Any]:
        """What `fit` found beside the network's weights, for `pgce.save`."""
        check_is_fitted(self)
        self._check_made()
        dtype = next((p.dtype for p in self.module_.parameters()), torch.float32)
        found = {name: getattr(self, name) for name in self._names if hasattr(self, name)}
        return found | {"_dtype": _name(dtype)}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Become the estimator that `fitted_state` described, with its network's weights."""
        state = dict(state)
        dtype = getattr(torch, state.pop("_dtype"))
        for name, value in state.items():
            if name not in self._names:
                raise KeyError(name)
            setattr(self, name, value)
        self.module_ = self._built(torch.zeros(1, *self._shape, dtype=dtype), self._outputs)
        check_like("the saved network", tensors, self.module_.state_dict())
        self.module_.load_state_dict(tensors)
        self.module_.to(resolve_device(self.device))
        self.history_ = History()

    def _goes_on(self) -> bool:
        """Whether `fit` begins with the weights of the last call."""
        return bool(self.warm_start) and hasattr(self, "module_")

    @property
    def _names(self) -> tuple[str, ...]:
        """What `fit` may find, beside the network."""
        return ("n_features_in_", "feature_names_in_", *self._found, "_shape", "_outputs")

    def _built(self, inputs: Tensor, outputs: int) -> nn.Module:
        """The network for such inputs."""
        self._shape, self._outputs = tuple(inputs.shape[1:]), outputs
        self._made_by = self._makes()
        if self.module is not None:
            return copy.deepcopy(self.module)
        network = mlp(math.prod(self._shape), outputs, self.hidden_sizes, self.activation).to(inputs.dtype)
        return network if inputs.ndim == 2 else nn.Sequential(nn.Flatten(), network)

    def _makes(self) -> dict[str, Any]:
        """The settings by which a network is made, and what its outputs mean."""
        sizes = tuple(self.hidden_sizes)
        return {"hidden_sizes": sizes, "activation": self.activation, "module": self.module}

    def _check_made(self) -> None:
        """Refuse settings of another network than there is."""
        for name, value in self._makes().items():
            if value != self._made_by[name]:
                raise ValueError(
                    f"the network that there is was made by {name} {self._made_by[name]!r}: {name} is "
                    f"{value!r} (fit without warm_start makes a new one)"
                )

    def _trained(self) -> nn.Module:
        """The part of the network that is trained."""
        return self.module_

    def _split(self, data: dict[str, Tensor], seed: int) -> tuple[Tensor, Tensor]:
        """Rows to learn from, and rows held out for early stopping; of classes in equal shares."""
        y = data["target"]
        if not 0 < self.validation_fraction < 1 or len(y) < 2:
            raise ValueError(
                "early stopping holds a share of two examples or more out: validation_fraction is "
                f"{self.validation_fraction}, there are {len(y)}"
            )
        label = y.cpu().numpy() if y.ndim == 1 and not y.is_floating_point() else None
        if label is not None:
            number = np.unique(label, return_counts=True)[1]
            out = math.ceil(float(self.validation_fraction) * len(y))
            if number.min() < 2 or min(out, len(y) - out) < len(number):  # no room for every class
                label = None
        rows, held_out = train_test_split(
            np.arange(len(y)), test_size=float(self.validation_fraction), stratify=label, random_state=seed
        )
        return torch.as_tensor(rows), torch.as_tensor(held_out)


@documented
@dataclass(kw_only=True, eq=False, repr=False)
class Classifier(ClassifierMixin, ClassificationRules, _Estimator):  # type: ignore[misc]
    """A scikit-learn classifier: every rule for targets and weights, alone or together.

    A target that is not one label is a matrix: of integers or booleans, zeros and ones of several labels a
    row; floating, a distribution over the classes in each row. The rules compose as `pgce.targets` and
    `pgce.weights` say; the loss of a soft target is the expected loss of a label drawn from it, class weights
    included. Sample and class weights are scaled to mean 1 in `fit` (only their ratios count, though a weight
    is so many examples where effective numbers are asked for), and rows of weight 0 are left out. The network
    computes in the precision of X on a CPU: pass float32 for speed (by a lower `precision` it is float32).

    Attributes:
        classes_: the labels, (K,).
        module_: the trained network, X -> logits (B, K).
        history_: a `pgce.History`.
        n_features_in_: D.

    Example:
        >>> import pgce
        >>> from sklearn.datasets import load_wine
        >>> from sklearn.model_selection import cross_val_score
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> X, y = load_wine(return_X_y=True)
        >>> classifier = pgce.Classifier(class_weight="balanced", label_smoothing=0.1, random_state=0)
        >>> bool(cross_val_score(make_pipeline(StandardScaler(), classifier), X, y).mean() > 0.95)
        True
    """

    class_weight: ClassWeight | Mapping[Any, float] | None = None  # type: ignore[assignment]
    """Weights of the classes: "balanced" (inverse frequency), "effective_number", or a number a label."""
    noise: Any = None
    """Share of the training labels that are drawn at random among all classes, or the matrix T (K, K) with
    the distribution of the label given in each true class's row; for `correction`."""
    pos_weight: Any = None
    """Weight of the labels that are 1, or one a label; of several labels a row."""
    teacher: Any = None
    """A trained classifier whose probabilities are learned beside the labels (distillation); in a
    `sklearn.frozen.FrozenEstimator` it stays trained where this one is cloned, as in cross-validation."""

    _regresses = False
    _found = ("classes_", "multilabel_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @_kept
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation: tuple[Any, Any] | None = None,
        after: After | None = None,
    ) -> Classifier:
        """Train on inputs X (B, D) with labels y (B,), several labels (B, L), or distributions (B, K).

        Args:
            X: inputs; (B, ...) with a module of one's own.
            y: labels of any type; a matrix of integers 0 and 1; or a floating one whose rows sum to 1.
            sample_weight: (B,), not negative.
            validation: inputs and labels held out, evaluated after every epoch.
            after: called after every epoch with its row of the history and its last report; True ends
                training.

        Returns:
            The classifier itself.

        Raises:
            ValueError: bad values, or rules that exclude each other.
        """
        goes_on, given = self._goes_on(), X
        X, y = self._checked(X, y, reset=not goes_on)
        weight = self._weights(sample_weight, X)
        target = self._labels(y, known=goes_on)
        if validation is not None:
            held_out, labels = self._checked(*validation, reset=False)
            validation = (held_out, self._labels(labels, known=True))
        return self._learn(
            X, target, weight, given=given, fresh=not goes_on, validation=validation, after=after
        )

    @_kept
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Classifier:
        """One pass over this data, from the weights and the optimizer's state of the last call.

        Args:
            X: inputs (B, D).
            y: as `fit` takes it.
            classes: all labels there will ever be; needed at the first call, and the same in others.
            sample_weight: (B,), not negative; taken as it is.

        Returns:
            The classifier itself.

        Raises:
            ValueError: bad values, a label that is not one of `classes`, or a rule that needs all data.
        """
        first = not hasattr(self, "module_")
        if first and classes is None and np.ndim(y) == 1:
            raise ValueError("the first call of partial_fit needs all labels: classes is None")
        if isinstance(self.class_weight, str) or self.logit_adjustment:
            raise ValueError(
                "class frequencies need all data at once: partial_fit takes class_weight as a number a label "
                f"and no logit_adjustment; they are {self.class_weight!r} and {self.logit_adjustment}"
            )
        given = X
        X, y = self._checked(X, y, reset=first)
        weight = self._weights(sample_weight, X)
        target = self._labels(y, known=not first, classes=classes)
        return self._learn(X, target, weight, given=given, fresh=first, one_pass=True)

    def predict(self, X: Any) -> Array:
        """The most probable label of each row, (B,); zeros and ones (B, L) of several labels."""
        p = self.predict_proba(X)
        if self.multilabel_:
            return np.asarray(p > 0.5, dtype=np.int64)
        return np.asarray(self.classes_[p.argmax(1)])

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class, (B, K); of each label to be 1, (B, L), of several labels."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        return np.asarray(predict_proba(self.module_, self._tensor(X), head=self.head_).numpy())

    def evaluate(self, X: Any, y: Any) -> dict[str, float]:
        """The mean cross-entropy "loss" in nats, and what `pgce.metrics` knows of such targets.

        It is the loss of the probabilities that are predicted. "val_loss" in the history is that of what is
        trained: with `logit_adjustment`, and by forward correction of `noise`, they are others.

        Args:
            X: inputs (B, D).
            y: as `fit` takes it; of distributions only the loss is told.
        """
        batch = self._held_out(X, y)
        measure: Any = metrics.multilabel if self.multilabel_ else metrics.classification
        if batch["target"].is_floating_point():
            measure = None
        return evaluate(self.module_, batch, head=self.head_, metrics=measure)

    def dashboard(
        self,
        logger: Logger,
        step: int,
        X: Any,
        y: Any,
        class_names: Sequence[str] | None = None,
        image_shape: tuple[int, ...] | None = None,
    ) -> None:
        """Write what predictions look like: see `pgce.dashboards.classifier`.

        Args:
            logger: to write with.
            step: the x-axis.
            X: inputs (B, D), held out.
            y: labels (B,), or several (B, L).
            class_names: None is `classes_`.
            image_shape: of an input that is an image.
        """
        names = list(map(str, self.classes_)) if class_names is None else class_names
        dashboards.classifier(
            logger,
            step,
            self.module_,
            self._held_out(X, y),
            self.head_,
            class_names=names,
            image_shape=image_shape,
        )

    def _held_out(self, X: Any, y: Any) -> Batch:
        check_is_fitted(self)
        X, y = self._checked(X, y, reset=False)
        return Batch(self._tensor(X), {"target": self._labels(y, known=True)})

    @property
    def head_(self) -> heads.Head:
        """What the network's output means."""
        return heads.Bernoulli() if self.multilabel_ else heads.Categorical()

    def _labels(self, y: Any, *, known: bool, classes: Any = None) -> Tensor:
        """Class ids (B,), zeros and ones (B, L), or distributions (B, K); sets `classes_` unless known."""
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        multilabel = y.ndim == 2 and y.dtype.kind in "biu"
        if y.ndim == 2:
            _check_matrix(y)
            found = np.arange(y.shape[1])
        else:
            check_classification_targets(y)
            found = np.unique(y)
        if not known:
            self.classes_ = found if classes is None else np.unique(classes)
            self.multilabel_ = multilabel
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(
                f"classes are as before, {self.classes_.tolist()}: they are {np.unique(classes).tolist()}"
            )
        if multilabel != self.multilabel_ or (y.ndim == 2 and len(found) != len(self.classes_)):
            raise ValueError(
                f"y is as before, {len(self.classes_)} {'labels a row' if self.multilabel_ else 'classes'}"
                f": it has shape {y.shape} and dtype {y.dtype}"
            )
        if y.ndim == 2:
            return _of_array(y)
        unknown = np.setdiff1d(found, self.classes_)
        if len(unknown):
            raise ValueError(
                f"every label is one of the classes {self.classes_.tolist()}: y holds {unknown.tolist()}"
            )
        if len(self.classes_) < 2:
            raise ValueError(f"a classifier needs two classes or more: y holds one class, {found.tolist()}")
        return torch.as_tensor(np.searchsorted(self.classes_, y))

    def _learn(
        self,
        X: Array,
        target: Tensor,
        sample_weight: Array | None,
        *,
        given: Any,
        fresh: bool,
        one_pass: bool = False,
        validation: Any = None,
        **options: Any,
    ) -> Classifier:
        """Turn the settings into columns and rules, and train; a teacher is asked of inputs as `given`."""
        check_types(vars(self), type(self))
        self._check_rules(ids=target.ndim == 1, weighted=sample_weight is not None)
        inputs = self._tensor(X, fresh=fresh)
        if fresh and self.module is not None:
            self._check_module(inputs)
        share = inputs.new_ones(len(inputs)) if sample_weight is None else torch.as_tensor(sample_weight)
        counts = _positive(share)
        data = {"input": inputs, "target": target}
        if self.teacher is not None:
            data["teacher"] = self._teaching(given, inputs)
        data = {name: column[counts] for name, column in data.items()}
        inputs, target, share = data["input"], data["target"], share[counts]
        if target.ndim == 2:
            target = target.to(inputs.dtype)
        if validation is not None:
            held_out, labels = validation
            labels = labels.to(inputs.dtype) if labels.ndim == 2 else labels
            validation = (_of_array(held_out, inputs.dtype), labels)
        likely = target  # what an example of each class counts by
        if self.confidence is not None:
            likely = targets.confidence(target, len(self.classes_), self.confidence, inputs.dtype)
        number = None if self.multilabel_ else _numbers(likely, share, len(self.classes_))
        class_weight = None if number is None else self._class_weights(number)
        if not one_pass:  # only the ratios of weights count
            share = share / share.mean()
            if class_weight is not None:
                total = share * weights.per_class(share, {"target": likely}, class_weight=class_weight)
                class_weight = class_weight / total.mean()
        if class_weight is not None and class_weight.max() > torch.finfo(inputs.dtype).max:
            raise ValueError(
                f"class weights lie in the network's precision, {_name(inputs.dtype)}: they are "
                f"{class_weight.tolist()} (X may be float64)"
            )
        share = share.to(inputs.dtype)
        data |= {"target": target, "sample_weight": share}
        weighs = sample_weight is not None and self.sampler != "weighted"  # which draws by it
        if self._mix is not None:
            data["target"] = rows = self._rows_to_mix(target, inputs.dtype)
            if weighs:  # a row that is multiplied by its example's weight mixes the weights as well
                data["target"] = rows * share.view(-1, *[1] * (rows.ndim - 1))
                data["sample_weight"] = torch.ones_like(share)
            if class_weight is None and not self.multilabel_:
                class_weight = share.new_ones(len(self.classes_))
        self._train(
            len(self.classes_),
            data,
            self._terms(number, class_weight, weighs=weighs),
            fresh=fresh,
            one_pass=one_pass,
            sampler=_SAMPLERS[self.sampler],
            augment=self._mix,
            validation=validation,
            scored=target,
            **options,
        )
        return self

    def _rows_to_mix(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets as rows (B, K); of several labels a row for each, of what speaks for 1 and for 0."""
        if not self.multilabel_:
            return target if target.ndim == 2 else targets.one_hot(target, len(self.classes_), dtype)
        positive = torch.as_tensor(1.0 if self.pos_weight is None else self.pos_weight).to(target)
        return torch.stack((positive * target, 1 - target), -1)

    def _terms(self, number: Tensor | None, class_weight: Tensor | None, *, weighs: bool) -> dict[str, Term]:
        """The labels' cross-entropy, and beside it that of a teacher's probabilities."""
        terms = {
            "label": Term(
                self._training_head(number),
                self._target_rule(class_weight),
                self._weight_rule(class_weight, weighs=weighs),
                coefficient=1.0 if self.teacher is None else 1 - self.teacher_share,
            )
        }
        if self.teacher is not None:
            temperature = self.temperature
            terms["teacher"] = Term(
                heads.Transformed(partial(heads.tempered, temperature=temperature)),
                lambda z, batch: targets.distilled(batch["teacher"], temperature),
                weights.product("sample_weight") if weighs else weights.one,
                coefficient=self.teacher_share * temperature**2,
            )
        return terms

    def _check_module(self, inputs: Tensor) -> None:
        """Refuse a network of one's own that gives another number of logits than there are classes."""
        network = copy.deepcopy(self.module).eval().cpu()  # type: ignore[union-attr]
        try:
            with torch.no_grad():
                given = network(inputs[:1])
        except RuntimeError:  # which `pgce.fit` tells
            return
        number = len(self.classes_)
        if not isinstance(given, Tensor) or given.shape != (1, number):
            found = f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
            raise ValueError(f"a module gives logits (B, {number}), one a class: of one row it gives {found}")

    def _check_rules(self, *, ids: bool, weighted: bool) -> None:
        """Refuse rules that do not fit the target, or each other; warn of two that correct the same."""
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing lies in [0, 1]: it is {self.label_smoothing}")
        if not 0 <= self.teacher_share <= 1:
            raise ValueError(f"teacher_share lies in [0, 1]: it is {self.teacher_share}")
        if not 0 <= self.logit_adjustment < math.inf:
            raise ValueError(f"logit_adjustment is 0 or more and finite: it is {self.logit_adjustment}")
        if self.pos_weight is not None and not np.all(np.asarray(self.pos_weight) > 0):
            raise ValueError(f"pos_weight is above 0: it is {self.pos_weight!r}")
        labels = len(self.classes_)
        if self.multilabel_ and np.shape(self.pos_weight) not in ((), (1,), (labels,)):
            raise ValueError(
                f"pos_weight is one number, or one for each of {labels} labels: it is {self.pos_weight!r}"
            )
        given = {name for name in _OF_ONE_LABEL if not _is_off(getattr(self, name))}
        several = [name for name in ("asymmetric", "pos_weight") if getattr(self, name) is not None]
        mixing = [name for name in ("mixup", "cutmix") if getattr(self, name)]
        of_ids = sorted(given & {"soft_labels", "confidence", "redraw"})
        if "noise" in given and self.correction == "backward":
            of_ids.append("noise")
        exclusive = [name for name in of_ids if name != "redraw"]
        if self.multilabel_ and given:
            raise ValueError(f"these rules are of one label a row, y has several: {', '.join(sorted(given))}")
        if not self.multilabel_ and several:
            raise ValueError(f"these rules are of several labels a row, y has one: {', '.join(several)}")
        if not ids and of_ids:
            raise ValueError(f"these rules start from labels, y is a matrix: {', '.join(of_ids)}")
        if len(mixing) > 1 or (mixing and (of_ids or self.teacher is not None)) or len(exclusive) > 1:
            others = exclusive if not mixing else of_ids + ["teacher"] * (self.teacher is not None)
            raise ValueError(f"these rules of targets exclude each other: {', '.join(mixing + others)}")
        if self.sampler == "balanced" and (not ids or mixing):
            raise ValueError("balanced sampling needs one label a row: y is a matrix, or mixed")
        if self.sampler == "weighted" and not weighted:
            raise ValueError("weighted sampling needs sample_weight: it is None")
        frequent = {"sampler": self.sampler == "balanced", "class_weight": isinstance(self.class_weight, str)}
        if self.logit_adjustment and any(frequent.values()):
            twice = " and ".join(name for name, corrects in frequent.items() if corrects)
            warnings.warn(
                f"logit_adjustment and {twice} correct class frequencies, which is once too often: leave "
                "one out",
                UserWarning,
                stacklevel=5,
            )

    def _class_weights(self, number: Tensor) -> Tensor | None:
        """The weight of each class, (K,)."""
        if self.class_weight is None:
            return None
        if self.class_weight == "balanced":
            return weights.inverse_frequency(number)
        if self.class_weight == "effective_number":
            return weights.effective_number(number, self.beta)
        if not isinstance(self.class_weight, Mapping):
            raise ValueError(
                'class_weight is "balanced", "effective_number", a number for each label or None: '
                f"it is {self.class_weight!r}"
            )
        unknown = set(self.class_weight) - set(self.classes_.tolist())
        values = [float(self.class_weight.get(label, 1.0)) for label in self.classes_.tolist()]
        if unknown or min(values) <= 0:
            raise ValueError(
                f"class_weight gives labels a positive number each: the labels are {self.classes_.tolist()}, "
                f"it is {dict(self.class_weight)}"
            )
        return number.new_tensor(values)

    def _noise_matrix(self) -> Tensor:
        classes = len(self.classes_)
        if np.ndim(self.noise) == 0:
            return targets.noise_matrix(classes, float(self.noise))
        return targets.checked_noise(torch.as_tensor(np.asarray(self.noise), dtype=torch.float32))

    def _training_head(self, number: Tensor | None) -> heads.Head:
        """What the logits mean while training."""
        if number is None:
            return heads.Bernoulli()
        head: heads.Head = heads.Categorical()
        if self.noise is not None and self.correction == "forward":
            noise = self._noise_matrix()
            zeros = bool((noise == 0).any())
            head = heads.Transformed(partial(heads.noisy, noise=noise, zeros=zeros), head)
        if self.logit_adjustment:
            prior = number / number.sum()
            head = heads.Transformed(
                partial(heads.logit_adjusted, prior=prior, tau=self.logit_adjustment), head
            )
        return head

    def _target_rule(self, class_weight: Tensor | None) -> str | TargetRule:
        """The rule for y, from class ids (B,) or rows (B, K)."""
        backward = self.noise is not None and self.correction == "backward"
        changes = (
            self.redraw
            or self.label_smoothing
            or self.soft_labels is not None
            or self.confidence is not None
            or backward
            or class_weight is not None  # reweighted, where the target is a row
            or self._mix is not None
        )
        if not changes:
            return "target"
        return partial(
            _target,
            redraw=self.redraw,
            soft_labels=self.soft_labels,
            confidence=self.confidence,
            noise=self._noise_matrix() if backward else None,
            class_weight=class_weight,
            label_smoothing=self.label_smoothing,
            multilabel=self.multilabel_,
            mixes=self._mix is not None,
        )

    @property
    def _mix(self) -> Augment | None:
        """What mixes inputs and targets, if something does."""
        if self.mixup:
            return partial(targets.mixup, alpha=self.mixup)
        return partial(targets.cutmix, alpha=self.cutmix) if self.cutmix else None

    def _weight_rule(self, class_weight: Tensor | None, *, weighs: bool) -> Rule:
        """The product of all rules for w."""
        rules: list[str | Rule] = ["sample_weight"] if weighs else []
        if class_weight is not None:
            rules.append(partial(weights.per_class, class_weight=class_weight))
        if self.focal_gamma:
            rules.append(partial(weights.focal, gamma=self.focal_gamma))
        if self.gce_q is not None:
            rules.append(partial(weights.gce, q=self.gce_q))
        if self.symmetric is not None:
            alpha, beta = self.symmetric
            rules.append(partial(weights.symmetric, alpha=alpha, beta=beta))
        if self.poly1_epsilon is not None:
            rules.append(partial(weights.poly1, epsilon=self.poly1_epsilon))
        if self.asymmetric is not None:
            plus, minus, clip = self.asymmetric
            rules.append(partial(weights.asymmetric, gamma_positive=plus, gamma_negative=minus, clip=clip))
        if self.multilabel_ and self._mix is not None:
            rules.append(_speaks)
        elif self.pos_weight is not None:
            rules.append(partial(weights.positive, pos_weight=torch.as_tensor(self.pos_weight)))
        if self.weight is not None:
            rules.append(self.weight)
        return weights.product(*rules) if rules else weights.one

    def _teaching(self, X: Any, inputs: Tensor) -> Tensor:
        """The teacher's logits (B, K), up to a constant a row, in the order of the classes."""
        untrained = (
            "a teacher is a trained classifier: it is %(name)s(), not trained (clones of an estimator, as "
            "cross-validation makes them, have one that is trained if it is sklearn.frozen.FrozenEstimator's)"
        )
        check_is_fitted(self.teacher, msg=untrained)
        if not hasattr(self.teacher, "classes_"):
            raise ValueError(f"a teacher is a classifier: it is {type(self.teacher).__name__}()")
        classes = np.asarray(self.teacher.classes_)
        if not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"teacher and classifier have the same classes: the teacher's are {classes.tolist()}, "
                f"the labels {self.classes_.tolist()}"
            )
        p = torch.as_tensor(self.teacher.predict_proba(X), dtype=inputs.dtype)
        return p.clamp(min=torch.finfo(inputs.dtype).tiny).log()


@documented
@dataclass(kw_only=True, eq=False, repr=False)
class Regressor(RegressorMixin, RegressionRules, _Estimator):  # type: ignore[misc]
    """A scikit-learn regressor: what noise the target has is the head, which errors matter is the weight.

    The network learns the target in units of its standard deviation around its mean, and so is the loss
    reported; predictions are in the target's own unit. Sample weights are scaled to mean 1 in `fit`.

    Attributes:
        module_: the trained network, X -> values (B, D), for counts log λ.
        history_: a `pgce.History`.
        n_features_in_: features of an input.

    Example:
        >>> import pgce
        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.model_selection import train_test_split
        >>> X, y = load_diabetes(return_X_y=True)
        >>> X, X_test, y, y_test = train_test_split(X, y, random_state=0)
        >>> median = pgce.Regressor(hidden_sizes=(), quantile=0.5, epochs=200, random_state=0).fit(X, y)
        >>> bool(abs((y_test < median.predict(X_test)).mean() - 0.5) < 0.1)
        True
    """

    _regresses = True
    _found = ("_flat", "_shift", "_unit")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @_kept
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        validation: tuple[Any, Any] | None = None,
        after: After | None = None,
    ) -> Regressor:
        """Train on inputs X (B, ...) with targets y (B,) or (B, D).

        Args:
            X: inputs.
            y: targets; for poisson not negative.
            sample_weight: (B,), not negative.
            validation: inputs and targets held out, evaluated after every epoch.
            after: called after every epoch with its row of the history and its last report; True ends
                training.

        Returns:
            The regressor itself.

        Raises:
            ValueError: bad values, or rules that exclude each other.
        """
        goes_on = self._goes_on()
        X, y = self._checked(X, y, reset=not goes_on)
        if validation is not None:
            validation = self._checked(*validation, reset=False)
        return self._learn(X, y, sample_weight, fresh=not goes_on, validation=validation, after=after)

    @_kept
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Regressor:
        """One pass over this data, from the weights and the optimizer's state of the last call.

        The first call's targets set the unit.

        Args:
            X: inputs (B, ...).
            y: as `fit` takes it.
            sample_weight: (B,), not negative; taken as it is.

        Returns:
            The regressor itself.

        Raises:
            ValueError: bad values.
        """
        first = not hasattr(self, "module_")
        X, y = self._checked(X, y, reset=first)
        return self._learn(X, y, sample_weight, fresh=first, one_pass=True)

    def predict(self, X: Any) -> Array:
        """The expected value, or the quantile or expectile asked for, in the shape y had."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        values = predict_proba(self._trained(), self._tensor(X), head=self.head_)
        if self.head_ != heads.Poisson():  # in float64, since float32 has no room for a large mean's digits
            values = self._shift + self._unit * values.double()
        return np.asarray(values[:, 0] if self._flat else values)

    def evaluate(self, X: Any, y: Any) -> dict[str, float]:
        """The mean cross-entropy "loss" in nats, and "mse", "mae" and "r2" in the target's own unit.

        With `quantile`, `expectile` or `huber_delta` the loss is theirs, whose best prediction is another.

        Args:
            X: inputs (B, ...).
            y: targets (B,) or (B, D).
        """
        predicted = torch.as_tensor(self.predict(X))
        X, y = self._checked(X, y, reset=False)
        rows = _rows(y)
        scores = metrics.regression(rows.view(y.shape), predicted)
        inputs = self._tensor(X)
        scaled = self._in_units(rows).to(inputs.dtype)
        own = evaluate(self._trained(), (inputs, scaled), head=self.head_, metrics=self._own_loss)
        return {**own, **scores}

    @property
    def head_(self) -> heads.Head:
        """What the network's output means."""
        if self.quantile is not None or self.distribution == "laplace":
            return heads.Laplace()
        return heads.Poisson() if self.distribution == "poisson" else heads.Gaussian()

    def _learn(
        self,
        X: Array,
        y: Array,
        sample_weight: Any,
        *,
        fresh: bool,
        one_pass: bool = False,
        validation: Any = None,
        **options: Any,
    ) -> Regressor:
        check_types(vars(self), type(self))
        if self.head_ == heads.Poisson() and y.min() < 0:
            raise ValueError(f"counts are 0 or more: y holds {y.min():g}")
        weight = self._weights(sample_weight, X)
        inputs, target = self._tensor(X, fresh=fresh), _rows(y)
        share = torch.ones(len(target)).double() if weight is None else torch.as_tensor(weight)
        counts = _positive(share)
        inputs, target, share = inputs[counts], target[counts], share[counts]
        if (largest := target.abs().max()) > torch.finfo(inputs.dtype).max:
            raise ValueError(
                f"targets lie in the network's precision, {_name(inputs.dtype)}: y holds {largest:g} "
                "(X may be float64)"
            )
        if fresh:
            self._flat = y.ndim == 1
            self._set_unit(target, share)
        data = {
            "input": inputs,
            "target": self._in_units(target).to(inputs.dtype),
            "sample_weight": (share if one_pass else share / share.mean()).to(inputs.dtype),
        }
        if validation is not None:
            held_out = _of_array(validation[0], inputs.dtype)
            validation = held_out, self._in_units(_rows(validation[1])).to(inputs.dtype)

        rule = self._weight_rule(weighs=weight is not None)
        terms = {"label": Term(self.head_, weight=rule)}
        self._train(
            target.shape[1],
            data,
            terms,
            fresh=fresh,
            one_pass=one_pass,
            validation=validation,
            metrics=self._own_loss,
            **options,
        )
        return self

    def _own_loss(self, target: Tensor, predicted: Tensor) -> dict[str, float]:
        """The "loss" of held-out targets, by which early stopping finds what the rule asks for."""
        error = target - predicted
        if self.quantile is not None:
            each = torch.where(error < 0, self.quantile - 1, self.quantile) * error
        elif self.expectile is not None:
            each = torch.where(error < 0, 1 - self.expectile, self.expectile) * error.square()
        elif self.huber_delta is not None:
            small = error.abs().minimum((self.huber_delta / self._unit).to(error))
            each = small * (error.abs() - 0.5 * small)
        else:
            return {}  # the cross-entropy
        return {"loss": each.mean().item()}

    def _built(self, inputs: Tensor, outputs: int) -> nn.Module:
        shift, unit = (torch.as_tensor(values).to(inputs.dtype) for values in (self._shift, self._unit))
        return Scaled(super()._built(inputs, outputs), shift, unit)

    def _set_unit(self, target: Tensor, share: Tensor) -> None:
        """What 0 and 1 stand for: mean and standard deviation; of counts the logarithm of the mean."""
        part = (share / share.sum()).unsqueeze(1)
        mean = (part * target).sum(0)
        if self.head_ == heads.Poisson():
            self._shift, self._unit = mean.clamp(min=1e-6).log(), torch.ones_like(mean)
        else:
            error = target - mean
            largest = error.abs().amax(0)  # in which no square overflows, nor vanishes
            spread = largest * (part * (error / largest).square()).sum(0).sqrt()
            self._shift, self._unit = mean, torch.where(largest > 0, spread, 1.0)

    def _makes(self) -> dict[str, Any]:
        counts = self.head_ == heads.Poisson()
        return {**super()._makes(), "distribution": "poisson" if counts else "of real values"}

    def _in_units(self, target: Tensor) -> Tensor:
        if target.shape[1] != len(self._shift):
            raise ValueError(f"y has {len(self._shift)} columns as before: it has {target.shape[1]}")
        return target if self.head_ == heads.Poisson() else (target - self._shift) / self._unit

    def _trained(self) -> nn.Module:
        # Counts are scored in their own unit, all else in units of the standard deviation.
        return self.module_ if self.head_ == heads.Poisson() else self.module_.get_submodule("network")

    def _weight_rule(self, *, weighs: bool) -> Rule:
        """The product of all rules for w."""
        kind = "laplace" if self.quantile is not None else self.distribution
        for name in ("huber_delta", "expectile"):
            if getattr(self, name) is not None and kind != "gaussian":
                raise ValueError(f"{name} needs gaussian noise: the distribution is {kind}")
        if self.quantile is not None and self.distribution == "poisson":
            raise ValueError("quantile needs laplace noise: the distribution is poisson")
        rules: list[str | Rule] = ["sample_weight"] if weighs else []
        if self.huber_delta is not None:
            rules.append(partial(weights.huber, delta=self.huber_delta / self._unit))
        if self.expectile is not None:
            rules.append(partial(weights.expectile, tau=self.expectile))
        if self.quantile is not None:
            rules.append(partial(weights.pinball, tau=self.quantile))
        if self.weight is not None:
            rules.append(self.weight)
        return weights.product(*rules) if rules else weights.one


_SAMPLERS = {None: samplers.shuffled, "balanced": samplers.balanced, "weighted": samplers.weighted}
_OF_ONE_LABEL = "soft_labels", "confidence", "redraw", "noise", "logit_adjustment", "class_weight", "teacher"


def _is_off(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and value == 0)


def _whole(y: Any) -> Any:
    """Pandas' whole numbers or booleans, of a table as integers; scikit-learn takes "Int64" as floating."""
    own = getattr(getattr(y, "dtype", None), "numpy_dtype", None)  # of a column that may miss values
    if own is not None and own.kind in "biu":
        return y if y.isna().any() else y.to_numpy(own)
    table = getattr(y, "ndim", 0) == 2 and hasattr(y, "dtypes")
    if table and all(getattr(kind, "kind", "") in ("b", "i", "u") for kind in y.dtypes):
        return y if y.isna().any(axis=None) else y.to_numpy(np.int64)
    return y


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _of_array(array: Array, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of memory that may be written, of which torch warns where it may not (a DataFrame's)."""
    return torch.as_tensor(ordered(np.require(array, requirements="W")), dtype=dtype)


def _rows(y: Array) -> Tensor:
    """Real targets (B,) or (B, D) as rows (B, D)."""
    return _of_array(np.asarray(y, np.float64).reshape(len(y), -1))


def _positive(share: Tensor) -> Tensor | slice:
    """Which examples have a positive weight, (B,); all of them without a copy."""
    counts = share > 0
    if not bool(counts.any()):
        raise ValueError("an example with a positive weight is needed: every sample_weight is 0")
    return slice(None) if bool(counts.all()) else counts


def _target(
    logits: Tensor,
    batch: Batch,
    *,
    redraw: float,
    soft_labels: tuple[float, float] | None,
    confidence: float | None,
    noise: Tensor | None,
    class_weight: Tensor | None,
    label_smoothing: float,
    multilabel: bool,
    mixes: bool,
) -> Tensor:
    """y by the rules of a classifier, of which each follows on those before it."""
    y, classes = batch["target"], logits.shape[-1]
    dtype = torch.promote_types(logits.dtype, torch.float32)  # a lower precision is that of products alone
    if multilabel:
        y = y[..., 0] / y.sum(-1) if mixes else y
        half = torch.full_like(logits, 0.5, dtype=dtype)
        return torch.lerp(y.to(dtype), half, label_smoothing)
    if redraw:
        y = targets.draw(y.cpu(), targets.noise_matrix(classes, redraw)).to(y.device)
    label = y
    if soft_labels is not None:
        y = targets.soften(y, classes, *soft_labels, dtype=dtype)
    elif confidence is not None:
        y = targets.confidence(y, classes, confidence, dtype)
    elif noise is not None:
        y = targets.denoised(y, noise.to(logits.device, dtype))
    if class_weight is not None and y is not label and soft_labels is None:
        v = class_weight.to(logits.device, dtype)  # of the classes that the label stands for; w has its own
        y = y * v / v[label].unsqueeze(-1)
    elif label.is_floating_point() and class_weight is not None:
        y = targets.reweighted(y, class_weight)
    if label_smoothing:
        rows = y if y.is_floating_point() else targets.one_hot(y, classes, dtype)
        y = targets.smooth(rows, label_smoothing)
    return y


def _speaks(cross_entropy: Tensor, batch: Batch) -> Tensor:
    """The rule w = all that speaks for 1 and for 0, of labels (B, L, 2) that are mixed with their weights."""
    return batch["target"].sum(-1)


def _numbers(target: Tensor, share: Tensor, classes: int) -> Tensor:
    """How many examples each class has, by weight, (K,)."""
    if target.ndim == 2:
        return share @ target.to(share)
    return torch.bincount(target, share, minlength=classes).to(share.dtype)


def _check_matrix(y: Array) -> None:
    """Refuse a matrix that holds neither several labels a row nor distributions."""
    if y.dtype.kind in "biu":
        if not np.isin(y, (0, 1)).all():
            raise ValueError(f"several labels a row are zeros and ones: y spans {y.min()} to {y.max()}")
    elif y.dtype.kind != "f":
        raise ValueError(f"a matrix y holds zeros and ones, or probabilities: it has dtype {y.dtype}")
    elif (y < 0).any() or abs(y.sum(1) - 1).max() > 1e-4:
        raise ValueError(
            "a floating matrix y holds a distribution over the classes in each row (of several labels a row "
            f"it is of integers): its smallest value is {y.min():g}, rows sum to {y.sum(1).min():g} to "
            f"{y.sum(1).max():g}"
        )

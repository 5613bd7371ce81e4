"""Estimators on disk: settings as JSON, the network as safetensors, no pickle."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pgce import processes, weights
from pgce.checkpoint import CheckpointError, load_files, save_files, tensors_from_bytes, tensors_to_bytes
from pgce.trained import TrainedAgent

if TYPE_CHECKING:
    from pgce.estimators import Classifier, Regressor
    from pgce.policy_gradient import Agent

__all__ = ["load", "save"]

_MODEL, _SETTINGS = "model.safetensors", "estimator.json"
_OF_TRAINING = "log", "checkpoints", "teacher"


def save(estimator: Classifier | Regressor, folder: str | Path) -> Path:
    """Write a trained estimator into a folder, as estimator.json, model.safetensors and their manifest.json.

    A network of one's own is given again at loading. Log, checkpoints and teacher, which only training reads,
    are left out; and, with a warning, other settings that JSON cannot hold, such as a rule of one's own.

    Args:
        estimator: trained.
        folder: made if it is not there.

    Returns:
        The folder.

    Raises:
        NotFittedError: the estimator is not trained.
        TypeError: it is no estimator of pgce.

    Example:
        >>> import tempfile, pgce
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> classifier = pgce.Classifier(epochs=2, random_state=0).fit(X, y)
        >>> folder = pgce.save(classifier, tempfile.mkdtemp())
        >>> bool((pgce.load(folder).predict(X) == classifier.predict(X)).all())
        True
    """
    name = type(estimator).__name__
    if _classes().get(name) is not type(estimator):
        raise TypeError(f"what is saved is a pgce.Classifier or pgce.Regressor: it is {name}")
    fitted = estimator.fitted_state()
    parameters: dict[str, Any] = {}
    left_out = []
    for key, value in estimator.get_params(deep=False).items():
        try:
            parameters[key] = None if key in _OF_TRAINING else _to_json(value)
        except TypeError:
            parameters[key] = None
            if key != "module":
                left_out.append(key)
    if left_out:
        warnings.warn(
            f"settings that JSON cannot hold are left out, {', '.join(left_out)}: the loaded {name} predicts "
            "the same, and has None there",
            UserWarning,
            stacklevel=2,
        )
    content = {
        "pgce": name,
        "parameters": parameters,
        "own_module": estimator.module is not None,
        "fitted": _to_json(fitted),
    }
    path = Path(folder)
    if processes.rank() > 0:  # the first writes
        return path
    path.mkdir(parents=True, exist_ok=True)
    settings = (json.dumps(content, indent=2) + "\n").encode()
    save_files(path, {_SETTINGS: settings, _MODEL: tensors_to_bytes(estimator.module_.state_dict())})
    return path


def load(
    folder: str | Path,
    *,
    module: nn.Module | None = None,
    agent: type[Agent] | None = None,
    allow_import: bool = False,
) -> Classifier | Regressor | TrainedAgent:
    """The estimator that `save` wrote, or the agent that a run left.

    Args:
        folder: with estimator.json and model.safetensors, or the run of an agent.
        module: a network like the one that was trained, where that was one's own.
        agent: the class of an agent, where that makes networks of its own.
        allow_import: of an agent's environment, see `TrainedAgent`.

    Raises:
        FileNotFoundError: the folder holds neither.
        ValueError: a network of one's own was trained and is not given; or, as a CheckpointError, a file is
            damaged, or its weights do not fit the network.

    Example:
        See `save`.
    """
    path = Path(folder)
    if (path / "config.json").is_file() and not (path / _SETTINGS).is_file():
        return TrainedAgent(path, agent=agent, allow_import=allow_import)
    files = load_files(path)
    try:
        content, model = json.loads(files[_SETTINGS]), files[_MODEL]
        cls, own_module = _classes()[content["pgce"]], content["own_module"]
        fitted = _from_json(content["fitted"])
        estimator = cls(**{key: _from_json(value) for key, value in content["parameters"].items()})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path / _SETTINGS} is damaged: {error!r}") from error
    if own_module and module is None:
        raise ValueError(f"{path} was trained with a network of its own: give one like it as module=")
    estimator.module = module
    try:
        estimator.restore(fitted, tensors_from_bytes(model, str(path / _MODEL)))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(f"{path / _SETTINGS} is damaged: {error!r}") from error
    return estimator


def _classes() -> dict[str, type[Classifier | Regressor]]:
    """What is saved, by name; imported only here, since agents need no scikit-learn, which takes seconds."""
    from pgce.estimators import Classifier, Regressor

    return {"Classifier": Classifier, "Regressor": Regressor}


def _to_json(value: Any) -> Any:
    """The value in JSON's types; a TypeError where it has none."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        return {"tensor": _to_json(value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray):
        numbers = value.view(np.int64) if value.dtype.kind in "mM" else value  # dates, whose unit dtype tells
        return {"array": _to_json(numbers.tolist()), "dtype": str(value.dtype)}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item) for item in value]}
    if isinstance(value, list):
        return [_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {"mapping": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    function, keywords = getattr(value, "func", value), getattr(value, "keywords", {})
    name = getattr(function, "__name__", "")
    if name in weights.__all__ and getattr(weights, name) is function and not getattr(value, "args", ()):
        return {"rule": name, "keywords": _to_json(keywords)}
    raise TypeError(f"JSON has no {type(value).__name__}")


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return torch.from_numpy(_from_json(value["tensor"]))
    if "array" in value:
        return np.asarray(value["array"], dtype=np.dtype(value["dtype"]))
    if "tuple" in value:
        return tuple(_from_json(item) for item in value["tuple"])
    if "mapping" in value:
        return {_from_json(key): _from_json(item) for key, item in value["mapping"]}
    if value["rule"] not in weights.__all__:
        raise KeyError(value["rule"])
    keywords = _from_json(value["keywords"])
    rule = getattr(weights, value["rule"])
    return partial(rule, **keywords) if keywords else rule

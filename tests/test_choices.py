from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import pgce
from pgce.choices import check_type, check_types
from pgce.optimizer import Optimizer


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (np.int64(3), int),
        (3, float),
        (np.float32(0.5), float),
        (True, bool),
        ("a", Literal["a", "b"]),
        (None, float | None),
        ((), tuple[int, ...]),
        ([1, 2], tuple[int, ...]),
        (np.array([1, 2]), Sequence[int]),
        ((0.5, 1), tuple[float, float]),
        ({"a": "b"}, dict[str, int]),
        (len, Callable[[str], int]),
        (pgce.heads.Gaussian(), pgce.heads.Head | None),
        (object(), Any),
    ],
)
def test_what_an_annotation_says_is_let_through(value: object, hint: Any) -> None:
    check_type("it", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (3.0, int, r"it is a whole number: it is 3\.0"),
        (True, int, "it is a whole number: it is True"),
        (False, float, "it is a number: it is False"),
        (1, bool, "it is True or False: it is 1"),
        (Path("a"), str, "it is a string: it is PosixPath"),
        (np.array(["a"]), Literal["a"], "it is one of a: it is array"),
        ("nan", float | None, "it is a number or None: it is 'nan'"),
        ("12", tuple[int, ...], "it is a sequence, each a whole number: it is '12'"),
        ([1, 2.5], Sequence[int], r"it is a sequence, each a whole number: it is \[1, 2\.5\]"),
        (np.array(1), Sequence[int], r"it is a sequence, each a whole number: it is array\(1\)"),
        ((1.0,), tuple[float, float], r"it is a sequence of 2, each a number: it is \(1\.0,\)"),
        ([("a", 1)], Mapping[str, int], "it is a mapping"),
        (3, Callable[[], int], "it is a function: it is 3"),
        (nn.CrossEntropyLoss(), pgce.heads.Head, r"it is of type Head: it is CrossEntropyLoss\(\)"),
        (pgce.heads.Gaussian, pgce.heads.Head, "it is of type Head: it is <class"),
        ("a" * 100, int, "it is a whole number: it is of type str"),
    ],
)
def test_what_it_does_not_say_is_told(value: object, hint: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        check_type("it", value, hint)


def test_annotations_that_only_a_type_checker_can_read_are_not_looked_at() -> None:
    def of(count: "Unknown") -> None:  # type: ignore[name-defined] # noqa: F821
        ...

    check_types({"count": "three"}, of)


MODEL, DATA = nn.Linear(2, 2), (torch.eye(2), torch.arange(2))
AGENT: dict[str, Any] = {"quiet": True, "total_timesteps": 4_096}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hidden_sizes", {"hidden_sizes": 64}),
        ("learning_rate", {"learning_rate": "1e-3"}),
        ("total_timesteps", {"total_timesteps": 1e5}),
        ("norm_obs", {"norm_obs": "yes"}),
        ("optimizer", {"optimizer": torch.optim.Adam}),
        ("memory", {"memory": "rnn"}),
        ("schedules", {"schedules": "linear"}),
        ("threads", {"threads": 0}),
        ("seed", {"seed": -1}),
    ],
)
def test_settings_of_agents_are_of_their_type(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        pgce.agents.PPO(**{**AGENT, "runs_dir": str(tmp_path), **settings}).train()
    assert not any(tmp_path.iterdir())


def test_numpy_numbers_lists_and_paths_are_settings(tmp_path: Path) -> None:
    settings = {"seed": np.int32(3), "hidden_sizes": [8, 8], "runs_dir": tmp_path, "num_steps": np.int64(64)}
    agent = pgce.agents.PPO(**{**AGENT, **settings})
    assert "--hidden-sizes 8 8 " in agent.command()
    assert agent.train().path.parent == tmp_path


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("epochs", {"epochs": "3"}),
        ("batch_size", {"batch_size": None}),
        ("head", {"head": nn.CrossEntropyLoss()}),
        ("optimizer", {"optimizer": torch.optim.SGD(MODEL.parameters())}),
        ("weight", {"weight": np.ones(2)}),
        ("metrics", {"metrics": "accuracy"}),
        ("the term a", {"terms": {"a": MODEL}}),
        ("data: what a rule gives for targets", {"target": lambda logits, batch: 1}),
    ],
)
def test_settings_of_fit_are_of_their_type(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name} is "):
        pgce.fit(MODEL, DATA, **settings)


@pytest.mark.parametrize("weight", [1.0, np.ones(1)], ids=["float", "ndarray"])
def test_what_a_rule_gives_for_weights_is_a_tensor(weight: Any) -> None:
    with pytest.raises(TypeError, match=f"^weights are a tensor: they are {type(weight).__name__}"):
        pgce.fit(MODEL, DATA, weight=lambda *_: weight)


def test_options_are_those_of_the_optimizer() -> None:
    with pytest.raises(TypeError, match=r"of adam is one of betas, eps.* lr is none .*learning_rate"):
        pgce.fit(MODEL, DATA, lr=1e-3)
    with pytest.raises(TypeError, match=r"of sgd is one of momentum.* betas is none"):
        Optimizer(MODEL.parameters(), "sgd", betas=(0.9, 0.99))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("hidden_sizes", {"hidden_sizes": 100}),
        ("symmetric", {"symmetric": 1.0}),
        ("module", {"module": nn.Linear}),
        ("early stopping", {"early_stopping": True, "validation_fraction": 1.0}),
        ("a teacher", {"teacher": pgce.Classifier()}),
    ],
)
def test_settings_of_estimators_are_of_their_type(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        pgce.Classifier(**settings).fit(np.eye(4), [0, 1, 0, 1])

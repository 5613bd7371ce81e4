"""What `benchmarks/speed.py` compares: programs, each a runner benchmarks/peers/by_*.py and its words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["MEASURED", "PARTS", "Case", "Program", "ahead", "value"]

MEASURED = ("steps", "seconds", "compile_seconds", "process_seconds", "peak_mib", "solved")


@dataclass(frozen=True)
class Program:
    """A runner, its words, the environment that it is run in, and on how many processes by torchrun.

    One without a runner takes turns with the program before it in that one's process, which tells of both.
    """

    name: str
    runner: str
    place: str
    words: str
    ranks: int = 1
    keeps_memory: bool = False  # glibc gives none back to the system, which large tensors may cost much


@dataclass(frozen=True)
class Case:
    """Programs that take turns, of which the first is compared with each other one, by `measures`."""

    title: str
    measures: tuple[str, ...]
    programs: tuple[Program, ...]
    cores: int = 1


def value(measure: str, row: Mapping[str, str]) -> float:
    """A number of a run; infinite seconds where it did not solve what it should."""
    seconds, compiling, process, steps, peak = (
        float(row[name] or 0)
        for name in ("seconds", "compile_seconds", "process_seconds", "steps", "peak_mib")
    )
    match measure:
        case "s to solve":
            return seconds if row["solved"] == "True" else math.inf
        case "s, whole process":
            return process if row["solved"] != "False" else math.inf
        case "s":
            return seconds
        case "µs":
            return 1e6 * seconds
        case "MiB":
            return peak
        case "steps/s":
            return steps / seconds
        case "steps/s once compiled":
            return steps / (seconds - compiling)
    raise ValueError(f"there is no {measure}")


def ahead(measure: str, own: float, other: float) -> float:
    """How many times as good the first number is; not a number where neither solved."""
    if measure.startswith("steps/s"):
        return own / other
    return math.nan if math.isinf(own) and math.isinf(other) else other / own


def _by(name: str, runner: str, place: str = "") -> Callable[[str], Program]:
    return lambda words: Program(name, runner, place or runner, words)


_pgce = _by("pgce", "pgce")
_sb3, _sb3_numpy = _by("SB3", "sb3"), _by("SB3, NumPy environments", "sb3")
_contrib = _by("SB3-Contrib", "sb3")
_skrl, _skrl_numpy = _by("skrl", "skrl"), _by("skrl, NumPy environments", "skrl")
_rejax, _sbx = _by("rejax", "rejax", "jax"), _by("SBX", "sb3", "sbx")
_tianshou, _torchrl = _by("Tianshou", "tianshou"), _by("TorchRL", "torchrl")


def _same(number: int, total: int, program: str = "steps") -> str:
    return f"{program} --num-envs {number} --total {total}"


def _robot(env_id: str) -> Case:
    train = f"robots --env-id {env_id} --total 102400 --vectorization"  # 25 rollouts
    act = f"random --env-id {env_id} --num-envs 64 --seconds 3 --vectorization"
    programs = (
        Program("pgce, 2 processes", "pgce", "pgce", f"{train} sync", ranks=2),
        _by("pgce, sync", "pgce")(f"{train} sync"),
        _by("pgce, async", "pgce")(f"{train} async"),
        _by("SB3, DummyVecEnv", "sb3")(f"{train} sync"),
        _by("SB3, SubprocVecEnv", "sb3")(f"{train} async"),
        _by("random actions, 2 processes", "pgce")(f"{act} sync --processes 2"),
        _by("random actions, sync", "pgce")(f"{act} sync"),
        _by("random actions, async", "pgce")(f"{act} async"),
    )
    return Case(f"{env_id} × 64, PPO, two cores", ("steps/s",), programs, cores=2)


def _environments(env_id: str, number: int) -> Case:
    words = f"random --env-id {env_id} --num-envs {number} --vectorization"
    programs = _pgce(f"{words} auto"), _by("SyncVectorEnv", "pgce")(f"{words} gymnasium")
    return Case(f"{env_id} × {number}, random actions", ("steps/s",), programs)


def _fit(batch: int) -> Case:
    names = {"pgce": "pgce.fit", "hand": "by hand", "skorch": "skorch", "lightning": "Lightning"}
    programs = (_by(name, "fit")(f"{word} --batch {batch}") for word, name in names.items())
    return Case(f"an epoch of 60,000 × 784, batches of {batch:,}", ("s",), tuple(programs))


def _objective(batch: int, classes: int, keeps: bool = False) -> Case:
    words = f"objective --batch {batch} --classes {classes}"
    programs = (
        Program("pgce", "pgce", "pgce", words, keeps_memory=keeps),
        Program("by hand", "", "pgce", ""),
    )
    kept = ", memory kept" if keeps else ""
    return Case(f"loss and gradient, {batch:,} × {classes:,}{kept}", ("µs",), programs)


_SOLVE = ("s to solve", "s, whole process")
_ENVIRONMENTS = (
    "CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1", "FrozenLake-v1",
    "CliffWalking-v1", "Taxi-v4", "Blackjack-v1", "pgce/DigitsBandit-v0", "pgce/Copy-v0", "pgce/Reverse-v0",
    "pgce/Reverse8x10-v0", "pgce/Addition-v0",
)  # fmt: skip
_MANY, _FEW, _ROUND = _same(64, 200_000), _same(512, 81_920), _same(64, 2_048)
_LONG = _same(512, 1_500_000)  # beside what has compiled before, what is paid once hardly counts
PARTS: dict[str, tuple[Case, ...]] = {
    "ppo": (
        Case(
            "CartPole-v1 to 475, PPO",
            _SOLVE,
            tuple(program("ppo") for program in (_pgce, _sb3, _skrl, _rejax, _sbx)),
        ),
    ),
    "reinforce": (
        Case("CartPole-v1 to 475, REINFORCE", _SOLVE, (_pgce("reinforce"), _tianshou("reinforce"))),
    ),
    "steps": (
        Case(
            "PPO, same numbers, 64 × 32 steps",
            ("steps/s",),
            (
                _pgce(_MANY),
                _sb3(_MANY),
                _sb3_numpy(f"{_MANY} --vectorization vector_entry_point"),
                _skrl_numpy(_MANY),
                _tianshou(_MANY),
                _torchrl(_MANY),
            ),
        ),
        Case(
            "PPO, same numbers, 512 × 32, 1.5 M steps",
            ("steps/s", "steps/s once compiled"),
            (_pgce(_LONG), _rejax(_LONG)),
        ),
    ),
    "kinds": (
        Case(
            "PPO of Taxi-v4 with its action mask, 64 × 32 steps",
            ("steps/s",),
            (
                _pgce(f"{_same(64, 81_920)} --env-id Taxi-v4"),
                _contrib(f"{_same(64, 81_920, 'masked')} --env-id Taxi-v4"),
            ),
        ),
        Case(
            "PPO with an LSTM, 64 × 32 steps",
            ("steps/s",),
            (_pgce(f"{_same(64, 40_960)} --memory lstm"), _contrib(_same(64, 40_960, "remembering"))),
        ),
    ),
    "robots": (_robot("LunarLander-v3"), _robot("HalfCheetah-v5")),
    "envs": tuple(_environments(env_id, number) for number in (64, 512) for env_id in _ENVIRONMENTS),
    "fit": (_fit(32), _fit(4_096)),
    "objective": tuple(
        _objective(*size, keeps)
        for keeps in (False, True)
        for size in ((2_048, 2), (2_048, 10), (2_048, 1_000), (64, 32_000))
    ),
    "memory": (Case("PPO, 512 × 32 steps, most memory", ("MiB",), (_pgce(_FEW), _sb3(_FEW))),),
    "start": (
        Case(
            "one round of PPO, 64 × 32 steps",
            ("s, whole process",),
            tuple(program(_ROUND) for program in (_pgce, _sb3, _skrl_numpy, _tianshou, _torchrl, _rejax)),
        ),
    ),
    "ranks": (),  # benchmarks/processes.py and benchmarks/linear_cross_entropy.py, which tell by themselves
    "linear": (),
}

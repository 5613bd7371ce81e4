"""The token tasks' rules; the vector API is tested in test_vector_base.py."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from pgce.envs import make, reset
from pgce.envs.tokens import Addition, AdditionVectorEnv, Copy, CopyVectorEnv, Reverse


def write(envs, answer):
    """The last step of writing `answer` (N, A), and the rewards before."""
    rewards = []
    for token in answer.T:
        step = envs.step(token)
        rewards.append(step[1])
    return step, np.array(rewards)


def digits(number, base, count):
    return [number // base**i % base for i in range(count)]


@pytest.mark.parametrize(("length", "tokens"), [(1, 2), (3, 5), (10, 64)])
@pytest.mark.parametrize("task", ["Copy", "Reverse"])
def test_the_right_answer_pays_one(task, length, tokens):
    envs = make(f"pgce/{task}-v0", 50, autoreset_mode="Disabled", length=length, tokens=tokens)
    observation, _ = reset(envs, 0)
    assert observation.shape == (50, 2 * length)
    assert observation.dtype == np.int64
    prompt = observation[:, :length]
    assert (observation[:, length:] == tokens).all()
    assert set(prompt.ravel()) <= set(range(tokens))
    answer = prompt if task == "Copy" else prompt[:, ::-1]
    (final, reward, terminated, truncated, _), rewards = write(envs, answer)
    assert (reward == 1).all()
    assert not rewards[:-1].any()
    assert terminated.all()
    assert not truncated.any()
    assert (final == np.concatenate((prompt, answer), 1)).all()


@pytest.mark.parametrize(("length", "base"), [(1, 10), (2, 10), (5, 2), (30, 10), (3, 100)])
def test_sums_are_python_s(length, base):
    envs = AdditionVectorEnv(40, "Disabled", length=length, tokens=base)
    observation, _ = envs.reset(seed=0)
    assert observation.shape == (40, 3 * length + 1)
    answer = []
    for row in observation.tolist():
        first, second = row[:length], row[length : 2 * length]
        total = sum(digit * base**i for i, digit in enumerate(first)) + sum(
            digit * base**i for i, digit in enumerate(second)
        )
        answer.append(digits(total, base, length + 1))
    assert (write(envs, np.array(answer))[0][1] == 1).all()
    assert {row[-1] for row in answer} == {0, 1}, "with and without a last carry"


@pytest.mark.parametrize(("env", "answer"), [(Copy(), 4), (Reverse(), 4), (Addition(), 3)], ids=str)
def test_each_wrong_token_costs_its_share(env, answer):
    size = env.action_space.n
    for wrong in range(answer + 1):
        env.reset(seed=wrong)
        right = env._vector._answer[0]
        tokens = [(token + (i < wrong)) % size for i, token in enumerate(right)]
        rewards = [env.step(token)[1] for token in tokens]
        assert rewards[:-1] == [0] * (answer - 1)
        assert rewards[-1] == pytest.approx(1 - wrong / answer)


def test_what_is_written_is_seen_token_by_token():
    env = Copy(length=3, tokens=7)
    prompt = env.reset(seed=0)[0][:3].tolist()
    seen = [env.step(token)[0].tolist() for token in (6, 0, 5)]
    assert seen == [[*prompt, 6, 7, 7], [*prompt, 6, 0, 7], [*prompt, 6, 0, 5]]


def test_answers_may_be_at_different_tokens():
    """After a partial reset each environment writes at its own place."""
    envs = CopyVectorEnv(2, "Disabled", length=3, tokens=5)
    envs.reset(seed=0)
    envs.step(np.array([1, 2]))
    envs.reset(options={"reset_mask": np.array([True, False])})
    envs.step(np.array([3, 4]))
    observation, _, terminated, *_ = envs.step(np.array([0, 0]))
    assert observation[:, 3:].tolist() == [[3, 0, 5], [2, 4, 0]]
    assert terminated.tolist() == [False, True]


def test_a_random_policy_earns_one_in_k():
    envs = make("pgce/Copy-v0", 2000, autoreset_mode="SameStep", length=4, tokens=4)
    reset(envs, 0)
    generator = np.random.default_rng(0)
    total = sum(envs.step(generator.integers(4, size=2000))[1].sum() for _ in range(8))
    assert abs(total / 4000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 16_000)


def test_prompts_are_drawn_alike():
    prompt = CopyVectorEnv(4000, length=3, tokens=5).reset(seed=0)[0][:, :3]
    for column in prompt.T:
        assert (abs(np.bincount(column, minlength=5) - 800) < 5 * np.sqrt(800)).all()
    numbers = AdditionVectorEnv(4000).reset(seed=0)[0][:, :4]
    assert (np.bincount(numbers.ravel()) > 1300).all()


@pytest.mark.parametrize("task", ["Copy", "Reverse", "Addition"])
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": 0}, "length is a whole number, at least 1: it is 0"),
        ({"length": 2.0}, r"length is a whole number, at least 1: it is 2\.0"),
        ({"tokens": 1}, "tokens is a whole number, at least 2: it is 1"),
        ({"tokens": True}, "tokens is a whole number, at least 2: it is True"),
    ],
)
def test_what_makes_no_task_is_refused(task, kwargs, message):
    for vectorization in ("vector_entry_point", "sync"):
        with pytest.raises(ValueError, match=message):
            make(f"pgce/{task}-v0", 2, vectorization=vectorization, **kwargs)


@pytest.mark.parametrize("task", ["Copy", "Reverse", "Reverse8x10", "Addition"])
def test_they_are_registered_with_the_reward_that_solves_them(task):
    spec = gym.spec(f"pgce/{task}-v0")
    width = gym.make(spec).observation_space.shape[0]
    answer = spec.kwargs.get("length", 4) if task != "Addition" else 3
    assert spec.reward_threshold**answer > 0.95, "of the answers are exact"
    assert width == {"Copy": 8, "Reverse": 8, "Reverse8x10": 16, "Addition": 7}[task]
    env = gym.make(spec, length=3, tokens=6)
    assert env.observation_space.high.max() == env.action_space.n == 6


def test_one_wrong_token_is_no_return_of_one():
    envs = make("pgce/Reverse8x10-v0", 8, autoreset_mode="Disabled")
    prompt = reset(envs, 0)[0][:, :8]
    answer = prompt[:, ::-1].copy()
    answer[np.arange(1, 8), np.arange(1, 8)] += 1
    assert write(envs, answer % 10)[0][1].tolist() == [1.0] + [7 / 8] * 7

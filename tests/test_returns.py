"""Returns computed by hand, with termination and truncation kept apart."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pgce.returns import discounted, gae, n_step

#  step               0    1     2    3
REWARD = torch.tensor([[1.0, 2.0, 4.0, 8.0]]).T
NOTHING = torch.zeros(4, 1, dtype=torch.bool)
AT_1 = torch.tensor([[False, True, False, False]]).T
VALUE = torch.tensor([[1000.0, 16.0, 1000.0, 32.0]]).T  # 1000 where it must not be read


@pytest.mark.parametrize(
    ("terminated", "truncated", "next_value", "expected"),
    [
        # γ = ½: the rollout's end is a cut, with 0 or with the value beyond it
        (NOTHING, NOTHING, None, [1 + 1 + 1 + 1, 2 + 2 + 2, 4 + 4, 8]),
        (NOTHING, NOTHING, VALUE, [1 + 1 + 1 + 1 + 2, 2 + 2 + 2 + 4, 4 + 4 + 8, 8 + 16]),
        # terminated at 1: nothing follows, though a value is given there
        (AT_1, NOTHING, VALUE, [1 + 1, 2, 4 + 4 + 8, 8 + 16]),
        # truncated at 1: the value follows, and nothing of the next episode
        (NOTHING, AT_1, VALUE, [1 + 1 + 4, 2 + 8, 4 + 4 + 8, 8 + 16]),
        (NOTHING, AT_1, None, [1 + 1, 2, 4 + 4, 8]),
        # both at once is a termination
        (AT_1, AT_1, VALUE, [1 + 1, 2, 4 + 4 + 8, 8 + 16]),
    ],
)
def test_by_hand(terminated, truncated, next_value, expected):
    result = discounted(REWARD, terminated, truncated, 0.5, next_value)
    assert result[:, 0].tolist() == expected


def test_the_value_after_a_true_end_is_not_read():
    terminated = torch.tensor([[False], [True]])
    nowhere = torch.full((2, 1), math.nan)
    found = discounted(torch.ones(2, 1), terminated, torch.zeros_like(terminated), 0.5, nowhere)
    assert found.flatten().tolist() == [1.5, 1.0]


def test_last_step_truncated_reads_the_value_once():
    last = NOTHING.clone()
    last[3] = True
    cut = discounted(REWARD, NOTHING, last, 0.5, VALUE)
    assert torch.equal(cut, discounted(REWARD, NOTHING, NOTHING, 0.5, VALUE))


def test_environments_do_not_touch_each_other():
    generator = torch.Generator().manual_seed(0)
    reward = torch.randn(20, 7, generator=generator)
    terminated, truncated = torch.rand(2, 20, 7, generator=generator) < 0.1
    value = torch.randn(20, 7, generator=generator)
    together = discounted(reward, terminated, truncated, 0.9, value)
    for n in range(7):
        apart = discounted(
            *(x[:, n : n + 1] for x in (reward, terminated, truncated)), 0.9, value[:, n : n + 1]
        )
        assert torch.equal(together[:, n : n + 1], apart)


def test_arguments_are_left_alone():
    before = REWARD.clone(), VALUE.clone()
    discounted(REWARD, AT_1, NOTHING, 0.5, VALUE)
    assert torch.equal(REWARD, before[0])
    assert torch.equal(VALUE, before[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"terminated": NOTHING[:3]}, r"reward has shape \(4, 1\), terminated \(3, 1\)"),
        ({"truncated": NOTHING[:, 0]}, r"truncated \(4,\)"),
        ({"next_value": VALUE.T}, r"next_value \(1, 4\)"),
        ({"gamma": 1.01}, "gamma is 1.01"),
        ({"gamma": float("nan")}, "gamma is nan"),
    ],
)
def test_refuses(change, message):
    arguments = {
        "reward": REWARD, "terminated": NOTHING, "truncated": NOTHING, "gamma": 0.5,
        "next_value": VALUE,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        discounted(**{**arguments, **change})


def drawn(seed, steps=23, envs=5):
    """Random rewards, ends (a third of them both kinds at once) and values, in float64."""
    rng = np.random.default_rng(seed)
    reward, next_value = rng.normal(size=(2, steps, envs))
    done = rng.random((steps, envs)) < rng.choice([0.0, 0.15, 0.5])
    kind = rng.integers(3, size=done.shape)
    return reward, done & (kind != 1), done & (kind != 0), next_value


@pytest.mark.parametrize("n", [1, 2, 3, 7, 22, 23, 24, 1_000])
@pytest.mark.parametrize("seed", range(6))
def test_n_steps_by_brute_force(n, seed):
    reward, terminated, truncated, next_value = arrays = drawn(seed)
    next_value[terminated] = np.nan  # must not be read
    expected = np.empty_like(reward)
    for t, env in np.ndindex(reward.shape):
        total, discount, k = 0.0, 1.0, t
        while True:
            total += discount * reward[k, env]
            discount *= 0.9
            if terminated[k, env]:
                break
            if truncated[k, env] or k == len(reward) - 1 or k - t + 1 == n:
                total += discount * next_value[k, env]
                break
            k += 1
        expected[t, env] = total
    result = n_step(*map(torch.from_numpy, arrays), 0.9, n)
    np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_one_step_and_all_steps_are_what_the_others_give(seed):
    reward, terminated, truncated, next_value = map(torch.from_numpy, drawn(seed))
    arguments = reward, terminated, truncated
    value = next_value.roll(1, 0)  # of the same observation, where the episode goes on
    for n, gae_lambda in ((1, 0.0), (23, 1.0)):
        advantage = gae(*arguments, value, next_value, 0.9, gae_lambda)
        torch.testing.assert_close(n_step(*arguments, next_value, 0.9, n) - value, advantage)
    torch.testing.assert_close(
        n_step(*arguments, next_value, 0.9, 23), discounted(*arguments, 0.9, next_value)
    )


def test_n_step_refuses():
    with pytest.raises(ValueError, match="n is at least 1: it is 0"):
        n_step(REWARD, NOTHING, NOTHING, VALUE, 0.5, 0)
    with pytest.raises(ValueError, match=r"next_value \(1, 4\)"):
        n_step(REWARD, NOTHING, NOTHING, VALUE.T, 0.5, 2)

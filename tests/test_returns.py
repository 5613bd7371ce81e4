"""Returns computed by hand, with termination and truncation kept apart."""

from __future__ import annotations

import pytest
import torch

from pgce.returns import discounted

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

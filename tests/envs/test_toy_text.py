"""Toy text in NumPy against Gymnasium's own environments: same draws, same steps, in all modes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from pgce.envs import make, reset
from pgce.envs.toy_text import (
    BlackjackVectorEnv,
    CliffWalkingVectorEnv,
    FrozenLakeVectorEnv,
    TaxiVectorEnv,
)

TABULAR: list[tuple[str, dict[str, Any], type]] = [
    ("FrozenLake-v1", {}, FrozenLakeVectorEnv),
    ("FrozenLake-v1", {"is_slippery": False}, FrozenLakeVectorEnv),
    ("FrozenLake-v1", {"success_rate": 0.6, "reward_schedule": (10, -5, -1)}, FrozenLakeVectorEnv),
    ("FrozenLake-v1", {"desc": ["SFS", "FHG"]}, FrozenLakeVectorEnv),
    ("FrozenLake8x8-v1", {}, FrozenLakeVectorEnv),
    ("CliffWalking-v1", {}, CliffWalkingVectorEnv),
    ("CliffWalkingSlippery-v1", {}, CliffWalkingVectorEnv),
    ("Taxi-v4", {}, TaxiVectorEnv),
    ("Taxi-v4", {"is_rainy": True, "rainy_probability": 0.7}, TaxiVectorEnv),
]
NAMES = [f"{env_id}{''.join(f'-{key}' for key in kwargs)}" for env_id, kwargs, _ in TABULAR]


def pair(env_id, n, mode, **kwargs):
    ours = make(env_id, n, autoreset_mode=mode, **kwargs)
    theirs = gym.make_vec(env_id, n, "sync", vector_kwargs={"autoreset_mode": mode}, **kwargs)
    return ours, theirs


class Draw:
    """Stands in for the generator of one of Gymnasium's environments: gives what it's told."""

    value = 0.0

    def random(self):
        return self.value


def compare_info(mine, reference, n):
    """Equal but for `prob`, whose dtype Gymnasium takes from the first environment: 1 makes 1/3 a 0."""
    assert mine.keys() == reference.keys()
    for key, value in mine.items():
        if isinstance(value, dict):
            compare_info(value, reference[key], n)
        elif key == "prob" and reference[key].dtype == np.int64:
            assert value.dtype == np.float64
        elif key == "final_obs":
            rows = reference["_final_obs"]
            assert [tuple(np.ravel(x)) for x in value[rows]] == [
                tuple(np.ravel(x)) for x in reference[key][rows]
            ]
        else:
            assert (value == reference[key]).all(), key
            assert value.shape == reference[key].shape
            assert value.dtype == reference[key].dtype


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(("env_id", "kwargs", "version"), TABULAR, ids=NAMES)
def test_the_same_draws_give_the_same_steps(env_id, kwargs, version, mode, monkeypatch):
    """Every environment is put anywhere and fed one uniform draw a step, the same in both."""
    n, steps = 30, 25
    ours, theirs = pair(env_id, n, mode, max_episode_steps=6, **kwargs)
    assert type(ours) is version
    generator = np.random.default_rng(0)
    uniform = generator.random(n)
    monkeypatch.setattr(ours, "_uniform", lambda rows: uniform[rows])
    for env in theirs.envs:
        env.unwrapped.np_random = Draw()

    def draw():
        uniform[:] = generator.random(n)
        uniform[:5] = 0.0, 0.7, 1 / 3, (1 - 1 / 3) / 2, 1 - 2**-53  # where one outcome meets the next
        for env, value in zip(theirs.envs, uniform, strict=True):
            env.unwrapped.np_random.value = value

    draw()
    mine, reference = ours.reset(), theirs.reset()
    assert (mine[0] == reference[0]).all()
    compare_info(mine[1], reference[1], n)
    table = theirs.envs[0].unwrapped.P
    cells = [(state, action) for state in table for action in table[state]]
    endings = [(s, a) for s, a in cells if any(end for *_, end in table[s][a])]
    ends = np.zeros(2, int)
    for t in range(steps):
        action = generator.integers(ours.single_action_space.n, size=n)
        if t % 4 == 0:  # anywhere, and where an end is near
            for i in (~ours._over).nonzero()[0]:
                some = cells if i % 2 else endings
                ours._state[i], action[i] = some[generator.integers(len(some))]
            for env, state in zip(theirs.envs, ours._state, strict=True):
                env.unwrapped.s = int(state)
        draw()
        mine, reference = ours.step(action), theirs.step(action)
        for a, b in zip(mine[:4], reference[:4], strict=True):
            assert (a == b).all()
            assert a.dtype == b.dtype
            assert a.shape == b.shape
        compare_info(mine[4], reference[4], n)
        done = mine[2] | mine[3]
        ends += [mine[2].sum(), mine[3].sum()]
        if mode is AutoresetMode.DISABLED and done.any():
            draw()
            mine, reference = (envs.reset(options={"reset_mask": done}) for envs in (ours, theirs))
            assert (mine[0] == reference[0]).all()
            compare_info(mine[1], reference[1], n)
    assert (ends > 0).all()


@pytest.mark.parametrize(("env_id", "kwargs", "version"), TABULAR, ids=NAMES)
def test_every_outcome_is_as_likely_as_in_gymnasium_s_table(env_id, kwargs, version):
    """From a few states, with our own draws: next state, reward and end, counted."""
    n = 3000
    ours = make(env_id, n, **kwargs)
    table = gym.make(env_id, **kwargs).unwrapped.P
    generator = np.random.default_rng(0)
    for _ in range(8):
        state = int(generator.integers(len(table)))
        action = int(generator.integers(len(table[state])))
        reset(ours, int(generator.integers(1000)))
        ours._state[:] = state
        following, reward, terminated, _, info = ours.step(np.full(n, action))
        expected = {}
        for probability, *outcome in table[state][action]:
            key = tuple(float(x) for x in outcome)
            expected[key] = expected.get(key, 0) + probability
            assert probability in info["prob"]
        seen, counts = np.unique(np.stack((following, reward, terminated), 1), axis=0, return_counts=True)
        assert {tuple(row) for row in seen} == set(expected)
        for row, count in zip(seen, counts, strict=True):
            p = expected[tuple(row)]
            assert abs(count / n - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-9


def test_taxis_start_anywhere_alike():
    ours = make("Taxi-v4", 60_000)
    counts = np.bincount(reset(ours, 0)[0], minlength=500)
    expected = gym.make("Taxi-v4").unwrapped.initial_state_distrib * 60_000
    assert ((counts > 0) == (expected > 0)).all()
    assert (abs(counts - expected) <= 5 * np.sqrt(expected)).all()


def test_action_masks_are_those_of_the_states_shown():
    ours, theirs = make("Taxi-v4", 50, autoreset_mode="SameStep"), gym.make("Taxi-v4").unwrapped
    observation, info = reset(ours, 0)
    generator = np.random.default_rng(0)
    for _ in range(20):
        assert (info["action_mask"] == [theirs.action_mask(state) for state in observation]).all()
        assert info["action_mask"].dtype == np.int8
        observation, *_, info = ours.step((generator.random((50, 6)) * info["action_mask"]).argmax(1))


@pytest.mark.parametrize("map_name", ["5x5", None])
def test_an_unknown_map_is_refused(map_name):
    with pytest.raises(
        ValueError, match=rf"map_name is one of 4x4, 8x8, or desc is a map: it is {map_name!r}"
    ):
        FrozenLakeVectorEnv(2, map_name=map_name)


class Cards:
    """Stands in for the generator of one of Gymnasium's games: gives cards from a list."""

    def __init__(self, cards):
        self.cards = iter(cards)

    def choice(self, options):
        return options[0] if isinstance(options[0], str) else next(self.cards)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize(
    "rules", [{}, {"natural": True, "sab": False}, {"natural": False, "sab": False}], ids=str
)
def test_the_same_cards_give_the_same_games(rules, mode, monkeypatch):
    n = 200
    ours, theirs = pair("Blackjack-v1", n, mode, max_episode_steps=4, **rules)
    assert type(ours) is BlackjackVectorEnv
    deck = np.minimum(np.random.default_rng(0).integers(1, 14, (n, 600)), 10)
    deck[:60, 2:4] = [1, 10]  # naturals
    deck[:20, :2] = [10, 1]
    for env, cards in zip(theirs.envs, deck, strict=True):
        env.unwrapped.np_random = Cards(cards.tolist())
    used = np.zeros(n, int)
    beginning = False
    begin = ours._begin

    def mark(rows, options):
        nonlocal beginning
        beginning = True
        begin(rows, options)
        beginning = False

    def cards(rows):
        # Ours that are over play on until they are reset, theirs don't: those cards are not from the deck.
        counts = np.full(len(rows), beginning) | ~ours._over[rows]
        used[rows] += counts
        return np.where(counts, deck[rows, used[rows] - 1], 5)

    monkeypatch.setattr(ours, "_begin", mark)
    monkeypatch.setattr(ours, "_cards", cards)
    mine, reference = ours.reset(), theirs.reset()
    generator = np.random.default_rng(1)
    rewards = []
    for t in range(20):
        for a, b in zip(mine[0], reference[0], strict=True):
            assert (a == b).all()
            assert a.dtype == b.dtype
        action = (generator.random(n) < 0.6 * (t > 0)).astype(int)
        mine, reference = ours.step(action), theirs.step(action)
        for a, b in zip(mine[1:4], reference[1:4], strict=True):
            assert (a == b).all()
            assert a.dtype == b.dtype
        compare_info(mine[4], reference[4], n)
        rewards.append(mine[1])
        done = mine[2] | mine[3]
        if mode is AutoresetMode.DISABLED and done.any():
            mine, reference = (envs.reset(options={"reset_mask": done}) for envs in (ours, theirs))
    assert set(np.unique(rewards)) == ({-1, 0, 1, 1.5} if rules.get("natural") else {-1, 0, 1})
    for env, count in zip(theirs.envs, used, strict=True):
        assert len(list(env.unwrapped.np_random.cards)) == 600 - count, "the same cards"


def test_last_hands_are_told_apart_from_the_next():
    ours = make("Blackjack-v1", 50, autoreset_mode="SameStep")
    before, _ = reset(ours, 0)
    after, *_, info = ours.step(np.zeros(50, int))
    assert info["_final_obs"].all()
    assert [tuple(row) for row in info["final_obs"]] == list(zip(*(x.tolist() for x in before), strict=True))
    assert any((a != b).any() for a, b in zip(before, after, strict=True))


def test_a_deck_has_four_tens():
    ours = BlackjackVectorEnv(1)
    ours.reset(seed=0)
    counts = np.bincount(ours._cards(np.arange(13_000)), minlength=11)
    assert counts[0] == 0
    assert (abs(counts[1:10] - 1000) < 5 * np.sqrt(1000)).all()
    assert abs(counts[10] - 4000) < 5 * np.sqrt(4000)

"""T steps in N environments into tensors, right in every autoreset mode of vector environments."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate
from numpy.typing import NDArray
from torch import Tensor

from pgce import envs as vector_envs
from pgce.action_heads import MultiCategorical
from pgce.choices import Continuous
from pgce.envs.guard import EnvironmentFault
from pgce.envs.state import get_state, set_state
from pgce.envs.vector_base import NumpyVectorEnv
from pgce.graphs import Replayed
from pgce.heads import PolicyHead
from pgce.networks import RewardScale
from pgce.spaces import actions, apply_mask, observations
from pgce.trainer import Batch, Input

__all__ = ["Collector", "Player", "Rollout", "evaluate", "mask_size", "told_mask"]

Policy = Callable[[Any], Tensor]
"""Observations (N, D) -> logits; with a memory (`state_size` above 0) as `pgce.networks.Headed`."""


@dataclass(frozen=True)
class Rollout:
    """T steps in N environments, on the policy's device.

    Attributes:
        observation: (T + 1, N, D): what the policy saw, and after the last step what it sees next.
        action: (T, N, ...), as drawn from the policy.
        logits: (T, N, ...), what it was drawn from.
        head: what they mean.
        reward: (T, N), float32.
        terminated: (T, N), bool: the episode reached a true end with this step.
        truncated: (T, N), bool: the episode was cut after this step.
        valid: (T, N), bool. False marks the rows that are no transition: where an environment used the step
            to reset itself and ignored the action (NEXT_STEP), or failed and was made anew.
        final_index: (M,), the rows t · N + n of episodes' ends whose next observation is not
            `observation[t + 1]`, because that is already the next episode's first (SAME_STEP, DISABLED).
        final_observation: (M, D), the true next observations of those rows.
        episode_return: (E,), undiscounted return of each episode that ended here, in order of their ends.
        episode_length: (E,), its environment steps.
        episode_env: (E,), which environment it ran in.
        first: (T + 1, N), bool: the observation is an episode's first. Of a policy with memory; else None.
        state: (T + 1, N, S), its memory before each observation; likewise.

    Example:
        >>> import pgce.envs
        >>> from pgce.networks import mlp
        >>> from pgce.rollout import Collector
        >>> rollout = Collector(pgce.envs.make("CartPole-v1", 8), mlp(4, 2), num_steps=64, seed=1).collect()
        >>> value, next_value = rollout.values(lambda observation: observation[:, 0])
        >>> value.shape, next_value.shape
        (torch.Size([64, 8]), torch.Size([64, 8]))
        >>> rollout.batch({"value": value}).count == rollout.steps < 64 * 8
        True
    """

    observation: Tensor
    action: Tensor
    logits: Tensor
    head: PolicyHead
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    final_index: Tensor
    final_observation: Tensor
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]
    episode_env: NDArray[np.int64]
    first: Tensor | None = None
    state: Tensor | None = None

    @property
    def steps(self) -> int:
        """Environment steps taken: the rows that are transitions."""
        return int(self.valid.sum())

    @property
    def done(self) -> Tensor:
        """(T, N), bool: the episode ended with this step, whether truly or cut."""
        return self.terminated | self.truncated

    @property
    def cross_entropy(self) -> Tensor:
        """(T, N), −log π(a|s) of the policy that acted."""
        return self.head.cross_entropy(self.logits, self.action)

    @property
    def first_episode(self) -> Tensor:
        """(T, N), bool: the rows of each environment's first episode in this rollout."""
        done = self.done
        return self.valid & ((done.cumsum(0) - done.long()) == 0)

    def cross_entropy_under(self, policy: Policy) -> Tensor:
        """(T, N), −log π(a|s) of another policy for the same actions."""
        with torch.no_grad():
            logits = policy(self._input(len(self.reward)))
        return self.head.cross_entropy(self._unlaid(logits, len(self.reward)), self.action)

    @property
    def episode(self) -> Tensor:
        """(T, N), the number of the episode, in the order of `episode_return`, that a row is part of.

        −1 where the episode has not ended.
        """
        done = self.done
        number = done.flatten().cumsum(0).view_as(done) - 1
        result = torch.full_like(number, -1)
        follows = result[0]
        for t in reversed(range(len(done))):
            follows = result[t] = torch.where(done[t], number[t], follows)
        return result

    def scaled(self, scale: RewardScale | None) -> Rollout:
        """The same with rewards by this scale, which takes them into its statistics; None leaves them."""
        if scale is None:
            return self
        return replace(self, reward=scale(self.reward, self.done, self.valid))

    def spread(self, values: Tensor) -> Tensor:
        """Of each row (T, N) the value of its episode, of those (E,) that ended; 0 where it has not."""
        return torch.cat([values, values.new_zeros(1)])[self.episode]

    def values(self, value: Policy) -> tuple[Tensor, Tensor]:
        """The value of every observation and of every true next observation, (T, N) each.

        Args:
            value: observations (B, D) -> values (B,).
        """
        steps = len(self.reward)
        with torch.no_grad():
            now = self._unlaid(value(self._input(steps + 1)), steps + 1)
            following = now[1:].clone(memory_format=torch.contiguous_format)
            if len(self.final_index):
                final = self.final_observation
                last: Input = final
                if self.state is not None:  # sequences of one step, after the one that led there
                    before = self._remembered(value).flatten(0, 1)[self.final_index].unsqueeze(1)
                    first = torch.zeros_like(self.final_index, dtype=torch.bool).unsqueeze(1)
                    last = {"observation": final.unsqueeze(1), "first": first, "state": before}
                following.view(-1)[self.final_index] = value(last).flatten()
        return now[:-1], following

    def _remembered(self, network: Any) -> Tensor:
        """(T, N, S), a network's memory after each step; `state` is that of one that may be older."""
        assert self.state is not None
        assert self.first is not None
        memory, every = self.state[0], []
        for observation, first in zip(self.observation, self.first[:-1], strict=False):
            _, memory = network.step(observation, first, memory)
            every.append(memory)
        return torch.stack(every)

    def batch(self, columns: Mapping[str, Tensor]) -> Batch:
        """The T · N rows as a batch with column "action" and those given, each (T, N, ...).

        Of a policy with memory the N sequences of T steps, each a row, with a mask (N, T).

        Raises:
            ValueError: a column is no tensor, or of another shape.
        """
        shape = tuple(self.valid.shape)
        for name, column in columns.items():
            if not isinstance(column, Tensor):
                raise ValueError(f"a column is a tensor: {name!r} is of type {type(column).__name__}")
            if column.shape[:2] != shape:
                told = f"{name!r} has shape {tuple(column.shape)}"
                raise ValueError(f"a column has shape (T, N, ...), here {shape}: {told}")
        laid = {name: self._laid(column) for name, column in {"action": self.action, **columns}.items()}
        return Batch(self._input(len(self.reward)), laid, self._laid(self.valid))

    def state_dict(self) -> dict[str, Any]:
        """All fields but the head, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "head"}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], head: PolicyHead, device: torch.device) -> Rollout:
        """The rollout whose `state_dict` that was."""
        placed: Any = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in state.items()}
        return cls(head=head, **placed)

    def _input(self, steps: int) -> Input:
        """What a network is called with, of the first observations."""
        observation = self._laid(self.observation[:steps])
        if self.state is None or self.first is None:
            return observation
        first, state = self._laid(self.first[:steps]), self._laid(self.state[:steps])
        return {"observation": observation, "first": first, "state": state}

    def _laid(self, column: Tensor) -> Tensor:
        """(T, N, ...) as a network has it: rows (T · N, ...), or sequences (N, T, ...) with a memory."""
        return column.flatten(0, 1) if self.state is None else column.transpose(0, 1)

    def _unlaid(self, column: Tensor, steps: int) -> Tensor:
        """The inverse."""
        return column.unflatten(0, (steps, -1)) if self.state is None else column.transpose(0, 1)


class Collector:
    """Steps a policy through a vector environment, `num_steps` at a time; episodes go on across rollouts.

    Args:
        envs: any `gymnasium.vector.VectorEnv` whose metadata name its autoreset mode.
        policy: observations (N, D) -> logits, on `device`.
        num_steps: T.
        seed: of the environments' generators, spawned so that no two are alike.
        generator: for sampling actions, on `device`.
        device: where the policy computes.
        greedy: take the most probable action instead of sampling.
        continuous: distribution of the actions of a Box space.

    Attributes:
        mask_size: entries of an action mask, which are the last of every observation; 0 where the
            environments give none, neither as `info["action_mask"]` nor in the observation.
        state_size: S, numbers in the policy's memory; 0 is none.

    Raises:
        ValueError: an unsupported space, or no autoreset mode in the metadata.

    Example:
        >>> import pgce.envs
        >>> from pgce.networks import mlp
        >>> from pgce.rollout import Collector
        >>> collector = Collector(pgce.envs.make("CartPole-v1", 8), mlp(4, 2), num_steps=32, seed=1)
        >>> collector.collect().observation.shape
        torch.Size([33, 8, 4])
    """

    def __init__(
        self,
        envs: gym.vector.VectorEnv[Any, Any, Any],
        policy: Policy,
        num_steps: int,
        *,
        seed: int,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
        greedy: bool = False,
        continuous: Continuous = "gaussian",
    ) -> None:
        self.envs = envs
        self.policy = policy
        self.num_steps = num_steps
        self.mode = _autoreset_mode(envs)
        self._late = self.mode == AutoresetMode.NEXT_STEP  # an episode begins a step after the last has ended
        self.device = device or torch.device("cpu")
        self.generator = generator
        self._observations = observations(envs.single_observation_space)
        self._actions = actions(envs.single_action_space, continuous)
        self._act = self._actions.head.mode if greedy else self._sample
        self._decided = Replayed(self._decide, policy, self._actions.head)
        self.state_size: int = getattr(policy, "state_size", 0)
        self.reset(seed)

    def reset(self, seed: int, group_size: int = 1) -> None:
        """Begin new episodes in all environments, alike in every group of so many that follow each other.

        Of groups the first episodes count: the next `collect` ends when all have.

        Raises:
            ValueError: groups of environments that have no seed each, or whose number they do not divide.
        """
        n, envs = self.envs.num_envs, self.envs
        self._once = group_size > 1
        if group_size == 1:
            first, info = vector_envs.reset(envs, seed)
        else:
            seeded = (SyncVectorEnv, AsyncVectorEnv, NumpyVectorEnv)
            if n % group_size or not isinstance(envs.unwrapped, seeded):
                raise ValueError(
                    f"groups of {group_size} environments need a seed for each (as sync and async take), and "
                    f"to divide their number: there are {n}, {envs}"
                )
            seeds = vector_envs.spawn_seeds(seed, n // group_size)
            each: Any = [s for s in seeds for _ in range(group_size)]
            first, info = envs.reset(seed=each)
        mask = self._mask(first, info)
        self.mask_size = 0 if mask is None else mask.shape[1]
        encoded = self._encoded(first, info)
        self._check_choices(encoded)
        self._observation = self._place(encoded)
        self._resetting = np.zeros(n, np.bool_)  # environments whose last step ended an episode
        self._first = np.ones(n, np.bool_)  # environments whose episode begins with the observation
        self._state = torch.zeros((n, self.state_size), device=self.device)
        self._return, self._length = np.zeros(n), np.zeros(n, np.int64)  # of unfinished episodes

    def collect(self) -> Rollout:
        """The next T steps; of groups without a memory, fewer, once the first episode of each has ended.

        Raises:
            EnvironmentFault: an environment gave an observation or reward that is not finite, rewards or ends
                that are not (N,), or by SAME_STEP no last observations.
            ValueError: it gave an action mask that it had not from its reset on, or one that leaves a choice
                nothing.
        """
        steps, n, envs = self.num_steps, self.envs.num_envs, self.envs
        observation = torch.empty((steps + 1, *self._observation.shape), device=self.device)
        observation[0] = self._observation
        rows = observation.unbind(0)
        memory = observation.numpy() if self.device.type == "cpu" else None  # to write them without torch
        states = [self._state]
        reward = np.empty((steps, n))  # which returns are the sums of
        terminated, truncated = np.empty((2, steps, n), np.bool_)
        lost = np.zeros((steps, n), np.bool_)  # an environment failed
        done = np.empty((steps, n), np.bool_)
        first = np.empty((steps + 1, n), np.bool_)  # whether an episode begins with an observation
        first[0] = self._first
        finals: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        ends = self._once and not self.state_size  # whose sequences stay of one length
        self._decided.look()
        with torch.inference_mode():
            for t in range(steps):
                if self.state_size:
                    now, acts, after = self._decided(rows[t], self._place(first[t]), states[t])
                    states.append(after.clone())
                else:
                    now, acts = self._decided(rows[t])
                if t == 0:
                    logits, action = (_empty(steps, value) for value in (now, acts))
                    each_logits, each_action = logits.unbind(0), action.unbind(0)
                each_logits[t].copy_(now)
                step = envs.step(self._actions.decode(each_action[t].copy_(acts)))
                if t == 0:
                    _check_shapes(envs, *step[1:4])
                following, reward[t], terminated[t], truncated[t], info = step
                ended = np.logical_or(terminated[t], truncated[t], out=done[t])
                first[t + 1] = self._resetting if self._late else ended
                self._resetting = ended
                if "env_restarted" in info:
                    lost[t] = info["env_restarted"]
                encoded = self._encoded(following, info)
                if not self._late and ended.any():
                    last, encoded = self._followed(ended, encoded, info)
                    finals.append((t * n + ended.nonzero()[0], last))
                if self.mask_size:
                    waited = ~ended if self._late else None  # where an action is waited for
                    self._check_choices(encoded, waited)
                if memory is None:
                    rows[t + 1].copy_(torch.from_numpy(encoded))
                else:
                    memory[t + 1] = encoded
                if ends and ended.any() and done[: t + 1].any(0).all():
                    steps = t + 1
                    break
        observation, logits, action = observation[: steps + 1], logits[:steps], action[:steps]
        reward, terminated, truncated = reward[:steps], terminated[:steps], truncated[:steps]
        lost, done, first = lost[:steps], done[:steps], first[: steps + 1]
        self._observation, self._state = rows[steps], states[-1]
        self._first = first[steps]
        if lost.any():  # such a step is none of its episode, which was cut before
            truncated[:-1] |= lost[1:] & ~done[:-1] & ~first[1:-1]
            truncated[1:] &= ~lost[1:]
            done = terminated | truncated
        # A step that resets an environment is no transition.
        valid = ~lost & ~first[1:] if self._late else ~lost
        index = np.concatenate([np.zeros(0, np.int64), *(i for i, _ in finals)])
        none = np.zeros((0, *self._observation.shape[1:]), np.float32)
        final = np.concatenate([none, *(o for _, o in finals)])
        with np.errstate(over="ignore"):
            learned = reward.astype(np.float32)
        self._check_finite(observation[1:], learned, final)
        episode_return, episode_length, episode_env = self._episodes(reward, done, valid)
        return Rollout(
            observation=observation,
            action=action,
            logits=logits,
            head=self._actions.head,
            reward=self._place(learned),
            terminated=self._place(terminated),
            truncated=self._place(truncated),
            valid=self._place(valid),
            final_index=self._place(index),
            final_observation=self._place(final),
            episode_return=episode_return,
            episode_length=episode_length,
            episode_env=episode_env,
            first=self._place(first) if self.state_size else None,
            state=torch.stack(states) if self.state_size else None,
        )

    def _followed(
        self, ended: NDArray[np.bool_], encoded: NDArray[np.float32], info: Mapping[str, Any]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The last observations of episodes that ended, and all (N, D) after the next ones have begun."""
        if self.mode == AutoresetMode.SAME_STEP:
            if "final_obs" not in info:
                raise EnvironmentFault(
                    f'by SAME_STEP info["final_obs"] has the last observations: {self.envs} gave none'
                )
            last = info["final_obs"]
            if isinstance(last, (dict, tuple)):  # a batch, as observations are
                last = list(iterate(self.envs.observation_space, last))
            return self._encoded(self._stacked([last[i] for i in ended.nonzero()[0]]), {}), encoded
        final = encoded[ended]  # before the reset, which may write where the last step did
        begun, info = self.envs.reset(options={"reset_mask": ended.copy()})
        return final, np.where(ended[:, None], self._encoded(begun, info), encoded)

    def state_dict(self, *, environments: bool = True) -> dict[str, Any]:
        """All that the next rollout depends on but the policy, as nested plain data and tensors.

        Args:
            environments: save their state too; else they will be reset.

        Raises:
            ValueError: the environments' state cannot be saved.
        """
        return {
            "environments": get_state(self.envs) if environments else None,
            "observation": self._observation,
            "resetting": self._resetting,
            "first": self._first,
            "memory": self._state,
            "return": self._return,
            "length": self._length,
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, reseed: int = 0) -> None:
        """Go on from what `state_dict` told.

        Args:
            state: of environments and a policy of the same kind.
            reseed: for environments whose state was not saved: new episodes begin.

        Raises:
            ValueError: the state is of other environments.
        """
        if state["environments"] is None:
            self.reset(reseed)
        else:
            if state["observation"].shape != self._observation.shape:
                raise ValueError(
                    f"observations were of shape {tuple(state['observation'].shape)}: "
                    f"they are {tuple(self._observation.shape)}"
                )
            set_state(self.envs, state["environments"])
            self._observation = state["observation"].to(self.device)
            self._state = state["memory"].to(self.device)
            self._resetting, self._first = state["resetting"], state["first"]
            self._return, self._length = state["return"], state["length"]
        if self.generator is not None:
            drawn = state["generator"]
            if drawn.shape == self.generator.get_state().shape:
                self.generator.set_state(drawn)
            else:  # of another kind of device, on which nothing is bit-equal
                self.generator.manual_seed(reseed)

    def act(
        self, observation: Any, action_mask: Any = None, *, greedy: bool = False, state: Tensor | None = None
    ) -> tuple[Any, Tensor | None]:
        """The action for one observation of a single environment, as its `step` takes it; and the memory.

        Args:
            observation: as the environment gives it.
            action_mask: which actions are allowed.
            greedy: take the most probable action.
            state: (1, S), the policy's memory before; None begins an episode.

        Raises:
            ValueError: the observation is not one of the environment's, or a mask leaves a choice nothing.
        """
        mask = None if action_mask is None else [action_mask]
        try:
            stacked = self._stacked([observation])
        except (TypeError, ValueError, KeyError, IndexError) as error:
            space = self.envs.single_observation_space
            raise ValueError(f"an action is for one observation of {space}: {error}") from error
        encoded = self.encode(stacked, mask)
        self._check_choices(encoded.numpy(force=True))
        with torch.no_grad():
            if self.state_size:
                first = torch.tensor([state is None], device=self.device)
                before = encoded.new_zeros(1, self.state_size) if state is None else state
                policy: Any = self.policy
                logits, state = policy.step(encoded, first, before)
            else:
                logits = self.policy(encoded)
            action = self._actions.head.mode(logits) if greedy else self._sample(logits)
        return next(iter(iterate(self.envs.action_space, self._actions.decode(action)))), state

    def encode(self, observation: Any, action_mask: Any = None) -> Tensor:
        """What the policy sees, (M, ...), of M observations batched as the environments batch theirs.

        Args:
            observation: M on the first axis of every array.
            action_mask: which actions are allowed, (M, K), where the environments' info would tell.
        """
        info = {} if action_mask is None else {"action_mask": action_mask}
        return self._place(self._encoded(observation, info))

    def _encoded(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.float32]:
        """What the policy sees, (N, D); a mask follows the features."""
        encoded = self._observations.encode(observation)
        if self.mask_size:
            mask = self._mask(observation, info)
            if mask is None:  # of a last observation, after which there is no action
                mask = np.ones((len(encoded), self.mask_size), np.bool_)
            mask = mask | ~mask.any(1, keepdims=True)  # where nothing is allowed, no action is waited for
            encoded = np.concatenate([encoded, mask], 1, dtype=np.float32)
        elif "action_mask" in info:
            raise ValueError(
                f"environments that give action masks do so from their reset on: {self.envs} gave "
                'info["action_mask"] later'
            )
        return encoded

    def _check_choices(self, encoded: NDArray[np.float32], rows: NDArray[np.bool_] | None = None) -> None:
        """Refuse a mask that leaves one of several choices nothing, since the policy does not look at it."""
        head = self._actions.head
        if self.mask_size and isinstance(head, MultiCategorical):
            mask = torch.from_numpy(encoded[:, -self.mask_size :] > 0)
            mask = mask if rows is None else mask[torch.from_numpy(rows)]
            apply_mask(torch.zeros(mask.shape), mask, head)

    def _mask(self, observation: Any, info: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """Which actions are allowed, (N, K), by the observation or by `info["action_mask"]`."""
        mask = self._observations.mask(observation)
        return told_mask(info) if mask is None else mask

    def _stacked(self, items: list[Any]) -> Any:
        """Single observations as the environments give a batch of them."""
        space = self.envs.single_observation_space
        empty: Any = create_empty_array(space, len(items))
        return concatenate(space, items, empty)

    def _place(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _decide(self, observation: Tensor, *memory: Tensor) -> tuple[Tensor, ...]:
        policy: Any = self.policy
        logits, *after = policy.step(observation, *memory) if memory else (policy(observation),)
        return logits, self._act(logits), *after

    def _sample(self, logits: Tensor) -> Tensor:
        return self._actions.head.sample(logits, self.generator)

    def _check_finite(
        self, observation: Tensor, reward: NDArray[np.float32], final: NDArray[np.float32]
    ) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            sums = observation.sum().item(), reward.sum(), final.sum()
        if np.isfinite(sums).all():  # as they are of numbers that are, and not very large
            return
        for name, good in (
            ("an observation", observation.flatten(2).isfinite().all(-1).cpu().numpy()),
            ("a reward", np.isfinite(reward)),
        ):
            if not good.all():
                t, n = np.argwhere(~good)[0]
                raise EnvironmentFault(
                    f"environments give finite numbers: environment {n} of {self.envs} gave {name} "
                    f"that is not, at step {t} of the rollout",
                    index=int(n),
                )
        if not np.isfinite(final).all():
            raise EnvironmentFault(
                f"environments give finite numbers: a last observation of {self.envs} is not"
            )

    def _episodes(
        self, reward: NDArray[np.float64], done: NDArray[np.bool_], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Return, length and environment of the episodes that ended; the unfinished ones are carried on."""
        steps, n = done.shape
        paid, taken = np.zeros((n, steps + 1)), np.zeros((n, steps + 1), np.int64)  # none of them at the end
        paid[:, :steps], taken[:, :steps] = (reward * valid).T, valid.T
        # Where a part of an episode begins, which ends or is the environment's last.
        begins = np.ones((n, steps + 1), np.bool_)
        begins[:, 1:] = done.T
        start = begins.ravel().nonzero()[0]
        env, t = np.divmod(start, steps + 1)
        first, unfinished = t == 0, np.append(t[1:] == 0, True)
        returns, lengths = np.add.reduceat(paid.ravel(), start), np.add.reduceat(taken.ravel(), start)
        returns[first] += self._return
        lengths[first] += self._length
        self._return, self._length = returns[unfinished], lengths[unfinished]
        ended = (~unfinished).nonzero()[0]
        ended = ended[t[ended + 1].argsort(kind="stable")]  # in the order of their ends
        return returns[ended], lengths[ended], env[ended]


class Player:
    """A policy that plays one environment, an observation at a time.

    Args:
        collector: of the policy, on environments like that one.

    Example:
        >>> import torch
        >>> from pgce import envs
        >>> from pgce.rollout import Collector, Player
        >>> player = Player(Collector(envs.make("CartPole-v1", 1), torch.nn.Linear(4, 2), 1, seed=0))
        >>> player.act([0.0, 0.0, 0.0, 0.0], greedy=True) in (0, 1)
        True
    """

    def __init__(self, collector: Collector) -> None:
        self._collector = collector
        self._state: Tensor | None = None

    def reset(self) -> None:
        """Forget what was seen: an episode begins. Only a policy with a memory needs to be told."""
        self._state = None

    def act(self, observation: Any, *, action_mask: Any = None, greedy: bool = True) -> Any:
        """The action for one observation, as `step` takes it: the most probable, or drawn.

        Args:
            observation: as the environment gives it.
            action_mask: which actions are allowed, where `info["action_mask"]` tells.
            greedy: take the most probable action.

        Raises:
            ValueError: the observation is not one of the environment's.
        """
        action, self._state = self._collector.act(observation, action_mask, greedy=greedy, state=self._state)
        return action


def told_mask(info: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Which actions the environments' info allows, (N, K); None where it does not say.

    Example:
        >>> from pgce.rollout import told_mask
        >>> told_mask({"action_mask": [[1, 0], [0, 0]], "_action_mask": [True, False]})
        array([[ True, False],
               [ True,  True]])
    """
    if "action_mask" not in info:
        return None
    given = info["action_mask"]
    told = np.asarray(info.get("_action_mask", np.ones(len(given), np.bool_)))
    if isinstance(given, np.ndarray) and not given.dtype.hasobject:
        allowed: NDArray[np.bool_] = given.reshape(len(given), -1).astype(np.bool_) | ~told[:, None]
        return allowed
    rows = [_flat(row) if t and row is not None else None for row, t in zip(given, told, strict=True)]
    if not (known := [row for row in rows if row is not None]):
        return None
    return np.stack([np.ones_like(known[0]) if row is None else row for row in rows]).astype(np.bool_)


def _flat(row: Any) -> NDArray[Any]:
    """The numbers of a mask (K,), which may be in parts of several lengths."""
    try:
        array = np.asarray(row)
    except ValueError:
        array = np.asarray(row, dtype=object)
    return np.concatenate([np.ravel(part) for part in row]) if array.dtype.hasobject else array.ravel()


def mask_size(envs: gym.vector.VectorEnv[Any, Any, Any]) -> int:
    """Entries of the environments' action mask; 0 where they give none. Resets them.

    Example:
        >>> import pgce.envs
        >>> from pgce.rollout import mask_size
        >>> mask_size(pgce.envs.make("CartPole-v1", 2)), mask_size(pgce.envs.make("Taxi-v4", 2))
        (0, 6)
    """
    return Collector(envs, lambda x: x, 1, seed=0).mask_size


def evaluate(
    envs: gym.vector.VectorEnv[Any, Any, Any],
    policy: Policy,
    episodes: int = 100,
    *,
    seed: int,
    generator: torch.Generator | None = None,
    device: torch.device | None = None,
    greedy: bool = False,
    continuous: Continuous = "gaussian",
    stop: Callable[[], object] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Undiscounted returns and lengths (E,) of fresh episodes.

    Every environment plays a fixed share of the episodes: the first to finish would be the short ones. An
    episode that goes on after 100,000 steps is warned of, since its end is waited for.

    Args:
        envs: a vector environment that nothing else is using; it is reset.
        policy: observations (N, D) -> logits.
        episodes: E.
        seed: of the environments.
        generator: for sampling actions, on `device`.
        device: where the policy computes.
        greedy: take the most probable action instead of sampling.
        continuous: distribution of the actions of a Box space.
        stop: asked now and then; True ends the evaluation, with the episodes that ended until then.

    Example:
        >>> import pgce.envs
        >>> from pgce.networks import mlp
        >>> from pgce.rollout import evaluate
        >>> returns, lengths = evaluate(pgce.envs.make("CartPole-v1", 8), mlp(4, 2), episodes=20, seed=1)
        >>> len(returns), bool((returns == lengths).all())  # CartPole pays 1 a step
        (20, True)
    """
    n = envs.num_envs
    share = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    played = np.zeros(n, np.int64)
    returns: list[float] = []
    lengths: list[int] = []
    how: dict[str, Any] = {"generator": generator, "device": device, "greedy": greedy}
    collector = Collector(envs, policy, 16, seed=seed, continuous=continuous, **how)
    long = _LONG
    while (played < share).any() and not (stop is not None and stop()):
        rollout = collector.collect()
        if (collector._length * (played < share)).max() > long:
            warnings.warn(
                f"an evaluation waits for the end of an episode that goes on after {long:,} steps: a limit "
                "of them, max_episode_steps, is an argument of the environment",
                RuntimeWarning,
                stacklevel=2,
            )
            long *= 10
        ends = zip(rollout.episode_env, rollout.episode_return, rollout.episode_length, strict=True)
        for env, episode_return, length in ends:
            if played[env] < share[env]:
                played[env] += 1
                returns.append(float(episode_return))
                lengths.append(int(length))
    return np.array(returns), np.array(lengths)


_LONG = 100_000  # steps


def _check_shapes(envs: gym.vector.VectorEnv[Any, Any, Any], *given: Any) -> None:
    """Refuse what would be broadcast, and so be learned from, unseen."""
    for name, value in zip(("reward", "terminated", "truncated"), given, strict=True):
        if np.shape(value) != (envs.num_envs,):
            raise EnvironmentFault(
                f"a vector environment gives one {name} an environment, ({envs.num_envs},): {envs} gave "
                f"the shape {np.shape(value)}"
            )


def _empty(steps: int, like: Tensor) -> Tensor:
    """Memory for so many of these, of any mode."""
    with torch.inference_mode(False):
        return torch.empty((steps, *like.shape), dtype=like.dtype, device=like.device)


def _autoreset_mode(envs: gym.vector.VectorEnv[Any, Any, Any]) -> AutoresetMode:
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise ValueError(
            'a vector environment names its autoreset mode in metadata["autoreset_mode"], a '
            f"gymnasium.vector.AutoresetMode: {envs} has {mode!r}"
        )
    return mode

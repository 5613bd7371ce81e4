"""Small tasks of language models as environments: an action is a token, the reward comes at the end.

A prompt of tokens is shown; the policy writes its answer, one token a step. Observations are sequences of
fixed length: the prompt, then what has been written so far, then blanks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from pgce.envs.vector_base import NumpyVectorEnv, SingleEnv, at_least

__all__ = ["Addition", "AdditionVectorEnv", "Copy", "CopyVectorEnv", "Reverse", "ReverseVectorEnv"]

Tokens = NDArray[np.int64]


class _TokenVectorEnv(NumpyVectorEnv):
    """N prompts, each with one right answer of A tokens."""

    def __init__(
        self,
        num_envs: int,
        autoreset_mode: AutoresetMode | str,
        max_episode_steps: int | None,
        tokens: int,
        prompt_length: int,
        answer_length: int,
    ) -> None:
        at_least(2, "tokens", tokens)
        width = prompt_length + answer_length
        space = Box(0, tokens, (width,), np.int64)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, space, Discrete(tokens))
        self._tokens, self._prompt_length, self._answer_length = tokens, prompt_length, answer_length
        self._text = np.full((num_envs, width), tokens, np.int64)
        self._answer = np.zeros((num_envs, answer_length), np.int64)
        self._written = np.zeros(num_envs, np.int64)  # tokens

    def _task(self, count: int) -> tuple[Tokens, Tokens]:
        """Prompts (count, P) and their right answers (count, A)."""
        raise NotImplementedError

    def _begin(self, rows: NDArray[np.int64], options: dict[str, Any]) -> None:
        prompt, self._answer[rows] = self._task(len(rows))
        self._text[rows, : self._prompt_length] = prompt
        self._text[rows, self._prompt_length :] = self._tokens
        self._written[rows] = 0

    def _advance(self, actions: Tokens) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        # An environment that is over writes its last token once more.
        place = self._prompt_length + np.minimum(self._written, self._answer_length - 1)
        self._text[np.arange(self.num_envs), place] = actions
        self._written += 1
        terminated = self._written >= self._answer_length
        right = (self._text[:, self._prompt_length :] == self._answer).mean(1)
        return np.where(terminated, right, 0.0), terminated

    def _observe(self) -> Tokens:
        return self._text.copy()


class CopyVectorEnv(_TokenVectorEnv):
    """N of `Copy`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        length: L, tokens of a prompt.
        tokens: K, of the alphabet.

    Raises:
        ValueError: a length below 1, fewer than 2 tokens.

    Example:
        >>> from pgce.envs.tokens import CopyVectorEnv
        >>> envs = CopyVectorEnv(3, length=2, tokens=5)
        >>> prompt, info = envs.reset(seed=0)
        >>> [envs.step(prompt[:, i])[1].tolist() for i in range(2)]
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        length: int = 4,
        tokens: int = 4,
    ) -> None:
        at_least(1, "length", length)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, tokens, length, length)

    def _task(self, count: int) -> tuple[Tokens, Tokens]:
        prompt = self.np_random.integers(self._tokens, size=(count, self._prompt_length))
        return prompt, prompt


class Copy(SingleEnv):
    """Write the prompt once more.

    ## Action space
    `Discrete(K)`: the token to write next.

    ## Observation space
    `Box(2L)`, int64 in 0..K: the L tokens of the prompt, the tokens written so far, and K (blank) for those
    to come. A network embeds K + 1 symbols.

    ## Rewards
    With the last token the share of the answer's tokens that are right; 0 before.

    ## Starting state
    Tokens drawn uniformly.

    ## Episode end
    It terminates after L steps.

    ## Arguments
    `length`, 4: L; `tokens`, 4: K.

    Example:
        >>> from pgce.envs.tokens import Copy
        >>> env = Copy(length=3, tokens=4)
        >>> observation, info = env.reset(seed=0)
        >>> observation
        array([3, 2, 2, 4, 4, 4])
        >>> env.step(3)[0]
        array([3, 2, 2, 3, 4, 4])
    """

    vector_version = CopyVectorEnv


class ReverseVectorEnv(CopyVectorEnv):
    """N of `Reverse`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        length: L, tokens of a prompt.
        tokens: K, of the alphabet.

    Raises:
        ValueError: a length below 1, fewer than 2 tokens.

    Example:
        >>> from pgce.envs.tokens import ReverseVectorEnv
        >>> envs = ReverseVectorEnv(2, length=2, tokens=5)
        >>> prompt, info = envs.reset(seed=0)
        >>> [envs.step(prompt[:, i])[1].tolist() for i in (1, 0)]
        [[0.0, 0.0], [1.0, 1.0]]
    """

    def _task(self, count: int) -> tuple[Tokens, Tokens]:
        prompt, _ = super()._task(count)
        return prompt, prompt[:, ::-1]


class Reverse(SingleEnv):
    """Write the prompt backwards.

    ## Action space
    `Discrete(K)`: the token to write next.

    ## Observation space
    `Box(2L)`, int64 in 0..K: the L tokens of the prompt, the tokens written so far, and K (blank) for those
    to come. A network embeds K + 1 symbols.

    ## Rewards
    With the last token the share of the answer's tokens that are right; 0 before.

    ## Starting state
    Tokens drawn uniformly.

    ## Episode end
    It terminates after L steps.

    ## Arguments
    `length`, 4: L; `tokens`, 4: K. `pgce/Reverse8x10-v0` has 8 and 10.

    Example:
        >>> from pgce.envs.tokens import Reverse
        >>> env = Reverse(length=2, tokens=9)
        >>> observation, info = env.reset(seed=0)
        >>> env.step(observation[1])[1], env.step(observation[0])[1]
        (0.0, 1.0)
    """

    vector_version = ReverseVectorEnv


class AdditionVectorEnv(_TokenVectorEnv):
    """N of `Addition`. Further arguments and errors are those of `NumpyVectorEnv`.

    Args:
        length: L, digits of each number.
        tokens: K, the base.

    Raises:
        ValueError: a length below 1, a base below 2.

    Example:
        >>> import numpy as np
        >>> from pgce.envs.tokens import AdditionVectorEnv
        >>> envs = AdditionVectorEnv(3, length=1)
        >>> prompt, info = envs.reset(seed=0)
        >>> total = prompt[:, 0] + prompt[:, 1]
        >>> envs.step(total % 10)[1], envs.step(total // 10)[1]
        (array([0., 0., 0.]), array([1., 1., 1.]))
    """

    def __init__(
        self,
        num_envs: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        max_episode_steps: int | None = None,
        *,
        length: int = 2,
        tokens: int = 10,
    ) -> None:
        at_least(1, "length", length)
        super().__init__(num_envs, autoreset_mode, max_episode_steps, tokens, 2 * length, length + 1)

    def _task(self, count: int) -> tuple[Tokens, Tokens]:
        length = self._prompt_length // 2
        numbers = self.np_random.integers(self._tokens, size=(count, 2, length))
        # Digit by digit, since no integer type holds numbers of any length.
        total = np.zeros((count, length + 1), np.int64)
        total[:, :length] = numbers.sum(1)
        for place in range(length):
            total[:, place + 1] += total[:, place] // self._tokens
            total[:, place] %= self._tokens
        return numbers.reshape(count, -1), total


class Addition(SingleEnv):
    """Write the sum of two numbers.

    ## Action space
    `Discrete(K)`: the digit to write next.

    ## Observation space
    `Box(3L + 1)`, int64 in 0..K: the L digits of one number, the L digits of the other, the digits written so
    far, and K (blank) for those to come; the units always come first, so that a carry goes to the next
    digit. A network embeds K + 1 symbols.

    ## Rewards
    With the last digit the share of the L + 1 digits that are right; 0 before.

    ## Starting state
    Digits drawn uniformly.

    ## Episode end
    It terminates after L + 1 steps.

    ## Arguments
    `length`, 2: L; `tokens`, 10: K, the base.

    Example:
        >>> from pgce.envs.tokens import Addition
        >>> env = Addition(length=2)
        >>> observation, info = env.reset(seed=0)  # 68 + 25 = 93
        >>> observation
        array([ 8,  6,  5,  2, 10, 10, 10])
        >>> [env.step(digit)[1] for digit in (3, 9, 0)]
        [0.0, 0.0, 1.0]
    """

    vector_version = AdditionVectorEnv

"""Environments in other processes, several in each, which are never waited for in vain."""

from __future__ import annotations

import math
import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from copy import deepcopy
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    batch_space,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
)

from pgce.envs.guard import EnvironmentFault, Make, _Guarded, _Trace
from pgce.envs.infos import Column, together
from pgce.envs.serving import IDLE, Environment, Failed, serve

__all__ = ["GuardedAsyncVectorEnv", "cores"]

_CLOSING = 3.0  # seconds that workers have to close their environments
_WELL: tuple[bool, Any] = True, {}

Order = tuple[str, Iterable[int], Any]  # a command, of which environments, with what for each


def cores() -> int:
    """How many processes can compute at once, of those that share this machine with this one.

    Example:
        >>> from pgce.envs.workers import cores
        >>> cores() >= 1
        True
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


class GuardedAsyncVectorEnv(_Guarded, AsyncVectorEnv):
    """Environments shared out to processes, which are never waited for in vain and leave nothing behind.

    A process in which a step takes too long is asked for its stack and killed; one that died is told at once.
    The processes leave Ctrl-C to this one, and end with it however it ends. Observations, rewards and ends
    come by shared memory; all else that a process's environments need and give is one message each way.

    Args:
        env_fns: what makes each.
        name: of the environment, for messages.
        autoreset_mode: when one that ended is reset.
        restarts: as `GuardedSyncVectorEnv` has it; a process that hung or died is replaced likewise, and the
            other environments in it, whose episodes are cut too, do not count.
        step_timeout: seconds that reset, step and call of one environment may take; making one may take 60 at
            least. None waits for ever.
        workers: processes; None is one a core (of those that this process may use, and shares with others of
            its machine under torchrun), at most one an environment.
        context: start method of the processes, as `multiprocessing` names it; None is its default.

    Raises:
        EnvironmentFault: by reset and step, and by every use after that; when made, for an environment that
            cannot be made in its process.

    Example:
        >>> import gymnasium as gym
        >>> from pgce.envs.workers import GuardedAsyncVectorEnv
        >>> envs = GuardedAsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, "CartPole-v1", workers=2)
        >>> envs.reset(seed=1)[0].shape
        (3, 4)
        >>> envs.close()
    """

    def __init__(
        self,
        env_fns: Sequence[Make],
        name: str,
        autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
        restarts: int = 0,
        step_timeout: float | None = 60.0,
        workers: int | None = None,
        context: str | None = None,
    ) -> None:
        self.env_fns, self.num_envs, self.step_timeout = env_fns, len(env_fns), step_timeout
        self.autoreset_mode = autoreset_mode
        one = env_fns[0]()
        self.metadata = {**one.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = one.render_mode
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        with suppress(Exception):  # what was learned of it is no worse for it
            one.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._guard(name, restarts, autoreset_mode)
        self._context = cast("Any", multiprocessing.get_context(context))
        try:
            self._buffer: Any = create_shared_memory(
                self.single_observation_space, self.num_envs, self._context
            )
        except gym.error.CustomSpaceError as error:
            raise ValueError(
                f"{name}: observations of {self.single_observation_space} need sync: {error}"
            ) from None
        self._observations = self.observations = read_from_shared_memory(
            self.single_observation_space, self._buffer, self.num_envs
        )
        n = self.num_envs
        number = min(n, workers or cores())
        self._share = [range(n * w // number, n * (w + 1) // number) for w in range(number)]
        self._worker = [w for w, share in enumerate(self._share) for _ in share]
        self._outcomes = self._context.RawArray("d", 3 * n)  # reward, terminated, truncated of each
        self._at = self._context.RawArray("i", [IDLE] * number)  # which environment each is busy with
        self.processes: list[Any] = [None] * number
        self.parent_pipes: list[Any] = [None] * number
        self._stacks: list[Any] = [None] * number
        self._ended = set(range(number))  # processes
        self._lost: dict[int, tuple[str, str]] = {}  # environments whose process ended, and what to tell
        self._bystanders: set[int] = set()  # of those the ones that did not make it end
        # Before multiprocessing, at the end of the program, waits for them.
        Finalize(self, _kill, (self.processes,), exitpriority=10)
        self._poller = select.poll() if hasattr(select, "poll") else None
        self._pollers: dict[int, Any] = {}
        self._owner: dict[int, tuple[int, bool]] = {}  # of a file descriptor; whether it is a pipe's
        self._state = AsyncState.DEFAULT
        try:
            for w in range(number):
                self._start(w)
            self._ask(("make", range(n), [None] * n))
            for i, (fine, told) in self._answers(range(n), self._making_time).items():
                if not fine:
                    self._made_anew(i, self._failure(i, *told))
                else:
                    self._same_spaces(i, told)
        except BaseException:
            self.close(terminate=True)
            raise

    @property
    def _making_time(self) -> float | None:
        return None if self.step_timeout is None else max(60.0, self.step_timeout)

    def _same_spaces(self, i: int, spaces: tuple[Space[Any], Space[Any]]) -> None:
        ours = self.single_observation_space, self.single_action_space
        if spaces != ours:
            raise RuntimeError(
                f"environments of {self._name} have the same spaces: {i} has {spaces}, 0 has {ours}"
            )

    def _start(self, w: int) -> None:
        """Start process w."""
        ours, theirs = self._context.Pipe()
        stack, dumped = self._context.Pipe(duplex=False)
        # The kernel's signal at a parent's death comes with the end of the thread that made the process.
        by_main = threading.current_thread() is threading.main_thread()
        share = self._share[w]
        memory = self._buffer, self._outcomes, self.num_envs
        own = {i: Environment(i, CloudpickleWrapper(self.env_fns[i]), memory, self._same) for i in share}
        process = self._context.Process(
            target=serve,
            name=f"Worker<{self._name}>-{w}",
            args=(w, own, theirs, dumped, self._at, by_main),
            daemon=True,
        )
        process.start()
        theirs.close()
        dumped.close()
        self.processes[w], self.parent_pipes[w], self._stacks[w] = process, ours, stack
        self._ended.discard(w)
        if self._poller is not None:
            self._pollers[w] = select.poll()
            self._pollers[w].register(ours.fileno(), select.POLLIN)
            for fd, is_pipe in ((ours.fileno(), True), (process.sentinel, False)):
                self._owner[fd] = w, is_pipe
                self._poller.register(fd, select.POLLIN)

    def _ask(self, *orders: Order) -> None:
        """Give orders, each process's in one message. What they need has a place for each environment."""
        for w, share in enumerate(self._share):
            message = []
            for command, which, given in orders:
                if isinstance(which, range) and not self._lost:  # all of them
                    asked: Any = share
                    mine = given[share.start : share.stop]
                else:
                    asked = [i for i in which if i in share and i not in self._lost]
                    mine = given[asked] if isinstance(given, np.ndarray) else [given[i] for i in asked]
                if asked:
                    message.append((command, asked, mine))
            if message:
                with suppress(OSError):  # of a process that died, which `_answers` tells
                    self.parent_pipes[w].send(message)

    def _take(self, w: int, answers: dict[int, tuple[bool, Any]]) -> bool:
        """Read what process w answers; false if it can't any more."""
        try:
            replies, columns = self.parent_pipes[w].recv()
        except (EOFError, OSError):
            return False
        answers.update(replies)
        self._columns.append(columns)
        return True

    def _ready(self, seconds: float) -> tuple[set[int], set[int]]:
        """The processes that have something to be read, and those that died."""
        if self._poller is not None:
            things = [self._owner[fd] for fd, _ in self._poller.poll(1000 * seconds)]
        else:
            alive = [w for w in range(len(self.processes)) if w not in self._ended]
            owner: dict[Any, Any] = {self.parent_pipes[w]: (w, True) for w in alive}
            owner |= {self.processes[w].sentinel: (w, False) for w in alive}
            things = [owner[thing] for thing in wait(list(owner), seconds)]
        return {w for w, is_pipe in things if is_pipe}, {w for w, is_pipe in things if not is_pipe}

    def _answers(self, which: Iterable[int], limit: float | None) -> dict[int, tuple[bool, Any]]:
        """What environments answer: true and what it was asked for, or false and what went wrong.

        Those that are not listed did as they were told, and had nothing to tell, (True, {}), or told it in
        `_columns`. After a fault that is to be raised the others are not waited for. Those that made a
        process end come before those that ended with it.
        """
        asked = list(which)
        self._columns: list[dict[str, Column]] = []
        answers: dict[int, tuple[bool, Any]] = {}
        waiting = {self._worker[i] for i in asked if i not in self._lost}
        for w in sorted(waiting):  # most answer soon, and each wake-up less counts
            if self._poller is None or not self._pollers[w].poll(50) or not self._take(w, answers):
                break
            waiting.discard(w)
        patience = math.inf if limit is None else limit
        left = dict.fromkeys(waiting, patience)
        seen = {w: self._at[w] for w in waiting}
        while waiting and (
            self._restarts_left or not (self._lost or not all(fine for fine, _ in answers.values()))
        ):
            begun = time.monotonic()
            readable, died = self._ready(min(1.0, *(left[w] for w in waiting)))
            for w in readable | died:  # what it said before it died counts
                if w not in readable or not self._take(w, answers):
                    self._died(w)
                waiting.discard(w)
            spent = min(time.monotonic() - begun, 1.0)  # less than the clock tells, had this process slept
            for w in sorted(waiting):
                if self._at[w] != seen[w]:  # it goes on with another environment
                    left[w], seen[w] = patience, self._at[w]
                else:
                    left[w] -= spent
                if left[w] <= 0:
                    self._hung(w, patience)
                    waiting.discard(w)
        answers |= {i: (False, self._lost[i]) for i in asked if i in self._lost}
        return {i: answers[i] for i in sorted(answers, key=lambda i: (i in self._bystanders, i))}

    def _died(self, w: int) -> None:
        process = self.processes[w]
        process.join(1)
        code = process.exitcode
        if code is not None and code < 0:
            what = f"was killed by signal {-code} ({signal.Signals(-code).name})"
        else:
            what = f"ended with exit code {code}"
        self._bury(w, (f"died: its process {what}", ""))

    def _hung(self, w: int, limit: float) -> None:
        """Ask a process that hangs where it is, and end it."""
        trace = ""
        if hasattr(signal, "SIGUSR1"):
            with suppress(OSError):
                os.kill(self.processes[w].pid, signal.SIGUSR1)
                patience = 1.0
                while self._stacks[w].poll(patience):
                    part = os.read(self._stacks[w].fileno(), 65536)
                    if not part:
                        break
                    trace, patience = trace + part.decode(errors="replace"), 0.1
        lines = [line.strip() for line in trace.splitlines() if line.startswith("  File ")]
        where = f", in {lines[0]}" if lines else ""
        self._bury(w, (f"hangs: no answer in {limit:g} s (step_timeout){where}", trace))

    def _bury(self, w: int, told: tuple[str, str] = ("is closed", "")) -> None:
        """End process w, and what leads to it."""
        if w in self._ended:
            return
        self._ended.add(w)
        process = self.processes[w]
        if self._poller is not None:
            for fd in (self.parent_pipes[w].fileno(), process.sentinel):
                self._poller.unregister(fd)
                del self._owner[fd]
        process.kill()
        process.join(1)
        self.parent_pipes[w].close()
        self._stacks[w].close()
        culprit = max(self._at[w], self._share[w].start)
        self._at[w] = IDLE
        others = {i for i in self._share[w] if i != culprit and i not in self._lost}
        self._bystanders |= others
        self._lost |= dict.fromkeys(others, (f"was lost with environment {culprit}, of the same process", ""))
        self._lost[culprit] = told

    def _made_anew(self, i: int, fault: EnvironmentFault) -> int:
        """Replace environment i, or raise its fault: the seed it is to begin with."""
        while True:
            seed = self._spend(fault, counts=i not in self._bystanders)
            self._bystanders.discard(i)
            if self._worker[i] in self._ended:
                self._start(self._worker[i])
            self._lost.pop(i, None)
            self._ask(("make", [i], {i: None}))
            fine, told = self._answers([i], self._making_time)[i]
            if fine:
                self._same_spaces(i, told)
                return seed
            fault = self._failure(i, *told)

    def _first(self, i: int, fine: bool, told: Any) -> dict[str, Any]:
        """The info of a reset that environment i answered; if it failed, of one made anew."""
        while not fine:
            seed = self._made_anew(i, self._failure(i, *told))
            fine, told = self._begun(i, seed)
        info: dict[str, Any] = told
        return info

    def _begun(self, i: int, seed: int | None) -> tuple[bool, Any]:
        """What environment i answers when it is to reset."""
        self._ask(("reset", [i], {i: (seed, None)}))
        return self._answers([i], self.step_timeout).get(i, _WELL)

    def reset_async(self, seed: Any = None, options: dict[str, Any] | None = None) -> None:
        """Tell all environments, or those of `options["reset_mask"]`, to reset."""
        self._idle()
        seeds, self._asked, options = self._plan(seed, options)
        self._ask(("reset", self._asked, {i: (self._seed_of(i, seeds[i]), options) for i in self._asked}))
        self._state = AsyncState.WAITING_RESET

    def _seed_of(self, i: int, seed: int | None) -> int | None:
        """That of an environment made anew is its own."""
        fresh = self._fresh.pop(i, None)
        return fresh if seed is None else seed

    def _idle(self) -> None:
        """Refuse to ask when closed, after a fault, and while something else is to be waited for."""
        self._assert_is_running()
        self._usable()
        if self._state != AsyncState.DEFAULT:
            raise gym.error.AlreadyPendingCallError(
                f"{self._state.value} is still to be waited for", self._state.value
            )

    def _pending(self, state: AsyncState, timeout: float | None) -> float | None:
        self._assert_is_running()
        self._usable()
        if self._state != state:
            raise gym.error.NoAsyncCallError(f"{state.value} was not asked for", state.value)
        return self.step_timeout if timeout is None else timeout

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """The first observations, and the info."""
        limit = self._pending(AsyncState.WAITING_RESET, timeout)
        answers = self._answers(self._asked, limit)
        columns = self._columns
        told = {i: self._first(i, *answer) for i, answer in answers.items()}
        self._state = AsyncState.DEFAULT
        return deepcopy(self.observations), together(self.num_envs, told, *columns)

    def step_async(self, actions: Any) -> None:
        """Tell each environment to step, or to reset where its episode has ended."""
        self._idle()
        self._begin_step(actions)
        each = actions if isinstance(actions, np.ndarray) else list(iterate(self.action_space, actions))
        again = self._autoreset_envs.nonzero()[0].tolist()
        if again:
            going = (~self._autoreset_envs).nonzero()[0].tolist()
            resets = {i: (self._seed_of(i, None), None) for i in again}
            self._ask(("step", going, each), ("reset", again, resets))
        else:
            self._ask(("step", range(self.num_envs), each))
        self._state = AsyncState.WAITING_STEP

    def step_wait(self, timeout: float | None = None) -> Any:
        """What the steps gave."""
        limit = self._pending(AsyncState.WAITING_STEP, timeout)
        answers = self._answers(range(self.num_envs), limit)
        columns = self._columns
        outcomes = np.array(self._outcomes).reshape(self.num_envs, 3)
        rewards, (terminated, truncated) = outcomes[:, 0].copy(), outcomes[:, 1:].T != 0
        told: dict[int, dict[str, Any]] = {}
        for i, (fine, answer) in answers.items():
            if fine:
                told[i] = answer
            elif self._autoreset_envs[i]:
                rewards[i], terminated[i], truncated[i] = 0.0, False, False
                told[i] = self._first(i, fine, answer)
            else:
                rewards[i], terminated[i], truncated[i], told[i] = self._replaced(i, answer)
        self._end_step(terminated | truncated)
        self._state = AsyncState.DEFAULT
        infos = together(self.num_envs, told, *columns)
        return deepcopy(self.observations), rewards, terminated, truncated, infos

    def _replaced(self, i: int, told: tuple[str, str]) -> tuple[Any, ...]:
        """The step of an environment that was replaced. What was last seen is still in the shared memory."""
        last = deepcopy(list(iterate(self.observation_space, self.observations))[i])
        self._fresh[i] = self._made_anew(i, self._failure(i, *told))
        _, *outcome, info = self._cut(last)
        if self._same:
            first = self._first(i, *self._begun(i, self._seed_of(i, None)))
            info = first | self._final(last, info)
        return *outcome, info

    def call_async(self, name: str, /, *args: object, **kwargs: object) -> None:
        """Call a method of each environment, or get an attribute."""
        self._idle()
        self._ask(("call", range(self.num_envs), [(name, args, kwargs)] * self.num_envs))
        self._state = AsyncState.WAITING_CALL

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """What the calls return. An error of one is raised as it is; the environments stay in use."""
        results = self._results(self._pending(AsyncState.WAITING_CALL, timeout))
        self._state = AsyncState.DEFAULT
        return results

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of each environment, to a value of its own where a list or tuple is given."""
        self._idle()
        each = values if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(
                f"there is a value for each of {self.num_envs} environments: {len(each)} are given"
            )
        self._ask(("set", range(self.num_envs), [(name, value) for value in each]))
        self._results(self.step_timeout)

    def _states(self) -> list[Any]:
        self._idle()
        self._ask(("state", range(self.num_envs), [None] * self.num_envs))
        return list(self._results(self.step_timeout))

    def _set_states(self, states: list[Any]) -> None:
        self._idle()
        self._ask(("state", range(self.num_envs), states))
        self._results(self.step_timeout)

    def _results(self, limit: float | None) -> tuple[Any, ...]:
        restarts, self._restarts_left = self._restarts_left, 0  # a call is no step to be made up for
        answers = self._answers(range(self.num_envs), limit)
        self._restarts_left = restarts
        for i, (fine, told) in answers.items():
            if not fine:
                self._fault = self._failure(i, *told)
                raise self._fault
            if isinstance(told, Failed):
                self._state = AsyncState.DEFAULT
                raise told.error from _Trace(told.trace)
        return tuple(answers.get(i, _WELL)[1] for i in range(self.num_envs))

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """End the processes, in 5 seconds at most, and by force those that don't end by themselves."""
        alive = [w for w in range(len(self.processes)) if w not in self._ended]
        patience = time.monotonic() + (_CLOSING if timeout is None else min(timeout, _CLOSING))
        if terminate or (self._state != AsyncState.DEFAULT and self._fault is None):
            patience = 0.0
        for w in alive:
            if patience:
                with suppress(OSError):
                    self.parent_pipes[w].send(None)
            else:
                self.processes[w].kill()
        for w in alive:
            self.processes[w].join(max(patience - time.monotonic(), 0.2 / len(alive)))
        for w in alive:
            self._bury(w)


def _kill(processes: list[Any]) -> None:
    for process in processes:
        if process is not None:
            with suppress(ValueError):  # it was closed
                process.kill()

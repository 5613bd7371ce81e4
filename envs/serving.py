"""A process in which some environments live: it does what it is asked for, and ends with who started it."""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium.vector.utils import read_from_shared_memory, write_to_shared_memory

from pgce.envs.guard import Make, _told
from pgce.envs.infos import columns_of
from pgce.envs.soundness import look, sound_batch
from pgce.envs.state import get_state, set_state

__all__ = ["IDLE", "Environment", "Failed", "serve"]

IDLE = -1
"""What a process is busy with when it waits to be asked."""


class Failed:
    """A call that an environment answered with an error."""

    def __init__(self, error: Exception, trace: str) -> None:
        self.error, self.trace = error, trace


class Environment:
    """One of the environments of a process, which does what it is asked for."""

    def __init__(self, index: int, make: Make, memory: tuple[Any, Any, int], same_step: bool) -> None:
        self.index, self.make, self.same_step = index, make, same_step
        self.buffer, self.outcomes, self.number = memory
        self.env: Any = None

    def answer(self, command: str, given: Any) -> Any:
        """Do it, and tell what it gave; `step` is for itself."""
        if command == "reset":
            observation, info = self._reset(*given)
            self.show(observation, 0.0, False, False)
            return info
        if command == "make":
            self.close()
            self.env = self.make()
            self.space = self.env.observation_space
            rows = read_from_shared_memory(self.space, self.buffer, self.number)
            self.rows = rows if isinstance(rows, np.ndarray) else None
            return self.space, self.env.action_space
        try:
            return self._called(command, given)
        except Exception as error:
            return Failed(_sendable(error), traceback.format_exc())

    def _called(self, command: str, given: Any) -> Any:
        if command == "state":
            return get_state(self.env) if given is None else set_state(self.env, given)
        name, *rest = given
        if command == "set":
            return self.env.set_wrapper_attr(name, *rest)
        found = self.env.get_wrapper_attr(name)
        return found(*rest[0], **rest[1]) if callable(found) else found

    def step(self, action: Any) -> tuple[Any, ...]:
        """What a step gave, and where it ended an episode that is followed at once, the next one's begin."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.same_step and (terminated or truncated):
            look(self.space, observation, reward, terminated, truncated)
            last = {"final_obs": deepcopy(observation), "final_info": info}  # a reset may reuse its array
            reward = float(reward)
            observation, info = self._reset()
            info = {**info, **last}
        return observation, reward, terminated, truncated, info

    def _reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        look(self.space, observation)
        return observation, info

    def show(self, observation: Any, reward: Any, terminated: Any, truncated: Any) -> None:
        """Put a step where the one who asked for it reads it."""
        if self.rows is None:
            write_to_shared_memory(self.space, self.index, observation, self.buffer)
        else:
            self.rows[self.index] = observation
        self.outcomes[3 * self.index : 3 * self.index + 3] = float(reward), terminated, truncated

    def close(self) -> None:
        """Close the environment, if there is one; that of one that failed may fail too."""
        if self.env is not None:
            with suppress(Exception):
                self.env.close()


def serve(worker: int, own: dict[int, Environment], pipe: Any, dumped: Any, at: Any, by_main: bool) -> None:
    """Some environments in a process of their own."""
    _end_with_parent(by_main)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of the terminal
    # So may SIGTERM, and the one who trains has a last step to finish. Unlike an ignored signal, a handler
    # is not inherited by programs that the environment starts, and that it may want to terminate.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, file=dumped.fileno(), all_threads=True)
    try:
        while (message := pipe.recv()) is not None:
            replies: dict[int, tuple[bool, Any]] = {}
            infos: dict[int, dict[str, Any]] = {}
            for command, which, given in message:
                steps: dict[int, tuple[Any, ...]] = {}
                for i, data in zip(which, given, strict=True):
                    at[worker] = i
                    try:
                        if command == "step":
                            steps[i] = own[i].step(data)
                        elif command == "reset":
                            infos[i] = own[i].answer(command, data)
                        else:
                            replies[i] = True, own[i].answer(command, data)
                    except Exception as error:
                        replies[i] = False, _told(error)
                if steps:
                    _show_all(own, steps, infos, replies)
            at[worker] = IDLE
            columns, rest = columns_of(infos) if len(infos) > 1 else ({}, infos)
            replies |= {i: (True, info) for i, info in rest.items() if info}
            try:
                pipe.send((replies, columns))
            except (pickle.PicklingError, TypeError, AttributeError):
                pipe.send(({i: _told_or_why_not(reply) for i, reply in replies.items()}, columns))
    except (EOFError, OSError):  # nobody listens
        pass
    finally:
        for each in own.values():
            each.close()


def _show_all(
    own: dict[int, Environment],
    steps: dict[int, tuple[Any, ...]],
    infos: dict[int, dict[str, Any]],
    replies: dict[int, tuple[bool, Any]],
) -> None:
    """Look at the steps of a process's environments together, or closer at each, and show what is sound."""
    observations, *outcomes, told = map(list, zip(*steps.values(), strict=True))
    index = [*steps]
    one = own[index[0]]
    batch = sound_batch(one.space, observations, *outcomes)
    if batch is not None and one.rows is not None:
        one.rows[index] = batch
        np.frombuffer(one.outcomes).reshape(-1, 3)[index] = np.array(outcomes, np.float64).T
        infos.update(zip(index, told, strict=True))
        return
    for i, (*step, info) in steps.items():
        try:
            look(own[i].space, *step)
            own[i].show(*step)
        except Exception as error:
            replies[i] = False, _told(error)
        else:
            infos[i] = info


def _told_or_why_not(reply: tuple[bool, Any]) -> tuple[bool, Any]:
    """The reply, or that it cannot be sent."""
    try:
        pickle.dumps(reply)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        return False, _told(error)
    return reply


def _sendable(error: Exception) -> Exception:
    """The error, or one that tells the same where it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent(by_main: bool) -> None:
    """Let this process end when the one that started it does, however that ends."""
    parent = os.getppid()
    if sys.platform == "linux" and by_main:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    known = multiprocessing.parent_process()
    forked = multiprocessing.get_start_method(allow_none=True) != "forkserver"
    if forked and known is not None and os.getppid() != known.pid:  # it ended before
        os._exit(1)
    if not (sys.platform == "linux" and by_main):
        threading.Thread(target=watch, daemon=True).start()

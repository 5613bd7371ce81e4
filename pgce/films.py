"""Episodes of a trained agent as a film, or in a window."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from pgce.rollout import Player

__all__ = ["LONGEST", "check", "play", "save"]

LONGEST = 1_000
"""Steps of an episode that are watched."""

T = TypeVar("T")


def play(
    agent: Player,
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    mode: str = "rgb_array",
    seed: int = 0,
    greedy: bool = True,
    most: int = LONGEST,
) -> Iterator[tuple[NDArray[np.uint8] | None, float, bool]]:
    """One episode, a step at a time: the picture (H, W, 3), the return so far, and whether it has ended.

    Args:
        agent: that acts.
        env_id: of the environment.
        env_kwargs: what it is made with.
        mode: "rgb_array" gives pictures, "human" shows a window and gives None.
        seed: of the episode.
        greedy: take the most probable actions.
        most: steps after which the episode is left.

    Raises:
        ValueError: the environment cannot be shown so.
        ImportError: a package that it draws with is not there.
    """
    with closing(_shown(env_id, env_kwargs, mode)) as env:
        observation, info = env.reset(seed=seed)
        agent.reset()
        total, done, steps = 0.0, False, 0
        yield _frame(env, env_id, mode), total, done
        while not done and steps < most:
            action = agent.act(observation, action_mask=info.get("action_mask"), greedy=greedy)
            observation, reward, terminated, truncated, info = env.step(action)
            total, done, steps = total + float(reward), terminated or truncated, steps + 1
            yield _frame(env, env_id, mode), total, done


def check(env_id: str, env_kwargs: Mapping[str, Any] | None = None) -> None:
    """Refuse an environment that cannot be filmed, by drawing it once.

    Raises:
        ValueError: it cannot be shown so.
        ImportError: a package that it draws with is not there.

    Example:
        >>> from pgce import envs, films
        >>> films.check("pgce/DigitsBandit-v0")
        Traceback (most recent call last):
        ValueError: pgce/DigitsBandit-v0 cannot be shown by rgb_array: ...
    """
    with closing(_shown(env_id, env_kwargs, "rgb_array")) as env:
        env.reset(seed=0)
        _frame(env, env_id, "rgb_array")


def save(path: str | Path, frames: Iterable[NDArray[np.uint8]], fps: float = 30.0) -> Path:
    """Write pictures (H, W, 3) as a .gif, or as an .mp4 where imageio and imageio-ffmpeg are installed.

    A GIF has at most 300 of them, evenly chosen, at most 400 pixels wide: it stays small, and memory holds no
    more. An .mp4 has all.

    Example:
        >>> import tempfile, numpy as np
        >>> from pgce import films
        >>> path = films.save(tempfile.mkdtemp() + "/a.gif", [np.zeros((8, 8, 3), np.uint8)] * 3)
        >>> path.stat().st_size > 0
        True

    Raises:
        ValueError: there is no picture, or the name ends otherwise.
        ImportError: .mp4 without those packages.
    """
    file = Path(path)
    if file.suffix == ".mp4":
        try:
            import imageio.v3 as iio  # type: ignore[import-not-found, unused-ignore]
            import imageio_ffmpeg  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise ImportError('an .mp4 needs packages: pip install "pgce[video]", or take .gif') from error
        pictures = np.stack(_some([*frames]))
        file.parent.mkdir(parents=True, exist_ok=True)
        height, width = (2 * (side // 2) for side in pictures.shape[1:3])  # the codec wants even sides
        iio.imwrite(file, pictures[:, :height, :width], fps=fps, macro_block_size=1)
        return file
    if file.suffix != ".gif":
        raise ValueError(f"a film ends in .gif or .mp4: it is {str(file)!r}")
    images, every = list[Image.Image](), 1
    for n, frame in enumerate(frames):
        if n % every == 0:
            images.append(_narrow(Image.fromarray(frame)))
        if len(images) > _MOST_FRAMES:
            images, every = images[::2], 2 * every
    first, *more = _some(images)
    file.parent.mkdir(parents=True, exist_ok=True)
    duration = max(20, round(1_000 * every / fps))  # browsers take less for slow
    first.save(file, save_all=True, append_images=more, duration=duration, loop=0, optimize=True)
    return file


def _some(frames: list[T]) -> list[T]:
    """The pictures of a film, refused if there is none."""
    if not frames:
        raise ValueError("a film has at least one picture: frames is empty")
    return frames


def _narrow(image: Image.Image) -> Image.Image:
    width, height = image.size
    return image if width <= _WIDEST else image.resize((_WIDEST, height * _WIDEST // width))


_MOST_FRAMES = 300
_WIDEST = 400  # pixels


def _shown(env_id: str, env_kwargs: Mapping[str, Any] | None, mode: str) -> gym.Env[Any, Any]:
    try:
        with warnings.catch_warnings():  # of a mode it does not know, which is told below
            warnings.simplefilter("ignore", UserWarning)
            env = gym.make(env_id, **{**(env_kwargs or {}), "render_mode": mode})
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id} needs a package to be drawn: {error}") from None
    except (gym.error.Error, TypeError, ValueError) as error:
        raise ValueError(f"{env_id} cannot be shown by {mode}: {error}") from None
    known = env.metadata.get("render_modes")
    if mode not in (known or ()):
        env.close()
        raise ValueError(f"{env_id} cannot be shown by {mode}: it knows {known}")
    return env


def _frame(env: gym.Env[Any, Any], env_id: str, mode: str) -> NDArray[np.uint8] | None:
    if mode != "rgb_array":
        return None
    try:
        return np.asarray(env.render(), np.uint8)
    except gym.error.DependencyNotInstalled as error:
        raise ImportError(f"{env_id} needs a package to be drawn: {error}") from None

"""Several processes that train one model together, started by torchrun; alone, nothing is done.

Every process takes its share of the rows and of the environments. What is a sum over rows becomes a sum over
all processes: the divisor of the objective, and the gradient, which lies in one flat tensor, so that one
all-reduce a step is all of data parallelism (torch's DistributedDataParallel cuts gradients in buckets, to
send one while the next is computed). K processes with B/K rows each so take the step of one with B rows.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pgce.neighbours import Neighbours

__all__ = [
    "any_of",
    "everyones",
    "first",
    "follow",
    "gathered",
    "greatest",
    "join",
    "joined",
    "leave",
    "mean",
    "rank",
    "share",
    "size",
    "std",
    "sum_of",
    "total",
    "var_mean",
]


def size() -> int:
    """How many processes train together.

    Example:
        >>> from pgce import processes
        >>> processes.size(), processes.rank()
        (1, 0)
    """
    dist = sys.modules.get("torch.distributed")  # which nobody need load to know
    return dist.get_world_size() if dist and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0. Process 0 writes the files."""
    if size() == 1:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def join(device: str = "auto", timeout: float = 120.0) -> None:
    """Make a group of the processes that torchrun started, by NCCL on GPUs and gloo else; once.

    If torchrun is killed, they get SIGTERM.

    Args:
        device: where they compute.
        timeout: seconds that one waits for the others before all end, since one is dead or hangs.

    Raises:
        ValueError: the timeout is not positive.
    """
    if not timeout > 0:
        raise ValueError(f"processes wait for each other some seconds: process_timeout is {timeout}")
    if os.environ.get("WORLD_SIZE", "1") == "1" or size() > 1:
        return
    import torch
    import torch.distributed as dist

    from pgce.neighbours import Neighbours

    on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    follow()
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=timeout))
    atexit.register(leave)
    if not on_gpu and os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"] and os.name == "posix":
        _neighbours.append(Neighbours(rank(), size(), timeout, lambda told: gathered(told)[0]))


def follow() -> None:
    """Get SIGTERM when what started this process dies (on Linux), so that a run saves, and ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


_neighbours: list[Neighbours] = []
"""How processes of one machine tell each other; empty where there is nobody, or another machine."""
_TYPES = "torch.float32", "torch.float64", "torch.int64"


def leave(*, together: bool = False) -> None:
    """Give the group up, where there is one.

    Args:
        together: first wait for the others to come so far.
    """
    if size() > 1:
        import torch.distributed as dist

        if together:
            dist.barrier()
        while _neighbours:
            _neighbours.pop().close()
        dist.destroy_process_group()
        gc.collect()  # what is left of it has threads, which must have ended before the interpreter does


def total(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors, in place of this one's."""
    if _neighbours and tensor.is_contiguous() and str(tensor.dtype) in _TYPES and tensor.device.type == "cpu":
        _neighbours[0].add(tensor.detach().numpy())
    elif size() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def first(tensor: Tensor) -> Tensor:
    """Process 0's tensor, in place of this one's."""
    if size() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, 0)
    return tensor


def sum_of(numbers: Sequence[float]) -> list[float]:
    """The sums of all processes' numbers, in double precision.

    Example:
        >>> from pgce import processes
        >>> processes.sum_of([1.0, 2.0])
        [1.0, 2.0]
    """
    if size() == 1:
        return [*numbers]
    import torch

    return total(torch.tensor(numbers, dtype=torch.float64, device=_place())).tolist()


def any_of(flag: bool) -> bool:
    """Whether it is so in any process: all then do the same."""
    return flag if size() == 1 else sum_of([float(flag)])[0] > 0


def mean(values: Tensor) -> Tensor:
    """The mean () of all processes' values."""
    if size() == 1:
        return values.mean()
    number, added = sum_of([float(values.numel()), values.double().sum().item()])
    return values.new_tensor(added / max(number, 1.0))


def std(values: Tensor) -> Tensor:
    """The standard deviation () of all processes' values, n − 1 in its divisor."""
    if size() == 1:
        return values.std()
    squares, number = sum_of([(values - mean(values)).double().square().sum().item(), float(values.numel())])
    return values.new_tensor((squares / max(number - 1, 1.0)) ** 0.5)


def greatest(values: Tensor) -> Tensor:
    """The greatest () of all processes' values, none of them negative; 0 if there is none."""
    own = values.max() if values.numel() else values.new_zeros(())
    return own if size() == 1 else own.new_tensor(max(everyones(own.item())))


def var_mean(rows: Tensor) -> tuple[float, Tensor, Tensor]:
    """Number of all processes' rows (B, D), their variance (D,), n in its divisor, and their mean (D,)."""
    import torch

    if size() == 1:
        if len(rows) == 0:
            return 0.0, rows.sum(0), rows.sum(0)
        return float(len(rows)), *torch.var_mean(rows, 0, correction=0)
    (number,) = sum_of([float(len(rows))])
    middle = total(rows.sum(0)) / max(number, 1.0)
    return number, total((rows - middle).square().sum(0)) / max(number, 1.0), middle


def gathered(content: bytes) -> list[bytes]:
    """What every process has to tell, by rank.

    Example:
        >>> from pgce import processes
        >>> processes.gathered(b"here")
        [b'here']
    """
    if size() == 1:
        return [content]
    if _neighbours:
        return _neighbours[0].gather(content)
    import torch
    import torch.distributed as dist

    place = _place()
    length = torch.tensor([len(content)], device=place)
    lengths = [torch.zeros_like(length) for _ in range(size())]
    dist.all_gather(lengths, length)
    longest = int(torch.stack(lengths).max())
    own = torch.zeros(max(longest, 1), dtype=torch.uint8, device=place)
    if content:
        own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8).to(place)
    all_ = [torch.empty_like(own) for _ in range(size())]
    dist.all_gather(all_, own)
    return [bytes(each[: int(n)].cpu().numpy()) for each, n in zip(all_, lengths, strict=True)]


def joined(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all processes' tensors, by rank.

    Example:
        >>> import torch
        >>> from pgce import processes
        >>> processes.joined(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if size() == 1:
        return rows
    import torch

    own = rows.detach().cpu().contiguous()
    every = b"".join(gathered(own.view(torch.uint8).numpy().tobytes()))
    if not every:
        return rows
    return torch.frombuffer(bytearray(every), dtype=own.dtype).view(-1, *own.shape[1:]).to(rows.device)


def everyones(value: Any) -> list[Any]:
    """What every process says, by rank, as JSON has it.

    Example:
        >>> from pgce import processes
        >>> processes.everyones({"steps": 5})
        [{'steps': 5}]
    """
    return [value] if size() == 1 else [json.loads(each) for each in gathered(json.dumps(value).encode())]


def share(value: Any) -> Any:
    """What process 0 says, as JSON has it.

    Example:
        >>> from pgce import processes
        >>> processes.share({"due": True})
        {'due': True}
    """
    if size() == 1:
        return value
    return json.loads(gathered(json.dumps(value).encode() if rank() == 0 else b"")[0])


def _place() -> Any:
    """Where what processes tell each other lies."""
    import torch
    import torch.distributed as dist

    return torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")

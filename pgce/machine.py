"""What computes fastest on the CPU at hand: matrix products, and memory for them."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

import torch

__all__ = ["fast_products", "keep_memory"]

_LEAST = 5_000_000  # multiplications of one product, from which on oneDNN's is the faster one
_BLOCK, _KEPT = 32 * 2**20, 256 * 2**20  # bytes


@contextmanager
def fast_products(multiplications: int) -> Iterator[None]:
    """Inside, matrix products of float32 on a CPU are computed by oneDNN where that is faster than MKL.

    torch takes MKL, which on AMD's processors with AVX-512 needs twice oneDNN's time, unless products may be
    rounded to bfloat16; so that is permitted there, if the processor is seen not to do it. Values differ by
    the order of sums only. oneDNN makes a program for every shape, in half a millisecond: shapes should be
    few.

    Args:
        multiplications: of the largest product; below 5 million nothing is gained.

    Example:
        >>> import torch
        >>> from pgce.machine import fast_products
        >>> a = torch.randn(512, 512)
        >>> with fast_products(512**3):
        ...     product = a @ a
        >>> bool((product - a.double() @ a.double()).abs().max() < 1e-3)
        True
    """
    with _by_onednn() if multiplications >= _LEAST and _pays() else nullcontext():
        yield


@contextmanager
def _by_onednn() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _pays() -> bool:
    """Whether oneDNN is faster here, which is told by the processor's kind, and as exact, which is tried."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        vendor = Path("/proc/cpuinfo").read_text()
    except OSError:
        vendor = platform.processor()
    if "AuthenticAMD" not in vendor:
        return False
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator) for shape in ((1024, 256), (256, 256)))
    exact = a.double() @ b.double()
    with _by_onednn():
        error = (torch.mm(a, b) - exact).abs().max() / exact.abs().max()
    return bool(error < 1e-5)


@cache
def keep_memory() -> None:
    """Let glibc keep memory of tensors that are done with, up to 256 MiB, for those of the next step.

    Otherwise it may give every megabyte back to the system and ask for it anew, whose pages cost more to be
    cleared than what is computed in them.

    Example:
        >>> from pgce.machine import keep_memory
        >>> keep_memory()
    """
    if sys.platform == "linux":
        allocate = getattr(ctypes.CDLL(None), "mallopt", None)
        if allocate is not None:
            allocate(-3, _BLOCK)  # M_MMAP_THRESHOLD: smaller ones lie in the heap
            allocate(-1, _KEPT)  # M_TRIM_THRESHOLD

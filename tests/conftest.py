"""Fixtures for every test. The tests also run outside the checkout, against an installed wheel."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import pytest

# Before torch is imported, here and in child processes: the networks of the tests are so small that
# a second thread costs more than it brings.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, and no limit of time that a busy machine could break.
hypothesis.settings.register_profile("tests", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root, for tests of files that are not installed; skips where there is none."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "pyproject.toml").is_file():
        pytest.skip("needs the checkout, not only the installed package")
    return root


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a CUDA device where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture
def fault_seed() -> random.Random:
    """Random moments of faults; PGCE_FAULT_SEED, which a failure tells, repeats them."""
    seed = int(os.environ.get("PGCE_FAULT_SEED", random.randrange(2**32)))
    print(f"PGCE_FAULT_SEED={seed}")
    return random.Random(seed)

"""What the tests of faults share: a generator of random moments whose seed is told."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def fault_seed():
    """Random numbers; PGCE_FAULT_SEED repeats a failure."""
    seed = int(os.environ.get("PGCE_FAULT_SEED", random.randrange(2**32)))
    print(f"PGCE_FAULT_SEED={seed}")
    return random.Random(seed)

"""What a user's Python draws from without being given a generator: three global ones."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_draws(seed: int) -> None:
    """Seed the global generators of torch, of `random` and of NumPy.

    Args:
        seed: from 0 to 2⁶³ - 1. NumPy gets its last 32 bits, all that it takes.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (a user's code may draw from it)


@contextmanager
def kept_draws() -> Iterator[None]:
    """Put the three generators back afterwards to where they were, torch's on GPUs in use too."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002

"""The process that trains: settings that make it fast, and what whoever calls keeps of it."""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from halfmeg.places.draws import kept_draws

_one_at_a_time = threading.RLock()


@contextmanager
def kept_process() -> Iterator[None]:
    """Train within a program that does other things: its settings are afterwards what they were.

    Its global generators go on where they stood. Otherwise a loop that draws settings and trains
    would draw the same ones after each run. Gradients are on meanwhile, whatever it has set, and
    its number of threads comes back. So is the type of new tensors, which is float32 meanwhile. A
    second thread waits, as both would draw from these generators; a listener may train.
    """
    with _one_at_a_time, kept_draws(), torch.inference_mode(False), torch.enable_grad():
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)


def prepare_process(threads: int) -> None:
    """Make a process ready to train, on so many threads; 0 leaves torch's number."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory for the next step instead of returning it to the system.

    Each step allocates the same large tensors. By default glibc maps each anew, and the page
    faults cost a plain CNN several percent of its step (docs/performance.md).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8  # <malloc.h>
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 64 * 2**20)
    libc.mallopt(m_arena_max, 1)

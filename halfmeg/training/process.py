"""Settings of the whole process that make training fast."""

from __future__ import annotations

import ctypes
import platform

import torch


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

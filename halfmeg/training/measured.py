"""What was measured on this machine and is not measured again.

Each answer stands in a file of its own in the cache, named by a hash of what it depends on: the
processor with its instructions, threads, torch's version, and the facts of the question. The first
that is measured stays, so that the same config gives the same bits here tomorrow.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from halfmeg.artifacts.environment import processor_name
from halfmeg.data.cache import MEASURED, cache_folder
from halfmeg.files import check_json, locked, make_folder, read_json, write_json

T = TypeVar("T")


def clock() -> Callable[[], float]:
    """Return the clock to time with, in seconds: on one thread the processor's time.

    Another program does not lengthen that. With more threads the waits between them count too.
    """
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def machine() -> dict[str, Any]:
    """Return what times depend on beside the work itself."""
    instructions = torch.cpu.get_capabilities()
    return {
        "processor": processor_name(),
        "instructions": sorted(name for name, there in instructions.items() if there is True),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def remember(facts: Mapping[str, Any], kind: type[T], measure: Callable[[], Any]) -> T:
    """Return the cache's answer for some facts on this machine; without one, measure and keep it.

    Processes take turns, so that they do not measure beside each other, and agree. What is damaged
    is measured again; where the cache cannot be written, nothing is kept.

    Args:
        facts: what the answer depends on beside the machine, as JSON types.
        kind: of the answer, as msgspec knows it.
        measure: makes it, of JSON types.
    """
    asked = machine() | dict(facts)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / MEASURED / f"{digest[:32]}.json"

    def stored() -> T | None:
        try:
            found = read_json(path, dict[str, Any])
            return check_json(found["answer"], kind) if found["asked"] == asked else None
        except (OSError, ValueError, KeyError):
            return None

    if (found := stored()) is not None:
        return found
    answer = None
    try:
        make_folder(path.parent)
        with locked(path.with_name("lock")):
            if (found := stored()) is not None:
                return found
            answer = measure()
            write_json(path, {"asked": asked, "answer": answer})
    except OSError:
        answer = measure() if answer is None else answer
    return check_json(answer, kind)

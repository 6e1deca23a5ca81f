"""torch.compile: whether it can be had, and whether a run earns back the time that it takes."""

from __future__ import annotations

import copy
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, final

import msgspec
import torch
from torch import Tensor, nn

from halfmeg.config import RunConfig
from halfmeg.data.shape import ImageShape
from halfmeg.evaluation.precision import autocast
from halfmeg.training.measured import clock, remember
from halfmeg.training.plan import Plan

Seconds = Annotated[float, msgspec.Meta(ge=0)]

SHORTEST = 300.0
"""Seconds of training below which compiling is not tried: it takes half a minute or more for each
size of images, and saves a tenth of a step where it saves much (docs/performance.md)."""

ROUNDS = 5

NO_COMPILER = "there is no C++ compiler here (g++, c++ or clang++)"


def has_compiler() -> bool:
    """Return whether torch.compile finds a C++ compiler."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++")))


def check_compiler(config: RunConfig) -> None:
    """Raise where a config asks for what needs a compiler, and there is none.

    Raises:
        ValueError: there is none.
    """
    if config.compile is True and config.device == "cpu" and not has_compiler():
        raise ValueError(f"compile=true: {NO_COMPILER}; install one, or set compile=false")


def compiled(
    forward: Callable[[Tensor], Tensor], device: torch.device, *, on: bool
) -> Callable[[Tensor], Tensor]:
    """Return the same function, compiled where that is on; on a GPU as CUDA graphs."""
    if not on:
        return forward
    mode = "reduce-overhead" if device.type == "cuda" else "default"
    return torch.compile(forward, mode=mode, dynamic=False)


@final
@dataclass(frozen=True)
class StepTimes:
    """Seconds of a step as it is and compiled, and of compiling; why not, where that failed."""

    plain: Seconds
    compiled: Seconds = 0.0
    compiling: Seconds = 0.0
    failure: str = ""


def worth_compiling(
    model: nn.Module, shape: ImageShape, batch_size: int, dtype: torch.dtype, plan: Plan,
    facts: dict[str, Any],
) -> tuple[bool, str]:  # fmt: skip
    """Return whether compiling saves more time over a run than it takes, and why.

    Args:
        model: on its device; it stays as it is.
        shape: of the images of full size.
        batch_size: of a step in this process.
        dtype: of the run's products.
        plan: of the run; each size of image and of batch is compiled anew.
        facts: what the network depends on.
    """
    device = next(model.parameters()).device
    if device.type == "cpu" and not has_compiler():
        return False, NO_COMPILER
    batch = torch.zeros(batch_size, *shape, dtype=dtype, device=device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    facts = facts | {"batch": batch_size, "dtype": str(dtype), "device": str(device)}

    def measure(*, compiling: bool) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch's compiler says about itself
            return asdict(time_steps(model, batch, dtype, compiling=compiling))

    kinds = {(b.stop - b.start, epoch.size) for epoch in plan.epochs for b in epoch.batches}
    most_images, largest = (max(numbers) for numbers in zip(*kinds, strict=True))
    # in steps of full size; the time that one takes is in proportion to its pixels
    images = sum(epoch.num_images * (epoch.size / largest) ** 2 for epoch in plan.epochs)
    steps = images / most_images
    plain = remember(facts | {"step": "plain"}, StepTimes, lambda: measure(compiling=False)).plain
    if steps * plain < SHORTEST:
        return False, f"{steps * plain:.0f} s of training are too short to compile for"
    times = remember(facts | {"step": "compiled"}, StepTimes, lambda: measure(compiling=True))
    return judge(times, steps, len(kinds))


def judge(times: StepTimes, steps: float, num_kinds: int) -> tuple[bool, str]:
    """Return whether so many steps save more than compiling takes, and why.

    Args:
        times: of a step of full size.
        steps: of the run, counted in such steps.
        num_kinds: of sizes of images and batches, each of which is compiled anew.
    """
    if times.failure:
        return False, f"it cannot be compiled: {times.failure}"
    saved, cost = steps * (times.plain - times.compiled), num_kinds * times.compiling
    told = (
        f"a step takes {1000 * times.compiled:.0f} ms compiled and {1000 * times.plain:.0f} ms "
        f"else, over the run {saved:+.0f} s saved for {cost:.0f} s of compiling"
    )
    return saved > cost, told


def time_steps(
    model: nn.Module, images: Tensor, dtype: torch.dtype, *, compiling: bool
) -> StepTimes:
    """Time steps forward and backward, as they are and compiled in turn; the least of each."""
    device = images.device
    now = clock() if device.type == "cpu" else time.perf_counter

    def step(network: Callable[[Tensor], Tensor]) -> float:
        started = now()
        with autocast(device, dtype):
            logits = network(images)
        logits.float().logsumexp(1).sum().backward()  # type: ignore[no-untyped-call]
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return now() - started

    plain = copy.deepcopy(model).train()
    step(plain)
    if not compiling:
        return StepTimes(min(step(plain) for _ in range(2)))
    copied = copy.deepcopy(model).train()
    network = compiled(copied, device, on=True)
    try:
        started = time.perf_counter()
        step(network)
        first = time.perf_counter() - started  # compilers are processes of their own
        pairs = [(step(plain), step(network)) for _ in range(ROUNDS)]
        if not _finite_gradients(copied):  # seen on a GPU: docs/scale.md
            return StepTimes(0.0, failure="its gradients are no numbers")
    except Exception as error:  # the compiler's errors have no common base
        text = " ".join(str(error).partition("Set TORCH")[0].split())[:200]
        return StepTimes(0.0, failure=f"{type(error).__name__}: {text}")
    of_plain, of_compiled = (min(times) for times in zip(*pairs, strict=True))
    return StepTimes(of_plain, of_compiled, max(0.0, first - of_compiled))


def _finite_gradients(model: nn.Module) -> bool:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return all(bool(gradient.isfinite().all()) for gradient in gradients)

"""What a bundle costs to run, by runtime: latency, throughput, file size, memory."""

from __future__ import annotations

import multiprocessing
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfmeg.artifacts.bundle import Bundle
from halfmeg.artifacts.graph import open_onnx
from halfmeg.shipping.onnx import FromPixels, fold_batchnorm
from halfmeg.shipping.predict import Runner
from halfmeg.shipping.verify import logit_tolerance, verify_onnx
from halfmeg.training.compiling import has_compiler

BATCH_SIZE = 128


@dataclass(frozen=True)
class Measurement:
    """One runtime on a number of threads; times are of all rounds together.

    Attributes:
        latency_ms, latency_p95_ms: of one image, median and 95th percentile.
        images_per_second: in batches of 128, median.
        file_bytes: of what the runtime loads.
        peak_memory_bytes: what loading the network and running one batch of 128 adds to the peak
            of a process of its own, the libraries left out.
        max_difference: largest difference of a logit from torch's; from onnxruntime's where the
            bundle is of a network of one's own.
        exact: whether that difference is rounding.
    """

    runtime: str
    threads: int
    latency_ms: float
    latency_p95_ms: float
    images_per_second: float
    file_bytes: int
    peak_memory_bytes: int
    max_difference: float
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return dict(vars(self))


def _open_torch(bundle: Bundle, threads: int, *, compiled: bool = False) -> Runner:
    network = fold_batchnorm(bundle.load_model(), bundle.image_shape)
    model = FromPixels(network, bundle.mean, bundle.std).eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Runner = torch.compile(model) if compiled else model

    def run(images: Tensor) -> Tensor:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return forward(images)

    return run


def _open_onnxruntime(name: str) -> Callable[[Bundle, int], Runner]:
    def open_it(bundle: Bundle, threads: int) -> Runner:
        return open_onnx(bundle.read_file(name), threads)

    return open_it


def _open_openvino(bundle: Bundle, threads: int) -> Runner:
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(str(bundle.folder / "model.onnx"), "CPU", settings)
    return lambda images: torch.from_numpy(np.array(compiled(images.numpy())[0]))


@contextmanager
def _recompiling(times: int) -> Iterator[None]:
    """Let torch compile a network so many times; beyond 8 it would go on without, in silence."""
    import torch._dynamo

    torch._dynamo.reset()  # what another call has compiled counts too
    with torch._dynamo.config.patch(recompile_limit=times):
        yield


@dataclass(frozen=True)
class Runtime:
    """How to open a bundle, what it loads, and the package that it needs."""

    open: Callable[[Bundle, int], Runner]
    file: str
    needs: str


RUNTIMES: dict[str, Runtime] = {
    "torch": Runtime(_open_torch, "model.safetensors", "torch"),
    "torch compiled": Runtime(partial(_open_torch, compiled=True), "model.safetensors", "torch"),
    "onnxruntime": Runtime(_open_onnxruntime("model.onnx"), "model.onnx", "onnxruntime"),
    "onnxruntime int8": Runtime(
        _open_onnxruntime("model.int8.onnx"), "model.int8.onnx", "onnxruntime"
    ),
    "openvino": Runtime(_open_openvino, "model.onnx", "openvino"),
}


def available_runtimes(bundle: Bundle) -> list[str]:
    """Return the runtimes that are installed and for which the bundle has the file."""
    return [
        name
        for name, runtime in RUNTIMES.items()
        if find_spec(runtime.needs) is not None
        and bundle.has(runtime.file)
        and not (bundle.is_own and runtime.needs == "torch")  # its Python is not in the bundle
        and (name != "torch compiled" or has_compiler())
    ]


def bench(
    bundle: Bundle,
    *,
    threads: Sequence[int] = (1, 2),
    rounds: int = 20,
    runtimes: Sequence[str] | None = None,
) -> list[Measurement]:
    """Measure all runtimes in one process, interleaved: each round runs each of them.

    Args:
        bundle: what to run, on random images.
        threads: numbers of threads.
        rounds: each times 5 single images and one batch.
        runtimes: names from `RUNTIMES`; None takes what is installed.

    Raises:
        ValueError: fewer than one round, no such runtime here, a file of the bundle that does
            not do what its weights do, or a runtime that ends its process.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} is out of range; allowed: 1 or more")
    present = available_runtimes(bundle)
    names = present if runtimes is None else list(runtimes)
    for name in names:
        if name not in present:
            raise ValueError(f"runtime {name!r} is not here; allowed: {', '.join(present)}")
    for file in {RUNTIMES[name].file for name in names} - {"model.safetensors"}:
        # An int8 file that is far from the weights on drawn images may be right on real ones.
        verify_onnx(bundle, file, compare=file != "model.int8.onnx")
    generator = torch.Generator().manual_seed(0)
    size = (BATCH_SIZE, *bundle.image_shape)
    batch = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    one = batch[:1].clone()
    reference = RUNTIMES["onnxruntime" if bundle.is_own else "torch"].open(bundle, 1)(batch)
    before = torch.get_num_threads()
    differences = {}
    with ExitStack() as limits, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch's compiler says about itself
        if "torch compiled" in names:  # twice for each number of threads, all of the same code
            limits.enter_context(_recompiling(8 + 2 * len(threads)))
        runners = {(n, t): RUNTIMES[n].open(bundle, t) for n in names for t in threads}
        for key, run in runners.items():  # the first calls compile and warm up
            run(one)
            differences[key] = (run(batch) - reference).abs().max().item()
    singles: dict[tuple[str, int], list[float]] = {key: [] for key in runners}
    batches: dict[tuple[str, int], list[float]] = {key: [] for key in runners}
    for _ in range(rounds):
        for key, run in runners.items():
            run(one)  # wakes this runtime's threads and cache again
            for images, times in ((one, singles[key]),) * 5 + ((batch, batches[key]),):
                started = time.perf_counter()
                run(images)
                times.append(time.perf_counter() - started)
    torch.set_num_threads(before)
    memory = {name: _peak_memory(bundle.folder, name) for name in names}
    return [
        Measurement(
            runtime=name,
            threads=count,
            latency_ms=1000 * statistics.median(singles[name, count]),
            latency_p95_ms=1000 * float(np.quantile(singles[name, count], 0.95)),
            images_per_second=BATCH_SIZE / statistics.median(batches[name, count]),
            file_bytes=(bundle.folder / RUNTIMES[name].file).stat().st_size,
            peak_memory_bytes=memory[name],
            max_difference=differences[name, count],
            exact=differences[name, count] <= logit_tolerance(reference),
        )
        for name, count in runners
    ]


def _peak_memory(folder: Path, name: str) -> int:
    """Return by how much the peak of a fresh process grows to open a bundle and run a batch."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run_once, args=(theirs, folder, name))
    process.start()
    theirs.close()
    try:
        return int(ours.recv())
    except EOFError:
        raise ValueError(
            f"the memory of {name} cannot be measured: its process ended (out of memory?)"
        ) from None
    finally:
        process.join()


def _run_once(pipe: Any, folder: Path, name: str) -> None:
    bundle = Bundle.open(folder)
    images = torch.zeros(BATCH_SIZE, *bundle.image_shape, dtype=torch.uint8)
    if name.startswith("onnxruntime"):
        import onnxruntime  # noqa: F401 (the library itself is not what is measured)
    before = _peak_resident_bytes()
    RUNTIMES[name].open(bundle, 1)(images)
    pipe.send(_peak_resident_bytes() - before)


def _peak_resident_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # Linux; getrusage there counts what the parent held too
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

"""What `kernels=auto` gains: a step of training with the fastest way of each convolution.

    python benchmarks/kernels.py [--models mobilenetv2 gated convmixer] [--rounds 6] [--json]

Both train the same network on the same random images of 32×32, in turn, round by round; stated is
the ratio of each round, of their medians, and which convolutions run another way. What is measured
to choose is kept for the benchmark alone, so that the seconds of choosing are those of a first run.
On one thread times are of the processor, which other programs do not lengthen.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from arguments import plain_parser
from torch import Tensor

from halfmeg.artifacts.environment import environment
from halfmeg.data.shape import image_shape
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.networks.own import use_channels_last
from halfmeg.networks.table import MODELS, build_model
from halfmeg.networks.ways import right_kernels, with_kernels
from halfmeg.training.kernels import choose_kernels
from halfmeg.training.measured import clock
from halfmeg.training.process import keep_freed_memory

SIZE = 32


def measure(name: str, precision: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """Measure one network: a step of each kind to warm up, then `rounds` in turn."""
    device, now = torch.device("cpu"), clock()
    dtype = compute_dtype(precision, device)
    model = build_model(name, 10, SIZE).train()
    use_channels_last(model)
    started = now()
    right = right_kernels(model, [image_shape(SIZE)], dtype)
    ways = right | choose_kernels(model, [image_shape(SIZE)], batch_size, dtype)
    choosing = now() - started
    images = torch.randn(batch_size, 3, SIZE, SIZE).to(dtype, memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % 10
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.Adam(m.parameters(), fused=True) for m in (model, twin)]
    networks: list[Callable[[Tensor], Tensor]] = [
        with_kernels(model, right), with_kernels(twin, ways),
    ]  # fmt: skip
    seconds: list[list[float]] = [[], []]
    for number in range(1 + rounds):
        for times, network, optimizer in zip(seconds, networks, optimizers, strict=True):
            started = now()
            with autocast(device, dtype):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if number:
                times.append(now() - started)
    default, auto = seconds
    return {
        "model": name,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "default_ms": 1000 * statistics.median(default),
        "auto_ms": 1000 * statistics.median(auto),
        "ratio": statistics.median(default) / statistics.median(auto),
        "ratio_of_each_round": [a / b for a, b in zip(default, auto, strict=True)],
        "choosing_seconds": choosing,
        "ways": ways,
    }


def main() -> None:
    """Measure and print."""
    parser = plain_parser(__doc__)
    parser.add_argument(
        "--models",
        nargs="+",
        default=["mobilenetv2", "gated", "convmixer"],
        choices=list(MODELS),
    )
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HALFMEG_CACHE"] = folder
        rows = [measure(name, args.precision, args.batch_size, args.rounds) for name in args.models]
    if args.as_json:
        print(json.dumps({"rows": rows, "machine": environment()}, indent=2))
        return
    for row in rows:
        each = ", ".join(f"{ratio:.2f}" for ratio in row["ratio_of_each_round"])
        print(
            f"{row['model']:14} {row['dtype']}: {row['default_ms']:.0f} ms a step by default, "
            f"{row['auto_ms']:.0f} ms with kernels=auto, ratio {row['ratio']:.2f} ({each}); "
            f"chosen in {row['choosing_seconds']:.0f} s"
        )
        for layer, way in row["ways"].items():
            print(f"    {way:20} {layer}")


if __name__ == "__main__":
    main()

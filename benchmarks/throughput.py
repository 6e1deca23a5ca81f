"""Training speed of halfmeg's loop against two others, in one interleaved run.

All train the same network on the same images with the same five augmentations and batch size.
Ours is `halfmeg.fit` itself. The conventional loop is what a tutorial would write: float32, the
default memory format, a DataLoader with 2 workers that augments image by image with Pillow (as
torchvision's transforms do), and plain Adam. The eager one is plain PyTorch without what is slow
there: it cuts and augments whole batches with our function and computes in the type that we do, so
what is left is the loop, the order of memory, the optimizer and the allocator. Each of the two has
a process of its own, so that our setting of the allocator does not speed it up; no two loops run
at the same time.

    python benchmarks/throughput.py --data PATH [--models NAME…] [--json] [--out FILE]

It measures the whole table of networks. `--out` keeps the row of each as it ends, and the same
command goes on from there; rows of other settings are refused.

Rounds alternate, so that a change in the machine's speed meets all; each figure is the median
over rounds. `gemm_share` is the useful arithmetic of our training (6 times the network's
multiply-accumulates for each image) over the machine's own matrix product, measured between the
rounds, in the type that we train in: bfloat16 where the processor has it, float32 elsewhere.
`augment_share` is the part of our step that cuts, augments and normalizes a batch; decoding takes
no part of a step, since the images are decoded once, before training.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.data
from arguments import build_parser, fewer, open_data
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from worker import Worker

from halfmeg.artifacts.environment import environment
from halfmeg.config import RunConfig
from halfmeg.data.augment import augment
from halfmeg.data.dataset import DataSplits
from halfmeg.evaluation.precision import autocast, compute_dtype
from halfmeg.files import write_atomically
from halfmeg.networks.summary import count_macs
from halfmeg.networks.table import MODELS, build_model
from halfmeg.training.fit import fit
from halfmeg.training.plan import augmentation_of, batch_bounds
from halfmeg.training.recipes import study_shared


def uniform(low: float, high: float) -> float:
    """Draw a number as torchvision's transforms do."""
    return float(torch.empty(1).uniform_(low, high).item())


class PerImageDataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """The conventional way: one image at a time, with the operations of torchvision on Pillow."""

    def __init__(self, data: DataSplits, config: RunConfig) -> None:
        self.images = data.train.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels: list[int] = data.train.labels.tolist()
        self.mean, self.std = data.mean, data.std
        self.config = config

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one augmented, normalized image and its label."""
        config = self.config
        image = Image.fromarray(self.images[index])
        image = image.rotate(uniform(-config.rotation, config.rotation))
        side = image.width
        image = ImageOps.expand(image, config.crop)
        left, top = (int(torch.randint(0, 2 * config.crop + 1, (1,))) for _ in range(2))
        image = image.crop((left, top, left + side, top + side))
        changes = (
            (ImageEnhance.Brightness, config.brightness),
            (ImageEnhance.Contrast, config.contrast),
            (ImageEnhance.Color, config.saturation),
        )
        for change in torch.randperm(len(changes)).tolist():
            enhancer, spread = changes[change]
            image = enhancer(image).enhance(uniform(1 - spread, 1 + spread))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (pixels - mean[:, None, None]) / std[:, None, None], self.labels[index]


def conventional_loop(pipe: Connection, data: DataSplits, config: RunConfig) -> None:
    """Train an epoch of each network that is asked for; send its images per second."""
    loader = torch.utils.data.DataLoader(
        PerImageDataset(data, config),
        batch_size=config.batch_size,
        shuffle=True,
        num_workers=2,
        persistent_workers=True,
    )
    while name := pipe.recv():
        model = build_model(name, len(data.classes))
        betas = (config.beta1, config.beta2)
        optimizer = torch.optim.Adam(model.parameters(), config.lr, betas, foreach=False)
        started = time.perf_counter()
        for images, labels in loader:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pipe.send(len(data.train) / (time.perf_counter() - started))


def eager_loop(pipe: Connection, data: DataSplits, config: RunConfig) -> None:
    """Train an epoch of each network that is asked for; send its images per second."""
    device = torch.device(config.device)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    dtype = compute_dtype(config.precision, device)
    generator = torch.Generator().manual_seed(0)
    while name := pipe.recv():
        model = build_model(name, len(data.classes))
        optimizer = torch.optim.Adam(model.parameters(), config.lr, (config.beta1, config.beta2))
        started = time.perf_counter()
        order = torch.randperm(len(data.train))
        for bounds in batch_bounds(len(data.train), config.batch_size):
            indices = order[bounds]
            images = augment(
                data.train.images[indices], augmentation_of(config), mean, std,
                generator=generator, dtype=dtype,
            )  # fmt: skip
            with autocast(device, dtype):
                logits = model(images.contiguous())
            loss = F.cross_entropy(logits.float(), data.train.labels[indices])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pipe.send(len(data.train) / (time.perf_counter() - started))


def our_images_per_second(config: RunConfig, data: DataSplits) -> float:
    """Train one epoch with `fit` and return its speed."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(config, data, Path(folder) / "run").result()
    assert result is not None
    return float(result["images_per_second"])


def augment_seconds(config: RunConfig, data: DataSplits) -> float:
    """Return the time to cut, augment and normalize one batch."""
    device = torch.device(config.device)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    dtype = compute_dtype(config.precision, device)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(data.train), generator=generator)
    repeats = 10
    started = time.perf_counter()
    for repeat in range(repeats):
        indices = order.roll(-repeat * config.batch_size)[: config.batch_size]
        augment(
            data.train.images[indices], augmentation_of(config), mean, std,
            generator=generator, dtype=dtype,
        )  # fmt: skip
    return (time.perf_counter() - started) / repeats


def gemm_flops(dtype: torch.dtype, size: int = 2048, repeats: int = 5) -> float:
    """Return the floating-point operations per second of a matrix product."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    left @ right
    started = time.perf_counter()
    for _ in range(repeats):
        left @ right
    return 2 * size**3 * repeats / (time.perf_counter() - started)


def config_of(model: str, batch_size: int) -> RunConfig:
    """Return an epoch of the study's recipe."""
    return study_shared().override(
        [f"model={model}", "epochs=1", f"batch_size={batch_size}", "schedule=constant",
         "val_fraction=0", "monitor=val"]
    )  # fmt: skip


def measure(
    model: str, data: DataSplits, conventional: Worker, plain: Worker, *, batch_size: int,
    rounds: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure one network: an untimed round to warm up, then `rounds` of the three loops."""
    config = config_of(model, batch_size)
    dtype = compute_dtype(config.precision, torch.device(config.device))
    ours, theirs, eager, gemm, augmenting = [], [], [], [], []
    for _ in range(1 + rounds):
        ours.append(our_images_per_second(config, data))
        augmenting.append(augment_seconds(config, data))
        gemm.append(gemm_flops(dtype))
        theirs.append(conventional.request(model))
        eager.append(plain.request(model))
    our_speed, their_speed, eager_speed = (
        statistics.median(speeds[1:]) for speeds in (ours, theirs, eager)
    )
    rate = statistics.median(gemm[1:])
    step_seconds = batch_size / our_speed
    macs = count_macs(build_model(model, len(data.classes)))
    return {
        "model": model,
        "images_per_second": our_speed,
        "conventional_images_per_second": their_speed,
        "ratio": our_speed / their_speed,
        "ratio_of_each_round": [a / b for a, b in zip(ours[1:], theirs[1:], strict=True)],
        "eager_images_per_second": eager_speed,
        "ratio_to_eager": our_speed / eager_speed,
        "ratio_to_eager_of_each_round": [a / b for a, b in zip(ours[1:], eager[1:], strict=True)],
        "gemm_share": our_speed * 6 * macs / rate,
        "gemm_gflops": rate / 1e9,
        "gemm_dtype": str(dtype).removeprefix("torch."),
        "augment_share": statistics.median(augmenting[1:]) / step_seconds,
        "batch_size": batch_size,
        "num_images": len(data.train),
        "rounds": rounds,
        "data": data.name,
    }


def main() -> None:
    """Measure what is missing, and print all."""
    parser = build_parser(__doc__)
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="NAME"
    )
    parser.add_argument("--images", type=int, default=10_240, help="images of an epoch, at most")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="what to keep the rows in")
    args = parser.parse_args()
    data = fewer(open_data(parser, args), args.images, 100)
    terms = {
        "batch_size": args.batch_size, "num_images": len(data.train), "rounds": args.rounds,
        "data": data.name,
    }  # fmt: skip
    machine = environment()
    kept: list[dict[str, Any]] = []
    if args.out and args.out.exists():
        kept = json.loads(args.out.read_text())
    for row in kept:
        for name, value in terms.items():
            if row[name] != value:
                parser.error(f"{args.out} has {name}={row[name]}, not {value}; name another --out")
    missing = [name for name in args.models if name not in {row["model"] for row in kept}]
    if missing:
        shared = data, config_of(missing[0], args.batch_size)
        with (
            Worker(conventional_loop, "the conventional loop", *shared) as conventional,
            Worker(eager_loop, "the eager loop", *shared) as plain,
        ):
            for name in missing:
                row = measure(
                    name, data, conventional, plain, batch_size=args.batch_size,
                    rounds=args.rounds,
                )  # fmt: skip
                kept.append(row | {"machine": machine})
                if args.out:
                    write_atomically(args.out, json.dumps(kept, indent=2).encode())
    rows = [row for row in kept if row["model"] in args.models]
    if args.as_json:
        print(json.dumps(rows, indent=2))
        return
    print("network             ours  conventional  ratio      eager  ratio  of GEMM  augment")
    for row in rows:
        print(
            f"{row['model']:14} {row['images_per_second']:9,.0f} "
            f"{row['conventional_images_per_second']:13,.0f} {row['ratio']:6.2f} "
            f"{row['eager_images_per_second']:10,.0f} {row['ratio_to_eager']:6.2f} "
            f"{row['gemm_share']:8.0%} {row['augment_share']:8.1%}"
        )
    print(f"images/s on {data.name}, batch {args.batch_size}, median of {args.rounds} rounds")


if __name__ == "__main__":
    main()

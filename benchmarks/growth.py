"""How time and memory grow with the number of images: an epoch over a set repeated ever more often.

    python benchmarks/growth.py --data PATH [--images 5000 50000 500000] [--json]

The training images are repeated (or cut) to each count in a file that is mapped into memory, as all
data is here, and a process of its own trains one epoch on it. Memory is what the process holds for
itself (RssAnon of Linux, its largest value), images excluded: their pages belong to the file, and
the system takes them back when it needs them. Rounds go through all counts in turn; times are
medians.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from arguments import build_parser, open_data

from halfmeg.artifacts.environment import environment
from halfmeg.data.cache import open_splits, save_splits
from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.networks.table import MODELS
from halfmeg.training.fit import fit
from halfmeg.training.recipes import common


def repeat(data: DataSplits, count: int, folder: Path) -> None:
    """Write data with `count` training images, those of `data` again and again."""
    indices = torch.arange(count) % len(data.train)
    train: Dataset = data.train.subset(indices)
    test = data.test.subset(slice(100))
    save_splits(replace(data, train=train, test=test, fingerprint=f"growth-{count}"), folder)


def anonymous_bytes() -> int:
    """Return what this process holds in memory that belongs to no file."""
    status = Path("/proc/self/status").read_text().splitlines()
    (line,) = [row for row in status if row.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


def train_once(pipe: Connection, folder: Path, model: str, batch_size: int) -> None:
    """Train one epoch and send its seconds and the memory that it took."""
    data = open_splits(folder)
    config = replace(common(model), epochs=1, batch_size=batch_size, val_fraction=0.0)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as out:
        result = fit(config, data, Path(out) / "run").result()
    done.set()
    watcher.join()
    assert result is not None
    pipe.send((result["seconds"], peak))


def measure_once(folder: Path, model: str, batch_size: int) -> tuple[float, int]:
    """Return seconds and bytes of one epoch in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=train_once, args=(theirs, folder, model, batch_size))
    process.start()
    theirs.close()
    seconds, peak = ours.recv()
    process.join()
    return seconds, peak


def main() -> None:
    """Measure and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[5_000, 50_000, 500_000])
    parser.add_argument("--model", default="cnn", choices=list(MODELS))
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("memory is read from /proc, which Linux alone has")
    data = open_data(parser, args)
    measured: dict[int, list[tuple[float, int]]] = {count: [] for count in args.images}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.images:
            repeat(data, count, Path(folder) / str(count))
        for _ in range(args.rounds):
            for count, found in measured.items():
                found.append(measure_once(Path(folder) / str(count), args.model, args.batch_size))
    rows: list[dict[str, Any]] = []
    for count, found in measured.items():
        seconds = statistics.median(s for s, _ in found)
        rows.append(
            {
                "images": count,
                "seconds": seconds,
                "microseconds_per_image": 1e6 * seconds / count,
                "peak_memory_bytes": max(peak for _, peak in found),
            }
        )
    if args.as_json:
        facts = {"model": args.model, "batch_size": args.batch_size, "rounds": args.rounds}
        facts |= {"data": data.name, "measured": time.strftime("%Y-%m-%d")}
        print(json.dumps(facts | {"rows": rows, "machine": environment()}, indent=2))
        return
    print("   images  seconds  us/image  memory, MB")
    for row in rows:
        print(
            f"{row['images']:9,} {row['seconds']:8.2f} {row['microseconds_per_image']:9.1f} "
            f"{row['peak_memory_bytes'] / 1e6:11,.0f}"
        )


if __name__ == "__main__":
    main()

"""What half an hour of a GPU gives: the comparison, sprint, and the candidates for the record.

    python benchmarks/gpu.py DATA --out FOLDER [--steps STEP…] [--minutes STEP=12…] [--bring TO]
    python benchmarks/gpu.py DATA --split PARTS

DATA is what `--data` takes: a folder with the Parquet files, say. All seeds of a network train at
once, their weights stacked, since one small network leaves a large card idle.

Each step has minutes of its own. When they are over, it stops after an epoch with a checkpoint; the
same command goes on where it stopped, and passes over the steps that are done. FOLDER holds
`gpu.json`, written anew after each step, and for each step its study's folder, weights included.
`--bring` packs for each step one archive of its runs, without checkpoints, and a copy of
`gpu.json` into another folder, to take home what may be lost with the machine.

`--split` cuts Parquet files into parts of at most 12 MiB in the same order, for a machine that
takes little at a time; a folder of all parts is DATA again, with the same fingerprint.

It runs on a processor too (`--device cpu`), where `--images` and `--epochs` cut it to size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from arguments import fewer, open_data

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.files import write_json
from halfmeg.networks.table import MODELS
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.study import run_study
from halfmeg.studies.workers import StudyListener
from halfmeg.training.listen import Listener, SilentListener
from halfmeg.training.recipes import build_recipe, common
from halfmeg.training.stopping import TrainingInterruptedError

TIMED_IMAGES = 10_000
"""How many images an epoch has that is timed: few, as each network is timed alone and stacked."""

PART_BYTES = 12 * 2**20

TINIEST = (
    "model=gated", "budget=97600", "optimizer=adamw", "lr=0.02", "weight_decay=0.01",
    "batch_size=256", "epochs=200", "schedule=onecycle", "warmup=0.1", "mixup=0.5", "rotation=15",
    "crop=4", "brightness=0.2", "contrast=0.2", "saturation=0.2", "sharpness=0.5", "ema=0.999",
)  # fmt: skip
"""After what the tiniest network on CIFAR-10 is said to be trained by (97,530 parameters)."""

STEPS: dict[str, tuple[float, list[tuple[str, tuple[str, ...], int]]]] = {
    # name: minutes, and its recipes with their settings and the most seeds worth their time
    "sprint": (2, [("sprint", (), 5)]),
    "record": (8, [("record", ("epochs=200",), 3)]),
    "record-varied": (8, [("record", ("epochs=400", "lr=0.05", "trivial_augment=true"), 1)]),
    "record-mixed": (8, [("record", ("epochs=400", "lr=0.05", "mixup=0.2", "cutmix=1"), 1)]),
    "tiniest": (6, [("common", TINIEST, 3)]),
    "small": (6, [("record", ("budget=100000", "epochs=400"), 5)]),
    "mlperf": (4, [("record", ("model=whitened-residual(width=8,growth=16)", "epochs=400"), 3)]),
    "comparison": (5, [("study-compare", (f"model={m}",), 5) for m in ("cnn", "resnet-linear")]),
    "common": (6, [("common", (f"model={m}",), 5) for m in ("resnet20", "resnet32")]),
    "speeds": (3, []),
}
"""In the order in which they are worth it; those of the record's recipe choose on validation."""


class Deadline(StudyListener):
    """Stops a study after the epoch in which its time is over."""

    def __init__(self, minutes: float) -> None:
        self.started = time.perf_counter()
        self.seconds = 60 * minutes

    def passed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.started

    def is_over(self) -> bool:
        """Whether the time is over."""
        return self.passed() > self.seconds

    def of_run(self, config: RunConfig) -> Listener:
        """Return who stops a run."""
        return StopAt(self, config.epochs)


class StopAt(SilentListener):
    """Stops one run."""

    def __init__(self, deadline: Deadline, epochs: int) -> None:
        self.deadline = deadline
        self.epochs = epochs

    def on_epoch(self, row: MetricsRow) -> None:
        """Stop it if the time is over and it is not done."""
        if self.deadline.is_over() and row["epoch"] != self.epochs:
            done = f"after {row['epoch']} of {self.epochs} epochs"
            raise TrainingInterruptedError(done, signal.SIGTERM)


def speeds(
    data: DataSplits, out: Path, device: str, seeds: int, deadline: Deadline
) -> dict[str, Any]:
    """Return images per second of each network, alone and of all seeds at once together.

    They are those of the second of two epochs of few images. Nothing is compiled: two graphs for
    each network would take minutes from the trainings.
    """
    data = fewer(data, TIMED_IMAGES, TIMED_IMAGES // 10)
    found: dict[str, Any] = {"failures": {}}
    for kind, count in (("alone", 1), ("stacked", seeds)):
        configs = [
            replace(
                common(model), epochs=2, batch_size=500, device=device, val_fraction=0.0, seed=seed
            )
            for model in MODELS
            for seed in range(count)
        ]  # fmt: skip
        study = run_study(configs, data, out / kind, stack=count > 1, listener=deadline)
        found["failures"] |= study.failures
        found[kind] = {
            run.config.model: (run.read_metrics()[-1]["images_per_second"] or 0) * count
            for run in study.runs
            if run.config.seed == 0
        }
    return found


def train(
    configs: list[RunConfig], data: DataSplits, out: Path, deadline: Deadline
) -> dict[str, Any]:
    """Train all seeds of a network at once; return their results, and the time that all took."""
    study = run_study(configs, data, out, stack=True, listener=deadline)
    found: dict[str, Any] = {"failures": study.failures}
    if study.runs:
        comparison = compare_runs(study.runs)
        found |= {
            "verdicts": [pair.verdict for pair in comparison.pairs],
            "test_accuracy": {m.name: m.test_accuracy.mean for m in comparison.models},
            "runs": [run.result() for run in study.runs],
        }
    return found


def bring(step: str, out: Path, home: Path) -> None:
    """Pack the runs of a step, without checkpoints, and copy what was found so far."""
    home.mkdir(parents=True, exist_ok=True)

    def wanted(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return None if "checkpoints" in Path(member.name).parts else member

    with tarfile.open(home / f"{step}.tar.xz", "w:xz") as archive:
        archive.add(out / step, step, filter=wanted)
    shutil.copyfile(out / "gpu.json", home / "gpu.json")


def split(source: Path, parts: Path) -> None:
    """Cut each Parquet file of a folder into files of at most `PART_BYTES`, in the same order."""
    parts.mkdir(parents=True)
    for path in sorted(source.glob("*.parquet")):
        table = pq.read_table(path)
        number = -(-path.stat().st_size // PART_BYTES)
        kind = path.name.split("-")[0]
        edges = [len(table) * i // number for i in range(number + 1)]
        for index in range(number):
            rows = table.slice(edges[index], edges[index + 1] - edges[index])
            part = parts / f"{kind}-{index:05d}-of-{number:05d}.parquet"
            pq.write_table(rows, part, compression="none")
            print(part)


def main() -> None:
    """Do all steps for which there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="as --data of halfmeg train")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out", type=Path, help="a folder; what it holds is gone on with")
    parser.add_argument("--split", type=Path, metavar="PARTS", help="cut DATA and do nothing else")
    parser.add_argument("--bring", type=Path, metavar="TO", help="a folder to pack the runs into")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--minutes", nargs="+", default=[], metavar="STEP=MINUTES")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, help="of every step, instead of its own number")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="the trainings, not what is timed alone; on a GPU the default",
    )
    parser.add_argument("--images", type=int, help="training images, all if not given")
    parser.add_argument("--epochs", type=int, help="of every run, instead of its recipe's")
    args = parser.parse_args()
    if args.split:
        if args.split.exists():
            parser.error(f"{args.split} exists already and is not overwritten")
        split(Path(args.data), args.split)
        return
    if args.out is None:
        parser.error("--out is missing: the folder to train into")
    on_gpu = args.device.startswith("cuda")
    compiled = on_gpu if args.compile is None else args.compile
    if on_gpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu runs on the processor")
    minutes = {name: STEPS[name][0] for name in STEPS}
    for text in args.minutes:
        name, _, number = text.partition("=")
        try:
            minutes[name] = float(number)
        except ValueError:
            parser.error(f"--minutes {text} is not allowed; write STEP=MINUTES, as in record=12")
        if name not in STEPS:
            parser.error(f"--minutes {text}: no such step; allowed: {', '.join(STEPS)}")
    data = open_data(parser, args)
    if args.images:
        data = fewer(data, args.images, len(data.test))

    def configs(step: str) -> list[RunConfig]:
        found = []
        for recipe, settings, seeds in STEPS[step][1]:
            config = build_recipe(recipe).override([f"device={args.device}", *settings])
            config = replace(config, compile=compiled, epochs=args.epochs or config.epochs)
            found += [replace(config, seed=seed) for seed in range(args.seeds or seeds)]
        return found

    log = args.out / "gpu.json"
    found: dict[str, Any] = {"machine": environment(), "data": data.name, "done": []}
    if log.exists():
        found = json.loads(log.read_text())
    elif args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out} holds something else; choose another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    for step in args.steps:
        if step in found["done"]:
            continue
        print(f"{step}: at most {minutes[step]:g} minutes", flush=True)
        deadline = Deadline(minutes[step])
        seconds = found.get(step, {}).get("seconds", 0.0)
        folder = args.out / step
        try:
            if step == "speeds":
                found[step] = speeds(data, folder, args.device, args.seeds or 5, deadline)
            else:
                found[step] = train(configs(step), data, folder, deadline)
            found["done"].append(step)
        except TrainingInterruptedError as stopped:
            found[step] = {"stopped": str(stopped), "failures": {}}
        found[step]["seconds"] = seconds + deadline.passed()
        write_json(log, found)
        if args.bring:
            bring(step, args.out, args.bring)
    print(log)


if __name__ == "__main__":
    main()

"""What a GPU gives, in one command: speed of every network, sprint, the comparison, record.

    python benchmarks/gpu.py DATA --out FOLDER [--device cuda] [--minutes 9]

DATA is what `--data` takes: a folder with the Parquet files, say. All seeds of a network train at
once, their weights stacked, since one small network leaves a large card idle; how much that gives
is measured first, for each network alone and for its seeds. Parts are done in order until
`--minutes` are over: the part under way then stops after an epoch, and later ones are left out.
FOLDER holds `gpu.json`, written anew after each part, and for each part its study's folder, weights
included; a run that was stopped goes on with `halfmeg resume`.

It runs on a processor too (`--device cpu`), where `--images` and `--epochs` cut it to size.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from arguments import fewer, open_data

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.files import write_json
from halfmeg.artifacts.run import MetricsRow
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.networks.table import MODELS
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.study import StudyListener, run_study
from halfmeg.training.listen import Listener, SilentListener
from halfmeg.training.recipes import build_recipe, common
from halfmeg.training.stopping import TrainingInterruptedError

TIMED_IMAGES = 10_000
"""How many images an epoch has that is timed: few, as each network is timed alone and stacked."""

LONGER = 2
"""By how much the record is trained longer than its recipe says, as minutes are cheap here."""


class Deadline(StudyListener):
    """Stops a study after the epoch in which the time is over."""

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
    started = time.perf_counter()
    study = run_study(configs, data, out, stack=True, listener=deadline)
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {"seconds": seconds, "failures": study.failures}
    if study.runs:
        comparison = compare_runs(study.runs)
        found |= {
            "verdicts": [pair.verdict for pair in comparison.pairs],
            "test_accuracy": {m.name: m.test_accuracy.mean for m in comparison.models},
            "runs": [run.result() for run in study.runs],
        }
    return found


def main() -> None:
    """Do all parts for which there is time."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", help="as --data of halfmeg train")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="the trainings, not what is timed before them; on a GPU the default",
    )
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--images", type=int, help="training images, all if not given")
    parser.add_argument("--epochs", type=int, help="of every run, instead of its recipe's")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    compiled = on_gpu if args.compile is None else args.compile
    if on_gpu and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu runs on the processor")
    out = Path(args.out)
    if out.exists():
        parser.error(f"{out} exists already and is not overwritten; choose another --out")
    data = open_data(parser, args)
    if args.images:
        data = fewer(data, args.images, len(data.test))

    def terms(recipe: str, *settings: str, seeds: int = args.seeds) -> list[RunConfig]:
        config = build_recipe(recipe).override([f"device={args.device}", *settings])
        config = replace(config, compile=compiled)
        if args.epochs:
            config = replace(config, epochs=args.epochs)
        return [replace(config, seed=seed) for seed in range(seeds)]

    deadline = Deadline(args.minutes)
    record_epochs = f"epochs={LONGER * build_recipe('record').epochs}"
    trainings: dict[str, list[RunConfig]] = {
        "sprint": terms("sprint"),
        "comparison": [
            config
            for model in ("cnn", "resnet-linear")
            for config in terms("study-compare", f"model={model}")
        ],
        "record": terms("record", seeds=min(3, args.seeds)),
        "record-longer": terms("record", record_epochs, seeds=1),
    }
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speeds": lambda: speeds(data, out / "speeds", args.device, args.seeds, deadline)
    }
    for name, configs in trainings.items():
        parts[name] = lambda name=name, configs=configs: train(  # type: ignore[misc]
            configs, data, out / name, deadline
        )
    found: dict[str, Any] = {"machine": environment(), "data": data.name, "skipped": []}
    out.mkdir(parents=True)
    for name, part in parts.items():
        if deadline.is_over():
            found["skipped"].append(name)
        else:
            print(f"{deadline.passed():6.0f} s  {name}", flush=True)
            try:
                found[name] = part()
            except TrainingInterruptedError as stopped:
                found[name] = {"stopped": str(stopped), "failures": {}}
        write_json(out / "gpu.json", found)
    print(f"{deadline.passed():6.0f} s  done: {out / 'gpu.json'}")


if __name__ == "__main__":
    main()

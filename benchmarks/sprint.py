"""How soon the sprint is there: against the study's recipe and a conventional loop, in one run.

    python benchmarks/sprint.py --data PATH [--json]

Three trainings, each in a process of its own, take turns, so that a change in the machine's speed
meets all of them, and never run at the same time:

- `sprint`: our network and recipe, whole;
- `study-shared`: the study's network by its published recipe, in our loop, until its validation
  accuracy reaches the sprint's, or to its end; then its best epoch counts, in its favour;
- a conventional loop (benchmarks/throughput.py) for the same network and recipe, of which a few
  short epochs are timed: what it would need is the second training's epochs at its speed.

Accuracies are of the validation split (a tenth of the training images), which neither trains on;
the sprint's test accuracy is read once, at its end. Seconds are of training, evaluation excluded.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from arguments import build_parser, open_data
from throughput import conventional_loop
from worker import Worker

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.metrics import MetricsRow
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.training.fit import fit
from halfmeg.training.listen import SilentListener
from halfmeg.training.recipes import build_recipe

CONVENTIONAL_ROUNDS = 3


class EpochByEpoch(SilentListener):
    """Sends each epoch's figures, and waits for the request for the next."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def on_epoch(self, row: MetricsRow) -> None:
        """Send, and wait."""
        self.pipe.send(row)
        if not self.pipe.recv():
            raise SystemExit


def train_by_epochs(pipe: Connection, config: RunConfig, data: DataSplits) -> None:
    """Train an epoch for each request and send its figures; for one more, the run's result."""
    if pipe.recv():
        with tempfile.TemporaryDirectory() as folder:
            run = fit(config, data, Path(folder) / "run", listener=EpochByEpoch(pipe))
            pipe.send(run.result())


@dataclass
class Result:
    """What came out of the three trainings; the accuracies are shares of 1."""

    sprint: dict[str, Any]
    study_rows: list[MetricsRow]
    conventional_images_per_second: float
    train_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and their ratios."""
        reached = first_to_reach(self.sprint, self.study_rows)
        best = reached or max(self.study_rows, key=lambda row: row["val_accuracy"] or 0.0)
        study_seconds, epochs = best["seconds"] or 0.0, best["epoch"] or 0
        conventional = epochs * self.train_images / self.conventional_images_per_second
        return {
            "sprint": self.sprint,
            "study_shared": {
                "val_accuracy": best["val_accuracy"],
                "reached": reached is not None,
                "epochs": epochs,
                "seconds": study_seconds,
            },
            "conventional": {
                "images_per_second": self.conventional_images_per_second,
                "seconds": conventional,
            },
            "ratio_to_study_shared": study_seconds / self.sprint["seconds"],
            "ratio_to_conventional": conventional / self.sprint["seconds"],
        }


def race(
    data: DataSplits, sprint: RunConfig, study: RunConfig, *, conventional_images: int
) -> Result:
    """Run the three trainings in turn."""
    few = replace(data, train=data.train.subset(slice(conventional_images)))
    study_rows: list[MetricsRow] = []
    with (
        Worker(conventional_loop, "the conventional loop", few, study) as conventional,
        Worker(train_by_epochs, "the sprint", sprint, data) as ours,
        Worker(train_by_epochs, "study-shared", study, data) as theirs,
    ):

        def study_epoch() -> None:
            study_rows.append(show("study-shared", theirs.request()))

        speeds = [conventional.request(study.model) for _ in range(1 + CONVENTIONAL_ROUNDS)]
        for _ in range(sprint.epochs):
            show("sprint", ours.request())
            if len(study_rows) < study.epochs:
                study_epoch()
        result = ours.request()
        while len(study_rows) < study.epochs and not first_to_reach(result, study_rows):
            study_epoch()
        speeds += [conventional.request(study.model) for _ in range(CONVENTIONAL_ROUNDS)]
    train_images = round(len(data.train) * (1 - study.val_fraction))
    return Result(result, study_rows, statistics.median(speeds[1:]), train_images)


def first_to_reach(sprint: dict[str, Any], rows: list[MetricsRow]) -> MetricsRow | None:
    """Return the first epoch that is as good as the sprint on the validation split."""
    target = sprint["val_accuracy"]
    return next((row for row in rows if (row["val_accuracy"] or 0.0) >= target), None)


def show(name: str, row: MetricsRow) -> MetricsRow:
    """Say how far a training is, since the race is long, and return its row."""
    print(
        f"{name:12}  epoch {row['epoch']}  {row['val_accuracy'] or 0:.2%} of validation  "
        f"{row['seconds'] or 0:,.0f} s",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return row


def main() -> None:
    """Race and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--study-epochs", type=int, default=150, help="150 as published")
    parser.add_argument("--conventional-images", type=int, default=5_120, help="of a timed epoch")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("settings", nargs="*", help="settings of the sprint as key=value")
    args = parser.parse_args()
    data = open_data(parser, args)
    held_out = ["val_fraction=0.1", "monitor=val"]
    sprint = build_recipe("sprint").override([*held_out, *args.settings])
    study = build_recipe("study-shared").override(held_out)
    # The drops of the rate stay where they are; a shorter run ends before the later ones.
    study = study.override([f"epochs={args.study_epochs}"])
    result = race(data, sprint, study, conventional_images=args.conventional_images).to_dict()
    if args.as_json:
        print(json.dumps(result | {"data": data.name, "machine": environment()}, indent=2))
        return
    ours, theirs = result["sprint"], result["study_shared"]
    print(
        f"sprint        {ours['val_accuracy']:.2%} (test {ours['test_accuracy']:.2%}) "
        f"after {ours['seconds']:,.0f} s"
    )
    word = "reached it" if theirs["reached"] else f"best {theirs['val_accuracy']:.2%}"
    print(f"study-shared  {word} after {theirs['seconds']:,.0f} s, {theirs['epochs']} epochs")
    print(f"conventional  would take {result['conventional']['seconds']:,.0f} s for those epochs")
    print(
        f"ratios        {result['ratio_to_study_shared']:.1f} and "
        f"{result['ratio_to_conventional']:.1f}"
    )


if __name__ == "__main__":
    main()

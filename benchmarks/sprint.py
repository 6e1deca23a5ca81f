"""How soon the sprint is there: against the study's recipe and a conventional loop, in one run.

    python benchmarks/sprint.py --data PATH [--json]

Three trainings take turns, so that a change in the machine's speed meets all of them, and never run
at the same time:

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
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arguments import build_parser, open_data
from throughput import ConventionalProcess

from halfmeg.config import RunConfig
from halfmeg.data import DataSplits
from halfmeg.recipes import build_recipe
from halfmeg.runs import MetricsRow, environment
from halfmeg.train import SilentListener, fit

CONVENTIONAL_ROUNDS = 3


class Reached(Exception):
    """A training has reached what it was to reach."""


class Turns:
    """Lets threads run one at a time, in a fixed order."""

    def __init__(self, count: int) -> None:
        self.waiting = list(range(count))
        self.changed = threading.Condition()

    def take(self, number: int) -> None:
        """Wait until it is this thread's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == number)

    def pass_on(self, number: int) -> None:
        """Give the turn to the next thread, and queue again behind all others."""
        with self.changed:
            self.waiting.append(self.waiting.pop(0))
            self.changed.notify_all()
        self.take(number)

    def leave(self, number: int) -> None:
        """Take no more turns."""
        with self.changed:
            self.waiting.remove(number)
            self.changed.notify_all()


class Interleaved(SilentListener):
    """Passes the turn on after each epoch, keeps the epochs and says so: it is a long wait."""

    def __init__(
        self, name: str, number: int, turns: Turns, enough: Callable[[MetricsRow], bool]
    ) -> None:
        self.name = name
        self.number = number
        self.turns = turns
        self.enough = enough
        self.rows: list[MetricsRow] = []

    def on_epoch(self, row: MetricsRow) -> None:
        """Keep the epoch, and stop or wait for the next turn."""
        self.rows.append(row)
        print(
            f"{self.name:12}  epoch {row['epoch']}  {row['val_accuracy'] or 0:.2%} of validation  "
            f"{row['seconds'] or 0:,.0f} s",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        if self.enough(row):
            raise Reached
        self.turns.pass_on(self.number)


@dataclass
class Result:
    """What came out of the three trainings; the accuracies are shares of 1."""

    sprint: dict[str, Any]
    study_rows: list[MetricsRow]
    conventional_images_per_second: float
    train_images: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures and their ratios."""
        target = self.sprint["val_accuracy"]
        best = max(self.study_rows, key=lambda row: row["val_accuracy"] or 0.0)
        study_seconds, epochs = best["seconds"] or 0.0, best["epoch"] or 0
        conventional = epochs * self.train_images / self.conventional_images_per_second
        return {
            "sprint": self.sprint,
            "study_shared": {
                "val_accuracy": best["val_accuracy"],
                "reached": (best["val_accuracy"] or 0.0) >= target,
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
    turns = Turns(2)
    outcome: dict[str, Any] = {}

    def there(row: MetricsRow) -> bool:
        return "sprint" in outcome and (row["val_accuracy"] or 0.0) >= outcome["sprint"][
            "val_accuracy"
        ]  # fmt: skip

    listeners = (
        Interleaved("sprint", 0, turns, lambda row: False),
        Interleaved("study-shared", 1, turns, there),
    )

    def train(number: int, name: str, config: RunConfig, folder: str) -> None:
        turns.take(number)
        try:
            run = fit(config, data, Path(folder) / name, listener=listeners[number])
            outcome[name] = run.result()
        except Reached:
            pass
        finally:
            turns.leave(number)

    with tempfile.TemporaryDirectory() as folder:
        threads = [
            threading.Thread(target=train, args=(number, name, config, folder), daemon=True)
            for number, (name, config) in enumerate((("sprint", sprint), ("study", study)))
        ]
        few = data.train.subset(slice(conventional_images))
        conventional = ConventionalProcess(study.model, replace(data, train=few), study)
        speeds = [conventional.images_per_second() for _ in range(1 + CONVENTIONAL_ROUNDS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        speeds += [conventional.images_per_second() for _ in range(CONVENTIONAL_ROUNDS)]
        conventional.close()
    if "sprint" not in outcome:
        raise SystemExit("the sprint failed; its error stands above")
    train_images = round(len(data.train) * (1 - study.val_fraction))
    return Result(outcome["sprint"], listeners[1].rows, statistics.median(speeds[1:]), train_images)


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

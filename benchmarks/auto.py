"""`train auto` against `common` within the same time.

    python benchmarks/auto.py --sources digits clothing eurosat --minutes 10 --seeds 3 [--json]

For each source and seed in turn: `auto` with its trials inside the minutes, and `common` (`cnn`, 32
pixels) with as many epochs as fit into them by measured seconds, at most 200, as for `auto`. What
both took is stated, since planned epochs are not exact. Stated is the accuracy on the test set,
read once a run. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from halfmeg.artifacts.environment import environment
from halfmeg.data.load import load_dataset
from halfmeg.studies.auto import MOST_EPOCHS, SAFETY, choose
from halfmeg.studies.plan import time_training
from halfmeg.training.fit import fit
from halfmeg.training.recipes import common


def run_auto(source: str, seconds: float, seed: int) -> dict[str, Any]:
    """Train `auto` once."""
    started = time.monotonic()
    start = replace(common(), seed=seed)
    choice = choose(lambda side: load_dataset(source, image_size=side), start, seconds)
    data = load_dataset(source, image_size=choice.image_size)
    with tempfile.TemporaryDirectory() as folder:
        result = fit(choice.config, data, Path(folder) / "run").result()
    assert result is not None
    return {
        "accuracy": result["test_accuracy"],
        "n": result["test_n"],
        "seconds": time.monotonic() - started,
        "picked": choice.lines()[-1],
        "trials": choice.lines()[:-1],
    }


def run_common(source: str, seconds: float, seed: int) -> dict[str, Any]:
    """Train `common` once, for as many epochs as fit."""
    started = time.monotonic()
    data = load_dataset(source)
    config = replace(common(), seed=seed)
    per_epoch = time_training([replace(config, epochs=1)], data)
    left = seconds - (time.monotonic() - started)
    epochs = min(MOST_EPOCHS, max(1, int(SAFETY * left / per_epoch)))
    with tempfile.TemporaryDirectory() as folder:
        result = fit(replace(config, epochs=epochs), data, Path(folder) / "run").result()
    assert result is not None
    return {
        "accuracy": result["test_accuracy"],
        "n": result["test_n"],
        "seconds": time.monotonic() - started,
        "epochs": epochs,
    }


def main() -> None:
    """Run both and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sources", nargs="+", default=["digits"], help="as for --data")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", dest="as_json")
    args = parser.parse_args()
    rows = []
    for source in args.sources:
        found: dict[str, list[dict[str, Any]]] = {"auto": [], "common": []}
        for seed in range(args.seeds):
            try:
                found["auto"].append(run_auto(source, 60 * args.minutes, seed))
                found["common"].append(run_common(source, 60 * args.minutes, seed))
            except ValueError as error:
                parser.error(str(error))
        means = {k: statistics.mean(run["accuracy"] for run in v) for k, v in found.items()}
        rows.append({"data": Path(source).name, "mean": means} | found)
        if not args.as_json:
            print(f"{Path(source).name:12} auto {means['auto']:.2%}  common {means['common']:.2%}")
            for name, runs in found.items():
                for run in runs:
                    print(
                        f"    {name:7} {run['accuracy']:.2%} of {run['n']:,} in "
                        f"{run['seconds']:.0f} s  {run.get('picked', '')}"
                    )
            sys.stdout.flush()
    if args.as_json:
        facts = {
            "minutes": args.minutes,
            "seeds": args.seeds,
            "measured": time.strftime("%Y-%m-%d"),
        }
        print(json.dumps(facts | {"rows": rows, "machine": environment()}, indent=2))


if __name__ == "__main__":
    main()

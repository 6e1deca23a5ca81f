"""`train auto` against `common` within the same time.

    python benchmarks/auto.py --sources digits clothing eurosat --minutes 10 --seeds 3 --out FILE

For each seed and source in turn: `auto` with its trials inside the minutes, and `common` (`cnn`, 32
pixels) with as many epochs as fit into them by measured seconds, at most 200, as for `auto`. What
both took is stated, since planned epochs are not exact. Stated is the accuracy on the test set,
read once a run. Run it on a quiet machine. `--out` keeps each run as it ends; the same command goes
on from there.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from arguments import plain_parser

from halfmeg.artifacts.environment import environment
from halfmeg.data.load import load_dataset
from halfmeg.files import write_atomically
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
        "picked": choice.line(),
        "trials": [trial.line() for trial in choice.trials],
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


RUNS = {"auto": run_auto, "common": run_common}


def main() -> None:
    """Run what is missing, then print all."""
    parser = plain_parser(__doc__)
    parser.add_argument("--sources", nargs="+", default=["digits"], help="as for --data")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()
    facts = {"minutes": args.minutes, "machine": environment()}
    if args.out.exists():
        stored = json.loads(args.out.read_text())
        if stored["minutes"] != args.minutes:
            parser.error(f"{args.out} is of {stored['minutes']:g} minutes; name another --out")
        facts = stored
    runs: list[dict[str, Any]] = facts.setdefault("runs", [])
    for seed, source, (name, run) in product(range(args.seeds), args.sources, RUNS.items()):
        key = {"data": Path(source).name, "seed": seed, "name": name}
        if any(key.items() <= found.items() for found in runs):
            continue
        try:
            found = run(source, 60 * args.minutes, seed)
        except ValueError as error:
            parser.error(str(error))
        runs.append(key | found | {"measured": time.strftime("%Y-%m-%d")})
        write_atomically(args.out, json.dumps(facts, indent=2).encode())
    for source in dict.fromkeys(run["data"] for run in runs):
        print(source)
        for name in RUNS:
            these = [run for run in runs if (run["data"], run["name"]) == (source, name)]
            if not these:
                continue
            print(f"  {name:7} {statistics.mean(run['accuracy'] for run in these):.2%}")
            for run in these:
                print(
                    f"    seed {run['seed']}: {run['accuracy']:.2%} of {run['n']:,} in "
                    f"{run['seconds']:.0f} s  {run.get('picked', '')}"
                )


if __name__ == "__main__":
    main()

"""What `export --finetune` gains: int8 against float32, over seeds.

    python benchmarks/finetune_int8.py --networks cnn resnet8 --data PATH --out FILE.json
    python benchmarks/finetune_int8.py --runs study/*-seed-* --data PATH --out FILE.json

Each network is trained for a few epochs of `common` with each seed, or its runs exist already. Each
run is exported twice: with plain calibration, and with `--finetune`. Stated is the accuracy that
int8 loses against float32, in the mean over seeds with the upper end of its 95% interval (Student's
t over seeds): on the validation images, on which fine-tuning chooses its epoch, and on the test
images, which choose nothing.
`--out` keeps each run as it ends; the same command goes on from there.
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

from arguments import build_parser
from scipy import stats

from halfmeg.artifacts.environment import environment
from halfmeg.artifacts.graph import onnx_logits
from halfmeg.artifacts.run import Run
from halfmeg.data.dataset import DataSplits
from halfmeg.data.load import load_dataset
from halfmeg.evaluation.evaluate import score
from halfmeg.files import write_atomically
from halfmeg.shipping.export import export
from halfmeg.training.fit import fit
from halfmeg.training.recipes import common

FORMS = ("plain", "finetuned")
VAL_FRACTION = 0.25
"""Held out of the training images, so that a tenth of a point can be seen."""


def train(model: str, seed: int, epochs: int, data: DataSplits, folder: Path) -> Run:
    """Train one network by `common`."""
    config = replace(
        common(model), epochs=epochs, batch_size=64, seed=seed, val_fraction=VAL_FRACTION
    )
    return fit(config, data, folder)


def measure(run: Run, data: DataSplits) -> dict[str, Any]:
    """Export twice; return accuracies and losses, as shares."""
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            bundle, proof = export(
                run, data, Path(folder) / form, allow_loss=True, finetune=form == "finetuned"
            )
            accuracy = {
                name: score(
                    onnx_logits(bundle.read_file(name), data.test.images), data.test.labels
                ).accuracy
                for name in ("model.onnx", "model.int8.onnx")
            }
            row |= {
                "validation_n": proof.n,
                "float_accuracy": accuracy["model.onnx"],
                f"{form}_validation_loss": proof.int8_loss,
                f"{form}_test_loss": accuracy["model.onnx"] - accuracy["model.int8.onnx"],
            }
        row["finetuning"] = bundle.described["finetuning"]["text"]
    return row


def describe(losses: list[float]) -> str:
    """Return the mean in points, and the upper end of its interval where there are two or more."""
    mean = statistics.mean(losses)
    if len(losses) == 1:
        return f"{100 * mean:5.2f}"
    error = statistics.stdev(losses) / len(losses) ** 0.5
    upper = mean + float(stats.t.ppf(0.975, len(losses) - 1)) * error
    return f"{100 * mean:5.2f}, at most {100 * upper:5.2f}"


def main() -> None:
    """Measure what is missing, then print all."""
    parser = build_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=["cnn", "resnet8"], metavar="NETWORK")
    parser.add_argument("--runs", nargs="+", type=Path, default=[], metavar="RUN")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32, help="side in pixels")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()
    if args.seeds < 1 or args.epochs < 1:
        parser.error(f"--seeds {args.seeds} --epochs {args.epochs}; allowed: 1 or more")
    try:
        data = load_dataset(args.data, data_dir=args.data_dir, image_size=args.image_size)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    terms = {"data": data.name, "fingerprint": data.fingerprint}
    terms |= {} if args.runs else {"epochs": args.epochs}
    facts: dict[str, Any] = {"terms": terms, "machine": environment(), "runs": []}
    if args.out.exists():
        facts = json.loads(args.out.read_text())
        if facts["terms"] != terms:
            parser.error(f"{args.out} is of other data or epochs; name another --out")
    runs: list[dict[str, Any]] = facts["runs"]
    try:
        given = [Run.open(path) for path in args.runs]
        planned: list[tuple[str, int, Run | None]]
        planned = [(run.config.model, run.config.seed, run) for run in given]
        planned = planned or [(n, s, None) for s, n in product(range(args.seeds), args.networks)]
        for network, seed, run in planned:
            key = {"network": network, "seed": seed}
            if any(key.items() <= found.items() for found in runs):
                continue
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                made = run or train(network, seed, args.epochs, data, Path(folder) / "run")
                row = key | measure(made, data)
            runs.append(row | {"test_n": len(data.test), "seconds": time.monotonic() - started})
            write_atomically(args.out, json.dumps(facts, indent=2).encode())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    for network in dict.fromkeys(run["network"] for run in runs):
        these = [run for run in runs if run["network"] == network]
        accuracy = statistics.mean(run["float_accuracy"] for run in these)
        print(f"{network}: {accuracy:.2%} of {these[0]['test_n']:,} in float32, n = {len(these)}")
        for form, part in product(FORMS, ("validation", "test")):
            losses = [run[f"{form}_{part}_loss"] for run in these]
            print(f"  {form:9} loses on {part:10} {describe(losses)} points")
    missed = [run["finetuning"] for run in runs if "are left" in run["finetuning"]]
    for line in missed:
        print(f"more than allowed is left: {line}")


if __name__ == "__main__":
    main()

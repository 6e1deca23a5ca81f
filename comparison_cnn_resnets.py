"""The published comparison of a plain CNN and a ResNet, and the fair pair beside it.

Trains cnn and resnet on the published terms (25 epochs of Adam, no augmentation) and draws both
test curves in one figure, as published; then resnet-linear, which has the ResNet's body and fits
the same budget as the cnn. Started again with the same --out, it trains only what is missing. Where
a run failed, the others are drawn, its error is printed, and the exit code is 1.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from halfmeg.data.load import load_dataset
from halfmeg.studies.compare import compare_study
from halfmeg.studies.figures import accuracy_curve, curve_figure, write_figure
from halfmeg.studies.page import write_comparison
from halfmeg.studies.study import run_study
from halfmeg.training.recipes import study_compare
from halfmeg.training.stopping import TrainingInterruptedError


def main() -> None:
    """Train, draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10", help="as for halfmeg train")
    parser.add_argument("--data-dir", default="data", help="where cifar10 is found or put")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, nargs="+", default=[0], help="one or more seeds")
    parser.add_argument("--workers", type=int, default=1, help="runs at once; they share the cores")
    parser.add_argument("--out", default="runs/comparison", help="the study's folder")
    args = parser.parse_args()
    try:
        configs = [
            replace(study_compare(model), epochs=args.epochs, seed=seed)
            for seed in args.seed
            for model in ("cnn", "resnet", "resnet-linear")
        ]
        data = load_dataset(args.data, data_dir=args.data_dir)
        study = run_study(configs, data, args.out, workers=args.workers)
        comparison = compare_study(study, data)
    except TrainingInterruptedError:
        parser.exit(130, f"{parser.prog}: stopped; the same command continues it\n")
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    first = {run.config.model: run for run in reversed(study.runs)}
    networks = {"CNN": "cnn", "ResNet": "resnet"}
    drawn = {label: first[model] for label, model in networks.items() if model in first}
    written = []
    if drawn:
        curves = [(label, accuracy_curve(run)[1]) for label, run in drawn.items()]
        seeds = " and ".join(dict.fromkeys(str(run.config.seed) for run in drawn.values()))
        figure = curve_figure(
            curves, "test accuracy, %", f"{' and '.join(drawn)} on {data.name}, seed {seeds}"
        )
        written.append(write_figure(figure, Path(args.out) / "CNN_ResNet_comparison.png"))
    page, fair = write_comparison(comparison, args.out, data)
    written += [fair, page]
    for model in comparison.models:
        print(f"{model.name:14} {model.test_accuracy.mean:.2%}  {model.params:,} parameters")
    for pair in comparison.pairs:
        print(pair.verdict)
    print(*written, sep="\n")
    for name, reason in comparison.failures.items():
        print(f"{parser.prog}: failed: {name}: {reason}", file=sys.stderr)
    if comparison.failures:
        parser.exit(1)


if __name__ == "__main__":
    main()

"""Does it help to start from a trained network? Few images of classes that it has not seen.

A network learns one half of a source's classes on all their images, and is exported as a bundle.
Then the same network learns the other half from a few images of each class, once from random
weights and once from the bundle, by the same recipe and over the same seeds.

    python benchmarks/finetune.py --data PATH [--out DIR]
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from arguments import build_parser, open_data

from halfmeg.artifacts.run import Run
from halfmeg.data.dataset import Dataset, DataSplits, build_splits
from halfmeg.shipping.export import export
from halfmeg.studies.compare import compare_runs
from halfmeg.studies.page import write_comparison
from halfmeg.studies.study import run_study
from halfmeg.training.recipes import common


def only_classes(data: DataSplits, classes: list[int], per_class: int | None) -> DataSplits:
    """Return the images of some classes, for training the first `per_class` of each."""

    def part(dataset: Dataset, limit: int | None) -> Dataset:
        chosen = torch.cat([(dataset.labels == c).nonzero().flatten()[:limit] for c in classes])
        chosen = chosen.sort().values
        place = torch.full((len(dataset.classes),), -1)
        place[classes] = torch.arange(len(classes))
        names = tuple(dataset.classes[c] for c in classes)
        return Dataset(dataset.images[chosen], place[dataset.labels[chosen]], names)

    name = f"{data.name}, {', '.join(data.classes[c] for c in classes)}"
    return build_splits(name, part(data.train, per_class), part(data.test, None))


def main() -> None:
    """Train, compare and print."""
    parser = build_parser(__doc__)
    parser.add_argument("--model", default="resnet-linear")
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--first-epochs", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", default="runs/finetune")
    args = parser.parse_args()
    data = open_data(parser, args)
    out = Path(args.out)
    every = list(range(len(data.classes)))
    known = only_classes(data, every[::2], None)
    new = only_classes(data, every[1::2], args.per_class)
    first = dataclasses.replace(common(args.model), epochs=args.first_epochs)
    (run,) = run_study([first], known, out / "first").runs
    if not (out / "bundle").exists():
        export(run, known, out / "bundle", allow_loss=True)
    runs: list[Run] = []
    for name, init in (("from random weights", ""), ("from the bundle", str(out / "bundle"))):
        terms = dataclasses.replace(
            common(args.model), recipe=name, epochs=args.epochs, batch_size=25, val_fraction=0.0,
            init=init,
        )  # fmt: skip
        configs = [dataclasses.replace(terms, seed=seed) for seed in range(args.seeds)]
        runs += run_study(configs, new, out / name.replace(" ", "-")).runs
    comparison = compare_runs(runs)
    page, _ = write_comparison(comparison, out, new)
    for model in comparison.models:
        print(f"{model.name}: {model.test_accuracy.mean:.2%}")
    for pair in comparison.pairs:
        print(pair.verdict)
    print(page)


if __name__ == "__main__":
    main()

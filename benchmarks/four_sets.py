"""Small parts of several data sets, for a comparison over data sets that takes minutes.

    python benchmarks/four_sets.py DATA… [--train 1500] [--test 300] [--out sets]

Draws images of each source, with a fixed seed and the shares of its classes, and writes them as
NAME.npz, which `--data` reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from halfmeg.data.dataset import Dataset
from halfmeg.data.load import load_dataset
from halfmeg.data.split import stratified_split


def draw(images: Dataset, count: int) -> Dataset:
    """Draw so many images, or take all where there are not more."""
    if count >= len(images):
        return images
    _, chosen = stratified_split(images.labels, count / len(images), seed=0)
    return images.subset(chosen)


def main() -> None:
    """Write the part of each source."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+", metavar="DATA", help="as `--data` takes it")
    parser.add_argument("--train", type=int, default=1_500, metavar="N", help="images")
    parser.add_argument("--test", type=int, default=300, metavar="N", help="images")
    parser.add_argument("--out", type=Path, default=Path("sets"), metavar="FOLDER")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    counts = {"train": args.train, "validation": args.train, "test": args.test}
    short = {"train": "train", "validation": "val", "test": "test"}
    for source in args.data:
        data = load_dataset(source)
        arrays = {}
        for name, part in data.parts.items():
            drawn = draw(part, counts[name])
            arrays[f"{short[name]}_images"] = drawn.images.permute(0, 2, 3, 1).numpy()
            arrays[f"{short[name]}_labels"] = np.array(data.classes)[drawn.labels.numpy()]
        path = args.out / f"{data.name}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        print(path, ", ".join(f"{name} {len(a)}" for name, a in arrays.items() if "images" in name))


if __name__ == "__main__":
    main()

"""Small parts of several data sets, for a comparison over data sets that takes minutes.

    python benchmarks/four_sets.py DATA… [--train 1500] [--test 300] [--out sets]

Draws images of each source, with a fixed seed and the shares of its classes, and writes them as
NAME.npz, which `--data` reads. A file that is there already is not overwritten.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from arguments import plain_parser

from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.data.load import load_dataset
from halfmeg.data.split import stratified_split
from halfmeg.files import make_folder, write_atomically


def draw(images: Dataset, count: int) -> Dataset:
    """Draw so many images, or take all where there are not more."""
    if count >= len(images):
        return images
    _, chosen = stratified_split(images.labels, count / len(images), seed=0)
    return images.subset(chosen)


def draw_parts(data: DataSplits, counts: dict[str, int]) -> dict[str, np.ndarray]:
    """Return the arrays of a NAME.npz."""
    short = {"train": "train", "validation": "val", "test": "test"}
    arrays = {}
    for name, part in data.parts.items():
        drawn = draw(part, counts[name])
        arrays[f"{short[name]}_images"] = drawn.images.permute(0, 2, 3, 1).numpy()
        arrays[f"{short[name]}_labels"] = np.array(data.classes)[drawn.labels.numpy()]
    return arrays


def main() -> None:
    """Write the part of each source."""
    parser = plain_parser(__doc__)
    parser.add_argument("data", nargs="+", metavar="DATA", help="as `--data` takes it")
    parser.add_argument("--train", type=int, default=1_500, metavar="N", help="images")
    parser.add_argument("--test", type=int, default=300, metavar="N", help="images")
    parser.add_argument("--out", type=Path, default=Path("sets"), metavar="FOLDER")
    args = parser.parse_args()
    counts = {"train": args.train, "validation": args.train, "test": args.test}
    try:
        found = {args.out / f"{data.name}.npz": data for data in map(load_dataset, args.data)}
        if len(found) < len(args.data):
            raise ValueError("two of the data sets have the same name; name each once")
        for path in found:
            if path.exists():
                raise ValueError(
                    f"{path} exists already and is not overwritten; name another --out"
                )
        make_folder(args.out)
        for path, data in found.items():
            arrays, content = draw_parts(data, counts), io.BytesIO()
            np.savez_compressed(content, allow_pickle=False, **arrays)
            write_atomically(path, content.getvalue())
            parts = (f"{name} {len(a)}" for name, a in arrays.items() if "images" in name)
            print(path, ", ".join(parts))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

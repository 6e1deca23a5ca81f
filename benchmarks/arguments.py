"""The data of the benchmarks: the arguments that name it, and less of it."""

from __future__ import annotations

import argparse
from dataclasses import replace

import torch

from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.data.load import load_dataset


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that name the data."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="digits", help="as for halfmeg train")
    parser.add_argument("--data-dir", default="data")
    return parser


def open_data(parser: argparse.ArgumentParser, args: argparse.Namespace) -> DataSplits:
    """Return the data that the arguments name; one line and exit code 2 where it is not there."""
    try:
        return load_dataset(args.data, data_dir=args.data_dir)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def fewer(data: DataSplits, train_images: int, test_images: int) -> DataSplits:
    """Return data with at most so many images of each part, the same ones each time."""

    def drawn(part: Dataset, count: int) -> Dataset:
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        return part.subset(order[:count])

    return replace(
        data,
        train=drawn(data.train, train_images),
        test=drawn(data.test, test_images),
        fingerprint=f"{data.fingerprint}-{train_images}-{test_images}",
    )

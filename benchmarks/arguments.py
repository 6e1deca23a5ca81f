"""What the benchmarks share: their arguments, the data that these name, less of it, and rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from halfmeg.data.dataset import Dataset, DataSplits
from halfmeg.data.load import load_dataset
from halfmeg.networks.table import MODELS


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring as it is."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def build_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that name the data."""
    parser = plain_parser(description)
    parser.add_argument("--data", default="digits", help="as for halfmeg train")
    parser.add_argument("--data-dir", default="data")
    return parser


def parse_simulation(description: str | None) -> argparse.Namespace:
    """Parse the arguments of a simulation of studies: `studies` and `out`."""
    parser = plain_parser(description)
    parser.add_argument("--studies", type=int, default=1_000, metavar="N", help="of each setting")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="what to keep them in")
    args = parser.parse_args()
    if args.studies < 1:
        parser.error(f"--studies {args.studies} is out of range; allowed: 1 or more")
    return args


def print_rows(measure: Callable[[str], dict[str, Any]]) -> None:
    """Print the row of each network that is named on the command line, or of all, as JSON."""
    print(json.dumps([measure(name) for name in sys.argv[1:] or MODELS], indent=2))


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

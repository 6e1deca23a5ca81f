"""The arguments by which the benchmarks are told their data."""

from __future__ import annotations

import argparse

from halfmeg.data import DataSplits, load_dataset


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

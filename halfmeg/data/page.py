"""The data check as a page that needs nothing else: a contact sheet a class, what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from halfmeg.data.check import DataReport
from halfmeg.data.decode import png_address
from halfmeg.data.source import DecodedSource
from halfmeg.files import make_folder, refuse_existing, write_atomically

PER_CLASS = 24
MOST_PAIRS = 100
MOST_LABELS = 100
EXTREMES = 8


def write_check_page(report: DataReport, source: DecodedSource, path: Path) -> None:
    """Write the page of a data check.

    Args:
        report: what was found.
        source: the images.
        path: a file that must not exist.

    Raises:
        ValueError: the file exists.
        OSError: it cannot be written.
    """
    refuse_existing(path, "--html")
    data = source.splits
    pixels = {
        name: image
        for part, dataset in data.parts.items()
        for name, image in zip(source.names[part], dataset.images.numpy(), strict=True)
    }
    train = data.train if len(data.train) else data.test
    names = source.names["train" if len(data.train) else "test"]
    sheets = {}
    for label, name in enumerate(data.classes):
        own = np.flatnonzero(train.labels.numpy() == label)
        # Spread over the whole class, since files beside each other are often alike.
        chosen = own[np.linspace(0, len(own) - 1, min(PER_CLASS, len(own))).round().astype(int)]
        sheets[name] = [(names[i], png_address(train.images[i].numpy())) for i in chosen.tolist()]
    worst = sorted(
        report.near_duplicates,
        key=lambda p: (not p.across_classes, not p.across_parts, -p.likeness),
    )
    pairs: list[dict[str, Any]] = [
        vars(pair)
        | {"first_picture": png_address(pixels[pair.first])}
        | {"second_picture": png_address(pixels[pair.second])}
        for pair in worst[:MOST_PAIRS]
    ]
    wrong = [
        vars(item) | {"picture": png_address(pixels[item.name])}
        for item in (report.wrong_labels or ())[:MOST_LABELS]
    ]
    by_light = sorted(pixels, key=lambda name: float(pixels[name].mean()))
    ends = dict.fromkeys([*by_light[:EXTREMES], *by_light[-EXTREMES:]])
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("halfmeg.data"), undefined=jinja2.StrictUndefined,
        autoescape=True, trim_blocks=True,
    )  # fmt: skip
    text = templates.get_template("check.html").render(
        report=report,
        parts=list(data.parts),
        sheets=sheets,
        pairs=pairs,
        wrong=wrong,
        extremes=[(name, png_address(pixels[name])) for name in ends],
    )
    make_folder(path.parent)
    write_atomically(path, text.encode(errors="backslashreplace"))

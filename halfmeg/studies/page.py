"""Figures and pages from run folders; nothing here trains or evaluates."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from halfmeg.artifacts.markdown import escape_markdown
from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET
from halfmeg.data.decode import png_address
from halfmeg.data.folds import Folds
from halfmeg.files import make_folder, read_json, write_atomically, write_json
from halfmeg.studies.caveats import caveats, seeds_vary, test_readings
from halfmeg.studies.compare import Comparison
from halfmeg.studies.figures import (
    calibration_figure,
    comparison_figure,
    confusion_figure,
    cost_figure,
    differences_figure,
    figure_svg,
    write_figure,
)
from halfmeg.studies.folder import StudyData
from halfmeg.studies.measure import COSTS, ROBUSTNESS_IMAGES, fingerprint_of, read_costs
from halfmeg.studies.tables import TABLES, comparison_tables, write_tables

FIGURE_FILES = {
    "curves": "comparison.png",
    "differences": "differences.png",
    "costs": "costs.png",
    "confusion": "confusion.png",
    "calibration": "calibration.png",
}

MAX_COMPARISON_BYTES = 256 * 2**20


def _alternative(figure_name: str, comparison: Comparison) -> str:
    """Return the alternative text of a figure: what it shows, in numbers."""
    models = comparison.models
    accuracies = ", ".join(f"{m.name} {100 * m.test_accuracy.mean:.1f}%" for m in models)
    return {
        "curves": f"Learning curves, and mean test accuracy: {accuracies}.",
        "differences": "Differences: " + "; ".join(pair.verdict for pair in comparison.pairs),
        "costs": "Accuracy against costs: "
        + "; ".join(f"{m.name} {m.params:,} parameters, {m.macs / 1e6:.1f} M MACs" for m in models),
        "confusion": "Confusion matrices of " + ", ".join(m.name for m in models) + ".",
        "calibration": "Reliability diagrams; expected calibration error: "
        + ", ".join(f"{m.name} {100 * m.calibration.ece:.1f}%" for m in models)
        + ".",
    }[figure_name]


def check_page_folder(out: Path) -> None:
    """Raise ValueError where a folder holds files of a page's names, but no page of ours."""
    names = ("comparison.json", "comparison.html", "comparison.md", *FIGURE_FILES.values())
    require_own(out, "comparison.json", {"models", "pairs", "verdicts"}, names)
    try:
        read_costs(out)  # they are written before the page
    except ValueError:
        raise ValueError(_not_ours(out / COSTS)) from None


def require_own(out: Path, mark: str, keys: set[str], names: Sequence[str]) -> None:
    """Refuse a folder with files that would be overwritten, unless a mark says that they are ours.

    Args:
        out: the folder.
        mark: name of a JSON file that is written first.
        keys: that it has where it is ours.
        names: of files that would be written, beside those of `tables/`.

    Raises:
        ValueError: there are such files, and the mark is not ours.
    """
    taken = [out / name for name in names if (out / name).exists()]
    with contextlib.suppress(OSError):
        taken += sorted(path for path in (out / TABLES).iterdir() if path.name[0] != ".")
    if not taken:
        return
    with contextlib.suppress(OSError, ValueError):
        if keys <= read_json(out / mark, dict[str, Any], MAX_COMPARISON_BYTES).keys():
            return
    raise ValueError(_not_ours(taken[0]))


def _not_ours(path: Path) -> str:
    return f"{path} was not written by halfmeg and is not overwritten; choose another --out"


def write_comparison(
    comparison: Comparison, out: str | Path, data: StudyData | None = None
) -> tuple[Path, Path]:
    """Write page, figures and Markdown of a comparison; return the paths of page and figure.

    `comparison.html` holds everything; `comparison.md` and the PNG files beside it are the same
    for a README; `comparison.json` holds the numbers, `tables/` each table as CSV and LaTeX.

    Args:
        comparison: what to write.
        out: a folder.
        data: shows the images on which the networks disagree.

    Raises:
        ValueError: `out` holds files of these names that the program did not write.
    """
    out = Path(out)
    make_folder(out)
    check_page_folder(out)
    # First, as it marks the page as ours.
    write_json(out / "comparison.json", comparison_numbers(comparison))
    figures = {"curves": comparison_figure(comparison)}
    if comparison.pairs:
        figures["differences"] = differences_figure(comparison)
    figures["costs"] = cost_figure(comparison)
    figures["confusion"] = confusion_figure(comparison)
    figures["calibration"] = calibration_figure(comparison)
    names = {name: FIGURE_FILES[name] for name in figures}
    for name, figure in figures.items():
        write_figure(figure, out / names[name])
    for name in FIGURE_FILES.keys() - figures.keys():
        (out / FIGURE_FILES[name]).unlink(missing_ok=True)  # of an earlier page
    page = out / "comparison.html"
    write_atomically(page, render_page(comparison, figures, data).encode())
    write_atomically(out / "comparison.md", render_markdown(comparison, names).encode())
    write_tables(comparison_tables(comparison), out / TABLES)
    return page, out / names["curves"]


def comparison_numbers(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers of a page and what has to be known beside them, for JSON."""
    runs = [run for model in comparison.models for run in model.runs]
    return comparison.to_dict() | {
        "caveats": caveats(comparison),
        "seeds_vary": seeds_vary(runs),
        "test_readings": test_readings(comparison),
    }


def build_templates() -> jinja2.Environment:
    """Return the templates of this room, with the filters that they use."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("halfmeg.studies"), trim_blocks=True, lstrip_blocks=True,
        autoescape=jinja2.select_autoescape(["html"]), undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    templates.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}"
    templates.filters["markdown"] = escape_markdown
    templates.filters["thousands"] = lambda number: f"{number:,}"
    return templates


def _context(comparison: Comparison) -> dict[str, Any]:
    runs = [run for model in comparison.models for run in model.runs]
    environments = [_environment(run) for run in runs]

    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(item.get(key)) for item in environments))

    return {
        "comparison": comparison,
        "budget": BUDGET,
        "notes": caveats(comparison),
        "tables": {table.name: table for table in comparison_tables(comparison) if table.rows},
        "interval": comparison.interval_name,
        "unit": comparison.unit,
        "robustness_images": ROBUSTNESS_IMAGES,
        "seeds_vary": seeds_vary(runs),
        "readings": test_readings(comparison),
        "settings": _settings(comparison),
        "commands": list(dict.fromkeys(str(item.get("command")) for item in environments)),
        "versions": {key: each(key) for key in ("halfmeg", "commit", "torch", "numpy", "python")},
        "machine": {key: each(key) for key in ("platform", "processor", "cores", "threads")},
    }


def render_page(
    comparison: Comparison, figures: dict[str, Figure], data: StudyData | None = None
) -> str:
    """Return a self-contained HTML page: verdicts first, then figures, tables and terms."""
    pictures: dict[int, str] = {}
    first = comparison.models[0].runs[0]
    if data is not None and fingerprint_of(first, data) == first.data.fingerprint:
        # A fold that failed, or was not asked for, has no answers: an index passes over it.
        folds = [unit - 1 for unit in comparison.models[0].per_seed]
        test = data.tested(folds) if isinstance(data, Folds) else data.test
        pictures = {
            item.index: _picture(test.images[item.index].numpy())
            for item in comparison.disagreements
        }
    return (
        build_templates()
        .get_template("comparison.html")
        .render(
            _context(comparison),
            figures={name: figure_svg(figure, name) for name, figure in figures.items()},
            texts={name: _alternative(name, comparison) for name in figures},
            pictures=pictures,
        )
    )


def render_markdown(comparison: Comparison, pictures: dict[str, str]) -> str:
    """Return the comparison as Markdown; `pictures` are the file names of the figures."""
    return (
        build_templates()
        .get_template("comparison.md")
        .render(
            _context(comparison),
            pictures=pictures,
            texts={name: _alternative(name, comparison) for name in pictures},
        )
    )


def _picture(pixels: np.ndarray) -> str:
    """Return uint8 C×H×W as a PNG in a data URI, whole pixels enlarged to 96 or more."""
    times = max(1, -(-96 // pixels.shape[-1]))
    return png_address(pixels.repeat(times, 1).repeat(times, 2))


def _settings(comparison: Comparison) -> dict[str, Any]:
    """Return the settings that all runs share."""
    configs = [run.config.to_dict() for model in comparison.models for run in model.runs]
    return {
        key: value
        for key, value in configs[0].items()
        if all(config[key] == value for config in configs)
    }


def _environment(run: Run) -> dict[str, Any]:
    path = run.folder / "environment.json"
    try:
        return read_json(path, dict[str, str | int | None])
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist") from None

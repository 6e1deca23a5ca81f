"""Figures and pages from run folders; nothing here trains or evaluates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from halfmeg.artifacts.inherited import read_inherited_bundles
from halfmeg.artifacts.markdown import escape_markdown
from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET
from halfmeg.data.augment import Augmentation
from halfmeg.data.decode import png_address
from halfmeg.data.folds import Folds
from halfmeg.files import make_folder, read_json, write_atomically, write_json
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
from halfmeg.studies.study import NOT_FINISHED
from halfmeg.studies.tables import TABLES, comparison_tables, readings_table, write_tables
from halfmeg.training.plan import augmentation_of

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
    numbers = comparison.to_dict() | {"test_readings": test_readings(comparison)}
    write_json(out / "comparison.json", numbers)  # first, as it marks the page as ours
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
        "notes": _notes(comparison),
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


def _notes(comparison: Comparison) -> list[str]:
    """Return what a reader has to know beside the verdicts."""
    return [
        *_notes_on_sizes(comparison),
        *_notes_on_reading(comparison),
        *_notes_on_what_is_missing(comparison),
    ]


def _notes_on_sizes(comparison: Comparison) -> Iterator[str]:
    for model in comparison.models:
        if not model.within_budget:
            yield f"{model.name} has {model.params:,} parameters: over the budget of {BUDGET:,}."
    sizes = [model.params for model in comparison.models]
    if max(sizes) > 2 * min(sizes):
        yield (
            f"The networks differ in size by a factor of {max(sizes) / min(sizes):.0f}: "
            "a difference between them is one of size as well as of kind."
        )


def _notes_on_reading(comparison: Comparison) -> Iterator[str]:
    if comparison.folds is not None:
        folds = sorted({fold for model in comparison.models for fold in model.per_seed})
        if len(folds) == comparison.folds:
            told = f"All images of the source, {comparison.num_test:,}, are divided into"
            tested = "Each is tested once, by"
        else:
            told = "All images of the source are divided into"
            named = f"fold{'s' if len(folds) > 1 else ''} {_and([str(fold) for fold in folds])}"
            tested = f"Only {named} with {comparison.num_test:,} images are tested, each once by"
        yield (
            f"{told} {comparison.folds} folds, whatever parts it had. {tested} networks "
            "that were trained on the other folds."
        )
    elif any(1 < pair.num_seeds < 5 for pair in comparison.pairs):
        yield (
            "Fewer than 5 seeds say little of the chance between seeds, so the intervals are wide."
        )
    if again := read_before(comparison):
        yield f"{again}."
    reading = comparison.reading
    if reading.planned:
        yield (
            f"Planned to be read with {_and([str(n) for n in reading.planned])} seeds until every "
            f"pair is decided; each look is at {100 * reading.level:g}%, so that these together "
            "are at 5%."
        )
    if comparison.stopped:
        yield f"The study {comparison.stopped}."


def _notes_on_what_is_missing(comparison: Comparison) -> Iterator[str]:
    yield from not_compared(comparison)
    yield from unchecked(comparison)
    reasons = dict.fromkeys(m.no_temperature for m in comparison.models if m.no_temperature)
    for reason in reasons:
        names = [model.name for model in comparison.models if model.no_temperature == reason]
        have = "has" if len(names) == 1 else "have"
        yield f"{_and(names)} {have} no temperature: {reason}."
    if any(run.config.monitor == "test" for model in comparison.models for run in model.runs):
        yield (
            "The test set was read after every epoch, for the curves only; "
            "each figure is of the last epoch, never the best."
        )
    for name, error in comparison.failures.items():
        failed = "" if error == NOT_FINISHED else " failed and"
        yield f"The run {name}{failed} is not in the figures: {error}"


def not_compared(comparison: Comparison) -> Iterator[str]:
    """Say which networks are not compared, as they share no seed or fold."""
    compared = {frozenset((pair.a, pair.b)) for pair in comparison.pairs}
    for a, b in combinations(comparison.models, 2):
        if frozenset((a.name, b.name)) not in compared:
            yield f"{a.name} and {b.name} share no {comparison.unit} and are not compared."


def unchecked(comparison: Comparison) -> Iterator[str]:
    """Say which networks may have learned from one that has seen test images."""
    names = [
        model.name for model in comparison.models
        if not all(
            bundle.comparable
            for run in model.runs for bundle in read_inherited_bundles(run.folder).values()
        )
    ]  # fmt: skip
    if names:
        yield (
            f"{_and(names)} learned from a network that may have seen some of the test images: "
            "whether it has could not be checked."
        )


def read_before(comparison: Comparison) -> str | None:
    """Say that a study was read with numbers of seeds that no plan has counted; None where not."""
    if comparison.folds is not None:  # their number is decided beforehand
        return None
    now = max(len(m.runs) for m in comparison.models)
    looks = comparison.reading.unplanned_looks(now)
    planned = comparison.reading.planned
    uncounted = looks if now in planned else (*looks, now)
    if planned and uncounted:
        numbers = _and([str(n) for n in uncounted])
        return (
            f"This study is read with {numbers} seeds, which its plan of looks has not counted, so "
            "verdicts may be false more often than stated"
        )
    if not looks:
        return None
    return (
        f"This study was read with {_and([str(n) for n in looks])} seeds before. Where seeds "
        "are added because of what was read, verdicts are false more often than stated; "
        "`--until-decided` allows for it"
    )


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def seeds_vary(runs: Sequence[Run]) -> str:
    """Say what differs between the seeds or folds of a study, and what does not."""
    configs = [run.config for run in runs]
    varied = ["the initial weights", "the order of the images"]
    # A way to fill the border is no draw.
    if any(augmentation_of(c) != Augmentation(crop_mode=c.crop_mode) for c in configs):
        varied.append("the draws of augmentation")
    # The user's own validation part is the same for each seed.
    split = any(run.config.val_fraction and not run.data.num_validation for run in runs)
    if split:
        varied.append("the split into training and validation images")
    if runs[0].options.fold:
        varied = ["the training images", "the test images", *varied]
        return (
            f"Folds vary {_and(varied)}; they share the settings, with all the tuning behind them. "
            "The intervals allow for other training and test images of the same kind, by the "
            "corrected resampled t (Nadeau and Bengio 2003); not for another tuning."
        )
    same = ["the images before that split" if split else "the training images"]
    same += ["the test images", "the settings, with all the tuning behind them"]
    return (
        f"Seeds vary {_and(varied)}; they share {_and(same)}. The intervals allow for other test "
        "images of the same kind, not for other training images or another tuning."
    )


def test_readings(comparison: Comparison) -> str:
    """Say how often and for what the test set was read, as run folders and study have logged."""
    runs = [run for model in comparison.models for run in model.runs]
    logged = "; ".join(f"{row[0]}: {row[1]}" for row in readings_table(comparison).rows)
    parts = [f"Readings of the test set, {len(runs)} runs: {logged}." if logged else ""]
    silent = sum(not run.test_readings() for run in runs)
    if silent:
        parts.append(f"{silent} of the {len(runs)} runs have no log of their readings.")
    if comparison.reading.looks:
        now = max(len(model.runs) for model in comparison.models)
        looks = _and([str(n) for n in sorted({*comparison.reading.looks, now})])
        parts.append(f"The answers were compared with {looks} {comparison.unit}s.")
    return " ".join(filter(None, parts))


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

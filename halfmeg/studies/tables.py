"""The tables of a comparison, for its page, as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from halfmeg.artifacts.readings import LoggedReading, read_log
from halfmeg.config import BUDGET
from halfmeg.files import make_folder, write_atomically
from halfmeg.studies.compare import Comparison
from halfmeg.studies.stats import Interval
from halfmeg.studies.verdict import PairResult, in_points

TABLES = "tables"
"""The folder beside a page where its tables stand."""

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names the row.

    Attributes:
        name: of its files.
        label: what it is, for those who hear it.
    """

    name: str
    label: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_csv(self) -> str:
        """Return the table as CSV with a header."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return text.getvalue()

    def to_latex(self) -> str:
        """Return the table as a LaTeX `tabular` with the rules of booktabs."""

        def line(cells: Sequence[str]) -> str:
            return " & ".join(map(_escape_latex, cells)) + r" \\"

        body = [
            r"\begin{tabular}{l" + "r" * (len(self.columns) - 1) + "}",
            r"\toprule", line(self.columns), r"\midrule", *map(line, self.rows), r"\bottomrule",
            r"\end{tabular}",
        ]  # fmt: skip
        return "\n".join(body) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "−": r"$-$", "–": "--", "×": r"$\times$",
}  # fmt: skip


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def write_tables(tables: Sequence[Table], out: Path) -> None:
    """Write each table as `NAME.csv` and `NAME.tex` into `out`; one without rows has no files."""
    make_folder(out)
    for table in tables:
        texts = {"csv": table.to_csv(), "tex": table.to_latex()}
        for ending, text in texts.items():
            path = out / f"{table.name}.{ending}"
            if table.rows:
                write_atomically(path, text.encode())
            else:  # what lies there is of an earlier page
                path.unlink(missing_ok=True)


def percent(share: float | None, digits: int = 1) -> str:
    """Write a share as percent without its sign."""
    return MISSING if share is None else f"{100 * share:.{digits}f}"


def p_text(p: float | None, level: float) -> str:
    """Write a p-value with three decimals, or with as many as show on which side of `level`."""
    if p is None:
        return MISSING
    if p < 0.001:
        return "<0.001"
    digits = 3
    while round(p, digits) == level != p and digits < 9:
        digits += 1
    return f"{p:.{digits}f}"


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return all tables of a comparison, also those without rows."""
    return [
        _results(comparison),
        _differences(comparison),
        _classes(comparison),
        _calibration(comparison),
        _robustness(comparison),
        readings_table(comparison),
    ]


def _range(interval: Interval, unit: str) -> str:
    return interval.in_percent(2) or f"one {unit}"


def _results(comparison: Comparison) -> Table:
    columns = (
        "network", "group", "test accuracy, %", comparison.interval_name, "std",
        "balanced, %", "macro-F1",
        f"{comparison.unit}s", "parameters", f"fits {BUDGET:,}", "MACs, M", "training, s",
        "one image, ms", "images/s", f"each {comparison.unit}",
    )  # fmt: skip
    rows = [
        (
            model.name,
            letters,
            percent(model.test_accuracy.mean, 2),
            _range(model.test_accuracy, comparison.unit),
            percent(model.deviation, 2),
            percent(model.balanced_accuracy, 2),
            f"{model.macro_f1:.3f}",
            str(len(model.runs)),
            f"{model.params:,}",
            "yes" if model.within_budget else "no",
            f"{model.macs / 1e6:.2f}",
            f"{model.seconds:.0f}",
            f"{model.cost.latency_ms:.2f}" if model.cost else MISSING,
            f"{model.cost.images_per_second:,.0f}" if model.cost else MISSING,
            ", ".join(percent(value, 2) for value in model.per_seed.values()),
        )
        for model, letters in zip(comparison.models, comparison.letters, strict=True)
    ]
    return Table("results", "Table of results", columns, tuple(rows))


def _differences(comparison: Comparison) -> Table:
    level = comparison.reading.level
    columns = (
        "pair", "difference, points", comparison.interval_name, "outcome", "p of this pair",
        "p, all pairs", f"p, {100 * comparison.reading.margin:g} or more apart",
        "p, test images alone", "seeds for 0.5 points",
    )  # fmt: skip
    rows = [
        (
            f"{pair.a} − {pair.b}",
            f"{100 * pair.difference.mean:+.2f}",
            _bounds(pair),
            pair.outcome,
            p_text(pair.p_value, level),
            p_text(pair.p_adjusted, level),
            p_text(pair.p_same, level),
            p_text(pair.p_mcnemar, level),
            _seeds(pair),
        )
        for pair in comparison.pairs
    ]
    return Table("differences", "Table of differences", columns, tuple(rows))


def _bounds(pair: PairResult) -> str:
    d = pair.difference
    if d.lo is None or d.hi is None:
        return f"one {'fold' if pair.folded else 'seed'}"
    lo, hi = in_points([d.lo, d.hi], pair.margin, digits=2, sign=True)
    return f"{lo} to {hi}"


def _seeds(pair: PairResult) -> str:
    if pair.p_value is None or pair.folded:
        return MISSING
    if pair.needed is None or pair.needed.least is None:
        return "too few images"
    if pair.needed.most is None:
        return f"{pair.needed.least} or more"
    return f"{pair.needed.least} to {pair.needed.most}"


def _classes(comparison: Comparison) -> Table:
    models = comparison.models
    rows = [
        (
            name,
            *(percent(model.per_class[index]) for model in models),
            *(percent(model.precision[index]) for model in models),
        )
        for index, name in enumerate(comparison.classes)
    ]
    of_each = [f"{model.name}, {what}, %" for what in ("recall", "precision") for model in models]
    return Table("classes", "Recall and precision of each class", ("class", *of_each), tuple(rows))


def _calibration(comparison: Comparison) -> Table:
    columns = (
        "network", "ECE, %", "by chance, %", "NLL, nats", "temperature", "ECE after, %",
        "by chance after, %", "NLL after, nats",
    )  # fmt: skip
    rows = []
    for model in comparison.models:
        after = model.scaled
        rows.append(
            (
                model.name,
                percent(model.calibration.ece, 2),
                percent(model.calibration.ece_by_chance, 2),
                f"{model.calibration.nll:.4f}",
                MISSING if model.temperature is None else f"{model.temperature:.2f}",
                percent(after.ece if after else None, 2),
                percent(after.ece_by_chance if after else None, 2),
                f"{after.nll:.4f}" if after else MISSING,
            )
        )
    return Table("calibration", "Table of calibration", columns, tuple(rows))


def _robustness(comparison: Comparison) -> Table:
    measured = [(m.name, m.robustness) for m in comparison.models if m.robustness]
    columns = ("corruption, strength 1 / 2 / 3", *(f"{name}, %" for name, _ in measured))
    kinds = measured[0][1] if measured else ()
    rows = [
        (kind, *(" / ".join(map(percent, robustness[kind])) for _, robustness in measured))
        for kind in kinds
    ]
    return Table("robustness", "Table of robustness", columns, tuple(rows))


def readings_table(comparison: Comparison) -> Table:
    """List every reading of the test set that the run folders have logged, by what it was for."""
    found: dict[str, list[tuple[str, LoggedReading]]] = {}
    for model in comparison.models:
        for run in model.runs:
            for reading in read_log(run.folder):
                # "epoch 3: test curve, monitoring only" counts with those of the other epochs.
                purpose = re.sub(r"^epoch \d+: ", "", reading.purpose)
                found.setdefault(purpose, []).append((str(run.folder), reading))
    rows = []
    for purpose, readings in found.items():
        times = sorted(reading.time for _, reading in readings if reading.time) or [MISSING]
        runs = len({folder for folder, _ in readings})
        rows.append((purpose, f"{len(readings):,}", str(runs), times[0], times[-1]))
    columns = ("read for", "readings", "runs", "first", "last")
    return Table("readings", "Readings of the test set", columns, tuple(rows))

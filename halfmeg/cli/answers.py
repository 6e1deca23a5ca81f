"""How the answers of `predict` are written, one by one, so that none is lost when it is stopped."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from halfmeg.cli.show import print_error, print_line
from halfmeg.files import refuse_existing

if TYPE_CHECKING:
    from halfmeg.shipping.predict import Prediction


def form_of(out: str | None, form: str | None) -> str | None:
    """Return "csv", "json" or None for lines to read: as asked for, or by the ending of `out`.

    Raises:
        ValueError: the file exists, or is neither CSV nor JSON.
    """
    if out is not None and form is None:
        form = Path(out).suffix.lower().removeprefix(".")
        if form not in ("csv", "json"):
            raise ValueError(f"--out {out} is neither .csv nor .json; add --csv or --json")
    if out is not None:
        refuse_existing(Path(out))
    return form


def write_answers(
    predictions: Iterable[Prediction],
    count: int,
    out: str | None,
    form: str | None,
    top: int,
    progress: Callable[[str, int, int], None],
) -> int:
    """Write each answer as it comes; return the number of images without one.

    Args:
        predictions: the answers.
        count: how many there will be.
        out: a file to write, or None for the standard output.
        form: "csv", "json" or None for lines to read; of a file its ending decides.
        top: classes in an answer.
        progress: told how many are done.

    Raises:
        ValueError: as `form_of` does.
        OSError: it cannot be written.
    """
    form = form_of(out, form)
    failed = 0
    notes: Counter[str] = Counter()
    with _opened(out) as file, _writer(form, top, file) as write:
        for done, answer in enumerate(predictions, 1):
            write(answer)
            file.flush()
            failed += answer.error is not None
            notes[answer.note] += 1
            if answer.error is not None and form is not None:
                print_error(f"halfmeg: {answer.path}: {answer.error}")
            progress("classifying images", done, count)
    for note, number in notes.items():
        if note:
            print_error(f"halfmeg: {number:,} image(s) {note}")
    return failed


@contextmanager
def _opened(out: str | None) -> Iterator[TextIO]:
    if out is None:
        yield sys.stdout
        return
    with Path(out).open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
        yield file


@contextmanager
def _writer(form: str | None, top: int, file: TextIO) -> Iterator[Callable[[Prediction], None]]:
    if form == "csv":
        rows = csv.writer(file, lineterminator="\n")
        numbers = ["", *(f"_{place}" for place in range(2, top + 1))]
        names = [name for n in numbers for name in (f"label{n}", f"probability{n}")]
        rows.writerow(["path", *names, "error", "unfamiliar"])

        def write_row(answer: Prediction) -> None:
            cells = [cell for label, p in answer.top for cell in (label, f"{p:.6f}")]
            cells += [""] * (len(names) - len(cells))
            known = answer.unfamiliar is not None
            unfamiliar = ("yes" if answer.unfamiliar else "no") if known else ""
            rows.writerow([answer.path, *cells, answer.error or "", unfamiliar])

        yield write_row
    elif form == "json":
        before = "["

        def write_item(answer: Prediction) -> None:
            nonlocal before
            file.write(before + "\n" + json.dumps(answer.to_dict(), indent=2, allow_nan=False))
            before = ","

        try:
            yield write_item
        finally:
            file.write(("[" if before == "[" else "\n") + "]\n")  # also when it is stopped
    else:
        yield _write_line


def _write_line(answer: Prediction) -> None:
    if answer.error is not None:
        print_error(f"halfmeg: {answer.path}: {answer.error}")
        return
    (label, probability), *rest = answer.top
    others = ", ".join(f"{name} {p:.1%}" for name, p in rest)
    beside = " (unfamiliar)" if answer.unfamiliar else ""
    line = f"{probability:6.1%}  {label}{beside}  {answer.path}"
    line += f"  (then {others})" if others else ""
    print_line(line)

"""What is said of a folder that is not the finished run, bundle or free name it was taken for."""

from __future__ import annotations

from pathlib import Path

from halfmeg.errors import quoted
from halfmeg.files import EXISTS

OTHER_KINDS = {
    "search.json": "it is a search; `halfmeg export {0}` ships its winner, "
    "`halfmeg search --resume {0}` goes on with it",
    "study.json": "it is a study; name one of the runs in it",
    "model.json": "it is a bundle",
    "result.json": "it is a run; `halfmeg export {0} --out BUNDLE` makes a bundle of it",
    "config.json": "it is a run that has not finished; continue it with `halfmeg resume {0}`, and "
    "`halfmeg export {0} --out BUNDLE` makes a bundle of it",
}
"""By the file that says so, the one that says most first."""


def no_run(
    folder: Path, hint: str = "it has no config.json; name the --out of a training"
) -> ValueError:
    """Return the error for a folder without a config.json; of no kind that is known it hints."""
    return ValueError(f"{folder} is no run folder: {_other_kind(folder) or hint}")


def no_bundle(folder: Path, hint: str) -> ValueError:
    """Return the error for a folder without a model.json; where none exists a hint follows."""
    if not folder.exists():
        return ValueError(f"{folder} is no bundle: it does not exist; {hint}".removesuffix("; "))
    return ValueError(f"{folder} is no bundle: {_other_kind(folder) or 'it has no model.json'}")


def _other_kind(folder: Path) -> str:
    """Return what a folder is instead, and what to do with it; empty where that is not known."""
    if not folder.exists():
        return "it does not exist"
    marks = [mark for mark in OTHER_KINDS if (folder / mark).is_file()]
    if "config.json" not in marks and "result.json" in marks:  # part of a run
        marks.remove("result.json")
    return OTHER_KINDS[marks[0]].format(quoted(folder)) if marks else ""


def unfinished(folder: Path) -> ValueError:
    """Return the error for a run that has no result yet."""
    return ValueError(
        f"{folder} has not finished; continue it with `halfmeg resume {quoted(folder)}`"
    )


def occupied(folder: Path) -> ValueError:
    """Return the error for the folder of a new run that exists already."""
    is_run = (folder / "config.json").is_file()
    resume = f", or continue it with `halfmeg resume {quoted(folder)}`" if is_run else ""
    return ValueError(f"{folder} {EXISTS}; choose another --out{resume}")

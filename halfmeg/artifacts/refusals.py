"""What is said of a folder that is not the finished run, or free name, that it was taken for."""

from __future__ import annotations

from pathlib import Path

OTHER_KINDS = {
    "search.json": "it is a search; `halfmeg export {0}` ships its winner, "
    "`halfmeg search --resume {0}` goes on with it",
    "study.json": "it is a study; name one of the runs in it",
    "model.json": "it is a bundle",
}
"""By the file that says so."""


def no_run(folder: Path) -> ValueError:
    """Return the error for a folder without a config.json."""
    if not folder.exists():
        told = "it does not exist"
    else:
        kinds = (text for mark, text in OTHER_KINDS.items() if (folder / mark).is_file())
        told = next(kinds, "it has no config.json; name the --out of a training").format(folder)
    return ValueError(f"{folder} is no run folder: {told}")


def unfinished(folder: Path) -> ValueError:
    """Return the error for a run that has no result yet."""
    return ValueError(f"{folder} has not finished; continue it with `halfmeg resume {folder}`")


def occupied(folder: Path) -> ValueError:
    """Return the error for the folder of a new run that exists already."""
    is_run = (folder / "config.json").is_file()
    resume = f", or continue it with `halfmeg resume {folder}`" if is_run else ""
    return ValueError(
        f"{folder} exists already and is not overwritten; choose another --out{resume}"
    )

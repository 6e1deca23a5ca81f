"""The command on runs that exist: `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfmeg.cli.compared import write_and_print
from halfmeg.cli.options import DataDirOption, JsonOption, MarginOption
from halfmeg.cli.show import print_error

if TYPE_CHECKING:
    from halfmeg.studies.folder import StudyData


def report(
    folders: Annotated[list[str], typer.Argument(help="Run folders, or folders of studies.")],
    data: Annotated[
        str | None, typer.Option(help="Where the runs' data is now.", show_default="as before")
    ] = None,
    data_dir: DataDirOption = "data",
    out: Annotated[
        str | None, typer.Option(help="The page's folder.", show_default="the study's, or report")
    ] = None,
    margin: MarginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs that exist already; nothing is trained.

    Without their data the page has no pictures, and costs are those that a study has measured.
    """
    from dataclasses import replace

    from halfmeg.cli.progress import load_study
    from halfmeg.files import holds_nothing, make_folder
    from halfmeg.studies.compare import compare_runs
    from halfmeg.studies.measure import COSTS, fingerprint_of, measure
    from halfmeg.studies.page import check_page_folder
    from halfmeg.studies.reading import Reading, record_looks
    from halfmeg.studies.study import open_finished

    runs, failures = open_finished(folders)
    is_study = len(folders) == 1 and (Path(folders[0]) / "study.json").exists()
    folder = Path(out or (folders[0] if is_study else "report"))
    reading = Reading.of_all([Path(one) for one in folders])
    if margin is not None:
        reading = replace(reading, margin=margin / 100)
    # raises before anything is written or measured
    compare_runs(runs, failures=failures, reading=reading)
    is_own = is_study and folder.resolve() == Path(folders[0]).resolve()
    if (folder / "study.json").exists() and not is_own:
        raise ValueError(f"{folder} holds another study, and its page; choose another --out")
    check_page_folder(folder)
    marks = (folder / name for name in ("study.json", "comparison.json"))
    if folder.exists() and not holds_nothing(folder) and not any(map(Path.exists, marks)):
        raise ValueError(f"{folder} exists and holds no report; choose another --out")
    loaded: StudyData | None = None
    try:
        loaded = load_study(runs[0], data, data_dir, quiet=as_json)
        if fingerprint_of(runs[0], loaded) != runs[0].data.fingerprint:
            raise ValueError(f"{runs[0].folder} was trained on other data than {loaded.name}")
    except ValueError as error:
        if data is not None:
            raise
        loaded = None
        print_error(f"without the runs' data, so without pictures: {error}")
    if loaded is not None:
        make_folder(folder)
        measure(runs, loaded, folder)
    # What an earlier report has left in its folder is of other runs.
    places = [*([folder] if loaded is not None else []), *map(Path, folders)]
    measured = [place for place in places if (place / COSTS).exists()]
    costs_from = next(iter(measured), None)
    result = compare_runs(runs, costs_from=costs_from, failures=failures, reading=reading)
    read = [[run.folder for run in model.runs] for model in result.models]
    record_looks(read, result.reading.margin)
    write_and_print(result, folder, loaded, as_json)

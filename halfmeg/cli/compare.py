"""The command on several networks: `compare` trains them on equal terms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmeg.cli.compared import write_and_print, write_and_print_sets
from halfmeg.cli.entrants import read_entrants
from halfmeg.cli.options import (
    SOURCES,
    ClusterOption,
    DataDirOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
    MarginOption,
    RecipesOption,
    TunedOnOption,
)
from halfmeg.cli.show import NO_DATA, print_error
from halfmeg.places.place import file_name

if TYPE_CHECKING:
    from halfmeg.cli.compared import Finished
    from halfmeg.data.dataset import DataSplits

SeveralDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help=f"{SOURCES}; may be repeated: a page for each and one above them.",
        show_default="digits",
    ),
]


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            help="Networks by name, FILE.py:NAME or timm:NAME, and settings as key=value."
        ),
    ],
    data: SeveralDataOption = None,
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    seeds: Annotated[
        int | None, typer.Option(help="Runs for each network and recipe.", show_default="3")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Instead of seeds: divide all images into so many folds, and test on each once.",
            show_default=False,
        ),
    ] = None,
    until_decided: Annotated[
        bool,
        typer.Option(
            "--until-decided",
            help="Train 5, 8, 12, 20 seeds until every pair is decided; it makes "
            "false verdicts in no more than 5% of studies.",
        ),
    ] = False,
    margin: MarginOption = None,
    recipe: RecipesOption = None,
    tuned_on: TunedOnOption = None,
    workers: Annotated[int, typer.Option(help="Runs at once; they share the cores.")] = 1,
    cluster: ClusterOption = None,
    gpus_per_run: Annotated[
        float, typer.Option(help="Share of a GPU that a run asks the cluster for.")
    ] = 0.0,
    stack: Annotated[
        bool, typer.Option("--stack", help="Train all seeds of a network at once; for a GPU.")
    ] = False,
    out: Annotated[
        str | None, typer.Option(help="The study's folder.", show_default="runs/compare-…")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train networks on equal terms and say which is better, if any.

    Started again with the same --out, it trains only what is missing.
    """
    from contextlib import ExitStack

    from halfmeg.cli.progress import StudyDisplay, load, training_display
    from halfmeg.data.folds import Folds
    from halfmeg.studies.compare import NoRunFinishedError, plan_comparison
    from halfmeg.studies.compare import compare as compare_models
    from halfmeg.studies.page import check_page_folder
    from halfmeg.studies.reading import MARGIN
    from halfmeg.studies.sequential import compare_until_decided, plan_until_decided
    from halfmeg.studies.study import require_no_fold

    _check_one_way(until_decided, seeds, folds)
    entrants = read_entrants("compare", arguments, recipe, image_size, image_column, label_column)
    names = entrants.names
    if entrants.count < 2:
        raise ValueError(f"{names[0]} alone is no comparison; name two networks, or --recipe twice")
    if seeds != 1:
        require_no_fold(entrants.options.fold)
    all_data = [
        load(source, data_dir, entrants.size, quiet=as_json, options=entrants.options)
        for source in data or ["digits"]
    ]
    folders = _study_folders(all_data, out, names)
    entrants.check(all_data, here=cluster is None)
    terms: dict[str, Any] = {
        "config": entrants.recipes, "workers": workers, "cluster": cluster, "stack": stack,
        "gpus_per_run": gpus_per_run, "tuned_on": tuned_on or [],
        "beside": folders, "margin": MARGIN if margin is None else margin / 100,
    }  # fmt: skip
    if not until_decided:
        terms |= {"folds": folds, "seeds": 3 if seeds is None and folds is None else seeds}
    study = compare_until_decided if until_decided else compare_models
    plan = plan_until_decided if until_decided else plan_comparison
    if len(folders) > 1:
        from halfmeg.studies.sets import check_ranking_folder

        check_ranking_folder(folders[0].parent)
    finished: list[Finished] = []
    failures: dict[str, dict[str, str]] = {}
    with ExitStack() as held:
        divided = []
        for loaded, folder in zip(all_data, folders, strict=True):  # all before anything is trained
            planned = plan(names, loaded, out=folder, **terms)
            held.enter_context(planned.holding())
            check_page_folder(folder)
            divided.append(planned.data)
            if isinstance(planned.data, Folds) and not as_json:
                print_error(f"halfmeg: {planned.data.note}")
        for loaded, folder, parts in zip(all_data, folders, divided, strict=True):
            with training_display(
                quiet=as_json, note=None if data else NO_DATA, folds=folds is not None
            ) as display:
                apart = workers > 1 or bool(cluster) or stack
                listener = StudyDisplay(display, quiet=as_json, apart=apart)
                try:
                    result = study(names, loaded, out=folder, listener=listener, **terms)
                except NoRunFinishedError as error:  # on the other data sets some may
                    if loaded is all_data[-1] and not finished:
                        raise
                    failures[loaded.name] = error.failures
                    continue
            finished.append((result, folder, parts))
            if result.failures:
                failures[loaded.name] = result.failures
    if len(folders) == 1:
        write_and_print(*finished[0], as_json)
    else:
        write_and_print_sets(finished, failures, folders[0].parent, as_json)


def _check_one_way(until_decided: bool, seeds: int | None, folds: int | None) -> None:
    """Raise where more than one way is given to say how many runs a network has."""
    ways = {
        "--until-decided": until_decided, f"--seeds {seeds}": seeds is not None,
        f"--folds {folds}": folds is not None,
    }  # fmt: skip
    if sum(ways.values()) > 1:
        named = " and ".join(way for way, given in ways.items() if given)
        raise ValueError(f"{named} exclude each other; leave one out")


def _study_folders(data: list[DataSplits], out: str | None, names: list[str]) -> list[Path]:
    """Return the folder of each study: of several data sets one below --out for each.

    Raises:
        ValueError: a data set is named twice, two are called the same, or have the same images, or
            one is called as the folder beside the studies'.
    """
    from halfmeg.studies.tables import TABLES

    sets = [loaded.name for loaded in data]
    called: dict[str, DataSplits] = {}
    for loaded in data:
        before = called.setdefault(loaded.name, loaded)
        if before is loaded:
            continue
        if before.fingerprint == loaded.fingerprint:
            raise ValueError(f"data {loaded.name} is named twice; name each data set once")
        raise ValueError(
            f"--data {before.source} and --data {loaded.source} would both be called "
            f"{loaded.name}; rename one of them"
        )
    if len(sets) > 1 and TABLES in called:
        raise ValueError(
            f"--data {called[TABLES].source} would be called {TABLES}, as the folder of the tables "
            "of all data sets is; rename it"
        )
    firsts: dict[str, str] = {}
    for loaded in data:
        first = firsts.setdefault(loaded.fingerprint, loaded.source)
        if first != loaded.source:
            raise ValueError(
                f"--data {first} and --data {loaded.source} are the same images; "
                "leave one of them out"
            )
    above = Path(out or f"runs/compare-{'-'.join([*sets, *map(file_name, names)])}")
    return [above] if len(sets) == 1 else [above / name for name in sets]

"""Commands on several runs: compare networks, report on runs that exist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfmeg.cli.show import (
    NO_DATA,
    DataDirOption,
    DataOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
    build_table,
    format_range,
    print_error,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from halfmeg.data.dataset import DataSplits
    from halfmeg.studies.compare import Comparison


def compare(
    arguments: Annotated[list[str], typer.Argument(help="Networks, and settings as key=value.")],
    data: DataOption = None,
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = 32,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    seeds: Annotated[int, typer.Option(help="Runs for each network and recipe.")] = 3,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="The terms for all networks; may be repeated.", show_default="common"),
    ] = None,
    workers: Annotated[int, typer.Option(help="Runs at once; they share the cores.")] = 1,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Ray cluster that trains, or auto.")
    ] = None,
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
    from halfmeg.cli.hints import check_compare_words
    from halfmeg.cli.progress import StudyDisplay, load, training_display
    from halfmeg.data.options import read_options
    from halfmeg.networks.table import MODELS, build_model
    from halfmeg.studies.compare import compare as compare_models
    from halfmeg.training.recipes import build_recipe

    names = [text for text in arguments if "=" not in text]
    given = [text for text in arguments if "=" in text]
    options, settings = read_options(given, image_column, label_column)
    check_compare_words(names, given)
    recipes = [build_recipe(name).override(settings) for name in recipe or ["common"]]
    if not names:
        raise ValueError(f"no network named; allowed: {', '.join(MODELS)}")
    if len(names) * len(recipes) < 2:
        raise ValueError(f"{names[0]} alone is no comparison; name two networks, or --recipe twice")
    loaded = load(data or "digits", data_dir, image_size, quiet=as_json, options=options)
    for name in names:
        build_model(name, len(loaded.classes), loaded.image_size, recipes[0].budget)
    folder = Path(out or f"runs/compare-{loaded.name}-{'-'.join(names)}")
    with training_display(quiet=as_json, note=None if data else NO_DATA) as display:
        result = compare_models(
            names, loaded, seeds=seeds, out=folder, config=recipes, workers=workers,
            cluster=cluster, gpus_per_run=gpus_per_run, stack=stack,
            listener=StudyDisplay(
                display, quiet=as_json, apart=workers > 1 or bool(cluster) or stack
            ),
        )  # fmt: skip
    _write_andprint_line(result, folder, loaded, as_json)


def report(
    folders: Annotated[list[str], typer.Argument(help="Run folders, or folders of studies.")],
    data: Annotated[
        str | None, typer.Option(help="Where the runs' data is now.", show_default="as before")
    ] = None,
    data_dir: DataDirOption = "data",
    out: Annotated[
        str | None, typer.Option(help="The page's folder.", show_default="the study's, or report")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs that exist already; nothing is trained.

    Without their data the page has no pictures, and nothing is measured anew.
    """
    from halfmeg.cli.progress import load_again
    from halfmeg.studies.compare import compare_runs
    from halfmeg.studies.measure import measure
    from halfmeg.studies.page import check_page_folder
    from halfmeg.studies.study import open_runs

    runs = open_runs(folders)
    is_study = len(folders) == 1 and (Path(folders[0]) / "study.json").exists()
    folder = Path(out or (folders[0] if is_study else "report"))
    first = runs[0].data
    compare_runs(runs)  # raises before anything is written or measured
    check_page_folder(folder)
    loaded = None
    try:
        loaded = load_again(runs[0], data, data_dir, quiet=as_json)
        if loaded.fingerprint != first.fingerprint:
            raise ValueError(f"{runs[0].folder} was trained on other data than {loaded.name}")
    except ValueError as error:
        if data is not None:
            raise
        loaded = None
        print_error(f"without the runs' data, so without pictures: {error}")
    if loaded is not None:
        folder.mkdir(parents=True, exist_ok=True)
        measure(runs, loaded, folder)
    _write_andprint_line(compare_runs(runs, costs_from=folder), folder, loaded, as_json)


def _write_andprint_line(
    result: Comparison, folder: Path, data: DataSplits | None, as_json: bool
) -> None:
    from halfmeg.studies.page import write_comparison  # matplotlib: half a second for others

    page, figure = write_comparison(result, folder, data)
    if as_json:
        print_json(result.to_dict() | {"page": str(page), "figure": str(figure)})
    else:
        _print_comparison(result)
        print_line(f"page    {page}")
        print_line(f"figure  {figure}")
    if result.failures:
        raise typer.Exit(1)


def _print_comparison(result: Comparison) -> None:
    table = build_table(
        "network", "test accuracy", "95% interval", "seeds", "parameters", "training, s"
    )
    for model in result.models:
        interval = model.test_accuracy
        over = "" if model.within_budget else " (over budget)"
        table.add_row(
            model.name, f"{interval.mean:.2%}", format_range(interval), str(len(model.per_seed)),
            f"{model.params:,}{over}", f"{model.seconds:.1f}",
        )  # fmt: skip
    print_table(table)
    for pair in result.pairs:
        print_line(pair.verdict)
        if pair.terms:
            print_line(f"  not on equal terms: {'; '.join(pair.terms)}")
    for name, error in result.failures.items():
        print_error(f"failed: {name}: {error}")

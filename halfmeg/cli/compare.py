"""Commands on several runs: plan a study, compare networks, report on runs that exist."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmeg.cli.options import (
    DataDirOption,
    DataOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
    TunedOnOption,
)
from halfmeg.cli.show import (
    NO_DATA,
    build_table,
    describe_memory,
    format_range,
    memory_json,
    memory_or_reason,
    print_error,
    print_json,
    print_line,
    print_table,
)
from halfmeg.places.place import file_name
from halfmeg.places.settings import is_setting

if TYPE_CHECKING:
    from halfmeg.config import RunConfig
    from halfmeg.data.dataset import DataSplits
    from halfmeg.studies.compare import Comparison
    from halfmeg.studies.plan import Plan
    from halfmeg.studies.study import StudyData

SeveralDataOption = Annotated[
    list[str] | None,
    typer.Option(
        help="digits, cifar10, or a path to Parquet files or to a folder of images; may be "
        "repeated: a page for each and one above them.",
        show_default="digits",
    ),
]

MarginOption = Annotated[
    float | None,
    typer.Option(help="Points within which two networks are called the same.", show_default="1"),
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
            help="Train 5, 8, 12, 20 seeds until every pair is decided; no more than 5% of "
            "verdicts are false for it.",
        ),
    ] = False,
    margin: MarginOption = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            help="The terms for all networks, a name or FILE.py:NAME; may be repeated.",
            show_default="common",
        ),
    ] = None,
    tuned_on: TunedOnOption = None,
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
    from halfmeg.data.folds import Folds
    from halfmeg.data.options import read_options, read_size
    from halfmeg.studies.compare import compare as compare_models
    from halfmeg.studies.reading import MARGIN
    from halfmeg.studies.sequential import compare_until_decided

    ways = {
        "--until-decided": until_decided, f"--seeds {seeds}": seeds is not None,
        f"--folds {folds}": folds is not None,
    }  # fmt: skip
    if sum(ways.values()) > 1:
        named = " and ".join(way for way, given in ways.items() if given)
        raise ValueError(f"{named} exclude each other; leave one out")
    given = [text for text in arguments if is_setting(text)]
    options, settings = read_options(given, image_column, label_column)
    size, settings = read_size(settings, image_size)
    words = [text for text in arguments if not is_setting(text)]
    check_compare_words(words, given)
    names, recipes = _networks_and_terms([*words, *settings], recipe)
    if len(names) * len(recipes) < 2:
        raise ValueError(f"{names[0]} alone is no comparison; name two networks, or --recipe twice")
    sources = data or ["digits"]
    all_data = [load(source, data_dir, size, quiet=as_json, options=options) for source in sources]
    _check_networks(names, recipes, all_data)
    if folds is not None:
        for loaded in all_data:  # before anything is trained
            note = Folds.of(loaded, folds).note
            if not as_json:
                print_error(f"halfmeg: {note}")
    folders = _study_folders(all_data, out, names)
    results = []
    for loaded, folder in zip(all_data, folders, strict=True):
        with training_display(quiet=as_json, note=None if data else NO_DATA) as display:
            listener = StudyDisplay(
                display, quiet=as_json, apart=workers > 1 or bool(cluster) or stack
            )
            how: dict[str, Any] = {
                "out": folder, "config": recipes, "workers": workers, "cluster": cluster,
                "gpus_per_run": gpus_per_run, "stack": stack, "listener": listener,
                "margin": MARGIN if margin is None else margin / 100, "tuned_on": tuned_on or [],
            }  # fmt: skip
            if until_decided:
                results.append(compare_until_decided(names, loaded, **how))
            else:
                number = 3 if seeds is None and folds is None else seeds
                results.append(compare_models(names, loaded, seeds=number, folds=folds, **how))
    studied = [loaded if folds is None else Folds.of(loaded, folds) for loaded in all_data]
    if len(results) == 1:
        write_and_print(results[0], folders[0], studied[0], as_json)
    else:
        _write_and_print_sets(results, folders, studied, as_json)


def _networks_and_terms(
    arguments: list[str], recipe: list[str] | None
) -> tuple[list[str], list[RunConfig]]:
    """Take arguments apart into networks and settings, and apply these to the recipes."""
    from halfmeg.networks.table import MODELS
    from halfmeg.training.recipes import build_recipe

    names = [text for text in arguments if not is_setting(text)]
    settings = [text for text in arguments if is_setting(text)]
    if not names:
        raise ValueError(f"no network named; allowed: {', '.join(MODELS)}")
    return names, [build_recipe(name).override(settings) for name in recipe or ["common"]]


def _check_networks(names: list[str], recipes: list[RunConfig], data: list[DataSplits]) -> None:
    """Build every network once, so that a mistake is told before anything is trained."""
    from halfmeg.networks.table import build_model

    for loaded in data:
        for name in names:
            build_model(name, len(loaded.classes), loaded.image_shape, recipes[0].budget)


def _study_folders(data: list[DataSplits], out: str | None, names: list[str]) -> list[Path]:
    """Return the folder of each study: of several data sets one below --out for each."""
    sets = [loaded.name for loaded in data]
    for name in sets:
        if sets.count(name) > 1:
            raise ValueError(f"data {name} is named twice; name each data set once")
    above = Path(out or f"runs/compare-{'-'.join([*sets, *map(file_name, names)])}")
    return [above] if len(sets) == 1 else [above / name for name in sets]


def plan(
    arguments: Annotated[list[str], typer.Argument(help="Networks, and settings as key=value.")],
    data: DataOption = None,
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = None,
    difference: Annotated[float, typer.Option(help="Points that shall be seen.")] = 0.5,
    pilot: Annotated[
        str | None,
        typer.Option(
            help="A study that has run, for how much seeds and images differ.",
            show_default="this repository's",
        ),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(help="As for compare.", show_default="common")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say before a study what it could see, and what it costs.

    Trains a few steps of each network to see how fast this machine is; reads no test image.
    """
    from dataclasses import replace

    from halfmeg.cli.progress import load
    from halfmeg.data.options import read_options, read_size
    from halfmeg.networks.table import build_model
    from halfmeg.studies.compare import compare_runs
    from halfmeg.studies.plan import make_plan, time_training
    from halfmeg.studies.study import open_runs

    options, others = read_options([text for text in arguments if is_setting(text)], None, None)
    size, others = read_size(others, image_size)
    words = [text for text in arguments if not is_setting(text)]
    names, recipes = _networks_and_terms([*words, *others], recipe)
    found = None if pilot is None else compare_runs(open_runs([pilot]))
    loaded = load(data or "digits", data_dir, size, quiet=as_json, options=options)
    _check_networks(names, recipes, [loaded])
    count = len(names) * len(recipes)
    made = make_plan(count, len(loaded.test), difference=difference / 100, pilot=found)
    configs = [replace(config, model=name) for config in recipes for name in names]
    made = made.with_seconds(time_training(configs, loaded))
    classes, shape, budget = len(loaded.classes), loaded.image_shape, recipes[0].budget
    needs = {
        name: memory_or_reason(build_model(name, classes, shape, budget), shape) for name in names
    }
    if as_json:
        memory = {name: memory_json(need) for name, need in needs.items()}
        print_json(made.to_dict() | {"memory": memory})
    else:
        _print_plan(made)
        print_line("in C, as 8-bit integers (image, stack and code are not counted):")
        for name, need in needs.items():
            print_line(f"{name}: {describe_memory(need)}")


def _print_plan(made: Plan) -> None:
    points = 100 * made.difference
    table = build_table(
        "seeds", *(f"{n:,} test images" for n in made.num_images), "smallest", "minutes"
    )
    for row in made.rows:
        minutes = "–" if row.minutes is None else f"{row.minutes:,.1f}"
        shares = (f"{share:.0%}" for share in row.power)
        table.add_row(str(row.seeds), *shares, f"{100 * row.smallest:.1f} points", minutes)
    s = "" if points == 1 else "s"
    print_line(f"how often {points:g} point{s} would be seen, {made.num_networks} networks:")
    print_table(table)
    print_line(
        f"between seeds a difference varies by {100 * made.chance.seeds**0.5:.2f} points "
        f"({made.origin}); smallest: seen in four of five studies, with {made.num_images[1]:,} "
        "test images; minutes: here"
    )


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
    from halfmeg.data.folds import Folds
    from halfmeg.files import make_folder
    from halfmeg.studies.compare import compare_runs
    from halfmeg.studies.measure import COSTS, fingerprint_of, measure
    from halfmeg.studies.page import check_page_folder
    from halfmeg.studies.reading import Reading
    from halfmeg.studies.study import open_runs

    runs = open_runs(folders)
    is_study = len(folders) == 1 and (Path(folders[0]) / "study.json").exists()
    folder = Path(out or (folders[0] if is_study else "report"))
    # Of several studies the strictest level holds.
    reading = min((Reading.of(Path(one)) for one in folders), key=lambda one: one.level)
    if margin is not None:
        reading = replace(reading, margin=margin / 100)
    compare_runs(runs, reading=reading)  # raises before anything is written or measured
    check_page_folder(folder)
    loaded: StudyData | None = None
    try:
        loaded = load_study(runs[0], data, data_dir, quiet=as_json)
        if fingerprint_of(runs[0], loaded) != runs[0].data.fingerprint:
            name = loaded.data.name if isinstance(loaded, Folds) else loaded.name
            raise ValueError(f"{runs[0].folder} was trained on other data than {name}")
    except ValueError as error:
        if data is not None:
            raise
        loaded = None
        print_error(f"without the runs' data, so without pictures: {error}")
    if loaded is not None:
        make_folder(folder)
        measure(runs, loaded, folder)
    measured = [place for place in (folder, *map(Path, folders)) if (place / COSTS).exists()]
    result = compare_runs(runs, costs_from=next(iter(measured), None), reading=reading)
    write_and_print(result, folder, loaded, as_json)


def write_and_print(
    result: Comparison, folder: Path, data: StudyData | None, as_json: bool
) -> None:
    """Write a comparison's page and print what it found; exit with 1 where a run failed."""
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


def _write_and_print_sets(
    results: list[Comparison], folders: list[Path], data: list[StudyData], as_json: bool
) -> None:
    from halfmeg.studies.page import write_comparison
    from halfmeg.studies.sets import rank_comparisons, write_ranking

    ranking = rank_comparisons(results)
    for result, folder, loaded in zip(results, folders, data, strict=True):
        write_comparison(result, folder, loaded)
    page = write_ranking(ranking, results, folders, folders[0].parent)
    if as_json:
        studies = [result.to_dict() for result in results]
        print_json(ranking.to_dict() | {"studies": studies, "page": str(page)})
    else:
        for result in results:
            print_line(f"{result.data}: {result.ranking}")
        print_line(ranking.verdict)
        print_line(f"page    {page}")
    for result in results:
        for name, error in result.failures.items():
            print_error(f"failed: {result.data}: {name}: {error}")
    if any(result.failures for result in results):
        raise typer.Exit(1)


def _print_comparison(result: Comparison) -> None:
    table = build_table(
        "network",
        "test accuracy",
        result.interval_name,
        f"{result.unit}s",
        "parameters",
        "training, s",
    )
    for model in result.models:
        interval = model.test_accuracy
        over = "" if model.within_budget else " (over budget)"
        table.add_row(
            model.name, f"{interval.mean:.2%}", format_range(interval), str(len(model.per_seed)),
            f"{model.params:,}{over}", f"{model.seconds:.1f}",
        )  # fmt: skip
    print_table(table)
    if len(result.models) > 2:
        print_line(result.ranking)
    for pair in result.pairs:
        print_line(pair.verdict)
        if pair.terms:
            print_line(f"  not on equal terms: {'; '.join(pair.terms)}")
    if result.stopped:
        print_line(f"the study {result.stopped}")
    for name, error in result.failures.items():
        print_error(f"failed: {name}: {error}")

"""`search`: the best network for a user's images within a budget, in the time there is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmeg.cli.options import (
    ClusterOption,
    DataDirOption,
    DataOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
)
from halfmeg.cli.show import (
    NO_DATA,
    TextTable,
    format_range,
    print_error,
    print_json,
    print_line,
    print_table,
    screen,
)
from halfmeg.errors import quoted
from halfmeg.places.settings import is_setting

if TYPE_CHECKING:
    from halfmeg.data.dataset import DataSplits
    from halfmeg.search.finish import Outcome
    from halfmeg.search.record import Stored

HOUR = 3600.0


def search(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            help="Networks to search among, families or FILE.py:NAME, and settings as key=value "
            "that are not searched.",
            show_default="all families",
        ),
    ] = None,
    data: DataOption = None,
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    params: Annotated[str | None, typer.Option(help="Most parameters, as 100k.")] = None,
    macs: Annotated[str | None, typer.Option(help="Most multiply-accumulates, as 12M.")] = None,
    flash: Annotated[str | None, typer.Option(help="Most bytes of constants, as 128k.")] = None,
    ram: Annotated[str | None, typer.Option(help="Most bytes of maps, as 64k or 64KiB.")] = None,
    latency: Annotated[
        str | None, typer.Option(help="Most time for an image, as 5ms, measured on this machine.")
    ] = None,
    chip: Annotated[
        str | None, typer.Option(help="Estimate the latency for this instead, as cortex-m7.")
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(
            help="All the time there is; given with --resume, from now on.", show_default="1"
        ),
    ] = None,
    workers: Annotated[int, typer.Option(help="Trials at once; they share the cores.")] = 1,
    cluster: ClusterOption = None,
    space: Annotated[
        str | None, typer.Option(help="A space of one's own, FILE.py:NAME; see docs/search.md.")
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="What the winner is compared with: a network, a run or a search; may be repeated.",
            show_default="three that fit",
        ),
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            "--compare/--no-compare",
            help="Compare the winner at the end, with up to 5 seeds.",
            show_default="compare",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the draws.", show_default="0")] = None,
    out: Annotated[
        str | None, typer.Option(help="The search's folder.", show_default="runs/search-…")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="Go on with the search in this folder.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best network for some images within limits.

    Chooses by validation images, and compares the winner on the test images at the end. Started
    again with the same --out, it goes on where it was.
    """
    from halfmeg.cli.hints import check_network_words
    from halfmeg.cli.progress import StudyDisplay, load, training_display
    from halfmeg.cli.searching import SearchDisplay
    from halfmeg.data.options import read_options, read_size
    from halfmeg.search.budget import parse_limits
    from halfmeg.search.record import read_stored
    from halfmeg.search.run import check_time, describe_search, open_search, start, with_time
    from halfmeg.studies.study import require_no_fold

    waits = screen(stderr=True).is_terminal and not as_json
    seconds = HOUR * (1.0 if hours is None else hours)
    check_time(seconds)  # before data is loaded
    limits = {"params": params, "macs": macs, "flash": flash, "ram": ram, "latency": latency}
    if resume is not None:
        given = [f"--{name}" for name, text in limits.items() if text is not None]
        given += [
            name
            for name, value in (
                ("--space", space), ("--out", out), ("--baseline", baseline), ("--chip", chip),
                ("--seed", seed), ("--compare or --no-compare", compare),
                ("--image-size", image_size), ("--image-column", image_column),
                ("--label-column", label_column),
            )
            if value is not None
        ] + list(arguments or [])  # fmt: skip
        if given:
            raise ValueError(f"--resume {resume} goes on as it was begun; leave out {given[0]}")
        folder = Path(resume)
        loaded = _load_own(folder, read_stored(folder), data, data_dir, quiet=as_json)
        stored, chosen = open_search(folder, loaded)
        if hours is not None:
            stored = with_time(folder, stored, seconds)
    else:
        given = list(arguments or [])
        networks = [text for text in given if not is_setting(text)]
        options, settings = read_options(
            [text for text in given if is_setting(text)], image_column, label_column
        )
        check_network_words("search", networks, settings)
        require_no_fold(options.fold)  # what is told of the data comes before
        size, settings = read_size(settings, image_size)
        wanted = parse_limits(chip, **limits)
        loaded = load(data or "digits", data_dir, size, quiet=as_json, options=options)
        stored, chosen = describe_search(
            loaded, limits=wanted, seconds=seconds, place=space or "",
            networks=networks, settings=settings,
            baselines=baseline, compare=compare is not False, seed=seed or 0,
        )  # fmt: skip
        folder = Path(out or f"runs/search-{loaded.name}")
    with training_display(quiet=as_json, note=None if data or resume else NO_DATA) as display:
        outcome = start(
            folder, loaded, stored, chosen, workers=workers, cluster=cluster,
            listener=lambda under_way: SearchDisplay(under_way, display, quiet=as_json),
            final_listener=StudyDisplay(
                display, quiet=as_json, apart=workers > 1 or cluster is not None
            ),
            tell=lambda text: print_error(f"halfmeg: {text} …") if waits else None,
        )  # fmt: skip
    if as_json:
        print_json(_to_dict(folder, outcome))
    else:
        _print_outcome(folder, outcome, loaded)


def _load_own(
    folder: Path, stored: Stored, data: str | None, data_dir: str, *, quiet: bool
) -> DataSplits:
    """Load the images of a search, from where they are now; later ones are left out, and said."""
    from halfmeg.cli.progress import load, tell_newcomers
    from halfmeg.data.options import DataOptions
    from halfmeg.search.record import own_data

    facts, size = stored.data, stored.data["image_size"]
    loaded = load(
        data or facts["source"], data_dir, size if isinstance(size, int) else tuple(size),
        quiet=quiet, options=DataOptions.from_dict(facts["options"]),
    )  # fmt: skip
    own = own_data(folder, stored, loaded)
    tell_newcomers(loaded, own, folder)
    return own


def _to_dict(folder: Path, outcome: Outcome) -> dict[str, Any]:
    from halfmeg.search.budget import describe_latency
    from halfmeg.search.record import read_stored

    winner = outcome.winner
    assert winner.config is not None
    assert winner.costs is not None
    return {
        "trial": winner.number,
        "model": winner.config.model,
        "config": winner.config.to_dict(),
        "costs": asdict(winner.costs),
        "latency": describe_latency(read_stored(folder).limits)
        if winner.costs.latency is not None
        else None,
        "val_accuracy": winner.accuracy,
        "run": str(outcome.run.folder),
        "test_accuracy": (outcome.run.result() or {}).get("test_accuracy"),
        "verdicts": outcome.verdicts,
        "no_verdict": outcome.no_verdict or None,
        "earlier_comparisons": list(outcome.earlier),
        "failures": dict(outcome.failures),
        "comparison": outcome.comparison.to_dict() if outcome.comparison else None,
        "page": str(folder / "search.html"),
    }


def _print_outcome(folder: Path, outcome: Outcome, data: DataSplits) -> None:
    from halfmeg.places.place import short_name
    from halfmeg.search.budget import describe_latency, describe_limit
    from halfmeg.search.record import read_stored

    winner = outcome.winner
    assert winner.config is not None
    costs = [
        describe_limit(name, value)
        + (f" {describe_latency(read_stored(folder).limits)}" if name == "latency" else "")
        for name in ("params", "macs", "flash", "ram", "tflite_micro", "latency")
        if (value := getattr(winner.costs, name)) is not None
    ]
    print_line(f"winner      {short_name(winner.config.model)}, trial {winner.number}")
    print_line(f"costs       {', '.join(costs)}")
    runs = f"the mean of {len(winner.repeated) + 1} trainings, " if winner.repeated else ""
    print_line(
        f"validation  {winner.accuracy or 0:.2%}, {runs}the best of those that it chose from"
    )
    if outcome.comparison is not None:
        table = TextTable(("network", "test accuracy", outcome.comparison.interval_name, "seeds"))
        for model in outcome.comparison.models:
            interval = model.test_accuracy
            table.add_row(
                model.name, f"{interval.mean:.2%}", format_range(interval), str(len(model.runs))
            )
        print_table(table)
    else:
        result = outcome.run.result() or {}
        print_line(f"test        {result.get('test_accuracy', 0):.2%} of {len(data.test):,} images")
    for verdict in outcome.verdicts:
        print_line(verdict)
    if outcome.seen_before:
        print_line(outcome.seen_before)
    if outcome.no_verdict:
        print_line(f"nothing was compared: {outcome.no_verdict}")
    for name, error in outcome.failures.items():
        print_error(f"failed: {name}: {error}")
    print_line(f"page        {folder / 'search.html'}")
    print_line(f"ship it     halfmeg export {quoted(folder)} --out mine")


def find_run(
    folder: str, pick: str | None, data: str | None, data_dir: str, *, quiet: bool
) -> tuple[Any, DataSplits]:
    """Return the finished run of a search that is to be shipped, and its data.

    Raises:
        ValueError: nothing was trained to its end, or nothing is within `pick`.
    """
    from halfmeg.search.finish import shipped_run
    from halfmeg.search.front import best_of
    from halfmeg.search.front import pick as pick_trial
    from halfmeg.search.journal import read_trials
    from halfmeg.search.record import decided, no_network, read_stored

    path = Path(folder)
    stored: Stored = read_stored(path)
    trials = read_trials(path)
    chosen = best_of(trials) if stored.final is None else decided(trials, stored.final)
    if pick is not None:
        chosen = pick_trial(trials, pick)
    if chosen is None:
        raise no_network(path)
    loaded = _load_own(path, stored, data, data_dir, quiet=quiet)
    return shipped_run(path, chosen, stored, loaded), loaded

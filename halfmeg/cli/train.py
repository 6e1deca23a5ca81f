"""Commands on one run: train it, continue it, evaluate it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halfmeg.cli.show import (
    DataDirOption,
    DataOption,
    ImageSizeOption,
    JsonOption,
    SettingsArgument,
    build_table,
    format_range,
    print_json,
    print_line,
    print_table,
)
from halfmeg.places.place import file_name

if TYPE_CHECKING:
    from halfmeg.artifacts.bundle import Bundle
    from halfmeg.artifacts.run import Run


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe that `halfmeg recipes` lists, FILE.py:NAME, or a JSON file of settings."
        ),
    ],
    settings: SettingsArgument = None,
    data: DataOption = "digits",
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = 32,
    out: Annotated[
        str | None, typer.Option(help="The run folder to make.", show_default="runs/RECIPE-…")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network by a recipe, changed by key=value settings."""
    from halfmeg.cli.progress import load, training_display
    from halfmeg.training.fit import fit
    from halfmeg.training.recipes import build_recipe

    config = build_recipe(recipe).override(settings or [])
    loaded = load(data, data_dir, image_size, quiet=as_json)
    names = (file_name(config.recipe), file_name(config.model), f"seed-{config.seed}")
    folder = out or f"runs/{'-'.join(names)}"
    with training_display(quiet=as_json) as listener:
        run = fit(config, loaded, folder, listener=listener(config))
    _print_result(run, as_json)


def resume(
    folder: Annotated[str, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Where the run's data is now.", show_default="as before")
    ] = None,
    data_dir: DataDirOption = "data",
    as_json: JsonOption = False,
) -> None:
    """Continue a run that was stopped or killed."""
    from halfmeg.artifacts.run import Run
    from halfmeg.cli.progress import load, training_display
    from halfmeg.training.fit import resume as resume_run

    run = Run.open(folder)
    loaded = load(data or run.data.source, data_dir, run.data.image_size, quiet=as_json)
    with training_display(quiet=as_json) as listener:
        run = resume_run(folder, loaded, listener=listener(run.config))
    _print_result(run, as_json)


def _print_result(run: Run, as_json: bool) -> None:
    if not run.writes:
        return  # another process of this run prints
    from halfmeg.studies.figures import (  # matplotlib: half a second for others
        run_figure,
        write_figure,
    )

    figure = write_figure(run_figure(run), run.folder / "curves.png")
    result = run.result() or {}
    if as_json:
        print_json(result)
        return
    if result["val_accuracy"] is not None:
        print_line(
            f"validation accuracy  {result['val_accuracy']:.2%} ({result['val_n']:,} images)"
        )
    print_line(f"test accuracy        {result['test_accuracy']:.2%} ({result['test_n']:,} images)")
    print_line(f"parameters           {result['params']:,}")
    print_line(
        f"training             {result['seconds']:.1f} s, "
        f"{result['images_per_second']:,.0f} images/s"
    )
    print_line(f"run folder           {run.folder}")
    print_line(f"learning curves      {figure}")


def evaluate(
    folder: Annotated[str, typer.Argument(help="A finished run folder, a bundle, or `record`.")],
    data: Annotated[
        str | None, typer.Option(help="Other data of the same classes.", show_default="the run's")
    ] = None,
    data_dir: DataDirOption = "data",
    as_json: JsonOption = False,
) -> None:
    """Evaluate trained weights on the test images.

    A run folder logs the reading.
    """
    from halfmeg.artifacts.bundle import Bundle, is_bundle
    from halfmeg.artifacts.run import Run
    from halfmeg.cli.progress import load
    from halfmeg.studies.stats import wilson_interval

    evaluated: Run | Bundle
    if is_bundle(folder):
        evaluated = Bundle.open(folder)
        if data is None:
            raise ValueError(f"{folder} is a bundle, which does not know where data is; add --data")
        loaded = load(data, data_dir, evaluated.image_size, quiet=as_json)
    else:
        evaluated = Run.open(folder)
        size = evaluated.data.image_size
        loaded = load(data or evaluated.data.source, data_dir, size, quiet=as_json)
    result = evaluated.evaluate(loaded)
    interval = wilson_interval(round(result.accuracy * result.n), result.n)
    if as_json:
        numbers = result.to_dict() | {"accuracy_interval": interval.to_dict()}
        print_json(numbers | {"data": loaded.name})
        return
    print_line(f"accuracy  {result.accuracy:.2%} ({result.n:,} test images of {loaded.name})")
    print_line(f"interval  {format_range(interval)} (95%, over images)")
    print_line(f"loss      {result.loss:.4f}")
    table = build_table("class", "accuracy", "most often taken for")
    for index, name in enumerate(loaded.classes):
        accuracy = result.per_class[index]
        wrong = [count if i != index else 0 for i, count in enumerate(result.confusion[index])]
        taken = f"{loaded.classes[wrong.index(max(wrong))]} ({max(wrong)})" if any(wrong) else "–"
        table.add_row(name, "–" if accuracy is None else f"{accuracy:.1%}", taken)
    print_table(table)

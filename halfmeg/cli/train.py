"""Commands on one run: train it, continue it, evaluate it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from halfmeg.cli.options import (
    DataDirOption,
    DataOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
    SettingsArgument,
    TunedOnOption,
)
from halfmeg.cli.show import (
    NO_DATA,
    TextTable,
    format_range,
    print_error,
    print_json,
    print_line,
    print_table,
)
from halfmeg.files import refuse_existing
from halfmeg.places.place import file_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from halfmeg.artifacts.bundle import Bundle
    from halfmeg.artifacts.run import Run
    from halfmeg.config import RunConfig
    from halfmeg.data.dataset import DataSplits
    from halfmeg.data.options import DataOptions
    from halfmeg.data.shape import ImageSize
    from halfmeg.evaluation.evaluate import Evaluation
    from halfmeg.studies.auto import Choice


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe that `halfmeg recipes` lists, auto, FILE.py:NAME, or a JSON of settings."
        ),
    ],
    settings: SettingsArgument = None,
    data: DataOption = None,
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    folds: Annotated[
        int | None,
        typer.Option(
            help="Divide all images into so many folds; train and test on each once.",
            show_default=False,
        ),
    ] = None,
    tuned_on: TunedOnOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="The run folder to make, of folds a study's.", show_default="runs/RECIPE-…"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network by a recipe, changed by key=value settings.

    auto picks network, image size, batch and epochs for the data, in minutes=10.
    """
    from halfmeg.cli.hints import check_setting_words, check_train_words
    from halfmeg.cli.progress import load, training_display
    from halfmeg.data.options import read_options, read_size
    from halfmeg.studies.auto import WithChoice
    from halfmeg.studies.trials import with_trials
    from halfmeg.training.fit import fit
    from halfmeg.training.recipes import build_recipe

    check_train_words(recipe, settings or [], data)
    check_setting_words(settings or [], *(["minutes"] if recipe == "auto" else []))
    options, others = read_options(settings, image_column, label_column)
    size, others = read_size(others, image_size)
    if recipe == "auto" and folds is not None:
        raise ValueError("auto and --folds exclude each other; name a recipe, or leave --folds out")
    choice = None
    if recipe == "auto":
        out = out or f"runs/auto-{file_name(Path(data or 'digits').name)}"
        refuse_existing(Path(out))  # told before minutes of trials
        is_given = image_size is not None or any(
            s.startswith("image_size=") for s in settings or ()
        )
        choice, loaded = _choose(
            others, data or "digits", data_dir, size if is_given else None, options, quiet=as_json
        )
        config = choice.config
    else:
        config = build_recipe(recipe).override(others)
        loaded = load(data or "digits", data_dir, size, quiet=as_json, options=options)
    if folds is not None:
        _train_folds(config, loaded, folds, out, tuned_on or [], as_json)
        return
    config = with_trials(config, tuned_on or [])
    names = (file_name(config.recipe), file_name(config.model), f"seed-{config.seed}")
    folder = out or f"runs/{'-'.join(names)}"
    with training_display(quiet=as_json, note=None if data else NO_DATA) as display:
        listener = display(config)
        if choice is not None:
            listener = WithChoice(choice, listener)
        run = fit(config, loaded, folder, listener=listener)
    _print_result(run, as_json)


def _train_folds(
    config: RunConfig,
    data: DataSplits,
    count: int,
    out: str | None,
    tuned_on: Sequence[str],
    as_json: bool,
) -> None:
    """Train and test on each fold, and print the accuracy over all of them."""
    from halfmeg.cli.compared import write_and_print
    from halfmeg.cli.progress import StudyDisplay, training_display
    from halfmeg.data.folds import Folds
    from halfmeg.studies.compare import cross_validate
    from halfmeg.studies.trials import with_trials
    from halfmeg.training.job import check

    if config.seed:
        raise ValueError(
            f"seed={config.seed} and --folds {count} exclude each other: "
            "fold 1 has the seed 0, fold 2 the seed 1, and so on; leave seed out"
        )
    folds = Folds.of(data, count)
    check(config, data)
    if not as_json:
        print_error(f"halfmeg: {folds.note}")
    names = (file_name(config.recipe), file_name(config.model), f"folds-{count}")
    folder = Path(out or f"runs/{'-'.join(names)}")
    config = with_trials(config, tuned_on, [folder])
    with training_display(quiet=as_json, folds=True) as display:
        listener = StudyDisplay(display, quiet=as_json, apart=False)
        found = cross_validate(config, data, folds=count, out=folder, listener=listener)
    write_and_print(found, folder, folds, as_json)


def _choose(
    settings: list[str], data: str, data_dir: str, size: ImageSize | None, options: DataOptions, *,
    quiet: bool,
) -> tuple[Choice, DataSplits]:  # fmt: skip
    """Pick what `train auto` trains; return it with the data at its size."""
    from halfmeg.cli.progress import load
    from halfmeg.studies.auto import choose
    from halfmeg.training.recipes import common

    loaded: dict[ImageSize, DataSplits] = {}

    def load_at(side: ImageSize) -> DataSplits:
        if side not in loaded:
            # What is to be known about a source is told once.
            loaded[side] = load(data, data_dir, side, quiet=quiet, options=options,
                                told=not loaded)  # fmt: skip
        return loaded[side]

    minutes = [text.partition("=")[2] for text in settings if text.startswith("minutes=")]
    others = [text for text in settings if not text.startswith("minutes=")]
    try:
        seconds = 60 * float(minutes[-1] if minutes else 10)
    except ValueError:
        raise ValueError(
            f"minutes={minutes[-1]!r} is not allowed; minutes takes a number"
        ) from None
    start = common().override(others)
    choice = choose(
        load_at, start, seconds, image_size=size,
        fixed=[text.partition("=")[0] for text in others],
        tell=lambda line: None if quiet else print_error(f"halfmeg: {line}"),
    )  # fmt: skip
    return choice, load_at(choice.image_size)


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
    from halfmeg.cli.progress import load_own, training_display
    from halfmeg.training.fit import resume as resume_run

    run = Run.open(folder)
    loaded = load_own(run, data, data_dir, quiet=as_json)
    if run.result() is not None:
        print_error(f"halfmeg: {folder} has finished already; nothing is trained")
    with training_display(quiet=as_json) as listener:
        run = resume_run(folder, loaded, listener=listener(run.config))
    _print_result(run, as_json)


def _print_result(run: Run, as_json: bool) -> None:
    if not run.writer.writes:
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
    if result.get("test_balanced_accuracy") is not None:
        print_line(
            f"                     balanced {result['test_balanced_accuracy']:.2%}, macro-F1 "
            f"{result['test_macro_f1']:.3f}; a constant answer {result['constant_accuracy']:.2%}"
        )
    print_line(f"parameters           {result['params']:,}")
    print_line(
        f"training             {result['seconds']:.1f} s, "
        f"{result['images_per_second']:,.0f} images/s"
    )
    print_line(f"run folder           {run.folder}")
    print_line(f"learning curves      {figure}")


def evaluate(
    folder: Annotated[str, typer.Argument(help="A finished run, a bundle, `record` or `gated`.")],
    data: Annotated[
        str | None, typer.Option(help="Other data of the same classes.", show_default="the run's")
    ] = None,
    data_dir: DataDirOption = "data",
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate trained weights on test images.

    Of other data without a test part, all images are taken, but those that were trained on. A
    run folder logs the reading.
    """
    from halfmeg.artifacts.bundle import Bundle, is_bundle
    from halfmeg.artifacts.run import Run
    from halfmeg.cli.progress import load, load_again
    from halfmeg.data.options import read_options

    evaluated: Run | Bundle
    size: ImageSize
    if is_bundle(folder):
        evaluated = Bundle.open(folder)
        if data is None:
            raise ValueError(f"{folder} is a bundle, which does not know where data is; add --data")
        size, fingerprint = evaluated.image_size, evaluated.fingerprint
    else:
        evaluated = Run.open(folder)
        size, fingerprint = evaluated.data.image_size, evaluated.data.fingerprint
    if data is None and isinstance(evaluated, Run):
        for name, column in (("image", image_column), ("label", label_column)):
            if column is not None:
                raise ValueError(
                    f"--{name}-column {column} is for other data, and {folder} reads its own as "
                    "before; add --data, or leave it out"
                )
        loaded = load_again(evaluated, None, data_dir, quiet=as_json)
    else:
        own = evaluated.options
        as_before = [f"fit={own.fit}", f"channels={own.channels}"]
        options, _ = read_options(as_before, image_column, label_column)
        loaded = load(data or "", data_dir, size, quiet=as_json, options=options, to_train=False)
        if loaded.fingerprint != fingerprint:
            loaded = loaded.whole
    result = evaluated.evaluate(loaded)
    if result.left_out:
        print_error(
            f"halfmeg: {result.left_out:,} of {result.left_out + result.n:,} images were trained "
            "or validated on, and are left out"
        )
    elif loaded.divided and loaded.fingerprint != fingerprint and not evaluated.knows_its_images:
        print_error(
            f"halfmeg: {folder} does not say which images it was trained on, so some of these "
            "may be among them"
        )
    classes = evaluated.data.classes if isinstance(evaluated, Run) else evaluated.classes
    _print_evaluation(result, classes, loaded.name, as_json)


def _print_evaluation(result: Evaluation, classes: Sequence[str], data: str, as_json: bool) -> None:
    from halfmeg.studies.stats import wilson_interval

    interval = wilson_interval(result.accuracy * result.n, result.n)
    if as_json:
        print_json(result.to_dict() | {"accuracy_interval": interval.to_dict(), "data": data})
        return
    print_line(f"accuracy  {result.accuracy:.2%} ({result.n:,} test images of {data})")
    print_line(f"interval  {format_range(interval)} (95%, over images)")
    print_line(
        f"balanced  {result.balanced_accuracy:.2%}, macro-F1 {result.macro_f1:.3f}; a constant "
        f"answer would score {result.constant_accuracy:.2%}"
    )
    print_line(f"loss      {result.loss:.4f}")
    table = TextTable(("class", "images", "recall", "precision", "most often taken for"))
    for index, name in enumerate(classes):
        answers = result.confusion[index]
        wrong = [count if i != index else 0 for i, count in enumerate(answers)]
        taken = f"{classes[wrong.index(max(wrong))]} ({max(wrong)})" if any(wrong) else "–"
        shares = (result.per_class[index], result.precision[index])
        in_words = ("–" if share is None else f"{share:.1%}" for share in shares)
        table.add_row(name, f"{sum(answers):,}", *in_words, taken)
    print_table(table)

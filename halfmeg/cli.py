"""The command line: the only module that parses arguments and prints."""

from __future__ import annotations

import csv
import json
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typer.exceptions import TyperException

import halfmeg
from halfmeg.artifacts.bundle import BUNDLED, Bundle, is_bundle
from halfmeg.artifacts.run import MetricsRow, Run
from halfmeg.config import BUDGET, RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.load import inspect_data, load_dataset
from halfmeg.networks.summary import ModelSummary, format_table, summarize
from halfmeg.networks.table import MODELS, build_model
from halfmeg.studies.compare import Comparison, compare_runs
from halfmeg.studies.compare import compare as compare_models
from halfmeg.studies.measure import measure
from halfmeg.studies.stats import Interval, wilson_interval
from halfmeg.studies.study import StudyListener, open_runs
from halfmeg.training.distributed import is_first_process
from halfmeg.training.fit import fit
from halfmeg.training.fit import resume as resume_run
from halfmeg.training.listen import Listener, StepReport
from halfmeg.training.plan import on_hard_images
from halfmeg.training.recipes import RECIPES, build_recipe, describe
from halfmeg.training.stopping import TrainingDivergedError, TrainingInterruptedError

app = typer.Typer(
    help="Train, compare and ship image classifiers of fewer than 500,000 parameters.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

console = Console(quiet=not is_first_process())
errors = Console(stderr=True, quiet=not is_first_process())

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]
DataOption = Annotated[
    str,
    typer.Option(help="digits, cifar10, or a path to Parquet files or to a folder of images."),
]
DataDirOption = Annotated[
    str, typer.Option(help="The folder in which cifar10 is looked for and downloaded to.")
]
ImageSizeOption = Annotated[int, typer.Option(help="Side in pixels to which images are brought.")]
SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, such as epochs=30 lr=0.1.", show_default=False),
]


def main() -> NoReturn:
    """Run the command line; a user's mistake becomes one line and exit code 2."""
    warnings.simplefilter("ignore", UserWarning)
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except TyperException as error:
        message = error.format_message()
        if len(message.splitlines()) > 1:  # no command was named: this is the help
            errors.print(message, markup=False, highlight=False, soft_wrap=True)
            sys.exit(2)
        _fail(_explain(error), 2)
    except ValueError as error:
        _fail(str(error), 2)
    except TrainingInterruptedError as error:
        _fail(str(error), 128 + error.signal_number)
    except TrainingDivergedError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as in `halfmeg models | head -1`
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2)
    except KeyboardInterrupt:
        _fail("stopped", 130)


def _fail(message: str, code: int) -> NoReturn:
    line = " ".join(message.split())
    errors.print(f"halfmeg: {line}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _explain(error: TyperException) -> str:
    """Return a message about the arguments with the bad value and what is allowed."""
    message = error.format_message().rstrip(".")
    context: Any = getattr(error, "ctx", None)
    if context is None:
        return message
    if message.startswith("No such command"):
        return f"{message}; allowed: {', '.join(context.command.list_commands(context))}"
    options = [name for parameter in context.command.params for name in parameter.opts]
    if message.startswith("No such option"):
        return f"{message}; allowed: {', '.join(name for name in options if name[:2] == '--')}"
    parameter: Any = getattr(error, "param", None)
    for name in parameter.opts if parameter else ():
        if name in sys.argv[:-1]:
            message += f"; found: {sys.argv[sys.argv.index(name) + 1]!r}"
    return f"{message}; see `{context.command_path} --help`"


def _print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def _print(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        _print(f"halfmeg {halfmeg.__version__}, torch {torch.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the versions of halfmeg and torch.",
        ),
    ] = False,
) -> None:
    pass


# --- looking ---------------------------------------------------------------------------------


@app.command()
def models(as_json: JsonOption = False) -> None:
    """List the networks: parameters, multiply-accumulates, budget."""
    rows = [(name, entry, summarize(build_model(name))) for name, entry in MODELS.items()]
    if as_json:
        _print_json(
            [
                {
                    "name": name,
                    "description": entry.description,
                    "params": summary.params,
                    "macs": summary.macs,
                    "within_budget": summary.within_budget,
                }
                for name, entry, summary in rows
            ]
        )
        return
    table = _table("network", "parameters", f"fits {BUDGET:,}", "MACs, M", "description")
    for name, entry, summary in rows:
        fits = "yes" if summary.within_budget else "no"
        macs = f"{summary.macs / 1e6:.2f}"
        table.add_row(name, f"{summary.params:,}", fits, macs, entry.description)
    console.print(table)
    _print("All parameters count; MACs are for one image of 32×32 pixels and 10 classes.")


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="A network's name; `halfmeg models` lists them.")],
    num_classes: Annotated[int, typer.Option(help="Length of the logits.")] = 10,
    image_size: ImageSizeOption = 32,
    budget: Annotated[
        int, typer.Option(help="For networks that scale: have fewer parameters than this.")
    ] = BUDGET,
    as_json: JsonOption = False,
) -> None:
    """Print a network's layer table, with published and true counts."""
    result = summarize(build_model(model, num_classes, image_size, budget), image_size)
    if as_json:
        _print_json(_summary_json(result))
    else:
        _print(format_table(result))


def _summary_json(result: ModelSummary) -> dict[str, Any]:
    return {
        "params": result.params,
        "trainable_params": result.trainable_params,
        "body_params": result.body_params,
        "macs": result.macs,
        "published_params": result.published_params,
        "published_mult_adds": result.published_mult_adds,
        "within_budget": result.within_budget,
        "layers": [
            {
                "name": row.name,
                "output_shape": [-1, *row.output_shape] if row.output_shape else [],
                "params": row.params,
                "recursive": row.recursive,
                "frozen": row.frozen,
            }
            for row in result.layers
        ],
    }


@app.command()
def recipes(as_json: JsonOption = False) -> None:
    """List the recipes."""
    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "description": " ".join((recipe.__doc__ or "").split("\n\n")[0].split()),
            "settings": describe(recipe()),
        }
        for name, recipe in RECIPES.items()
    ]
    if as_json:
        _print_json(listed)
        return
    for item in listed:
        _print(f"{item['name']}: {item['description']}")
        settings = (f"{key}={_setting(value)}" for key, value in item["settings"].items())
        _print("    " + " ".join(text for text in settings if not text.startswith("recipe=")))


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@data_app.command("check")
def data_check(
    source: Annotated[str, typer.Argument(help="As for --data.")],
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Count and inspect a source; exit 1 when something is wrong with it."""
    with _progress_bars(quiet=as_json) as progress:
        report = inspect_data(source, data_dir=data_dir, image_size=image_size, progress=progress)
    if as_json:
        _print_json(report.to_dict())
    else:
        table = _table("class", "training images", "test images")
        for name, count in report.classes.items():
            table.add_row(name, f"{count['train']:,}", f"{count['test']:,}")
        table.add_section()
        table.add_row("all", f"{report.train:,}", f"{report.test:,}")
        console.print(table)
        smallest, largest = ("×".join(map(str, s)) for s in (report.smallest, report.largest))
        _print(f"sizes        {smallest} to {largest}, brought to {report.image_size} pixels")
        _print(f"mean         {'  '.join(f'{value:.4f}' for value in report.mean)}")
        _print(f"std          {'  '.join(f'{value:.4f}' for value in report.std)}")
        _print(f"fingerprint  {report.fingerprint}")
        for problem in report.problems:
            _print(f"problem: {problem}")
        if not report.problems:
            _print("no problems found")
    if report.problems:
        raise typer.Exit(1)


# --- training --------------------------------------------------------------------------------


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe; `halfmeg recipes` lists them.")],
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
    config = build_recipe(recipe).override(settings or [])
    loaded = _load(data, data_dir, image_size, quiet=as_json)
    folder = out or f"runs/{config.recipe}-{config.model}-seed-{config.seed}"
    with _training_display(quiet=as_json) as listener:
        run = fit(config, loaded, folder, listener=listener(config))
    _print_result(run, as_json)


@app.command()
def resume(
    folder: Annotated[str, typer.Argument(help="A run folder.")],
    data: Annotated[
        str | None, typer.Option(help="Where the run's data is now.", show_default="as before")
    ] = None,
    data_dir: DataDirOption = "data",
    as_json: JsonOption = False,
) -> None:
    """Continue a run that was stopped or killed."""
    run = Run.open(folder)
    loaded = _load(data or run.data.source, data_dir, run.data.image_size, quiet=as_json)
    with _training_display(quiet=as_json) as listener:
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
        _print_json(result)
        return
    if result["val_accuracy"] is not None:
        _print(f"validation accuracy  {result['val_accuracy']:.2%} ({result['val_n']:,} images)")
    _print(f"test accuracy        {result['test_accuracy']:.2%} ({result['test_n']:,} images)")
    _print(f"parameters           {result['params']:,}")
    _print(
        f"training             {result['seconds']:.1f} s, "
        f"{result['images_per_second']:,.0f} images/s"
    )
    _print(f"run folder           {run.folder}")
    _print(f"learning curves      {figure}")


@app.command()
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
    evaluated: Run | Bundle
    if is_bundle(folder):
        evaluated = Bundle.open(folder)
        if data is None:
            raise ValueError(f"{folder} is a bundle, which does not know where data is; add --data")
        loaded = _load(data, data_dir, evaluated.image_size, quiet=as_json)
    else:
        evaluated = Run.open(folder)
        size = evaluated.data.image_size
        loaded = _load(data or evaluated.data.source, data_dir, size, quiet=as_json)
    result = evaluated.evaluate(loaded)
    interval = wilson_interval(round(result.accuracy * result.n), result.n)
    if as_json:
        numbers = result.to_dict() | {"accuracy_interval": interval.to_dict()}
        _print_json(numbers | {"data": loaded.name})
        return
    _print(f"accuracy  {result.accuracy:.2%} ({result.n:,} test images of {loaded.name})")
    _print(f"interval  {_range(interval)} (95%, over images)")
    _print(f"loss      {result.loss:.4f}")
    table = _table("class", "accuracy", "most often taken for")
    for index, name in enumerate(loaded.classes):
        accuracy = result.per_class[index]
        wrong = [count if i != index else 0 for i, count in enumerate(result.confusion[index])]
        taken = f"{loaded.classes[wrong.index(max(wrong))]} ({max(wrong)})" if any(wrong) else "–"
        table.add_row(name, "–" if accuracy is None else f"{accuracy:.1%}", taken)
    console.print(table)


@app.command()
def compare(
    arguments: Annotated[list[str], typer.Argument(help="Networks, and settings as key=value.")],
    data: DataOption = "digits",
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = 32,
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
    names = [text for text in arguments if "=" not in text]
    settings = [text for text in arguments if "=" in text]
    recipes = [build_recipe(name).override(settings) for name in recipe or ["common"]]
    if not names:
        raise ValueError(f"no network named; allowed: {', '.join(MODELS)}")
    if len(names) * len(recipes) < 2:
        raise ValueError(f"{names[0]} alone is no comparison; name two networks, or --recipe twice")
    loaded = _load(data, data_dir, image_size, quiet=as_json)
    for name in names:
        build_model(name, len(loaded.classes), loaded.image_size, recipes[0].budget)
    folder = Path(out or f"runs/compare-{loaded.name}-{'-'.join(names)}")
    with _training_display(quiet=as_json) as display:
        result = compare_models(
            names, loaded, seeds=seeds, out=folder, config=recipes, workers=workers,
            cluster=cluster, gpus_per_run=gpus_per_run, stack=stack,
            listener=_StudyDisplay(
                display, quiet=as_json, apart=workers > 1 or bool(cluster) or stack
            ),
        )  # fmt: skip
    _write_and_print(result, folder, loaded, as_json)


@app.command()
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
    runs = open_runs(folders)
    is_study = len(folders) == 1 and (Path(folders[0]) / "study.json").exists()
    folder = Path(out or (folders[0] if is_study else "report"))
    first = runs[0].data
    compare_runs(runs)  # raises before anything is written or measured
    loaded = None
    try:
        loaded = _load(data or first.source, data_dir, first.image_size, quiet=as_json)
        if loaded.fingerprint != first.fingerprint:
            raise ValueError(f"{runs[0].folder} was trained on other data than {loaded.name}")
    except ValueError as error:
        if data is not None:
            raise
        loaded = None
        _print_error(f"without the runs' data, so without pictures: {error}")
    if loaded is not None:
        folder.mkdir(parents=True, exist_ok=True)
        measure(runs, loaded, folder)
    _write_and_print(compare_runs(runs, costs_from=folder), folder, loaded, as_json)


def _write_and_print(
    result: Comparison, folder: Path, data: DataSplits | None, as_json: bool
) -> None:
    from halfmeg.studies.page import write_comparison  # matplotlib: half a second for others

    page, figure = write_comparison(result, folder, data)
    if as_json:
        _print_json(result.to_dict() | {"page": str(page), "figure": str(figure)})
    else:
        _print_comparison(result)
        _print(f"page    {page}")
        _print(f"figure  {figure}")
    if result.failures:
        raise typer.Exit(1)


def _range(interval: Interval) -> str:
    if interval.lo is None or interval.hi is None:
        return "–"
    return f"{100 * interval.lo:.1f} to {100 * interval.hi:.1f}%"


def _print_comparison(result: Comparison) -> None:
    table = _table("network", "test accuracy", "95% interval", "seeds", "parameters", "training, s")
    for model in result.models:
        interval = model.test_accuracy
        over = "" if model.within_budget else " (over budget)"
        table.add_row(
            model.name, f"{interval.mean:.2%}", _range(interval), str(len(model.per_seed)),
            f"{model.params:,}{over}", f"{model.seconds:.1f}",
        )  # fmt: skip
    console.print(table)
    for pair in result.pairs:
        _print(pair.verdict)
        if pair.terms:
            _print(f"  not on equal terms: {'; '.join(pair.terms)}")
    for name, error in result.failures.items():
        _print_error(f"failed: {name}: {error}")


# --- shipping --------------------------------------------------------------------------------


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A finished run folder.")],
    out: Annotated[str, typer.Option(help="The bundle's folder, which must not exist.")],
    data: Annotated[
        str | None, typer.Option(help="Where the run's data is now.", show_default="as before")
    ] = None,
    data_dir: DataDirOption = "data",
    allow_loss: Annotated[
        bool, typer.Option(help="Keep an int8 file that loses more than half a point.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Export a run as a bundle: weights, ONNX, int8, model card.

    All is proved before it is written.
    """
    from halfmeg.shipping.export import export as export_run

    opened = Run.open(run)
    loaded = _load(data or opened.data.source, data_dir, opened.data.image_size, quiet=as_json)
    bundle, proof = export_run(opened, loaded, out, allow_loss=allow_loss)
    if as_json:
        _print_json(bundle.described)
        return
    _print(f"test accuracy    {bundle.accuracy['test_accuracy']:.2%} in float32")
    _print(
        f"model.onnx       logits differ by at most {proof.max_difference:.1e}, "
        f"same accuracy ({proof.n:,} {proof.images} images)"
    )
    _print(f"model.int8.onnx  loses {100 * proof.int8_loss:.2f} points on them")
    _print(f"bundle           {bundle.folder}")


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns.")],
    bundle: Annotated[
        str | None, typer.Option(help="A bundle.", show_default="the one installed with halfmeg")
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 3,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Name the class of each image.

    Exits with 1 when one of them could not be read.
    """
    from halfmeg.shipping.predict import find_images
    from halfmeg.shipping.predict import predict as predict_images

    opened = Bundle.open(bundle or BUNDLED)
    predictions = list(predict_images(opened, find_images(images), top=top))
    good = [item for item in predictions if item.error is None]
    if as_json:
        _print_json([item.to_dict() for item in good])
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "label", "probability"])
        writer.writerows([item.path, item.top[0][0], f"{item.top[0][1]:.6f}"] for item in good)
    elif good:
        table = _table("image", "class", "probability", "then")
        for item in good:
            (label, probability), *rest = item.top
            others = ", ".join(f"{name} {p:.1%}" for name, p in rest)
            table.add_row(item.path, label, f"{probability:.1%}", others)
        console.print(table)
    for item in predictions:
        if item.error is not None:
            _print_error(f"halfmeg: {item.path}: {item.error}")
    if len(good) < len(predictions):
        raise typer.Exit(1)


@app.command()
def bench(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Each runs every runtime in turn.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and memory of a bundle in each installed runtime."""
    from halfmeg.shipping.bench import bench as bench_bundle

    try:
        counts = [int(text) for text in threads.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"threads={threads!r} is not allowed; write numbers, as in 1,2")
    rows = bench_bundle(Bundle.open(bundle), threads=counts, rounds=rounds)
    if as_json:
        _print_json([row.to_dict() for row in rows])
        return
    table = _table(
        "runtime", "threads", "image, ms", "p95, ms", "images/s", "kB", "MB", "exact",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.runtime, str(row.threads), f"{row.latency_ms:.2f}", f"{row.latency_p95_ms:.2f}",
            f"{row.images_per_second:,.0f}", f"{row.file_bytes / 1000:,.0f}",
            f"{row.peak_memory_bytes / 1e6:,.0f}", "yes" if row.exact else "no",
        )  # fmt: skip
    console.print(table)
    _print("one image, and batches of 128; kB: the file; MB: memory that it adds to a process")


@app.command()
def demo(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles to show side by side.", show_default="the installed one"),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Port to listen on; 0: the first free one from 7860."),
    ] = 0,
) -> None:
    """Serve a page on this machine: drop an image, see the classes."""
    from halfmeg.shipping.demo import serve

    with serve(
        [Bundle.open(path) for path in bundles or [str(BUNDLED)]], host=host, port=port
    ) as page:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then too
        _print(f"{page} (Ctrl-C stops it)")
        threading.Event().wait()


@app.command()
def push(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a bundle to the Hugging Face hub.

    With the token of `hf auth login`.
    """
    from halfmeg.artifacts.hub import push as push_bundle

    _print(push_bundle(Bundle.open(bundle), repo, private=private))


@app.command()
def pull(
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.")],
    out: Annotated[str, typer.Option(help="The bundle's folder, which must not exist.")],
    revision: Annotated[str, typer.Option(help="A branch, tag or commit.")] = "main",
    as_json: JsonOption = False,
) -> None:
    """Download a bundle from the Hugging Face hub.

    It is checked before it gets its name.
    """
    from halfmeg.artifacts.hub import pull as pull_bundle

    bundle = pull_bundle(repo, out, revision=revision)
    if as_json:
        _print_json(bundle.described)
    else:
        _print(f"{bundle.model}, {len(bundle.classes)} classes: {bundle.folder}")


# --- showing ---------------------------------------------------------------------------------


TEXT_COLUMNS = ("description", "most often taken for", "class", "then")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        is_text = index == 0 or column in TEXT_COLUMNS
        table.add_column(column, justify="left" if is_text else "right", no_wrap=index == 0)
    return table


def _load(source: str, data_dir: str, image_size: int, *, quiet: bool) -> DataSplits:
    with _progress_bars(quiet=quiet) as progress:
        return load_dataset(source, data_dir=data_dir, image_size=image_size, progress=progress)


@contextmanager
def _progress_bars(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows what is being done as bars on the error stream."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeRemainingColumn(), console=errors, transient=True, disable=quiet,
    ) as bars:  # fmt: skip
        tasks: dict[str, Any] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total or None)

        yield progress


class _StudyDisplay(StudyListener):
    """Shows the run under way, or one line for each run where they train elsewhere."""

    def __init__(
        self, display: Callable[[RunConfig], Listener], *, quiet: bool, apart: bool
    ) -> None:
        self.display = display
        self.quiet = quiet
        self.apart = apart

    def of_run(self, config: RunConfig) -> Listener:
        return self.display(config)

    def on_run(self, config: RunConfig, error: str | None, done: int, total: int) -> None:
        if self.quiet or not (self.apart or error):
            return
        outcome = f"failed: {error}" if error else "done"
        _print_error(
            f"{config.model} {config.recipe} seed {config.seed}  {outcome}  {done}/{total}"
        )


class _Display(Listener):
    """Shows a run as a progress bar, and as one line for each epoch where there is no screen."""

    def __init__(self, bars: Progress, config: RunConfig) -> None:
        self.bars = bars
        self.config = config
        self.name = f"{config.model} seed {config.seed}"
        self.task = bars.add_task(self.name, total=None, numbers="")

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        for path in damaged:
            _print_error(f"damaged checkpoint passed over: {path}")

    def on_step(self, report: StepReport) -> None:
        self.bars.update(
            self.task,
            total=report.epochs * report.steps,
            completed=(report.epoch - 1) * report.steps + report.step,
            numbers=f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.3f}  "
            f"accuracy {report.accuracy:.1%}  {report.images_per_second:,.0f} images/s  "
            f"{_duration(report.seconds_left)} left",
        )

    def on_epoch(self, row: MetricsRow) -> None:
        epoch = int(row["epoch"] or 0)
        if not errors.is_terminal:
            held_out = "".join(
                f"  {part} {row[f'{part}_accuracy']:.2%}"
                for part in ("val", "test")
                if row[f"{part}_accuracy"] is not None
            )
            trained_on = "hard images" if on_hard_images(self.config, epoch - 1) else "train"
            _print_error(
                f"{self.name}  epoch {epoch}/{self.config.epochs}  loss {row['train_loss']:.4f}  "
                f"{trained_on} {row['train_accuracy']:.2%}{held_out}  "
                f"{row['images_per_second']:,.0f} images/s"
            )
        if epoch == self.config.epochs:
            self.bars.remove_task(self.task)


class _TensorBoard(Listener):
    """Writes the metrics of each epoch to the run folder's `tensorboard/` too."""

    def __init__(self, display: _Display) -> None:
        self.display = display

    def on_start(self, run: Run, damaged: list[Path]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.display.on_start(run, damaged)
        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"))

    def on_step(self, report: StepReport) -> None:
        self.display.on_step(report)

    def on_epoch(self, row: MetricsRow) -> None:
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self.writer.add_scalar(name.replace("_", "/", 1), value, row["epoch"])
        self.writer.flush()
        self.display.on_epoch(row)


@contextmanager
def _training_display(*, quiet: bool) -> Iterator[Callable[[RunConfig], Listener]]:
    with Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=20),
        TextColumn("{task.fields[numbers]}"), console=errors, transient=True,
        disable=quiet or not errors.is_terminal,
    ) as bars:  # fmt: skip

        def listener(config: RunConfig) -> Listener:
            display = _Display(bars, config)
            return _TensorBoard(display) if _has_tensorboard() else display

        yield listener


def _has_tensorboard() -> bool:
    from importlib.util import find_spec

    return find_spec("tensorboard") is not None


def _print_error(text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

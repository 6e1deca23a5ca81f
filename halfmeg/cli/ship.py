"""Commands on a trained network that leaves the program: export, predict, bench, demo, hub."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from halfmeg.cli.show import (
    DataDirOption,
    JsonOption,
    build_table,
    print_error,
    print_json,
    print_line,
    print_table,
)


def export(
    run: Annotated[str, typer.Argument(help="A finished run folder, or a bundle.")],
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
    from halfmeg.artifacts.bundle import is_bundle
    from halfmeg.artifacts.run import Run
    from halfmeg.cli.progress import load_again
    from halfmeg.shipping.export import copy_bundle
    from halfmeg.shipping.export import export as export_run

    if is_bundle(run):
        copied = copy_bundle(run, out)
        print_error(f"halfmeg: {run} is a bundle already; it was checked and copied")
        if as_json:
            print_json(copied.described)
        else:
            print_line(f"bundle           {copied.folder}")
        return
    opened = Run.open(run)
    loaded = load_again(opened, data, data_dir, quiet=as_json)
    bundle, proof = export_run(opened, loaded, out, allow_loss=allow_loss)
    if as_json:
        print_json(bundle.described)
        return
    print_line(f"test accuracy    {bundle.accuracy['test_accuracy']:.2%} in float32")
    print_line(
        f"model.onnx       logits differ by at most {proof.max_difference:.1e}, "
        f"same accuracy ({proof.n:,} {proof.images} images)"
    )
    print_line(f"model.int8.onnx  loses {100 * proof.int8_loss:.2f} points on them")
    print_line(f"bundle           {bundle.folder}")


def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns.")],
    bundle: Annotated[
        str | None,
        typer.Option(help="A bundle or a run.", show_default="the one installed with halfmeg"),
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 3,
    out: Annotated[
        str | None, typer.Option(help="A file to write, .csv or .json, which must not exist.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Name the class of each image.

    Each answer is given as soon as it is known. Exits with 1 when an image could not be read.
    """
    from halfmeg.artifacts.bundle import BUNDLED, open_network
    from halfmeg.cli.answers import write_answers
    from halfmeg.cli.progress import progress_bars
    from halfmeg.data.scan import find_images, summarize_passed_over
    from halfmeg.shipping.predict import predict as predict_images

    opened = open_network(bundle or BUNDLED)
    paths, passed_over = find_images(images)
    if passed_over:
        print_error(f"halfmeg: {summarize_passed_over(passed_over)}")
    answers = predict_images(opened, paths, top=top)
    measured = opened.accuracy
    print_error(
        f"halfmeg: answers by {bundle or 'the network installed with halfmeg'}: {opened.model}, "
        f"{len(opened.classes)} classes, {measured['test_accuracy']:.1%} of the test images of "
        f"{measured['data']}"
    )
    form = "json" if as_json else "csv" if as_csv else None
    with progress_bars(quiet=out is None) as progress:
        failed = write_answers(
            answers, len(paths), out, form, min(top, len(opened.classes)), progress
        )
    if failed:
        raise typer.Exit(1)


def bench(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    threads: Annotated[str, typer.Option(help="Numbers of threads.")] = "1,2",
    rounds: Annotated[int, typer.Option(help="Each runs every runtime in turn.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Measure speed and memory of a bundle in each installed runtime."""
    from halfmeg.artifacts.bundle import Bundle
    from halfmeg.shipping.bench import bench as bench_bundle

    try:
        counts = [int(text) for text in threads.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"threads={threads!r} is not allowed; write numbers, as in 1,2")
    rows = bench_bundle(Bundle.open(bundle), threads=counts, rounds=rounds)
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    table = build_table(
        "runtime", "threads", "image, ms", "p95, ms", "images/s", "kB", "MB", "exact",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.runtime, str(row.threads), f"{row.latency_ms:.2f}", f"{row.latency_p95_ms:.2f}",
            f"{row.images_per_second:,.0f}", f"{row.file_bytes / 1000:,.0f}",
            f"{row.peak_memory_bytes / 1e6:,.0f}", "yes" if row.exact else "no",
        )  # fmt: skip
    print_table(table)
    print_line("one image, and batches of 128; kB: the file; MB: memory that it adds to a process")


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
    from halfmeg.artifacts.bundle import BUNDLED, Bundle
    from halfmeg.shipping.demo import serve

    with serve(
        [Bundle.open(path) for path in bundles or [str(BUNDLED)]], host=host, port=port
    ) as page:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # uploads are deleted then too
        print_line(f"{page} (Ctrl-C stops it)")
        threading.Event().wait()


def push(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option(help="Make a new repository private.")] = False,
) -> None:
    """Upload a bundle to the Hugging Face hub.

    With the token of `hf auth login`.
    """
    from halfmeg.artifacts.bundle import Bundle
    from halfmeg.artifacts.hub import push as push_bundle

    print_line(push_bundle(Bundle.open(bundle), repo, private=private))


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
        print_json(bundle.described)
    else:
        print_line(f"{bundle.model}, {len(bundle.classes)} classes: {bundle.folder}")

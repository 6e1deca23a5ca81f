"""Commands on a trained network that leaves the program: export, predict, bench, demo, hub."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Annotated

import typer

from halfmeg.cli.options import DataDirOption, JsonOption
from halfmeg.cli.show import TextTable, print_error, print_json, print_line, print_table

if TYPE_CHECKING:
    from halfmeg.artifacts.bundle import Bundle


def export(
    run: Annotated[
        str,
        typer.Argument(
            help="A finished run folder, or a search; or a bundle, with --data for a target."
        ),
    ],
    out: Annotated[str, typer.Option(help="The bundle's folder, which must not exist.")],
    data: Annotated[
        str | None, typer.Option(help="Where the run's data is now.", show_default="as before")
    ] = None,
    data_dir: DataDirOption = "data",
    allow_loss: Annotated[
        bool, typer.Option(help="Keep an int8 file that loses more than half a point.")
    ] = False,
    finetune: Annotated[
        bool, typer.Option(help="Train int8 on where it loses more than 0.2 points.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Write this too: c, for a chip; web, as a page; litert; executorch."),
    ] = None,
    pick: Annotated[
        str | None,
        typer.Option(
            help="Of a search, the best within this, as ram=32k.", show_default="the winner"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a run as a bundle: ONNX, int8, card; C or a page.

    What is proved, and what could not be on this machine, stands in the card.
    """
    from halfmeg.artifacts.bundle import Bundle, is_bundle
    from halfmeg.artifacts.run import Run
    from halfmeg.cli.progress import load, load_own
    from halfmeg.cli.search import find_run
    from halfmeg.search.record import is_search
    from halfmeg.shipping.export import check_request, copy_bundle
    from halfmeg.shipping.export import export as export_run
    from halfmeg.shipping.proof import loses
    from halfmeg.shipping.targets import TARGETS

    opened: Run | Bundle
    if pick is not None and not is_search(run):
        raise ValueError(f"--pick {pick} is for a search; {run} is none")
    if not is_bundle(run) or target or finetune:  # one without them is copied
        check_request(out, target or ())
    if is_search(run):
        opened, loaded = find_run(run, pick, data, data_dir, quiet=as_json)
    elif is_bundle(run) and (target or finetune):
        opened = Bundle.open(run)
        if data is None:
            raise ValueError(f"{run} is a bundle, which does not know where data is; add --data")
        loaded = load(data, data_dir, opened.image_size, quiet=as_json, options=opened.options)
    elif is_bundle(run):
        if allow_loss or data is not None:
            idle = "--allow-loss" if allow_loss else f"--data {data}"
            raise ValueError(
                f"{idle} does nothing for {run}, a bundle that is copied as it is; leave it out, "
                "or add --target or --finetune"
            )
        copied = copy_bundle(run, out)
        print_error(f"halfmeg: {run} is a bundle already; it was checked and copied")
        if as_json:
            print_json(copied.described)
        else:
            print_line(f"bundle           {copied.folder}")
        return
    else:
        opened = Run.open(run)
        loaded = load_own(opened, data, data_dir, quiet=as_json)
    bundle, proof = export_run(
        opened, loaded, out, allow_loss=allow_loss, targets=target or (), finetune=finetune
    )
    if as_json:
        print_json(bundle.described)
        return
    print_line(f"test accuracy    {bundle.accuracy['test_accuracy']:.2%} in float32")
    print_line(
        f"model.onnx       logits differ by at most {proof.max_difference:.1e}, "
        f"same accuracy ({proof.n:,} {proof.images} images)"
    )
    exact = "all logits those of the integers" if proof.int8_exact else (
        f"made by onnxruntime, as {bundle.described['why_no_integers']}")  # fmt: skip
    print_line(f"model.int8.onnx  {loses(proof.int8_loss)} on them; {exact}")
    if "finetuning" in bundle.described:
        print_line(f"                 {bundle.described['finetuning']['text']}")
    for name, row in TARGETS.items():
        if name not in bundle.described:
            continue
        first, *others = row.lines(bundle.described[name])
        print_line(f"{row.path:<17}{first}")
        for line in others:
            print_line(f"{'':<17}{line}")
    print_line(f"bundle           {bundle.folder}")


def predict(
    images: Annotated[list[str], typer.Argument(help="Image files, folders, or patterns.")],
    bundle: Annotated[
        str | None,
        typer.Option(help="A bundle or a run.", show_default="record"),
    ] = None,
    top: Annotated[int, typer.Option(help="How many classes to name.")] = 3,
    out: Annotated[
        str | None, typer.Option(help="A file to write, .csv or .json, which must not exist.")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Name the class of each image.

    Each answer is given as soon as it is known. Exits with 1 when an image has none.
    """
    from halfmeg.artifacts.bundle import BUNDLED, open_network
    from halfmeg.cli.answers import form_of, write_answers
    from halfmeg.cli.progress import progress_bars
    from halfmeg.data.scan import find_images, summarize_passed_over
    from halfmeg.shipping.predict import predict as predict_images

    if as_csv and as_json:
        raise ValueError("--csv and --json exclude each other; leave one of them out")
    form = form_of(out, "json" if as_json else "csv" if as_csv else None)  # before all else
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
    with progress_bars(quiet=out is None) as progress:
        failed = write_answers(
            answers, len(paths), out, form, min(top, len(opened.classes)), progress
        )
    if failed:
        raise typer.Exit(1)


def bench(
    bundle: Annotated[str, typer.Argument(help="A bundle.")],
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads.", show_default="1,2")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(help="Each runs every runtime in turn.", show_default="20")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Count instructions on this instead, as cortex-m7.")
    ] = None,
    mhz: Annotated[
        int | None, typer.Option(min=1, help="Clock of the device.", show_default="a usual one")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle in each runtime, or on an emulated chip."""
    from halfmeg.artifacts.bundle import Bundle
    from halfmeg.config import MAX_THREADS
    from halfmeg.shipping.bench import bench as bench_bundle
    from halfmeg.shipping.verify import int8_difference

    if device is not None:
        for name, value in (("--threads", threads), ("--rounds", rounds)):
            if value is not None:
                raise ValueError(
                    f"{name} {value} does nothing for a device, whose instructions are counted; "
                    f"leave it or --device {device} out"
                )
        _bench_device(Bundle.open(bundle), device, mhz, as_json)
        return
    if mhz is not None:
        raise ValueError(f"--mhz {mhz} is the clock of a device; name one, as --device cortex-m7")
    threads = "1,2" if threads is None else threads
    try:
        counts = [int(text) for text in threads.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1 or max(counts) > MAX_THREADS:
        raise ValueError(
            f"threads={threads!r} is not allowed; write numbers of 1 to {MAX_THREADS:,}, as in 1,2"
        )
    opened = Bundle.open(bundle)
    rows = bench_bundle(opened, threads=counts, rounds=20 if rounds is None else rounds)
    if told := int8_difference(opened):
        print_error(f"halfmeg: {told}")
    if as_json:
        print_json([row.to_dict() for row in rows])
        return
    columns = "runtime", "threads", "image, ms", "p95, ms", "images/s", "kB", "MB", "exact"
    table = TextTable(columns)
    for row in rows:
        table.add_row(
            row.runtime, str(row.threads), f"{row.latency_ms:.2f}", f"{row.latency_p95_ms:.2f}",
            f"{row.images_per_second:,.0f}", f"{row.file_bytes / 1000:,.0f}",
            f"{row.peak_memory_bytes / 1e6:,.0f}", "yes" if row.exact else "no",
        )  # fmt: skip
    print_table(table)
    print_line("one image, and batches of 128; kB: the file; MB: memory that it adds to a process")


def _bench_device(bundle: Bundle, device: str, mhz: int | None, as_json: bool) -> None:
    from halfmeg.shipping.device import bench_device
    from halfmeg.shipping.verify import int8_difference

    found = bench_device(bundle, device)
    if told := int8_difference(bundle):
        print_error(f"halfmeg: {told}")
    clock = mhz or found.clock_mhz
    estimate = found.mean_instructions / clock / 1000
    if as_json:
        print_json(found.to_dict() | {"clock_mhz": clock, "estimated_ms": estimate})
        return
    print_line(f"device        {found.device} ({found.machine} in QEMU), {found.compiler}")
    print_line(f"logits        {found.checked}")
    print_line(f"instructions  {found.mean_instructions / 1e6:.2f} M an image")
    print_line(f"flash         {found.flash_bytes:,} bytes with code")
    print_line(f"RAM           {found.ram_bytes:,} bytes, and up to {found.stack_bytes:,} of stack")
    print_line(
        f"estimate      {estimate:.0f} ms at {clock} MHz if each instruction took one cycle: "
        "instructions are counted here, not cycles"
    )


def demo(
    bundles: Annotated[
        list[str] | None,
        typer.Argument(help="Bundles to show side by side.", show_default="record"),
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
    private: Annotated[
        bool, typer.Option(help="Make a new repository private; an existing one has to be.")
    ] = False,
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

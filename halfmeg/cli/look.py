"""Commands that look: networks, their layers, recipes, data."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmeg.cli.options import (
    DataDirOption,
    ImageColumnOption,
    ImageSizeOption,
    JsonOption,
    LabelColumnOption,
)
from halfmeg.cli.show import (
    TextTable,
    describe_arena,
    memory_json,
    memory_or_reason,
    print_json,
    print_line,
    print_table,
    print_text,
)
from halfmeg.files import refuse_existing

if TYPE_CHECKING:
    from halfmeg.data.check import DataReport
    from halfmeg.networks.summary import ModelSummary


def models(
    chip: Annotated[
        bool, typer.Option(help="With --json: the layer that sets the RAM; takes a while.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the networks: counts, image sizes, RAM and flash in C."""
    from halfmeg.config import BUDGET
    from halfmeg.networks.summary import summarize
    from halfmeg.networks.table import MODELS, build_model

    if chip and not as_json:
        raise ValueError("--chip does nothing without --json; add it, or leave --chip out")
    rows = [(name, entry, summarize(build_model(name))) for name, entry in MODELS.items()]
    if as_json:
        memories = (
            {name: memory_or_reason(build_model(name), 32) for name in MODELS} if chip else {}
        )
        print_json(
            [
                {
                    "name": name,
                    "group": entry.group,
                    "description": entry.description,
                    "image_sizes": entry.sizes,
                    "takes_budget": entry.scalable,
                    "params": summary.params,
                    "macs": summary.macs,
                    "within_budget": summary.within_budget,
                    "ram_bytes": entry.ram_bytes,
                    "flash_bytes": entry.flash_bytes,
                    "tflite_micro_bytes": entry.tflite_micro_bytes,
                    **({"memory": memory_json(memories[name])} if chip else {}),
                }
                for name, entry, summary in rows
            ]
        )
        return
    line = "{:<18}{:>10}  {:>4}  {:>7}  {:>5}  {:>8}  {:>7}  {:>9}"
    needs = ("TFLM, kB", "RAM, kB", "flash, kB")
    print_line(line.format("network", "parameters", "fits", "MACs, M", "sides", *needs))
    for group in dict.fromkeys(entry.group for _, entry, _ in rows):
        print_text(f"\n{group}")
        for name, entry, summary in rows:
            if entry.group != group:
                continue
            print_line(
                line.format(
                    f"  {name}", f"{summary.params:,}", "yes" if summary.within_budget else "no",
                    f"{summary.macs / 1e6:.2f}", entry.sizes.replace(" or more", "+"),
                    *("–" if needed is None else f"{needed / 1000:.1f}"
                      for needed in (entry.tflite_micro_bytes, entry.ram_bytes, entry.flash_bytes)),
                )
            )  # fmt: skip
            print_line(f"      {entry.description}")
    print_text(f"\nA network fits with fewer than {BUDGET:,} parameters, all of them counted.")
    print_line("MACs are for one image of 32×32 pixels and 10 classes.")
    print_line("RAM and flash: as 8-bit integers in C, without image, stack and code.")
    print_line("TFLM: RAM in TFLite Micro, estimated; it has no form of those without a number.")
    print_line("Sides are in pixels: 8+ takes images whose sides, equal or not, are 8 or more.")
    print_line(
        "Your own network goes by its place, FILE.py:NAME; `halfmeg new network` writes one."
    )


def summary(
    model: Annotated[
        str, typer.Argument(help="A network that `halfmeg models` lists, or FILE.py:NAME.")
    ],
    num_classes: Annotated[int, typer.Option(help="Length of the logits.")] = 10,
    image_size: ImageSizeOption = None,
    channels: Annotated[int, typer.Option(help="Of the images: 3, or 1 for gray.")] = 3,
    budget: Annotated[
        int | None,
        typer.Option(
            help="For networks that scale: have fewer parameters than this.", show_default="500000"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a network's layer table, counts, RAM and flash."""
    from halfmeg.config import BUDGET, check_range
    from halfmeg.data.options import read_size
    from halfmeg.data.shape import data_shape
    from halfmeg.networks.summary import format_table, summarize
    from halfmeg.networks.table import MODELS, STUDY, build_model
    from halfmeg.networks.trial import try_out
    from halfmeg.places.place import is_place

    budget = BUDGET if budget is None else budget
    check_range("budget", budget)
    shape = data_shape(read_size([], image_size)[0], channels)
    if is_place(model):
        try_out(model, num_classes, shape, budget)
    built = build_model(model, num_classes, shape, budget)
    result, memory = summarize(built, shape), memory_or_reason(built, shape)
    if as_json:
        print_json(_summary_json(result) | {"memory": memory_json(memory)})
        return
    of_study = model in MODELS and MODELS[model].group == STUDY
    print_text(format_table(result, published=of_study))
    if isinstance(memory, str):
        print_line(f"In C: it cannot be written, as {memory}")
        return
    print_line("In C, as 8-bit integers (image, stack and code are not counted):")
    print_line(f"RAM: {memory.ram_bytes:,} bytes, set by {memory.peak}")
    print_line(f"Flash: {memory.flash_bytes:,} bytes")
    print_line(f"RAM in TFLite Micro: {describe_arena(memory)}")


def _summary_json(result: ModelSummary) -> dict[str, Any]:
    return {
        "params": result.params,
        "trainable_params": result.trainable_params,
        "body_params": result.body_params,
        "macs": result.macs,
        "unknown_macs": list(result.unknown_macs),
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


def recipes(as_json: JsonOption = False) -> None:
    """List the recipes."""
    from halfmeg.training.recipes import RECIPES, describe

    listed: list[dict[str, Any]] = [
        {
            "name": name,
            "description": " ".join((recipe.__doc__ or "").split("\n\n")[0].split()),
            "settings": describe(recipe()),
        }
        for name, recipe in RECIPES.items()
    ]
    if as_json:
        print_json(listed)
        return
    for item in listed:
        print_line(f"{item['name']}: {item['description']}")
        settings = (f"{key}={_setting(value)}" for key, value in item["settings"].items())
        print_line("    " + " ".join(text for text in settings if not text.startswith("recipe=")))


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


MOST_PAIRS = 10


def data_check(
    source: Annotated[str, typer.Argument(help="As for --data.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="How it is read, as key=value: group=REGEX, fit=pad, channels=1."),
    ] = None,
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = None,
    image_column: ImageColumnOption = None,
    label_column: LabelColumnOption = None,
    run: Annotated[
        str | None,
        typer.Option(
            help="A finished run on it: its recipe finds likely wrong labels (5 trainings)."
        ),
    ] = None,
    html: Annotated[
        str | None, typer.Option(help="A page to write, with pictures; it must not exist.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Count and inspect a source; exit 1 when something is wrong with it."""
    from halfmeg.cli.progress import progress_bars
    from halfmeg.data.load import inspect_source
    from halfmeg.data.options import read_options, read_size

    options, others = read_options(settings, image_column, label_column)
    size, others = read_size(others, image_size)
    if others:
        allowed = "channels=, fit=, group=, image_size="
        raise ValueError(f"{others[0]!r} is no setting of data; allowed: {allowed}")
    opened = None
    if run is not None:
        if settings or image_column or label_column or image_size:
            raise ValueError(
                f"with --run {run} the images are read as that run has read them; leave out "
                "--image-size, --image-column, --label-column and settings"
            )
        from halfmeg.artifacts.run import Run

        opened = Run.open(run)
        options, size = opened.options, opened.data.image_size
    if html is not None:
        refuse_existing(Path(html), "--html")
    with progress_bars(quiet=as_json) as progress:
        report, images = inspect_source(
            source, data_dir=data_dir, image_size=size, options=options, progress=progress
        )
    if opened is not None:
        from halfmeg.cli.progress import training_display
        from halfmeg.training.labels import wrong_labels

        with training_display(quiet=as_json) as listener:
            report = replace(report, wrong_labels=wrong_labels(opened, images, listener))
    if html is not None:
        from halfmeg.data.page import write_check_page

        write_check_page(report, images, Path(html))
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(report)
        if html is not None:
            print_line(f"page         {html}")
    if report.problems:
        raise typer.Exit(1)


def _print_report(report: DataReport) -> None:
    parts = {"train": "training", "validation": "validation", "test": "test"}
    shown = [part for part in parts if part != "validation" or report.validation]
    table = TextTable(("class", *(f"{parts[part]} images" for part in shown)))
    for name, count in report.classes.items():
        table.add_row(name, *(f"{count[part]:,}" for part in shown))
    totals = {"train": report.train, "validation": report.validation, "test": report.test}
    table.add_row("all", *(f"{totals[part]:,}" for part in shown))
    print_table(table)
    smallest, largest = (f"{h}×{w}" for w, h in (report.smallest, report.largest))
    print_line(
        f"sizes        {smallest} to {largest} (height × width), brought to "
        f"{report.image_text} pixels"
    )
    print_line(f"mean         {'  '.join(f'{value:.4f}' for value in report.mean)}")
    print_line(f"std          {'  '.join(f'{value:.4f}' for value in report.std)}")
    print_line(f"fingerprint  {report.fingerprint}")
    print_line(f"files        {report.files:,}, of which {sum(totals.values()):,} are used")
    for note in (*report.notes, *report.giveaways):
        print_line(f"note: {note}")
    for item in report.passed_over:
        many = f" ({item.count:,} files)" if item.count > 1 else ""
        print_line(f"passed over: {item.path}{many}: {item.reason}")
    _print_near_duplicates(report)
    _print_wrong_labels(report)
    for problem in report.problems:
        print_line(f"problem: {problem}")
    if not report.problems:
        print_line("no problems found")


def _print_near_duplicates(report: DataReport) -> None:
    pairs = report.near_duplicates
    if not pairs:
        return
    across = sum(pair.across_parts for pair in pairs)
    labels = sum(pair.across_classes for pair in pairs)
    print_line(
        f"near duplicates: {len(pairs):,} pairs, {across:,} of them across parts, "
        f"{labels:,} under two labels"
    )
    worst = sorted(pairs, key=lambda pair: not (pair.across_parts or pair.across_classes))
    for pair in worst[:MOST_PAIRS]:
        print_line(f"  {pair.first} ~ {pair.second} ({pair.likeness:.3f})")
    if len(pairs) > MOST_PAIRS:
        print_line("  …; --json lists all, --html FILE shows them")


def _print_wrong_labels(report: DataReport) -> None:
    found = report.wrong_labels
    if found is None:
        return
    print_line(f"likely wrong labels: {len(found):,}")
    for item in found[:MOST_PAIRS]:
        print_line(
            f"  {item.name}: {item.label} {item.label_probability:.0%}, "
            f"or {item.likely} {item.likely_probability:.0%}"
        )
    if len(found) > MOST_PAIRS:
        print_line("  …; --json lists all, --html FILE shows them")


def data_cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the decoded data that is kept on disk; it is made again when it is needed."""
    from halfmeg.data.cache import cache_folder, clear_cache, list_cache

    entries = clear_cache() if clear else list_cache()
    if as_json:
        print_json(
            {
                "folder": str(cache_folder()),
                "cleared": clear,
                "entries": [
                    {
                        "path": str(entry.path),
                        "name": entry.name,
                        "images": entry.num_images,
                        "bytes": entry.num_bytes,
                    }
                    for entry in entries
                ],
            }
        )
        return
    if entries:
        table = TextTable(("data", "images", "MB", "folder"))
        for entry in entries:
            name = entry.name or "left by a stopped process"
            size = f"{entry.num_bytes / 1e6:,.1f}"
            table.add_row(name, f"{entry.num_images:,}", size, entry.path.name)
        print_table(table)
    total = sum(entry.num_bytes for entry in entries) / 1e6
    print_line(f"{total:,.1f} MB {'removed from' if clear else 'in'} {cache_folder()}")

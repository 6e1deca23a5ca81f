"""Commands that look: networks, their layers, recipes, data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from halfmeg.cli.show import (
    DataDirOption,
    ImageSizeOption,
    JsonOption,
    build_table,
    print_json,
    print_line,
    print_table,
)
from halfmeg.config import BUDGET

if TYPE_CHECKING:
    from halfmeg.networks.summary import ModelSummary


def models(as_json: JsonOption = False) -> None:
    """List the networks: parameters, multiply-accumulates, budget."""
    from halfmeg.networks.memory import measure_memory
    from halfmeg.networks.summary import summarize
    from halfmeg.networks.table import MODELS, build_model

    rows = []
    for name, entry in MODELS.items():
        model = build_model(name)
        rows.append((name, entry, summarize(model), measure_memory(model)))
    if as_json:
        print_json(
            [
                {
                    "name": name,
                    "description": entry.description,
                    "params": summary.params,
                    "macs": summary.macs,
                    "within_budget": summary.within_budget,
                    "memory": memory.to_dict(),
                }
                for name, entry, summary, memory in rows
            ]
        )
        return
    table = build_table(
        "network", "parameters", f"fits {BUDGET:,}", "MACs, M", "RAM, kB", "flash, kB",
        "description",
    )  # fmt: skip
    for name, entry, summary, memory in rows:
        fits = "yes" if summary.within_budget else "no"
        table.add_row(
            name, f"{summary.params:,}", fits, f"{summary.macs / 1e6:.2f}",
            f"{memory.ram_bytes / 1000:.1f}", f"{memory.flash_bytes / 1000:.1f}",
            entry.description,
        )  # fmt: skip
    print_table(table)
    print_line("All parameters count; MACs are for one image of 32×32 pixels and 10 classes.")
    print_line("RAM and flash are those of the int8 network in C, without image, stack and code.")


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
    from halfmeg.networks.memory import measure_memory
    from halfmeg.networks.summary import format_table, summarize
    from halfmeg.networks.table import build_model

    built = build_model(model, num_classes, image_size, budget)
    result, memory = summarize(built, image_size), measure_memory(built, image_size)
    if as_json:
        print_json(_summary_json(result) | {"memory": memory.to_dict()})
        return
    print_line(format_table(result))
    print_line("In C, as 8-bit integers (image, stack and code are not counted):")
    print_line(f"RAM: {memory.ram_bytes:,} bytes, set by {memory.peak}")
    print_line(f"Flash: {memory.flash_bytes:,} bytes")


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


def data_check(
    source: Annotated[str, typer.Argument(help="As for --data.")],
    data_dir: DataDirOption = "data",
    image_size: ImageSizeOption = 32,
    as_json: JsonOption = False,
) -> None:
    """Count and inspect a source; exit 1 when something is wrong with it."""
    from halfmeg.cli.progress import progress_bars
    from halfmeg.data.load import inspect_data

    with progress_bars(quiet=as_json) as progress:
        report = inspect_data(source, data_dir=data_dir, image_size=image_size, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        table = build_table("class", "training images", "test images")
        for name, count in report.classes.items():
            table.add_row(name, f"{count['train']:,}", f"{count['test']:,}")
        table.add_section()
        table.add_row("all", f"{report.train:,}", f"{report.test:,}")
        print_table(table)
        smallest, largest = ("×".join(map(str, s)) for s in (report.smallest, report.largest))
        print_line(f"sizes        {smallest} to {largest}, brought to {report.image_size} pixels")
        print_line(f"mean         {'  '.join(f'{value:.4f}' for value in report.mean)}")
        print_line(f"std          {'  '.join(f'{value:.4f}' for value in report.std)}")
        print_line(f"fingerprint  {report.fingerprint}")
        for problem in report.problems:
            print_line(f"problem: {problem}")
        if not report.problems:
            print_line("no problems found")
    if report.problems:
        raise typer.Exit(1)

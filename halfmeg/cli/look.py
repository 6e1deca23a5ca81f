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
    from halfmeg.networks.summary import summarize
    from halfmeg.networks.table import MODELS, build_model

    rows = [(name, entry, summarize(build_model(name))) for name, entry in MODELS.items()]
    if as_json:
        print_json(
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
    table = build_table("network", "parameters", f"fits {BUDGET:,}", "MACs, M", "description")
    for name, entry, summary in rows:
        fits = "yes" if summary.within_budget else "no"
        macs = f"{summary.macs / 1e6:.2f}"
        table.add_row(name, f"{summary.params:,}", fits, macs, entry.description)
    print_table(table)
    print_line("All parameters count; MACs are for one image of 32×32 pixels and 10 classes.")


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
    from halfmeg.networks.summary import format_table, summarize
    from halfmeg.networks.table import build_model

    result = summarize(build_model(model, num_classes, image_size, budget), image_size)
    if as_json:
        print_json(_summary_json(result))
    else:
        print_line(format_table(result))


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
        table = build_table("data", "images", "MB", "folder")
        for entry in entries:
            name = entry.name or "left by a stopped process"
            size = f"{entry.num_bytes / 1e6:,.1f}"
            table.add_row(name, f"{entry.num_images:,}", size, entry.path.name)
        print_table(table)
    total = sum(entry.num_bytes for entry in entries) / 1e6
    print_line(f"{total:,.1f} MB {'removed from' if clear else 'in'} {cache_folder()}")

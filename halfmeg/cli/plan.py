"""The command before a study: `plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from halfmeg.cli.entrants import read_entrants
from halfmeg.cli.options import (
    DataDirOption,
    DataOption,
    ImageSizeOption,
    JsonOption,
    RecipesOption,
)
from halfmeg.cli.show import (
    TextTable,
    describe_memory,
    memory_json,
    memory_or_reason,
    print_json,
    print_line,
    print_table,
)

if TYPE_CHECKING:
    from halfmeg.studies.plan import Plan


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
    recipe: RecipesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say before a study what it could see, and what it costs.

    Trains a few steps of each network to see how fast this machine is; reads no test image.
    """
    from dataclasses import replace

    from halfmeg.cli.progress import load
    from halfmeg.networks.table import build_model
    from halfmeg.studies.compare import compare_runs
    from halfmeg.studies.plan import make_plan, time_training
    from halfmeg.studies.study import open_finished

    entrants = read_entrants("plan", arguments, recipe, image_size)
    found = None if pilot is None else compare_runs(open_finished([pilot])[0])
    names, recipes = entrants.names, entrants.recipes
    loaded = load(
        data or "digits", data_dir, entrants.size, quiet=as_json, options=entrants.options
    )
    entrants.check([loaded])
    made = make_plan(entrants.count, len(loaded.test), difference=difference / 100, pilot=found)
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
    table = TextTable(
        ("seeds", *(f"{n:,} test images" for n in made.num_images), "smallest", "minutes")
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

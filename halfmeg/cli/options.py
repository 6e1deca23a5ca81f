"""The options and arguments that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a machine.")]

SOURCES = (
    "digits, cifar10, hf:OWNER/NAME, or a path: a folder of images, Parquet, .csv, .tsv, "
    ".npz, .npy, IDX files or CIFAR-100"
)

DataOption = Annotated[
    str | None,
    typer.Option(
        help=f"{SOURCES}.",
        show_default="digits",
    ),
]

ImageColumnOption = Annotated[
    str | None, typer.Option(help="Of a table: the images.", show_default="a usual name")
]

LabelColumnOption = Annotated[
    str | None, typer.Option(help="Of a table: the classes.", show_default="a usual name")
]

DataDirOption = Annotated[
    str, typer.Option(help="The folder in which cifar10 is looked for and downloaded to.")
]

ImageSizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Side in pixels to which images are brought, or HEIGHTxWIDTH, as 96x64.",
        show_default="32",
    ),
]

TunedOnOption = Annotated[
    list[str] | None,
    typer.Option(
        help="A study, search or run by which the settings were chosen: what it tried is counted "
        "as tuning_trials. May be repeated.",
        show_default=False,
    ),
]

MarginOption = Annotated[
    float | None,
    typer.Option(help="Points within which two networks are called the same.", show_default="1"),
]

RecipesOption = Annotated[
    list[str] | None,
    typer.Option(
        help="The terms for all networks, a name or FILE.py:NAME; may be repeated.",
        show_default="common",
    ),
]

ClusterOption = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster that trains, or auto.")
]

SettingsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key=value, such as epochs=30 lr=0.1.", show_default=False),
]

"""What `compare` and `plan` are told to train: words and settings taken apart."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halfmeg.places.settings import is_setting

if TYPE_CHECKING:
    from halfmeg.config import RunConfig
    from halfmeg.data.dataset import DataSplits
    from halfmeg.data.options import DataOptions
    from halfmeg.data.shape import ImageSize


NOT_A_SETTING = {
    "seed": "say how many seeds by --seeds",
    "model": "name networks without model=",
}
"""What is told by other words than for `train`."""


@dataclass(frozen=True)
class Entrants:
    """Networks by name, the recipes that each is trained by, and how their images are read."""

    names: list[str]
    recipes: list[RunConfig]
    size: ImageSize
    options: DataOptions

    @property
    def count(self) -> int:
        """How many are compared: each network by each recipe."""
        return len(self.names) * len(self.recipes)

    def check(self, data: list[DataSplits], *, here: bool = True) -> None:
        """Try every network and recipe once, so that a mistake is told before anything is trained.

        Args:
            data: what each is trained on.
            here: by this machine; a cluster's may have other devices.

        Raises:
            ValueError: a network or recipe that does not suit these images.
        """
        from halfmeg.networks.table import build_model
        from halfmeg.training.job import check, check_places

        for loaded in data:
            for name in self.names:
                build_model(name, len(loaded.classes), loaded.image_shape, self.recipes[0].budget)
                for recipe in self.recipes:
                    (check if here else check_places)(replace(recipe, model=name), loaded)


def read_entrants(
    command: str,
    arguments: list[str],
    recipe: list[str] | None,
    image_size: str | None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Entrants:
    """Take arguments apart into networks and settings, and apply these to recipes and data.

    The command is named in the line to type instead, where one is known.

    Raises:
        ValueError: no network, or a recipe or a setting that is not known.
    """
    from halfmeg.cli.hints import check_network_words, check_setting_words
    from halfmeg.data.options import read_options, read_size
    from halfmeg.networks.table import MODELS
    from halfmeg.training.recipes import build_recipe

    given = [text for text in arguments if is_setting(text)]
    names = [text for text in arguments if not is_setting(text)]
    for text in given:
        if (key := text.partition("=")[0]) in NOT_A_SETTING:
            raise ValueError(f"{text} is not for {command}; {NOT_A_SETTING[key]}")
    check_setting_words(given)
    options, settings = read_options(given, image_column, label_column)
    size, settings = read_size(settings, image_size)
    check_network_words(command, names, given)
    if not names:
        raise ValueError(f"no network named; allowed: {', '.join(MODELS)}")
    recipes = [build_recipe(name).override(settings) for name in recipe or ["common"]]
    return Entrants(names, recipes, size, options)

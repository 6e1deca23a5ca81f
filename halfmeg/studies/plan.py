"""A plan before training: what a study could see, by its seeds and test images, and its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.studies.compare import Comparison
from halfmeg.studies.power import TYPICAL, Chance, power, smallest_difference
from halfmeg.studies.stats import PairedTest
from halfmeg.training.fit import fit
from halfmeg.training.plan import Plan as TrainingPlan
from halfmeg.training.stopping import throwaway_folder

PLANNED_SEEDS = (2, 3, 5, 8, 12, 20)
TIMED_STEPS = 8
"""Steps that are trained to see how fast this machine is."""


@dataclass(frozen=True)
class PlanRow:
    """A study with so many seeds.

    Attributes:
        power: share of studies that see the difference, by test images as in `Plan.num_images`.
        smallest: the difference that four of five studies see, on the test images there are.
        minutes: of training here, all networks one after another; None where it was not measured.
    """

    seeds: int
    power: tuple[float, ...]
    smallest: float
    minutes: float | None


@dataclass(frozen=True)
class Plan:
    """What studies of some networks on some data could see.

    Attributes:
        difference: that shall be seen, 0 to 1.
        num_networks: of the study; all pairs are tested at once.
        num_images: test images: as many as there are, a quarter, and four times as many.
        chance: the variances that are assumed, and where they are from.
        origin: see there.
    """

    difference: float
    num_networks: int
    num_images: tuple[int, ...]
    chance: Chance
    origin: str
    rows: tuple[PlanRow, ...]

    def with_seconds(self, seconds: float) -> Plan:
        """Return the plan with its cost, from the seconds that it takes to train each once."""
        rows = tuple(replace(row, minutes=row.seeds * seconds / 60) for row in self.rows)
        return replace(self, rows=rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {
            "difference": self.difference,
            "num_networks": self.num_networks,
            "num_images": list(self.num_images),
            "chance": vars(self.chance),
            "origin": self.origin,
            "rows": [vars(row) | {"power": list(row.power)} for row in self.rows],
        }


def make_plan(
    num_networks: int,
    num_test: int,
    *,
    difference: float,
    pilot: Comparison | None = None,
) -> Plan:
    """Return what a study could see.

    Args:
        num_networks: of the study, 2 or more.
        num_test: test images there are.
        difference: of accuracy that shall be seen, 0 to 1.
        pilot: a study of such networks on such data, for its variances; None: those of this
            repository's own studies.

    Raises:
        ValueError: a difference of nothing or more than everything, fewer than two networks, or a
            pilot without two seeds.
    """
    if not 0 < difference < 1:
        raise ValueError(
            f"difference={100 * difference:g} is out of range; allowed: above 0, below 100 points"
        )
    if num_networks < 2:
        raise ValueError("a plan compares two networks or more; name another")
    chance, origin = TYPICAL, "typical of networks of 82 to 90% on CIFAR-10"
    if pilot is not None:
        chance = chance_of(pilot)
        seeds = max(pair.num_seeds for pair in pilot.pairs)
        origin = f"measured on {pilot.data} with {seeds} seeds"
    sizes = (max(1, num_test // 4), num_test, 4 * num_test)
    rows = []
    for seeds in PLANNED_SEEDS:
        rows.append(
            PlanRow(
                seeds=seeds,
                power=tuple(
                    power(difference, chance, seeds, n, num_networks=num_networks) for n in sizes
                ),
                smallest=smallest_difference(chance, seeds, num_test, num_networks=num_networks),
                minutes=None,
            )
        )
    return Plan(difference, num_networks, sizes, chance, origin, tuple(rows))


def chance_of(pilot: Comparison) -> Chance:
    """Return the variances of a study that has run: means over its pairs, each by itself.

    What its tests use is pooled to be on the safe side; a plan pools what it draws, as they do.

    Raises:
        ValueError: it has folds, no pair, or none with two seeds.
    """
    if pilot.folds is not None:
        raise ValueError("the pilot has folds; a plan needs the seeds of compare without --folds")
    if not pilot.pairs:
        raise ValueError("the pilot has no two networks to compare; a plan needs a pair")
    tests = [pair.test for pair in pilot.pairs if isinstance(pair.test, PairedTest)]
    chances = [test.chance for test in tests if test.chance is not None]
    if not chances:
        raise ValueError("the pilot has one seed of each network; a plan needs two or more")
    return Chance(
        seeds=max(0.0, float(np.mean([chance.seeds for chance in chances]))),
        images=float(np.mean([chance.images for chance in chances])),
        rest=float(np.mean([chance.rest for chance in chances])),
    )


def time_training(configs: Sequence[RunConfig], data: DataSplits) -> float:
    """Return the seconds that one training of each config takes here, from a few steps of each.

    The steps are of images in full size; smaller ones count by their pixels. No test image is read.
    """
    seconds = 0.0
    for config in configs:
        held_out = 0.0 if data.validation is not None else config.val_fraction
        count = len(data.train) - round(held_out * len(data.train))
        part = data.train.subset(slice(0, TIMED_STEPS * config.batch_size))
        few = replace(data, train=part, test=part)
        # The first epoch also makes what the later ones use again.
        short = replace(
            config, epochs=2, val_fraction=0.0, monitor="val", schedule="constant", milestones=(),
            small_size=0, first_size=0, hard_share=1.0,
        )  # fmt: skip
        with throwaway_folder() as folder:
            row = fit(short, few, folder / "run").read_metrics()[-1]
        planned = TrainingPlan.of(config, count, data.image_size)
        seen = planned.images_of(data.image_shape.shortest)
        seconds += seen / (row["images_per_second"] or 1.0)
    return seconds

"""A search under way: its folder, data and limits, and what a candidate costs and takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path

import numpy as np

from halfmeg.artifacts.metrics import read_metrics
from halfmeg.config import RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.split import hold_out
from halfmeg.places.settings import Value
from halfmeg.search.budget import Costs, Limits, measure_costs
from halfmeg.search.journal import Journal
from halfmeg.search.lanes import SearchListener
from halfmeg.search.record import Clock, Stored, Trial
from halfmeg.search.segment import time_epoch
from halfmeg.search.space import Space
from halfmeg.search.vary import largest_within
from halfmeg.studies.pool import threads_each
from halfmeg.training.job import check

MOST_SHARING = 2
"""Trials at once that share the time of one in the plan, see `Search.sharing`."""


@dataclass
class Search:
    """A search under way.

    Attributes:
        folder: where all of it stands.
        stored: what search.json says.
        space, limits: as there.
        data: what is trained on; its test part is not read here.
        workers: trials at once.
        cluster: the address of a Ray cluster that trains them; None for this machine.
        most_macs: beyond which a network is too large for the time; None for any.
    """

    folder: Path
    stored: Stored
    space: Space
    data: DataSplits
    journal: Journal
    clock: Clock
    listener: SearchListener
    workers: int = 1
    cluster: str | None = None
    most_macs: int | None = None
    known_costs: dict[tuple[str, bool, int | None], Costs] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        """What a network may cost, by the user's limits and by the time."""
        limits = self.stored.limits
        if self.most_macs is None:
            return limits
        return replace(limits, macs=min(self.most_macs, limits.macs or self.most_macs))

    @property
    def side(self) -> int:
        """The shorter side of the images, in pixels."""
        return self.data.image_shape.shortest

    @property
    def seconds_left(self) -> float:
        """Of the time to look for networks."""
        plan = self.stored.plan
        end = self.stored.seconds if plan is None else plan.search_seconds
        return end - self.clock.spent()

    @cached_property
    def num_validation(self) -> int:
        """How many different images an accuracy of a trial is measured on; folds may share some."""
        if self.data.validation is not None:
            return len(self.data.validation)
        return len(reduce(np.union1d, self.held_out))

    @cached_property
    def held_out(self) -> list[np.ndarray]:
        """Which training images each fold holds out, sorted; nothing with a validation part."""
        everything = np.arange(len(self.data.train))
        trained = (
            hold_out(self.data, self.stored.val_fraction, seed)[0].numpy()
            for seed in range(self.stored.folds if self.data.validation is None else 0)
        )
        return [np.setdiff1d(everything, indices) for indices in trained]

    def run_folders(self, number: int) -> list[Path]:
        """Return the run folders of a trial."""
        names = [f"{number:04}"] + [f"{number:04}-fold-{i}" for i in range(1, self.stored.folds)]
        return [self.folder / "trials" / name for name in names]

    def count_try(self, trial: Trial) -> None:
        """Count that a trial is taken up, at the epochs that its runs have done all together."""
        paths = (folder / "metrics.csv" for folder in self.run_folders(trial.number))
        epochs = sum(len(read_metrics(path)) for path in paths)
        self.journal.count_try(self.journal.open(trial.number), epochs)

    def costs(self, model: str, *, whole: bool = False) -> Costs:
        """Return what a network costs, computed once; `whole` measures no other latency.

        Raises:
            ValueError: it cannot be built.
        """
        key = (model, whole, self.most_macs)
        if key not in self.known_costs:
            limits = replace(self.limits, latency=None) if whole else self.limits
            costs = measure_costs(
                model, len(self.data.classes), self.data.image_shape, limits, whole=whole
            )
            if whole:
                costs = replace(costs, latency=self.costs(model).latency)
            self.known_costs[key] = costs
        return self.known_costs[key]

    def config(self, drawn: dict[str, Value]) -> RunConfig:
        """Return the run of a candidate.

        Raises:
            ValueError: its settings exclude each other, or do not fit the data.
        """
        assert self.stored.plan is not None
        config = self.space.config(
            drawn, most_epochs=self.stored.plan.epochs, side=self.side,
            recipe="search", val_fraction=self.stored.val_fraction, keep_checkpoints=1,
        )  # fmt: skip
        check(config, self.data)
        return config

    def paced(self, drawn: dict[str, Value], config: RunConfig) -> RunConfig:
        """Return the run of a candidate with as many epochs as it has time for, after timing it."""
        assert self.stored.plan is not None
        if not self.space.epochs_are_shares:
            return config
        try:
            seconds = self.seconds_of_epoch(config)
        except ValueError:
            return config  # the trial says what is wrong with it
        most = self.space.config(
            drawn, most_epochs=self.stored.plan.epochs_of(seconds), side=self.side
        )
        return replace(config, epochs=most.epochs)

    def seconds_of_epoch(self, config: RunConfig) -> float:
        """Return the seconds that an epoch of a trial takes, if all that train at once share it.

        Raises:
            ValueError: the run does not fit the data.
        """
        whole = time_epoch(config, self.data, self.threads_of_a_trial)
        return whole * self.stored.folds / self.sharing

    @property
    def sharing(self) -> int:
        """How many trials at once share the time of one in the plan.

        One trains on one worker alone. If each had the time of all workers, many of them would have
        few trials, longer than the search; so more than two train more trials instead.
        """
        return min(self.workers, MOST_SHARING)

    @property
    def threads_of_a_trial(self) -> int:
        """The threads that one computes on; 0 for all that torch takes here."""
        if self.cluster is not None:
            return 1
        return threads_each(self.workers) if self.workers > 1 else 0

    def size(self, drawn: dict[str, Value]) -> int:
        """Return the parameters of a candidate; 0 where it is over a limit or cannot be built."""
        try:
            costs = self.costs(self.space.model(drawn))
        except ValueError:
            return 0
        return costs.params if self.limits.fits(costs) else 0

    def work(self, drawn: dict[str, Value]) -> int:
        """Return the multiply-accumulates of a candidate that fits."""
        return self.costs(self.space.model(drawn)).macs

    def epochs_of(self, drawn: Mapping[str, Value]) -> Value:
        """Return the epochs of a candidate as they were drawn: a number, or a share of the time."""
        given = (d for d in self.space.dimensions if d.of_recipe and d.setting == "epochs")
        return next((drawn[d.name] for d in given if d.name in drawn), 1.0)

    def starts(self) -> Iterator[dict[str, Value]]:
        """Yield what to begin with: of each network the largest that is within the limits."""
        for network in self.space.networks:
            drawn = largest_within(self.space, network, self.size, self.work)
            if drawn is not None:
                yield drawn

"""The search: space, budget, schedule, engine, what a kill leaves, the page, bad input."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Cli, first_digits, small_config
from PIL import Image

from halfmeg.artifacts.metrics import read_metrics
from halfmeg.artifacts.run import Run
from halfmeg.config import BUDGET, RunConfig
from halfmeg.data.dataset import DataSplits
from halfmeg.data.load import load_dataset
from halfmeg.data.shape import image_shape
from halfmeg.data.split import hold_out
from halfmeg.networks.memory import measure_memory
from halfmeg.networks.summary import count_macs, count_params
from halfmeg.networks.table import FAMILIES, build_model
from halfmeg.places.settings import Value, declared_values, split_settings, with_settings
from halfmeg.search.budget import (
    Costs,
    Limits,
    describe_limit,
    measure_costs,
    parse_amount,
    parse_limits,
    require_room,
)
from halfmeg.search.finish import (
    SHORT,
    Timed,
    _configs,
    _outcome,
    choose_baselines,
    decide,
    fill_up,
    finish,
)
from halfmeg.search.front import best_of, by_image, front, pick, read_answers
from halfmeg.search.journal import Journal, read_trials, seeks_front, suggest
from halfmeg.search.lanes import Lanes, SearchListener
from halfmeg.search.page import (
    advice,
    fewer_baselines,
    importance_of,
    larger_images,
    learning_curve,
    write_page,
)
from halfmeg.search.record import (
    JOURNAL,
    Clock,
    Final,
    Stored,
    Trial,
    describe_data,
    read_stored,
    sole_writer,
    with_repeats,
    write_stored,
)
from halfmeg.search.run import describe_search, open_search, start, with_time
from halfmeg.search.schedule import (
    domination_ranks,
    fit_final,
    goes_on,
    make_plan,
    rung_epochs,
    time_share,
)
from halfmeg.search.segment import Reached, time_epoch, train_folds, train_until
from halfmeg.search.space import ALLOWED, SPACE, Dimension, build_space
from halfmeg.search.state import Search
from halfmeg.search.trials import FIRST_SHARE, MOST_FAILURES, REPEATED, _Engine
from halfmeg.search.vary import fitted, largest_within, mutated, parents
from halfmeg.studies.pool import KILLED
from halfmeg.studies.study import run_study
from halfmeg.training.listen import Listener
from halfmeg.training.stopping import TrainingInterruptedError

# Networks here count their calls, so that they fail, or wait, at a certain one.
pytestmark = pytest.mark.filterwarnings("ignore:.* in training, which no checkpoint holds")

SHAPE = image_shape(32)

TINY = '''
from typing import Annotated, Literal
from torch import nn

class Tiny(nn.Module):
    """Learns the digits a little, in no time."""

    def __init__(
        self,
        num_classes: int,
        width: Annotated[int, range(4, 17, 4)] = 8,
        kernel: Literal[3, 5] = 3,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AvgPool2d(4), nn.Conv2d(3, width, kernel, bias=bias), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes),
        )

    def forward(self, x):
        return self.body(x)

SPACE = {
    "network": {"tiny.py:Tiny": {}},
    "optimizer": "adamw",
    "lr": (0.001, 0.1),
    "epochs": [4, 2],
    "batch_size": 32,
}
'''


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "tiny.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return "tiny.py:Tiny"


@pytest.fixture
def seconds_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Let a search's time pass by epochs alone, however slow or busy this machine is.

    Returns:
        The seconds that an epoch of one run takes, by network; where it is not in it, one.
    """
    table: dict[str, float] = {}
    passed = 0.0

    def time_epoch(config: RunConfig, *others: Any) -> float:
        return table.get(config.model, 1.0)

    def train(data: DataSplits, configs: list[RunConfig], folders: list[Path], *rest: Any) -> Any:
        nonlocal passed
        before = sum(len(read_metrics(folder / "metrics.csv")) for folder in folders)
        outcome = train_folds(data, configs, folders, *rest)
        epochs = sum(len(read_metrics(folder / "metrics.csv")) for folder in folders) - before
        seconds = max(epochs, 1) * time_epoch(configs[0])  # what fails at once takes time too
        passed += seconds
        return replace(outcome, seconds=seconds, in_all=0.0)

    clock = SimpleNamespace(monotonic=lambda: passed)
    monkeypatch.setattr("halfmeg.search.lanes.train_folds", train)
    monkeypatch.setattr("halfmeg.search.state.time_epoch", time_epoch)
    monkeypatch.setattr("halfmeg.search.run.time", clock)
    monkeypatch.setattr("halfmeg.search.record.time", clock)
    return table


def searched(
    folder: Path, data: DataSplits, seconds: float = 6.0, **others: Any
) -> tuple[Any, list[Trial]]:
    """Search a second or two among the tiny networks."""
    settings = {"limits": Limits(params=700), "place": "tiny.py:SPACE", "compare": False} | others
    stored, space = describe_search(data, seconds=seconds, **settings)
    outcome = start(folder, data, stored, space)
    return outcome, read_trials(folder)


# A network's settings


@pytest.mark.slow  # tracing takes seconds
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_built_with_its_settings_and_learns(name: str) -> None:
    values = declared_values(FAMILIES[name].build)
    smallest = {k: min(v) if isinstance(v, range) else v[-1] for k, v in values.items()}
    model = build_model(with_settings(name, smallest), 7, 32)
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert measure_memory(model.eval(), 32).ram_bytes > 0  # it has a form in C


def test_a_family_holds_record_and_shrinks_it() -> None:
    record, whole = build_model("record"), build_model("whitened-residual()")
    assert [p.shape for p in whole.parameters()] == [p.shape for p in record.parameters()]
    halved = build_model("whitened-residual(shrink=2)")
    assert count_params(halved) == count_params(record)
    assert count_macs(halved) < count_macs(record) / 3.9


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("residual(widht=8)", "did you mean 'width'"),
        ("residual(8)", "key=value"),
        ("residual(width=)", "key=value"),
        ("residual(width=0)", "1 to 1,024"),
        ("residual(depth=1000000000)", "1 to 1,024"),
        ("residual(width=1000,depth=100)", "it would have 37,712,869,010 parameters; allowed"),
        ("residual(width=3)", "residual(width=3) cannot be built: "),
        ("residual(width='a')", "1 to 1,024"),
        ("residual(width=__import__('os'))", "key=value"),
        ("residual(width=8,width=16)", "width stands there twice"),
        ("cnn(width=8)", "allowed: none"),
        ("residul(width=8)", "did you mean 'residual'"),
    ],
)
def test_wrong_settings_of_a_network_are_one_line(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        build_model(name)


def test_settings_are_taken_apart_and_put_together() -> None:
    settings = {"width": 8, "gate": True, "kind": "a,b"}
    assert split_settings(with_settings("my (copy)/net.py:Net", settings)) == (
        "my (copy)/net.py:Net", settings,
    )  # fmt: skip
    assert split_settings("cnn") == ("cnn", {})


def test_ones_own_network_takes_settings(tiny: str) -> None:
    assert count_params(build_model(f"{tiny}(width=16)")) > count_params(build_model(tiny))
    with pytest.raises(ValueError, match="no 'depth'"):
        build_model(f"{tiny}(depth=2)")


# The space


def test_the_space_stands_as_a_table_in_the_docs() -> None:
    page = (ROOT / "docs" / "search.md").read_text()
    table = page[page.index("| setting | values |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `(.+)` \| (.+) \|$", table, flags=re.MULTILINE)
    assert rows == build_space(SPACE).rows()


def test_every_candidate_of_the_space_is_a_run_and_most_can_be_built() -> None:
    space, generator = build_space(SPACE), random.Random(0)

    def suggest(name: str, values: Any) -> Any:
        return generator.uniform(*values) if isinstance(values, tuple) else generator.choice(values)

    for _ in range(200):
        drawn = space.draw(suggest)
        config = space.config(drawn, most_epochs=20, side=32)
        assert (config.epochs in (10, 20), config.kernels) == (True, "auto")
        assert config.crop in (0, 2, 4)
        network, settings = split_settings(config.model)
        assert set(settings) == set(declared_values(FAMILIES[network].build))
        low, high = SPACE["optimizer"][config.optimizer]["lr"]
        assert low <= config.lr <= high


def test_ones_own_network_declares_its_values(tiny: str) -> None:
    space = build_space(SPACE, [tiny], ["epochs=3", "optimizer=sgd", "hflip=false"])
    rows = dict(space.rows())
    assert rows["network"] == tiny
    assert rows[f"{tiny}.width"] == "4 to 16 by 4"
    assert rows[f"{tiny}.kernel"] == "3, 5"
    assert rows[f"{tiny}.bias"] == "true, false"
    assert rows["sgd.lr"] == "0.02 to 0.5"
    config = space.config(space.scaled(tiny, 1), most_epochs=9, side=32)
    assert config.model == f"{tiny}(width=16,kernel=3,bias=True)"
    assert (config.epochs, config.optimizer, config.hflip) == (3, "sgd", False)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"network": {"residul": {}}}, "did you mean 'residual'"),
        ({"network": {"residual": {"widht": [8]}}}, "did you mean 'width'"),
        ({"network": {"cnn": {"width": [8]}}}, "comes as it is"),
        ({"network": {"residual": [8]}}, "not a dict"),
        ({"network": {}}, "nothing to choose from"),
        ({"lr": (0.1, 0.2)}, "no 'network'"),
        ({"network": "cnn", "learning_rate": 0.1}, "'learning_rate', which is not known"),
        ({"network": "cnn", "bacth_size": [64]}, "did you mean 'batch_size'"),
        ({"network": "cnn", "optimizer": {"sgd": {"rl": 0.1}}}, "sgd in the space has 'rl'"),
        ({"network": "cnn", "lr": (0.2, 0.1)}, "no pair"),
        ({"network": "cnn", "lr": (0.1, float("inf"))}, "no pair"),
        ({"network": "cnn", "lr": [-1.0, 0.1]}, "lr=-1.0 in the space"),
        ({"network": "cnn", "optimizer": ["sdg", "sgd"]}, "optimizer='sdg' in the space"),
        ({"network": "cnn", "batch_size": []}, "no list of numbers"),
        ({"network": "cnn", "batch_size": [64, 64]}, "a value twice"),
        ({"network": "cnn", "batch_size": {64, 32}}, "not allowed"),
        ({"network": "cnn", "epochs": [0.0, 1.0]}, "no share"),
        ({"network": "cnn", "crop": [0.5, 2.5]}, "no share"),
        ({"network": "cnn", "seed": [1, 2]}, "'seed', which is not known"),
        ({"network": "cnn", "val_fraction": 0.2}, "the search decides it"),
        ({"netwrok": "cnn", "lr": 0.1}, "did you mean 'network'"),
        ({"network": "cnn", "optimizer": "sdg"}, "allowed: adam"),
        ({"network": "cnn", "optimizer": {"sgd": {"lr": 0.1}}, "lr": 0.2}, "gives lr twice"),
        ({"network": "python:Net"}, "stands at the top of no file"),
        ({"network": "residual(width=8)"}, "settings already"),
        ({"network": {1: {}}}, "model '1' is not known"),
        ({"network": "cnn", "lr": (1, 10**400)}, "no pair"),
        ({"network": {"residual": {"width": range(8, 10**30, 8)}}}, "width="),
        ({"network": "cnn", "epochs": range(1, 10**12)}, "epochs="),
        ({"network": "cnn", "batch_size": range(0)}, "batch_size="),
    ],
)
def test_a_wrong_space_is_one_line(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)) as caught:
        build_space(table)
    assert "\n" not in str(caught.value)


def test_a_value_of_a_wrong_type_says_what_is_taken() -> None:
    own = ("loss", "augment", "teacher")  # these take any text
    for name in set(ALLOWED) - {"network", *own}:
        values = [["fast"], "fast"]
        if isinstance(getattr(RunConfig(model="cnn", epochs=1), name), int):
            values += [[1, 2.5], -0.5]
        for value in values:
            with pytest.raises(ValueError, match=f"^{name}=.* in the space") as caught:
                build_space({"network": "cnn", name: value})
            assert re.search("takes|allowed: |no share", str(caught.value)), caught.value
    with pytest.raises(ValueError, match="milestones is not for a search"):
        build_space(SPACE, settings=["schedule=step", "milestones=3,6"])
    with pytest.raises(ValueError, match=r"schedule='step' in the space: .* needs milestones"):
        build_space(SPACE | {"schedule": ["onecycle", "step"]})


# The budget


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("params", "100k", 100_000), ("params", "100_000", 100_000),
        ("macs", "12M", 12_000_000), ("macs", "12.5m", 12_500_000),
        ("ram", "64KiB", 65_536), ("ram", "64k", 64_000), ("flash", "100 kB", 100_000),
        ("params", "78666", 78_666), ("latency", "5ms", 5), ("latency", "0.5 s", 500),
        ("flash", "1e6", 1_000_000), ("macs", "1.5e1M", 15_000_000),
    ],
)  # fmt: skip
def test_amounts_are_read(name: str, text: str, value: float) -> None:
    assert parse_amount(name, text) == value


@pytest.mark.parametrize(
    "text", ["", "k", "-5k", "0", "5x", "5ms", "1e400", "1e99", "5e", "nan", "5 5", "0.5", "_5"]
)
def test_wrong_amounts_are_one_line(text: str) -> None:
    with pytest.raises(ValueError, match="is no amount; write a number above 0"):
        parse_amount("ram", text)


def test_costs_are_those_of_the_built_network() -> None:
    name = "residual(width=8,depth=1,shrink=2)"
    costs = measure_costs(name, 10, SHAPE, Limits(latency=1e3), whole=True)
    model = build_model(name)
    memory = measure_memory(model)
    assert (costs.params, costs.macs) == (count_params(model), count_macs(model))
    assert (costs.flash, costs.ram) == (memory.flash_bytes, memory.ram_bytes)
    assert costs.tflite_micro == memory.tflite_micro_bytes
    assert costs.latency is not None
    assert costs.latency > 0
    chip = measure_costs(name, 10, SHAPE, Limits(latency=1e3, chip="cortex-m7"))
    assert chip.latency == pytest.approx(costs.macs * 1.96 / 480 / 1e3)


def test_what_has_no_form_in_c_is_over_a_limit_of_ram() -> None:
    mixer = f"{ROOT}/tests/networks/strangers.py:MlpMixer"
    costs = measure_costs(mixer, 10, SHAPE, Limits(ram=10**9))
    assert costs.ram is None
    assert "im2col" in costs.no_c
    assert not Limits(ram=10**9).fits(costs)
    assert Limits(params=20_000).fits(costs)


def test_costs_count_from_half_of_the_limit_that_binds() -> None:
    limits = Limits(params=1000, macs=10_000)
    assert limits.share(Costs(800, 1)) == pytest.approx(0.8)
    assert limits.share(Costs(1, 9000)) == pytest.approx(0.9)
    assert limits.share(Costs(10, 10)) == limits.share(Costs(500, 5000)) == 0.5
    assert Limits().share(Costs(400_000, 1)) == pytest.approx(0.8)


def test_without_a_limit_it_is_the_half_million() -> None:
    assert parse_limits().given == {"params": 499_999}
    assert parse_limits(ram="1k").given == {"ram": 1000}
    with pytest.raises(ValueError, match="cortex-m0 is not known"):
        parse_limits("cortex-m0", latency="5ms")
    with pytest.raises(ValueError, match="needs --latency"):
        parse_limits("cortex-m7", ram="1k")


def test_the_largest_that_fits_is_found() -> None:
    space = build_space(SPACE, ["residual"])

    def fits_in(limit: int) -> Any:
        limits = Limits(params=limit)

        def fits(drawn: Any) -> bool:
            return limits.fits(measure_costs(space.model(drawn), 10, SHAPE, limits))

        return largest_within(space, "residual", fits, work_in(space))

    model = build_model(space.model(fits_in(100_000)))
    assert 60_000 < count_params(model) <= 100_000
    assert count_params(build_model(space.model(fits_in(1_500)))) <= 1_500
    assert fits_in(100) is None


def test_a_start_is_as_wide_as_each_width_fits() -> None:
    """Widths that grow by one share alone leave room for more of one of them."""
    space = build_space(SPACE)
    size = within(Limits(params=78_666, macs=12_500_000), space)
    for network in space.networks:
        drawn = largest_within(space, network, size, work_in(space))
        assert drawn is not None
        for dimension in (d for d in space.dimensions if d.choice == network):
            if isinstance(dimension.values, range):
                wider = [v for v in dimension.values if v > drawn[dimension.name]]
                assert not wider or not size(drawn | {dimension.name: wider[0]})
    widest = largest_within(space, "whitened-mobile", size, work_in(space))
    assert widest is not None
    assert [widest[f"whitened-mobile.width{i}"] for i in (1, 2)] == [32, 48]
    assert size(widest) == 77_128


def test_a_start_gets_deeper_where_its_widths_leave_room() -> None:
    """The next width of `residual` is half as wide again, which has 2.2 times the arithmetic."""
    space = build_space(SPACE, ["residual"])
    size = within(Limits(params=100_000, macs=14_000_000), space)
    drawn = largest_within(space, "residual", size, work_in(space))
    assert drawn is not None
    assert drawn["residual.width"] == 8
    assert drawn["residual.depth"] == 4
    assert size(drawn) > 90_000
    assert not size(drawn | {"residual.width": 12, "residual.depth": 3})
    size = within(Limits(params=80_000), space)
    fewer = largest_within(space, "residual", size, work_in(space))
    assert fewer is not None
    assert (fewer["residual.width"], fewer["residual.depth"]) == (8, 3)


@pytest.mark.slow
def test_a_tight_budget_is_filled_by_another_choice() -> None:
    space = build_space(SPACE)
    size = within(Limits(params=20_000, macs=2_000_000), space)
    for network in space.networks:
        drawn = largest_within(space, network, size, work_in(space))
        assert drawn is not None
        assert size(drawn) > 10_000


OWN = """
from typing import Annotated, Literal
from torch import nn

class Patch(nn.Module):
    def __init__(
        self,
        num_classes: int,
        dim: Annotated[int, range(8, 33, 4)] = 8,
        patch: Literal[4, 8, 16] = 4,
        drop: Annotated[float, (0.0, 0.8)] = 0.1,
    ) -> None:
        super().__init__()
        if dim % 8:
            raise ValueError("dim must be a multiple of 8")
        self.net = nn.Sequential(
            nn.Conv2d(3, dim, patch, patch), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Dropout(drop), nn.Linear(dim, num_classes),
        )

    def forward(self, x):
        return self.net(x)
"""


def test_a_start_of_ones_own_network_grows_what_makes_it_larger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dropout, no patch; and a width is passed over that the network refuses."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    space = build_space({"network": "own.py:Patch"})
    drawn = largest_within(space, "own.py:Patch", within(Limits(), space), work_in(space))
    assert drawn is not None
    settings = {name.rpartition(".")[2]: value for name, value in drawn.items() if "." in name}
    assert (settings["dim"], settings["patch"], settings["drop"]) == (32, 4, 0.4)


def work_in(space: Any) -> Any:
    return lambda drawn: measure_costs(space.model(drawn), 10, SHAPE, Limits()).macs


def within(limits: Limits, space: Any) -> Any:
    @functools.cache
    def size_of(model: str) -> int:
        try:
            costs = measure_costs(model, 10, SHAPE, limits)
        except ValueError:  # it cannot be built
            return 0
        return costs.params if limits.fits(costs) else 0

    return lambda drawn: size_of(space.model(drawn))


def test_a_smaller_first_epoch_is_drawn_beside_small_ones() -> None:
    space = build_space({"network": "resnet20", "small_size": 24, "first_size": [16, 0]})
    config = space.config(space.draw(lambda _, values: values[0]), most_epochs=2, side=32)
    assert (config.small_size, config.first_size) == (24, 16)


def test_mutations_stay_near_and_in_the_space() -> None:
    space, generator = build_space(SPACE), np.random.default_rng(0)
    by_name = {d.name: d for d in space.dimensions}
    start = space.scaled("residual", 0.3)
    for _ in range(200):
        varied = mutated(space, start, generator)
        changed = [n for n in varied if n in start and varied[n] != start[n]]
        new = [n for n in varied if n not in start]
        assert 1 <= len(changed) <= 2
        assert varied["network"] == "residual"
        assert "optimizer" in changed or not new  # the rate of another optimizer comes with it
        for name, value in varied.items():
            values = by_name[name].values
            if isinstance(values, tuple):
                assert values[0] <= value <= values[1]
            else:
                assert value in values
        if isinstance(width := varied["residual.width"], int):
            assert abs(width - start["residual.width"]) <= 8


def test_mutations_are_of_the_best_of_each_network_first() -> None:
    best_first = [{"network": name, "rank": i} for i, name in enumerate("aaabac")]
    assert [drawn["rank"] for drawn in parents(best_first, 3)] == [0, 3, 5]
    assert [drawn["rank"] for drawn in parents(best_first, 9)] == [0, 3, 5, 1, 2, 4]
    assert parents(best_first[:2], 3) == best_first[:2]
    assert parents([], 3) == []


def test_a_candidate_is_brought_to_the_size_of_the_limits() -> None:
    space, limits = build_space(SPACE), Limits(params=50_000, ram=40_000)
    size = within(limits, space)
    for share in (0.0, 1.0):
        drawn = space.scaled("residual", share) | {"residual.depth": 2}
        found = fitted(space, drawn, size, grow=True)
        assert found is not None
        assert size(found) > 0
        assert {k: v for k, v in found.items() if k != "residual.width"} == {
            k: v for k, v in drawn.items() if k != "residual.width"
        }
        wider = found | {"residual.width": found["residual.width"] + 4}
        assert size(wider) == 0
    small = space.scaled("residual", 0.0)
    assert fitted(space, small, size, grow=False) == small
    assert fitted(space, small, within(Limits(params=100), space), grow=True) is None


# The schedule


def test_a_plan_keeps_seeds_until_runs_get_too_short() -> None:
    hour = make_plan(3600, 2.0, [2.0, 4.0, 2.0])
    assert (hour.seeds, hour.num_baselines) == (5, 3)
    assert hour.seeds * hour.epochs * 10.0 <= 0.45 * 3600
    assert hour.epochs * 2.0 * 5 <= hour.search_seconds <= 0.55 * 3600
    short = make_plan(600, 30.0, [30.0, 60.0, 30.0])
    assert short.epochs >= 1
    assert short.seeds * short.num_baselines < 15
    alone = make_plan(60, 1000.0, [])
    assert (alone.epochs, alone.seeds) == (1, 0)


def test_a_network_that_trains_fast_has_more_epochs() -> None:
    plan = make_plan(3600, 2.0, [2.0, 4.0, 2.0])
    assert plan.epochs_of(2.0) == plan.epochs
    for seconds in (0.5, 2.0, 8.0):
        epochs = plan.epochs_of(seconds)
        assert epochs * seconds <= 0.55 * 3600 / 5
        assert plan.seeds * epochs * (seconds + 8.0) <= 0.45 * 3600
    assert plan.epochs_of(0.5) > plan.epochs > plan.epochs_of(8.0)
    assert plan.epochs_of(1e6) == 1
    assert make_plan(3600, 2.0, []).epochs_of(0.01) == 200  # without a comparison all time is its


def test_a_plan_says_how_long_runs_are_without_baselines() -> None:
    plan = make_plan(3600, 3.0, [2.0, 3.0, 4.0])
    assert plan.epochs_alone(plan.epochs) == pytest.approx(324 / 3.0, abs=10)  # epochs are whole
    fast = plan.epochs_of(0.001)
    assert plan.epochs_alone(fast) >= fast
    for others in ([], [1e-6]):
        plan = make_plan(3600, 10.0, others)
        assert plan.epochs_alone(plan.epochs) in (plan.epochs, plan.epochs + 1)
        assert fewer_baselines(plan, plan.epochs) == []
    assert fewer_baselines(None, 20) == []


def test_the_last_comparison_is_planned_without_the_folds_of_a_trial() -> None:
    """A trial on few images trains once for each fold, and its network in the comparison once."""
    whole = make_plan(3600, 1.0, [1.0, 1.0, 1.0])
    folded = make_plan(3600, 3.0, [1.0, 1.0, 1.0], folds=3)
    assert folded.epochs == whole.epochs == int(0.45 * 3600 / 5 / 4)
    assert folded.epochs_alone(folded.epochs) == int(0.55 * 3600 / 5 / 3)
    many = make_plan(3600, 5.0, [1.0, 1.0, 1.0], folds=5)
    assert many.epochs == int(0.55 * 3600 / 5 / 5)  # here the trials' own time is less


HUNGRY = '''
import torch
from torch import nn

class Hungry(nn.Module):
    """Asks for more memory than there is, after a few steps."""

    def __init__(self, num_classes: int, kind: str) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(3, num_classes), 0
        self.ask = {"python": bytearray, "torch": torch.empty}[kind]

    def forward(self, x):
        self.steps += self.training
        if self.steps > 12:
            self.ask(2**59)
        return self.head(x.mean((2, 3)))
'''


@pytest.fixture
def errors_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> list[str]:
    """What trials are told to have failed by, of Python and of torch."""
    (tmp_path / "hungry.py").write_text(HUNGRY)
    monkeypatch.chdir(tmp_path)
    errors = []
    for kind in ("python", "torch"):
        config = small_config(model=f"hungry.py:Hungry(kind={kind!r})", epochs=9, batch_size=32)
        told = train_until(config, tmp_path / kind, 9, few_digits)
        assert told.error is not None and told.error.startswith("not enough memory: "), told
        errors.append(told.error)
    return errors


def test_a_second_training_that_failed_counts_against_a_trial(errors_of_memory: list[str]) -> None:
    def trial(number: int, accuracy: float, **facts: Any) -> Trial:
        reached = {2: accuracy} if accuracy else {}
        return Trial(
            number, {}, facts.pop("outcome", "done"), reached=reached, costs=Costs(1, 1), **facts
        )

    first = [trial(0, 0.95), trial(1, 0.94), trial(2, 0.93)]
    fine = [trial(4, 0.94, repeats=1), trial(5, 0.92, repeats=2)]
    for error, winner in (
        ("the loss became nan in epoch 1", 1), ("too slow: 9 seconds are left of it", 0),
        (KILLED, 0), *((error, 0) for error in errors_of_memory),
    ):  # fmt: skip
        failed = trial(3, 0.0, outcome="failed", repeats=0, error=error)
        best = best_of(with_repeats([*first, failed, *fine]))
        assert best is not None
        assert best.number == winner, error


def test_a_former_winner_counts_the_trials_that_chose_it(few_digits: DataSplits) -> None:
    winner = small_config(model="logistic", epochs=2)
    others = (("mlp", 500_000), ("cnn", 500_000))
    final = Final(0, "final-1", 1, others, 9, former=others[:1])
    counts = {c.model: c.tuning_trials for c in _configs(winner, final, few_digits)}
    assert counts == {"logistic": 9, "mlp": 9, "cnn": 0}


def test_a_folder_that_a_full_disk_does_not_take_is_no_failure_of_a_trial(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # less than config.json has
    try:
        with pytest.raises(OSError, match="File too large"):
            train_until(small_config(model="logistic"), tmp_path / "run", 1, few_digits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run").exists()


def test_fewer_baselines_are_advised_where_they_shorten_runs() -> None:
    plan = make_plan(3600, 3.0, [2.0, 3.0, 4.0])
    (told,) = fewer_baselines(plan, plan.epochs)
    assert told.startswith(
        f"Beside {plan.num_baselines} baselines a run has {plan.epochs} epochs, "
    )
    assert f"time for {plan.epochs_alone(plan.epochs)}. " in told
    assert fewer_baselines(make_plan(3600, 5.0, [0.1, 0.1, 0.1]), 20) == []


def test_what_is_too_large_for_the_time_is_left_out() -> None:
    assert time_share(3600, 2.0) == 1
    share = time_share(300, 25.0)  # a large network on 4,000 images of 64 pixels, five minutes
    assert share == pytest.approx(0.55 * 300 / 5 / 8 / 25)
    assert make_plan(300, share * 25.0, []).epochs >= 8
    beside_slow_ones = make_plan(300, share * 25.0, [25.0, 40.0])
    assert beside_slow_ones.epochs >= 8  # they are given up before runs get that short


def test_the_last_comparison_fits_the_time() -> None:
    assert fit_final(1000, 10, [10, 10, 10]) == (5, 3)
    assert fit_final(199, 10, [10, 10, 10]) == (5, 2)
    assert fit_final(60, 10, [10, 10, 10]) == (3, 1)
    assert fit_final(20, 10, [10, 10, 10]) == (1, 1)
    assert fit_final(19, 10, [10, 10, 10]) == (0, 0)
    assert fit_final(1000, 10, []) == (0, 0)
    assert fit_final(100, 10, [10, 10, 10], workers=2) == (5, 3)
    assert fit_final(9, 10, [5], workers=8) == (0, 0)  # one run alone takes longer


def test_runs_are_looked_at_after_a_third() -> None:
    assert rung_epochs(27) == [9, 27]
    assert rung_epochs(2) == [1, 2]
    assert rung_epochs(1) == [1]


def test_the_best_third_goes_on_and_the_most_accurate_always() -> None:
    assert goes_on((0.5, 1.0), [])
    assert not goes_on((0.5, 1.0), [(0.6, 1.0)])
    assert goes_on((0.6, 1.0), [(0.5, 0.1)])
    others = [(0.1 * i, 0.1 * i) for i in range(1, 9)]
    assert goes_on((0.9, 0.9), others)
    assert not goes_on((0.35, 0.8), others)
    near_chance = [(0.104, 1.0), (0.109, 1.0), (0.11, 1.0)]
    assert not goes_on((0.1, 1.0), near_chance)
    assert goes_on((0.1, 1.0), near_chance, 576)
    assert not goes_on((0.1, 1.0), near_chance, 5_000)


def test_fronts_are_those_of_the_definition() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        points = [(float(a), float(c)) for a, c in generator.integers(0, 5, (12, 2))]
        ranks = domination_ranks(points)
        left = set(range(len(points)))
        for rank in itertools.count():
            if not left:
                break
            beaten = {
                i for i in left for j in left
                if points[j][0] >= points[i][0] and points[j][1] <= points[i][1]
                and points[i] != points[j]
            }  # fmt: skip
            assert {i for i in left if ranks[i] == rank} == left - beaten
            left = beaten


# The engine


def test_a_part_of_a_run_reads_no_test_image_and_goes_on_to_the_same_bits(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    space = build_space(SPACE, [tiny], ["epochs=4", "val_fraction=0.2"][:1])
    config = space.config(
        space.scaled(tiny, 0), most_epochs=4, side=32, val_fraction=0.2
    )  # fmt: skip
    for until in (1, 3, 4):
        told = train_until(config, tmp_path / "parts", until, few_digits)
        assert (told.epochs, told.error) == (until, None)
    assert train_until(config, tmp_path / "parts", 4, few_digits).epochs == 4
    train_until(config, tmp_path / "whole", 4, few_digits)
    parts, whole = (Run.open(tmp_path / name) for name in ("parts", "whole"))
    assert parts.test_readings() == whole.test_readings() == []
    assert parts.result() is None

    def telling(run: Run) -> list[Any]:
        return [[row[k] for k in ("train_loss", "val_loss")] for row in run.read_metrics()]

    assert telling(parts) == telling(whole)


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, few_digits: DataSplits
) -> tuple[Path, Any, list[Trial]]:
    """The folder of a search, how it ended, and its trials."""
    folder = tmp_path_factory.mktemp("found")
    with pytest.MonkeyPatch.context() as patch:
        (folder / "tiny.py").write_text(TINY)
        patch.chdir(folder)
        return folder / "out", *searched(folder / "out", few_digits)


def test_the_front_and_what_is_picked(
    found: tuple[Path, Any, list[Trial]], few_digits: DataSplits, tiny: str
) -> None:
    out, _, trials = found
    points = front(trials, "params")
    assert [p.cost for p in points] == sorted(p.cost for p in points)
    assert points[-1].trial == best_of(trials)
    assert pick(trials, "params=700") == points[-1].trial
    assert pick(trials, f"params={points[0].cost:.0f}") == points[0].trial
    stored = read_stored(out)
    folder = out / "trials" / f"{points[0].trial.number:04}"
    folders = [folder, *(folder.with_name(f"{folder.name}-fold-{i}") for i in range(1, 5))]
    right = read_answers(folders[: stored.folds], few_digits)
    assert right.mean() == pytest.approx(points[0].trial.first_accuracy)
    for text, told in (
        ("ram", "write one of"),
        ("rom=3k", "write one of"),
        ("ram=x", "no amount"),
        ("ram=1", "the smallest needs"),
        ("ram=nan", "--pick ram=nan is no amount"),
    ):
        with pytest.raises(ValueError, match=told):
            pick(trials, text)


def test_a_search_ends_with_a_finished_network_and_a_page(
    few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out, outcome, trials = found
    assert outcome.run.result() is not None
    assert outcome.comparison is None
    done = [t for t in trials if t.outcome == "done"]
    compared = [t for t in done if t.repeated] or done
    assert outcome.winner.accuracy == max(t.accuracy for t in compared)
    assert all(t.costs.params <= 700 for t in trials if t.was_trained)
    for trial in trials:
        for path in (out / "trials").glob(f"{trial.number:04}*"):
            of_winner = path == outcome.run.folder
            assert len(Run.open(path).test_readings()) == (1 if of_winner else 0)
    assert read_stored(out).folds == 5  # of 200 images, 40 are held out
    page = (out / "search.html").read_text()
    for text in ("Front", "What mattered", "Learning curves", "With double the time", "tiny.py"):
        assert text in page
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)), "each figure has its own"
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    assert page.count("<svg") >= 1
    # started again it is done
    again, same = searched(out, few_digits)
    assert again.winner.number == outcome.winner.number
    assert same == trials
    with pytest.raises(ValueError, match="other settings or data"):
        searched(out, few_digits, limits=Limits(params=900))
    with pytest.raises(ValueError, match="searched on other data"):
        open_search(out, first_digits(201))


@pytest.mark.slow
def test_a_search_leaves_out_images_that_came_later(
    tmp_path: Path, tiny: str, pictures: Path, cli: Cli
) -> None:
    photos = shutil.copytree(pictures, tmp_path / "photos")
    begun = cli(
        "search", "--space", "tiny.py:SPACE", "--data", "photos", "--hours", "0.0005",
        "--no-compare", "--out", "out",
    )  # fmt: skip
    assert begun.code == 0, begun.err
    newcomer = next((photos / "train" / "0").iterdir())
    new = Image.open(newcomer).transpose(Image.Transpose.ROTATE_90)
    (photos / "train" / "new").mkdir()
    for path in (photos / "train" / "new", photos / "test" / "1"):
        new.save(path / "later.png")

    told = "2 image(s) of photos came after out; left out"
    (result,) = (tmp_path / "out" / "trials").glob("*/result.json")
    before = json.loads(result.read_text())
    result.unlink()  # as if it had been stopped before the winner read the test images
    resumed = cli("search", "--resume", "out")
    assert resumed.code == 0, resumed.err
    assert told in resumed.err
    assert json.loads(result.read_text())["test_loss"] == before["test_loss"]
    exported = cli("export", "out", "--out", "mine", "--allow-loss", "--json")
    assert exported.code == 0, exported.err
    assert told in exported.err

    newcomer.unlink()
    for line in (("search", "--resume", "out"), ("export", "out", "--out", "other")):
        refused = cli(*line)
        assert refused.code == 2
        told = "out was trained on other data than photos: 1 of its "
        assert told in refused.err.splitlines()[-1]  # what is to be known of the images comes first


class _EditsBetweenTrials(SearchListener):
    """Somebody who goes on working at a network while it is searched."""

    def on_trial(self, trial: Trial) -> None:
        Path("tiny.py").write_text(TINY.replace("self.body(x)", "2 * self.body(x)"))


@pytest.mark.slow
@pytest.mark.usefixtures("seconds_of")
def test_all_trials_of_a_search_are_of_one_text(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    stored, space = describe_search(
        few_digits, limits=Limits(params=700), seconds=60.0, place="tiny.py:SPACE", compare=False
    )
    start("out", few_digits, stored, space, listener=lambda search: _EditsBetweenTrials())
    texts = [path.read_text() for path in Path("out/trials").glob("*/source/model/tiny.py")]
    assert texts == [TINY] * len(texts)
    assert len(texts) > 1
    with pytest.raises(ValueError, match=r"text of tiny.py:Tiny.*: Tiny in tiny.py has changed"):
        start("out", few_digits, *open_search("out", few_digits))
    Path("tiny.py").write_text(TINY)
    assert start("out", few_digits, *open_search("out", few_digits)).winner.number >= 0


def test_larger_images_are_advised_where_there_are_any_and_they_fit(
    found: tuple[Path, Any, list[Trial]], few_digits: DataSplits, tiny: str
) -> None:
    """As of photographs, the sizes of which are known; on digits of 8 pixels nothing is said."""
    out, outcome, trials = found
    stored, space = open_search(out, few_digits)
    journal = Journal(out, stored.seed, stored.strategy)
    search = Search(out, stored, space, few_digits, journal, Clock(out), SearchListener())
    assert not larger_images(search, outcome.winner)
    for source, told in ((47, ""), (50, "--image-size 48 "), (500, "--image-size 48 ")):
        sizes = torch.full((len(few_digits.train), 2), source)
        search.data = replace(few_digits, train=replace(few_digits.train, sizes=sizes))
        lines = advice(search, trials, ended=True)
        assert any("--image-size" in line for line in lines) == bool(told)
        assert told in " ".join(lines)
        assert not any("--image-size" in line for line in advice(search, trials, ended=False))
    macs = outcome.winner.costs.macs
    search.stored = replace(search.stored, limits=Limits(params=700, macs=macs))
    assert not larger_images(search, outcome.winner)


@pytest.mark.slow
@pytest.mark.usefixtures("seconds_of")
def test_the_best_are_trained_again_before_one_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits, tiny: str
) -> None:
    monkeypatch.setattr("halfmeg.search.run.MOST_FOLDS", 2)
    out = tmp_path / "out"
    outcome, trials = searched(out, few_digits, seconds=120.0)
    again = [t for t in trials if t.repeats is not None and t.outcome == "done"]
    assert len(again) == REPEATED
    before = [t for t in trials[: again[0].number] if t.outcome == "done"]
    best = max(before, key=lambda t: (t.first_accuracy, -t.number))
    assert again[0].repeats == best.number
    for trial in again:
        assert trial.repeats is not None
        before = trials[trial.repeats]
        assert (trial.config, trial.drawn) == (before.config, before.drawn)
        assert before.repeated == (trial.accuracy,)
        assert before.accuracy == pytest.approx((before.first_accuracy + (trial.accuracy or 0)) / 2)
        seeds = [
            {Run.open(path).config.seed for path in (out / "trials").glob(f"{number:04}*")}
            for number in (before.number, trial.number)
        ]
        assert seeds == [{0, 1}, {2, 3}]
    assert outcome.winner.number in {t.repeats for t in again}
    page = (out / "search.html").read_text()
    assert f"The best were trained again with another seed, {REPEATED} runs;" in page
    assert "the mean of 2 trainings" in page


def test_what_was_trained_again_is_chosen_or_what_is_above_all_of_it() -> None:
    def trial(number: int, accuracy: float, *repeated: float) -> Trial:
        return Trial(
            number, {}, "done", costs=Costs(1, 1), reached={9: accuracy}, repeated=repeated
        )

    lucky, steady, third = trial(0, 0.9, 0.7), trial(1, 0.88, 0.86), trial(2, 0.875)
    assert best_of([lucky, third]) == lucky  # third was below it when both had been read once
    assert best_of([lucky, steady, third]) == steady
    assert best_of([lucky, steady, third, trial(3, 0.95)]).number == 3  # type: ignore[union-attr]
    assert best_of([third]) == third


LATE = """
import torch
from torch import nn

class Soon(nn.Module):
    late = 0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, num_classes))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += self.training
        return self.layers(x) * (self.steps > self.late)

class Late(Soon):
    late = 15  # of 5 steps in each of 9 epochs
"""


@pytest.mark.slow
@pytest.mark.usefixtures("seconds_of")
@pytest.mark.parametrize(("share", "outcome"), [(FIRST_SHARE, "done"), (0.0, "stopped")])
def test_the_first_of_each_network_comes_to_its_end_where_there_is_time(
    share: float, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    few_digits: DataSplits,
) -> None:  # fmt: skip
    """What learns late was stopped at the look, whatever it would have reached."""
    monkeypatch.setattr("halfmeg.search.trials.FIRST_SHARE", share)
    (tmp_path / "own.py").write_text(LATE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("halfmeg.search.run.MOST_FOLDS", 1)
    stored, space = describe_search(
        few_digits, limits=Limits(params=2000), seconds=60.0, compare=False,
        networks=["own.py:Soon", "own.py:Late"], settings=["batch_size=32", "epochs=9", "ema=0"],
    )  # fmt: skip
    start("out", few_digits, stored, space)
    trials = [t for t in read_trials(Path("out")) if t.was_trained]
    late = [t for t in trials if t.config is not None and t.config.model == "own.py:Late"]
    assert late[0].reached[3] < 0.3 < trials[0].reached[3]
    assert late[0].outcome == outcome


def test_most_trials_are_drawn_by_accuracy_alone_and_a_repeat_is_no_failure(tmp_path: Path) -> None:
    """By accuracy and cost together, cheap networks were drawn most of the time."""
    journal = Journal(tmp_path, 1, "tpe")
    drawn: dict[bool, list[Value]] = {True: [], False: []}
    for number in range(80):
        trial = journal.ask()
        network = suggest(trial, "network", ["cheap", "poor", "good"])
        suggest(trial, f"{network}.width", range(1, 9))
        drawn[seeks_front(number)].append(network)
        accuracy, cost = {"cheap": (0.7, 0.5), "poor": (0.5, 0.7), "good": (0.9, 0.9)}[network]
        seen = number > 40 and network == "good"
        journal.tell(trial, "over" if seen else "done", None if seen else (accuracy, cost))
    assert len(drawn[True]) == 20
    assert "cheap" in drawn[True][10:]
    assert drawn[False][30:].count("good") >= 24
    told = [trial.outcome for trial in Journal(tmp_path, 1, "tpe").trials()]
    assert told.count("done") + told.count("over") == 80


def test_what_was_the_same_in_all_trials_has_no_importance(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1, "tpe")
    for number in range(20):
        trial = journal.ask({"network": ["poor", "good"][number % 2], "lr": 0.04})
        network = suggest(trial, "network", ["poor", "good"])
        suggest(trial, "lr", (0.01, 0.15))
        accuracy = {"poor": 0.5, "good": 0.9}[str(network)]
        journal.keep(trial, drawn=trial.params, reached={"1": accuracy}, seconds=1.0)
        journal.tell(trial, "stopped", (accuracy, 0.5))
    assert importance_of(journal) == {"network": 1.0}


def test_an_image_of_several_folds_counts_once(
    few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = found[0]
    stored, space = open_search(out, few_digits)
    journal = Journal(out, stored.seed, stored.strategy)
    search = Search(out, stored, space, few_digits, journal, Clock(out), SearchListener())
    parts = [hold_out(few_digits, stored.val_fraction, seed)[1] for seed in range(stored.folds)]
    assert stored.folds > 1
    assert search.num_validation == len(np.unique(np.concatenate([part.ids for part in parts])))
    for part, indices in zip(parts, search.held_out, strict=True):
        assert torch.equal(part.images, few_digits.train.images[torch.from_numpy(indices)])
    # The first image of the first fold is answered rightly wherever it is, and no other one.
    first = search.held_out[0][0]
    right = np.concatenate([indices == first for indices in search.held_out])
    times = by_image(right, search.held_out)
    assert times[first] == right.sum() == times.sum()
    # Without folds, each image of the validation part is one.
    assert by_image(np.array([True, False]), []).tolist() == [1, 0]


def queue(out: Path, stored: Stored, count: int) -> Journal:
    """Leave just so many trials unfinished, none of which has begun; return the journal."""
    journal = Journal(out, stored.seed, stored.strategy)
    for left in [trial for trial in journal.trials() if trial.outcome == "running"]:
        if left.accuracy is None:
            journal.tell(journal.open(left.number), "over", None)
        else:
            journal.tell(journal.open(left.number), "stopped", (left.accuracy, 0.5))
    done = next(trial for trial in journal.trials() if trial.outcome == "done" and trial.config)
    assert done.config is not None
    for _ in range(count):
        live = journal.ask(None)
        journal.keep(live, drawn=done.drawn, costs=done.costs, config=done.config.to_dict())
    return journal


def test_what_was_left_unfinished_goes_on_as_far_as_the_time_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits, tiny: str,
    found: tuple[Path, Any, list[Trial]],
) -> None:  # fmt: skip
    out = shutil.copytree(found[0], tmp_path / "out")
    stored, space = open_search(out, few_digits)
    journal, clock = queue(out, stored, 5), Clock(out)
    monkeypatch.setattr(clock, "spent", lambda: 100.0)  # however slow this machine is

    def taken_up(runs: float, workers: int) -> int:
        search = Search(out, stored, space, few_digits, journal, clock, SearchListener(), workers)
        lanes = Lanes(
            few_digits, 1, None, search.run_folders, clock, SearchListener(), search.count_try
        )
        engine = _Engine(search, lanes)
        assert stored.plan is not None
        seconds = clock.spent() + runs * engine._seconds_of_run() + 1e-3
        search.stored = replace(stored, plan=replace(stored.plan, search_seconds=seconds))
        engine.go_on()
        return len(lanes.waiting)

    assert [taken_up(runs, 1) for runs in (0.5, 1.5, 2.5, 9)] == [0, 1, 2, 5]
    assert [taken_up(runs, 2) for runs in (0.5, 1.5, 2.5, 9)] == [0, 2, 4, 5]
    search = Search(out, stored, space, few_digits, journal, clock, SearchListener())
    for outcome, told in ((None, False), (found[1], True)):
        write_page(search, outcome)  # while it runs, they may be under way
        page = (out / "search.html").read_text()
        assert ("Trials without time to end" in page) == told


def test_one_seed_is_no_plural_on_the_page(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = shutil.copytree(found[0], tmp_path / "out")
    stored, space = open_search(out, few_digits)
    journal = Journal(out, stored.seed, stored.strategy)
    for seeds, told in ((1, "cnn, 1 seed each."), (5, "cnn, 5 seeds each.")):
        final = Final(found[1].winner.number, "final-1", seeds, (("cnn", BUDGET),), 9)
        changed = replace(stored, final=final)
        write_page(Search(out, changed, space, few_digits, journal, Clock(out), SearchListener()))
        assert told in (out / "search.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("seconds_of")
def test_a_random_search_begins_with_nothing_chosen_and_stops_nothing(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    _, trials = searched(tmp_path / "out", few_digits, seconds=100.0, strategy="random")
    chosen = {d.name: d.first() for d in open_search(tmp_path / "out", few_digits)[1].dimensions}
    trained = [t for t in trials if t.was_trained and t.config is not None]
    assert len(trained) > 3
    assert all(t.config.lr != chosen["lr"] for t in trained)
    assert all(set(t.reached) == {t.config.epochs} for t in trained)
    assert not [t for t in trials if t.outcome == "stopped"]


@pytest.mark.slow
def test_given_time_a_search_goes_on(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    trials, out = found[2], shutil.copytree(found[0], tmp_path / "out")
    stored, space = open_search(out, few_digits)
    start(out, few_digits, with_time(out, stored, 4), space)
    more = read_trials(out)
    assert [t.number for t in more] == list(range(len(more)))
    for before, after in zip(trials, more, strict=False):
        if before.outcome in ("stopped", "running"):  # these may go on
            assert after.reached.items() >= before.reached.items()
        else:
            assert replace(after, repeated=()) == replace(before, repeated=())  # may come again


@pytest.mark.slow
@pytest.mark.usefixtures("seconds_of")
def test_failures_are_listed_and_never_fatal(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    text = TINY.replace(
        "        return self.body(x)",
        "        if self.training and self.body[1].weight.shape[0] > 8 and len(x) > 20:\n"
        "            raise MemoryError('no room')\n"
        "        return self.body(x)",
    )
    (tmp_path / "tiny.py").write_text(text)
    outcome, trials = searched(
        tmp_path / "out", few_digits, seconds=100.0, limits=Limits(params=10_000)
    )
    failed = [t for t in trials if t.outcome == "failed"]
    assert failed
    assert all("no room" in t.error for t in failed)
    assert "no room" in (tmp_path / "out" / "search.html").read_text()
    assert outcome.winner.outcome == "done"


@pytest.mark.slow
def test_a_journal_with_a_torn_line_is_read(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    _, trials = searched(tmp_path / "out", few_digits)
    with (tmp_path / "out" / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    (tmp_path / "out" / f"{JOURNAL}.lock").symlink_to("journal.log")
    _, again = searched(tmp_path / "out", few_digits)
    assert again == trials
    content = (tmp_path / "out" / JOURNAL).read_bytes()
    (tmp_path / "out" / JOURNAL).write_bytes(b"{}\n" + content)
    with pytest.raises(ValueError, match=r"journal\.log is damaged"):
        searched(tmp_path / "out", few_digits)


SEARCH = ("search", "--data", "pictures", "--space", "tiny.py:SPACE", "--params", "700",
          "--no-compare", "--out", "out")  # fmt: skip


def begun(tmp_path: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "halfmeg", *SEARCH, *more]
    return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 6])
def test_a_killed_search_goes_on_and_neither_repeats_nor_loses_a_trial(
    kills: int, tmp_path: Path, tiny: str, pictures: Path, process: Cli
) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    hours = ("--hours", str((8 + 4 * kills) / 3600))
    done: dict[str, Any] = {}
    generator = random.Random(kills)
    for _ in range(kills):
        running = begun(tmp_path, *hours)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").glob("trials/*/metrics.csv")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(generator.uniform(0, 4))
        running.send_signal(signal.SIGKILL)
        running.wait()
        before = done
        done = finished_trials(tmp_path / "out")
        assert {n: done[n] for n in before} == before
    outcome = process(*SEARCH, *hours, "--json")
    assert outcome.code == 0, outcome.err
    after = finished_trials(tmp_path / "out")
    assert {n: after[n] for n in done} == done
    trials = read_trials(tmp_path / "out")
    configs = [t.config for t in trials if t.was_trained and t.repeats is None]
    assert len(set(configs)) == len(configs)
    again = [t.repeats for t in trials if t.repeats is not None]  # once, with another seed
    assert len(set(again)) == len(again)
    for trial in trials:
        if trial.outcome == "done":
            metrics = Run.open(tmp_path / "out" / "trials" / f"{trial.number:04}").read_metrics()
            assert [row["epoch"] for row in metrics] == list(range(1, trial.epochs + 1))
    assert (best := best_of(trials)) is not None
    assert outcome.json["val_accuracy"] == best.accuracy


def finished_trials(folder: Path) -> dict[str, Any]:
    """Return the metrics, as text, of the trials that the journal has as done."""
    trials = read_trials(folder)
    return {
        str(t.number): (folder / "trials" / f"{t.number:04}" / "metrics.csv").read_text()
        for t in trials
        if t.outcome == "done"
    }


@pytest.mark.slow
def test_ctrl_c_stops_a_search_with_one_line(tmp_path: Path, tiny: str, pictures: Path) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    long = "SPACE = {'network': {'tiny.py:Tiny': {}}, 'epochs': 1000}"
    (tmp_path / "long.py").write_text(long)
    command = [sys.executable, "-m", "halfmeg", *SEARCH, "--space", "long.py:SPACE", "--json"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("trials/*/metrics.csv")):
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.strip().splitlines()[-1] == "halfmeg: stopped; `halfmeg search --resume out` goes on"
    assert json.loads((tmp_path / "out" / "clock.json").read_text())["ended"]
    assert "No trial has come to its end yet" in (tmp_path / "out" / "search.html").read_text()


@pytest.mark.slow
def test_a_killed_worker_costs_nothing(tmp_path: Path, tiny: str, pictures: Path) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    running = begun(tmp_path, "--workers", "2", "--hours", str(40 / 3600))
    while not list((tmp_path / "out").glob("trials/*/metrics.csv")):
        time.sleep(0.05)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    workers = [
        pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(int(workers[0]), signal.SIGKILL)
    assert running.wait(timeout=240) == 0
    trials = read_trials(tmp_path / "out")
    assert not [t for t in trials if t.outcome == "failed"]
    assert [t for t in trials if t.outcome == "done"]


@pytest.mark.slow
def test_a_trial_for_workers_that_were_killed_meanwhile_is_trained_by_others(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    space = build_space(SPACE, [tiny], ["epochs=2"])
    drawn = space.scaled(tiny, 0)
    config = space.config(drawn, most_epochs=2, side=32, val_fraction=0.2)
    trials = [Trial(number, drawn, "running", config) for number in range(2)]
    with Lanes(
        few_digits, 2, None, lambda number: [tmp_path / f"{number}"], Clock(tmp_path),
        SearchListener(), lambda _: None,
    ) as lanes:  # fmt: skip
        lanes.submit(trials[0], 2, 60.0)
        for process in multiprocessing.active_children():
            process.kill()
            process.join()
        (first,) = lanes.waiting
        assert isinstance(first.exception(60), BrokenProcessPool)
        lanes.submit(trials[1], 2, 60.0)
        found = {}
        while lanes.are_busy:
            found.update(lanes.wait())
    assert {number: (r.epochs, r.error) for number, r in found.items()} == {
        0: (2, None), 1: (2, None),
    }  # fmt: skip


@pytest.mark.slow
def test_sigterm_ends_a_search_of_many_workers_in_order(
    tmp_path: Path, tiny: str, pictures: Path
) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    command = [sys.executable, "-m", "halfmeg", *SEARCH, "--workers", "2", "--hours", "0.02"]
    running = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob("trials/*/metrics.csv")):
        time.sleep(0.05)
    running.terminate()
    _, told = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM
    assert told.splitlines()[-1] == "halfmeg: stopped; `halfmeg search --resume out` goes on"
    assert (tmp_path / "out" / "search.html").exists()
    assert json.loads((tmp_path / "out" / "clock.json").read_text())["ended"] > 0


BYSTANDER = """
import os, signal, time
from torch import nn

class Killer(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.steps = 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            time.sleep(0.5)
            if self.steps > 4:  # the epoch before its first checkpoint has seven
                os.kill(os.getpid(), signal.SIGKILL)
        return self.head(x.mean((2, 3)))

class Bystander(Killer):
    def forward(self, x):
        time.sleep(0.1 * self.training)
        return self.head(x.mean((2, 3)))
"""


@pytest.mark.slow
def test_a_trial_beside_one_that_kills_its_process_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    (tmp_path / "kill.py").write_text(BYSTANDER)
    monkeypatch.chdir(tmp_path)
    common = {"batch_size": 24, "val_fraction": 0.2, "keep_checkpoints": 1}
    trials = [
        Trial(number, {}, "running", RunConfig(model=f"kill.py:{name}", epochs=epochs, **common))
        for number, (name, epochs) in enumerate([("Killer", 2), ("Bystander", 40)])
    ]
    begun, found = Counter(), {}
    with Lanes(
        few_digits, 2, None, lambda number: [tmp_path / f"{number}"], Clock(tmp_path),
        SearchListener(), lambda trial: begun.update([trial.number]),
    ) as lanes:  # fmt: skip
        for trial in trials:
            lanes.submit(trial, trial.config.epochs, 1e3)
        while lanes.are_busy:
            found.update(lanes.wait())
    assert found[0].error == KILLED
    assert begun[0] == 3  # so a search of many workers that is killed counts them, too
    assert (found[1].epochs, found[1].error) == (40, None)


def test_the_seconds_of_a_call_that_was_interrupted_count(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    class Stop(Listener):
        def on_epoch(self, row: Any) -> None:
            if row["epoch"] == 3:
                raise KeyboardInterrupt

    config = RunConfig(model="logistic", epochs=4, batch_size=32, val_fraction=0.2)
    folder = tmp_path / "run"
    with pytest.raises((KeyboardInterrupt, TrainingInterruptedError)):
        train_folds(few_digits, [config], [folder], 4, listener=lambda _: Stop())
    before = Run.open(folder).read_metrics()[-1]["seconds"]
    found = train_folds(few_digits, [config], [folder], 4)
    assert found.epochs == 4
    assert found.in_all == Run.open(folder).read_metrics()[-1]["seconds"] > before > 0


def test_what_was_queued_when_a_process_was_killed_is_not_drawn_as_the_next(
    tmp_path: Path,
) -> None:
    Journal(tmp_path, 1, "tpe").study.enqueue_trial({"network": "a", "width": 8})
    journal = Journal(tmp_path, 1, "tpe")
    assert [(t.outcome, t.error) for t in journal.trials()] == [
        ("over", "it was interrupted before it began")
    ]
    live = journal.ask({"network": "b", "width": 16})
    assert live.number == 1
    assert suggest(live, "network", ["a", "b"]) == "b"
    assert suggest(live, "width", range(8, 65, 8)) == 16


def test_a_network_half_trained_is_ended_when_the_time_is_over_and_none_is_done(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    stored, space = describe_search(
        few_digits, seconds=6.0, limits=Limits(params=700), place="tiny.py:SPACE", compare=False
    )
    stored = replace(stored, plan=make_plan(6.0, 0.1, []))
    journal, clock = Journal(tmp_path, stored.seed, stored.strategy), Clock(tmp_path)
    drawn = next(d for d in (space.draw(lambda _, values: values[0]),))
    config = space.config(drawn, most_epochs=4, side=32, val_fraction=0.2)
    for outcome in ("failed", None):
        live = journal.ask(None)
        journal.keep(live, drawn=drawn, config=config.to_dict())
        if outcome:
            journal.tell(live, outcome, None, "it diverged")
    clock.spent = lambda: 1e6
    search = Search(tmp_path, stored, space, few_digits, journal, clock, SearchListener(), 2)
    lanes = Lanes(
        few_digits, 1, None, search.run_folders, clock, SearchListener(), search.count_try
    )
    engine = _Engine(search, lanes)
    engine.live[1] = journal.open(1)  # left for more time, when the other was still under way
    assert engine.begin()
    assert [trial.number for trial, *_ in lanes.waiting.values()] == [1]


def test_a_search_gives_up_only_when_nothing_is_under_way_any_more(
    tmp_path: Path, few_digits: DataSplits, tiny: str
) -> None:
    stored, space = describe_search(
        few_digits, limits=Limits(params=700), seconds=3600, place="tiny.py:SPACE", compare=False
    )
    stored = replace(stored, plan=make_plan(3600, 1.0, []))
    journal, clock = Journal(tmp_path, 0, "tpe"), Clock(tmp_path)
    search = Search(tmp_path, stored, space, few_digits, journal, clock, SearchListener(), 24)
    lanes = Lanes(
        few_digits, 1, None, search.run_folders, clock, SearchListener(), search.count_try
    )
    engine = _Engine(search, lanes)
    for _ in range(MOST_FAILURES + 1):
        assert engine.begin()
    *failing, healthy = lanes.waiting
    for future in failing:
        number = lanes.waiting.pop(future)[0].number
        engine.look(number, Reached(0, None, 1.0, "the loss became nan"))
    assert not engine.begin()  # but waits
    number = lanes.waiting.pop(healthy)[0].number
    engine.look(number, Reached(0, None, 1.0, "the loss became inf"))
    with pytest.raises(ValueError, match="all 21 trials failed; the last: the loss became inf"):
        engine.begin()


RAISES_LATE = """
import torch
from torch import nn

class Late(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        if self.training and len(x) == 32:
            self.steps += 1
            if self.steps > 20:
                raise RuntimeError("it has seen enough")
        return self.head(x.mean((2, 3)))

SPACE = {
    "network": {"late.py:Late": {}}, "optimizer": "adamw", "lr": 0.01, "epochs": 30,
    "batch_size": 32,
}
"""


def test_the_failure_of_the_only_candidate_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    (tmp_path / "late.py").write_text(RAISES_LATE)
    monkeypatch.chdir(tmp_path)
    stored, space = describe_search(
        few_digits, limits=Limits(), seconds=20, place="late.py:SPACE", compare=False
    )
    with pytest.raises(ValueError, match=r"its trial failed: RuntimeError: it has seen enough"):
        start("out", few_digits, stored, space)


@pytest.mark.slow
def test_a_space_of_one_candidate_waits_for_the_worker_that_has_it(
    tmp_path: Path, pictures: Path, process: Cli
) -> None:
    (tmp_path / "one.py").write_text(
        "SPACE = {'network': 'logistic', 'lr': 0.01, 'epochs': 2, 'batch_size': 32}"
    )
    outcome = process(
        "search", "--space", "one.py:SPACE", "--data", str(pictures), "--no-compare", "--workers",
        "2", "--hours", str(40 / 3600), "--out", "out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    done = [trial for trial in read_trials(tmp_path / "out") if trial.outcome == "done"]
    assert [trial.number for trial in done if trial.repeats is None] == [0]


def test_of_two_baselines_of_one_name_the_former_winner_is_compared(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    limits = parse_limits(params="480k")
    stored, space = describe_search(
        few_digits, limits=limits, seconds=7200, networks=["record", "residual"]
    )
    journal = Journal(tmp_path, 0, "tpe")
    winner = "residual(width=16,stages=3,depth=3,shrink=1)"
    for model, accuracy in (("record", 0.90), (winner, 0.91)):
        live = journal.ask(None)
        config = RunConfig(model=model, epochs=10, recipe="search")
        costs = measure_costs(model, 10, few_digits.image_shape, limits)
        journal.keep(
            live, drawn={"network": model.split("(")[0]}, costs=costs, config=config.to_dict(),
            reached={"10": accuracy}, seconds=10.0,
        )  # fmt: skip
        journal.tell(live, "done", (accuracy, 0.9))
    stored = replace(stored, previous=(0,), leg=2)
    search = Search(tmp_path, stored, space, few_digits, journal, Clock(tmp_path), SearchListener())
    final = decide(search, Timed({("record", 480_001): 1.0, ("resnet8", 480_001): 1.0}))
    assert final is not None
    assert final.baselines == (("record", BUDGET), ("resnet8", 480_001))
    assert final.former == (("record", BUDGET),)


def test_baselines_are_checked_whatever_the_time_and_all_named_are_compared(
    few_digits: DataSplits,
) -> None:
    stored, _ = describe_search(few_digits, limits=Limits(), seconds=60.0, baselines=["resnt20"])
    with pytest.raises(ValueError, match="'resnt20' is not known; did you mean 'resnet20'"):
        choose_baselines(stored, few_digits)
    assert choose_baselines(replace(stored, baselines=["cnn"]), few_digits) == []
    with pytest.raises(ValueError, match="--baseline cnn is not for a search with --no-compare"):
        choose_baselines(replace(stored, baselines=["cnn"], compare=False), few_digits)
    assert fit_final(1e9, 1, [1, 1, 1, 1]) == (5, 4)
    assert fit_final(16, 1, [1, 1, 1, 1]) == (5, 2)


def test_a_range_that_falls_is_one_that_rises() -> None:
    space = build_space({"network": {"residual": {"width": range(40, 3, -4)}}})
    (width,) = [d for d in space.dimensions if d.name == "residual.width"]
    assert width.values == range(4, 41, 4)


def test_epochs_behind_another_setting_make_candidates_differ(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    table = {"network": "cnn", "optimizer": {"muon": {"epochs": [1.0, 0.5]}}}
    space = build_space(table)
    stored, _ = describe_search(few_digits, limits=Limits(), seconds=6.0)
    journal = Journal(tmp_path, 0, "tpe")
    search = Search(
        tmp_path, stored, space, few_digits, journal, Clock(tmp_path), SearchListener()
    )  # fmt: skip
    drawn = [space.draw(lambda _, values, i=i: values[min(i, len(values) - 1)]) for i in (0, 1)]
    assert [search.epochs_of(one) for one in drawn] == [1.0, 0.5]


@pytest.mark.slow
def test_a_network_that_kills_its_process_ends_no_search(
    tmp_path: Path, tiny: str, pictures: Path
) -> None:
    networks = {"killer.py:Killer": {}, "tiny.py:Tiny": {}}
    space = {"network": networks, "epochs": 2, "batch_size": 8}
    (tmp_path / "killer.py").write_text(f"{KILLER}\nSPACE = {space}")
    (tmp_path / "pictures").symlink_to(pictures)
    command = [sys.executable, "-m", "halfmeg", "search", "--space", "killer.py:SPACE",
               "--data", "pictures", "--params", "700", "--no-compare",
               "--hours", str(40 / 3600), "--out", "out"]  # fmt: skip
    codes = [subprocess.run(command, cwd=tmp_path, check=False).returncode for _ in range(4)]
    assert codes == [-signal.SIGKILL] * 3 + [0]
    given_up = [trial for trial in read_trials(tmp_path / "out") if trial.outcome == "failed"]
    assert given_up[0].drawn["network"] == "killer.py:Killer"
    assert "killed (out of memory?)" in given_up[0].error
    assert "killed (out of memory?)" in (tmp_path / "out" / "search.html").read_text()


def test_a_baseline_of_one_size_is_compared_without_smaller_images(few_digits) -> None:
    winner = RunConfig(model="resnet20", epochs=2, small_size=24, first_size=16, val_fraction=0.2)
    final = Final(0, "final-1", 2, (("cnn", 500_000), ("resnet8", 500_000)), 9)
    configs = list(_configs(winner, final, few_digits))
    assert [(c.model, c.small_size, c.seed) for c in configs] == [
        (model, size, seed)
        for seed in (0, 1)
        for model, size in (("resnet20", 24), ("cnn", 0), ("resnet8", 24))
    ]
    assert [c.first_size for c in configs] == [16, 0, 16] * 2


@pytest.mark.slow
def test_the_winner_is_compared_with_baselines_and_shipped(
    tmp_path: Path, tiny: str, pictures: Path, cli: Cli
) -> None:
    outcome = cli(
        "search", tiny, "epochs=2", "batch_size=32", "--data", str(pictures), "--ram", "40k",
        "--params", "60k", "--hours", str(150 / 3600), "--baseline", "logistic",
        "--baseline", "cnn", "--out", "out", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = outcome.json
    compared = {m["name"] for m in found["comparison"]["models"]}
    diverged = {name.partition("-seed")[0] for name in found["comparison"]["failures"]}
    short = {name for name, why in found["failures"].items() if why == SHORT}
    assert "logistic" in compared
    # On the winner's recipe it may diverge, and on a slow machine there is no time for it.
    assert "cnn" in compared | diverged | short
    assert len(found["verdicts"]) == len(compared) - 1 > 0
    for path in (tmp_path / "out" / "final-1").glob("*-seed-*"):
        run = Run.open(path)
        # One that diverged has read nothing.
        assert run.test_readings() == (["final evaluation"] if run.result() else [])
        is_winner = run.config.model.startswith("tiny.py:Tiny(")
        assert (run.config.tuning_trials > 0) == is_winner  # the trials were its own
    assert (tmp_path / "out" / "final-1" / "comparison.html").exists()
    shipped = cli("export", "out", "--out", "mine", "--allow-loss", "--pick", "ram=40k", "--json")
    assert shipped.code == 0, shipped.err
    assert shipped.json["model"].startswith("tiny.py:Tiny(")


@pytest.mark.slow
def test_where_too_few_networks_fit_the_largest_of_the_space_are_compared(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    limits = Limits(params=20_000, ram=6_000)
    stored, space = describe_search(
        few_digits, limits=limits, seconds=300, networks=["residual", "mobile"]
    )
    assert choose_baselines(stored, few_digits) == []
    journal = Journal(tmp_path, stored.seed, stored.strategy)
    search = Search(tmp_path, stored, space, few_digits, journal, Clock(tmp_path), SearchListener())
    filled = fill_up(search, [("mlp", 9_000)])
    assert filled[0] == ("mlp", 9_000)
    widest = [space.model(drawn) for drawn in search.starts()]
    assert filled[1:] == [(model, BUDGET) for model in widest[:2]]
    for model, budget in filled[1:]:
        costs = measure_costs(model, 10, few_digits.image_shape, limits, budget=budget)
        assert limits.fits(costs)
    for given in ({"baselines": []}, {"compare": False}, {"seconds": 60.0}):
        search.stored = replace(stored, **given)
        assert fill_up(search, []) == []


def test_a_named_network_over_a_limit_of_ram_keeps_that_of_flash(few_digits: DataSplits) -> None:
    limits = Limits(flash=30_000, ram=6_000)
    described = describe_search(
        few_digits, limits=limits, seconds=300, baselines=["record", "resnet8"]
    )
    (name, budget), other = choose_baselines(described[0], few_digits)
    assert (name, other) == ("record", ("resnet8", BUDGET))
    costs = measure_costs(name, 10, few_digits.image_shape, limits, budget=budget)
    assert 20_000 < costs.flash <= 30_000 and costs.ram > 6_000


KILLER = '''
import os
import signal
from torch import nn

class Killer(nn.Module):
    """Ends its process, as where memory is short, beyond the steps that are timed."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(3, num_classes), 0

    def forward(self, x):
        if self.training:
            self.steps += 1
            if self.steps > 15:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.head(x.mean((2, 3)))
'''

BUSY = '''
import time
from torch import nn

class Busy(nn.Module):
    """Takes 50 ms for most images, as where other programs run."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.calls = nn.Linear(3, num_classes), 0

    def forward(self, x):
        if not self.training:
            self.calls += 1
            time.sleep(0.05 if self.calls % 4 else 0)
        return self.head(x.mean((2, 3)))
'''


def test_a_latency_is_that_of_a_machine_with_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    monkeypatch.chdir(tmp_path)
    costs = measure_costs("busy.py:Busy", 10, SHAPE, Limits(latency=1e3), whole=True)
    assert costs.latency is not None
    assert costs.latency < 25


NAN = '''
import torch
from torch import nn

class Nan(nn.Module):
    """Diverges at once, or after so many steps."""

    def __init__(self, num_classes: int, late: int = 0) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)
        self.register_buffer("left", torch.tensor(late))

    def forward(self, x):
        logits = self.head(x.mean((2, 3)))
        if not self.training:
            return logits
        self.left -= 1
        return logits if self.left > 0 else logits * float("nan")
'''


NAP = '''
import time
from torch import nn

class Nap(nn.Module):
    """Is slow in steps 5 to 8, as where another program runs for a moment."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head, self.steps = nn.Linear(3, num_classes), 0

    def forward(self, x):
        self.steps += self.training
        time.sleep(0.3 * (self.training and 5 <= self.steps <= 8))
        return self.head(x.mean((2, 3)))
'''


def test_what_else_runs_for_a_moment_does_not_make_a_network_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    (tmp_path / "nap.py").write_text(NAP)
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    seconds = time_epoch(RunConfig(model="nap.py:Nap", epochs=1, batch_size=32), few_digits, 0)
    assert time.monotonic() - started > 1.2  # the moment was within it
    assert seconds < 1


@pytest.mark.slow
def test_a_run_is_too_slow_by_the_fastest_that_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    slow = NAP.replace("0.3 * (self.training and 5 <= self.steps <= 8)", "0.11 * self.training")
    (tmp_path / "slow.py").write_text(slow)
    paused = slow.replace("0.11 * self", "(4.0 if self.steps == 6 else 0.11) * self")
    (tmp_path / "paused.py").write_text(paused)
    monkeypatch.chdir(tmp_path)
    num_steps = 16
    config = RunConfig(
        model="paused.py:Nap", epochs=1, batch_size=len(few_digits.train) // num_steps
    )
    started = time.monotonic()
    whole = train_until(config, tmp_path / "paused", 1, few_digits, most_seconds=4.0)
    assert (whole.epochs, whole.error) == (1, None)
    assert time.monotonic() - started > 4.0
    config = replace(config, model="slow.py:Nap")
    told = train_until(config, tmp_path / "slow", 1, few_digits, most_seconds=0.5)
    assert told.epochs == 0
    assert (told.error or "").startswith("too slow: ")


def test_epochs_of_small_images_are_timed_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    slow = NAP.replace("0.3 * (self.training and 5 <= self.steps <= 8)", "0.1 * self.training")
    (tmp_path / "even.py").write_text(slow)
    monkeypatch.chdir(tmp_path)
    config = RunConfig(
        model="even.py:Nap", epochs=2, batch_size=32, schedule="step", milestones=(1,)
    )
    whole = time_epoch(config, few_digits, 0)
    small = time_epoch(replace(config, small_size=16, small_share=0.5), few_digits, 0)
    assert small / whole == pytest.approx((1 / 4 + 1) / 2, rel=0.1)


WIDE = """
from typing import Annotated
from torch import nn

class Wide(nn.Module):
    def __init__(self, num_classes: int, width: Annotated[int, range(2, 65, 2)] = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.layers(x.mean((2, 3)))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("seconds_of")
def test_what_is_drawn_comes_in_the_limits_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    (tmp_path / "own.py").write_text(WIDE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("halfmeg.search.trials.DRAWN_SHARE", 1.0)
    widest = 20  # 14 parameters for each, and ten biases
    stored, space = describe_search(
        few_digits, limits=Limits(params=14 * widest + 20), seconds=60.0, compare=False,
        networks=["own.py:Wide"], settings=["batch_size=32", "epochs=1"],
    )  # fmt: skip
    start("out", few_digits, stored, space)
    trials = read_trials(Path("out"))
    others = [t for t in trials if "again" in t.error]
    assert others
    for other in others[:-1]:
        own = [t for t in trials if t.repeats is None]
        (again,) = [t for t in own if t.drawn == other.drawn | {"own.py:Wide.width": widest}]
        assert again.number > other.number
        assert again.config is not None
    trained = [t for t in own if t.config is not None and not seeks_front(t.number)]
    assert {t.drawn["own.py:Wide.width"] for t in trained} == {widest}


SLOW_AND_FAST = """
import time
from torch import nn

class Fast(nn.Module):
    pause = 0.0

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        time.sleep(self.pause * self.training)
        return self.head(x.mean((2, 3)))

class Slow(Fast):
    pause = 0.1
"""


@pytest.mark.slow
def test_trials_have_as_many_epochs_as_fit_the_time_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits
) -> None:
    (tmp_path / "own.py").write_text(SLOW_AND_FAST)
    monkeypatch.chdir(tmp_path)
    stored, space = describe_search(
        few_digits, limits=Limits(params=1000), seconds=20.0, compare=False,
        networks=["own.py:Slow", "own.py:Fast"], settings=["batch_size=32"],
    )  # fmt: skip
    start("out", few_digits, stored, space)
    plan = read_stored(Path("out")).plan
    assert plan is not None
    epochs: dict[str, list[int]] = {"own.py:Slow": [], "own.py:Fast": []}
    for trial in read_trials(Path("out")):
        if trial.config is not None:
            epochs[trial.config.model].append(trial.config.epochs)
            assert trial.seconds < 2 * plan.run_seconds
    assert 2 * max(epochs["own.py:Slow"]) < min(epochs["own.py:Fast"]) <= 200


@pytest.mark.slow
def test_what_fails_in_the_last_comparison_is_listed(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    (tmp_path / "nan.py").write_text(NAN)
    out = shutil.copytree(found[0], tmp_path / "out")
    stored = replace(read_stored(out), seconds=1e4, compare=True, final=None)
    space = open_search(out, few_digits)[1]
    journal = Journal(out, stored.seed, stored.strategy)
    search = Search(out, stored, space, few_digits, journal, Clock(out), SearchListener())
    done = [trial for trial in found[2] if trial.outcome == "done" and trial.config]
    longest = max(done, key=lambda trial: trial.config.epochs if trial.config else 0)
    config = longest.config
    assert config is not None
    last = config.epochs * max(1, int(0.8 * len(few_digits.train)) // config.batch_size)
    late = f"nan.py:Nan(late={last})"  # beyond the few steps that are timed
    baselines = [("nan.py:Nan", BUDGET), (late, BUDGET), ("logistic", BUDGET)]
    timed = Timed.of(baselines, config, few_digits, 0)
    assert list(timed.failures) == ["nan.py:Nan"]
    paced = timed.at_pace_of(search)
    assert paced.seconds.keys() == timed.seconds.keys()
    final = decide(search, paced)
    assert final is not None
    final = replace(final, trial=longest.number)
    assert (final.seeds, len(final.baselines)) == (5, 2)
    write_page(search)
    assert "The last comparison is under way" in (out / "search.html").read_text()
    outcome = finish(search, final)
    assert outcome.no_verdict == ""
    assert len(outcome.verdicts) == 1
    assert len(outcome.failures) == 1 + 5
    at_once, *late = outcome.failures.values()
    assert "not finite" in at_once
    assert all("the loss became nan" in error for error in late)
    write_page(search, outcome)
    page = (out / "search.html").read_text()
    assert "Last comparison, nan.py:Nan: " in page
    assert not outcome.seen_before
    assert "read before" not in page
    (out / final.folder).rename(out / "final-1")
    search.stored = replace(search.stored, leg=2)
    again = finish(search, replace(final, folder="final-2"))
    assert again.seen_before.startswith("the test images were read before, by final-1: ")
    write_page(search, again)
    assert "The test images were read before, by final-1: " in (out / "search.html").read_text()
    alone = finish(search, replace(final, folder="alone", baselines=final.baselines[:1]))
    assert alone.no_verdict == "every other network failed"


def test_a_winner_that_shares_no_seed_with_another_is_told(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    def train(model: str, seed: int) -> RunConfig:
        return small_config(model=model, seed=seed, epochs=1)

    runs = [train("mlp", 0), train("logistic", 1), train("cnn", 1)]
    study = run_study(runs, few_digits, tmp_path / "final-1")
    failed = dict.fromkeys(("mlp-seed-1", "logistic-seed-0", "cnn-seed-0"), "the loss became nan")
    winner = Trial(0, {}, "done", runs[0])
    for count, num_pairs in ((3, 1), (2, 0)):
        part = replace(study, runs=study.runs[:count], failures=failed)
        outcome = _outcome(tmp_path, few_digits, winner, part, {})
        assert outcome.no_verdict == "no network shares a seed with the winner"
        assert outcome.comparison is not None
        assert len(outcome.comparison.pairs) == num_pairs
        assert outcome.failures == failed


def engine_of(out: Path, data: DataSplits, clock: Clock) -> tuple[_Engine, Lanes]:
    stored, space = open_search(out, data)
    journal = Journal(out, stored.seed, stored.strategy)
    assert stored.plan is not None
    stored = replace(stored, plan=replace(stored.plan, search_seconds=1e6))
    search = Search(out, stored, space, data, journal, clock, SearchListener())
    lanes = Lanes(data, 1, None, search.run_folders, clock, SearchListener(), search.count_try)
    return _Engine(search, lanes), lanes


def test_what_kills_its_process_again_and_again_is_given_up(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = shutil.copytree(found[0], tmp_path / "out")
    Clock(out).save(ended=True)
    queue(out, read_stored(out), 2)

    def start_again(*, killed: bool) -> list[int]:
        """Begin the first of the trials that wait; return which did."""
        engine, lanes = engine_of(out, few_digits, Clock(out))
        engine.go_on()
        waiting = [asked[0] for asked in lanes.waiting.values()]
        engine.search.count_try(waiting[0])  # it never comes to the end of an epoch
        engine.search.clock.save(ended=not killed)
        return [trial.number for trial in waiting]

    first, second = start_again(killed=True)
    assert start_again(killed=False) == [first, second]
    for _ in range(3):  # an end in order begins the count anew
        assert start_again(killed=True) == [first, second]
    assert start_again(killed=True) == [second]
    given_up = read_trials(out)[first]
    assert given_up.outcome == "failed"
    assert "killed (out of memory?)" in given_up.error
    assert read_trials(out)[second].outcome == "running"


def test_a_search_that_another_process_goes_on_with_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_digits: DataSplits, tiny: str,
    found: tuple[Path, Any, list[Trial]],
) -> None:  # fmt: skip
    out = shutil.copytree(found[0], tmp_path / "out")
    stored, space = open_search(out, few_digits)

    def meanwhile(*_: object) -> list[Any]:
        write_stored(out, replace(stored, leg=7))
        return []

    monkeypatch.setattr("halfmeg.search.run.choose_baselines", meanwhile)
    with pytest.raises(ValueError, match="another process has searched"):
        start(out, few_digits, stored, space)
    assert read_stored(out).leg == 7


@pytest.mark.slow
def test_what_cannot_be_built_is_listed(tmp_path: Path, few_digits: DataSplits, tiny: str) -> None:
    space = "SPACE = {'network': {'tiny.py:Tiny': {'width': [4, 'wide']}}, 'epochs': 1}\n"
    (tmp_path / "wide.py").write_text(space)
    searched(tmp_path / "out", few_digits, seconds=60, place="wide.py:SPACE")
    page = (tmp_path / "out" / "search.html").read_text()
    assert "could not be built: " in page


def test_the_winner_ends_the_front_and_what_is_picked_is_on_it() -> None:
    def trial(number: int, params: int, accuracy: float, *repeated: float) -> Trial:
        return Trial(
            number, {}, "done", costs=Costs(params, 1), reached={9: accuracy}, repeated=repeated
        )

    trials = [
        trial(0, 300, 0.90, 0.80), trial(1, 100, 0.87), trial(2, 400, 0.88, 0.86),
        trial(3, 200, 0.89, 0.80), trial(4, 50_000, 0.5),
    ]  # fmt: skip
    points = front(trials, "params")
    assert points[-1].trial == best_of(trials)
    for limit in (100, 200, 300, 400, 60_000):
        picked = pick(trials, f"params={limit}")
        assert picked == [p.trial for p in points if p.cost <= limit][-1]
    with pytest.raises(ValueError, match="the smallest needs 100 parameters"):
        pick(trials, "params=99")


def test_a_latency_is_measured_once(
    few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = found[0]
    stored, space = open_search(out, few_digits)
    stored = replace(stored, limits=Limits(latency=1e3))
    journal = Journal(out, stored.seed, stored.strategy)
    search = Search(out, stored, space, few_digits, journal, Clock(out), SearchListener())
    costs = search.costs("tiny.py:Tiny")
    assert costs.latency is not None
    assert search.costs("tiny.py:Tiny", whole=True).latency == costs.latency


def test_a_learning_curve_has_each_epoch(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = shutil.copytree(found[0], tmp_path / "out")
    stored, space = open_search(out, few_digits)
    journal = Journal(out, stored.seed, stored.strategy)
    search = Search(out, stored, space, few_digits, journal, Clock(out), SearchListener())
    for trial in (t for t in found[2] if t.was_trained):
        curve = learning_curve(search, trial)
        assert list(curve) == list(range(1, trial.epochs + 1))
        assert curve[trial.epochs] == pytest.approx(trial.first_accuracy, abs=1e-4)
    (out / "trials" / f"{trial.number:04}" / "metrics.csv").write_text("damaged")
    assert learning_curve(search, trial) == trial.reached


def test_why_nothing_was_compared_stays_the_reason(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    (tmp_path / "nan.py").write_text(NAN)
    out = shutil.copytree(found[0], tmp_path / "out")
    stored, space = open_search(out, few_digits)
    (out / "clock.json").write_text('{"spent": 300.0}')
    stored = replace(stored, seconds=300.0, compare=True, final=None)
    journal = Journal(out, stored.seed, stored.strategy)
    search = Search(out, stored, space, few_digits, journal, Clock(out), SearchListener())
    baselines = [("nan.py:Nan", BUDGET), ("logistic", BUDGET)]
    config = found[1].winner.config
    final = decide(search, Timed.of(baselines, config, few_digits, 0))
    assert final is not None
    assert final.seeds == 0
    for _ in range(2):
        outcome = start(out, few_digits, *open_search(out, few_digits))
        assert outcome.no_verdict == "the time that was left was too short"
        assert list(outcome.failures) == ["nan.py:Nan"]


@pytest.mark.slow
def test_what_only_reads_changes_nothing(
    tmp_path: Path, few_digits: DataSplits, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = shutil.copytree(found[0], tmp_path / "out")
    stored = replace(read_stored(out), seconds=300.0, compare=True, baselines=[str(out)])
    winner = found[1].winner
    own = (winner.config.model, winner.config.budget)
    simple = choose_baselines(replace(stored, baselines=None), few_digits)
    assert choose_baselines(stored, few_digits) == [own, *simple][:3]
    roomy = replace(stored, limits=Limits(params=100_000))
    first, *others = choose_baselines(roomy, few_digits)
    assert first == own
    assert [name for name, _ in others] == ["cnn", "record"]
    named = replace(roomy, baselines=[str(out), "logistic", "mlp", "resnet8"])
    assert len(choose_baselines(named, few_digits)) == 4
    with (out / JOURNAL).open("ab") as file:  # what another process is writing
        file.write(b'{"op_code": 4, "wor')
    before = {path: path.read_bytes() for path in out.glob("*.*")}
    assert read_trials(out) == found[2]
    with sole_writer(out), pytest.raises(ValueError, match="another process searches in"):
        start(out, few_digits, *open_search(out, few_digits))
    assert {path: path.read_bytes() for path in out.glob("*.*")} == before


# Bad input


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--params", "100"], "the smallest, mobile("),
        (["--seed", "-1"], "--seed -1 is out of range; allowed: 0 to 2,147,483,647"),
        (["--params", "0.5"], "--params 0.5 is no amount"),
        (["--baseline", "a/net.py:Net", "--baseline", "b/net.py:Net"], "are both called net-Net"),
        (["--hours", "0"], "--hours 0 is out of range"),
        (["--hours", "nan"], "--hours nan is out of range"),
        (["--hours", "inf"], "--hours inf is out of range"),
        (["--ram", "lots"], "--ram lots is no amount"),
        (["--latency", "5"], "write a number above 0 and its unit, as in 5ms"),
        (["--workers", "0"], "--workers 0 is out of range"),
        (["--space", "nowhere"], "--space nowhere is no place"),
        (["--space", "nowhere.py:S"], "nowhere.py does not exist"),
        (["--space", "wrong.py:SPACE"], "did you mean 'residual'"),
        (["--space", "wrong.py:NONE"], "a dict is expected"),
        (["--space", "wrong.py:SPAC"], "there is no 'SPAC'"),
        (["residul"], "did you mean 'residual'"),
        (["lr=fast"], "lr='fast' is not allowed"),
        (["seed=3"], "seed is not for a search; leave it out, or see --seed"),
        (["fold=2/5"], "fold=2/5 is one fold"),
        (["--params", "100_k"], "--params 100_k is no amount"),
        (["one"], "one is data; write: halfmeg search --data one"),
        (["my photos"], "my photos is no file or folder here; images are named by --data"),
        (["--baseline", "resnet21"], "did you mean 'resnet"),
        (["--out", "taken"], "taken exists and holds no search"),
        (["--resume", "taken"], "taken holds no search"),
        (["--resume", "taken", "--ram", "5k"], "leave out --ram"),
        (["--chip", "cortex-m7"], "needs --latency"),
        (["--data", "one"], "one class"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], told: str, tmp_path: Path, cli: Cli, pictures: Path
) -> None:
    (tmp_path / "wrong.py").write_text("SPACE = {'network': ['residul']}\nNONE = 3\n")
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(
            "from halfmeg.networks.floors import logistic as Net"
        )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "cat").symlink_to(pictures / "train" / "0")
    data = [] if "--data" in arguments else ["--data", "digits"]
    outcome = cli("search", *data, *arguments)
    assert outcome.code == 2
    assert outcome.is_one_line(told), outcome.err
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "taken" / "mine.txt").read_text() == "mine"


def test_more_time_with_a_mistake_beside_it_changes_nothing(
    tmp_path: Path, cli: Cli, tiny: str, found: tuple[Path, Any, list[Trial]]
) -> None:
    out = shutil.copytree(found[0], tmp_path / "out")
    data = describe_data(load_dataset("digits"))
    write_stored(out, replace(read_stored(out), data=data))
    before = (out / "search.json").read_bytes()
    for mistake in (["--workers", "0"], ["--workers", "2", "--cluster", "auto"]):
        outcome = cli("search", "--resume", "out", "--hours", "1", *mistake)
        assert outcome.code == 2
        assert outcome.is_one_line("--workers"), outcome.err
        assert (out / "search.json").read_bytes() == before


def test_no_share_of_the_way_leads_past_its_end() -> None:
    """Optuna takes no value above the highest, be it by a rounding."""
    for low in range(-9, 99):
        for high in range(low + 1, 100):
            ends = low / 100, high / 100
            assert ends[0] <= Dimension("lr", ends).at(0.0) < Dimension("lr", ends).at(1.0)
            assert Dimension("lr", ends).at(1.0) <= ends[1]


def test_data_that_nothing_can_be_validated_on_is_one_line(few_digits: DataSplits) -> None:
    labels = few_digits.train.labels
    firsts = torch.tensor([int((labels == k).nonzero()[0]) for k in range(10)])
    one_each = replace(few_digits, train=few_digits.train.subset(firsts))
    with pytest.raises(ValueError, match="a search needs validation images"):
        describe_search(one_each, limits=Limits(params=10**6), seconds=60)


def test_a_recipe_that_nothing_can_be_trained_with_leaves_no_folder(
    tmp_path: Path, few_digits: DataSplits
) -> None:
    for settings in (["loss=fast"], ["crop=32", "crop_mode=reflect"], ["small_size=40"]):
        stored, space = describe_search(
            few_digits, limits=Limits(params=10**5), seconds=60, settings=settings
        )
        with pytest.raises(ValueError, match="no network of the space can be trained; "):
            start(tmp_path / "out", few_digits, stored, space)
        assert not (tmp_path / "out").exists()


def test_networks_that_cannot_be_built_say_why(few_digits: DataSplits) -> None:
    limits = Limits(params=10**5)
    for values, told in ((["a"], "width='a'"), ([-3], "width=-3")):
        space = build_space({"network": {"residual": {"width": values}}})
        with pytest.raises(ValueError, match=f"no network of the space can be taken; .*{told}"):
            require_room(space, limits, 10, few_digits.image_shape)


def test_a_long_look_for_the_smallest_network_is_told_once(
    tiny: str, few_digits: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = build_space({"network": tiny})
    told: list[str] = []
    for patience, count in ((60.0, 0), (0.0, 1)):
        monkeypatch.setattr("halfmeg.search.budget.PATIENCE", patience)
        with pytest.raises(ValueError, match="the smallest, "):
            require_room(space, Limits(params=1), 10, few_digits.image_shape, told.append)
        assert told == ["looking for the smallest network of the space"] * count


def test_limits_that_only_together_fit_nothing_are_told(tiny: str, few_digits: DataSplits) -> None:
    stored, space = describe_search(
        few_digits, limits=Limits(params=290, flash=700, ram=10), seconds=60, networks=[tiny]
    )
    with pytest.raises(ValueError, match=r"--ram 10 bytes of RAM: the smallest, tiny\.py:Tiny"):
        start("out", few_digits, stored, space)
    assert describe_limit("latency", 5) == "5 ms"


@pytest.mark.slow
def test_a_search_in_use_is_left_alone(tmp_path: Path, few_digits: DataSplits, tiny: str) -> None:
    searched(tmp_path / "out", few_digits)
    stored, space = open_search(tmp_path / "out", few_digits)
    with (
        sole_writer(tmp_path / "out"),
        pytest.raises(ValueError, match="another process searches in"),
    ):
        start(tmp_path / "out", few_digits, stored, space)
    damaged = json.loads((tmp_path / "out" / "search.json").read_text())
    (tmp_path / "out" / "search.json").write_text(json.dumps(damaged | {"folds": "many"}))
    with pytest.raises(ValueError, match=r"search\.json is damaged"):
        read_stored(tmp_path / "out")


def test_a_search_that_has_found_nothing_says_how_it_goes_on(
    cli: Cli, tmp_path: Path, few_digits: DataSplits
) -> None:
    stored, _ = describe_search(few_digits, limits=Limits(params=1000), seconds=60)
    (tmp_path / "my search").mkdir()
    write_stored(tmp_path / "my search", stored)
    goes_on = "`halfmeg search --resume 'my search'` goes on"
    assert cli("export", "my search", "--out", "b").is_one_line("has no trials yet", goes_on)
    Journal(tmp_path / "my search", 0, "random").ask(None)
    assert cli("export", "my search", "--out", "b").is_one_line("has no network that was", goes_on)


def test_export_picks_only_of_a_search(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("export", "nothing", "--out", "mine", "--pick", "ram=32k")
    assert outcome.code == 2
    assert outcome.is_one_line("--pick ram=32k is for a search")


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, tiny: str, pictures: Path, process: Cli
) -> None:
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "full.py").write_text(
        "import resource, sys, runpy\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"  # a checkpoint has more bytes
        "runpy.run_module('halfmeg', run_name='__main__')\n"
    )
    command = [sys.executable, "full.py", *SEARCH, "--hours", str(5 / 3600)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "File too large" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    outcome = process(*SEARCH, "--hours", str(5 / 3600))
    assert outcome.code == 0, outcome.err

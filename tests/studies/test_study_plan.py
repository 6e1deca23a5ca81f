"""`halfmeg plan`: what a study could see, before it is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, product
from statistics import mean

import numpy as np
import pytest
from conftest import ROOT, Cli, first_digits, small_config
from test_verdicts import simulation

from halfmeg import compare
from halfmeg.data.dataset import DataSplits
from halfmeg.data.load import load_dataset
from halfmeg.networks.memory import measure_memory
from halfmeg.networks.table import build_model
from halfmeg.studies.plan import PLANNED_SEEDS, chance_of, make_plan, time_training
from halfmeg.studies.power import POWER, TYPICAL, Chance, power, seeds_needed
from halfmeg.studies.stats import CrossedVariance, paired_tests


def chance_between(points: float) -> Chance:
    """The variances of a pair of the simulated world of docs/statistics.md, at 90%."""
    (right,) = simulation.World((0.9, 0.9), (points, points)).studies(1, 60)
    found = CrossedVariance.of(right[0].astype(float) - right[1], -1.0, 1.0)
    return Chance(2 * (points / 100) ** 2, found.images, found.rest)


@pytest.fixture(scope="module")
def world_chance() -> Chance:
    return chance_between(0.6)


@pytest.mark.parametrize("points", simulation.DEVIATIONS)
def test_the_power_of_a_plan_is_that_of_simulated_studies(points: float) -> None:
    """Of pairs one point apart, with any number of seeds and networks of docs/statistics.md."""
    table = json.loads((ROOT / "results" / "verdicts.json").read_text())["table"]
    rows = [row for row in table if row["step"] and row["points"] == points]
    assert {(row["seeds"], row["networks"]) for row in rows} == set(
        product(simulation.SEEDS, simulation.NETWORKS)
    )
    chance = chance_between(points)
    for row in rows:
        planned = power(0.01, chance, row["seeds"], 10_000, num_networks=row["networks"])
        assert planned == pytest.approx(row["power"], abs=0.06), row


@pytest.mark.parametrize(("networks", "level"), [(3, 0.05), (5, 0.0125)])
def test_the_width_of_a_plans_interval_is_that_of_simulated_studies(
    networks: int, level: float
) -> None:
    """Its quantiles over studies of 3 seeds too, where luck decides most."""
    world = simulation.World((0.9,) * networks, (0.4,) * networks)
    pairs = simulation.Products.of(world.studies(150, 3)).pairs()
    lo, hi = simulation.intervals(pairs, networks, level)
    found = np.quantile((hi - lo) / 2, [0.25, 0.5, 0.75])
    planned = chance_between(0.4).half_widths(3, 10_000, networks, level)
    assert np.quantile(planned, [0.25, 0.5, 0.75]) == pytest.approx(found, rel=0.1)


@pytest.mark.slow
def test_the_range_of_seeds_holds_what_is_needed(world_chance: Chance) -> None:
    """Of 200 studies of 5 seeds whose power is known; the range is stated at 80%."""

    def seen(seeds: int) -> float:
        return power(0.005, world_chance, seeds, 10_000)

    needed = next(seeds for seeds in range(2, 200) if seen(seeds) >= POWER)
    count, held, narrow = 200, 0, 0
    for right in simulation.World((0.9, 0.9), (0.6, 0.6)).studies(count, 5):
        (test,) = paired_tests([right[0].astype(float) - right[1]], 2)
        found = seeds_needed(test, 0.005)
        assert found is not None and found.least is not None
        assert found.least > 5  # never what has run
        most = found.most or needed
        held += found.least <= needed <= most
        narrow += most < 1.5 * found.least
    assert needed > 10
    assert held / count >= 0.8 - 3 * 0.028
    assert narrow == 0  # no number that only looks sure


def test_a_plan_rises_with_seeds_and_images() -> None:
    plan = make_plan(3, 1_000, difference=0.005)
    assert [row.seeds for row in plan.rows] == list(PLANNED_SEEDS)
    assert plan.num_images == (250, 1_000, 4_000)
    assert plan.chance == TYPICAL
    for row in plan.rows:
        assert row.minutes is None
        assert row.power[0] < row.power[1] < row.power[2]
        assert power(row.smallest, TYPICAL, row.seeds, 1_000, num_networks=3) == pytest.approx(
            POWER, abs=0.01
        )
    for few, more in pairwise(plan.rows):
        assert few.smallest > more.smallest
        assert few.power[1] < more.power[1]
    timed = plan.with_seconds(90.0)
    assert [row.minutes for row in timed.rows] == [1.5 * seeds for seeds in PLANNED_SEEDS]
    assert json.loads(json.dumps(timed.to_dict()))["rows"][0]["minutes"] == 3.0


@pytest.mark.slow
def test_more_networks_see_less_of_each_pair() -> None:
    smallest = [make_plan(n, 10_000, difference=0.005).rows[2].smallest for n in (2, 10)]
    assert smallest[0] < smallest[1]
    assert make_plan(2, 1, difference=0.5).num_images == (1, 1, 4)


@pytest.mark.parametrize(
    ("networks", "difference", "told"),
    [
        (1, 0.005, "a plan compares two networks or more"),
        (2, 0.0, "difference=0 is out of range; allowed: above 0, below 100 points"),
        (2, 1.0, "difference=100 is out of range"),
        (2, -0.01, "difference=-1 is out of range"),
    ],
)
def test_what_cannot_be_planned_is_told(networks: int, difference: float, told: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|two networks") as error:
        make_plan(networks, 1_000, difference=difference)
    assert told in str(error.value)


@pytest.mark.slow
def test_a_pilot_gives_its_variances(tmp_path) -> None:
    config = small_config(epochs=1)
    data = first_digits(80)
    found = compare(["mlp", "logistic"], data, seeds=2, out=tmp_path / "two", config=config)
    plan = make_plan(2, 31, difference=0.05, pilot=found)
    test = found.pairs[0].test
    assert test.chance is not None
    own = test.chance
    assert plan.chance == Chance(max(0.0, own.seeds), own.images, own.rest)
    assert plan.origin == "measured on digits with 2 seeds"
    three = compare(
        ["mlp", "logistic", "sprint"], data, seeds=2, out=tmp_path / "three", config=config
    )
    tests = [pair.test for pair in three.pairs]
    of_seeds = mean(test.chance.seeds for test in tests)
    assert chance_of(three).seeds == pytest.approx(max(0.0, of_seeds))
    assert max(test.seeds for test in tests) > of_seeds  # what the tests use is pooled upwards
    single = compare(["mlp", "logistic"], data, seeds=1, out=tmp_path / "one", config=config)
    with pytest.raises(ValueError, match="one seed of each network; a plan needs two or more"):
        chance_of(single)


def test_the_time_is_of_training_and_no_test_image_is_read(few_digits: DataSplits) -> None:
    unread = replace(few_digits.test, images=None)  # any use of it would fail
    data = replace(few_digits, test=unread)
    short, long = (small_config(model="mlp", epochs=n, batch_size=16) for n in (2, 200))
    first, second = (time_training([config], data) for config in (short, long))
    assert 0 < first < second
    # Settings that need a full training are timed too.
    terms = small_config(
        model="mlp", batch_size=16, schedule="step", milestones=(1,), hard_share=0.5, monitor="test"
    )
    assert time_training([terms], data) > 0


def test_the_command_prints_the_plan(cli: Cli, tmp_path) -> None:
    words = ("plan", "mlp", "logistic", "--data", "digits", "epochs=1", "--difference", "2")
    shown = cli(*words)
    assert shown.code == 0, shown.err
    assert "how often 2 points would be seen, 2 networks:" in shown.out
    assert "360 test images" in shown.out and "1,440 test images" in shown.out
    assert "typical of networks of 82 to 90% on CIFAR-10" in shown.out
    stored = json.loads(cli(*words, "--json").out)
    assert stored["difference"] == 0.02
    assert [row["seeds"] for row in stored["rows"]] == list(PLANNED_SEEDS)
    minutes = np.array([row["minutes"] for row in stored["rows"]])
    assert (minutes > 0).all()
    assert stored["memory"].keys() == {"mlp", "logistic"}
    for name, memory in stored["memory"].items():
        shape = load_dataset("digits").image_shape
        expected = measure_memory(build_model(name, 10, shape), shape)
        assert memory == expected.to_dict()
        assert f"{name}: {expected.ram_bytes:,} bytes of RAM" in shown.out
        assert f"{expected.flash_bytes:,} bytes of flash" in shown.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mlp",), "a plan compares two networks or more"),
        (("epochs=1",), "no network named"),
        (("mlp", "cnnn"), "cnnn"),
        (("mlp", "cnn", "--difference", "0"), "difference=0 is out of range"),
        (("mlp", "cnn", "--pilot", "nowhere"), "nowhere is no run folder"),
        (("mlp", "cnn", "lr=-1"), "lr=-1"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, words: tuple[str, ...], told: str) -> None:
    shown = cli("plan", *words)
    assert shown.code == 2
    assert told in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out

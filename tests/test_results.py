"""The committed runs: what is kept, and that the figures of README follow from them."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from itertools import product
from pathlib import Path
from statistics import mean, median, variance
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Cli, at_hand
from scipy import stats

from halfmeg.studies.compare import compare_runs
from halfmeg.studies.power import TYPICAL
from halfmeg.studies.ranking import rank_networks
from halfmeg.studies.stats import PairedTest
from halfmeg.studies.study import open_runs

RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text()
MOST_BYTES = 12_000_000


def accuracy(pattern: str) -> float:
    """Return the mean test accuracy in percent of the runs whose folders match."""
    found = [json.loads(path.read_text()) for path in RESULTS.glob(f"{pattern}/result.json")]
    assert found, pattern
    return 100 * mean(result["test_accuracy"] for result in found)


def accuracy_cells(model: dict[str, Any]) -> str:
    """Return how the page tells a network's accuracy, from its study's comparison.json."""
    mean_, lo, hi = (100 * model["test_accuracy"][key] for key in ("mean", "lo", "hi"))
    each = ", ".join(f"{100 * share:.2f}" for share in model["per_seed"].values())
    return f"| {mean_:.2f}%, {lo:.1f} to {hi:.1f} | {each} |"


def headline(words: str) -> str:
    (row,) = [line for line in README.splitlines() if line.startswith("|") and words in line]
    return row


def test_results_stay_small() -> None:
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    kinds = {path.suffix for path in files}
    assert kinds <= {".json", ".jsonl", ".csv", ".md", ".npz", ".png"}, kinds


def test_everything_kept_is_named_on_the_page() -> None:
    page = (RESULTS / "README.md").read_text()
    for path in RESULTS.iterdir():
        name = f"{path.name}/" if path.is_dir() else path.name
        assert path.name == "README.md" or f"({name}" in page, name


def test_every_figure_in_results_is_shown() -> None:
    pages = [RESULTS / "README.md", ROOT / "README.md", *RESULTS.glob("*/*.md")]
    shown = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())
    }
    for path in RESULTS.rglob("*.png"):
        assert path in shown, path.relative_to(ROOT)


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        ("`resnet32`", "common-he/resnet32-seed-?"),
        ("MLPerf Tiny", "mlperf-tiny/mobile-seed-?"),
        ("`record`", "record"),
        ("`sprint`", "sprint/sprint-seed-?"),
    ],
)
def test_an_accuracy_in_readme_is_that_of_its_runs(words: str, pattern: str) -> None:
    assert f"[{accuracy(pattern):.1f}%]" in headline(words)


@pytest.mark.parametrize("name", ["eurosat", "cifar10", "clothing", "clothing-48"])
def test_what_a_search_found_is_that_of_its_comparison(name: str) -> None:
    page = (RESULTS / "README.md").read_text()
    stored = json.loads((RESULTS / "search" / name / "comparison.json").read_text())
    for model in stored["models"]:
        accuracy = model["test_accuracy"]
        low, high = 100 * accuracy["lo"], 100 * accuracy["hi"]
        seeds = len(model["per_seed"])
        told = f"| {100 * accuracy['mean']:.2f} ({low:.1f} to {high:.1f}) | {seeds} |"
        assert told in page, told
    limits = json.loads((RESULTS / "search" / name / "search.json").read_text())["limits"]
    with (RESULTS / "search" / name / "trials.csv").open() as table:
        for trial in csv.DictReader(table):
            for cost, column in (("flash", "flash_bytes"), ("ram", "ram_bytes")):
                assert limits[cost] is None or int(trial[column]) <= limits[cost]


def test_what_searchers_reached_is_that_of_their_race() -> None:
    page = (RESULTS / "README.md").read_text()
    found = json.loads((RESULTS / "search" / "race" / "search.json").read_text())
    assert list(found) == ["halfmeg", "random", "kerastuner"]
    for name, result in found.items():
        told = ", ".join(
            f"{100 * max(reached):.2f}" if reached else "–"
            for reached in (
                [accuracy for hours, accuracy in result["curve"] if hours <= limit]
                for limit in (0.25, 0.5, 1)
            )
        )
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` | "))
        assert f" | {told} | {100 * result['test_accuracy']:.2f} | " in row


def test_what_a_trained_start_brings_is_that_of_its_study() -> None:
    stored = json.loads((RESULTS / "finetune" / "comparison.json").read_text())
    page = (RESULTS / "README.md").read_text()
    for model in stored["models"]:
        assert accuracy_cells(model) in page
        folder = re.sub(r".*\((.*)\)", r"\1", model["name"]).replace(" ", "-")
        share = accuracy(f"finetune/{folder}/*")
        assert 100 * model["test_accuracy"]["mean"] == pytest.approx(share)


def test_the_fair_pair_is_that_of_its_study() -> None:
    stored = json.loads((RESULTS / "published-terms" / "comparison.json").read_text())
    page = (RESULTS / "README.md").read_text()
    assert len(stored["models"]) == 2
    for model in stored["models"]:
        row = f"| `{model['name']}` | {model['params']:,} {accuracy_cells(model)}"
        assert row in page, row
        share = accuracy(f"published-terms/{model['name']}-seed-?")
        assert 100 * model["test_accuracy"]["mean"] == pytest.approx(share)
    (verdict,) = stored["verdicts"]
    assert verdict.split(";")[0].split(": ")[1] in page


def test_the_sprints_interval_in_readme_is_that_of_its_study() -> None:
    stored = json.loads((RESULTS / "sprint" / "comparison.json").read_text())
    (found,) = (model["test_accuracy"] for model in stored["models"])
    assert f"({100 * found['lo']:.1f} to {100 * found['hi']:.1f})" in headline("`sprint`")


def test_the_sprints_seconds_are_those_of_its_runs() -> None:
    runs = RESULTS.glob("sprint/sprint-seed-?/result.json")
    seconds = mean(json.loads(path.read_text())["seconds"] for path in runs)
    assert f"in {seconds:.0f} seconds" in headline("`sprint`")


@pytest.mark.parametrize("goal", [85, 90])
def test_how_soon_a_goal_is_reached_is_that_of_its_runs(goal: int) -> None:
    page = (RESULTS / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {goal}% |")]
    found = [
        json.loads((RESULTS / "soonest" / f"{goal}-seed-{seed}" / "result.json").read_text())
        for seed in range(5)
    ]
    stored = json.loads((RESULTS / "soonest" / f"comparison-{goal}.json").read_text())
    (model,) = stored["models"]
    assert list(model["per_seed"].values()) == [result["test_accuracy"] for result in found]
    assert 100 * model["test_accuracy"]["mean"] >= goal
    assert accuracy_cells(model) in row
    (macs,) = {result["total_macs"] for result in found}
    mantissa, exponent = f"{macs:.2e}".split("e+")
    power = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in exponent)
    assert f"| {mantissa} · 10{power} (" in row
    assert f"| {mean(result['seconds'] for result in found):.3g} s (" in row


def test_what_25_minutes_give_is_that_of_its_run() -> None:
    page = (RESULTS / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith("| 94% |")]
    found = json.loads((RESULTS / "soonest" / "94-seed-0" / "result.json").read_text())
    stated = f"{100 * found['test_accuracy']:.2f}"
    assert f"| {found['params']:,} | {stated}%, " in row
    assert row.endswith(f"| {found['seconds']:,.0f} s (1,500 s) |")
    assert f"25 minutes give {stated}%" in page
    assert f"{100 * found['val_accuracy']:.2f}% of the 1,000 others" in page


def test_resnet8_by_its_own_recipe_is_that_of_its_run() -> None:
    page = (RESULTS / "README.md").read_text()
    (row,) = [line for line in page.splitlines() if "MLPerf Tiny's own recipe, in 80" in line]
    folder = RESULTS / "mlperf-tiny" / "resnet8-own"
    found = json.loads((folder / "result.json").read_text())
    stated = f"{100 * found['test_accuracy']:.2f}%"
    assert f"| {found['params']:,} | {found['macs'] / 1e6:.2f} | {stated}, " in row
    assert f"It took {found['seconds'] / 3600:.1f} hours" in page
    config = json.loads((folder / "config.json").read_text())["config"]
    assert (config["optimizer"], config["batch_size"], config["epochs"]) == ("adam", 32, 80)
    assert config["lr_drop"] ** 80 == pytest.approx(0.99**500, rel=0.02)
    steps = (ROOT / "docs" / "experiments.md").read_text()
    (hours,) = re.findall(rf"\| ([\d.]+) \| {stated}, beside 85.90%", steps)
    assert hours == f"{found['seconds'] / 3600:.1f}"


def test_the_speed_in_readme_is_that_of_its_file() -> None:
    bfloat16, float32 = (
        {entry["model"]: f"{entry['ratio']:.1f}" for entry in json.loads(path.read_text())}
        for path in (RESULTS / "throughput-all.json", RESULTS / "throughput-fp32.json")
    )
    row = headline("speed of training")
    for model in ("cnn", "resnet-shared"):
        assert f"{bfloat16[model]} times (`{model}`)" in row
    assert f"in float32 {float32['cnn']} and {float32['resnet-shared']} |" in row


def test_each_row_of_training_speed_is_that_of_its_file() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines()]
    stated = {tuple(row[2:-1]) for row in rows if len(row) == 8}
    paths = list(RESULTS.glob("throughput*.json"))
    assert len(paths) == 3
    for path in paths:
        for entry in json.loads(path.read_text()):
            each = ", ".join(f"{ratio:.1f}" for ratio in entry["ratio_of_each_round"])
            eager = ", ".join(f"{ratio:.2f}" for ratio in entry["ratio_to_eager_of_each_round"])
            found = (
                f"{entry['images_per_second']:,.0f}",
                f"{entry['ratio']:.1f} ({each})",
                f"{entry['ratio_to_eager']:.2f} ({eager})",
                f"{entry['gemm_share']:.0%}",
                f"{entry['augment_share']:.1%}",
            )
            assert found in stated, (path.name, entry["model"])


@pytest.mark.parametrize("name", ["operators.json", "operators-fp32.json"])
def test_the_parts_of_a_step_are_those_of_their_file(name: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    tables = {table.split("](../results/", 1)[1].split(")", 1)[0]: table
              for table in page.split("| ms in a step of 500 images |")[1:]}  # fmt: skip
    rows = [[cell.strip() for cell in line.split("|")] for line in tables[name].splitlines()]
    cells = {row[1]: row[2:-1] for row in rows if len(row) == 6}
    entries = json.loads((RESULTS / name).read_text())["rows"]
    assert [entry["model"] for entry in entries] == ["sprint", "record", "resnet-shared"]
    for column, entry in enumerate(entries):
        ms = {operator["name"]: operator["ms"] for operator in entry["operators"]}
        parts = {
            "convolution, backward": ms["convolution_backward"],
            "convolution, forward": ms["convolution"],
            "BatchNorm, both ways": sum(ms[key] for key in ms if "batch_norm" in key),
            "Python and waiting": entry["step_ms"] - sum(ms.values()),
        }
        for part, taken in parts.items():
            assert cells[part][column] == f"{taken:,.0f} ({taken / entry['step_ms']:.0%})", part
        assert cells["the whole step, its operators timed"][column] == f"{entry['step_ms']:,.0f}"
        untimed = entry["step_ms_without_clock"]
        assert cells["the whole step, not timed"][column] == f"{untimed:,.0f}"


def test_what_auto_tried_is_what_the_page_says() -> None:
    tried = {
        name: [run for run in json.loads((RESULTS / name).read_text())["runs"]
               if run["name"] == "auto"]
        for name in ("auto.json", "auto-cifar10.json")
    }  # fmt: skip
    assert all(run["picked"].startswith("sprint ") for runs in tried.values() for run in runs)
    assert not any(run["trials"] for run in tried["auto.json"])
    assert [len(run["trials"]) for run in tried["auto-cifar10.json"]] == [2] * 6
    flips = [run for run in tried["auto-cifar10.json"] if ", flipped, " in run["picked"]]
    assert [(run["data"], run["seed"]) for run in flips] == [("cifar10-jpeg", 1)]
    page = " ".join((RESULTS / "README.md").read_text().split())
    assert "each of the six runs tried flipped and not flipped" in page
    assert "five ended not flipped; seed 1 of `cifar10-jpeg` flips" in page


def verdicts(cli: Cli, tmp_path: Path, *studies: str) -> dict[tuple[str, str], dict[str, Any]]:
    for name in studies:  # a reading is noted in the study
        shutil.copytree(RESULTS / name, tmp_path / name)
    outcome = cli("report", *studies, "--out", "again", "--json")
    assert outcome.code == 0, outcome.err
    return {(pair["a"], pair["b"]): pair for pair in outcome.json["pairs"]}


def stored_verdicts(study: str) -> dict[tuple[str, str], dict[str, Any]]:
    stored = json.loads((RESULTS / study / "comparison.json").read_text())
    return {(pair["a"], pair["b"]): pair for pair in stored["pairs"]}


def assert_same(
    found: dict[tuple[str, str], dict[str, Any]], stored: dict[tuple[str, str], dict[str, Any]]
) -> None:
    assert found.keys() == stored.keys()
    for names, pair in found.items():
        for key in ("verdict", "num_seeds", "num_images", "told_apart"):
            assert pair[key] == stored[names][key], names
        assert pair["p_adjusted"] == pytest.approx(stored[names]["p_adjusted"])


def assert_row_states(row: str, pair: dict[str, Any]) -> None:
    difference = {key: 100 * pair["difference"][key] for key in ("mean", "lo", "hi")}
    assert f"{difference['mean']:.1f} points" in row
    assert f"({difference['lo']:.1f} to {difference['hi']:.1f})" in row


@pytest.mark.slow
def test_the_verdict_on_the_published_terms_comes_out_again(cli: Cli, tmp_path: Path) -> None:
    found = verdicts(cli, tmp_path, "comparison")
    assert_same(found, stored_verdicts("comparison"))
    assert_row_states(headline("published study"), found["resnet", "cnn"])


@pytest.mark.slow
def test_the_verdicts_by_one_recipe_come_out_again(cli: Cli, tmp_path: Path) -> None:
    found = verdicts(cli, tmp_path, "common", "common-he")
    assert_same(found, stored_verdicts("common"))


@pytest.mark.slow
def test_the_accuracy_of_the_sprint_comes_out_again(cli: Cli) -> None:
    runs = map(str, RESULTS.glob("sprint/sprint-seed-?"))
    outcome = cli("report", *sorted(runs), "--out", "again", "--json")
    assert outcome.code == 0, outcome.err
    stored = json.loads((RESULTS / "sprint" / "comparison.json").read_text())
    (found,), (kept,) = outcome.json["models"], stored["models"]
    assert found["test_accuracy"] == pytest.approx(kept["test_accuracy"])


def read_table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


FOUR_SETS = ("cifar10", "cifar10-jpeg", "eurosat", "clothing")


@pytest.mark.parametrize("name", FOUR_SETS)
def test_the_tables_on_the_four_sets_are_those_of_their_runs(name: str) -> None:
    """Their answers are not kept: accuracies follow from the runs, words from the intervals."""
    study = RESULTS / "four-sets" / f"{name}.npz"
    of_each: dict[str, dict[int, float]] = {}
    for path in study.glob("*/result.json"):
        result = json.loads(path.read_text())
        of_each.setdefault(result["model"], {})[result["seed"]] = result["test_accuracy"]
    found = {model: mean(per_seed.values()) for model, per_seed in of_each.items()}
    rows = read_table(study / "tables" / "results.csv")
    assert {row["network"] for row in rows} == found.keys()
    for row in rows:
        per_seed = of_each[row["network"]]
        assert row["test accuracy, %"] == f"{100 * found[row['network']]:.2f}"
        assert row["each seed"] == ", ".join(f"{100 * per_seed[seed]:.2f}" for seed in (0, 1))
    pairs = read_table(study / "tables" / "differences.csv")
    assert len(pairs) == 10
    groups = {row["network"]: set(row["group"]) for row in rows}
    for pair in pairs:
        a, b = pair["pair"].split(" − ")
        assert float(pair["difference, points"]) == pytest.approx(
            100 * (found[a] - found[b]), abs=0.006
        )
        lo, hi = map(float, pair["95% interval"].split(" to "))
        outcome = "better" if lo > 0 else "worse" if hi < 0 else "open"
        assert pair["outcome"] == outcome
        assert (float(pair["p, all pairs"].lstrip("<")) < 0.05) == (outcome != "open")
        assert bool(groups[a] & groups[b]) == (outcome == "open")


def test_the_ranks_on_the_four_sets_come_out_again() -> None:
    """From the accuracies of the runs alone."""
    stored = json.loads((RESULTS / "four-sets" / "ranking.json").read_text())
    names = [re.sub(r"\.npz$", "", data) for data in stored["data"]]
    assert names == list(FOUR_SETS)
    networks = ("logistic", "mlp", "cnn", "resnet8", "resnet-linear")  # as in the command
    table = [
        [accuracy(f"four-sets/{name}.npz/{network}-seed-?") / 100 for network in networks]
        for name in names
    ]
    found = rank_networks(networks, stored["data"], np.array(table)).to_dict()
    for key in ("networks", "data", "letters", "verdict"):
        assert found[key] == stored[key], key
    for key in ("mean_ranks", "p_friedman", "critical_difference"):
        assert found[key] == pytest.approx(stored[key]), key
    assert np.array(found["accuracies"]) == pytest.approx(np.array(stored["accuracies"]))
    for pair, kept in zip(found["pairs"], stored["pairs"], strict=True):
        assert pair == pytest.approx(kept)
    page = (RESULTS / "README.md").read_text()
    columns = zip(*stored["accuracies"], strict=True)
    for network, rank, percents in zip(
        stored["networks"], stored["mean_ranks"], columns, strict=True
    ):
        cells = " | ".join(f"{100 * share:.1f}%" for share in percents)
        assert f"| `{network}` | {cells} | {rank:.2f} |" in page
    assert f"(p = {found['p_friedman']:.3f})" in page
    assert f"has to be {found['critical_difference']:.2f} mean ranks apart" in page
    outcomes = [
        pair["outcome"]
        for name in names
        for pair in read_table(RESULTS / "four-sets" / f"{name}.npz" / "tables" / "differences.csv")
    ]
    apart = sum(outcome in ("better", "worse") for outcome in outcomes)
    assert f"Of the {len(outcomes)} pairs within the sets {apart} are told apart" in page
    assert f"| {apart} better, {len(outcomes) - apart} open |" in page


def test_the_other_verdicts_in_readme_are_those_stored() -> None:
    common = stored_verdicts("common")
    assert_row_states(headline("by better settings"), common["resnet-linear", "cnn"])
    (pair,) = stored_verdicts("finetune").values()
    assert_row_states(headline("50 images a class"), pair)


@pytest.mark.slow
def test_the_variances_that_a_plan_assumes_are_those_of_the_five_networks() -> None:
    """The middle of the ten pairs by one recipe, and of the seeds the most, to be cautious."""
    runs = open_runs([str(RESULTS / "common"), str(RESULTS / "common-he")])
    tests = [pair.test for pair in compare_runs(runs).pairs if isinstance(pair.test, PairedTest)]
    chances = [test.chance for test in tests if test.chance is not None]
    assert len(chances) == 10
    assert max(test.seeds for test in tests) ** 0.5 == pytest.approx(TYPICAL.seeds**0.5, rel=0.1)
    assert median(chance.images for chance in chances) == pytest.approx(TYPICAL.images, rel=0.1)
    assert median(chance.rest for chance in chances) == pytest.approx(TYPICAL.rest, rel=0.1)


@pytest.mark.parametrize("data", ["eurosat", "cifar10"])
def test_what_8_bits_lose_is_that_of_its_runs(data: str) -> None:
    """Means over seeds with the upper end of their 95% interval (Student's t), in points."""
    stored = json.loads((RESULTS / f"finetune-int8-{data}.json").read_text())
    page = (ROOT / "docs" / "ship.md").read_text()
    for network in {run["network"] for run in stored["runs"]}:
        runs = [run for run in stored["runs"] if run["network"] == network]
        assert sorted(run["seed"] for run in runs) == [0, 1, 2, 3, 4]
        cells = []
        for form, part in product(("plain", "finetuned"), ("validation", "test")):
            losses = [100 * run[f"{form}_{part}_loss"] for run in runs]
            middle = mean(losses)
            upper = middle + stats.t.ppf(0.975, 4) * math.sqrt(variance(losses) / 5)
            cells.append(f"{middle:.2f} ({upper:.2f})")
        accuracy_cell = f"{100 * mean(run['float_accuracy'] for run in runs):.2f}%"
        assert " | ".join([f"`{network}`", accuracy_cell, *cells]) in page


def simulated() -> dict[tuple[int, int], list[tuple[dict[str, float], dict[str, float]]]]:
    """Return by seeds and pairs the numbers without a difference and one point apart."""
    table = json.loads((RESULTS / "verdicts.json").read_text())["table"]
    found: dict[tuple[int, int], list[tuple[dict[str, float], dict[str, float]]]] = {}
    for equal in table:
        if equal["step"] == 0:
            same = {key: equal[key] for key in ("seeds", "networks", "points")}
            (apart,) = [row for row in table if row["step"] and same.items() <= row.items()]
            pairs = equal["networks"] * (equal["networks"] - 1) // 2
            found.setdefault((equal["seeds"], pairs), []).append((equal, apart))
    return found


def test_the_tables_of_verdicts_are_those_of_the_simulation() -> None:
    short, whole = (
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("compare", "statistics")
    )
    assert len(simulated()) == 12
    for (seeds, pairs), settings in simulated().items():
        cells: dict[str, list[str]] = {}
        for equal, apart in settings:
            covered = min(equal["covered"], apart["covered"])
            own = min(equal["accuracy_covered"], apart["accuracy_covered"])
            row = {
                "false": f"{100 * equal['false']:.1f}",
                "before": f"{100 * equal['false_before']:.1f}",
                "covered": f"{100 * covered:.1f}",
                "power": f"{100 * apart['power']:.0f}",
                "power before": f"{100 * apart['power_before']:.0f}",
            }
            for name, text in row.items():
                cells.setdefault(name, []).append(text)
            line = (
                f"| {seeds} | {pairs} | {equal['points']} | {row['false']} "
                f"({100 * equal['false_pooled']:.1f}; {row['before']}) | {row['covered']} | "
                f"{100 * own:.1f} | {equal['width']:.2f} | {row['power']} "
                f"({100 * apart['power_pooled']:.0f}; {row['power before']}) |"
            )
            assert line in whole, line
            assert own >= 0.93
        of = {name: " / ".join(texts) for name, texts in cells.items()}
        line = (
            f"| {seeds} | {pairs} | {of['false']} ({of['before']}) | {of['covered']} | "
            f"{of['power']} ({of['power before']}) |"
        )
        assert line in short, line


def test_the_table_of_images_in_groups_is_that_of_the_simulation() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text()
    rows = json.loads((RESULTS / "verdicts-grouped.json").read_text())["table"]
    assert len(rows) == 12
    for groups in {row["groups"] for row in rows}:
        cells = [
            f"{100 * row['false']:.1f} ({100 * row['by_group']:.1f})"
            for row in rows if row["groups"] == groups
        ]  # fmt: skip
        assert f"| {groups} | {' | '.join(cells)} |" in page


def test_the_other_simulated_settings_are_those_of_the_table() -> None:
    page = (ROOT / "docs" / "statistics.md").read_text()
    found = json.loads((RESULTS / "verdicts.json").read_text())["beside"]
    settings = {(row["setting"], row["networks"]) for row in found}
    for setting, networks in settings:
        rows = [r for r in found if (r["setting"], r["networks"]) == (setting, networks)]
        cells = [
            " ".join(
                [
                    f"{100 * row['false']:.1f}",
                    f"({100 * row['false_pooled']:.1f}; {100 * row['false_before']:.1f})",
                ]
            )
            for row in rows
        ]
        cells += [
            f"{100 * min(row[key] for row in rows):.1f}" for key in ("covered", "accuracy_covered")
        ]
        assert f"| {setting} | {networks} | {' | '.join(cells)} |" in page, (setting, networks)


def test_every_run_that_is_kept_is_whole() -> None:
    for config in RESULTS.rglob("config.json"):
        names = {path.name for path in config.parent.iterdir()}
        whole = {"environment.json", "metrics.csv", "result.json", "test_readings.jsonl"}
        assert whole <= names, config.parent.relative_to(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "name"), [("record", "cifar10-jpeg"), ("record", "cifar10"), ("gated", "cifar10")]
)
def test_the_bundled_networks_have_the_stated_accuracy(cli: Cli, network: str, name: str) -> None:
    page = (RESULTS / "README.md").read_text()
    (stated,) = re.findall(rf"halfmeg evaluate {network} --data {name} +# ([\d.]+)%", page)
    outcome = cli("evaluate", network, "--data", str(at_hand(name)), "--json")
    assert outcome.code == 0, outcome.err
    assert f"{100 * outcome.json['accuracy']:.2f}" == stated

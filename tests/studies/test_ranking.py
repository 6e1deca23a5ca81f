from __future__ import annotations

import json
import math
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli

from halfmeg.artifacts.run import Run
from halfmeg.data.load import load_dataset
from halfmeg.studies.figures import figure_png, figure_svg
from halfmeg.studies.letters import compact_letters
from halfmeg.studies.ranking import Ranking, rank_networks
from halfmeg.studies.sets import ranking_figure, ranking_tables
from halfmeg.training.recipes import build_recipe


def test_letters_by_hand() -> None:
    """The example of Piepho 2004: four treatments, 1-3, 1-4, 2-4 apart."""
    assert compact_letters(4, [(0, 2), (0, 3), (1, 3)]) == ["a", "ab", "bc", "c"]
    assert compact_letters(3, []) == ["a", "a", "a"]
    assert compact_letters(3, [(0, 1), (0, 2), (1, 2)]) == ["a", "b", "c"]
    assert compact_letters(1, []) == ["a"]


@pytest.mark.parametrize("seed", range(20))
def test_letters_are_shared_exactly_by_what_is_not_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 9))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    apart = [pair for pair in pairs if rng.random() < 0.5]
    letters = [set(text) for text in compact_letters(count, apart)]
    assert all(letters)
    for i, j in pairs:
        assert bool(letters[i] & letters[j]) == ((i, j) not in apart)


def ranking(sets: int = 12, networks: int = 5, spread: float = 0.02) -> tuple[Ranking, np.ndarray]:
    rng = np.random.default_rng(0)
    table = 0.8 + 0.1 * rng.random((sets, 1)) + spread * np.arange(networks)
    table = table + 0.02 * rng.normal(size=(sets, networks))
    names = [f"net{i}" for i in range(networks)]
    return rank_networks(names, [f"set{i}" for i in range(sets)], table), table


def test_ranks_equal_autoranks() -> None:
    """The kept library for the same procedure, on data that is not normal."""
    import autorank
    import pandas as pd

    found, table = ranking()
    frame = pd.DataFrame(table, columns=[f"net{i}" for i in range(5)])
    expected = autorank.autorank(frame, alpha=0.05, verbose=False, force_mode="nonparametric")
    assert found.critical_difference == pytest.approx(expected.cd, rel=1e-3)
    for name, rank in zip(found.networks, found.mean_ranks, strict=True):
        assert rank == pytest.approx(expected.rankdf.loc[name, "meanrank"])
    assert found.p_friedman == pytest.approx(expected.pvalue)


def test_wilcoxon_and_holm_equal_scipy_by_hand() -> None:
    from scipy import stats

    found, table = ranking(networks=3)
    column = {f"net{i}": table[:, i] for i in range(3)}
    p = [stats.wilcoxon(column[pair.a] - column[pair.b]).pvalue for pair in found.pairs]
    order = np.argsort(p)
    adjusted = np.maximum.accumulate([p[i] * (3 - step) for step, i in enumerate(order)])
    for step, i in enumerate(order):
        assert found.pairs[i].p_wilcoxon == pytest.approx(min(1.0, adjusted[step]))


def test_few_data_sets_tell_little_apart() -> None:
    found, _ = ranking(sets=3)
    assert "no two networks are told apart" in found.verdict
    assert set(found.letters) == {"a"}
    many, _ = ranking(sets=30, spread=0.05)
    assert "share a letter" in many.verdict
    assert many.letters[0] != many.letters[-1]


def test_ties_and_two_networks() -> None:
    tied = rank_networks(["a", "b", "c"], ["x", "y"], np.full((2, 3), 0.5))
    assert tied.mean_ranks == (2.0, 2.0, 2.0)
    assert tied.p_friedman == 1.0
    assert all(pair.p_wilcoxon == 1.0 for pair in tied.pairs)
    two = rank_networks(["a", "b"], ["x", "y", "z"], np.array([[0.5, 0.6]] * 3))
    assert two.p_friedman is None
    assert two.networks == ("b", "a")
    with pytest.raises(ValueError, match="1 data sets and 2 networks give no ranking"):
        rank_networks(["a", "b"], ["x"], np.zeros((1, 2)))


def with_wins(sets: int, wins: int) -> Ranking:
    """Rank two networks, of which the first wins on so many data sets."""
    by = 0.1 + np.arange(sets) / 1000  # differences that are equal make Wilcoxon's test slow
    table = np.stack([0.5 + by * (np.arange(sets) < wins), 0.5 + by / 2], 1)
    return rank_networks(["a", "b"], [f"set{i}" for i in range(sets)], table)


@pytest.mark.slow
def test_two_networks_are_told_apart_in_no_more_than_5_percent_by_chance() -> None:
    """Exactly, over all ways that chance may share out the wins; the normal one made 12.5%."""
    from scipy import stats

    for sets in range(2, 40):
        found = with_wins(sets, sets)
        assert (set(found.letters) == {"a", "b"}) == (sets >= 6)
        wins = np.arange(sets + 1)
        least = math.inf if found.critical_difference is None else found.critical_difference
        apart = abs(2 * wins - sets) / sets >= least - 1e-9
        assert stats.binom.pmf(wins[apart], sets, 0.5).sum() <= 0.05
    assert [set(with_wins(9, wins).letters) == {"a", "b"} for wins in range(10)] == [
        wins in (0, 1, 8, 9) for wins in range(10)
    ]


@pytest.mark.parametrize(("networks", "sets"), [(3, 3), (3, 11), (4, 22), (5, 4), (5, 21)])
def test_nemenyis_test_keeps_near_its_level(networks: int, sets: int) -> None:
    found = rank_networks(
        [str(i) for i in range(networks)], [str(i) for i in range(sets)],
        np.random.default_rng(0).random((sets, networks)),
    )  # fmt: skip
    assert found.critical_difference is not None
    draws = np.random.default_rng(1).random((20_000, sets, networks))
    ranks = (draws.argsort(2).argsort(2) + 1).mean(1)
    assert (np.ptp(ranks, axis=1) >= found.critical_difference - 1e-9).mean() < 0.065


def test_too_few_data_sets_are_named() -> None:
    """Where even first on all of them against last on all of them is not enough."""
    for networks in (2, 3, 5):
        table = np.array([np.arange(networks) / 10] * 2)
        names = [f"net{i}" for i in range(networks)]
        found = rank_networks(names, ["x", "y"], table)
        assert found.critical_difference is None
        assert found.verdict.endswith("so few data sets cannot tell any apart")
        assert "critical difference" not in figure_svg(ranking_figure(found), "ranks")


def test_the_diagram_is_drawn_and_the_tables_hold_all() -> None:
    found, _ = ranking()
    svg = figure_svg(ranking_figure(found), "ranks")
    ET.fromstring(svg)
    for name in found.networks:
        assert name in svg
    tables = ranking_tables(found)
    assert len(tables["ranks"].rows) == 5
    assert len(tables["pairs"].rows) == 10
    assert r"\toprule" in tables["ranks"].to_latex()


def test_long_names_leave_the_diagram_its_room() -> None:
    names = [f"whitened(filters=12,width1={i},width2=128,shortcut=True)" for i in range(5)]
    table = np.random.default_rng(0).random((4, 5))
    figure = ranking_figure(rank_networks(names, ["a", "b", "c", "d"], table))
    figure_png(figure)
    assert figure.axes[0].get_position().width > 0.4


@pytest.mark.slow
def test_two_data_sets_make_a_page_each_and_one_above(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    folder = tmp_path / "colours"
    shutil.copytree(pictures, folder)
    arguments = ["compare", "cnn", "logistic", "epochs=1", "threads=1", "--seeds", "2"]
    arguments += ["--data", "digits", "--data", str(folder), "--out", str(tmp_path / "both")]
    outcome = cli(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["data"] == ["digits", "colours"]
    for study in found["studies"]:
        assert len(study["pairs"]) == 1
        assert "Fewer than 5 seeds" in " ".join(study["caveats"])
    page = Path(found["page"])
    text = page.read_text()
    assert 'href="digits/comparison.html"' in text
    assert (page.parent / "colours" / "comparison.html").exists()
    assert (page.parent / "tables" / "ranks.csv").exists()
    more = cli(*arguments, "--seeds", "3")
    assert more.code == 0, more.err
    assert more.out.count("This study was read with 2 seeds before") == 2


def test_the_same_data_twice_is_told_before_training(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    """By one name, and by the names of two copies, whatever is asked for."""
    for name in ("photos", "copy"):
        shutil.copytree(pictures, tmp_path / name)
    for terms in ((), ("--folds", "3"), ("--until-decided",)):
        command = ("compare", "cnn", "logistic", *terms, "--out", "both", "--data")
        twice = cli(*command, "photos", "--data", "./photos")
        assert twice.code == 2
        assert twice.is_one_line("data photos is named twice"), twice.err
        copied = cli(*command, "photos", "--data", "copy")
        assert copied.code == 2
        assert copied.is_one_line("--data photos and --data copy are", "leave one of them out")
        assert copied.out == ""
        assert not (tmp_path / "both").exists()


def test_a_folder_that_is_taken_or_a_name_of_two_is_told_before_training(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "photos")
    (tmp_path / "both" / "photos").mkdir(parents=True)
    (tmp_path / "both" / "photos" / "mine.txt").write_text("mine")
    command = ("compare", "cnn", "logistic", "--out", "both", "--data")
    taken = cli(*command, "digits", "--data", "photos")
    assert taken.code == 2
    assert taken.is_one_line("both/photos exists and is no study; choose another --out")
    assert taken.out == ""
    assert not (tmp_path / "both" / "digits").exists()
    copy_few(pictures, tmp_path / "others" / "photos", 8)
    same = cli(*command, "photos", "--data", "others/photos")
    assert same.code == 2
    assert same.is_one_line(
        "--data photos and --data others/photos would both be called photos; rename one of them"
    ), same.err


PICKY = """
from torch import nn

class Picky(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def prepare(self, images):
        if len(images) < 100:
            raise ValueError("too few images")

    def forward(self, x):
        return self.head(x.mean((2, 3)))

class Choosy(Picky):
    pass
"""


def copy_few(pictures: Path, out: Path, count: int) -> None:
    """Copy so many training images of each class, and all test images."""
    shutil.copytree(pictures, out)
    for folder in (out / "train").iterdir():
        for image in sorted(folder.iterdir())[count:]:
            image.unlink()


@pytest.mark.slow
def test_a_network_that_fails_on_one_data_set_leaves_the_pages(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    """Of three networks the other two are ranked; of two there are no ranks."""
    (tmp_path / "net.py").write_text(PICKY)
    copy_few(pictures, tmp_path / "few", 8)
    copy_few(pictures, tmp_path / "many", 200)
    terms = ("epochs=1", "threads=1", "--seeds", "1", "--data", "few", "--data", "many")
    three = cli("compare", "logistic", "mlp", "net.py:Picky", *terms, "--out", "three", "--json")
    assert three.code == 1, three.err
    assert set(three.json["networks"]) == {"logistic", "mlp"}
    assert [len(study["models"]) for study in three.json["studies"]] == [2, 3]
    two = cli("compare", "logistic", "net.py:Picky", *terms, "--out", "two")
    assert two.code == 1
    assert "There are no ranks" in two.out
    for name, told in (("three", three.err), ("two", two.err)):
        assert "failed: few: net-Picky-seed-0: Picky.prepare failed" in told
        page = (tmp_path / name / "ranking.html").read_text()
        assert "few: net-Picky-seed-0: Picky.prepare failed" in page
        for data in ("few", "many"):
            assert f'href="{data}/comparison.html"' in page
            assert (tmp_path / name / data / "comparison.html").exists()
    assert not (tmp_path / "two" / "ranks.png").exists()


def test_a_data_set_on_which_every_network_fails_leaves_the_others(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    """Where all fail on every data set there is no page, as of a single one."""
    (tmp_path / "net.py").write_text(PICKY)
    for name, count in (("few", 8), ("fewer", 7), ("many", 200)):
        copy_few(pictures, tmp_path / name, count)
    command = ("compare", "net.py:Picky", "net.py:Choosy", "epochs=1", "threads=1", "--seeds", "1",
               "--json", "--data", "few", "--data")  # fmt: skip
    one = cli(*command, "many", "--out", "one")
    assert one.code == 1, one.err
    assert [study["data"] for study in one.json["studies"]] == ["many"]
    assert list(one.json["failures"]["few"]) == ["net-Picky-seed-0", "net-Choosy-seed-0"]
    assert "failed: few: net-Choosy-seed-0: Choosy.prepare failed" in one.err
    page = (tmp_path / "one" / "ranking.html").read_text()
    assert "few: net-Choosy-seed-0: Choosy.prepare failed" in page
    assert 'href="many/comparison.html"' in page
    assert "few/comparison.html" not in page
    none = cli(*command, "fewer", "--out", "none")
    assert none.code == 2
    assert none.is_one_line("no run finished; net-Picky-seed-0: Picky.prepare failed"), none.err
    assert not (tmp_path / "none" / "ranking.html").exists()


REFUSES_50 = """
def same(images):
    if len(images) == 50:
        raise ValueError("50 images")
    return images
"""


@pytest.mark.slow
def test_a_recipe_that_fails_on_one_data_set_leaves_the_ranks_of_the_others(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    copy_few(pictures, tmp_path / "few", 4)
    copy_few(pictures, tmp_path / "many", 200)
    (tmp_path / "own.py").write_text(REFUSES_50)
    config = build_recipe("common").override(["model=mlp", "batch_size=50", "augment=own.py:same"])
    (tmp_path / "own.json").write_text(json.dumps(config.to_dict() | {"recipe": "own"}))
    outcome = cli(
        "compare", "logistic", "mlp", "epochs=1", "threads=1", "--seeds", "1", "--json",
        "--recipe", "common", "--recipe", "own.json", "--data", "few", "--data", "many",
        "--out", "both",
    )  # fmt: skip
    assert outcome.code == 1, outcome.err
    assert set(outcome.json["networks"]) == {"logistic (common)", "mlp (common)"}


TEN = """
from torch import nn

class Ten(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x):
        return self.head(x.mean((2, 3)))
"""


def test_a_network_of_ones_own_is_tried_on_every_data_set_before_training(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    (tmp_path / "net.py").write_text(TEN)
    shutil.copytree(pictures, tmp_path / "ten")
    shutil.copytree(pictures, tmp_path / "nine")
    for part in ("train", "test"):
        shutil.rmtree(tmp_path / "nine" / part / "9")
    outcome = cli(
        "compare", "net.py:Ten", "logistic", "--data", "ten", "--data", "nine", "--out", "both"
    )
    assert outcome.code == 2
    assert outcome.is_one_line("net.py:Ten", "9"), outcome.err
    assert not (tmp_path / "both").exists()


def test_what_a_later_folder_holds_is_told_before_the_first_trains(
    cli: Cli, tmp_path: Path, pictures: Path
) -> None:
    """Runs of other settings, and a page that is not ours."""
    shutil.copytree(pictures, tmp_path / "photos")
    held = Run.create(
        tmp_path / "both" / "photos" / "logistic-seed-0",
        build_recipe("common").override(["model=logistic", "epochs=2"]),
        load_dataset(str(tmp_path / "photos")),
    )
    (held.folder.parent / "study.json").write_text('{"runs": []}')
    command = ("compare", "mlp", "logistic", "--seeds", "1", "--data", "digits", "--data", "photos")
    other = cli(*command, "epochs=1", "--out", "both")
    assert other.code == 2
    assert other.is_one_line("both/photos/logistic-seed-0 was trained with other settings or data:")
    assert "epochs is 2 there and 1 here; choose another --out" in other.err
    assert not (tmp_path / "both" / "digits").exists()
    (held.folder.parent / "comparison.html").write_text("mine")
    page = cli(*command, "epochs=2", "--out", "both")
    assert page.is_one_line("both/photos/comparison.html was not written by halfmeg"), page.err
    assert not (tmp_path / "both" / "digits").exists()
    (tmp_path / "file").write_text("in the way")
    blocked = cli(*command, "epochs=1", "--out", "file/both")
    assert blocked.is_one_line("cannot write to file/both/digits", "is a file"), blocked.err

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import CHROMIUM, small_config
from PIL import Image

from halfmeg.data.dataset import DataSplits
from halfmeg.studies import caveats  # whose test_readings is no test
from halfmeg.studies.compare import Comparison, compare, compare_runs
from halfmeg.studies.figures import (
    calibration_figure,
    comparison_figure,
    confusion_figure,
    cost_figure,
    curve_figure,
    differences_figure,
    figure_png,
    figure_svg,
    pareto_front,
    run_figure,
)
from halfmeg.studies.page import render_markdown, render_page, write_comparison
from halfmeg.studies.ranking import rank_networks
from halfmeg.studies.sets import write_ranking
from halfmeg.training.fit import fit


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, few_digits) -> Comparison:
    """Three networks, two seeds."""
    out = tmp_path_factory.mktemp("compared") / "study"
    terms = small_config(batch_size=64, epochs=1)
    return compare(["cnn", "resnet", "resnet8"], few_digits, seeds=2, out=out, config=terms)


class Page(HTMLParser):
    """Collects tags, attributes and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page_file(comparison: Comparison, few_digits, tmp_path_factory) -> Path:
    return write_comparison(comparison, tmp_path_factory.mktemp("page"), few_digits)[0]


@pytest.fixture(scope="module")
def html(page_file: Path) -> str:
    return page_file.read_text()


def test_the_page_says_what_the_comparison_found(comparison: Comparison, html: str) -> None:
    text = " ".join(Page(html).text.split())
    for pair in comparison.pairs:
        assert pair.verdict in text
    for model in comparison.models:
        assert f"{100 * model.test_accuracy.mean:.2f}" in text
        assert f"{model.params:,}" in text
    assert "resnet has 1,020,490 parameters: over the budget" in text
    assert "Not on equal terms: resnet has 1,020,490 parameters, over the budget" in text
    assert "differ in size by a factor of 13" in text
    assert comparison.fingerprint in text
    assert "on corrupted test images, at most 2,000 of a run, at strengths 1, 2 and 3" in text


def test_the_page_asks_nobody_for_anything(html: str) -> None:
    for tag, attributes in Page(html).tags:
        assert tag not in ("iframe", "object", "embed")
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert not re.search(r"url\((?!#)", html)
    assert "fetch(" not in html


def test_every_picture_has_a_text(comparison: Comparison, html: str) -> None:
    tags = Page(html).tags
    drawings = [attributes for tag, attributes in tags if tag == "figure"]
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(drawings) == 5
    assert all(len(attributes["aria-label"] or "") > 20 for attributes in drawings)
    assert len(images) == len(comparison.disagreements) > 0
    assert all("Test image" in (attributes["alt"] or "") for attributes in images)


def test_names_are_escaped(comparison: Comparison) -> None:
    hostile = replace(comparison, data="<script>alert(1)</script>")
    assert "<script>alert" not in render_page(hostile, {"curves": comparison_figure(hostile)} | {
        name: comparison_figure(hostile)
        for name in ("differences", "costs", "confusion", "calibration")
    })  # fmt: skip


def test_files_are_written_and_readable(comparison: Comparison, page_file: Path) -> None:
    folder = page_file.parent
    assert page_file.read_text().startswith("<!doctype html>")
    with Image.open(folder / "comparison.png") as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50
    stored = json.loads((folder / "comparison.json").read_text())
    assert [pair["verdict"] for pair in stored["pairs"]] == [p.verdict for p in comparison.pairs]
    markdown = (folder / "comparison.md").read_text()
    for pair in comparison.pairs:
        assert pair.verdict in markdown
    for name in re.findall(r"\]\((.+?)\)", markdown):
        assert (folder / name).exists(), f"{name} is shown in the Markdown"


def with_long_names(comparison: Comparison) -> Comparison:
    """Name networks as those of one's own with many settings."""
    settings = ",".join(f"width{i}=128" for i in range(4))
    names = {model.name: f"{model.name}({settings})" for model in comparison.models}
    return replace(
        comparison,
        models=tuple(replace(m, name=names[m.name]) for m in comparison.models),
        pairs=tuple(replace(p, a=names[p.a], b=names[p.b]) for p in comparison.pairs),
        failures={"x" * 80: "y" * 80},
    )


@pytest.mark.parametrize(
    "draw",
    [
        comparison_figure,
        *(
            pytest.param(draw, marks=pytest.mark.slow)
            for draw in (differences_figure, cost_figure, confusion_figure, calibration_figure)
        ),
    ],
)
def test_long_names_leave_the_figures_their_room(comparison: Comparison, draw: Any) -> None:
    """Else matplotlib warns that axes have collapsed, which is an error here."""
    figure = draw(with_long_names(comparison))
    figure_png(figure)
    assert all(axes.get_position().width > 0.1 for axes in figure.axes)


def test_notes_name_each_reason_once_and_seeds_do_not_contradict_themselves(
    comparison: Comparison,
) -> None:
    reasons = ["no images were held out to fit one", None, "no images were held out to fit one"]
    models = tuple(
        replace(model, no_temperature=reason)
        for model, reason in zip(comparison.models, reasons, strict=True)
    )
    text = render_markdown(replace(comparison, models=models), {})
    first, _, last = (model.name for model in models)
    note = f"- {first} and {last} have no temperature: no images were held out to fit one."
    assert note in text
    runs = [model.runs[0] for model in comparison.models]
    without, held = (
        SimpleNamespace(
            config=replace(runs[0].config, val_fraction=share), options=runs[0].options,
            data=runs[0].data,
        )
        for share in (0.0, 0.1)
    )  # fmt: skip
    for mixed in ([without, held], [held, without]):
        said = caveats.seeds_vary(mixed)
        assert "the split into training and validation images" in said
        assert "they share the images before that split" in said
    assert "they share the training images" in caveats.seeds_vary([without])
    held.data = replace(held.data, num_validation=20)  # a part of the user's own
    assert caveats.seeds_vary([held]) == caveats.seeds_vary([without])


def test_figures_are_repeatable_and_take_the_pages_colour(comparison: Comparison) -> None:
    first, again = (figure_svg(comparison_figure(comparison), "curves") for _ in range(2))
    assert first == again
    assert "currentColor" in first
    ET.fromstring(first)
    figures = [comparison_figure(comparison) for _ in range(2)]
    assert figure_png(figures[0]) == figure_png(figures[1])


def test_the_figure_says_over_how_many_seeds(comparison: Comparison) -> None:
    first, *others = comparison.models
    fewer = replace(comparison, models=(replace(first, runs=first.runs[:1]), *others))
    for shown, seeds in ((comparison, "2 seeds"), (fewer, "1 to 2 seeds")):
        curves, _ = comparison_figure(shown).axes
        assert curves.get_title() == f"Mean and range over {seeds}"


def test_the_pareto_front_is_what_nothing_beats() -> None:
    assert pareto_front([1, 2, 3, 4], [0.5, 0.4, 0.7, 0.7]) == [0, 2]
    assert pareto_front([2, 1], [0.5, 0.5]) == [1]


def test_the_published_figure_has_both_curves() -> None:
    curves = [("CNN", np.array([0.5, 0.6])), ("ResNet", np.array([0.4, np.nan]))]
    figure = curve_figure(curves, "test accuracy, %", "CNN and ResNet")
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["CNN", "ResNet"]
    assert axes.lines[0].get_ydata().tolist() == [50, 60]
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    Image.open(io.BytesIO(figure_png(figure))).verify()


def test_a_single_epoch_is_drawn_as_a_point() -> None:
    figure = curve_figure([("one", np.array([0.5])), ("two", np.array([0.4, 0.5]))], "%", "")
    (axes,) = figure.axes
    assert [line.get_marker() for line in axes.lines] == ["o", "None"]
    (axes,) = curve_figure([("one", np.array([0.5]))], "%", "").axes
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [1]


def test_a_runs_curves_are_those_that_were_measured(comparison: Comparison) -> None:
    (axes,) = run_figure(comparison.models[0].runs[0]).axes
    assert [line.get_label() for line in axes.lines] == ["validation", "training"]
    assert axes.get_ylabel() == "accuracy, %"


def test_a_curve_of_the_hard_images_alone_says_so(tmp_path: Path, few_digits) -> None:
    config = small_config(model="logistic", epochs=2, hard_share=0.5)
    (axes,) = run_figure(fit(config, few_digits, tmp_path / "run")).axes
    labels = [line.get_label() for line in axes.lines]
    assert labels == ["validation", "training, later on hard images alone"]
    terms = replace(config, val_fraction=0.0)
    compared = compare(["logistic"], few_digits, seeds=2, out=tmp_path / "study", config=terms)
    curves = comparison_figure(compared).axes[0]
    assert curves.get_ylabel() == "training accuracy, %\n(later on hard images alone)"


def test_curves_of_different_parts_each_name_theirs(tmp_path: Path, few_digits) -> None:
    config = small_config(model="logistic", hard_share=0.5)
    changes: dict[str, dict[str, Any]] = {
        "val": {}, "test": {"monitor": "test"}, "train": {"val_fraction": 0.0},
    }  # fmt: skip
    runs = {
        name: fit(replace(config, **change), few_digits, tmp_path / name)
        for name, change in changes.items()
    }
    curves = comparison_figure(compare_runs([runs["val"], runs["test"]])).axes[0]
    assert curves.get_ylabel() == "accuracy, %"
    labels = [line.get_label().rpartition(", ")[2] for line in curves.lines]
    assert sorted(labels) == ["test", "validation"]
    curves = comparison_figure(compare_runs([runs["train"], runs["test"]])).axes[0]
    assert curves.get_ylabel() == "accuracy, %\n(later on hard images alone)"


def test_a_network_whose_name_begins_with_an_underscore_is_in_each_legend(
    comparison: Comparison, tmp_path: Path
) -> None:
    names = {model.name: f"_nets.py:{model.name}" for model in comparison.models}
    own = replace(
        comparison,
        models=tuple(replace(m, name=names[m.name]) for m in comparison.models),
        pairs=tuple(replace(p, a=names[p.a], b=names[p.b]) for p in comparison.pairs),
    )
    page, _ = write_comparison(own, tmp_path / "page")
    assert page.exists()
    legends = [
        legend
        for figure in (comparison_figure(own), cost_figure(own), calibration_figure(own))
        for legend in (figure.legends or [axes.get_legend() for axes in figure.axes])
        if legend is not None
    ]
    assert len(legends) >= 3
    for legend in legends:
        texts = [text.get_text().lstrip("\u200b") for text in legend.get_texts()]
        assert len(texts) == len(own.models)
        assert all(text.startswith("_nets.py:") for text in texts)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
class TestInChromium:
    """The page in a real browser: Debian's, which `make test` installs."""

    @pytest.mark.parametrize(
        ("width", "scheme"),
        [
            (1280, "light"),
            (390, "dark"),
            pytest.param(1280, "dark", marks=pytest.mark.slow),
            pytest.param(390, "light", marks=pytest.mark.slow),
        ],
    )
    def test_it_opens_without_error_request_or_sideways_scroll(
        self, page_file: Path, browser: Any, width: int, scheme: str
    ) -> None:
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        told: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        assert told == []
        assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter(i => !i.naturalWidth).length"
        assert page.evaluate(broken) == 0
        page.close()

    @pytest.mark.slow
    def test_long_names_break_on_a_narrow_screen(
        self, comparison: Comparison, browser: Any, tmp_path: Path
    ) -> None:
        """On the page of a study, and on the one above those of several sets."""
        long = with_long_names(comparison)
        page_file, _ = write_comparison(long, tmp_path / "set")
        table = np.array([[0.9, 0.8, 0.7], [0.8, 0.9, 0.6]])
        names = [model.name for model in long.models]
        ranking = rank_networks(names, ["a" * 60, "b" * 60], table)
        above = write_ranking(ranking, [long], [tmp_path / "set"], tmp_path, {})
        page = browser.new_page(viewport={"width": 390, "height": 900})
        for file in (page_file, above):
            page.goto(file.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, file
        page.close()

    def test_tables_sort_by_mouse_and_by_keyboard(self, page_file: Path, browser: Any) -> None:
        page = browser.new_page()
        page.goto(page_file.as_uri())
        table = page.locator("table.sortable").first
        button = table.get_by_role("button", name="parameters")

        def column() -> list[int]:
            cells = table.locator("tbody tr td:nth-child(9)").all_inner_texts()
            return [int(cell.replace(",", "")) for cell in cells]

        button.click()
        assert column() == [1_020_490, 81_578, 78_186]
        assert table.locator("th[aria-sort=descending]").inner_text() == "parameters"
        button.press("Enter")
        assert column() == [78_186, 81_578, 1_020_490]
        names = table.get_by_role("button", name="network")
        names.click()
        names.click()
        assert table.locator("tbody td:first-child").all_inner_texts() == [
            "cnn", "resnet", "resnet8",
        ]  # fmt: skip
        page.close()

    @pytest.mark.slow
    def test_the_keyboard_reaches_every_control(self, page_file: Path, browser: Any) -> None:
        page = browser.new_page()
        page.goto(page_file.as_uri())
        reached = set()
        for _ in range(120):
            page.keyboard.press("Tab")
            reached.add(
                page.evaluate("document.activeElement.tagName + document.activeElement.textContent")
            )
        buttons = page.locator("th button:visible").all_text_contents()  # not in folded tables
        assert {f"BUTTON{text}" for text in buttons} <= reached
        assert any(name.startswith("SUMMARY") for name in reached)
        page.close()


@pytest.mark.slow
def test_the_page_states_every_reading_of_the_test_set(
    comparison: Comparison, few_digits: DataSplits, tmp_path: Path
) -> None:
    """Of every run, whatever it was for, and how often the answers were compared."""
    run = comparison.models[0].runs[0]
    log = run.folder / "test_readings.jsonl"
    before = log.read_text()
    try:
        run.evaluate(few_digits)
        run.log_test_reading("epoch 3: test curve, monitoring only")
        write_comparison(comparison, tmp_path / "page", few_digits)
    finally:
        log.write_text(before)
    page = Page((tmp_path / "page" / "comparison.html").read_text())
    text = " ".join(page.text.split())
    sentence = (
        "Readings of the test set, 6 runs: final evaluation: 6; robustness: corrupted test "
        "images: 6; evaluation on digits: 1; test curve, monitoring only: 1."
    )
    stored = json.loads((tmp_path / "page" / "comparison.json").read_text())
    for place in (text, (tmp_path / "page" / "comparison.md").read_text(), stored["test_readings"]):
        assert all(part in place for part in sentence.removesuffix(".").split("; "))
    rows = (tmp_path / "page" / "tables" / "readings.csv").read_text().splitlines()
    assert rows[0] == "read for,readings,runs,first,last"
    (final,) = [row for row in rows if row.startswith("final evaluation,6,6,20")]
    first, last = final.split(",")[3:]
    assert first <= last
    looked = replace(comparison, reading=replace(comparison.reading, looks=(2, 5)))
    assert "The answers were compared with 2 and 5 seeds." in caveats.test_readings(looked)
    before = replace(comparison, reading=replace(comparison.reading, looks=(1,)))
    assert "The answers were compared with 1 and 2 seeds." in caveats.test_readings(before)

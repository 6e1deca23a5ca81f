"""What users name is text, never markup: on the screen, in figures, on pages and in cards."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import Cli
from test_images import picture

from halfmeg.artifacts.markdown import escape_markdown
from halfmeg.cli.show import printable
from halfmeg.data.load import load_dataset

NAMES = ("[/b]", "[red]x", r"$\frac{", "$a_b$", "<script>alert(1)</script>", "a|b", "{{7*7}}",
         "\x1b[31mred", "_x_", "new\nline", "a\ttab", "\u202eabc", ":smile:")  # fmt: skip
"""Markup of rich, matplotlib, HTML, Markdown and templates, and what moves a cursor."""

FOLDER = "[bold]photos $x$[i]"
TERMS = ("epochs=1", "batch_size=16", "image_size=16", "--data", f"{FOLDER}/[b]few$a$.csv")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A table of images whose classes, files and folders have such names."""
    folder = tmp_path / FOLDER / "[red]"
    folder.mkdir(parents=True)
    with (tmp_path / FOLDER / "[b]few$a$.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for label, name in enumerate(NAMES):
            for part, count in (("train", 4), ("test", 2)):
                for index in range(count):
                    path = folder / f"[{part}{label}] $p${index}[i].png"
                    picture(100 * label + 10 * count + index, 20).save(path)
                    writer.writerow([f"[red]/{path.name}", name, part])
    return tmp_path


def shown(name: str) -> str:
    return printable(name).replace("\n", r"\n").replace("\t", r"\t")


def assert_shown(text: str, names: tuple[str, ...] = NAMES) -> None:
    assert all(shown(name) in text for name in names)
    assert "\x1b" not in text and "\u202e" not in text


def test_text_is_printed_as_it_is() -> None:
    assert printable("a\x1b[31m\u202eb\u2028") == r"a\x1b[31m\u202eb\u2028"
    assert printable("[/b] :smile: ü 漢") == "[/b] :smile: ü 漢"
    assert escape_markdown("a|b [/b]\n<i>") == r"a\|b \[/b\] \<i\>"
    assert escape_markdown("t-shirt\x1b") == "t-shirt\ufffd"


def test_every_command_on_data_shows_names_as_they_are(hostile: Path, cli: Cli) -> None:
    assert load_dataset(str(hostile / FOLDER / "[b]few$a$.csv")).classes == tuple(sorted(NAMES))
    checked = cli("data", "check", TERMS[-1], "--html", "[/b].html")
    assert checked.code == 0, checked.out
    assert_shown(checked.out)
    page = (hostile / "[/b].html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    trained = cli("train", "common", "model=logistic", *TERMS, "--out", "[run]x")
    assert trained.code == 0, trained.err
    evaluated = cli("evaluate", "[run]x")
    assert evaluated.code == 0, evaluated.err
    assert_shown(evaluated.out)
    answered = cli("predict", FOLDER, "--bundle", "[run]x", "--top", str(len(NAMES)))
    assert answered.code == 0, answered.err
    assert len(answered.out.splitlines()) == 6 * len(NAMES)
    assert all(f"{FOLDER}/[red]/[train{i}] $p$0[i].png" in answered.out for i in range(len(NAMES)))


@pytest.mark.parametrize(
    "words",
    [
        ("train", "[/b]"),
        ("train", "common", "[/b]"),
        ("train", "common", "--data", "[/b]"),
        ("train", "common", "[/b]=1"),
        ("train", "common", "model=[/b]"),
        ("compare", "[/b]", "cnn"),
        ("compare", "cnn", "[/b].py:[/i]"),
        ("summary", "[/b]"),
        ("evaluate", "[/b]"),
        ("predict", "[/b]"),
        ("predict", "[/b]", "--bundle", "[/i]"),
        ("export", "[/b]", "--out", "x"),
        ("data", "check", "[/b]"),
        ("report", "[/b]"),
        ("bench", "[/b]"),
        ("demo", "[/b]"),
        ("[/b]",),
        ("models", "--[/b]"),
        ("train", "common", "--image-size", "[/b]"),
    ],
    ids=" ".join,
)
def test_a_mistake_names_it_as_it_was_typed(cli: Cli, words: tuple[str, ...]) -> None:
    outcome = cli(*words)
    assert outcome.code == 2, outcome.err
    assert outcome.is_one_line("[/"), outcome.err


class _Scripts(HTMLParser):
    """Collects what stands in the script elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.inside = tag == "script"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found.append(data)


@pytest.mark.slow
def test_pages_figures_and_cards_show_names_as_they_are(hostile: Path, cli: Cli) -> None:
    compared = cli("compare", "cnn", "logistic", *TERMS, "--seeds", "1", "--out", "[study]")
    assert compared.code == 0, compared.err
    page = (hostile / "[study]" / "comparison.html").read_text()
    assert not any(script.startswith("alert(1)") for script in _Scripts(page).found)
    assert "&lt;script&gt;alert(1)" in page
    assert "{{7*7}}" in page
    exported = cli("export", "[study]/cnn-seed-0", "--out", "[b]", "--allow-loss")
    assert exported.code == 0, exported.err
    card = (hostile / "[b]" / "README.md").read_text()
    assert all(f"| {escape_markdown(name)} |" in card for name in NAMES)
    assert "\x1b" not in card

"""What README and docs/ say: links and anchors, the trials, and the Python that they show."""

from __future__ import annotations

import ast
import csv
import json
import math
import re
import subprocess
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, Cli

from halfmeg.training.recipes import RECIPES

PAGES = [
    *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md"),
]  # fmt: skip
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUM_TRIALS = 171


def prose(page: Path) -> str:
    """Return a page without its code, in which brackets are no links and # is no heading."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        kept = [c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN"]
        anchor = "".join(kept).replace(" ", "-")
        count = sum(
            re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found
        )
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} does not exist"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        if anchor:
            assert anchor in anchors(target), f"{link} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_of_docs_named_in_code_spans_exist(page: Path) -> None:
    folders = "docs|results|tests|benchmarks|halfmeg"
    for path in re.findall(rf"`((?:{folders})/[\w/.-]+)`", page.read_text()):
        assert (ROOT / path).exists(), f"{path} does not exist"


def test_the_tests_named_on_the_pages_exist() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    of_users = {"test_images", "test_labels", "test_set"}  # arrays and folders
    for page in PAGES:
        for name in set(re.findall(r"`(test_\w+)`", page.read_text())) - of_users:
            assert f"def {name}(" in tests, f"{name_of(page)} names {name}"


def test_what_code_says_of_docs_exists() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.html", "*.md", "*.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    for name in listed:
        path = ROOT / name
        for found in re.findall(r"\bdocs/[\w-]+\.(?:md|csv|ipynb)\b", path.read_text()):
            assert (ROOT / found).exists(), f"{name} names {found}"


def test_readme_shows_the_rooms_of_the_design() -> None:
    def rooms(text: str) -> list[str]:
        table = text[text.index("| room | holds |") :]
        return re.findall(r"^\| `(\w+)/?`", table[: table.index("\n\n")], flags=re.MULTILINE)

    design = rooms((ROOT / "docs" / "design.md").read_text())
    assert len(design) > 5
    assert rooms((ROOT / "README.md").read_text()) == design


def commands_shown() -> dict[str, set[str]]:
    """Return the options that the pages show for each command of halfmeg."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for line in re.findall(r"^(?:    |\$ )halfmeg (.+)$", page.read_text(), flags=re.MULTILINE):
            command, *words = re.sub(r" {2,}#.*", "", line).split()
            options = {word for word in words if word.startswith("--")}
            found[command] = found.get(command, set()) | options
    return found


@pytest.mark.parametrize("command", sorted(commands_shown()))
def test_the_commands_on_the_pages_exist(command: str, cli: Cli) -> None:
    outcome = cli("data", "check", "--help") if command == "data" else cli(command, "--help")
    assert outcome.code == 0, outcome.err
    for option in commands_shown()[command]:
        assert option in outcome.out, f"halfmeg {command} has no {option}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("name", ["README", "docs/compare", "docs/search", "docs/ship"])
def test_no_two_commands_of_a_page_write_the_same_folder(name: str) -> None:
    """An output that exists is refused, so who follows the page would be stopped."""
    text = (ROOT / f"{name}.md").read_text()
    outs = re.findall(r"^(?:    |\$ )halfmeg .*--out (\S+)", text, flags=re.MULTILINE)
    assert len(outs) > 1
    assert len(outs) == len(set(outs))


def test_every_headline_links_to_its_run() -> None:
    text = (ROOT / "README.md").read_text()
    section = text[text.index("## What it has measured") :]
    _, *rows = re.findall(r"^\| (.+) \|$", section[: section.index("\n## ")], flags=re.MULTILINE)
    assert 1 <= len(rows) <= 8
    for row in rows:
        (link,) = LINK.findall(row)
        assert link.startswith("results/"), row


def test_all_trials_stand_in_the_table() -> None:
    with (ROOT / "docs" / "experiments.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert list(rows[0]) == [
        "trial", "question", "change", "prediction", "tried for", "setting", "MACs",
        "result", "n", "outcome",
    ]  # fmt: skip
    assert [int(row["trial"]) for row in rows] == list(range(1, NUM_TRIALS + 1))
    for row in rows:
        assert None not in row, row["trial"]
        assert None not in row.values(), row["trial"]
        for key in ("question", "setting", "result", "n", "outcome"):
            assert row[key], f"trial {row['trial']} has no {key}"
        for macs in re.findall(r"[^,\s]+", row["MACs"].replace(" and ", " ")):
            assert 1e12 < float(macs) < 1e15 or is_of_a_run(float(macs)), row["trial"]
        for other in re.findall(r"\btrial (\d+)", " ".join(row.values())):
            assert 1 <= int(other) <= NUM_TRIALS


def is_of_a_run(macs: float) -> bool:
    """Whether a run in results/ took so much: trials of more than 10¹⁵ are kept there."""
    results = (ROOT / "results").rglob("result.json")
    totals = (json.loads(path.read_text())["total_macs"] for path in results)
    return any(math.isclose(macs, total, rel_tol=5e-4) for total in totals)


def test_recipes_state_how_many_settings_were_tried_for_them() -> None:
    """Each trial that tried a new setting names its recipe; the others repeat one, or tune none."""
    with (ROOT / "docs" / "experiments.csv").open(newline="", encoding="utf-8") as file:
        tried = Counter(name for row in csv.DictReader(file) for name in row["tried for"].split())
    assert tried.keys() <= RECIPES.keys()
    assert {name: make().tuning_trials for name, make in RECIPES.items()} == {
        name: tried[name] for name in RECIPES
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_the_accuracy_that_results_have(name: str) -> None:
    _, _, measured = (RECIPES[name].__doc__ or "").partition("Measured ")
    found = re.findall(r"\d\d\.\d\d%", measured)
    assert found, name
    pages = [ROOT / "results" / "README.md", ROOT / "docs" / "data.md"]  # the latter has JPEG's
    stated = "".join(page.read_text() for page in pages)
    assert all(percent in stated for percent in found), found


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "docs/experiments.md"])
def test_pages_state_how_many_trials_there_were(page: str) -> None:
    text = (ROOT / page).read_text()
    assert re.search(rf"\b{NUM_TRIALS} trials\b", text)
    for number in re.findall(r"\b(\d+)(?: for|, 20, 5 and 3 for) `sprint`", text):
        assert int(number) == RECIPES["sprint"]().tuning_trials


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_trials_that_pages_name_exist(page: Path) -> None:
    for numbers in re.findall(r"\btrials? ([\d ,;toand]*\d)", page.read_text()):
        assert all(1 <= int(n) <= NUM_TRIALS for n in re.findall(r"\d+", numbers)), numbers


@pytest.mark.parametrize("part", ["imports", pytest.param("all", marks=pytest.mark.slow)])
def test_the_python_of_the_page_runs(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), flags=re.DOTALL
    )
    assert len(blocks) >= 3
    for code in blocks:
        if part == "imports":
            lines = [n for n in ast.parse(code).body if isinstance(n, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(lines, []), "docs/python.md", "exec"), {})
        else:
            exec(code, {})
            assert capsys.readouterr().out.strip()

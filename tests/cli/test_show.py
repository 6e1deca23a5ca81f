"""What is printed fits the screen and is whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from halfmeg.cli.progress import StudyDisplay, training_display
from halfmeg.cli.show import TextTable, print_table, screen


@pytest.fixture(params=[80, 70, 60])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A screen of so many characters; a console reads its width once."""
    monkeypatch.setenv("COLUMNS", str(request.param))
    screen.cache_clear()
    yield request.param
    screen.cache_clear()


def test_a_table_keeps_its_first_column_and_its_numbers_on_a_narrow_screen(
    columns: int, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TextTable((
        "seeds", "90 test images", "360 test images", "1,440 test images", "smallest seen",
        "minutes here",))  # fmt: skip
    table.add_row("12", "3%", "4%", "6%", "8.6 points", "0.2")
    print_table(table)
    out = capsys.readouterr().out
    assert "seeds" in out
    assert out.splitlines()[-1].split() == ["12", "3%", "4%", "6%", "8.6", "points", "0.2"]
    assert all(len(line) <= columns for line in out.splitlines())
    assert out.count("images") == 3


def test_a_study_that_goes_on_says_what_is_undecided_and_how_far_it_may_go(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = [f"cnn − net{i}" for i in range(7)]
    with training_display(quiet=False) as display:
        told = StudyDisplay(display, quiet=False, apart=False)
        told.on_look(5, pairs[:2], [8, 12, 20])
        told.on_look(12, pairs, [20])
        told.on_measure()  # nothing was trained
    first, second = capsys.readouterr().err.splitlines()
    assert first == "undecided with 5 seeds: cnn − net0; cnn − net1; on to 8 seeds, of at most 20"
    assert second.endswith("cnn − net4 and 2 more; on to 20 seeds, of at most 20")

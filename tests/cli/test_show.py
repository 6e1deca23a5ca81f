"""What is printed fits the screen and is whole."""

from __future__ import annotations

import pytest

from halfmeg.cli.show import build_table, print_table


@pytest.mark.parametrize("columns", [80, 70, 200])
def test_a_table_keeps_its_first_column_and_its_numbers_on_a_narrow_screen(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = build_table(
        "seeds", "90 test images", "360 test images", "1,440 test images", "smallest seen",
        "minutes here",
    )  # fmt: skip
    table.add_row("12", "3%", "4%", "6%", "8.6 points", "0.2")
    print_table(table)
    out = capsys.readouterr().out
    assert "seeds" in out
    assert out.splitlines()[-1].split() == ["12", "3%", "4%", "6%", "8.6", "points", "0.2"]
    assert all(len(line) <= columns for line in out.splitlines())
    assert " ".join(out.split()).count("images") == 3

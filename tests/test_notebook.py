"""The notebook, its cells run one after the other as in a fresh kernel."""

from __future__ import annotations

import json
import linecache
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "docs" / "own-network.ipynb"


def cells() -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def test_the_network_has_20_lines_and_the_verdict_ten() -> None:
    _, network, verdict = cells()
    assert len([line for line in network.splitlines() if line.strip()]) <= 20
    assert len(verdict.splitlines()) <= 10


@pytest.mark.slow
def test_it_runs_to_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for index, text in enumerate(cells()):
        name = f"<cell {index}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        exec(compile(text, name, "exec"), namespace)
    printed = capsys.readouterr().out
    assert "python:Net: " in printed
    assert "resnet20: " in printed
    assert "2 seeds, 360 images" in printed
    kept = tmp_path / "runs/own-network/python-Net-seed-0/source/model/python-Net.py"
    assert kept.read_text() == cells()[1]

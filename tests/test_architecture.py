"""The module order of docs/design.md, and habits that hold for every file."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "halfmeg"
MODULES = sorted(PACKAGE.rglob("*.py"))


def module_order() -> list[str]:
    """Read the order, bottom to top, from the table in docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text()
    table = text[text.index("## Modules") :]
    return re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)


def top_module(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("halfmeg."):
            found.add((node.module or "").split(".")[1])
        if isinstance(node, ast.Import):
            found |= {n.name.split(".")[1] for n in node.names if n.name.startswith("halfmeg.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_modules_below_it(path: Path) -> None:
    name = top_module(path)
    if name in ("__init__", "__main__"):
        return
    order = module_order()
    assert name in order, f"{name} is missing in docs/design.md"
    allowed = {*order[: order.index(name)], *({name} if path.parent != PACKAGE else ())}
    assert imported_modules(path) <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "print" not in calls


def test_no_pickle_is_loaded_without_limits() -> None:
    for path in MODULES:
        text = path.read_text()
        assert "pickle.load" not in text
        assert "allow_pickle=True" not in text
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call


def test_every_committed_json_file_can_be_read() -> None:
    files = [*ROOT.glob("results/**/*.json"), *ROOT.glob("results/**/*.jsonl")]
    assert files
    for path in files:
        text = path.read_text()
        for part in text.splitlines() if path.suffix == ".jsonl" else [text]:
            try:
                json.loads(part)
            except ValueError as error:
                pytest.fail(f"{path.relative_to(ROOT)}: {error}")

"""The rooms of docs/design.md, and habits that hold for every file."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "halfmeg"
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_order() -> list[str]:
    """Read the order, bottom to top, from the table in docs/design.md."""
    text = (ROOT / "docs" / "design.md").read_text()
    table = text[text.index("## Rooms") : text.index("## Invariants")]
    return re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)


def module_name(path: Path) -> str:
    """Name a file as it is imported: `halfmeg.training.fit`; a room by its `__init__.py`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room(module: str) -> str:
    return module.split(".")[1]


def imported_modules(path: Path) -> set[str]:
    """Return the modules of halfmeg that a file imports, anywhere in it."""
    known = {module_name(other) for other in MODULES}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("halfmeg."):
            names = {f"{node.module}.{alias.name}" for alias in node.names} & known
            found |= names or {node.module or ""}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("halfmeg.")}
    return found


IN_ROOMS = [path for path in MODULES if path.stem not in ("__init__", "__main__")]


@pytest.mark.parametrize("path", IN_ROOMS, ids=module_name)
def test_a_module_imports_only_from_its_room_and_those_below(path: Path) -> None:
    order = room_order()
    own = room(module_name(path))
    assert own in order, f"{own} is missing in docs/design.md"
    assert {room(module) for module in imported_modules(path)} <= {*order[: order.index(own) + 1]}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Also within a room: its files have an order of their own."""
    graph = {module_name(path): imported_modules(path) for path in IN_ROOMS}
    assert all(imported in graph for imports in graph.values() for imported in imports)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_is_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= (40 if path.stem == "__init__" and path.parent != PACKAGE else 400)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=module_name)
def test_a_room_says_what_it_holds(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [type(node) for node in tree.body] == [ast.Expr]  # a docstring, nothing handed on
    _, _, table = (ast.get_docstring(tree) or "").partition("| module | holds |")
    cells = " ".join(re.findall(r"^\| (`.+?`) \|", table, flags=re.MULTILINE))
    modules = {other.stem for other in path.parent.glob("*.py")} - {"__init__"}
    assert sorted(re.findall(r"`(\w+)`", cells)) == sorted(modules)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_only_the_command_line_prints(path: Path) -> None:
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert "print" not in calls


def test_the_command_line_waits_for_nothing_heavy() -> None:
    """The help of a command imports no torch, rich, scipy or pyarrow."""
    program = "import halfmeg.cli.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "numpy", "rich", "scipy", "pyarrow", "PIL", "matplotlib"}


@pytest.mark.parametrize("argument", ["--help", "--version", "trian"])
def test_what_is_answered_at_once_waits_for_no_typer(argument: str) -> None:
    program = (
        "import atexit, sys, halfmeg.__main__ as program\n"
        "atexit.register(lambda: print('\\n', *sys.modules))\n"
        f"sys.argv = ['halfmeg', {argument!r}]\n"
        "program.start()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "halfmeg" in loaded
    assert not loaded & {"typer", "msgspec", "torch"}
    hinted = "halfmeg: No such command 'trian'; did you mean 'train'? allowed: models, "
    assert done.stderr.startswith(hinted) == (argument == "trian")


def test_no_pickle_is_loaded_without_limits() -> None:
    for path in MODULES:
        text = path.read_text()
        assert "pickle.load" not in text
        assert "allow_pickle=True" not in text
        for call in re.findall(r"(?<!safetensors\.)torch\.load\([^)]*\)", text):
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

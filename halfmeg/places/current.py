"""Whether a file still says what Python imported from it, so that its text is what runs.

A module that was imported is not read again when its file is edited, as by whoever works in a
notebook. What a run keeps as its source would then be another network than the one it trained.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from halfmeg.places.place import HandedOver
from halfmeg.places.source import Source, read_source

RUN_ANEW = "halfmeg_place_"
"""Begins the names of modules that are run anew by themselves when their file is another."""

_seen: dict[str, tuple[Any, Source]] = {}
"""What was found at a place when it was last looked at, and the text there."""


def check_current(place: str, obj: Any) -> None:
    """Raise where the text at a place is no longer that of the object that was imported from it.

    Edits of comments and docstrings alone change nothing. Before it is looked at for the first
    time, only what its functions do is known, not the values at the top of the module.

    Args:
        place: of the object.
        obj: what Python has there.

    Raises:
        ValueError: the text is another, or no Python; it names the file.
    """
    source = read_source(place)
    if "site-packages" in Path(source.file).parts:  # nobody edits what was installed
        return
    known, then = _seen.get(place, (None, source))
    is_known = known is obj and not isinstance(place, HandedOver)
    if known is obj and then.texts == source.texts:
        return
    edited = (_edited(then, source) if is_known else None) or _unlike_imported(source)
    if edited is not None:
        raise ValueError(
            f"{place}: {edited} was edited after Python had imported it, so its text is not what "
            "would run; start Python anew, or import it again by importlib.reload"
        )
    _seen[place] = obj, source


def _edited(then: Source, now: Source) -> str | None:
    """Return the file in which another text says something else; None without one."""
    for name in sorted({*then.texts, *now.texts}):
        if _meaning(then.texts.get(name, "")) != _meaning(now.texts.get(name, "")):
            return name
    return None


def _meaning(text: str) -> str | None:
    """Return what Python reads in a text, without docstrings; None where it is no Python."""
    try:
        tree = ast.parse(text.encode())
    except (SyntaxError, ValueError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_docstring(part)]
    return ast.dump(tree)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _unlike_imported(source: Source) -> str | None:
    """Return the file of which a module that was imported has functions that do something else."""
    first = next(iter(source.texts), "")
    root = Path(source.file).parents[len(Path(first).parts) - 1] if source.file else Path()
    by_file = {root / name: name for name in source.texts} if source.file else {}
    names = {path.name for path in by_file}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or Path(file).name not in names:
            continue
        name = by_file.get(Path(file).resolve())
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if name is None or module.__name__.startswith(RUN_ANEW):
            continue
        if loader is not None and type(loader) is not SourceFileLoader:
            continue  # it runs another text than the file's, as pytest does of its tests
        if not _has_code_of(module, source.texts[name]):
            return name
    return None


def _has_code_of(module: ModuleType, text: str) -> bool:
    """Return whether each function of a module is one of those that a text has."""
    try:
        whole = compile(text.encode(), str(module.__file__), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    there = {_essence(code) for code in _codes(whole)}
    return all(_essence(function.__code__) in there for function in _functions(module, whole))


def _functions(holder: Any, whole: CodeType) -> Iterator[FunctionType]:
    """Yield the functions of a module or class, and of the classes in it, that its file holds."""
    for value in list(vars(holder).values()):
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        if isinstance(value, type):
            if value.__qualname__.startswith(getattr(holder, "__qualname__", "")) and (
                value is not holder
                and value.__module__ == getattr(holder, "__module__", holder.__name__)
            ):
                yield from _functions(value, whole)
        elif isinstance(value, FunctionType):
            value = inspect.unwrap(value)
            code = getattr(value, "__code__", None)
            if isinstance(code, CodeType) and code.co_filename == whole.co_filename:
                yield value


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def _essence(code: CodeType) -> tuple[Any, ...]:
    """Return what code does, wherever it stands: all but its lines and its docstring."""
    marked = getattr(inspect, "CO_HAS_DOCSTRING", None)  # before Python 3.14 it, or None, is first
    is_named = not code.co_name.startswith("<")
    first = is_named if marked is None else bool(code.co_flags & marked)
    return (
        code.co_qualname, code.co_code, code.co_names, code.co_varnames, code.co_freevars,
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount,
        tuple(
            _essence(value) if isinstance(value, CodeType) else _spelled(value)
            for value in code.co_consts[first:]
        ),
    )  # fmt: skip


def _spelled(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

"""Whether a file still says what Python imported from it, so that its text is what runs.

A module that was imported is not read again when its file is edited, as by whoever works in a
notebook. What a run keeps as its source would then be another network than the one it trained.
"""

from __future__ import annotations

import dis
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
    if source.is_installed:
        return
    known, then = _seen.get(place, (None, source))
    is_known = known is obj and not isinstance(place, HandedOver)
    edited = source.first_change(then.texts) if is_known else _unlike_imported(source, obj)
    if edited is not None:
        raise ValueError(
            f"{place}: {edited.partition(': ')[0]} was edited after Python had imported it, so its "
            "text is not what would run; start Python anew, or import it again by "
            "importlib.reload and hand it over again"
        )
    _seen[place] = obj, source


def _unlike_imported(source: Source, obj: Any) -> str | None:
    """Return the file of which a module that was imported has functions that do something else.

    The object itself may be of a module from before it was imported again.
    """
    first = next(iter(source.texts), "")
    root = Path(source.file).parents[len(Path(first).parts) - 1] if source.file else Path()
    by_file = {root / name: name for name in source.texts} if source.file else {}
    names = {path.name for path in by_file}
    for module in list(sys.modules.values()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if not isinstance(file, str) or Path(file).name not in names:
            continue
        name = by_file.get(Path(file).resolve())
        loader = getattr(getattr(module, "__spec__", None), "loader", None)
        if name is None or module.__name__.startswith(RUN_ANEW):
            continue
        if loader is not None and type(loader) is not SourceFileLoader:
            continue  # it runs another text than the file's, as pytest does of its tests
        own = obj if isinstance(obj, type | FunctionType) else type(obj)
        holders = [module, *([own] if own.__module__ == module.__name__ else [])]
        if not all(_has_code_of(holder, file, source.texts[name]) for holder in holders):
            return name
    return None


def _has_code_of(holder: Any, file: str, text: str) -> bool:
    """Return whether each function of a module or class is one of those that a text has."""
    try:
        whole = compile(text.encode(), file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return False
    there = {_essence(code) for code in _codes(whole)}
    return all(_essence(function.__code__) in there for function in _functions(holder, whole))


def _functions(holder: Any, whole: CodeType) -> Iterator[FunctionType]:
    """Yield the functions of a module or class, and of the classes in it, that its file holds."""
    for name, value in list(vars(holder).items()):
        if isinstance(holder, ModuleType) and name not in whole.co_names:
            continue  # brought in by a star, or left over from before a reload
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
    """Return what code does, wherever it stands: its instructions, with what they refer to.

    So neither lines nor a docstring count. Of a class the functions alone do.
    """
    inner = tuple(_essence(value) for value in code.co_consts if isinstance(value, CodeType))
    if not code.co_flags & inspect.CO_OPTIMIZED:
        return code.co_qualname, inner
    steps = tuple(
        (step.opname, _spelled(step.argval))
        for step in dis.get_instructions(code)
        if not isinstance(step.argval, CodeType)
    )
    return code.co_qualname, inner, steps, code.co_varnames, code.co_argcount


def _spelled(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)

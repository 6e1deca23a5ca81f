"""What stands at a place, loaded and called; whatever goes wrong there is one line."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from halfmeg.errors import did_you_mean, with_kind
from halfmeg.places.current import RUN_ANEW, check_current
from halfmeg.places.place import (
    HANDED_OVER,
    IN_FILE,
    IN_MODULE,
    file_of,
    first_on_path,
    handed_over,
    locate,
)
from halfmeg.places.settings import Value, split_settings
from halfmeg.places.source import Source, read_source

_modules: dict[Path, tuple[str, ModuleType]] = {}

_MISSING = object()

RELATIVE = "attempted relative import with no known parent package"
"""What Python says of a file of a package that is run by itself."""

_brought_in: set[str] = set()
"""Modules that files named by a user have imported from beside them."""


def load(place: str) -> Any:
    """Return what stands at a place.

    Raises:
        ValueError: nothing does, or the Python there cannot be imported; in one line.
    """
    found = IN_FILE.fullmatch(place)
    if handed_over(place) is not None and (
        not found or locate(place) == file_of(handed_over(place))
    ):
        check_current(place, handed_over(place))
        return handed_over(place)
    if place.startswith(HANDED_OVER):
        raise ValueError(
            f"{place} was an object of the Python process that handed it over; "
            "hand it over again from Python, or name it as FILE.py:NAME"
        )
    if found:
        path = locate(place)
        assert path is not None
        obj = _member(_load_file(path, place), found["name"], place)
        check_current(place, obj)  # a neighbour may have been imported before
        return obj
    if (found := IN_MODULE.fullmatch(place)) is None:
        raise ValueError(
            f"{place!r} is no place; write FILE.py:NAME, package.module:NAME or timm:NAME"
        )
    missing: str | None = None
    with running(place), first_on_path(None):
        try:
            module = importlib.import_module(found["module"])
        except ModuleNotFoundError as error:
            if not (error.name and f"{found['module']}.".startswith(f"{error.name}.")):
                raise
            missing = error.name
    if missing is not None:
        raise ValueError(f"{place}: there is no module {missing!r}")
    obj = _member(module, found["name"], place)
    check_current(place, obj)
    return obj


@contextmanager
def running(place: str, doing: str = "raises on import") -> Iterator[None]:
    """Run Python of the user's: what it prints goes to the error stream, what it raises is a line.

    Its modules leave no compiled form beside them. That is found stale by its second and size only,
    so a module changed twice within a second would be the former one.

    Raises:
        ValueError: it raised anything.
    """
    writes_nothing, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit, or a kind of its own
        raise ValueError(f"{place} {doing}: {describe(error, place)}") from None
    finally:
        sys.dont_write_bytecode = writes_nothing


def describe(error: BaseException, place: str) -> str:
    """Return kind, text and line of what Python at a place raised, on one line."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.msg} (line {error.lineno})"
    known = {str(path) for path in _modules} | {str(file_of(handed_over(place)) or "")}
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in known]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{with_kind(error, 300)}{where}"


def blame(error: BaseException) -> str | None:
    """Return kind, text, file and line of what Python of the user's own raised; None for all else.

    An error is the user's where their Python is what raised it, or called what did.
    """
    files = {str(path) for path in _modules}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in files:
            where = f"{Path(frame.filename).name}, line {frame.lineno}"
            return f"{with_kind(error, 300)} ({where})"
    return None


def call(place: str, function: Any, /, **offered: Any) -> Any:
    """Call what stands at a place with those of the offered values that its signature has.

    Raises:
        ValueError: it is nothing to call, needs an argument that is not offered, or raises.
    """
    if not callable(function):
        kind = type(function).__name__
        raise ValueError(f"{place} is a {kind}, nothing to call; a class or function is expected")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # one that is written in C
        parameters = []
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for parameter in parameters:
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD,
        )  # fmt: skip
        if needed and parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in offered:
            raise ValueError(
                f"{place} takes {parameter.name!r} by its position only, and it is given by name; "
                "leave out the '/' of its signature"
            )
        if needed and (parameter not in named or parameter.name not in offered):
            given = f"{', '.join(offered)} alone" if offered else "no arguments"
            raise ValueError(
                f"{place} needs the argument {parameter.name!r}; give it a default, "
                f"since it is called with {given}"
            )
    names = {parameter.name for parameter in named}
    with running(place, "raises when it is called"):
        return function(**{key: value for key, value in offered.items() if key in names})


def settings_of(place: str, function: Any) -> dict[str, Value]:
    """Return the settings behind the name at a place, which what is called there takes.

    Raises:
        ValueError: its signature has none of that name, or they are no settings.
    """
    _, settings = split_settings(place)
    if unknown := [key for key in settings if not takes(function, key)]:
        raise ValueError(f"{place}: its signature has no {unknown[0]!r}")
    return settings


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function's signature has a parameter of that name."""
    try:
        return name in inspect.signature(function).parameters
    except (ValueError, TypeError):
        return False


def _member(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        with running(place):  # a module's own __getattr__, or a property
            value = getattr(value, part, _MISSING)
        if value is _MISSING:
            own = [
                key for key, item in vars(module).items()
                if callable(item) and getattr(item, "__module__", None) == module.__name__
            ]  # fmt: skip
            hint = did_you_mean(name, own)
            raise ValueError(f"{place}: there is no {name!r}; {hint}found: {', '.join(own) or '–'}")
    return value


def _as_module(path: Path, place: str) -> str:
    """Say how a file within a package is named, so that its relative imports work."""
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return f"from {folder} name it as {'.'.join(names)}:{place.rpartition(':')[2]}"


def _load_file(path: Path, place: str) -> ModuleType:
    """Run a file as a module of its own; again only where it or a neighbour has changed."""
    source = read_source(place)
    loaded = _modules.get(path)
    if loaded and loaded[0] == source.sha256:
        return loaded[1]
    try:
        code = compile(source.texts[source.entry].encode(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{place} is no Python: {describe(error, place)}") from None
    _require_unedited(source, path.parent)
    for text in source.texts:  # those of the same name that another place has brought in, too
        if (neighbour := _module_name(text)) in _brought_in:
            sys.modules.pop(neighbour, None)
    name = f"{RUN_ANEW}{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module  # where dataclasses and inspect look for it
    _modules[path] = (source.sha256, module)
    try:
        with running(place), first_on_path(path.parent):
            exec(code, vars(module))
    except ValueError as error:
        del sys.modules[name], _modules[path]
        if RELATIVE in str(error) and (path.parent / "__init__.py").exists():
            raise ValueError(f"{error}; {_as_module(path, place)}") from None
        raise
    _brought_in.update({_module_name(text) for text in source.texts} & (set(sys.modules) - before))
    return module


def _require_unedited(source: Source, root: Path) -> None:
    """Raise where a neighbour is imported that is another than when the study began to train.

    Raises:
        ValueError: its text is not what is held.
    """
    for name in source.texts.keys() - {source.entry}:
        try:
            same = (root / name).read_text() == source.texts[name]
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            raise ValueError(
                f"{source.place}: {name} was edited since the study began to train; put back what "
                "its runs keep, or train anew with another --out"
            )


def _module_name(text: str) -> str:
    return text.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

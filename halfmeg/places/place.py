"""What a place is, which one a Python object has, and where its file lies."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import all_suffixes
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"

SETTINGS = r"(?P<settings>\([^()]*\))?"
"""Of a network, behind its name (`halfmeg.places.settings`)."""

IN_FILE = re.compile(rf"(?P<file>.+\.py):(?P<name>{NAME}){SETTINGS}")

IN_MODULE = re.compile(rf"(?P<module>{NAME}):(?P<name>{NAME}){SETTINGS}")

TIMM = "timm:"

HANDED_OVER = "python:"

MAX_NAME_BYTES = 160


class PlaceWarning(UserWarning):
    """Something that a user should know of Python of their own; training goes on."""


_handed_over: dict[str, Any] = {}

_remembered: dict[str, Path] = {}

_settled: dict[str, Path] = {}


def is_place(text: str) -> bool:
    """Return whether a text names a place, and not something of a table."""
    return ":" in text


def short_name(place: str) -> str:
    """Return a place without the folders in front of its file, as it is shown."""
    found = IN_FILE.fullmatch(place)
    if found is None:
        return place
    return f"{Path(found['file']).name}:{found['name']}{found['settings'] or ''}"


def file_name(place: str) -> str:
    """Return a name for files and folders that a place, or any other name, decides.

    The end of a long one, as of a network with many settings, is a hash of it.
    """
    name = re.sub(r"[^\w.+-]+", "-", short_name(place).replace(".py:", "-")).strip("-.")
    return shortened(name, "-")


def shortened(name: str, joint: str) -> str:
    """Return a name, of a long one the start and a hash of it with a joint between.

    A file system takes 255 bytes, and more may follow.
    """
    content = name.encode()
    if len(content) <= MAX_NAME_BYTES:
        return name
    ending = hashlib.sha256(content).hexdigest()[:8]
    return f"{content[: MAX_NAME_BYTES - 9].decode(errors='ignore')}{joint}{ending}"


def hand_over(obj: Any) -> str:
    """Return the place of a Python object, so that it can stand where a name does.

    What stands at the top of a file or module has its place there. Anything else, such as an
    instance or a function within another, is `python:NAME`, known in this process alone. A text is
    returned as it is.
    """
    if isinstance(obj, str):
        return obj
    place = _place_in_file(obj)
    if not place:
        for place, known in _handed_over.items():
            if known is obj:
                return place
        name = getattr(obj, "__name__", type(obj).__name__)
        name = re.sub(r"\W", "", name) or "object"
        taken = [p for p in _handed_over if re.fullmatch(rf"{HANDED_OVER}{name}(_\d+)?", p)]
        place = f"{HANDED_OVER}{name}" + (f"_{len(taken) + 1}" if taken else "")
    provide(place, obj)
    return place


def provide(place: str, obj: Any) -> None:
    """Say what stands at a place in this process, as for a run that an object was handed to."""
    _handed_over[place] = obj


def check_in_file(places: Iterable[str], where: str) -> None:
    """Raise where other processes could not load what was handed over.

    Raises:
        ValueError: one of the places is known in this process alone.
    """
    for place in places:
        if place.startswith(HANDED_OVER):
            raise ValueError(
                f"{place} stands at the top of no file, so {where} cannot load it; "
                f"write it into a FILE.py and name it as FILE.py:NAME"
            )


def remember(place: str, file: str) -> None:
    """Say where a place was, for when it is not found from the folder that is worked in now."""
    if file:
        _remembered[place] = Path(file)


def settle_at(place: str, path: Path) -> None:
    """Say where on this machine the file lies that another machine named."""
    _settled[place] = path


def locate(place: str) -> Path | None:
    """Return the file of a place; None where it has none.

    Raises:
        ValueError: the file that it names does not exist.
    """
    if place.startswith((TIMM, HANDED_OVER)):
        return file_of(_handed_over.get(place))
    if found := IN_FILE.fullmatch(place):
        path = Path(found["file"])
        remembered = _remembered.get(place) or file_of(_handed_over.get(place)) or path
        for candidate in (_settled.get(place, path), path, remembered):
            if candidate.is_file():
                return candidate.resolve()
        raise ValueError(f"{place}: {path} {'is no file' if path.exists() else 'does not exist'}")
    if found := IN_MODULE.fullmatch(place):
        if found["module"] in sys.modules:
            return file_of(sys.modules[found["module"]])
        with first_on_path(None):  # of the package around it, for which no Python has to run
            spec = importlib.util.find_spec(found["module"].partition(".")[0])
        return Path(spec.origin).resolve() if spec and spec.origin else None
    return None


def files_of_module(place: str) -> list[Path]:
    """Return all files that a module's place may run, from wherever modules are looked for.

    Those of the packages around it run first. Packages without an `__init__.py` have no file of
    their own by which `locate` would know them.
    """
    found = IN_MODULE.fullmatch(place)
    if found is None:
        return []
    path = Path(*found["module"].split("."))
    modules = (path, *path.parents[:-1])
    stems = [stem for module in modules for stem in (module, module / "__init__")]
    below = [stem.with_name(stem.name + ending) for stem in stems for ending in all_suffixes()]
    files = [Path(base) / file for base in ("", *sys.path) for file in below]
    return [file.resolve() for file in files if file.is_file()]


def handed_over(place: str) -> Any:
    """Return the object that was handed over as a place; None where none was."""
    return _handed_over.get(place)


@contextmanager
def first_on_path(folder: Path | None) -> Iterator[None]:
    """Look for modules in a folder first, as for a script there, and afterwards last.

    Without a folder it is the one that is worked in, and it is looked in last.
    """
    text = str(folder or Path.cwd())
    before = list(sys.path)
    if folder:
        sys.path.insert(0, text)
    elif text not in sys.path:
        sys.path.append(text)
    try:
        yield
    finally:
        if folder:
            sys.path.remove(text)
            if text not in before:
                sys.path.append(text)  # for imports within functions


def file_of(obj: Any) -> Path | None:
    """Return the file of a module, or that an object was written in; None where there is none."""
    if obj is None:
        return None
    if isinstance(obj, ModuleType):
        file = getattr(obj, "__file__", None) or ""
    elif code := code_of(obj):
        file = code.co_filename  # that of a cell of a notebook does not exist
    else:
        module = sys.modules.get(getattr(obj, "__module__", None) or type(obj).__module__)
        file = getattr(module, "__file__", None) or ""
    return Path(file).resolve() if file.endswith(".py") and Path(file).is_file() else None


def code_of(obj: Any) -> CodeType | None:
    """Return the code of a function, or of a method of a class or an instance's class."""
    if isinstance(obj, functools.partial):
        return code_of(obj.func)
    if inspect.isfunction(obj):
        return obj.__code__
    kind = obj if isinstance(obj, type) else type(obj)
    for value in vars(kind).values():
        if inspect.isfunction(value) and value.__code__.co_filename != "<string>":
            return value.__code__  # one that a decorator has written is in no file
    return None


def _place_in_file(obj: Any) -> str:
    """Return the place of a class or function at the top of a file; empty for all else."""
    name, module = getattr(obj, "__qualname__", ""), sys.modules.get(getattr(obj, "__module__", ""))
    if not re.fullmatch(NAME, name) or module is None:
        return ""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    file = file_of(module)
    if value is not obj or file is None:
        return ""
    if "." in module.__name__ and module.__spec__ is not None:
        return f"{module.__name__}:{name}"
    working = Path.cwd()
    return f"{file.relative_to(working) if working in file.parents else file}:{name}"

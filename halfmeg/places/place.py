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


class HandedOver(str):
    """The place of an object that stands in no file, `python:NAME`, with the object itself.

    Only a text that carries its object stands for it, so those of the same name that were handed
    over at other times are never taken for each other.
    """

    obj: Any

    def __new__(cls, place: str, obj: Any) -> HandedOver:
        """Return the text with its object."""
        carrying = super().__new__(cls, place)
        carrying.obj = obj
        return carrying

    def __deepcopy__(self, memo: dict[int, Any]) -> HandedOver:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)  # to another process its name goes alone


_provided: dict[str, Any] = {}
"""By their place in a file, the classes and functions that were handed over."""

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
    if place := _place_in_file(obj):
        _provided[place] = obj
        return place
    name = re.sub(r"\W", "", getattr(obj, "__name__", type(obj).__name__))
    return HandedOver(f"{HANDED_OVER}{name or 'object'}", obj)


def hand_over_as(place: str, obj: Any) -> str:
    """Return a place at which an object stands, as for a run that was made with it."""
    if place.startswith(HANDED_OVER):
        return HandedOver(place, obj)
    _provided[place] = obj
    return place


def numbered(places: Iterable[str]) -> list[str]:
    """Return places of one call, with a number behind the name where other objects have it."""
    told: list[str] = []
    objects: dict[str, Any] = {}
    for place in places:
        if isinstance(place, HandedOver):
            first, count = place, 1
            while objects.setdefault(place, first.obj) is not first.obj:
                count += 1
                place = HandedOver(f"{first}_{count}", first.obj)
        told.append(place)
    return told


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
        return file_of(handed_over(place))
    if found := IN_FILE.fullmatch(place):
        path = Path(found["file"])
        remembered = _remembered.get(place) or file_of(handed_over(place)) or path
        for candidate in (_settled.get(place, path), path, remembered):
            if candidate.is_file():
                return candidate.resolve()
        raise ValueError(f"{place}: {path} {'is no file' if path.exists() else 'does not exist'}")
    if found := IN_MODULE.fullmatch(place):
        if found["module"] in sys.modules:
            return file_of(sys.modules[found["module"]])
        return _file_of_module(found["module"])
    return None


def _file_of_module(name: str) -> Path | None:
    """Return the file of a module that is not imported, for which no Python has to run.

    Of one that only its package can make, while that is imported, it is the package's file.
    """
    first, *below = name.split(".")
    with first_on_path(None):
        spec = importlib.util.find_spec(first)
    if spec is None:
        return None
    file = Path(spec.origin) if spec.origin else None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in below:
        stems = [folder / stem for folder in folders for stem in (Path(part, "__init__"), part)]
        files = [stem.with_name(stem.name + ending) for stem in stems for ending in all_suffixes()]
        file = next(filter(Path.is_file, files), file)
        folders = [folder / part for folder in folders]
    return file.resolve() if file else None


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
    return place.obj if isinstance(place, HandedOver) else _provided.get(place)


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

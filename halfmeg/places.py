"""Places of Python that a user names: a network, a recipe, a loss of one's own.

| place | stands for |
|---|---|
| `FILE.py:NAME` | what a file calls NAME |
| `package.module:NAME` | what a module calls NAME, found as Python finds it, or in this folder |
| `timm:NAME` | a network of timm |
| `python:NAME` | an object that was handed over in this process and stands in no file |

Python runs only where the user named its place. What a run folder keeps is text to read, with its
hash; nothing is loaded from there.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
IN_FILE = re.compile(rf"(?P<file>.+\.py):(?P<name>{NAME})")
IN_MODULE = re.compile(rf"(?P<module>{NAME}):(?P<name>{NAME})")
TIMM = "timm:"
HANDED_OVER = "python:"
MAX_FILES = 200
"""A module that imports more of its neighbours is kept and hashed up to here."""


class PlaceWarning(UserWarning):
    """Something that a user should know of Python of their own; training goes on."""


@dataclass(frozen=True)
class Source:
    """The text that stands at a place.

    Attributes:
        place: as the user named it.
        file: where the text was found, absolute; empty where it is in no file.
        texts: the module by its path, and those of its neighbours that it imports.
    """

    place: str
    file: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The hash of all texts with their paths."""
        digest = hashlib.sha256()
        for name, text in sorted(self.texts.items()):
            digest.update(f"{name}\0{text}\0".encode())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return what describes the source, without its texts."""
        return {
            "place": self.place, "file": self.file, "sha256": self.sha256,
            "texts": sorted(self.texts),
        }  # fmt: skip


_handed_over: dict[str, Any] = {}
_remembered: dict[str, Path] = {}
_sources: dict[str, Source] = {}
_modules: dict[Path, tuple[str, ModuleType]] = {}
_brought_in: set[str] = set()
"""Modules that files named by a user have imported from beside them."""


def is_place(text: str) -> bool:
    """Return whether a text names a place, and not something of a table."""
    return ":" in text


def short_name(place: str) -> str:
    """Return a place without the folders in front of its file, as it is shown."""
    found = IN_FILE.fullmatch(place)
    return f"{Path(found['file']).name}:{found['name']}" if found else place


def file_name(place: str) -> str:
    """Return a name for files and folders that a place, or any other name, decides."""
    return re.sub(r"[^\w.+-]+", "-", short_name(place).replace(".py:", "-")).strip("-.")


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


def settle(source: Source, folder: Path) -> None:
    """Write the texts of a source into a folder of this machine, and find its place there.

    For a node of a cluster that trains what another machine named.
    """
    for name, text in source.texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _sources[source.place] = source
    if found := IN_FILE.fullmatch(source.place):
        _remembered[source.place] = folder / Path(found["file"]).name
    elif source.texts and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def load(place: str) -> Any:
    """Return what stands at a place.

    Raises:
        ValueError: nothing does, or the Python there cannot be imported; in one line.
    """
    found = IN_FILE.fullmatch(place)
    if place in _handed_over and (not found or locate(place) == _file_of(_handed_over[place])):
        return _handed_over[place]
    if place.startswith(HANDED_OVER):
        raise ValueError(
            f"{place} was an object of the Python process that handed it over; "
            f"hand it over again from Python (model=), or name it as FILE.py:NAME"
        )
    if found:
        path = locate(place)
        assert path is not None
        return _member(_load_file(path, place), found["name"], place)
    if (found := IN_MODULE.fullmatch(place)) is None:
        raise ValueError(
            f"{place!r} is no place; write FILE.py:NAME, package.module:NAME or timm:NAME"
        )
    with running(place), _first_on_path(None):
        try:
            module = importlib.import_module(found["module"])
        except ModuleNotFoundError as error:
            if error.name and f"{found['module']}.".startswith(f"{error.name}."):
                raise ValueError(f"{place}: there is no module {error.name!r}") from None
            raise
    return _member(module, found["name"], place)


def locate(place: str) -> Path | None:
    """Return the file of a place; None where it has none.

    Raises:
        ValueError: the file that it names does not exist.
    """
    if place.startswith((TIMM, HANDED_OVER)):
        return _file_of(_handed_over.get(place))
    if found := IN_FILE.fullmatch(place):
        path = Path(found["file"])
        remembered = _remembered.get(place) or _file_of(_handed_over.get(place)) or path
        for candidate in (remembered, path) if place in _sources else (path, remembered):
            if candidate.is_file():
                return candidate.resolve()
        raise ValueError(f"{place}: {path} {'is no file' if path.exists() else 'does not exist'}")
    if found := IN_MODULE.fullmatch(place):
        if found["module"] in sys.modules:
            return _file_of(sys.modules[found["module"]])
        with _first_on_path(None):  # of the package around it, for which no Python has to run
            spec = importlib.util.find_spec(found["module"].partition(".")[0])
        return Path(spec.origin).resolve() if spec and spec.origin else None
    return None


def read_source(place: str) -> Source:
    """Return the text that stands at a place: its module, and the neighbours that it imports.

    Raises:
        ValueError: its file does not exist, or cannot be read.
    """
    if place in _sources:
        return _sources[place]
    path = locate(place)
    if path is None:
        return Source(place, "", _text_of_object(place))
    root = path.parent
    if (found := IN_MODULE.fullmatch(place)) and not IN_FILE.fullmatch(place):
        depth = len(found["module"].split(".")) - (path.name != "__init__.py")
        root = path.parents[max(0, depth)]
    texts = {}
    for file in _with_neighbours(path, root):
        try:
            texts[file.relative_to(root).as_posix()] = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{place}: {file.name} cannot be read: {error}") from None
    return Source(place, str(path), texts)


@contextmanager
def running(place: str, doing: str = "raises on import") -> Iterator[None]:
    """Run Python of the user's: what it prints goes to the error stream, what it raises is a line.

    Raises:
        ValueError: it raised anything.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except (Exception, SystemExit) as error:
        raise ValueError(f"{place} {doing}: {describe(error, place)}") from None


def describe(error: BaseException, place: str) -> str:
    """Return kind, text and line of what Python at a place raised, on one line."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.msg} (line {error.lineno})"
    text = " ".join(str(error).split())[:300]
    known = {str(path) for path in _modules} | {str(_file_of(_handed_over.get(place)) or "")}
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in known]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}{f': {text}' if text else ''}{where}"


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
        if needed and (parameter not in named or parameter.name not in offered):
            raise ValueError(
                f"{place} needs the argument {parameter.name!r}; give it a default, "
                f"since it is called with {', '.join(offered)} alone"
            )
    names = {parameter.name for parameter in named}
    with running(place, "raises when it is called"):
        return function(**{key: value for key, value in offered.items() if key in names})


def takes(function: Callable[..., Any], name: str) -> bool:
    """Return whether a function's signature has a parameter of that name, or any."""
    try:
        return name in inspect.signature(function).parameters
    except (ValueError, TypeError):
        return False


def _member(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            own = [
                key for key, item in vars(module).items()
                if callable(item) and getattr(item, "__module__", None) == module.__name__
            ]  # fmt: skip
            close = difflib.get_close_matches(name, own, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{place}: there is no {name!r}; {hint}found: {', '.join(own) or '–'}")
        value = getattr(value, part)
    return value


def _load_file(path: Path, place: str) -> ModuleType:
    """Run a file as a module of its own; again only where it or a neighbour has changed."""
    source = read_source(place)
    loaded = _modules.get(path)
    if loaded and loaded[0] == source.sha256:
        return loaded[1]
    try:
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{place} is no Python: {describe(error, place)}") from None
    for text in source.texts:  # those of the same name that another place has brought in, too
        if (neighbour := _module_name(text)) in _brought_in:
            sys.modules.pop(neighbour, None)
    name = f"halfmeg_place_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    before = set(sys.modules)
    sys.modules[name] = module  # where dataclasses and inspect look for it
    _modules[path] = (source.sha256, module)
    try:
        with running(place), _first_on_path(path.parent):
            exec(code, vars(module))
    except ValueError:
        del sys.modules[name], _modules[path]
        raise
    _brought_in.update({_module_name(text) for text in source.texts} & (set(sys.modules) - before))
    return module


def _module_name(text: str) -> str:
    return text.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@contextmanager
def _first_on_path(folder: Path | None) -> Iterator[None]:
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


def _file_of(obj: Any) -> Path | None:
    """Return the file of a module, or that an object was written in; None where there is none."""
    if obj is None:
        return None
    if isinstance(obj, ModuleType):
        file = getattr(obj, "__file__", None) or ""
    elif code := _code_of(obj):
        file = code.co_filename  # that of a cell of a notebook does not exist
    else:
        module = sys.modules.get(getattr(obj, "__module__", None) or type(obj).__module__)
        file = getattr(module, "__file__", None) or ""
    return Path(file).resolve() if file.endswith(".py") and Path(file).is_file() else None


def _code_of(obj: Any) -> CodeType | None:
    """Return the code of a function, or of a method of a class or an instance's class."""
    if isinstance(obj, functools.partial):
        return _code_of(obj.func)
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
    file = _file_of(module)
    if value is not obj or file is None:
        return ""
    if "." in module.__name__ and module.__spec__ is not None:
        return f"{module.__name__}:{name}"
    working = Path.cwd()
    return f"{file.relative_to(working) if working in file.parents else file}:{name}"


def _text_of_object(place: str) -> dict[str, str]:
    """Return the text of an object that stands in no file, as in a notebook, if there is one."""
    if place.startswith(TIMM):
        return {"timm": f"timm {getattr(sys.modules.get('timm'), '__version__', '')}"}
    code = _code_of(_handed_over.get(place))
    text = "".join(linecache.getlines(code.co_filename)) if code else ""  # the whole cell
    return {f"{file_name(place)}.py": text} if text else {}


def _with_neighbours(entry: Path, root: Path) -> list[Path]:
    """Return a file, and those below `root` that it imports, and those that they do."""
    found: dict[Path, None] = {entry: None}
    queue = [entry] if "site-packages" not in entry.parts else []
    for path in queue:
        for folder in path.relative_to(root).parents:
            package = root / folder / "__init__.py"
            if folder != Path() and package.is_file() and package not in found:
                found[package] = None
                queue.append(package)
        for imported in _imported_files(path, root):
            if imported not in found and len(found) < MAX_FILES:
                found[imported] = None
                queue.append(imported)
    return list(found)


def _imported_files(path: Path, root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return  # whoever loads it says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bases, names = [root], [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            start = f"{node.module}." if node.module else ""
            bases = [base]
            names = [node.module or "", *(f"{start}{alias.name}" for alias in node.names)]
        else:
            continue
        for base in bases:
            for name in filter(None, names):
                stem = base.joinpath(*name.split("."))
                for file in (stem.with_suffix(".py"), stem / "__init__.py"):
                    if file.is_file() and root in file.parents:
                        yield file

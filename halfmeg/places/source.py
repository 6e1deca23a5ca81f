"""The text that stands at a place, with that of the neighbours that it imports, and its hash."""

from __future__ import annotations

import ast
import hashlib
import linecache
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from halfmeg.places.definitions import definitions
from halfmeg.places.place import (
    HANDED_OVER,
    IN_FILE,
    IN_MODULE,
    TIMM,
    code_of,
    file_name,
    handed_over,
    locate,
    settle_at,
)

MAX_FILES = 200
"""A module that imports more of its neighbours is kept and hashed up to here."""

_sources: dict[str, Source] = {}
"""By their places without settings, the texts that are held."""


@dataclass(frozen=True)
class Source:
    """The text that stands at a place.

    Attributes:
        place: as the user named it.
        file: where the text was found, absolute; empty where it is in no file.
        texts: the module by its path, and those of its neighbours that it imports.
        entry: the path of the module.
    """

    place: str
    file: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)
    entry: str = ""

    @property
    def sha256(self) -> str:
        """The hash of all texts with their paths."""
        digest = hashlib.sha256()
        for name, text in sorted(self.texts.items()):
            digest.update(f"{name}\0{text}\0".encode())
        return digest.hexdigest()

    @property
    def is_installed(self) -> bool:
        """Whether it belongs to a package that was installed, so nobody edits it."""
        return not {"site-packages", "dist-packages"}.isdisjoint(Path(self.file).parts)

    def first_change(self, before: Mapping[str, str]) -> str | None:
        """Return the first of the definitions at the place that differs from those of other texts.

        Those alone count that the place comes to (`halfmeg.places.definitions`). What is installed
        may change with its version; of it, and of texts that are no Python, nothing is known.

        Args:
            before: the texts that stood there.

        Returns:
            It as `FILE: NAME`; None where there is none.
        """
        if not before or self.entry not in self.texts or self.is_installed:
            return None
        if self.entry not in before:
            return self.entry
        name = _top_name(self.place)
        try:
            then, now = (definitions(texts, self.entry, name) for texts in (before, self.texts))
        except ValueError:
            return None
        return next((key for key in now | then if now.get(key) != then.get(key)), None)

    def to_dict(self) -> dict[str, Any]:
        """Return what describes the source, without its texts."""
        return {
            "place": self.place, "file": self.file, "sha256": self.sha256,
            "texts": sorted(self.texts),
        }  # fmt: skip


def read_source(place: str) -> Source:
    """Return the text that stands at a place: its module, and the neighbours that it imports.

    Raises:
        ValueError: its file does not exist, or cannot be read.
    """
    if (held := _sources.get(_plain(place))) is not None:
        return replace(held, place=place)
    path = locate(place)
    if path is None:
        texts = _text_of_object(place)
        return Source(place, "", texts, next(iter(texts), ""))
    root = _root_of(place, path)
    texts = {}
    for file in _with_neighbours(path, root):
        try:
            texts[file.relative_to(root).as_posix()] = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{place}: {file.name} cannot be read: {error}") from None
    return Source(place, str(path), texts, path.relative_to(root).as_posix())


def kept_source(place: str, file: str, texts: Mapping[str, str]) -> Source:
    """Return the source that stood at a place, from what `Source` had of it."""
    path = Path(file)
    entry = path.relative_to(_root_of(place, path)).as_posix() if file else next(iter(texts), "")
    return Source(place, file, texts, entry)


def settle(source: Source, folder: Path) -> None:
    """Write the texts of a source into a folder of this machine, and find its place there.

    For a node of a cluster that trains what another machine named.
    """
    for name, text in source.texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    _sources[_plain(source.place)] = source
    if found := IN_FILE.fullmatch(source.place):
        settle_at(source.place, folder / Path(found["file"]).name)
    elif source.texts and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def holding(places: Iterable[str]) -> Iterator[None]:
    """Let what stands at some places now be what stands there, whatever is edited meanwhile.

    So all runs of a study are of one text. Objects that stand in no file do not change.
    """
    held = {
        _plain(place): read_source(place)
        for place in places
        if not place.startswith((TIMM, HANDED_OVER)) and _plain(place) not in _sources
    }
    hold(held)
    try:
        yield
    finally:
        for place in held:
            del _sources[place]


def held_sources() -> dict[str, Source]:
    """Return what is held, by its places, for other processes to `hold`."""
    return dict(_sources)


def hold(sources: Mapping[str, Source]) -> None:
    """Let texts stand at their places until this process ends."""
    _sources.update(sources)


def _root_of(place: str, path: Path) -> Path:
    """Return the folder below which the texts of a place are named, whose file is at `path`."""
    found = IN_MODULE.fullmatch(place)
    if found is None or IN_FILE.fullmatch(place):
        return path.parent
    depth = len(found["module"].split(".")) - (path.name != "__init__.py")
    return path.parents[max(0, depth)]


def _plain(place: str) -> str:
    """Return a place without the settings of a network there."""
    found = IN_FILE.fullmatch(place) or IN_MODULE.fullmatch(place)
    return f"{found[1]}:{found['name']}" if found else place


def _top_name(place: str) -> str:
    """Return what a module calls what a place is of, or is in."""
    if place.startswith(HANDED_OVER):
        obj = handed_over(place)
        code = code_of(obj)
        name = code.co_qualname if code else getattr(obj, "__qualname__", type(obj).__qualname__)
    else:
        found = IN_FILE.fullmatch(place) or IN_MODULE.fullmatch(place)
        name = found["name"] if found else place
    return str(name).partition(".")[0]


def _text_of_object(place: str) -> dict[str, str]:
    """Return the text of an object that stands in no file, as in a notebook, if there is one."""
    if place.startswith(TIMM):
        return {"timm": f"timm {getattr(sys.modules.get('timm'), '__version__', '')}"}
    code = code_of(handed_over(place))
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
            if node.level > len(path.parents):
                continue  # above the topmost folder; whoever loads it says so
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

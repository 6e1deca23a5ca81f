"""A power cut at every write: the log of a process's file operations, replayed to what a disk may
hold after each of them.

As ALICE does (Pillai et al. 2014, "All File Systems Are Not Created Equal"): what fsync has not yet
confirmed may be there, or not, or in part. strace writes the log, so nothing that the process does
to its files is missed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,"
    "rmdir"
)


@dataclass
class Operation:
    """One change to the files: of content, of names, or a confirmation that it is on the disk."""

    what: str
    path: str
    target: str = ""
    content: bytes = b""


def record(code: str, folder: Path, log: Path) -> list[Operation]:
    """Run Python code under strace; return the operations on files below a folder."""
    command = [
        "strace", "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={CALLS}", "-o", str(log),
        sys.executable, "-W", "ignore", "-c", code,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return list(parse(log, str(folder)))


def whole_calls(lines: Iterable[str]) -> Iterator[str]:
    """Join the two lines of a call that another thread's came between, where the second stands."""
    begun: dict[str, str] = {}
    for line in lines:
        thread, _, rest = line.partition(" ")
        if line.rstrip().endswith("<unfinished ...>"):
            begun[thread] = line.rstrip().removesuffix("<unfinished ...>").rstrip()
        elif resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest):
            yield begun.pop(thread) + resumed[1]
        else:
            yield line


def parse(log: Path, folder: str) -> Iterator[Operation]:
    """Yield the operations below a folder from strace's log."""

    def texts(line: str) -> list[bytes]:
        return [bytes.fromhex(t.replace("\\x", "")) for t in re.findall(r'"((?:\\x..)*)"', line)]

    with log.open() as lines:
        for line in whole_calls(lines):
            match = re.match(r"\d+ +(\w+)\((.*)\) += (-?\d+)(.*)$", line.rstrip("\n"))
            if not match or int(match[3]) < 0:
                continue
            call, arguments, result = match[1], match[2], match[4]
            names = texts(arguments)
            # with -xx the paths of descriptors are hexadecimal too
            held = [
                bytes.fromhex(name.replace("\\x", "")).decode()
                for name in re.findall(r"\d<((?:\\x..)+)>", arguments + result)
            ]
            if call == "openat":
                flags = arguments
                path = held[-1] if held else ""
                if path.startswith(folder) and "O_CREAT" in flags and "O_EXCL" in flags:
                    yield Operation("create", path)
                elif path.startswith(folder) and "O_CREAT" in flags:
                    yield Operation("truncate" if "O_TRUNC" in flags else "touch", path)
            elif call in ("write", "pwrite64") and held and held[0].startswith(folder):
                yield Operation("write", held[0], content=names[0])
            elif call in ("fsync", "fdatasync") and held and held[0].startswith(folder):
                yield Operation("fsync", held[0])
            elif call.startswith("rename"):
                old, new = (name.decode() for name in names[:2])
                if new.startswith(folder):
                    yield Operation("rename", old, new)
            elif call.startswith("mkdir") and names[0].decode().startswith(folder):
                yield Operation("mkdir", names[0].decode())
            elif call.startswith("unlink") or call == "rmdir":
                path = names[0].decode()
                if not path.startswith("/") and held:
                    path = f"{held[0]}/{path}"
                if path.startswith(folder):
                    yield Operation("remove", path)


@dataclass
class Node:
    """A file: what the process wrote, and what of it the disk has confirmed."""

    content: bytes = b""
    confirmed: bytes = b""


@dataclass
class Disk:
    """Names and files after some operations.

    Attributes:
        names: what the process sees: path → file, None for a folder.
        kept: what the disk has confirmed of each folder's names.
    """

    names: dict[str, Node | None] = field(default_factory=dict)
    kept: dict[str, Node | None] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Disk:
        """Return a folder as it is on a disk, all of it confirmed."""
        names: dict[str, Node | None] = {
            str(path): Node(content := path.read_bytes(), content) if path.is_file() else None
            for path in folder.rglob("*")
        }
        return cls(names, dict(names))

    def content(self) -> dict[str, bytes | None]:
        """Return what the process sees."""
        return {name: file.content if file else None for name, file in self.names.items()}

    def apply(self, operation: Operation) -> None:
        """Do one operation."""
        path, names = operation.path, self.names
        if operation.what in ("create", "truncate", "touch"):
            if operation.what != "touch" or path not in names:
                node = names.get(path) if operation.what == "truncate" else None
                if node is None:
                    names[path] = Node()
                else:
                    node.content = b""
        elif operation.what == "write":
            node = names.get(path)
            if node is not None:
                node.content += operation.content
        elif operation.what == "mkdir":
            names[path] = None
        elif operation.what == "remove":
            names.pop(path, None)
        elif operation.what == "rename":
            for name in [n for n in names if n == path or n.startswith(f"{path}/")]:
                names[operation.target + name[len(path) :]] = names.pop(name)
            for name in [n for n in self.kept if n.startswith(f"{path}/")]:
                # names inside of a folder go with it, wherever its own name points to
                self.kept[operation.target + name[len(path) :]] = self.kept.pop(name)
        elif operation.what == "fsync":
            node = names.get(path)
            if node is not None:
                node.confirmed = node.content
                return
            inside = {n for n in (*names, *self.kept) if n.rpartition("/")[0] == path}
            for name in inside:
                if name in names:
                    self.kept[name] = names[name]
                else:
                    self.kept.pop(name, None)

    def states(self) -> Iterator[tuple[str, dict[str, bytes | None]]]:
        """Yield what a disk may hold now, by what became of all that was not confirmed."""
        yield "all written", self.content()
        yield (
            "names without content",
            {n: f.confirmed if f else None for n, f in self.names.items()},
        )
        yield (
            "content cut in half",
            {
                n: f.confirmed or f.content[: len(f.content) // 2] if f else None
                for n, f in self.names.items()
            },
        )
        yield (
            "content as zeros",
            {
                n: f.confirmed.ljust(len(f.content), b"\0") if f else None
                for n, f in self.names.items()
            },
        )
        yield (
            "nothing but the confirmed",
            {n: f.confirmed if f else None for n, f in self.kept.items()},
        )


def states(
    disk: Disk, operations: list[Operation]
) -> Iterator[tuple[int, str, dict[str, bytes | None]]]:
    """Yield every different state that a disk may hold after a power cut, and where it was."""
    seen = set()
    for number, operation in enumerate(operations):
        disk.apply(operation)
        for name, state in disk.states():
            key = hash(frozenset((n, hash(content)) for n, content in state.items()))
            if key not in seen:
                seen.add(key)
                yield number, name, state


def write_state(state: dict[str, bytes | None], folder: Path, place: Path) -> None:
    """Write a state, recorded below `folder`, below `place`; what no name leads to is lost."""
    place.mkdir(parents=True)
    for name, content in sorted(state.items()):
        inside = Path(name).relative_to(folder)
        if any(state.get(str(folder / above), b"") is not None for above in [*inside.parents][:-1]):
            continue
        if content is None:
            (place / inside).mkdir()
        else:
            (place / inside).write_bytes(content)

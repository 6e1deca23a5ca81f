"""Files: written whole or not at all, flushed to disk, and read without trust.

What is being written has a name of its own, `.NAME.8 HEX DIGITS.partial`, and is locked as long as
its process lives. So a part whose lock is free was left by a process that is dead, whatever its
number, and the next one to write anything into that folder removes it.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

HAS_LOCKS = find_spec("fcntl") is not None
"""Windows has no such locks, so nothing is ever provably dead there."""

MAX_JSON_BYTES = 16 * 2**20
SCRATCH = "halfmeg-"
EXISTS = "exists already and is not overwritten"


def refuse_existing(path: Path, option: str = "--out") -> None:
    """Refuse to write where something of the user's is, before any work is done for it.

    Args:
        path: that is to be written.
        option: what the user gives another one with.

    Raises:
        ValueError: something exists there.
    """
    if path.exists():
        raise ValueError(f"{path} {EXISTS}; choose another {option}")


def refuse_unwritable(path: Path, option: str = "--out") -> None:
    """Refuse a folder that cannot be made, as far as that is seen before any work is done for it.

    Args:
        path: of a folder that does not exist.
        option: what the user gives another one with.

    Raises:
        ValueError: what would hold it is no folder, or cannot be written.
    """
    above = next((folder for folder in path.absolute().parents if folder.exists()), path.parent)
    if not above.is_dir():
        raise ValueError(f"{path} cannot be made: {above} is no folder; choose another {option}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ValueError(
            f"{path} cannot be made: {above} cannot be written; choose another {option}"
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves either the old content or the new, never a part.

    Raises:
        OSError: the disk is full or the folder cannot be written; it names the file.
    """
    remove_dead_parts(path.parent)
    part = _part_name(path)
    try:
        with open(_create_locked(part), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)
        _flush(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, so that a power cut leaves what is then written there.

    Raises:
        OSError: it cannot be made, or its name is no UTF-8.
    """
    _require_text(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        _flush(path.parent)


def _require_text(folder: Path) -> None:
    """Raise where a name holds bytes that are no UTF-8: some libraries cannot write there."""
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        told = "its name is no UTF-8; choose another"
        raise OSError(errno.EILSEQ, told, str(folder)) from None


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole or not at all; NaN and infinity are refused."""
    write_atomically(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """Return indented JSON; NaN and infinity are refused."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a folder to fill, which becomes `target` at the end of the block or is removed.

    Raises:
        FileExistsError: `target` exists, or another process was faster.
        OSError: the disk is full or the folder cannot be written; it names a file or `target`.
    """
    _require_text(target)
    make_folder(target.parent)
    remove_dead_parts(target.parent)
    part = _part_name(target)
    with _named_in_errors(target, part), _locked_folder(part, 0o777):
        yield part
        for folder, _, names in os.walk(part):
            for name in names:
                _flush(Path(folder, name))
            _flush(Path(folder))
        try:
            if target.exists():
                raise FileExistsError
            part.rename(target)
        except OSError as error:
            if isinstance(error, FileExistsError) or error.errno == errno.ENOTEMPTY:
                raise FileExistsError(
                    errno.EEXIST, f"{EXISTS}; choose another --out", str(target)
                ) from None
            raise
    _flush(target.parent)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder that is removed at the end; those of dead processes go first.

    Raises:
        OSError: of the block too, where it names no file: it then names the folder.
    """
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{SCRATCH}*"):
        if re.fullmatch(f"{SCRATCH}[0-9a-f]{{8}}", old.name):
            remove_if_dead(old)
    folder = parent / f"{SCRATCH}{secrets.token_hex(4)}"
    with _locked_folder(folder, 0o700), _named_in_errors(folder):
        yield folder


@contextlib.contextmanager
def _named_in_errors(folder: Path, part: Path | None = None) -> Iterator[None]:
    """Have errors of the block that name no file, as of a full disk, name the folder.

    Those that name `part`, or a file in it, name the folder as it was asked for.
    """
    try:
        yield
    except OSError as error:
        told = error.strerror or str(error)
        if error.filename is None:
            raise OSError(error.errno or errno.EIO, told, str(folder)) from None
        if part is not None and str(part) in str(error.filename):
            named = str(error.filename).replace(str(part), str(folder))
            raise OSError(error.errno or errno.EIO, told, named) from None
        raise


def remove_dead_parts(folder: Path) -> None:
    """Remove what dead processes were writing into a folder; every write into it does so first."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if is_part(name):
                remove_if_dead(folder / name)


def is_part(name: str) -> bool:
    """Return whether a name is of what a process of this program is, or was, writing."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.partial", name) is not None


def holds_nothing(folder: Path) -> bool:
    """Return whether a folder is empty, but for what dead processes were writing: it is removed."""
    remove_dead_parts(folder)
    return not any(folder.iterdir())


def _part_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")


def lock(descriptor: int, *, wait: bool) -> bool:
    """Take a lock that ends with this process; False where another has it or there are none."""
    if not HAS_LOCKS:
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock for the block, so that processes take turns; it is made if missing.

    Raises:
        OSError: it cannot be made.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def _create_locked(part: Path) -> int:
    while True:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was taken for dead, and removed, before it was locked


@contextlib.contextmanager
def _locked_folder(folder: Path, mode: int) -> Iterator[None]:
    descriptor = -1
    while descriptor < 0:
        folder.mkdir(mode)
        if not HAS_LOCKS:
            break
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # as above, even before it was opened
            continue
        lock(descriptor, wait=True)
        if not os.fstat(descriptor).st_nlink:
            os.close(descriptor)
            descriptor = -1
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def remove_if_dead(path: Path) -> None:
    """Remove a file or folder that no living process holds the lock of."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, AttributeError):
        return
    try:
        mine = os.fstat(descriptor).st_uid == os.getuid()
        if not (mine and lock(descriptor, wait=False)):
            return
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk itself."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not on this file system
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def read_limited(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is larger, or no regular file: a pipe or a device would never end.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        raise ValueError(f"{path.name} is no regular file")
    with open(descriptor, "rb") as file:
        content = file.read(min(facts.st_size, limit) + 1)
    if len(content) > limit:
        raise ValueError(f"{path.name} is larger than {limit:,} bytes")
    return content


def read_json(path: Path, kind: type[T], limit: int = MAX_JSON_BYTES) -> T:
    """Read a JSON file as a type that msgspec knows, checked in every field.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        ValueError: it is damaged, too large, or something else than `kind`; it names the file.
    """
    try:
        return parse_json(read_limited(path, limit), kind)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def find_json(path: Path, kind: type[T], limit: int = MAX_JSON_BYTES) -> T | None:
    """Read a JSON file as `read_json` does; None where there is none.

    Raises:
        ValueError: as `read_json`.
    """
    try:
        return read_json(path, kind, limit)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_json(content: bytes, kind: type[T]) -> T:
    """Parse JSON as a type that msgspec knows.

    Raises:
        ValueError: it is no JSON, or something else than `kind`.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)) from None


def check_json(value: Any, kind: type[T]) -> T:
    """Return a value that JSON gave as a type that msgspec knows.

    Raises:
        ValueError: it is something else.
    """
    try:
        return msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:
        raise ValueError(str(error)) from None

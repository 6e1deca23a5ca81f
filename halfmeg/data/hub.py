"""Data sets of the Hugging Face hub: `hf:OWNER/NAME`, downloaded once and kept in the cache.

    hf:OWNER/NAME             its Parquet files, or those that the hub has made of it
    hf:OWNER/NAME/FOLDER      one of several tables
    hf:OWNER/NAME@REVISION    a branch, tag or commit; otherwise `main` as it is now

Nothing of a repository is run or unpickled. Files are taken by name and stated size alone, and get
their place only when all are whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import http
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from msgspec import Meta

from halfmeg.data.cache import HUB_INFO, cache_folder
from halfmeg.data.decode import Progress
from halfmeg.data.pace import Pace, TooSlowError
from halfmeg.data.parquet_files import ParquetFiles, find_parquet
from halfmeg.files import new_folder, parse_json, read_json, scratch_folder, write_json

PREFIX = "hf:"
MAIN = "main"
CONVERTED = "refs/convert/parquet"
"""The branch on which the hub keeps a Parquet copy of data sets in other forms."""

MAX_LISTING_BYTES = 8 * 2**20
MAX_FILES = 2_000
MAX_BYTES = 8 * 2**30
"""Of all files together: encoded images are held in memory."""

MAX_REDIRECTS = 10
CHUNK_BYTES = 2**16
TIMEOUT_SECONDS = 30.0
DEADLINE_SECONDS = 600.0
PLANNED_BYTES_PER_SECOND = 50_000
"""A download may take `DEADLINE_SECONDS`, and as long as its size needs at this speed."""

_SOURCE = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<folder>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)
_FILE = re.compile(r"(?:[\w-][\w.-]*/){0,4}[\w-][\w.-]*\.parquet", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class NotOnHubError(ValueError):
    """The hub has answered that there is no such thing, or that it is not to be seen."""


@dataclass(frozen=True)
class _Large:
    sha256: str


@dataclass(frozen=True)
class _Sibling:
    rfilename: str
    size: Annotated[int, Meta(ge=0)] | None = None
    lfs: _Large | None = None


@dataclass(frozen=True)
class _Listing:
    sha: str
    siblings: Annotated[list[_Sibling], Meta(max_length=100_000)]


@dataclass(frozen=True)
class Stored:
    """hub.json: what was downloaded, in full, and which tables were not."""

    source: str
    commit: str
    files: dict[str, int]  # sizes in bytes
    left_out: list[str] = field(default_factory=list)  # older copies do not say

    @property
    def note(self) -> str:
        """What to say of the tables that were not downloaded, behind the commit."""
        if not self.left_out:
            return ""
        count, first = len(self.left_out), self.left_out[0]
        told = "1 table of no part is" if count == 1 else f"{count:,} tables of no part are"
        return f"; {told} left out, as {first}"


def is_hub_source(source: str) -> bool:
    """Return whether `--data` names a data set of the hub."""
    return source.startswith(PREFIX)


def find_on_hub(source: str, progress: Progress) -> tuple[ParquetFiles, str]:
    """Return a data set's Parquet files, downloaded if need be, and a line on where they are from.

    Raises:
        ValueError: no huggingface-hub, no such data set, none that has Parquet files, or a server
            that does not send what it has stated.
    """
    found = _SOURCE.fullmatch(source)
    if found is None or ".." in source:
        raise ValueError(
            f"{source} names no data set; write hf:OWNER/NAME, with /FOLDER or @COMMIT"
        )
    repo, folder, revision = found["repo"], found["folder"], found["revision"]
    endpoint: str = import_hub().constants.ENDPOINT
    revisions = [MAIN, CONVERTED] if revision is None else [revision]
    try:
        stored, note = _download(endpoint, source, repo, folder, revisions, progress)
        if stored is None and revision is None:
            stored, note = _download(endpoint, source, repo, folder, [CONVERTED], progress)
    except NotOnHubError as error:
        raise ValueError(f"{source} cannot be read: {error}") from None
    if stored is None:
        raise ValueError(f"{source} has no Parquet files{f' in {folder}' if folder else ''}")
    files = find_parquet(stored / folder if folder else stored)
    assert files is not None
    return files, note


def _download(
    endpoint: str, source: str, repo: str, folder: str | None, revisions: list[str],
    progress: Progress,
) -> tuple[Path | None, str]:  # fmt: skip
    """Return the folder with a revision's files, None where it has none, and a line about it.

    It is the first of `revisions`. Where the hub does not answer, it may have had no files when
    there was an answer, so a copy of the others will do too.
    """
    keys = [f"{repo} {folder or ''} {revision}" for revision in revisions]
    key, revision = keys[0], revisions[0]
    url = f"{endpoint}/api/datasets/{repo}/revision/{quote(revision, safe='')}"
    try:
        listing = _list(f"{url}?blobs=true")
    except NotOnHubError:
        if revision == CONVERTED:
            return None, ""
        raise
    except ValueError as error:
        if (kept := next(filter(None, map(_newest, keys)), None)) is not None:
            stored = read_json(kept / HUB_INFO, Stored)
            used = f"the copy of commit {stored.commit[:12]} is used{stored.note}"
            return kept, f"{source}: the hub did not answer; {used}"
        raise ValueError(f"{source} cannot be read: {error}") from None
    target = cache_folder() / f"hub-{_digest(key)}-{listing.sha[:16]}"
    if _is_whole(target):
        return target, _note(source, target)
    shutil.rmtree(target, ignore_errors=True)  # a damaged copy would stand in the way
    try:
        wanted, left_out = _choose(listing, folder)
        if not wanted:
            return None, ""
        total, done = sum(file.size or 0 for file in wanted), 0
        deadline = time.monotonic() + DEADLINE_SECONDS + total / PLANNED_BYTES_PER_SECOND
        with new_folder(target) as part:
            for file in wanted:
                path = part / file.rfilename
                path.parent.mkdir(parents=True, exist_ok=True)
                name = file.rfilename
                address = f"{endpoint}/datasets/{repo}/resolve/{listing.sha}/{quote(name)}"
                _fetch(address, path, file, deadline)
                done += file.size or 0
                progress(f"downloading {repo}", done, total)
            files = {file.rfilename: file.size or 0 for file in wanted}
            described = {"source": key, "commit": listing.sha, "files": files}
            write_json(part / HUB_INFO, described | {"left_out": left_out})
    except FileExistsError:  # another process was first
        if not _is_whole(target):
            raise ValueError(f"{source}: {target} is damaged; remove it") from None
    except NotOnHubError as error:
        raise ValueError(f"{source}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{source} cannot be read: {error}") from None
    return target, _note(source, target)


def _note(source: str, copy: Path) -> str:
    stored = read_json(copy / HUB_INFO, Stored)
    return f"{source}: commit {stored.commit[:12]}{stored.note}"


def _list(url: str) -> _Listing:
    """Return a revision's files.

    Raises:
        ValueError: no answer, or one that is no listing.
    """
    deadline = time.monotonic() + DEADLINE_SECONDS
    content = b"".join(read_url(url, MAX_LISTING_BYTES, deadline))
    listing = parse_json(content, _Listing)
    if not _COMMIT.fullmatch(listing.sha):
        raise ValueError(f"the server names {listing.sha[:50]!r} as a commit")
    return listing


def _choose(listing: _Listing, folder: str | None) -> tuple[list[_Sibling], list[str]]:
    """Return the Parquet files that `find_parquet` would take, without downloading any.

    Returns:
        Those, and the names of all others, such as those of a split `extra`.

    Raises:
        ValueError: several tables, missing shards, odd names, or too much.
    """
    tables = {file.rfilename: file for file in listing.siblings if _is_table(file.rfilename)}
    if folder is not None:
        tables = {name: f for name, f in tables.items() if name.startswith(f"{folder}/")}
    for name in tables:
        if not _FILE.fullmatch(name):
            raise ValueError(f"the file name {name[:80]!r} is not allowed")
    with scratch_folder() as scratch:
        for name in tables:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).touch()
        base = scratch / folder if folder else scratch
        try:
            found = find_parquet(base) if tables else None
        except ValueError as error:
            told = str(error).replace(f"{base} has several tables", "there are several tables")
            told = told.replace("name one of these folders", "write hf:OWNER/NAME/TABLE for one")
            raise ValueError(told.replace(f"{base}/", "").replace(str(base), "it")) from None
        parts = found.parts.values() if found else ()
        wanted = [tables[str(f.relative_to(scratch))] for own in parts for f in own]
    if len(wanted) > MAX_FILES:
        raise ValueError(f"it has {len(wanted):,} files; allowed: {MAX_FILES:,}")
    for file in wanted:
        if not file.size:
            raise ValueError(f"the server states no size of {file.rfilename}")
    if (total := sum(file.size or 0 for file in wanted)) > MAX_BYTES:
        raise ValueError(f"it has {total:,} bytes; allowed: {MAX_BYTES:,}")
    return wanted, sorted(tables.keys() - {file.rfilename for file in wanted})


def _is_table(name: str) -> bool:
    return name.lower().endswith(".parquet")


def _fetch(url: str, path: Path, file: _Sibling, deadline: float) -> None:
    """Write a file as it was stated, in size and, where the hub states it, in SHA-256."""
    assert file.size is not None
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as opened:
        for chunk in read_url(url, file.size, deadline):
            opened.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if size != file.size:
        raise ValueError(f"{file.rfilename} has {size:,} bytes, where {file.size:,} were stated")
    if file.lfs is not None and digest.hexdigest() != file.lfs.sha256:
        raise ValueError(f"{file.rfilename} is damaged: its checksum is another")


def _is_whole(folder: Path) -> bool:
    try:
        stored = read_json(folder / HUB_INFO, Stored)
        return all((folder / name).stat().st_size == size for name, size in stored.files.items())
    except (OSError, ValueError):
        return False


def _newest(key: str) -> Path | None:
    """Return the newest whole copy of what a key names; None without any."""
    folders = [f for f in cache_folder().glob(f"hub-{_digest(key)}-*") if _is_whole(f)]
    return max(folders, key=lambda folder: folder.stat().st_mtime, default=None)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def read_url(url: str, limit: int, deadline: float) -> Iterator[bytes]:
    """Yield what a server sends, with the hub's own session and token.

    The hub's own download takes whatever a server sends, of any size and for as long as it likes.

    Args:
        url: of the file.
        limit: in bytes.
        deadline: of the monotonic clock.

    Raises:
        NotOnHubError: there is no such file, or it is not to be seen.
        ValueError: no answer, an error, more than the limit, not by the deadline, or too slow.
    """
    missing = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN)
    name = url.partition("?")[0].rpartition("/")[2]
    started, pace = time.monotonic(), Pace()
    try:
        with contextlib.closing(_open(url, pace)) as response:
            if response.status_code in missing:
                raise NotOnHubError("it does not exist, or only with a token (`hf auth login`)")
            response.raise_for_status()
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise ValueError("the server packs what was to be sent as it is")
            size, chunks = 0, response.iter_raw(CHUNK_BYTES)
            while chunk := pace.wait(lambda: next(chunks, b"")):
                pace.add(len(chunk))
                size += len(chunk)
                if size > limit:
                    raise ValueError(f"{name} is larger than {limit:,} bytes")
                if time.monotonic() > deadline:
                    raise ValueError(f"it took longer than {deadline - started:,.0f} seconds")
                yield chunk
    except TooSlowError as error:
        remedy = "try again later, or name another hub in HF_ENDPOINT"
        raise ValueError(f"{url.partition('?')[0]}: {error}; {remedy}") from None
    except ConnectionError as error:  # the hub's own, where HF_HUB_OFFLINE is set
        raise ValueError(reason(error)) from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # the hub's errors and its transport's have no common base
        raise ValueError(reason(error)) from None


def _open(url: str, pace: Pace) -> Any:
    """Return the answer of the hub's session, its body not yet read."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
    )

    session = get_session()
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    request: Any = session.build_request("GET", url, headers=headers, timeout=TIMEOUT_SECONDS)
    for _ in range(MAX_REDIRECTS + 1):
        send = partial(session.send, request, stream=True, follow_redirects=False)
        response = pace.wait(send)
        request = response.next_request
        if request is None:
            return response
        response.close()  # the session would read the body of a redirect, whatever its size
    raise ValueError(f"it sends on more than {MAX_REDIRECTS} times")


def import_hub() -> Any:
    """Return the library huggingface-hub, told to be silent.

    Raises:
        ValueError: it is not installed.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError:
        raise ValueError("huggingface-hub is missing: pip install -e '.[hub]'") from None
    return huggingface_hub


def reason(error: Exception) -> str:
    """Return the first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

"""Bundles on the Hugging Face hub: `push` uploads one, `pull` downloads and checks one."""

from __future__ import annotations

import http
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfmeg.artifacts.bundle import (
    FILES,
    MAX_DESCRIPTION_BYTES,
    MAX_FILE_BYTES,
    TARGET_FILE,
    Bundle,
)
from halfmeg.files import new_folder, read_json

DESCRIPTION = "model.json"
MAX_FILES = 64
CHUNK_BYTES = 2**16
TIMEOUT_SECONDS = 30.0
DEADLINE_SECONDS = 600.0
"""How long a whole download may take."""


def push(bundle: Bundle, repo: str, *, private: bool = False) -> str:
    """Upload a bundle's files to a repository, which is made if it is missing.

    The token is huggingface-hub's own (`HF_TOKEN`, or what `hf auth login` has stored).

    Args:
        bundle: opened, so checked.
        repo: OWNER/NAME.
        private: of a new repository.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no huggingface-hub, a bad name, no permission, or no answer.
    """
    hub = _import_hub()
    try:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=bundle.folder,
            allow_patterns=["model.json", *bundle.described["files"]],
            commit_message=f"Add {bundle.model}, exported by halfmeg",
        )
    except Exception as error:  # the hub's errors and its transport's have no common base
        raise ValueError(f"{repo} cannot be written: {_reason(error)}") from None
    return str(commit.commit_url)


def pull(repo: str, out: str | Path, *, revision: str = "main") -> Bundle:
    """Download a bundle into a new folder, which gets its name only after every check.

    Raises:
        ValueError: `out` exists, no huggingface-hub, no such repository or answer, or a bundle
            that was damaged or altered.
    """
    out = Path(out)
    if out.exists():
        raise ValueError(f"{out} exists already and is not overwritten; choose another --out")
    hub = _import_hub()
    with new_folder(out) as part:
        try:
            fetch = _fetcher(hub, repo, revision)
            (part / DESCRIPTION).write_bytes(fetch(DESCRIPTION, MAX_DESCRIPTION_BYTES))
            described = read_json(part / DESCRIPTION, dict[str, Any], MAX_DESCRIPTION_BYTES)
            listed = described.get("files")
            if not isinstance(listed, dict) or len(listed) > MAX_FILES:
                raise ValueError(f"files: an object of at most {MAX_FILES} names is expected")
            for name in listed:
                if name in FILES or TARGET_FILE.fullmatch(name):
                    (part / name).parent.mkdir(parents=True, exist_ok=True)
                    (part / name).write_bytes(fetch(name, MAX_FILE_BYTES))
            bundle = Bundle.open(part)
            if not bundle.is_own:
                bundle.load_model()
        except ValueError as error:
            raise ValueError(str(error).replace(str(part), repo)) from None
    return Bundle.open(out)


def _fetcher(hub: Any, repo: str, revision: str) -> Callable[[str, int], bytes]:
    """Return a function that downloads one file of a repository into memory, within a limit.

    The hub's own download takes whatever a server sends, of any size and for as long as it likes.
    """
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
    )

    session = get_session()
    deadline = time.monotonic() + DEADLINE_SECONDS

    def fetch(name: str, limit: int) -> bytes:
        try:
            url = hub.hf_hub_url(repo, name, revision=revision)
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}
            with session.stream(
                "GET", url, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=True
            ) as response:
                if response.status_code == http.HTTPStatus.NOT_FOUND:
                    missing = "it is no bundle: it has no model.json, or does not exist"
                    raise ValueError(missing if name == DESCRIPTION else f"it has no {name}")
                response.raise_for_status()
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise ValueError("the server packs what was to be sent as it is")
                content = bytearray()
                for chunk in response.iter_raw(CHUNK_BYTES):
                    content += chunk
                    if len(content) > limit:
                        raise ValueError(f"{name} is larger than {limit:,} bytes")
                    if time.monotonic() > deadline:
                        raise ValueError(f"it took longer than {DEADLINE_SECONDS:g} seconds")
                return bytes(content)
        except Exception as error:  # the hub's errors and its transport's have no common base
            raise ValueError(f"{repo} cannot be read: {_reason(error)}") from None

    return fetch


def _import_hub() -> Any:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        import huggingface_hub
    except ImportError:
        raise ValueError("huggingface-hub is missing: pip install -e '.[hub]'") from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__

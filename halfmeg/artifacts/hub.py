"""Bundles on the Hugging Face hub: `push` uploads one, `pull` downloads and checks one."""

from __future__ import annotations

import re
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
from halfmeg.data.hub import DEADLINE_SECONDS, NotOnHubError, import_hub, read_url, reason
from halfmeg.files import new_folder, read_json, refuse_existing

DESCRIPTION = "model.json"
MAX_FILES = 64

NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_name(repo: str) -> None:
    """Raise ValueError where a text is no name of a repository."""
    if not NAME.fullmatch(repo):
        raise ValueError(f"{repo} names no repository of the hub; write OWNER/NAME")


def push(bundle: Bundle, repo: str, *, private: bool = False) -> str:
    """Upload a bundle's files to a repository, which is made if it is missing.

    The token is huggingface-hub's own (`HF_TOKEN`, or what `hf auth login` has stored).

    Args:
        bundle: opened, so checked.
        repo: OWNER/NAME.
        private: make a new repository private, and write to no public one.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no huggingface-hub, a bad name, no permission, no answer, or a public repository
            where `private` was asked for.
    """
    check_name(repo)
    hub = import_hub()
    try:
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)  # one that exists stays as it is
        if private and not api.repo_info(repo).private:
            raise ValueError(
                "it exists and is public; make it private on the hub, or leave --private out"
            )
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=bundle.folder,
            allow_patterns=["model.json", *bundle.described["files"]],
            commit_message=f"Add {bundle.model}, exported by halfmeg",
        )
    except Exception as error:  # the hub's errors and its transport's have no common base
        raise ValueError(f"{repo} cannot be written: {reason(error)}") from None
    return str(commit.commit_url)


def pull(repo: str, out: str | Path, *, revision: str = "main") -> Bundle:
    """Download a bundle into a new folder, which gets its name only after every check.

    Raises:
        ValueError: `out` exists, no huggingface-hub, no such repository or answer, or a bundle
            that was damaged or altered.
    """
    check_name(repo)
    out = Path(out)
    refuse_existing(out)
    hub = import_hub()
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
    """Return a function that downloads one file of a repository into memory, within a limit."""
    deadline = time.monotonic() + DEADLINE_SECONDS

    def fetch(name: str, limit: int) -> bytes:
        try:
            url = hub.hf_hub_url(repo, name, revision=revision)
            return b"".join(read_url(url, limit, deadline))
        except NotOnHubError:
            missing = "it is no bundle: it has no model.json, or does not exist"
            told = missing if name == DESCRIPTION else f"it has no {name}"
        except Exception as error:  # an odd name of a repository raises the hub's own
            told = reason(error)
        raise ValueError(f"{repo} cannot be read: {told}")

    return fetch

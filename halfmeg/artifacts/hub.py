"""Bundles on the Hugging Face hub: `push` uploads one, `pull` downloads and checks one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from halfmeg.artifacts.bundle import FILES, Bundle


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
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.partial-"))
    try:
        try:
            hub.snapshot_download(
                repo,
                revision=revision,
                local_dir=partial,
                allow_patterns=["model.json", *FILES, "c/*", "web/*"],
            )
        except Exception as error:  # as above
            raise ValueError(f"{repo} cannot be read: {_reason(error)}") from None
        shutil.rmtree(partial / ".cache", ignore_errors=True)  # of the download itself
        try:
            Bundle.open(partial).load_model()
        except ValueError as error:
            raise ValueError(str(error).replace(str(partial), repo)) from None
        partial.chmod(0o755)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle.open(out)


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

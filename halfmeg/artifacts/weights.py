"""Weights, logits and checkpoints on disk; nothing is unpickled."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from halfmeg.errors import with_kind
from halfmeg.files import read_limited
from halfmeg.networks.own import MAX_WEIGHTS_BYTES

MAX_LOGITS_BYTES = 2**32
MAX_CHECKPOINT_BYTES = 2**30

OTHER_VERSION = (
    "if another version of halfmeg wrote it, use that one "
    "(the run's environment.json names its commit)"
)


def checkpoint_name(epoch: int, step: int) -> str:
    """Return the name of the checkpoint after so many epochs, and steps of the next one."""
    return f"epoch_{epoch:05d}_step_{step:07d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoint files of a run folder, the newest last; none where there is none."""
    return sorted((folder / "checkpoints").glob("epoch_*_step_*.pt"))


def checkpoint_to_bytes(state: Mapping[str, Any]) -> bytes:
    """Return the content of a checkpoint.

    Raises:
        ValueError: it is larger than what `read_checkpoint` takes, or holds what that refuses.
    """
    buffer = io.BytesIO()
    try:
        torch.save(dict(state), buffer)
        size = buffer.tell()
        buffer.seek(0)
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    except MemoryError:
        raise
    except Exception as error:  # of what a user's own code keeps it may be anything
        raise ValueError(f"a checkpoint cannot be written: {with_kind(error, 200)}") from None
    if foreign or not _holds_its_tensors(state):
        held = ", ".join(sorted(foreign)) or "a tensor that repeats its memory, as of `expand`"
        raise ValueError(
            f"a checkpoint would hold {held}, which is not read again; keep numbers, and "
            "tensors of their own, in the state of an optimizer"
        )
    if size > MAX_CHECKPOINT_BYTES:
        raise ValueError(
            f"a checkpoint would have {size:,} bytes; allowed: {MAX_CHECKPOINT_BYTES:,}; take a "
            "smaller network, or what keeps less beside it, as optimizer=sgd and ema=0"
        )
    return buffer.getvalue()


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint without unpickling code; None when the file is damaged.

    The file is a zip archive, so the checksum of each member shows a damage that would load. Its
    members are stored as they are: one that is packed is not ours and may unpack to any size.
    """
    try:
        if not path.is_file() or (size := path.stat().st_size) > MAX_CHECKPOINT_BYTES:
            return None
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            if packed or sum(member.file_size for member in members) > size:
                return None
            if archive.testzip() is not None:
                return None
        return load_checkpoint(path)
    except Exception:  # what a damaged file raises depends on where the damage is
        return None


def load_checkpoint(file: Path | io.BytesIO) -> dict[str, Any] | None:
    """Load a file that is whole, without unpickling code; None where a tensor is not its own.

    Raises:
        Exception: it holds something else than tensors, numbers, texts and what they stand in.
    """
    state = torch.load(file, map_location="cpu", weights_only=True)
    return state if isinstance(state, dict) and _holds_its_tensors(state) else None


def _holds_its_tensors(value: object) -> bool:
    """Whether no tensor is a view that grows when it is copied."""
    if isinstance(value, Tensor):
        return value.nbytes <= value.untyped_storage().nbytes()
    if isinstance(value, dict):
        return all(map(_holds_its_tensors, value.values()))
    return not isinstance(value, list | tuple) or all(map(_holds_its_tensors, value))


def read_checked(path: Path, limit: int, sha256: str | None, hint: str = "") -> bytes:
    """Return the content of a file, which is the one whose checksum is known.

    Args:
        path: of the file.
        limit: its size in bytes at the most.
        sha256: its checksum; None where none is known, as in old run folders.
        hint: what it means where there is no file.

    Raises:
        ValueError: it is missing, damaged, or another one.
    """
    try:
        content = read_limited(path, limit)
    except OSError as error:
        missing = hint and isinstance(error, FileNotFoundError)
        told = f"does not exist; {hint}" if missing else f"cannot be read: {error.strerror}"
        raise ValueError(f"{path} {told}") from None
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is damaged or was altered: its checksum is another")
    return content


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by their names, shared ones once."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def weights_to_bytes(model: nn.Module) -> bytes:
    """Return parameters and buffers in the safetensors format, shared ones once.

    Two buffers may lie on one memory, as a part of another; the format wants each on its own.
    """
    return safetensors.torch.save(
        {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in named_tensors(model).items()
        }
    )


def load_weights(model: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Load a safetensors file into a network.

    Args:
        model: the network.
        path: of the file.
        sha256: its checksum, where one is known.

    Raises:
        ValueError: the file is missing or damaged, or holds the weights of another network.
    """
    content = read_checked(path, MAX_WEIGHTS_BYTES, sha256, "has the run finished?")
    try:
        stored = load_tensors(content)
    except Exception as error:  # what a damaged file raises depends on where the damage is
        raise ValueError(f"{path} is damaged: {error}") from None
    copy_weights(model, stored, str(path), OTHER_VERSION)


def copy_weights(
    model: nn.Module, stored: Mapping[str, Tensor], source: str, remedy: str,
    left: Collection[str] = (),
) -> None:  # fmt: skip
    """Copy tensors into a network, all of them or none.

    Args:
        model: the network.
        stored: parameters and buffers by their names, as `named_tensors` gives them.
        source: where they are from, as it is called in errors.
        remedy: for tensors of another network.
        left: names of the network's tensors that stay as they are.

    Raises:
        ValueError: one is missing, has another shape or type, is not finite or not the network's.
    """
    expected = {name: own for name, own in named_tensors(model).items() if name not in left}
    for name, tensor in expected.items():
        if name not in stored or stored[name].shape != tensor.shape:
            found = tuple(stored[name].shape) if name in stored else "nothing"
            raise ValueError(
                f"{source} does not fit the network: {name} is {found}, "
                f"expected {tuple(tensor.shape)}; {remedy}"
            )
        if stored[name].dtype != tensor.dtype:
            raise ValueError(
                f"{source} does not fit the network: {name} is {stored[name].dtype}, "
                f"expected {tensor.dtype}; {remedy}"
            )
        if not (stored[name].isfinite() | ~tensor.isfinite()).all():  # a mask of -inf is built so
            raise ValueError(f"{source} is damaged: {name} is not finite")
    if unknown := sorted(set(stored) - set(expected) - set(left)):
        name = unknown[0]
        raise ValueError(
            f"{source} does not fit the network: {name} is {tuple(stored[name].shape)}, which "
            f"the network does not have; {remedy}"
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(stored[name])


def logits_to_bytes(arrays: Mapping[str, Tensor]) -> bytes:
    """Return the content of a logits.npz."""
    buffer = io.BytesIO()
    stored = {name: value.numpy() for name, value in arrays.items()}
    np.savez_compressed(buffer, allow_pickle=False, **stored)
    return buffer.getvalue()


def read_logits(
    path: Path, sha256: str | None, num_classes: int, most_images: int
) -> dict[str, Tensor]:
    """Return the arrays of a logits.npz: test and validation logits B×num_classes, and labels B.

    Raises:
        ValueError: it is missing or damaged.
    """
    most = min(MAX_LOGITS_BYTES, most_images * (4 * num_classes + 8) + 2**16)
    content = read_checked(path, most, sha256, "the run cannot be compared")
    try:
        return _parse_logits(content, num_classes, most)
    except Exception as error:  # what a damaged archive raises depends on where the damage is
        raise ValueError(f"{path} is damaged: {error}") from None


def _parse_logits(content: bytes, num_classes: int, most: int) -> dict[str, Tensor]:
    """Return the arrays of a logits.npz, whose sizes, types and ranges are those of a run's.

    Args:
        content: of the file.
        num_classes: of the run.
        most: bytes that it may unpack to.

    Raises:
        Exception: it is damaged; which one depends on where.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > most:
            raise ValueError(f"it unpacks to more than {most:,} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    for part in ("test", "val") if "val_logits" in arrays else ("test",):
        if not {f"{part}_logits", f"{part}_labels"} <= arrays.keys():
            raise ValueError(f"it has no {part} logits and labels")
        logits, labels = arrays[f"{part}_logits"], arrays[f"{part}_labels"]
        if logits.dtype != torch.float32 or logits.shape != (len(labels), num_classes):
            raise ValueError(f"{part}_logits are no float32 logits of {num_classes} classes")
        if labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels):
            raise ValueError(f"{part}_labels are no int64 labels")
        if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"{part}_labels are outside the {num_classes} classes")
        if not logits.isfinite().all():
            raise ValueError(f"{part}_logits are not all finite")
    return arrays

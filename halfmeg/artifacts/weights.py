"""Weights and checkpoints on disk; nothing is unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

OTHER_VERSION = (
    "if another version of halfmeg wrote it, use that one "
    "(the run's environment.json names its commit)"
)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint without unpickling code; None when the file is damaged.

    The file is a zip archive, so the checksum of each member shows a damage that would load.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what a damaged file raises depends on where the damage is
        return None
    return state


def weights_to_bytes(model: nn.Module) -> bytes:
    """Return parameters and buffers in the safetensors format, shared ones once."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file into a network.

    Raises:
        ValueError: the file is missing or damaged, or holds the weights of another network.
    """
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    try:
        stored = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; has the run finished?") from None
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    for name, tensor in expected.items():
        if name not in stored or stored[name].shape != tensor.shape:
            found = tuple(stored[name].shape) if name in stored else "nothing"
            raise ValueError(
                f"{path} does not fit the network: {name} is {found}, "
                f"expected {tuple(tensor.shape)}; {OTHER_VERSION}"
            )
    if unknown := sorted(set(stored) - set(expected)):
        name = unknown[0]
        raise ValueError(f"{path} does not fit the network: it has no {name}; {OTHER_VERSION}")
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(stored[name])

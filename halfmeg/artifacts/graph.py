"""An exported graph run by onnxruntime: what predicts without the network's source."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def open_session(onnx_model: bytes, threads: int = 0) -> Any:
    """Return an onnxruntime session on the processor; 0 threads means as many as there are.

    Raises:
        ValueError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("onnxruntime is missing: pip install -e '.[ship]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(onnx_model, options, providers=["CPUExecutionProvider"])


def onnx_logits(onnx_model: bytes, images: Tensor, *, batch_size: int = 250) -> Tensor:
    """Return the logits of an ONNX model for uint8 images, by onnxruntime on the processor."""
    session = open_session(onnx_model)
    chunks = images.split(batch_size)  # type: ignore[no-untyped-call]
    return torch.cat(
        [torch.from_numpy(session.run(None, {"pixels": chunk.numpy()})[0]) for chunk in chunks]
    )

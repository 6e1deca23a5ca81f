"""The type in which matrix products are computed: what a device can, and what a run asks for."""

from __future__ import annotations

import torch


def has_bf16_hardware(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the matrix products for a precision of `auto`, `bf16` or `fp32`."""
    if precision == "auto":
        precision = "bf16" if has_bf16_hardware(device) else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def emulation_note(precision: str, device: torch.device) -> str:
    """Return what to say of a type that a device computes without hardware for it, or nothing."""
    if precision != "bf16" or has_bf16_hardware(device):
        return ""
    return (
        f"precision=bf16 takes many times as long on this {device.type}, which has no hardware "
        "for it; precision=auto chooses what is fast"
    )


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which a network runs in `dtype`; float32 is a no-op."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

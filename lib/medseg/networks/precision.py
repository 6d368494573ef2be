"""Automatic mixed precision: one switch for training and inference."""

from __future__ import annotations

import torch

from medseg.errors import MedsegError

MODES = ("auto", "off", "bf16", "fp16")


def amp_dtype(mode: str, device: torch.device) -> torch.dtype | None:
    """The reduced dtype for a mode, or None for float32.

    "auto" is bfloat16 where the hardware multiplies it natively: CUDA from compute capability 8 on, CPUs with AMX. It
    needs no gradient scaler and, unlike float16, keeps the range of float32.

    Raises:
        MedsegError: unknown mode, or float16 on a CPU.
    """
    if mode not in MODES:
        raise MedsegError(f"amp = {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode == "off":
        return None
    if mode == "bf16":
        return torch.bfloat16
    if mode == "fp16":
        if device.type == "cpu":
            raise MedsegError("amp = 'fp16' needs a GPU; use 'bf16' or 'off' on the CPU")
        return torch.float16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else None


def autocast(mode: str, device: torch.device) -> torch.autocast:
    """Autocast context for a mode on a device."""
    dtype = amp_dtype(mode, device)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)

"""What time and memory a piece of work takes, on a GPU or on the processor."""

from __future__ import annotations

import resource
from pathlib import Path

import torch


def wait(device: torch.device) -> None:
    """Until the GPU has done what it was given; a clock read before that shows the time of the request alone."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Start a new maximum; on Linux also that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is that of the whole process so far


def peak_mb(device: torch.device) -> float:
    """Peak memory: tensors on a GPU, the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

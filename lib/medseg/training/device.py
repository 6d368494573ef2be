"""Where a run computes: the device, its memory, and torchrun's processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import ignite.distributed as idist
import torch

from medseg.errors import MedsegError

VALIDATION_TIMEOUT = timedelta(hours=4)  # the other processes wait while the first one validates


def pick_device(wanted: str | None) -> torch.device:
    """The device for a name; None: the GPU where there is one. Under torchrun every process has its own GPU.

    Raises:
        MedsegError: a GPU is asked for and there is none.
    """
    name = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MedsegError(f"device {name!r} is unknown; use cpu, cuda or cuda:<number>") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise MedsegError(f"device {name!r} is not available on this machine; use --device cpu")
        if torch.distributed.is_torchelastic_launched():
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun tells it in no other way
        index = device.index if device.index is not None else torch.cuda.current_device()
        if index >= torch.cuda.device_count():
            raise MedsegError(f"device {name!r} does not exist; this machine has {torch.cuda.device_count()} GPUs")
        return torch.device("cuda", index)
    return device


def usable_cores() -> int:
    """Cores that this process may use: those it is bound to, and no more than its container's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return cores


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join torchrun's processes, where there are any."""
    if not torch.distributed.is_torchelastic_launched() or torch.distributed.is_initialized():
        yield
        return
    idist.initialize("nccl" if device.type == "cuda" else "gloo", timeout=VALIDATION_TIMEOUT)
    try:
        yield
    finally:
        idist.finalize()

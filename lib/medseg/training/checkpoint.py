"""Checkpoints that resume a run to the bit: weights, optimiser, schedule, scaler, iteration and random state."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.files import write_atomically

log = logging.getLogger(__name__)


def random_state() -> dict[str, Any]:
    """State of all random generators, in types that load without pickle."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    return {
        "python": random.getstate(),
        "numpy_keys": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_position": int(numpy_state["state"]["pos"]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Inverse of `random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(state["numpy_position"]), 0, 0.0))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write atomically; the previous checkpoint stays as `<name>.previous` until the next one."""
    path = Path(path)
    if path.exists():
        previous = path.with_suffix(path.suffix + ".previous")
        previous.unlink(missing_ok=True)
        try:
            previous.hardlink_to(path)
        except OSError:  # some network and memory-card file systems have no hard links
            os.replace(path, previous)
    write_atomically(path, lambda temporary: torch.save(content, temporary))


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """The newest readable checkpoint, or None. A damaged file is passed over for the one before it."""
    path = Path(path)
    for candidate in (path, path.with_suffix(path.suffix + ".previous")):
        if not candidate.exists():
            continue
        try:
            content: dict[str, Any] = torch.load(candidate, map_location="cpu", weights_only=True)
            return content
        except Exception as error:  # a truncated archive raises many types; the next file decides
            log.warning("checkpoint %s cannot be read (%s); trying the one before it", candidate, type(error).__name__)
    return None

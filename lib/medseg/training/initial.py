"""Start a network from the matching layers of another model."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from medseg.errors import NotFoundError, UnusableInputError

log = logging.getLogger(__name__)


def load_initial(network: nn.Module, path: Path) -> dict[str, list[str]]:
    """Copy every tensor whose name and shape match.

    Args:
        network: changed in place.
        path: a `model.safetensors`, or a folder that holds one.

    Returns:
        Names under "loaded", "shape_differs" and "missing" (in the network, not in the file).

    Raises:
        NotFoundError: no such file.
        UnusableInputError: nothing matches, or the file is damaged.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise NotFoundError(f"init = {path} does not exist; give a model.safetensors or its folder")
    try:
        given = load_file(file)
    except Exception as error:
        raise UnusableInputError(f"init = {file} is no readable safetensors file: {error}") from error
    own = network.state_dict()
    loaded = [name for name, value in own.items() if name in given and given[name].shape == value.shape]
    account = {
        "loaded": loaded,
        "shape_differs": [name for name in own if name in given and name not in loaded],
        "missing": [name for name in own if name not in given],
    }
    if not loaded:
        raise UnusableInputError(f"init = {file} has no tensor whose name and shape match this network")
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(given[name])
    log.info("init %s: %d of %d tensors loaded, %d with another shape, %d not in the file", file, len(loaded), len(own),
             len(account["shape_differs"]), len(account["missing"]))  # fmt: skip
    return account

"""Start a backbone from weights of another model, whatever names its layers have there."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from medseg.errors import NotFoundError, UnusableInputError

log = logging.getLogger(__name__)


def load_pretrained(network: nn.Module, path: str | Path) -> int:
    """Copy tensors whose shape matches and whose name ends like the network's own.

    A layer `down_1.convs.conv_0.conv.weight` is found as `student.encoder.down_1.convs.conv_0.conv.weight`, too, and an
    EfficientNet's own file, without the prefix `encoder.`, fits a `FlexibleUNet`. Domain slots of another multi-domain
    model are passed over; its first domain's slot fills each norm.

    Args:
        network: changed in place, before norms are converted.
        path: `.safetensors`, or a PyTorch file that holds tensors only; a folder that holds `model.safetensors`.

    Returns:
        Number of tensors copied.

    Raises:
        NotFoundError: no such file.
        UnusableInputError: damaged, or nothing fits.
    """
    given = {_plain(name): value for name, value in reversed(list(_read(Path(path)).items()))}
    ends: dict[str, torch.Tensor] = {}
    for name, value in given.items():
        parts = name.split(".")
        for start in range(len(parts)):
            ends.setdefault(".".join(parts[start:]), value)
    copied = 0
    own = network.state_dict()
    for name, value in own.items():
        found = next((ends[end] for end in (name, name.removeprefix("encoder.")) if end in ends), None)
        if found is not None and found.shape == value.shape:
            value.copy_(found)
            copied += 1
    if not copied:
        raise UnusableInputError(f"pretrained = {path} has no tensor that fits this network; check network and width")
    log.info("pretrained %s: %d of %d tensors loaded", path, copied, len(own))
    return copied


def _plain(name: str) -> str:
    """A tensor's name without the slot of a domain."""
    before, slots, after = name.partition(".slots.")
    return f"{before}.{after.partition('.')[2]}" if slots else name


def _read(path: Path) -> dict[str, torch.Tensor]:
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.exists():
        raise NotFoundError(f"pretrained = {path} does not exist; give a weights file or a model folder")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # each format fails in its own way
        raise UnusableInputError(f"pretrained = {file} is no readable weights file: {error}") from error
    content = content.get("state_dict", content.get("network", content))
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}

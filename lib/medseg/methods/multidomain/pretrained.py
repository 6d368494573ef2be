"""Start a backbone from weights of another model, whatever names its layers have there."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from medseg.errors import NotFoundError, UnusableInputError
from medseg.networks.domain_norm import without_slot
from medseg.networks.stem import fit_channels

log = logging.getLogger(__name__)

LOW = 0.25  # ours: below this share of loaded tensors the account is a warning
BLOCK = re.compile(r"^(_blocks)\.\d+(\.\d+\.)")
"""A block of MONAI's EfficientNet: stage and number; published files have the number alone."""


def load_pretrained(network: nn.Module, path: str | Path) -> int:
    """Copy tensors whose shape matches and whose name ends like the network's own.

    A layer `down_1.convs.conv_0.conv.weight` is found as `student.encoder.down_1.convs.conv_0.conv.weight`, too. The
    published files of EfficientNet fit a `FlexibleUNet`: they have no prefix `encoder.` and count their blocks without
    the stage before. A first convolution for colour is summed for grey images. Domain slots of another multi-domain
    model are passed over; its first domain's slot fills all slots of a norm.

    Args:
        network: changed in place; its norms may have slots of domains.
        path: `.safetensors`, or a PyTorch file that holds tensors only; a folder that holds `model.safetensors`.

    Returns:
        Number of tensors copied.

    Raises:
        NotFoundError: no such file.
        UnusableInputError: damaged, or nothing fits.
    """
    given = {without_slot(name): value for name, value in reversed(list(_read(Path(path)).items()))}
    ends: dict[str, torch.Tensor] = {}
    for name, value in given.items():
        parts = name.split(".")
        for start in range(len(parts)):
            ends.setdefault(".".join(parts[start:]), value)
    own = network.state_dict()
    copied = sum(_copy(value, [ends[known] for known in _names(name) if known in ends]) for name, value in own.items())
    if not copied:
        raise UnusableInputError(f"pretrained = {path} has no tensor that fits this network; check network and width")
    level = logging.WARNING if copied < LOW * len(own) else logging.INFO
    log.log(level, "pretrained %s: %d of %d tensors loaded", path, copied, len(own))
    return copied


def _copy(value: torch.Tensor, found: Sequence[torch.Tensor]) -> bool:
    """Fill a tensor from the first of several that fits."""
    for source in found:
        fitted = source if source.shape == value.shape else fit_channels(source, value)
        if fitted is not None:
            with torch.no_grad():
                value.copy_(fitted)
            return True
    return False


def _names(name: str) -> list[str]:
    """What a tensor of the network may be called in a file."""
    plain = without_slot(name)
    bare = plain.removeprefix("encoder.")
    return [plain, bare, BLOCK.sub(r"\1\2", bare)]


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

"""Insert a block into a network, and read the map before its head, without touching the network's own code."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def insert_after(network: nn.Module, name: str, block: nn.Module) -> None:
    """Put `block` behind the sub-module `name`: every use of its output then sees the block's output.

    Args:
        network: changed in place; the sub-module's weights move to `name.0`, the block's to `name.1`.
        name: dotted name of a sub-module that returns one tensor, for example `encoder.levels.3`.
        block: maps a tensor to one of the same shape.

    Raises:
        ValueError: the network has no such sub-module.
    """
    parent_name, _, child = name.rpartition(".")
    try:
        old = network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{type(network).__name__} has no sub-module {name!r}") from error
    setattr(network.get_submodule(parent_name), child, nn.Sequential(old, block))


class HookedBranch(nn.Module):
    """Any segmentation network as a source of logits and embedding; the embedding is what enters its last layer.

    Example:
        >>> from monai.networks.nets import UNet
        >>> unet = UNet(2, 1, 2, channels=(8, 16), strides=(2,))
        >>> logits, embedding = HookedBranch(unet, head="model.2").with_embedding(torch.zeros(1, 1, 16, 16))

    Args:
        network: maps an image (B, C, *grid) to logits (B, classes, *grid).
        head: dotted name of the sub-module whose first input is the embedding; where it lies on a coarser grid than
            the logits, it is interpolated to theirs.
    """

    def __init__(self, network: nn.Module, head: str) -> None:
        super().__init__()
        network.get_submodule(head)  # fails here, not in the first step, where the name is wrong
        self.network = network
        self.head_name = head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image (B, C, *grid) to logits (B, classes, *grid)."""
        logits: torch.Tensor = self.network(image)
        return logits

    def with_embedding(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (B, classes, *grid) and embedding (B, F, *grid)."""
        seen: list[torch.Tensor] = []
        head = self.network.get_submodule(self.head_name)
        handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            logits = self.network(image)
        finally:
            handle.remove()
        embedding = seen[-1]
        if embedding.shape[2:] != logits.shape[2:]:
            mode = "trilinear" if logits.ndim == 5 else "bilinear"
            embedding = F.interpolate(embedding, logits.shape[2:], mode=mode, align_corners=False)
        return logits, embedding

"""Lengths of the weights that a norm follows: they change no output, but how fast a network can learn."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd


def lengths_before_norms(network: nn.Module) -> dict[str, float]:
    """Length of the weights of every convolution that a norm follows, by name of the convolution."""
    return {name: float(convolution.weight.detach().norm()) for name, convolution, _ in _pairs(network)}


@torch.no_grad()
def restore_lengths(network: nn.Module, lengths: Mapping[str, float]) -> None:
    """Scale the convolutions that a norm follows back to earlier lengths.

    A norm divides the length out again, so the network computes the same. Its gradient shrinks with the length, though,
    and a step relative to the weights with the square: what one optimizer has let grow (Adam does), the next one (SGD)
    moves more slowly than a random start.

    Source: van Laarhoven, L2 regularization versus batch and weight normalization, arXiv 1706.05350.

    Args:
        network: changed in place.
        lengths: of `lengths_before_norms`.
    """
    for name, convolution, norm in _pairs(network):
        factor = lengths[name] / float(convolution.weight.norm().clamp_min(1e-12))
        convolution.weight.mul_(factor)
        if convolution.bias is not None:
            convolution.bias.mul_(factor)
        if isinstance(norm, _NormBase) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)


def _pairs(network: nn.Module) -> list[tuple[str, _ConvNd, nn.Module]]:
    """Convolutions and the norms right behind them, within chains of layers."""
    return [
        (f"{name}.{key}", first, second)
        for name, chain in network.named_modules()
        if isinstance(chain, nn.Sequential)
        for (key, first), (_, second) in pairwise(chain.named_children())
        if isinstance(first, _ConvNd) and isinstance(second, _NormBase | nn.GroupNorm)
    ]

"""Lengths of the weights that a norm follows: they change no output, but how fast a network can learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

Run = Callable[[], object]
"""Runs the network once on any image."""


def lengths_before_norms(network: nn.Module, run: Run) -> dict[str, float]:
    """Length of the weights of every convolution that a norm follows, by name of the convolution."""
    return {name: float(convolution.weight.detach().norm()) for name, convolution, _ in _pairs(network, run)}


@torch.no_grad()
def restore_lengths(network: nn.Module, lengths: Mapping[str, float], run: Run) -> None:
    """Scale the convolutions that a norm follows back to earlier lengths.

    A norm divides the length out again, so the network computes the same. Its gradient shrinks with the length, though,
    and a step relative to the weights with the square: what one optimizer has let grow (Adam does), the next one (SGD)
    moves more slowly than a random start.

    Source: van Laarhoven, L2 regularization versus batch and weight normalization, arXiv 1706.05350.

    Args:
        network: changed in place.
        lengths: of `lengths_before_norms`.
        run: as there.
    """
    for name, convolution, norm in _pairs(network, run):
        factor = lengths[name] / float(convolution.weight.norm().clamp_min(1e-12))
        convolution.weight.mul_(factor)
        if convolution.bias is not None:
            convolution.bias.mul_(factor)
        if isinstance(norm, _NormBase) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.mul_(factor)
            norm.running_var.mul_(factor**2)


@dataclass
class _Watch:
    """Sees which norm takes exactly what a convolution gave; names and nesting of the layers do not matter."""

    outputs: list[tuple[Any, str, _ConvNd]] = field(default_factory=list)  # kept, so that no other tensor gets its id
    pairs: list[tuple[str, _ConvNd, nn.Module]] = field(default_factory=list)

    def hooks(self, network: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        return [
            module.register_forward_hook(self._convolved(name))
            if isinstance(module, _ConvNd)
            else module.register_forward_pre_hook(self._normed)
            for name, module in network.named_modules()
            if isinstance(module, _ConvNd | _NormBase | nn.GroupNorm)
        ]

    def _convolved(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, _: Any, output: Any) -> None:
            assert isinstance(module, _ConvNd)
            self.outputs.append((output, name, module))

        return keep

    def _normed(self, module: nn.Module, inputs: Any) -> None:
        self.pairs += [(name, found, module) for output, name, found in self.outputs if output is inputs[0]]


def _pairs(network: nn.Module, run: Run) -> list[tuple[str, _ConvNd, nn.Module]]:
    """Convolutions and the norms right behind them, seen in one run without gradients, in eval mode."""
    watch, was = _Watch(), network.training
    hooks = watch.hooks(network.eval())
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was)
    return watch.pairs

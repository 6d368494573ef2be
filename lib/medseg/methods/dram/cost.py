"""What the CRF costs: seconds and memory of forward and backward, windowed and over all pairs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from medseg.networks.crf import WindowedCRF
from medseg.networks.measure import wait

SIZES = (32, 48, 64, 80, 96)
NAIVE = 16
"""Edge of the cube by which both are compared; all pairs of 16^3 are already 16.8 million."""

STEPS = 5
METRIC = "seconds"
REPEATS = 3


def windowed_cost(context: Any) -> dict[str, Any]:
    """Forward and backward of the windowed CRF, 26 neighbours, 5 steps, on cubes of 32 to 96 voxels.

    Returns:
        As the arm's value the seconds of 16^3, the one size that all pairs can be measured at; for every size
        `seconds_<n>`, `memory_mb_<n>` (all tensors kept for the backward pass), and `microseconds_per_voxel_<n>`, which
        stays where the cost is linear.
    """
    device = torch.device(context.device)
    found: dict[str, Any] = {}
    for size in (NAIVE, *SIZES):
        seconds, memory = measure(size, windowed, device)
        found |= _named(size, seconds, memory)
    return {"cases": {}, "mean": found[f"seconds_{NAIVE}"], "iterations": 0, "extra": found}


def pairwise_cost(context: Any) -> dict[str, Any]:
    """The same field over all pairs of a 16^3 cube, as a matrix."""
    seconds, memory = measure(NAIVE, pairwise, torch.device(context.device))
    return {"cases": {}, "mean": seconds, "iterations": 0, "extra": _named(NAIVE, seconds, memory)}


def measure(size: int, field: Callable[..., torch.Tensor], device: torch.device) -> tuple[float, float]:
    """Seconds (best of three) and megabytes kept for the backward pass, of a cube with edge `size`."""
    torch.manual_seed(0)
    unary = torch.randn(1, 1, size, size, size, device=device, requires_grad=True)
    image = torch.rand(1, 1, size, size, size, device=device)
    best, kept = float("inf"), 0.0
    for _ in range(REPEATS):
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        wait(device)
        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = field(unary, image).square().mean()
        loss.backward()
        wait(device)
        best, kept = min(best, time.perf_counter() - started), sum(seen.values()) / 1e6
    return best, kept


def windowed(unary: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The field as it is trained."""
    return WindowedCRF(1, STEPS).to(unary.device)(unary, image, torch.ones_like(image), (1.0, 1.0, 1.0))


def pairwise(unary: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """The same update with a kernel over all pairs of voxels."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(n, device=unary.device) for n in unary.shape[2:]], indexing="ij"))
    place, value = grid.flatten(1).T.float(), image.flatten()
    distance = torch.cdist(place, place) ** 2
    contrast = (value[:, None] - value[None]) ** 2
    kernel = torch.exp(-distance / 8 - contrast / 0.02) + torch.exp(-distance / 2)
    kernel = kernel - torch.diag(kernel.diagonal())
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    start = unary.flatten()
    logits = start
    for _ in range(STEPS):
        logits = start + kernel @ (2 * torch.sigmoid(logits) - 1)
    return logits


def _named(size: int, seconds: float, memory: float) -> dict[str, float]:
    return {
        f"seconds_{size}": round(seconds, 4),
        f"memory_mb_{size}": round(memory, 1),
        f"microseconds_per_voxel_{size}": round(1e6 * seconds / size**3, 3),
    }

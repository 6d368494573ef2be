"""Which image to label next: extents that do not fit, maps that refinement changes, maps that are undecided."""

from __future__ import annotations

import torch

from medseg.methods.base import Sample, Score
from medseg.methods.dram.network import DRAMNet
from medseg.methods.dram.reading import Reading

MISSING = 0.25
"""Ours: bonus of an image that nobody gave extents for, so that a severity entry is asked for first."""

WEIGHTS = {"residual": 2.0, "change": 1.0, "entropy": 1.0, "flip": 1.0}


def acquisition_score(network: DRAMNet, loaded: Sample, reading: Reading) -> Score:
    """Weighted mean of the parts, each in [0, 1].

    residual: largest distance of a predicted share from its interval; change: 1 - Dice of the map before and after
    attention and CRF, as soft masks; entropy: mean in the lungs; flip: 1 - Dice with the map of the mirrored image;
    missing: bonus.
    """
    inside = reading.regions > 0
    if not bool(inside.any()):
        return Score(1.0, "no lung was found, 1.00", {"entropy": 1.0})
    stages = [value for name, value in reading.maps.items() if name != "final"]
    first, last = stages[0], stages[-1]
    parts = {
        "change": 1 - _soft_dice(first[inside], last[inside]),
        "entropy": float(reading.entropy[inside].mean()),
        "flip": 1 - _soft_dice(first[inside], _mirrored(network, loaded, reading)[inside])
        if "map" in reading.maps
        else 0.0,
    }
    stated = bool(reading.residual)
    if stated:
        parts["residual"] = min(1.0, max(abs(value) for value in reading.residual.values()))
    total = sum(WEIGHTS[name] for name in parts)
    value = sum(WEIGHTS[name] * part for name, part in parts.items()) / total
    parts["missing"] = 0.0 if stated else MISSING
    return Score(min(1.0, value + parts["missing"]), _why(parts, stated), parts, _features(reading))


def _why(parts: dict[str, float], stated: bool) -> str:
    if stated and parts["residual"] >= 0.05:
        return f"extents differ from the reader's by up to {100 * parts['residual']:.0f} points"
    named = {"change": "refinement changes the map", "entropy": "map undecided", "flip": "mirrored image differs"}
    first = max(named, key=lambda name: parts[name])
    reason = f"{named[first]}, {parts[first]:.2f}"
    return reason if stated else f"no extents yet; {reason}"


def _mirrored(network: DRAMNet, loaded: Sample, reading: Reading) -> torch.Tensor:
    device = next(network.parameters()).device
    image = loaded["image"].as_tensor()[None].to(device)
    inside = (reading.regions > 0)[None, None].float().to(device)
    mirrored = network.maps(image.flip(2), inside.flip(2))[0].flip(2)
    return torch.sigmoid(mirrored)[0, 0].float().cpu()


def _soft_dice(one: torch.Tensor, two: torch.Tensor) -> float:
    total = float(one.sum() + two.sum())
    return float(2 * torch.minimum(one, two).sum() / total) if total > 1e-6 else 1.0


def _features(reading: Reading) -> tuple[float, ...]:
    """Predicted shares in order of the ids: similar patterns of disease are near each other."""
    return tuple(round(share, 4) for _, share in sorted(reading.shares.items()))

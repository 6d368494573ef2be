"""Where the images of each domain lie in the network's features: a picture, and how well the domain can be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch.nn import functional as F

from medseg.cases import Case
from medseg.methods.multidomain.images import cut_views
from medseg.methods.multidomain.registry import MULTIPLE

if TYPE_CHECKING:
    from medseg.methods.multidomain.method import MultiDomain

SLICES = 8  # ours: slices of a case

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Embedding:
    """Features of one scale: (n, d), and the domain and patient of each row."""

    features: Array
    domains: tuple[str, ...]
    patients: tuple[str, ...]


@torch.no_grad()
def embed_cases(method: MultiDomain, cases: Sequence[Case], common: str | None = None) -> list[Embedding]:
    """Pooled features at the three deepest scales of evenly spread slices of the cases.

    All are cut to one size that fits inside every image: what is padded has a size, and sizes name domains.

    Args:
        method: with its network in eval mode.
        cases: of several domains, none of them learnt from.
        common: use this domain's norms for all, so that what is told apart is not told by the norms; None: each
            case's own.
    """
    device = next(method.network.parameters()).device
    rows: list[list[Array]] = []
    domains: list[str] = []
    patients: list[str] = []
    axes = method.config.net_axes
    whole = [(case, method.load(case.without_label())) for case in cases]
    size = common_size([loaded["image"].shape[1 : 1 + axes] for _, loaded in whole])
    for case, loaded in whole:
        views = cut_views(_at_least(loaded["image"], size), size, SLICES).to(device)
        _, features = method.network.with_features(views, common or loaded["domain"])
        rows.append([found.float().cpu().numpy().astype(np.float64) for found in features])
        domains += [loaded["domain"]] * len(views)
        patients += [case.patient] * len(views)
    scales = range(len(rows[0]))
    told = (tuple(domains), tuple(patients))
    return [Embedding(np.concatenate([row[scale] for row in rows]), *told) for scale in scales]


def common_size(grids: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The largest size inside all grids that the network can halve four times; at least one step of 16."""
    return tuple(max(MULTIPLE, min(lengths) // MULTIPLE * MULTIPLE) for lengths in zip(*grids, strict=True))


def _at_least(image: MetaTensor, size: Sequence[int]) -> MetaTensor:
    """An image (C, *grid) that is thinner than a size, repeated at its border; zeros would name its domain."""
    missing = [max(0, wanted - n) for wanted, n in zip(size, image.shape[1:], strict=False)]
    missing += [0] * (image.ndim - 1 - len(missing))
    pads = [side for m in reversed(missing) for side in (m // 2, m - m // 2)]
    plain = image.as_tensor()[None]
    return MetaTensor(F.pad(plain, pads, mode="replicate")[0], affine=image.affine) if any(missing) else image


def principal_components(features: Array, count: int = 2) -> Array:
    """Rows (n, d) in the plane of their largest spread: (n, count)."""
    centred = features - features.mean(axis=0)
    left, size, _ = np.linalg.svd(centred, full_matrices=False)
    components: Array = left[:, :count] * size[:count]
    return components


def nearest_centre_accuracy(embedding: Embedding) -> float:
    """Share of rows whose nearest domain centre, found without the row's patient, is their own: 1 is perfect clusters.

    Patients who are the only ones of their domain are left out; NaN where that leaves nobody.
    """
    names = sorted(set(embedding.domains))
    owner = np.array([names.index(name) for name in embedding.domains])
    patient = np.array(embedding.patients)
    scaled = embedding.features / np.maximum(embedding.features.std(axis=0), 1e-9)
    hits = []
    for row, own in enumerate(owner):
        others = patient != patient[row]
        if (others & (owner == own)).any():
            there = [k for k in range(len(names)) if (others & (owner == k)).any()]
            centres = np.stack([scaled[others & (owner == k)].mean(axis=0) for k in there])
            hits.append(there[int(np.linalg.norm(centres - scaled[row], axis=1).argmin())] == own)
    return float(np.mean(hits)) if hits else math.nan


def draw_embeddings(scales: Sequence[Embedding], title: str) -> Figure:
    """One panel per scale: slices as points in the plane of their largest spread, coloured by domain."""
    figure = Figure(figsize=(4 * len(scales), 3.8), layout="constrained")
    for number, (axes, embedding) in enumerate(
        zip(figure.subplots(1, len(scales), squeeze=False)[0], scales, strict=True)
    ):
        points = principal_components(embedding.features)
        for name in sorted(set(embedding.domains)):
            chosen = np.array([domain == name for domain in embedding.domains])
            axes.scatter(points[chosen, 0], points[chosen, 1], s=12, label=name, alpha=0.8)
        axes.set_title(
            f"scale {number + 1} of {len(scales)}, told apart {nearest_centre_accuracy(embedding):.2f}", fontsize=10
        )
        axes.set_xticks([])
        axes.set_yticks([])
    axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure

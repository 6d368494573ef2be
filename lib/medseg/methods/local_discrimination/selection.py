"""Which images to label first, from descriptors alone: typicality and k-centre. Pure functions of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 20  # ours: as TypiClust
LARGEST = 64  # ours: clusters at most; beyond, every pick would be a cluster of its own
STEPS = 25  # ours: iterations of k-means, which converges in about ten

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pick:
    """A chosen row.

    Attributes:
        row: its index.
        value: typicality (one over the mean distance to its neighbours), or distance to the nearest one chosen.
        group: number of rows of its cluster; 0 for k-centre.
    """

    row: int
    value: float
    group: int = 0


def typical_first(features: Array, covered: Sequence[int], count: int, seed: int = 0) -> list[Pick]:
    """The most typical row of the largest cluster that holds nothing labelled, again and again.

    Clusters: k-means into as many as there are labelled and wanted rows; typicality: one over the mean distance to the
    nearest 20 rows of the cluster.

    Source: Hacohen et al., Active learning on a budget (TypiClust), ICML 2022, arXiv 2202.02794.

    Args:
        features: (n, d).
        covered: rows that are labelled.
        count: number of picks; fewer where the pool ends.
        seed: of k-means.
    """
    pool = [row for row in range(len(features)) if row not in set(covered)]
    wanted = min(count, len(pool))
    if not wanted:
        return []
    clusters = min(len(covered) + wanted, LARGEST, len(features))
    groups = cluster(features, clusters, seed)
    sizes = np.bincount(groups, minlength=clusters)
    taken = np.bincount(groups[list(covered)], minlength=clusters)
    picks: list[Pick] = []
    free = set(pool)
    while len(picks) < wanted:
        open_groups = [g for g in range(clusters) if any(groups[row] == g for row in free)]
        best = min(open_groups, key=lambda g: (taken[g], -sizes[g], g))
        rows = np.flatnonzero(groups == best)
        scores = typicality(features[rows])
        row, value = max(
            ((int(r), float(s)) for r, s in zip(rows, scores, strict=True) if int(r) in free),
            key=lambda x: (x[1], -x[0]),
        )
        picks.append(Pick(row, value, int(sizes[best])))
        free.remove(row)
        taken[best] += 1
    return picks


def k_centre(features: Array, covered: Sequence[int], count: int) -> list[Pick]:
    """Farthest-first: always the row that is farthest from everything labelled or picked.

    With nothing labelled the first pick is the medoid, the row nearest to all others. Source: Sener and Savarese,
    ICLR 2018, arXiv 1708.00489 (greedy core-set).

    Args:
        features: (n, d).
        covered: rows that are labelled.
        count: number of picks; fewer where the pool ends.
    """
    free = np.ones(len(features), dtype=bool)
    free[list(covered)] = False
    nearest = np.full(len(features), np.inf)
    for row in covered:
        nearest = np.minimum(nearest, np.linalg.norm(features - features[row], axis=1))
    picks: list[Pick] = []
    for _ in range(min(count, int(free.sum()))):
        if np.isinf(nearest).all():
            row = int(np.linalg.norm(features[:, None] - features[None], axis=2).sum(axis=1).argmin())
        else:
            row = int(np.where(free, nearest, -1.0).argmax())
        picks.append(Pick(row, float(nearest[row])))
        free[row] = False
        nearest = np.minimum(nearest, np.linalg.norm(features - features[row], axis=1))
    return picks


def typicality(features: Array) -> Array:
    """One over the mean distance to the nearest `NEIGHBOURS` other rows: (n, d) -> (n,)."""
    distances = np.sort(np.linalg.norm(features[:, None] - features[None], axis=2), axis=1)
    near = distances[:, 1 : NEIGHBOURS + 1]
    mean = near.mean(axis=1) if near.shape[1] else np.zeros(len(features))
    return 1.0 / np.maximum(mean, 1e-9)


def cluster(features: Array, clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """k-means with k-means++ starts: (n, d) -> (n,) cluster of each row. No cluster stays empty."""
    rng = np.random.default_rng(seed)
    centres = features[[int(rng.integers(len(features)))]]
    for _ in range(clusters - 1):
        squares = ((features[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1)
        total = squares.sum()
        row = int(rng.choice(len(features), p=squares / total)) if total > 0 else int(rng.integers(len(features)))
        centres = np.concatenate([centres, features[[row]]])
    groups = np.zeros(len(features), dtype=np.int64)
    for _ in range(STEPS):
        squares = ((features[:, None] - centres[None]) ** 2).sum(axis=2)
        groups = squares.argmin(axis=1)
        for g in range(clusters):
            if not (groups == g).any():
                away = squares[np.arange(len(features)), groups]
                shared = np.bincount(groups, minlength=clusters)[groups] > 1
                groups[int(np.where(shared, away, -1.0).argmax())] = g
            centres[g] = features[groups == g].mean(axis=0)
    return groups

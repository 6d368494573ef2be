"""First labels, when no segmentation model exists: typical and spread images by pretrained embeddings.

The features are those that `local_discrimination` keeps with its scores; it learns without labels. Images without
features follow in the stable random order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from medseg.acquisition.strategies import Candidate, Scored, random_order
from medseg.methods.local_discrimination.selection import Pick, k_centre, typical_first

TYPICAL_PICKS = 5  # ours: images grouped for at a time; with more, groups get too small to be typical of anything
SPREAD_PICKS = 20  # ours: nobody labels more cold-start images between two scorings
NO_FEATURES_WHY = "no embedding yet, random order"


def typical(candidates: Sequence[Candidate], covered: Sequence[Sequence[float]] = (), seed: int = 0) -> list[Scored]:
    """The most typical image of the largest group of images of which none is labelled, and so on.

    Args:
        candidates: unlabelled images; those with features of the common length take part, the others follow.
        covered: features of images that are labelled or being labelled.
        seed: of the grouping and of the stable random order.
    """
    pool, features, rows = _table(candidates, covered)
    picks = typical_first(features, rows, min(TYPICAL_PICKS, len(pool)), seed) if pool else []
    return _ranking(candidates, pool, picks, seed, lambda p: f"typical of {p.group} similar images")


def spread(candidates: Sequence[Candidate], covered: Sequence[Sequence[float]] = (), seed: int = 0) -> list[Scored]:
    """Farthest-first (k-centre): the image least like those labelled; the very first is the most central one.

    Args:
        candidates: as `typical`.
        covered: as `typical`.
        seed: of the stable random order.
    """
    pool, features, rows = _table(candidates, covered)
    picks = k_centre(features, rows, min(SPREAD_PICKS, len(pool))) if pool else []
    return _ranking(candidates, pool, picks, seed, _told_spread)


COLD_START = {
    "typicality": ("first labels: typical images of groups without a label", typical),
    "k_centre": ("first labels: images least like those labelled", spread),
}
"""Name of each strategy, what a viewer is told of it, and the function."""


def _told_spread(pick: Pick) -> str:
    if np.isinf(pick.value):
        return "the most central image"
    return f"unlike the images already chosen, distance {pick.value:.2f}"


def _table(
    candidates: Sequence[Candidate], covered: Sequence[Sequence[float]]
) -> tuple[list[str], np.ndarray, list[int]]:
    """Ids of candidates with features, the features of them and of the covered ones, and the rows of the latter."""
    ordered = sorted((c for c in candidates if c.features), key=lambda c: c.id)
    length = max((len(c.features) for c in ordered), default=0)
    ordered = [c for c in ordered if len(c.features) == length]
    taken = [tuple(f) for f in covered if len(f) == length]
    table = np.asarray([*(c.features for c in ordered), *taken], dtype=np.float64).reshape(-1, max(length, 1))
    return [c.id for c in ordered], table, list(range(len(ordered), len(table)))


def _ranking(
    candidates: Sequence[Candidate], pool: Sequence[str], picks: Sequence[Pick], seed: int, tell: Callable[[Pick], str]
) -> list[Scored]:
    chosen = [Scored(pool[p.row], None if np.isinf(p.value) else p.value, tell(p)) for p in picks]
    names, embedded = {scored.id for scored in chosen}, set(pool)
    rest = [c for c in candidates if c.id in embedded - names]
    bare = [c for c in candidates if c.id not in embedded]
    return chosen + random_order(rest, seed, "random order") + random_order(bare, seed, NO_FEATURES_WHY)

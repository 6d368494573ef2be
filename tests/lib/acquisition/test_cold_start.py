from __future__ import annotations

import numpy as np
import pytest

from medseg.acquisition.cold_start import spread, typical
from medseg.acquisition.strategies import Candidate, random_order

STRATEGIES = [typical, spread]


def pool() -> list[Candidate]:
    """Twelve images like each other, four others, one without features."""
    rng = np.random.default_rng(0)
    rows = np.repeat([[0.0, 0.0], [8.0, 0.0]], [12, 4], axis=0) + rng.normal(0, 0.4, (16, 2))
    return [Candidate(f"image_{i:02d}", 0.1, "", tuple(row)) for i, row in enumerate(rows)] + [Candidate("image_99")]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_image_once_in_the_same_order(strategy) -> None:  # type: ignore[no-untyped-def]
    candidates = pool()

    ranked = strategy(candidates)

    assert sorted(s.id for s in ranked) == [c.id for c in candidates]
    assert ranked == strategy(list(reversed(candidates)))
    assert ranked[-1].id == "image_99"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_both_groups_are_seen_with_two_labels(strategy) -> None:  # type: ignore[no-untyped-def]
    ranked = strategy(pool())

    assert {int(s.id[-2:]) < 12 for s in ranked[:2]} == {True, False}


def test_typical_starts_in_a_dense_group_and_says_so() -> None:
    first = typical([c for c in pool() if c.id < "image_14"], [(8.0, 0.0)])[0]

    assert int(first.id[-2:]) < 12
    assert first.why.startswith("typical of")


def test_covered_images_are_not_repeated() -> None:
    covered = [(0.0, 0.0)]

    assert int(spread(pool(), covered)[0].id[-2:]) >= 12
    assert "unlike the images already chosen" in spread(pool(), covered)[0].why


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_without_features_the_order_is_random_and_an_empty_pool_is_empty(strategy) -> None:  # type: ignore[no-untyped-def]
    bare = [Candidate(c.id) for c in pool()]

    assert [s.id for s in strategy(bare)] == [s.id for s in random_order(bare)]
    assert strategy(bare)[0].why == "no embedding yet, random order"
    assert strategy([]) == []

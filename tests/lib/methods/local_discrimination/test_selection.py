from __future__ import annotations

import numpy as np
import pytest

from medseg.methods.local_discrimination.selection import cluster, k_centre, typical_first, typicality


def groups() -> np.ndarray:
    """Rows 0..19 around (0, 0), 20..29 around (10, 0), 30..34 around (0, 10)."""
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], [20, 10, 5], axis=0)
    return centres + rng.normal(0, 0.5, centres.shape)


def test_largest_group_comes_first_and_every_group_once() -> None:
    picks = typical_first(groups(), (), 3)

    assert [pick.group for pick in picks] == [20, 10, 5]
    assert picks[0].row < 20 <= picks[1].row < 30 <= picks[2].row


def test_typical_row_is_one_from_the_middle() -> None:
    features = groups()
    pick = typical_first(features, (), 3)[0]

    assert np.linalg.norm(features[pick.row]) < 0.5
    assert typicality(features[:20])[pick.row] == pytest.approx(pick.value)


def test_groups_with_a_label_wait() -> None:
    picks = typical_first(groups(), [0, 25], 1)

    assert 30 <= picks[0].row < 35


@pytest.mark.parametrize("covered", [(), (3, 22)])
def test_picks_are_free_different_repeatable_and_end_with_the_pool(covered: tuple[int, ...]) -> None:
    features = groups()
    for strategy in (lambda n: typical_first(features, covered, n), lambda n: k_centre(features, covered, n)):
        rows = [pick.row for pick in strategy(100)]
        assert sorted([*rows, *covered]) == list(range(35))
        assert rows == [pick.row for pick in strategy(100)]
        assert strategy(0) == []


def test_k_centre_starts_central_and_then_goes_far() -> None:
    features = np.array([[0.0], [1.0], [2.0], [10.0]])

    picks = k_centre(features, (), 3)

    assert [pick.row for pick in picks] == [1, 3, 0]  # rows 1 and 2 are both medoids: the first counts
    assert picks[1].value == pytest.approx(9)
    assert [pick.row for pick in k_centre(features, [3], 1)] == [0]


def test_clusters_are_never_empty() -> None:
    same = np.zeros((6, 2))

    assert set(cluster(same, 3).tolist()) == {0, 1, 2}
    assert sorted(np.bincount(cluster(groups(), 3)).tolist()) == [5, 10, 20]

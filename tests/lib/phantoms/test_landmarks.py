from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from medseg.cases import load_cases
from medseg.errors import MedsegError
from medseg.phantoms.landmarks import make_landmarks, write_landmark_study
from medseg.phantoms.shapes import draw_vessels


def around(seed: int, shape: tuple[int, ...], mirror: bool = False) -> np.ndarray:
    """Small windows around the landmarks, one row each."""
    phantom = make_landmarks(seed, shape, 6, mirror=mirror)
    offsets = np.stack(np.meshgrid(*(np.arange(-3, 4),) * len(shape), indexing="ij")).reshape(len(shape), -1)
    rows = [map_coordinates(phantom.image, p[:, None] + offsets, order=1, mode="nearest") for p in phantom.points]
    return np.stack([(row - row.mean()) / row.std() for row in rows])


@pytest.mark.parametrize("shape", [(160, 140), (64, 60, 56)])
def test_landmarks_show_the_same_place_in_every_subject(shape: tuple[int, ...]) -> None:
    one, other = around(1, shape), around(2, shape)

    similarity = one @ other.T / one.shape[1]

    assert float(np.diag(similarity).mean()) > 0.6
    assert float(np.diag(similarity).mean()) > float(similarity.mean()) + 0.4


def test_subjects_differ_and_repeat() -> None:
    first, same, other = (make_landmarks(seed, (64, 64)) for seed in (1, 1, 2))

    assert np.array_equal(first.image, same.image)
    assert float(np.linalg.norm(first.points - other.points, axis=1).mean()) > 1.0


def test_mirrored_subject_has_mirrored_landmarks() -> None:
    plain, mirrored = (make_landmarks(1, (64, 64), mirror=m).points for m in (False, True))
    order = [np.argsort(points[:, 0])[[0, -1]].tolist() for points in (plain, mirrored)]

    assert order[0] == order[1][::-1]


def test_study_is_read_as_cases_with_landmarks(tmp_path: Path) -> None:
    cases = load_cases([write_landmark_study(tmp_path, 2, (32, 30, 28), 4)])

    assert len(cases) == 2
    assert cases[0].weak is not None
    points = np.asarray(list(cases[0].weak.landmarks.values()))
    assert np.allclose(points, make_landmarks(0, (32, 30, 28), 4).points, atol=0.01)


def test_bad_arguments_are_one_sentence() -> None:
    with pytest.raises(MedsegError, match=r"1..12 landmarks, got 0"):
        make_landmarks(0, (32, 32), 0)
    with pytest.raises(MedsegError, match="two or three axes of at least 16 voxels"):
        make_landmarks(0, (8, 32))


def test_vessels_are_thin_connected_and_as_dense_as_real_ones() -> None:
    from scipy.ndimage import distance_transform_edt, label

    trees = [draw_vessels(seed, (256, 256)) for seed in range(3)]

    for tree in trees:
        sizes = np.bincount(label(tree, np.ones((3, 3)))[0].ravel())[1:]
        assert 0.02 < tree.mean() < 0.2
        assert sizes.max() > 0.8 * tree.sum()
        assert distance_transform_edt(tree).max() < 8
    assert not np.array_equal(trees[0], trees[1])

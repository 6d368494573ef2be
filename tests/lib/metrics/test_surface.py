"""Surface distances against hand-computed values and a slow reference by distance transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt, gaussian_filter

from medseg.metrics.surface import average_surface_distance, hd95, surface_distances, surface_points, worst_distance


def blob(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(seed).random(shape), 2)
    return noise > np.quantile(noise, 0.8)


def reference(pred: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> tuple[float, float]:
    """HD95 and ASD by distance transforms of the whole image, the way medpy computes them."""
    borders = [mask ^ binary_erosion(mask) for mask in (pred, truth)]
    to_truth = distance_transform_edt(~borders[1], sampling=spacing)[borders[0]]
    to_pred = distance_transform_edt(~borders[0], sampling=spacing)[borders[1]]
    return float(np.percentile(np.hstack([to_truth, to_pred]), 95)), float((to_truth.mean() + to_pred.mean()) / 2)


def test_surface_of_a_cube_leaves_out_its_inside():
    cube = np.zeros((7, 7, 7), bool)
    cube[1:6, 1:6, 1:6] = True

    points = surface_points(cube)

    assert len(points) == 5**3 - 3**3
    assert [3, 3, 3] not in points.tolist()


def test_voxels_at_the_image_border_belong_to_the_surface():
    assert len(surface_points(np.ones((4, 5), bool))) == 4 * 5 - 2 * 3


def test_shifted_point_is_the_spacing_away():
    pred, truth = np.zeros((2, 9, 9, 9), bool)
    pred[4, 4, 4] = truth[4, 4, 7] = True

    distances = surface_distances(pred, truth, (1.0, 1.0, 2.5))

    assert hd95(*distances) == pytest.approx(7.5)
    assert average_surface_distance(*distances) == pytest.approx(7.5)


def test_directions_count_alike_although_one_surface_is_larger():
    pred, truth = np.zeros((2, 1, 11), bool)
    pred[0, 0] = True
    truth[0, [0, 10]] = True  # directed: 0 from pred, (0 + 10) / 2 from truth

    distances = surface_distances(pred, truth, (1.0, 1.0))

    assert average_surface_distance(*distances) == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((24, 20, 16), (1.0, 1.0, 1.0)), ((24, 20, 16), (0.6, 0.8, 3.0)), ((40, 31), (0.5, 2.0))],
)
def test_distances_equal_the_slow_reference(shape, spacing):
    pred, truth = blob(shape, 1), blob(shape, 2)

    distances = surface_distances(pred, truth, spacing)

    assert (hd95(*distances), average_surface_distance(*distances)) == pytest.approx(reference(pred, truth, spacing))


def test_worst_distance_is_the_diagonal_in_mm():
    assert worst_distance((3, 4, 6), (1.0, 1.0, 2.0)) == pytest.approx(math.sqrt(9 + 16 + 144))

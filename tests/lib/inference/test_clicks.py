"""Correction of a prediction by clicks."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medseg.errors import UnusableInputError
from medseg.inference.clicks import ClickSettings, correct
from medseg.inference.simulated_clicks import corrected_by_clicks, next_click

SHAPE = (24, 20, 12)


def scene() -> tuple[MetaTensor, MetaTensor, np.ndarray]:
    """Probabilities that miss the right one of two bright boxes, the image, and the truth (1: both boxes)."""
    truth = np.zeros(SHAPE, np.uint8)
    truth[3:9, 5:14, 3:9] = truth[14:20, 5:14, 3:9] = 1
    image = torch.from_numpy(100.0 * truth + np.random.default_rng(0).normal(size=SHAPE)).float()
    found = truth * (np.arange(24) < 12)[:, None, None]
    inside = torch.from_numpy(np.where(found, 0.95, 0.1)).float()
    affine = torch.diag(torch.tensor([1.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    return MetaTensor(torch.stack([1 - inside, inside]), affine=affine), MetaTensor(image[None], affine=affine), truth


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * ((mask > 0) & (truth > 0)).sum() / ((mask > 0).sum() + (truth > 0).sum()))


def test_one_click_brings_the_missed_part_and_leaves_the_rest() -> None:
    probabilities, image, truth = scene()
    assert dice(probabilities.argmax(0).numpy(), truth) == pytest.approx(2 / 3)

    result = correct(probabilities, image, {1: [[17, 9, 6]]}, ClickSettings(reach=0.4))

    mask = result.as_tensor().argmax(dim=0).numpy()
    assert mask[17, 9, 6] == 1
    assert dice(mask, truth) > 0.8
    np.testing.assert_array_equal(mask[:12], truth[:12])
    torch.testing.assert_close(result.as_tensor().sum(dim=0), torch.ones(SHAPE))
    torch.testing.assert_close(result.as_tensor()[:, :2], probabilities.as_tensor()[:, :2], atol=0.02, rtol=0)


def test_every_click_is_obeyed_even_beside_an_opposite_one() -> None:
    probabilities, image, _ = scene()

    result = correct(probabilities, image, {0: [[5, 8, 5], [6, 9, 6]], 1: [[5, 8, 6], [21, 2, 2]]})

    mask = result.as_tensor().argmax(dim=0).numpy()
    assert [mask[5, 8, 5], mask[6, 9, 6], mask[5, 8, 6], mask[21, 2, 2]] == [0, 0, 1, 1]


def test_clicks_act_as_the_posterior_mean_of_all_voxels_at_once() -> None:
    probabilities, image, _ = scene()
    settings = ClickSettings()
    points, values = [(17, 9, 6), (5, 8, 5), (16, 6, 4)], [1, 0, 1]

    got = correct(probabilities, image, {1: [points[0], points[2]], 0: [points[1]]}, settings).as_tensor()

    looks = gaussian_filter(image[0].numpy(), settings.smoothing)
    looks = looks / looks.std()
    place = np.stack(np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")) * np.array([1, 1, 2]).reshape(
        3, 1, 1, 1
    )
    place = place / (settings.reach * np.mean([24, 20, 24]))
    kernels = [
        np.exp(-0.5 * (((place - place[(slice(None), *p)].reshape(3, 1, 1, 1)) ** 2).sum(0) + (looks - looks[p]) ** 2))
        for p in points
    ]
    start = np.log(probabilities.numpy().clip(settings.floor))
    wanted = np.zeros((3, 2))
    for row, (p, value) in enumerate(zip(points, values, strict=True)):
        wanted[row, value] = max(0, settings.margin + start[(1 - value, *p)] - start[(value, *p)])
    between = np.array([[k[p] for p in points] for k in kernels])
    weights = np.linalg.solve(between + settings.noise * np.eye(3), wanted)
    scores = start + np.einsum("kc,kxyz->cxyz", weights, np.stack(kernels))
    slow = torch.softmax(torch.from_numpy(scores).float(), dim=0)
    changed = got.argmax(0) != probabilities.argmax(0)
    assert changed.any()
    torch.testing.assert_close(got[:, changed], slow[:, changed], atol=2e-3, rtol=0)


def test_many_clicks_need_the_memory_of_a_few_volumes() -> None:
    probabilities, image, _ = scene()
    clicks = [[int(i) for i in np.unravel_index(n * 57, SHAPE)] for n in range(100)]

    tracemalloc.start()
    correct(probabilities, image, {1: clicks})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 25 * 4 * np.prod(SHAPE)  # a stack of all kernels alone would be 100 volumes of float32


def test_without_clicks_nothing_changes() -> None:
    probabilities, image, _ = scene()

    assert correct(probabilities, image, {}) is probabilities
    right = correct(probabilities, image, {1: [[5, 8, 5]], 0: [[1, 1, 1]]})
    torch.testing.assert_close(right.as_tensor(), probabilities.as_tensor())


def test_pictures_are_corrected_too() -> None:
    probabilities, image, truth = scene()
    flat = MetaTensor(probabilities.as_tensor()[..., 6], affine=torch.eye(3))
    picture = MetaTensor(image.as_tensor()[..., 6].expand(3, -1, -1), affine=torch.eye(3))

    mask = correct(flat, picture, {1: [[17, 9]]}, ClickSettings(reach=0.4)).as_tensor().argmax(dim=0).numpy()

    assert dice(mask, truth[..., 6]) > 0.9


@pytest.mark.parametrize(
    ("clicks", "message"), [({1: [[24, 0, 0]]}, "outside the image"), ({2: [[1, 1, 1]]}, "label 2")]
)
def test_impossible_clicks_are_refused(clicks: dict, message: str) -> None:
    probabilities, image, _ = scene()

    with pytest.raises(UnusableInputError, match=message):
        correct(probabilities, image, clicks)


def test_the_simulated_annotator_clicks_into_the_middle_of_the_largest_error() -> None:
    truth = np.zeros((9, 9), np.uint8)
    truth[1:8, 1:6] = 1
    mask = np.zeros_like(truth)
    mask[8, 8] = 1

    assert next_click(mask, truth) in {(4, 3), (3, 3), (5, 3)}
    assert next_click(truth, truth) is None


def test_dice_grows_with_simulated_clicks() -> None:
    probabilities, image, truth = scene()

    course = [dice(mask, truth) for mask in corrected_by_clicks(probabilities, image, truth, 5)]

    assert len(course) == 6
    assert course[0] == pytest.approx(2 / 3)
    assert course[1] > 0.73
    assert course[5] > 0.86
    assert course == sorted(course)

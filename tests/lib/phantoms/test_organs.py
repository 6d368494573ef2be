"""Organ phantoms: deterministic, exact, in mm, and no pure threshold."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.phantoms.organs import make_organ, organ_labels


def best_threshold_dice(image: np.ndarray, truth: np.ndarray) -> float:
    levels = np.quantile(image, np.linspace(0.5, 0.995, 60))
    return max(2 * (truth & (image > t)).sum() / (truth.sum() + (image > t).sum()) for t in levels)


@pytest.mark.parametrize("shape", [(32, 32, 24), (48, 40)])
def test_same_seed_gives_the_same_phantom(shape):
    first, second, other = make_organ(3, shape), make_organ(3, shape), make_organ(4, shape)

    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(first.mask, other.mask)


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("seed", range(4))
def test_every_label_is_there_and_nothing_else(labels, seed):
    organ = make_organ(seed, (48, 48, 32), labels)

    assert np.unique(organ.mask).tolist() == list(range(labels + 1))
    assert organ_labels(labels) == dict(zip(("atrium", "ventricle", "aorta")[:labels], (1, 2, 3), strict=False))


def test_fewer_labels_change_the_mask_only():
    one, three = make_organ(0, (32, 32, 32), labels=1), make_organ(0, (32, 32, 32), labels=3)

    assert np.array_equal(one.image, three.image)
    assert np.array_equal(one.mask, np.where(three.mask == 1, 1, 0))


@pytest.mark.parametrize("seed", range(3))
def test_organ_is_visible_but_no_threshold_finds_it(seed):
    organ = make_organ(seed, (64, 64, 32), spacing=(1.0, 1.0, 2.0))
    truth = organ.mask == 1

    assert organ.image[truth].mean() > organ.image[organ.mask == 0].mean() + 50
    assert 0.02 < truth.mean() < 0.15
    assert best_threshold_dice(organ.image, truth) < 0.85


def test_affine_holds_the_spacing_and_a_tilt_of_the_asked_size():
    organ = make_organ(1, (24, 20, 16), spacing=(0.8, 1.2, 3.0), tilt=20.0)

    linear = organ.affine[:3, :3]
    rotation = linear / np.linalg.norm(linear, axis=0)
    angle = np.degrees(np.arccos((np.trace(rotation) - 1) / 2))
    assert np.linalg.norm(linear, axis=0) == pytest.approx([0.8, 1.2, 3.0])
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert 10 <= angle <= 20


def test_organ_stays_in_place_when_the_grid_is_finer():
    coarse, fine = make_organ(5, (32, 32, 32), spacing=(2.0,) * 3), make_organ(5, (64, 64, 64), spacing=(1.0,) * 3)

    half = fine.mask.reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5)) > 0.5
    assert 2 * (half & (coarse.mask == 1)).sum() / (half.sum() + coarse.mask.sum()) > 0.9


@pytest.mark.parametrize(
    ("shape", "labels", "spacing"),
    [((32, 32, 32), 4, None), ((32,), 1, None), ((32, 32, 4), 1, None), ((32, 32, 32), 1, (1.0, 1.0))],
)
def test_impossible_phantoms_are_refused(shape, labels, spacing):
    with pytest.raises(MedsegError, match=r"1\.\.3 labels|two or three axes"):
        make_organ(0, shape, labels, spacing)

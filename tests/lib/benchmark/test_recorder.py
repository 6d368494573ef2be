"""Overlays of held-out cases survive their way to the report."""

from __future__ import annotations

import numpy as np

from medseg.benchmark.recorder import load_overlay, save_overlays, thin_picture
from medseg.reports.overlays import Overlay, cut_overlay


def test_overlay_is_read_back_as_it_was_cut(tmp_path):
    rng = np.random.default_rng(0)
    mask = np.zeros((8, 7, 9), np.uint8)
    mask[2:5, 2:5, 1:8] = 1
    whole = Overlay(rng.random(mask.shape).astype(np.float32), mask, mask, rng.random(mask.shape), (1, 1, 3), "a, 0.5")
    kept = cut_overlay(whole, 3)

    path = save_overlays(tmp_path / "overlays.npz", {"case": kept})
    found = load_overlay(path, "case")

    assert found is not None
    assert found.places == kept.places == (2, 4, 6)
    assert np.array_equal(found.image, whole.image[:, :, [2, 4, 6]])
    assert np.array_equal(found.truth, mask[:, :, [2, 4, 6]])
    assert np.allclose(found.uncertainty, whole.uncertainty[:, :, [2, 4, 6]], atol=1e-3)
    assert (found.title, tuple(found.spacing)) == ("a, 0.5", (1, 1, 3))


def test_picture_without_uncertainty_is_kept_whole(tmp_path):
    mask = np.eye(6, dtype=np.uint8)
    path = save_overlays(tmp_path / "overlays.npz", {"p": Overlay(mask * 9.0, mask, mask, spacing=(1, 1))})

    found = load_overlay(path, "p")

    assert found is not None
    assert found.uncertainty is None
    assert found.prediction.shape == (6, 6)


def test_unknown_case_or_file_is_none(tmp_path):
    path = save_overlays(tmp_path / "overlays.npz", {})

    assert load_overlay(path, "x") is None
    assert load_overlay(tmp_path / "none.npz", "x") is None


def test_large_pictures_are_thinned_and_volumes_are_not():
    mask = np.arange(1300 * 700).reshape(1300, 700)
    picture = Overlay(mask, None, mask, layers={"map": mask}, spacing=(1, 1))
    volume = Overlay(np.zeros((700, 650, 3)), None, np.zeros((700, 650, 3)), places=(0, 1, 2))

    found = thin_picture(picture)

    assert np.array_equal(found.prediction, mask[::3, ::3])
    assert np.array_equal(found.layers["map"], mask[::3, ::3])
    assert found.truth is None
    assert thin_picture(volume) is volume

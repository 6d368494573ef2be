"""Errors of masks, and what counts as truth."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medseg.cases import load_cases
from medseg.methods.seg4reg.geometry import Limits
from medseg.methods.seg4reg.judge import mask_metrics, true_angles
from medseg.methods.seg4reg.targets import VERTEBRA, Truth, draw_spine, read_truth
from medseg.phantoms.spines import make_spine

SIZE = (384, 1024)


def numbered(seed: int = 1) -> np.ndarray:
    """A mask in which vertebrae touch, each with its own number."""
    corners = make_spine(seed, SIZE).corners.copy()
    for above, below in itertools.pairwise(corners):
        above[2:] = below[:2]
    mask = np.zeros(SIZE, np.int16)
    for number, quad in enumerate(corners, start=1):
        mask[draw_spine(quad[None], SIZE) == VERTEBRA] = number
    return mask


def test_specks_are_no_vertebrae_of_the_truth() -> None:
    truth = draw_spine(make_spine(1, SIZE).corners, SIZE) == VERTEBRA
    mask, speck = truth.copy(), truth.copy()
    speck[3:7, 500:504] = True

    found = mask_metrics(mask, speck)

    assert (found["vertebra_dice"], found["count_failure"]) == (1, 0)
    assert mask_metrics(mask, speck, count=18)["count_failure"] == 1


def test_numbers_keep_touching_vertebrae_apart() -> None:
    truth = numbered()
    apart = draw_spine(make_spine(1, SIZE).corners, SIZE) == VERTEBRA

    found = mask_metrics(apart, truth)

    assert found["count_failure"] == 0
    assert found["vertebra_dice"] > 0.75
    assert mask_metrics(truth > 0, truth)["count_failure"] == 1


def test_a_missing_vertebra_has_no_overlap() -> None:
    corners = make_spine(1, SIZE).corners
    truth, mask = (draw_spine(c, SIZE) == VERTEBRA for c in (corners, corners[:16]))

    found = mask_metrics(mask, truth, 17)

    assert found["vertebra_dice"] == pytest.approx(16 / 17)
    assert found["count_failure"] == 1


def test_true_angles_are_stored_ones_else_those_of_the_mask() -> None:
    spine, unknown = make_spine(1, SIZE), np.full(3, math.nan)
    mask = MetaTensor(torch.from_numpy(numbered())[None], affine=torch.eye(3))

    assert true_angles(Truth(np.array([9.0, math.nan, 2]), unknown, None), mask, Limits())[0] == 9
    assert true_angles(Truth(unknown, unknown, None), mask, Limits())[0] == pytest.approx(spine.angles[0], abs=3)
    assert np.isnan(true_angles(Truth(unknown, unknown, None), None, Limits())).all()
    assert np.isnan(true_angles(Truth(unknown, unknown, None), mask * 0, Limits())).all()


def test_drawn_masks_of_the_challenge_have_seventeen_vertebrae(data_dir: Path) -> None:
    wanted = {f"spine_{n}" for n in ("059", "185", "275", "424", "448")}  # small or overlapping ones
    for case in load_cases(data_dir / "spine_xray"):
        if case.id in wanted:
            with Image.open(case.image) as file:
                size = file.size
            corners = read_truth(case, MetaTensor(torch.zeros(1, *size), affine=torch.eye(3))).corners
            assert corners is not None
            mask = draw_spine(corners, size) == VERTEBRA
            found = mask_metrics(mask, mask, 17)
            assert (case.id, found["vertebra_dice"], found["count_failure"]) == (case.id, 1, 0)
            wanted.remove(case.id)
    assert not wanted

"""The path from a mask to angles, on masks drawn from the challenge's corners."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medseg.cases import Case, load_cases
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.geometry import measure_mask
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine, read_truth
from medseg.metrics.smape import smape

STEEP = [f"spine_{n}" for n in ["008", "063", "072", "090", "095", "097", "257", "374", "456", "457"]]
"""Those with a vertebra that is tilted by more than 45 degrees."""


def errors(cases: list[Case], refine: bool) -> tuple[list[float], list[float]]:
    """Mean absolute error in degrees and SMAPE of the clean mask of every case with 17 components."""
    found = []
    for case in cases:
        with Image.open(case.image) as file:
            size = file.size
        truth = read_truth(case, MetaTensor(torch.zeros(1, *size), affine=torch.eye(3)))
        if truth.corners is None:
            continue
        geometry = measure_mask(draw_spine(truth.corners, size) == VERTEBRA, (1, 1), refine=refine)
        if geometry.count == 17 and geometry.cobb is not None:
            angles = np.array(geometry.cobb.angles)
            found.append((float(np.abs(angles - truth.angles).mean()), smape(angles, truth.angles)))
    return [mae for mae, _ in found], [value for _, value in found]


@pytest.mark.parametrize("refine", [False, True])
def test_clean_masks_give_the_stored_angles(data_dir: Path, refine: bool) -> None:
    cases = [case for case in load_cases(data_dir / "spine_xray") if case.id not in STEEP]

    mae, per_cent = errors(cases[::7], refine)

    assert len(mae) >= 60
    assert np.median(mae) < 0.4
    assert np.mean(mae) < 1.2  # 0.68 over all: in few the rule takes another branch, see benchmarks/seg4reg
    assert np.mean(np.array(mae) < 1) > 0.9
    assert np.mean(per_cent) < 2.5


def test_steep_vertebrae_do_no_harm(data_dir: Path) -> None:
    cases = [case for case in load_cases(data_dir / "spine_xray") if case.id in STEEP]

    mae, per_cent = errors(cases, Seg4RegConfig().refine_quads)

    assert len(mae) == 10
    assert max(mae) < 1
    assert max(per_cent) < 1.5

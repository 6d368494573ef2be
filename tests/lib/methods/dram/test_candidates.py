from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from medseg.methods.base import TrainingSet
from medseg.methods.dram.baselines import fit_threshold
from medseg.methods.dram.candidates import SoftCandidates, candidate_features, local_mean
from medseg.methods.dram.method import DRAM


def test_local_mean_leaves_out_what_is_outside() -> None:
    image = torch.arange(27.0).view(1, 1, 3, 3, 3)
    inside = torch.zeros_like(image)
    inside[0, 0, 0, 0, :2] = 1

    assert float(local_mean(image, inside)[0, 0, 0, 0, 0]) == pytest.approx(0.5)


def test_features_of_a_bright_patch_a_vessel_and_the_depth() -> None:
    image = torch.full((1, 1, 21, 21, 5), 0.1)
    image[0, 0, 2:9, 2:9] = 0.4  # ground glass
    image[0, 0, 15, 15] = 0.8  # a vessel: as bright in the mean of 5 x 5
    inside = torch.ones_like(image)

    voxel, mean, wide, spread, depth = candidate_features(image, inside, 3)[0]

    assert float(voxel[5, 5, 2]) == pytest.approx(3.0, abs=1e-3)
    assert float(mean[15, 15, 2]) == pytest.approx(10 * 0.7 / 9, abs=1e-3)
    assert float(spread[15, 15, 2]) < -1 < float(spread[5, 5, 2]) + 1
    assert float(depth[10, 10, 2]) == -1
    assert float(depth[0, 5, 2]) == pytest.approx(-1 / 11)
    assert float(wide[20, 0, 2]) == pytest.approx(0, abs=1e-4)


def test_outside_the_lungs_nothing_is_said() -> None:
    inside = torch.zeros(1, 1, 8, 8, 4)
    inside[:, :, :4] = 1

    logits = SoftCandidates()(torch.rand(1, 1, 8, 8, 4), inside)

    assert float(logits[:, :, 4:].abs().max()) == 0
    assert torch.isfinite(SoftCandidates()(torch.rand(1, 1, 8, 8, 4), torch.zeros(1, 1, 8, 8, 4))).all()


def test_the_fitted_cut_reproduces_the_extents(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(masks="extents")
    training = training_set(method, write_case(0, percent=[20] * 6, noise=10.0, distractors=0)[0])

    cut = fit_threshold(training)

    loaded = training.load(training.cases[0])
    inside = loaded["regions"].as_tensor() > 0
    share = float((loaded["image"].as_tensor()[inside] > cut).float().mean())
    assert share == pytest.approx(0.2, abs=0.06)
    assert fit_threshold(training, lambda image, inside: -image) == pytest.approx(
        -float(loaded["image"].as_tensor()[inside].quantile(0.2)), abs=0.08
    )

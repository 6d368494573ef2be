"""Maps, layers and metrics by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.methods.base import Prediction
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.judge import judge
from medseg.methods.dram.method import DRAM
from medseg.methods.dram.reading import Reading, stage_layers
from medseg.methods.dram.scoring import acquisition_score
from medseg.phantoms.chest import make_chest

EYE = torch.eye(4, dtype=torch.float64)


def reading_of(maps: dict[str, torch.Tensor], regions: torch.Tensor, shares: dict[int, float]) -> Reading:
    return Reading(maps, regions, {1: "left", 2: "right"}, (regions > 0).float(), list(maps.values())[-1], shares)


def test_the_pseudo_label_layer_stands_before_the_final_one() -> None:
    """Ten voxels, mean 0.4: four are marked, and a quarter of them on either side of the cut is undecided."""
    score = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0])
    regions = torch.ones(10, dtype=torch.uint8)
    reading = reading_of({"map": score, "crf": score, "final": score.flip(0)}, regions, {1: 0.4})

    layers = stage_layers(reading, DRAMConfig(band=0.25))

    assert list(layers) == ["map", "crf", "pseudo-label", "final"]
    assert layers["pseudo-label"].tolist() == [1, 1, 1, 0.5, 0.5, 0, 0, 0, 0, 0]
    assert list(stage_layers(reading_of({"cam": score}, regions, {1: 0.4}), DRAMConfig())) == ["cam"]


def test_extents_of_regions_and_lungs_are_the_models() -> None:
    regions = torch.tensor([1, 1, 1, 1, 2, 0], dtype=torch.uint8)
    reading = reading_of({"map": torch.rand(6)}, regions, {1: 0.5, 2: 1.0})
    reading.residual = {2: 0.25}

    found = {name: value.value for name, value in reading.measurements().items()}

    assert found == {"extent_left": 50.0, "extent_right": 100.0, "residual_right": 25.0, "extent_lungs": 60.0}


def test_metrics_by_hand() -> None:
    """Lungs of two sides and three slices; the lesion fills the left lower third, the prediction half of it and a
    voxel of the right."""
    truth = np.zeros((8, 4, 3), np.uint8)
    truth[:3], truth[5:] = 1, 1
    truth[:3, :, 0] = 2
    found = truth.copy()
    found[:3, 2:, 0] = 1
    found[5, 0, 2] = 2
    found[4, 0, 0] = 2  # outside the lungs
    uncertainty = np.where(truth > 0, 0.5, 0.9)[None]

    def tensor(values: np.ndarray) -> MetaTensor:
        return MetaTensor(torch.from_numpy(values), affine=EYE)

    prediction = Prediction(None, uncertainty=tensor(uncertainty), mask=tensor(found[None]))
    metrics = judge(prediction, tensor(truth[None]), 2, shows_lungs=True)

    assert metrics["iou"] == pytest.approx(6 / 13)
    assert metrics["dice"] == pytest.approx(12 / 19)
    assert metrics["iou_image"] == pytest.approx(6 / 14)
    assert metrics["lung_dice"] == pytest.approx(2 * 72 / (72 + 73))
    assert metrics["extent_error"] == pytest.approx((50 + 100 / 12) / 6)
    assert metrics["false_positive_extent"] == pytest.approx(100 / 12 / 5)
    assert metrics["entropy"] == pytest.approx(0.5)


def test_change_is_that_of_attention_and_crf(build: Callable[..., DRAM]) -> None:
    method = build(final=False)
    chest = make_chest(0, (16, 16, 8))
    regions = torch.from_numpy(chest.regions)
    half, none = torch.full(regions.shape, 0.5), torch.zeros(regions.shape)
    loaded = {"image": MetaTensor(torch.zeros(1, *regions.shape), affine=EYE)}

    same = reading_of({"map": half, "attention": half, "crf": half, "final": none}, regions, {1: 0.5})
    other = reading_of({"map": half, "attention": half, "crf": none, "final": half}, regions, {1: 0.5})

    with torch.no_grad():
        assert acquisition_score(method.network, loaded, same).parts["change"] == pytest.approx(0)
        assert acquisition_score(method.network, loaded, other).parts["change"] == pytest.approx(1)

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss

from medseg.losses.segmentation import SegmentationLoss


def random_pair(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(2, classes, 6, 5, 4, generator=generator)
    return logits, torch.randint(classes, (2, 1, 6, 5, 4), generator=generator)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize(("kind", "oracle"), [("dice", DiceLoss), ("dice_ce", DiceCELoss)])
def test_equals_monai(kind: str, oracle: type, classes: int) -> None:
    logits, label = random_pair(classes)
    expected = oracle(to_onehot_y=True, softmax=True, include_background=False, batch=True)(logits, label)
    assert SegmentationLoss(kind)(logits, label).item() == pytest.approx(expected.item(), rel=1e-4)


def test_value_by_hand() -> None:
    """p = 0.5 at two voxels, one of them foreground: Dice = 2 x 0.5 / (1 + 1), cross-entropy ln 2."""
    logits, label = torch.zeros(1, 2, 2), torch.tensor([[[0, 1]]])
    assert SegmentationLoss("dice", smooth=0)(logits, label).item() == pytest.approx(0.5)
    assert SegmentationLoss("dice_ce", smooth=0)(logits, label).item() == pytest.approx(0.5 + math.log(2))


def test_sums_run_over_the_whole_batch() -> None:
    """One image found, one small structure missed: the batch Dice is not the mean of the images' Dice."""
    label = torch.tensor([[[1, 1, 1, 0]], [[1, 0, 0, 0]]])
    prediction = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]])
    logits = 40.0 * torch.stack([1 - prediction, prediction], dim=1)
    assert SegmentationLoss(smooth=0)(logits, label).item() == pytest.approx(1 - 6 / 7, abs=1e-5)


def test_weights_leave_voxels_out() -> None:
    logits, label = random_pair(3)
    weight = torch.ones(2, 1, 6, 5, 4)
    weight[:, :, 3:] = 0
    for kind in ("dice", "dice_ce"):
        loss = SegmentationLoss(kind)
        assert loss(logits, label, weight).item() == pytest.approx(loss(logits[:, :, :3], label[:, :, :3]).item())
        assert loss(logits, label, torch.ones_like(weight)).item() == pytest.approx(loss(logits, label).item())


def test_perfect_is_zero_bad_is_one_and_absent_costs_nothing() -> None:
    label = torch.tensor([[[0, 1, 1, 0]]])
    perfect = 100.0 * torch.nn.functional.one_hot(label[:, 0], 2).movedim(-1, 1)
    loss = SegmentationLoss()
    assert loss(perfect, label).item() == pytest.approx(0, abs=1e-5)
    assert loss(-perfect, label).item() == pytest.approx(1, abs=1e-4)
    assert loss(torch.tensor([[[100.0] * 4, [-100.0] * 4]]), torch.zeros(1, 1, 4).long()).item() == pytest.approx(0)


def test_float32_under_autocast_and_uint8_labels() -> None:
    logits, label = random_pair(2)
    with torch.autocast("cpu", torch.bfloat16):
        loss = SegmentationLoss("dice_ce")(logits.bfloat16(), label.to(torch.uint8))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(SegmentationLoss("dice_ce")(logits, label).item(), rel=1e-2)


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="focal"):
        SegmentationLoss("focal")

from __future__ import annotations

import pytest
import torch

from medseg.losses.activation import attention_loss, normalise_maps


def test_value_by_hand() -> None:
    image = torch.tensor([[[[1.0, -2.0]]]])
    mask = torch.tensor([[[[-4.0, 4.0]]]])

    assert normalise_maps(image).tolist() == [[[[0.5, 1.0]]]]
    assert float(attention_loss(image, mask)) == pytest.approx(0.25)


def test_scale_and_sign_do_not_matter() -> None:
    maps = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))

    assert float(attention_loss(maps, -7 * maps)) == pytest.approx(0, abs=1e-6)


def test_only_the_image_learns_and_zeros_stay_finite() -> None:
    image = torch.rand(2, 3, 4, 4, requires_grad=True)
    mask = torch.rand(2, 3, 4, 4, requires_grad=True)

    attention_loss(image, mask).backward()

    assert mask.grad is None
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0
    assert float(attention_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))) == 0


def test_gradient_in_double_precision() -> None:
    maps = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    other = torch.rand(1, 2, 3, 3, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda m: attention_loss(m, other), (maps,))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        attention_loss(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))

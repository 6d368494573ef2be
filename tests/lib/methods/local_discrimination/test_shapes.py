from __future__ import annotations

import pytest
import torch

from medseg.methods.local_discrimination.shapes import render_shape


def render(background: torch.Tensor, seed: int, broad: bool) -> torch.Tensor:
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:30, 8:24] = 1
    picture, same = render_shape(mask, background, "dark", torch.Generator().manual_seed(seed), broad)
    assert torch.equal(same, mask)
    return picture


@pytest.mark.parametrize(("broad", "shown"), [(True, False), (False, True)])
def test_only_thin_shapes_lie_over_real_images(broad: bool, shown: bool) -> None:
    flat, lungs = torch.zeros(1, 40, 40), torch.zeros(1, 40, 40)
    lungs[:, 12:28, 6:16] = -3.0

    differ = [not torch.equal(render(flat, seed, broad), render(lungs, seed, broad)) for seed in range(8)]

    assert any(differ) == shown


@pytest.mark.parametrize("broad", [True, False])
def test_a_dark_shape_is_darker_than_its_surroundings_on_average(broad: bool) -> None:
    pictures = torch.stack([render(torch.zeros(1, 40, 40), seed, broad) for seed in range(12)])

    assert float(pictures[..., 10:30, 8:24].mean()) < float(pictures.mean()) - 0.2
    assert torch.allclose(pictures.std(dim=(1, 2, 3)), torch.ones(12), atol=0.01)

from __future__ import annotations

import torch

from medseg.methods.local_discrimination.shapes import render_shape


def render(background: torch.Tensor, seed: int) -> torch.Tensor:
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:30, 8:24] = 1
    picture, same = render_shape(mask, background, "dark", torch.Generator().manual_seed(seed))
    assert torch.equal(same, mask)
    return picture


def test_shapes_lie_half_of_the_time_over_the_image() -> None:
    flat, lungs = torch.zeros(1, 40, 40), torch.zeros(1, 40, 40)
    lungs[:, 12:28, 6:16] = -3.0

    differ = [not torch.equal(render(flat, seed), render(lungs, seed)) for seed in range(16)]

    assert 3 <= sum(differ) <= 13


def test_a_dark_shape_is_darker_than_its_surroundings_on_average() -> None:
    pictures = torch.stack([render(torch.zeros(1, 40, 40), seed) for seed in range(12)])

    assert float(pictures[..., 10:30, 8:24].mean()) < float(pictures.mean()) - 0.2
    assert torch.allclose(pictures.std(dim=(1, 2, 3)), torch.ones(12), atol=0.01)

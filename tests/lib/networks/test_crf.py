from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medseg.networks.crf import WindowedCRF


def inputs(*grid: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    unary, image = (torch.randn(1, 1, *grid, generator=generator) for _ in range(2))
    return unary, image, torch.ones(1, 1, *grid)


def test_no_strength_is_identity() -> None:
    unary, image, mask = inputs(4, 5, 3)

    assert torch.equal(WindowedCRF(strength=0.0)(unary, image, mask, (1, 1, 1)), unary)


def test_one_step_equals_brute_force() -> None:
    unary, image, mask = inputs(3, 4, 3)
    mask[0, 0, 1, 2, 1] = 0
    crf = WindowedCRF(1, 1, position=1.5, intensity=0.4, smoothness=0.8, strength=0.7)
    spacing = (1.0, 1.0, 2.0)
    q = torch.sigmoid(unary)[0, 0]
    voxels = [(x, y, z) for x in range(3) for y in range(4) for z in range(3)]
    expected = unary.clone()
    for i in voxels:
        total, message = 0.0, 0.0
        for j in voxels:
            near = max(abs(a - b) for a, b in zip(i, j, strict=True)) == 1
            if not near or not mask[0, 0][i] or not mask[0, 0][j]:
                continue
            square = sum(((a - b) * s) ** 2 for a, b, s in zip(i, j, spacing, strict=True))
            contrast = float(image[0, 0][i] - image[0, 0][j]) ** 2
            weight = math.exp(-square / (2 * 1.5**2) - contrast / (2 * 0.4**2)) + math.exp(-square / (2 * 0.8**2))
            total += weight
            message += weight * (2 * float(q[j]) - 1)
        expected[0, 0][i] += 0.7 * message / total if total else 0.0

    assert torch.allclose(crf(unary, image, mask, spacing), expected, atol=1e-5)


def test_edges_hold_smoothing_back_and_noise_goes() -> None:
    image = torch.zeros(1, 1, 8, 8, 4)
    image[:, :, 4:] = 1.0
    unary = torch.where(image > 0, 1.0, -1.0)
    unary[0, 0, 2, 2, 2] = 0.5  # a lone voxel

    q = torch.sigmoid(WindowedCRF(intensity=0.05, strength=2.0)(unary, image, torch.ones_like(image), (1, 1, 1)))

    assert 0 <= float(q.min()) <= float(q.max()) <= 1
    assert float(q[0, 0, 2, 2, 2]) < 0.3
    assert float(q[0, 0, 4:].min()) > 0.6
    assert float(q[0, 0, :4].max()) < 0.4


def test_rows_sum_to_one_inside_and_nothing_crosses_the_mask() -> None:
    unary, image, mask = inputs(5, 5, 5)
    mask[:, :, 3:] = 0
    crf = WindowedCRF(2, 3)
    kernel = crf.kernel(image, mask, (1, 1, 1))
    changed = unary.clone()
    changed[:, :, 3:] += 10

    first, second = (crf(u, image, mask, (1, 1, 1)) for u in (unary, changed))

    assert torch.allclose(kernel.sum(1)[0][:3], torch.ones(3, 5, 5), atol=1e-5)
    assert float(kernel.sum(1)[0][3:].abs().max()) == 0
    assert torch.equal(first[:, :, :3], second[:, :, :3])
    assert torch.equal(second[:, :, 3:], changed[:, :, 3:])


def test_gradcheck_of_map_image_and_weights() -> None:
    unary, image, mask = (t.double() for t in inputs(2, 3, 2))
    crf = WindowedCRF(1, 2, intensity=0.7).double()

    def call(u: torch.Tensor, i: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(crf, {"weights": w, "strength": s}, (u, i, mask, (1.0, 1.0, 1.0)))

    arguments = [t.detach().requires_grad_() for t in (unary, image, crf.weights, crf.strength)]
    assert torch.autograd.gradcheck(call, arguments)


def test_learns_its_strength() -> None:
    crf = WindowedCRF(1, 2, strength=0.5)
    image = torch.zeros(1, 1, 6, 6, 6)
    unary = torch.randn(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
    before = float(F.softplus(crf.strength))
    optimizer = torch.optim.SGD(crf.parameters(), lr=1.0)
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(
            crf(unary, image, torch.ones_like(image), (1, 1, 1)), torch.ones_like(image)
        )
        loss.backward()
        optimizer.step()

    assert float(F.softplus(crf.strength)) > before + 0.1


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="radius 0"):
        WindowedCRF(radius=0)

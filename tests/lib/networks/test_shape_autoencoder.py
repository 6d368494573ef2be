"""Shape prior: shapes, learning, freezing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from medseg.networks.shape_autoencoder import ShapeAutoencoder

CLASSES = {"ankle": 3, "hip": 2}


def discs(count: int, classes: int, size: int = 32) -> torch.Tensor:
    """One-hot maps (count, classes, size, size) of nested discs of several radii."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    radius = ((x - size / 2) ** 2 + (y - size / 2) ** 2).sqrt()
    maps = [(radius < 6 + 2 * i).long() + (radius < 3 + i).long() for i in range(count)]
    return F.one_hot(torch.stack(maps).clamp_max(classes - 1), classes).movedim(-1, 1).float()


@pytest.mark.parametrize(("axes", "grid"), [(2, (32, 48)), (2, (17, 19)), (3, (16, 20, 9))])
def test_reconstruction_has_the_grid_and_the_code_a_sixteenth(axes: int, grid: tuple[int, ...]) -> None:
    prior = ShapeAutoencoder(CLASSES, axes, width=4, code=6)
    prob = torch.rand(2, 3, *grid)

    assert prior(prob, "ankle").shape == (2, 3, *grid)
    assert prior.encode(prob, "ankle").shape == (2, 6, *(-(-n // 16) for n in grid))


def test_it_learns_shapes_and_tells_them_from_others() -> None:
    torch.manual_seed(0)
    prior = ShapeAutoencoder(CLASSES, 2, width=8, code=16)
    truth = discs(4, 3)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    first = None
    for _ in range(60):
        loss = F.cross_entropy(prior(truth, "ankle"), truth.argmax(1))
        first = float(loss) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prior.freeze()

    assert float(loss) < 0.3 * first
    assert float(prior.shape_loss(truth, truth, "ankle")) == pytest.approx(0, abs=1e-8)
    far = prior.shape_loss(truth.roll((9, 5), (2, 3)), truth, "ankle")
    near = prior.shape_loss(truth.roll((1, 0), (2, 3)), truth, "ankle")
    assert float(far) > float(near) > 0


def test_frozen_prior_stays_fixed_while_its_gradient_reaches_the_prediction() -> None:
    prior = ShapeAutoencoder(CLASSES, 2, width=4, code=6)
    prior.freeze()
    prior.train()
    before = {name: value.clone() for name, value in prior.state_dict().items()}
    logits = torch.randn(2, 2, 32, 32, requires_grad=True)

    prior.shape_loss(torch.softmax(logits, 1), discs(2, 2), "hip").backward()

    assert float(logits.grad.abs().sum()) > 0
    assert all(p.grad is None for p in prior.parameters())
    assert all(torch.equal(value, before[name]) for name, value in prior.state_dict().items())

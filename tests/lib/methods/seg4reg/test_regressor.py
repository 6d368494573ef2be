from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.methods.seg4reg.regressor import Regressor, as_picture, rule_candidates
from medseg.metrics.cobb import cobb_angles
from medseg.phantoms.spines import place_vertebrae


@pytest.mark.parametrize("tilts", [True, False])
def test_maps_average_exactly_to_the_head(tilts: bool) -> None:
    torch.manual_seed(0)
    network = Regressor(width=32, tilts=tilts).eval()
    seen: list[torch.Tensor] = []
    network.features.register_forward_hook(lambda *args: seen.append(args[2]))

    found = network(torch.randn(2, 2, 128, 256))

    assert found.maps.shape == (2, 3, 8, 16)
    assert torch.allclose(found.maps.mean(dim=(2, 3)), found.raw, atol=1e-6)
    if not tilts:
        assert torch.allclose(network.head(seen[0].mean(dim=(2, 3))), found.raw, atol=1e-5)


def test_it_starts_near_typical_angles_and_takes_masks() -> None:
    torch.manual_seed(0)
    network = Regressor(width=32).eval()

    found = network(as_picture(torch.zeros(1, 1, 64, 128)))

    assert (found.angles > 0).all()
    assert float((found.angles * 90 - torch.tensor([40.0, 20, 20])).abs().max()) < 40


@pytest.mark.parametrize("seed", range(6))
def test_the_rules_angles_are_among_the_candidates(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tilts = np.cumsum(rng.normal(0, 8, 17)).clip(-55, 55)
    truth = cobb_angles(place_vertebrae(tilts, (400, 1024), rng), 1024)

    found = rule_candidates(torch.tensor(tilts)[None])[0].numpy()

    places = {"c": (0, 1, 2), "s_above_below": (0, 3, 4), "s_above_above": (0, 3, 5)}[truth.branch]
    assert found[list(places)] == pytest.approx(truth.angles, abs=1e-3)


def test_candidates_pass_gradients() -> None:
    tilts = torch.randn(2, 17, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(rule_candidates, (tilts,))

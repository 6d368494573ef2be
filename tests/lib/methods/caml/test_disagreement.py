from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from medseg.methods.caml.disagreement import Disagreement, dilate, disagreement, jensen_shannon


def maps(p: torch.Tensor) -> torch.Tensor:
    return torch.stack([1 - p, p])


def test_divergence_by_hand() -> None:
    certain, other = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    assert jensen_shannon(certain, other).item() == pytest.approx(1.0)
    assert jensen_shannon(certain, certain).item() == 0.0
    half = torch.tensor([[0.5], [0.5]])
    expected = (-(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))) - 0.5
    assert jensen_shannon(certain, half).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7)])
def test_dilation_equals_scipys(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) > 0.97
    expected = binary_dilation(mask.numpy(), np.ones((5,) * len(shape)))
    assert np.array_equal(dilate(mask, 2).numpy(), expected)


def test_empty_foreground_scores_highest() -> None:
    nothing = maps(torch.full((8, 8, 4), 0.1))
    found = disagreement(nothing, nothing)
    assert found.empty
    assert found.value == 1.0
    assert found.why == "the model finds nothing, 1.00"
    organ = torch.full((8, 8, 4), 0.1)
    organ[2:5, 2:5] = 0.9
    assert disagreement(nothing, maps(organ)).why == "the model finds nothing, 1.00"  # V's word counts, whatever A says
    assert not disagreement(maps(organ), nothing).empty


def test_reason_tells_how_much_is_disagreement_and_how_much_entropy() -> None:
    found = Disagreement(divergence=0.02, divergence_95=0.08, entropy=0.3, entropy_95=0.9)
    assert found.why == "uncertain, 0.33 (disagreement 0.05, entropy 0.60)"
    undecided = maps(torch.full((8, 8, 4), 0.501))
    assert disagreement(undecided, undecided).why == "uncertain, 0.50 (disagreement 0.00, entropy 1.00)"


def test_certain_agreement_scores_zero_and_disagreement_more() -> None:
    p = torch.zeros(16, 16, 8)
    p[5:10, 5:10, 2:6] = 1
    shifted = p.roll(2, dims=0)
    assert disagreement(maps(p), maps(p)).value == pytest.approx(0.0, abs=1e-6)
    assert disagreement(maps(p), maps(shifted)).value > 0.3


def test_surroundings_do_not_dilute_the_score() -> None:
    p = torch.zeros(16, 16, 16)
    p[6:10, 6:10, 6:10] = 0.8
    q = p.roll(1, dims=0)
    large_p, large_q = (torch.nn.functional.pad(t, [10] * 6) for t in (p, q))
    assert disagreement(maps(p), maps(q)).value == pytest.approx(disagreement(maps(large_p), maps(large_q)).value)


def test_many_classes_stay_in_range() -> None:
    v, a = (torch.softmax(3 * torch.randn(4, 6, 6, 6), dim=0) for _ in range(2))
    found = disagreement(v, a)
    assert 0 < found.value < 1
    assert all(0 <= x <= 1 for x in (found.divergence, found.divergence_95, found.entropy, found.entropy_95))

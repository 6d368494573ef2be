from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medseg.methods.dram import cost
from medseg.methods.dram.cost import NAIVE, measure, pairwise, pairwise_cost, windowed, windowed_cost


def test_memory_is_linear_in_voxels_and_below_all_pairs() -> None:
    device = torch.device("cpu")

    small, large, pairs = measure(8, windowed, device), measure(16, windowed, device), measure(8, pairwise, device)

    assert 6 < large[1] / small[1] < 10  # eight times the voxels
    assert pairs[1] == pytest.approx(512**2 * 4 / 1e6, rel=0.05)  # one matrix of all pairs, in MB
    assert small[1] < 10 * 26 * 512 * 4 / 1e6 < pairs[1]  # a few values for each of 26 neighbours
    assert min(small[0], large[0], pairs[0]) > 0


def test_both_forms_are_compared_at_the_size_that_both_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure", lambda size, field, device: (size / 10, size))
    context = SimpleNamespace(device="cpu")

    ours, naive = windowed_cost(context), pairwise_cost(context)

    assert ours["mean"] == naive["mean"] == NAIVE / 10
    assert (ours["extra"]["seconds_80"], ours["extra"]["memory_mb_96"]) == (8.0, 96)

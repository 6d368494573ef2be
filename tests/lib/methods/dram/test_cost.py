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
    assert pairs[1] > 2 * small[1] / 2  # 512^2 pairs against 26 x 512
    assert min(small[0], large[0], pairs[0]) > 0


def test_both_forms_are_compared_at_the_size_that_both_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure", lambda size, field, device: (size / 10, size))
    context = SimpleNamespace(device="cpu")

    ours, naive = windowed_cost(context), pairwise_cost(context)

    assert ours["mean"] == naive["mean"] == NAIVE / 10
    assert (ours["extra"]["seconds_80"], ours["extra"]["memory_mb_96"]) == (8.0, 96)

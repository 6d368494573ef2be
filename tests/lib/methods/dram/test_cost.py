from __future__ import annotations

import torch

from medseg.methods.dram.cost import measure, pairwise, windowed


def test_memory_is_linear_in_voxels_and_below_all_pairs() -> None:
    device = torch.device("cpu")

    small, large, pairs = measure(8, windowed, device), measure(16, windowed, device), measure(8, pairwise, device)

    assert 6 < large[1] / small[1] < 10  # eight times the voxels
    assert pairs[1] > 2 * small[1] / 2  # 512^2 pairs against 26 x 512
    assert min(small[0], large[0], pairs[0]) > 0

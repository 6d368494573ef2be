from __future__ import annotations

import torch

from medseg.methods.dram.turns import Turn


def test_every_turn_moves_voxels_and_comes_back() -> None:
    volume = torch.arange(2 * 3 * 3 * 5.0).view(1, 2, 3, 3, 5)
    seen, moved = set(), []
    for seed in range(200):
        torch.manual_seed(seed)
        turn = Turn.draw()
        seen.add(turn)
        turned = turn.apply(volume)
        assert torch.equal(turn.undo(turned), volume)
        moved.append(turned)
        assert not torch.equal(turned, volume)
    assert len(seen) == 15
    assert len({tuple(turned.flatten().tolist()) for turned in moved}) == 15
    assert {turn.quarters for turn in seen} == {0, 1, 2, 3}

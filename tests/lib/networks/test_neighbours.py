from __future__ import annotations

import torch

from medseg.networks.neighbours import gather, near_offsets, window_offsets


def test_numbers_of_neighbours() -> None:
    assert len(window_offsets(1)) == 26
    assert len(window_offsets(2)) == 124
    assert len(near_offsets()) == 18
    assert len(near_offsets(2)) == 8


def test_gather_takes_the_neighbour_and_zero_beyond_the_border() -> None:
    values = torch.arange(1.0, 10.0).view(1, 1, 3, 3)

    found = gather(values, [(0, 1), (-1, 0)])

    assert found.shape == (1, 2, 3, 3)
    assert found[0, 0].tolist() == [[2, 3, 0], [5, 6, 0], [8, 9, 0]]
    assert found[0, 1].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]

"""First convolutions for grey and for colour."""

from __future__ import annotations

import torch

from medseg.networks.stem import fit_channels


def test_colour_is_summed_for_grey_and_grey_is_shared_among_colours() -> None:
    colour, grey = torch.rand(4, 3, 5, 5), torch.rand(4, 1, 5, 5)

    summed, shared = fit_channels(colour, grey), fit_channels(grey, colour)

    assert summed is not None
    assert shared is not None
    torch.testing.assert_close(summed[:, 0], colour.sum(dim=1))
    torch.testing.assert_close(shared.sum(dim=1, keepdim=True), grey)
    assert fit_channels(colour, torch.rand(4, 2, 5, 5)) is None
    assert fit_channels(torch.rand(4), torch.rand(1)) is None

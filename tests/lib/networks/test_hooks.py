from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNet
from torch import nn

from medseg.networks.hooks import HookedBranch, insert_after
from medseg.networks.vnet import VNet


class Double(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_inserted_block_acts_on_skip_and_deeper_path() -> None:
    network = VNet(1, 2, width=4).eval()
    image = torch.randn(1, 1, 32, 32, 16)
    before = network.encoder(image)
    insert_after(network, "encoder.levels.3", Double())
    after = network.encoder(image)
    assert torch.equal(after[3], 2 * before[3])
    assert torch.equal(after[2], before[2])
    assert not torch.equal(after[4], before[4])


def test_unknown_place_is_named() -> None:
    with pytest.raises(ValueError, match=r"VNet has no sub-module 'encoder.deep'"):
        insert_after(VNet(1, 2, width=4), "encoder.deep", Double())


def test_any_network_becomes_a_branch() -> None:
    unet = UNet(2, 1, 3, channels=(8, 16), strides=(2,))
    branch = HookedBranch(unet, head="model.2")
    image = torch.randn(2, 1, 16, 16)
    logits, embedding = branch.eval().with_embedding(image)
    assert torch.equal(logits, branch(image))
    assert embedding.shape == (2, 24, 16, 16)
    assert not unet.get_submodule("model.2")._forward_pre_hooks

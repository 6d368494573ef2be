from __future__ import annotations

import pytest
import torch

from medseg.networks.rescale import lengths_before_norms, restore_lengths
from medseg.networks.vnet import VNet


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_lengths_come_back_and_outputs_stay(norm: str) -> None:
    torch.manual_seed(0)
    network = VNet(1, 2, spatial_dims=2, width=4, norm=norm)
    lengths = lengths_before_norms(network)
    network.train()(torch.randn(2, 1, 32, 32))  # running statistics, where there are some
    network.eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("0.weight", "0.bias")):
            parameter.data.mul_(3.0)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.mul_(9.0 if name.endswith("var") else 3.0)
    image = torch.randn(2, 1, 32, 32)
    before = network(image)

    restore_lengths(network, lengths)

    assert len(lengths) == 29  # 12 convolutions of the encoder and 9 of the decoder, 4 halvings, 4 doublings
    assert lengths_before_norms(network) == pytest.approx(lengths)
    assert torch.allclose(network(image), before, atol=1e-2)  # the norm's epsilon does not scale

from __future__ import annotations

import pytest
import torch

from medseg.methods import method_class
from medseg.networks.rescale import lengths_before_norms, restore_lengths
from medseg.networks.vnet import VNet


@pytest.mark.parametrize(("name", "axes", "pairs"), [("dram", 3, 14), ("seg4reg", 2, 18), ("multidomain", 3, 18)])
def test_convolutions_before_norms_are_found_in_every_trunk(name: str, axes: int, pairs: int) -> None:
    trunk = method_class(name).trunk(1, axes, 4, "batch")
    image = torch.randn(1, 2 if name == "seg4reg" else 1, *(32,) * axes)
    lengths = lengths_before_norms(trunk, lambda: trunk.maps(image))
    before = trunk.eval().maps(image)
    for key, parameter in trunk.named_parameters():
        if key.rpartition(".")[0] in lengths:
            parameter.data.mul_(2.0)
    for key, buffer in trunk.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.mul_(4.0 if key.endswith("var") else 2.0)

    restore_lengths(trunk, lengths, lambda: trunk.maps(image))

    assert len(lengths) == pairs
    assert lengths_before_norms(trunk, lambda: trunk.maps(image)) == pytest.approx(lengths)
    assert all(torch.allclose(a, b, atol=1e-2) for a, b in zip(trunk.maps(image), before, strict=True))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_lengths_come_back_and_outputs_stay(norm: str) -> None:
    torch.manual_seed(0)
    network = VNet(1, 2, spatial_dims=2, width=4, norm=norm)
    lengths = lengths_before_norms(network, lambda: network(torch.randn(1, 1, 32, 32)))
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

    restore_lengths(network, lengths, lambda: network(image))

    assert len(lengths) == 29  # 12 convolutions of the encoder and 9 of the decoder, 4 halvings, 4 doublings
    assert lengths_before_norms(network, lambda: network(torch.randn(1, 1, 32, 32))) == pytest.approx(lengths)
    difference = (network(image) - before).norm() / before.norm()
    assert difference < 0.01  # the norm's epsilon does not scale

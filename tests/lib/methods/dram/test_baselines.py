from __future__ import annotations

import pytest
import torch

from medseg.methods.dram.baselines import activation_map, gradient_map, normalised_by_region, pooled_extents
from medseg.methods.dram.network import CAM_LEVEL, DRAMNet


@pytest.fixture
def network() -> DRAMNet:
    torch.manual_seed(0)
    return DRAMNet(4, "cam", None, None, final=False, candidates=0).eval()


def maps_of(values: torch.Tensor, channels: int) -> list[torch.Tensor]:
    """Features that are `values` in the first channel of the regressor's level and 0 elsewhere."""
    feature = torch.zeros(1, channels, *values.shape)
    feature[0, 0] = values
    return [torch.empty(0)] * CAM_LEVEL + [feature]


def weigh(network: DRAMNet, weight: float, bias: float) -> int:
    assert network.classifier is not None
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.weight[0, 0] = weight
        network.classifier.bias.fill_(bias)
    return network.classifier.in_features


def test_regressor_over_region_means_by_hand(network: DRAMNet) -> None:
    channels = weigh(network, 2.0, -1.0)
    values = torch.zeros(4, 4, 4)
    values[:2] = 1.5
    regions = torch.zeros(1, 1, 16, 16, 8, dtype=torch.uint8)
    regions[:, :, :8] = 1  # covers the voxels of 1.5
    regions[:, :, 8:, :8] = 2

    shares = pooled_extents(network, maps_of(values, channels), regions)

    assert float(shares.detach()[0, 1]) == pytest.approx(float(torch.sigmoid(torch.tensor(2 * 1.5 - 1))))
    assert float(shares.detach()[0, 2]) == pytest.approx(float(torch.sigmoid(torch.tensor(-1.0))))
    assert float(shares.detach()[0, 3:].abs().sum()) == 0


def test_the_activation_map_is_high_where_the_feature_speaks_for_disease(network: DRAMNet) -> None:
    """Not inverted, and not shifted by the bias."""
    channels = weigh(network, 3.0, -50.0)
    values = torch.zeros(4, 4, 4)
    values[0, 0, 0], values[3, 3, 3] = 2.0, -2.0

    activation = activation_map(network, maps_of(values, channels), (16, 16, 8))[0, 0]

    assert activation.shape == (16, 16, 8)
    assert float(activation[0, 0, 0]) == pytest.approx(6.0, rel=0.01)
    assert float(activation[15, 15, 7]) == 0
    assert float(activation.max()) == float(activation[0, 0, 0])


def test_the_gradient_map_is_that_of_finite_differences(network: DRAMNet) -> None:
    """Channel weights of one region, against the change of its logit when a channel rises everywhere."""
    torch.manual_seed(1)
    image = torch.rand(1, 1, 16, 16, 8)
    regions = torch.ones(1, 1, 16, 16, 8, dtype=torch.uint8)
    with torch.no_grad():
        maps = network.backbone.encode(image)
        feature = maps[CAM_LEVEL - 1].double()
        network.double()

        def logit(change: torch.Tensor) -> torch.Tensor:
            deeper = network.backbone.down[CAM_LEVEL](feature + change)
            mean = deeper.mean(dim=(2, 3, 4))
            assert network.classifier is not None
            return network.classifier(mean)[0, 0]

        weight = torch.zeros(feature.shape[1], dtype=torch.float64)
        for channel in range(feature.shape[1]):
            step = torch.zeros_like(feature)
            step[:, channel] = 1e-5
            weight[channel] = (logit(step) - logit(-step)) / 2e-5 / feature[0, 0].numel()
        expected = torch.relu((weight.view(1, -1, 1, 1, 1) * feature).sum(1, keepdim=True)).float()
    network.float()

    found = gradient_map(network, image, regions)

    enlarged = torch.nn.functional.interpolate(expected, (16, 16, 8), mode="trilinear", align_corners=False)
    assert float(enlarged.max()) > 0
    assert torch.allclose(found, enlarged, atol=1e-3 * float(enlarged.max()))


def test_normalised_by_region_by_hand() -> None:
    activation = torch.tensor([1.0, 4.0, 2.0, 10.0, 0.0, 7.0])
    regions = torch.tensor([1, 1, 2, 2, 3, 0])

    assert normalised_by_region(activation, regions).tolist() == pytest.approx([0.25, 1.0, 0.2, 1.0, 0.0, 0.0])

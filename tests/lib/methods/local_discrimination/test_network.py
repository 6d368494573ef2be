from __future__ import annotations

import pytest
import torch

from medseg.methods.local_discrimination.network import EmbeddingNet, read_at


def build(axes: int = 2, channels: int = 1) -> EmbeddingNet:
    torch.manual_seed(0)
    return EmbeddingNet(channels, 2, axes, 4, "instance", 8, 5).eval()


@pytest.mark.parametrize("grid", [(33, 48), (32, 32), (17, 24, 16)])
def test_vectors_have_length_one_and_regions_sum_to_one(grid: tuple[int, ...]) -> None:
    net = build(len(grid))
    maps = net.maps(torch.randn(2, 1, *grid))

    vectors, regions = net.dense(maps)

    assert vectors.shape == (2, 8, *grid)
    assert regions.shape == (2, 5, *grid)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2, *grid), atol=1e-5)
    assert torch.allclose(regions.sum(dim=1), torch.ones(2, *grid), atol=1e-5)
    assert net(torch.randn(2, 1, *grid)).shape == (2, 2, *grid)


def test_vectors_at_points_are_those_of_the_dense_map() -> None:
    net = build()
    maps = net.maps(torch.randn(1, 1, 64, 48))
    points = torch.tensor([[[20.0, 11.0], [31.0, 40.0], [8.0, 8.0]]])

    dense = net.dense(maps)[0][0]
    found = net.vectors_at(maps, points)[0]

    expected = torch.stack([dense[:, int(x), int(y)] for x, y in points[0]])
    assert torch.allclose(found, expected, atol=1e-4)


def test_coarser_level_has_a_coarser_grid() -> None:
    net = build()

    vectors, _ = net.dense(net.maps(torch.randn(1, 1, 36, 50)), level=1)

    assert vectors.shape == (1, 8, 18, 25)


def test_reading_a_coarse_map_uses_the_middles_of_its_voxels() -> None:
    coarse = torch.arange(8.0).reshape(1, 1, 8, 1).expand(1, 1, 8, 8) * 2 + 0.5  # value: fine coordinate of its middle

    found = read_at(coarse, torch.tensor([[[6.0, 3.0], [9.5, 3.0]]]), stride=2)

    assert found[0, :, 0].tolist() == pytest.approx([6.0, 9.5], abs=1e-4)


def test_trunk_is_as_large_as_stated() -> None:
    trunk = sum(p.numel() for p in EmbeddingNet(1, 2, 2, 8, "instance", 16, 16).trunk.parameters())

    assert trunk == 819_970

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from medseg.errors import MedsegError
from medseg.methods import method_class
from medseg.methods.local_discrimination.network import EmbeddingNet, read_at


def build(axes: int = 2, channels: int = 1) -> EmbeddingNet:
    torch.manual_seed(0)
    trunk = method_class("caml").trunk(channels, axes, 4, "instance")
    return EmbeddingNet(trunk, 8, 5).eval()


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
    trunk = method_class("caml").trunk(1, 2, 8, "instance")

    assert sum(p.numel() for p in trunk.parameters()) == 819_970


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("caml", (33, 48)),
        ("caml", (33, 24, 17)),
        ("dram", (33, 24, 17)),
        ("seg4reg", (70, 96)),
        ("multidomain", (33, 48)),
        ("multidomain", (33, 24, 5)),
    ],
)
def test_every_trunk_tells_widths_and_strides_of_its_maps(name: str, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    kind, image = method_class(name), MetaTensor(torch.randn(1, *grid), affine=torch.eye(len(grid) + 1))
    net = EmbeddingNet(kind.trunk(1, len(grid), 4, "instance"), 8, 5).eval()

    shown = torch.stack([kind.trunk_image(image).as_tensor()] * 2)
    maps = net.maps(shown)
    vectors, regions = net.dense(maps, 1)

    expected = [
        (2, width, *(-(-n // s) for n, s in zip(grid, stride, strict=True)))
        for width, stride in zip(net.trunk.widths, net.trunk.strides, strict=True)
    ]
    assert [tuple(level.shape) for level in maps] == expected
    assert vectors.shape == (2, 8, *expected[1][2:])
    assert torch.allclose(regions.sum(dim=1), torch.ones(2, *expected[1][2:]), atol=1e-5)
    assert net.vectors_at(maps, torch.rand(2, 6, len(grid)) * 16).shape == (2, 6, 8)
    fine, cells = net.on_grid(shown), net.dense(maps)
    assert fine[0].shape == (2, 8, *grid)
    assert fine[1].shape == (2, 5, *grid)
    place = tuple(n - 2 for n in grid)  # the last but one: rounding would move it
    cell = tuple(p // s for p, s in zip(place, net.trunk.strides[0], strict=True))
    for whole, coarse in zip(fine, cells, strict=True):
        assert torch.equal(whole[(slice(None), slice(None), *place)], coarse[(slice(None), slice(None), *cell)])


def test_a_slicewise_trunk_sees_one_slice_at_a_time() -> None:
    torch.manual_seed(0)
    trunk = method_class("multidomain").trunk(1, 3, 4, "batch").eval()
    image = torch.randn(1, 1, 32, 32, 3)
    changed = image.clone()
    changed[..., 1] += torch.randn(32, 32)

    before, after = trunk.maps(image)[0], trunk.maps(changed)[0]

    assert torch.equal(before[..., 0], after[..., 0])
    assert torch.equal(before[..., 2], after[..., 2])
    assert not torch.allclose(before[..., 1], after[..., 1])


@pytest.mark.parametrize(
    ("name", "channels", "axes", "message"),
    [
        ("supervised", 1, 2, "no network of its own to pretrain; trunk = caml is a V-Net"),
        ("dram", 1, 2, "trunk = dram is for grey volumes, got 2D images with 1 channels"),
        ("seg4reg", 1, 3, "trunk = seg4reg is for radiographs, got 3D images"),
    ],
)
def test_a_trunk_for_other_images_is_refused(name: str, channels: int, axes: int, message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        method_class(name).trunk(channels, axes, 4, "batch")

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation

from medseg.transforms.grid import resize, same_grid, size_at, spacing_of, to_canonical, to_grid

SHAPE = (44, 40, 28)
SPACING = (1.5, 1.2, 2.5)
AXES = {
    "straight": np.eye(3),
    "flipped": np.diag([-1.0, 1.0, -1.0]),
    "permuted": np.array([[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]),
    "oblique": Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix() @ np.diag([1.0, -1.0, 1.0]),
}


def affine_of(axes: str, spacing: tuple[float, ...] = SPACING) -> torch.Tensor:
    affine = np.eye(4)
    affine[:3, :3] = AXES[axes] @ np.diag(spacing)
    affine[:3, 3] = (-30.0, 12.0, 55.5)
    return torch.from_numpy(affine)


def blob(shape: tuple[int, ...] = SHAPE, value: float = 1.0) -> torch.Tensor:
    """An ellipsoid off the centre, with a bump on one side so that a wrong flip shows."""
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    found = sum(((a - 0.15) / 0.6) ** 2 for a in axes) < 1
    found |= sum(((a - c) / 0.3) ** 2 for a, c in zip(axes, (-0.5, 0.4, 0.3), strict=False)) < 1
    return (found[None] * value).float()


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a > 0.5, b > 0.5
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize("axes", AXES)
def test_spacing_is_the_length_of_the_columns(axes: str) -> None:
    assert spacing_of(MetaTensor(blob(), affine=affine_of(axes))) == pytest.approx(SPACING)


@pytest.mark.parametrize("axes", AXES)
def test_canonical_volume_is_ras_and_keeps_every_voxel_at_its_place(axes: str) -> None:
    image = MetaTensor(torch.rand(1, *SHAPE), affine=affine_of(axes))

    canonical = to_canonical(image)

    matrix = canonical.affine[:3, :3].numpy()
    assert np.argmax(np.abs(matrix), axis=0).tolist() == [0, 1, 2]
    assert (np.diag(matrix) > 0).all()
    at = np.unravel_index(int(image.argmax()), SHAPE)
    there = np.unravel_index(int(canonical.argmax()), canonical.shape[1:])
    np.testing.assert_allclose(image.affine.numpy() @ [*at, 1], canonical.affine.numpy() @ [*there, 1], atol=1e-6)


def test_picture_is_not_turned() -> None:
    image = MetaTensor(torch.rand(1, 5, 4), affine=torch.diag(torch.tensor([-1.0, 2.0, 1.0])))

    assert torch.equal(to_canonical(image).as_tensor(), image.as_tensor())


def test_resize_to_the_same_size_is_the_identity() -> None:
    image = MetaTensor(torch.rand(2, *SHAPE), affine=affine_of("oblique"))

    assert resize(image, SHAPE) is image


def test_resize_keeps_the_field_of_view() -> None:
    image = MetaTensor(blob(), affine=affine_of("oblique"))

    half = resize(image, (22, 20, 14))

    assert spacing_of(half) == pytest.approx([2 * s for s in SPACING])
    corner, first = image.affine @ corner_of((-0.5,) * 3), half.affine @ corner_of((-0.5,) * 3)
    np.testing.assert_allclose(corner, first, atol=1e-9)
    last = [n - 0.5 for n in SHAPE], [n - 0.5 for n in (22, 20, 14)]
    np.testing.assert_allclose(image.affine @ corner_of(last[0]), half.affine @ corner_of(last[1]), atol=1e-9)


def corner_of(index: tuple[float, ...] | list[float]) -> torch.Tensor:
    return torch.tensor([*index, 1.0], dtype=torch.float64)


def test_half_scale_is_the_mean_of_eight_voxels() -> None:
    image = MetaTensor(torch.rand(1, 4, 6, 2), affine=torch.eye(4))

    half = resize(image, (2, 3, 1))

    torch.testing.assert_close(half.as_tensor()[0, 0, 0, 0], image.as_tensor()[0, :2, :2, :2].mean())


def test_quarter_scale_is_the_mean_of_all_voxels_and_half_scale_stays_linear() -> None:
    image = MetaTensor(torch.rand(1, 8, 9, 4), affine=torch.eye(4))

    quarter = resize(image, (2, 4, 1)).as_tensor()  # 9 to 4 rounds a half

    middle = torch.nn.functional.interpolate(image.as_tensor()[None], size=(8, 4, 4), mode="trilinear")[0]
    torch.testing.assert_close(quarter[0, 1, 2, 0], middle[0, 4:, 2].mean())
    half = torch.nn.functional.interpolate(image.as_tensor()[None], size=(4, 4, 2), mode="trilinear")[0]
    assert torch.equal(resize(image, (4, 4, 2)).as_tensor(), half)


def test_thin_stripes_keep_their_mean_at_any_scale() -> None:
    """Every fourth plane is bright: without smoothing, a quarter of the planes would hold all light or none."""
    stripes = torch.zeros(1, 64, 8, 8)
    stripes[:, ::4] = 1.0

    for size in (8, 16, 21):
        small = resize(MetaTensor(stripes, affine=torch.eye(4)), (size, 8, 8)).as_tensor()
        assert float(small.min()) > 0.1
        assert float(small.mean()) == pytest.approx(0.25, abs=0.03)


def test_labels_are_resized_to_labels_and_the_largest_share_wins() -> None:
    mask = torch.tensor([[[0, 3, 3, 3], [0, 0, 3, 3], [7, 7, 0, 0], [7, 7, 0, 7]]], dtype=torch.int16)

    small = resize(MetaTensor(mask, affine=torch.eye(3)), (2, 2), mode="label")

    assert small.dtype == torch.int16
    assert small[0].tolist() == [[0, 3], [7, 0]]


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("size", [(22, 20, 14), (31, 34, 19)])
def test_mask_comes_back_from_the_networks_grid(axes: str, size: tuple[int, ...]) -> None:
    image = MetaTensor(blob(), affine=affine_of(axes))
    canonical = to_canonical(image)
    work = resize(canonical, size)

    back = to_grid(work, image)

    assert same_grid(back, image)
    assert dice(back.as_tensor(), image.as_tensor()) > 0.95


@pytest.mark.parametrize("axes", AXES)
def test_canonical_volume_comes_back_exactly(axes: str) -> None:
    image = MetaTensor(torch.rand(2, *SHAPE), affine=affine_of(axes))

    back = to_grid(to_canonical(image), image)

    torch.testing.assert_close(back.as_tensor(), image.as_tensor(), atol=1e-4, rtol=0)


def test_linear_image_is_right_between_oblique_grids() -> None:
    """A function that is linear in mm is resampled without error inside the common field of view."""
    source = MetaTensor(torch.zeros(1, *SHAPE), affine=affine_of("oblique"))
    target = MetaTensor(torch.zeros(1, 8, 8, 6), affine=affine_of("straight", (1.0, 1.0, 1.0)))
    target.affine[:3, 3] = (source.affine @ corner_of((18.0, 20.0, 12.0)))[:3]
    source_values, wanted = (ramp(t) for t in (source, target))

    got = to_grid(MetaTensor(source_values, affine=source.affine), target)

    torch.testing.assert_close(got.as_tensor(), wanted, atol=2e-3, rtol=0)


def ramp(like: MetaTensor) -> torch.Tensor:
    index = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in like.shape[1:]))
    places = index @ like.affine[:3, :3].T + like.affine[:3, 3]
    return (places @ torch.tensor([0.3, -0.5, 0.2], dtype=torch.float64)).reshape(1, *like.shape[1:]).float()


def test_nearest_keeps_labels_and_is_zero_outside() -> None:
    mask = MetaTensor(torch.full((1, 4, 4, 4), 5, dtype=torch.int16), affine=torch.eye(4))
    like = MetaTensor(torch.zeros(1, 8, 4, 4), affine=torch.eye(4))

    got = to_grid(mask, like, mode="nearest")

    assert got.dtype == torch.int16
    assert got[0, :, 0, 0].tolist() == [5, 5, 5, 5, 0, 0, 0, 0]


def test_pictures_come_back_from_half_scale() -> None:
    image = MetaTensor(blob((40, 30)), affine=torch.diag(torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)))

    back = to_grid(resize(image, (20, 15)), image)

    assert same_grid(back, image)
    assert dice(back.as_tensor(), image.as_tensor()) > 0.97


def test_size_at_covers_the_field_of_view_with_at_least_one_voxel() -> None:
    image = MetaTensor(blob(), affine=affine_of("flipped"))

    assert size_at(image, (3.0, 1.2, 100.0)) == (22, 40, 1)


def test_same_grid_looks_at_the_far_corner() -> None:
    image = MetaTensor(torch.zeros(1, 200, 200, 20), affine=affine_of("straight"))
    turned = image.affine.clone()
    turned[:3, :3] = torch.from_numpy(Rotation.from_rotvec([0, 0, 0.002]).as_matrix()) @ turned[:3, :3]
    moved = image.affine.clone()
    moved[0, 3] += 0.01

    assert same_grid(image, MetaTensor(torch.zeros(4, 200, 200, 20), affine=moved))
    assert not same_grid(image, MetaTensor(torch.zeros(1, 200, 200, 20), affine=turned))
    assert not same_grid(image, MetaTensor(torch.zeros(1, 200, 200, 21), affine=image.affine))
    assert not same_grid(image, MetaTensor(torch.zeros(1, 200, 200), affine=torch.eye(3)))

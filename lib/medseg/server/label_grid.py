"""Bringing a label map onto the grid of its image, or refusing it."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

from medseg.errors import UnusableInputError
from medseg.transforms.grid import same_grid, spacing_of, to_grid

SAME_WITHIN = 0.02  # ours: voxels; rounding in NRRD and NIfTI headers stays far below
OUTSIDE_REMARK = 0.001  # ours: a smaller share cut off at the border is not worth a sentence


def place_on_grid(mask: MetaTensor, image: MetaTensor, name: str) -> tuple[MetaTensor, tuple[str, ...]]:
    """A label map on its image's grid, with exactly the image's affine.

    Args:
        mask: (1, *grid) whole numbers.
        image: (C, *grid'), of which only the grid is used.
        name: the label's file name, for messages.

    Returns:
        (1, *grid') and remarks.

    Raises:
        UnusableInputError: 2D against 3D, other pixel numbers in 2D, or no marked voxel lies inside the image.
    """
    mask = _same_rank(mask, image, name)
    shape, wanted = tuple(mask.shape[1:]), tuple(image.shape[1:])
    if image.ndim == 3 or mask.affine.shape[-1] == 3:  # pictures have no place in space: pixels must agree
        if shape != wanted:
            raise UnusableInputError(
                f"label {name} has {_by(shape)} pixels and its image {_by(wanted)}; save it on the image's own grid"
            )
        return MetaTensor(mask.as_tensor(), affine=image.affine), ()
    if same_grid(image, mask):
        return MetaTensor(mask.as_tensor(), affine=image.affine), ()
    step = torch.linalg.solve(image.affine.double(), mask.affine.double())  # label index -> image index
    remarks = _outside(mask.as_tensor(), step, wanted, name)
    placed = to_grid(mask, image, "nearest")
    if not _keeps_voxels(step, shape, wanted):
        remarks = (
            f"the label had another grid ({_by(shape)} voxels of {_mm(mask)}) and was resampled to the image's "
            f"({_by(wanted)} of {_mm(image)})",
            *remarks,
        )
    return MetaTensor(placed.as_tensor(), affine=image.affine), remarks


def _same_rank(mask: MetaTensor, image: MetaTensor, name: str) -> MetaTensor:
    """The mask with as many axes as the image; a single slice counts as 2D and the other way round."""
    if mask.ndim == image.ndim:
        return mask
    if mask.ndim == 4 and mask.shape[-1] == 1:
        return MetaTensor(mask.as_tensor()[..., 0], affine=torch.eye(3))
    if image.ndim == 4 and image.shape[-1] == 1 and mask.ndim == 3:
        return MetaTensor(mask.as_tensor()[..., None], affine=torch.eye(3))
    raise UnusableInputError(
        f"label {name} is {mask.ndim - 1}D ({_by(tuple(mask.shape[1:]))}) but its image is {image.ndim - 1}D "
        f"({_by(tuple(image.shape[1:]))}); save a label of this image"
    )


def _keeps_voxels(step: torch.Tensor, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether the grids hold the same voxels in another order of axes or directions."""
    whole = step.round()
    order = whole[:3, :3].abs()
    permutes = bool((order.sum(0) == 1).all() and (order.sum(1) == 1).all())
    same_size = tuple(int(n) for n in order @ torch.tensor(shape).double()) == wanted
    return permutes and same_size and float((step - whole).abs().max()) * max(shape) < SAME_WITHIN


def _outside(mask: torch.Tensor, step: torch.Tensor, wanted: tuple[int, ...], name: str) -> tuple[str, ...]:
    """A remark on marked voxels that lie outside the image.

    Raises:
        UnusableInputError: all of them do.
    """
    marked = mask[0].nonzero().double()
    if len(marked) == 0:
        return ()
    index = marked @ step[:3, :3].T + step[:3, 3]
    limit = torch.tensor(wanted).double()
    share = float(((index < -0.5) | (index > limit - 0.5)).any(dim=1).double().mean())
    if share == 1:
        raise UnusableInputError(f"label {name} lies wholly outside its image; it seems to belong to another one")
    return (f"{share:.1%} of the label lies outside the image and was cut off",) if share > OUTSIDE_REMARK else ()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _mm(image: MetaTensor) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing_of(image)) + " mm"

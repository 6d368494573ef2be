"""A case's mask in the numbers of a run: read, renumbered by label name, on the image's grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.transforms.grid import same_grid, to_grid
from medseg.transforms.io import read_mask

logger = logging.getLogger(__name__)


def read_label(case: Case, image: MetaTensor, labels: Mapping[str, int], strict: bool = True) -> MetaTensor:
    """Read a case's mask.

    Args:
        case: with a mask.
        image: the case's image.
        labels: label name -> number of the run.
        strict: refuse values that are no label of the run; else they count as background.

    Returns:
        (1, *grid) int16 on the image's grid, 0 background, then numbers of `labels`.

    Raises:
        UnusableInputError: the mask's axes are not the image's, it holds a value that is no label, or all that it marks
            lies outside the image.
    """
    assert case.label is not None
    mask = read_mask(case.label)
    if mask.ndim != image.ndim:
        raise UnusableInputError(f"mask of {case.id} has {mask.ndim - 1} axes, its image {image.ndim - 1}")
    mask = renumber(mask, case, labels, strict)
    if same_grid(mask, image):
        return mask
    placed = to_grid(mask, image, mode="nearest")
    if bool((mask > 0).any()) and not bool((placed > 0).any()):
        raise UnusableInputError(
            f"mask of {case.id} marks nothing inside its image; its affine seems to be another image's or lost"
        )
    return placed


def renumber(mask: MetaTensor, case: Case, labels: Mapping[str, int], strict: bool = True) -> MetaTensor:
    """A mask in its file's values as a mask in the run's numbers; arguments and errors as of `read_label`."""
    values = [int(value) for value in torch.unique(mask.as_tensor()) if value > 0]
    numbers = value_numbers(case, labels, values)
    if numbers is None:
        if strict and values and values[-1] > len(labels):
            raise UnusableInputError(
                f"mask of {case.id} holds label {values[-1]}, but the labels are {dict(labels)}; remap the mask"
            )
        return mask
    if strict and (unknown := [value for value in values if value not in numbers]):
        name = f" ({case.names[unknown[0]]})" if case.names and unknown[0] in case.names else ""
        raise UnusableInputError(
            f"mask of {case.id} holds value {unknown[0]}{name}, but the labels of its data set are "
            f"{', '.join(dict.fromkeys((case.names or {}).values()))}; name it in labels.json or remap the mask"
        )
    table = torch.zeros(max([0, *values]) + 1, dtype=torch.int16)
    for value in values:
        table[value] = numbers.get(value, 0)
    return MetaTensor(table[mask.as_tensor().long()], affine=mask.affine)


def value_numbers(case: Case, labels: Mapping[str, int], values: list[int]) -> dict[int, int] | None:
    """Value in the case's mask -> number of the run; None: the values are the numbers.

    The case's own names count, else `<data set>_<value>`, as a union of data sets without names calls its labels. Where
    the run knows none of the names, as a model that was made without any, the values are taken for its numbers.
    """
    names = case.names or {value: f"{case.dataset}_{value}" for value in values}
    numbers = {value: labels[name] for value, name in names.items() if name in labels}
    if not numbers and case.names and any(value in case.names for value in values):
        logger.warning(
            "%s: the model knows none of %s; values count as its numbers", case.id, ", ".join(case.names.values())
        )
    return numbers or None

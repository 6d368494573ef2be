"""Whether stated extents speak of regions that an image's region mask has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import MedsegError, UnusableInputError
from medseg.transforms.io import read_mask
from medseg.transforms.regions import SCHEMES, by_region, possible_names

TAG = "regions"


def region_ids(datastore: Any, image_id: str) -> list[int]:
    """Ids in the image's region mask; empty where there is none, or none that can be read."""
    label = datastore.get_label_by_image_id(image_id, TAG)
    uri = datastore.get_label_uri(label, TAG) if label else ""
    if not uri:
        return []
    try:
        return [int(i) for i in np.unique(read_mask(Path(uri)).numpy()) if i > 0]
    except MedsegError:
        return []  # who uses the mask is told


def check_weak_regions(datastore: Any, image_id: str, weak: Mapping[str, Any]) -> None:
    """Refuse weak labels of an image that speak of regions its region mask, where there is one, does not have.

    Raises:
        UnusableInputError: names the image, the region and those that are there.
    """
    stated = [weak.get(key) or {} for key in ("extent", "scores")]
    if any(stated):
        ids = region_ids(datastore, image_id)
        for values in stated:
            check_regions(values, ids, f"image {image_id}")


def check_regions(values: Mapping[str, Any], ids: Sequence[int], where: str) -> None:
    """Refuse a number or name that no region of the mask has, and two values for one region.

    Which scheme names the regions is the method's setting: any that fits the mask will do.

    Args:
        values: extents or scores by region.
        ids: those in the mask; empty: none is known, and only names that no scheme has are refused.
        where: named in the error.

    Raises:
        UnusableInputError: tells the regions of the scheme that fits most of the values.
    """
    if not ids:
        _check_spelling(values, where)
    errors = []
    for names in possible_names(ids) if ids else []:
        try:
            by_region(values, names, where)
            return
        except UnusableInputError as error:
            errors.append((sum(not _fits(key, names) for key in values), not any(names.values()), error))
    if errors:
        raise min(errors, key=lambda found: found[:2])[2]


def _check_spelling(values: Mapping[str, Any], where: str) -> None:
    known = list(dict.fromkeys(name for scheme in SCHEMES.values() for name in scheme))
    for name in values:
        if not name.strip().isdecimal() and not _fits(name, dict(enumerate(known))):
            raise UnusableInputError(
                f"{where}: no region is called {name!r}; give a number or one of {', '.join(known)}"
            )


def _fits(key: str, names: Mapping[int, str]) -> bool:
    try:
        return bool(by_region({key: 0}, names, ""))
    except UnusableInputError:
        return False

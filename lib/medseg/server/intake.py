"""What clients send with images and labels: checked, and brought into the form that is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medseg.errors import UnusableInputError
from medseg.server.ids import MASK_SUFFIXES, check_label_suffix
from medseg.server.journal import plain
from medseg.server.label_contract import check_label, label_suffix_for
from medseg.server.label_names import LabelNames
from medseg.transforms.io import write_volume
from medseg.weak import parse_weak

FINAL, ORIGINAL, REGIONS = "final", "original", "regions"
USUAL_FROM = 3  # ours: from so many finished labels on, a name that nearly all have is called usual
USUAL_SHARE = 0.8  # ours


def holds_mask(tag: str, file: Path) -> bool:
    """Whether the label contract applies. A prediction may be JSON (points, boxes); a finished label may not."""
    if tag == ORIGINAL:
        return not file.name.lower().endswith(".json")
    return tag in (FINAL, REGIONS) or tag.startswith(f"{FINAL}_")


def conform(
    file: Path,
    image: Path,
    image_id: str,
    tag: str,
    info: Mapping[str, Any],
    names: LabelNames,
    usual: tuple[str, ...],
    staging: Path,
) -> tuple[Path, dict[str, Any]]:
    """Pass a mask through the label contract.

    Args:
        file: as the client sent it.
        image: the image's file.
        image_id: its id.
        tag: what the mask is: finished, predicted, regions.
        info: what the client said of it.
        names: numbers the labels.
        usual: names that finished labels usually hold.
        staging: folder for files of this call.

    Returns:
        The file to store, and what there is to say of it.

    Raises:
        UnusableInputError: the mask cannot be used; says why.
    """
    given = staging / f"{image_id}.label{check_label_suffix(file, MASK_SUFFIXES)}"
    given.symlink_to(file.absolute())  # complaints then name the image, and not the server's temporary file
    known = None if tag == REGIONS else names
    checked = check_label(given, image, info, known, None if tag == ORIGINAL else usual)
    path = write_volume(staging / f"label{label_suffix_for(image)}", checked.mask)
    facts: dict[str, Any] = {"remarks": list(checked.remarks), "voxels": checked.voxels}
    if known is not None:
        # what the client sent numbers the uploaded values; from here on the stored values count
        order = sorted(checked.labels, key=lambda name: checked.labels[name])
        facts["label_names"] = checked.labels
        facts["label_info"] = [{"name": name, "idx": checked.labels[name]} for name in order]
    return path, facts


def usual_labels(infos: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Names that nearly all finished labels hold, by their infos."""
    counts = [info["voxels"] for info in infos if isinstance(info.get("voxels"), dict)]
    if len(counts) < USUAL_FROM:
        return ()
    names = dict.fromkeys(name for count in counts for name in count)
    return tuple(n for n in names if sum(c.get(n, 0) > 0 for c in counts) >= USUAL_SHARE * len(counts))


def clean_info(info: Any, what: str) -> dict[str, Any]:
    """An info object as plain JSON values.

    Raises:
        UnusableInputError: no object.
    """
    if info is not None and not isinstance(info, Mapping):
        raise UnusableInputError(f"info of {what} is of type {type(info).__name__}; send an object {{...}}")
    return dict(plain(info or {}))


def clean_image_info(info: Any, image_id: str) -> dict[str, Any]:
    """An image's info; its weak labels are checked.

    Raises:
        UnusableInputError: no object, or names the field of `weak` that is wrong.
    """
    values = clean_info(info, f"image {image_id}")
    values.pop("path", None)  # get_image_info adds it, and clients send it back
    if values.get("weak") is not None:
        parse_weak(values["weak"], f"image {image_id}")
    return values


def signer(info: Mapping[str, Any]) -> str:
    """Who saved what an info belongs to; empty where nobody said."""
    return str(info.get("client_id") or info.get("user") or "")

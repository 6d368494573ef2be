"""The label contract: whatever a client saves becomes a mask that training can read, or is refused with the reason.

Viewers number segments in their own order, so values are mapped **by name** to the app's index. The mask ends up on the
image's grid. The contract knows nothing of how labels are stored; every datastore uses it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor

from medseg.cases import image_suffix
from medseg.errors import UnusableInputError
from medseg.server.label_file import image_grid, read_label
from medseg.server.label_grid import place_on_grid
from medseg.server.label_names import MAX_LABELS, LabelNames
from medseg.server.label_remarks import quality_remarks
from medseg.transforms.io import PICTURES


@dataclass(frozen=True)
class CheckedLabel:
    """A label that training can read.

    Attributes:
        mask: (1, *grid) uint8 on the image's grid, values as `labels` numbers them.
        labels: name -> value.
        voxels: name -> number of voxels.
        remarks: sentences for the annotator.
    """

    mask: MetaTensor
    labels: dict[str, int]
    voxels: dict[str, int]
    remarks: tuple[str, ...]


def check_label(
    label: Path,
    image: Path,
    params: Mapping[str, Any],
    names: LabelNames | None,
    usual: Sequence[str] | None = (),
) -> CheckedLabel:
    """Check a label file against its image and bring it into the app's form.

    The name of a value comes, in this order, from the file itself (`.seg.nrrd`), from `label_info` (value v is its v-th
    entry; `idx` may be off by one and is not read), from `label_names` (a list in order of the values, or name ->
    value), or from the app's own numbering.

    Args:
        label: the file a client sent.
        image: the image it belongs to.
        params: what the client said of it.
        names: numbers the names; None keeps the values as they are (region masks).
        usual: names that finished labels usually hold; None: no quality remarks (predictions).

    Raises:
        UnusableInputError: damaged, other dimension, elsewhere in space, unknown names or values, fractional values.
    """
    given = _given_names(params)
    read = read_label(label, len(given) or len(names.labels() if names else {}))
    placed, remarks = place_on_grid(read.mask, image_grid(image), Path(label).name)
    values = [int(v) for v in torch.unique(read.mask.as_tensor()).tolist() if v != 0]
    if names is None:
        labels = {f"{v}": v for v in values}
        index = {v: v for v in values}
    else:
        by_value = _names_of(values, read.names or given, names)
        resolved = names.resolve([by_value[v] for v in values])
        index = {v: resolved[by_value[v]] for v in values}
        labels = names.labels()
    mask = _renumber(placed, index)
    counts = torch.bincount(mask.as_tensor().flatten().to(torch.int64), minlength=MAX_LABELS + 1)
    lost = [name for name, value in labels.items() if value in index.values() and counts[value] == 0]
    if lost:
        remarks = (*remarks, f"nothing is left of {', '.join(map(repr, lost))} on the image's grid")
    quality = () if usual is None else quality_remarks(mask[0].numpy(), labels, usual)
    return CheckedLabel(
        mask=mask,
        labels=labels,
        voxels={name: int(counts[value]) for name, value in labels.items()},
        remarks=(*read.remarks, *remarks, *quality),
    )


def label_suffix_for(image: Path) -> str:
    """The format a label is stored in: `.png` beside pictures, else `.nii.gz`, which keeps the geometry."""
    return ".png" if (image_suffix(image) or "").lower() in PICTURES else ".nii.gz"


def _given_names(params: Mapping[str, Any]) -> dict[int, str]:
    """Names by value, as the client gave them; empty where it gave none.

    Raises:
        UnusableInputError: the list has another form.
    """
    nested = params.get("params")
    sources = [params, nested] if isinstance(nested, Mapping) else [params]
    for key in ("label_info", "label_names"):
        for source in sources:
            value = source.get(key)
            if isinstance(value, Mapping) and value:
                return {_whole(v, key): str(name) for name, v in value.items()}
            if isinstance(value, list | tuple) and value:
                return _in_order([_name_of(entry, key) for entry in value])
    return {}


def _in_order(names: list[str]) -> dict[int, str]:
    """The v-th name belongs to value v; a leading background is value 0."""
    start = 0 if names[0].strip().casefold() == "background" else 1
    return dict(enumerate(names, start=start))


def _name_of(entry: Any, key: str) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if not isinstance(name, str):
        raise UnusableInputError(f"{key} holds {str(entry)[:60]!r}; give a list of names or of {{name, idx}}")
    return name


def _whole(value: Any, key: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise UnusableInputError(f"{key} gives the value {str(value)[:60]!r}; give whole numbers") from error


def _names_of(values: Sequence[int], given: Mapping[int, str], names: LabelNames) -> dict[int, str]:
    """The name of each value that occurs."""
    by_value = {v: given.get(v) if given else names.name_of(v) for v in values}
    nameless = [v for v in values if by_value[v] is None]
    if nameless:
        known = list(given.values()) if given else list(names.labels())
        listed = ", ".join(map(str, nameless[:5])) + (", ..." if len(nameless) > 5 else "")
        source = f"label_info names {len(given)} labels" if given else f"this app has the labels 1..{len(known)}"
        raise UnusableInputError(
            f"the label holds the value {listed}, but {source} ({', '.join(known) or 'none'}); "
            "send label_info with one name for each value"
        )
    return {v: str(name) for v, name in by_value.items()}


def _renumber(mask: MetaTensor, index: Mapping[int, int]) -> MetaTensor:
    if index and max(index.values()) > MAX_LABELS:
        raise UnusableInputError(f"label number {max(index.values())} is above {MAX_LABELS}, the most that is kept")
    plain = mask.as_tensor()
    result = torch.zeros(plain.shape, dtype=torch.uint8)
    for value, new in index.items():
        result[plain == value] = new
    return MetaTensor(result, affine=mask.affine)

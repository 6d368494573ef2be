"""The names and numbers of the labels in a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.files import read_json
from medseg.transforms.io import read_mask

NAMES_FILE = "labels.json"
"""`{"name": 1, ...}` beside `images/`, for data whose masks hold bare numbers."""


def find_labels(folders: Sequence[Path], cases: Sequence[Case]) -> dict[str, int]:
    """Label names of data folders: from their `labels.json`, else `label_1..N` by the values in the masks.

    Raises:
        MedsegError: two folders number the same name differently.
    """
    named: dict[str, int] = {}
    for folder in folders:
        for file in (Path(folder) / NAMES_FILE, Path(folder) / ".medseg" / NAMES_FILE):
            for name, index in (_read_names(file) if Path(folder).is_dir() else {}).items():
                if named.setdefault(name, index) != index:
                    raise MedsegError(
                        f"{file} numbers label {name!r} {index}, another data set {named[name]}; renumber one"
                    )
    return named or labels_of_masks(cases)


def _read_names(file: Path) -> dict[str, int]:
    try:
        value = read_json(file, default={})
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            return {str(name): index for index, name in enumerate(value, start=1)}
        return {str(name): int(index) for name, index in value.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UnusableInputError(f'{file} must hold {{"name": 1, "other": 2}} or ["name", "other"]: {error}') from error


def labels_of_masks(cases: Sequence[Case]) -> dict[str, int]:
    """`label_1..N`, N the highest value in any readable mask; empty where there is none."""
    highest = 0
    for case in cases:
        if case.label is None:
            continue
        try:
            highest = max(highest, int(read_mask(case.label).max()))
        except MedsegError:
            continue  # the run itself reports damaged files by name
    return {f"label_{index}": index for index in range(1, highest + 1)}

"""What the values in the masks of a data folder mean: `labels.json`, value -> name.

Every data set numbers its masks as it likes. A name is the same structure wherever it stands, so that a union of data
sets goes by names; several values of one data set may share a name (instances of one structure).
"""

from __future__ import annotations

from pathlib import Path

from medseg.errors import UnusableInputError
from medseg.files import read_json

NAMES_FILE = "labels.json"
"""`{"name": 1, "other": [2, 3], ...}` or `["name", "other"]` beside `images/`, for masks that hold bare numbers."""


def read_names(folder: Path) -> dict[int, str]:
    """Value in the masks -> label name, in order of the values; empty where the folder names nothing.

    Raises:
        UnusableInputError: the file is no such list or object, or gives one value two names.
    """
    for file in (Path(folder) / NAMES_FILE, Path(folder) / ".medseg" / NAMES_FILE):
        if found := read_file(file):
            return dict(sorted(found.items()))
    return {}


def read_file(file: Path) -> dict[int, str]:
    """Value -> label name of one file; empty where there is none or it names nothing.

    Raises:
        UnusableInputError: as `read_names`.
    """
    try:
        stated = read_json(file, default={})
        if isinstance(stated, list) and all(isinstance(name, str) for name in stated):
            stated = {name: value for value, name in enumerate(stated, start=1)}
        pairs = [
            (int(value), str(name))
            for name, values in stated.items()
            for value in (values if isinstance(values, list) else [values])
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise UnusableInputError(f'{file} must hold {{"name": 1, "other": 2}} or ["name", "other"]: {error}') from error
    names: dict[int, str] = {}
    for value, name in pairs:
        if value < 1 or names.setdefault(value, name) != name:
            other = "background" if value < 1 else repr(names[value])
            raise UnusableInputError(f"{file}: value {value} of label {name!r} is {other}; give every name its own")
    return names

"""Case: an image and whatever is known of it. The currency between data, methods, training and server."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.files import read_json, write_json
from medseg.label_maps import read_names
from medseg.weak import WeakLabels, parse_weak
from medseg.weak_table import TableRow, read_tables

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm")


@dataclass(frozen=True)
class Case:
    """An image with its labels, each of which may be missing; a missing label is None, never zeros.

    Attributes:
        id: file name without its image suffix; unique within one list of cases.
        image: path of the image.
        label: path of the voxel mask (values 1..N as the method numbers its labels), on the image's grid.
        regions: path of an integer region mask (lobes, lungs).
        weak: weak labels.
        domain: name of the imaging domain, where it is known.
        patient: cases of one patient never fall on both sides of a split; the case id where nothing is known.
        dataset: name of the folder the case comes from.
        names: value in the mask -> label name; None: the values are the numbers of the run's labels.
        organ: path of a mask of which only zero or not zero is read: where the organ lies that regions divide.
        tags: what is kept of the image's DICOM header, by keyword; None: nothing is kept, the file may say it.
        group: part of a union (`Method.group_cases`) as all cases of the study told it; empty: nobody looked at all.
    """

    id: str
    image: Path
    label: Path | None = None
    regions: Path | None = None
    weak: WeakLabels | None = None
    domain: str | None = None
    patient: str = ""
    dataset: str = ""
    names: Mapping[int, str] | None = None
    organ: Path | None = None
    tags: Mapping[str, str] | None = None
    group: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.id)

    def without_label(self) -> Case:
        """The same case as a method sees it when its mask must not be known."""
        return replace(self, label=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, paths as strings."""
        paths = {k: str(getattr(self, k)) if getattr(self, k) else None for k in ("image", "label", "regions")}
        weak = self.weak.model_dump() if self.weak else None
        return {
            "id": self.id,
            **paths,
            "weak": weak,
            "domain": self.domain,
            "patient": self.patient,
            "dataset": self.dataset,
            **({"names": {str(value): name for value, name in self.names.items()}} if self.names else {}),
            **({"tags": dict(self.tags)} if self.tags else {}),
            **({"group": self.group} if self.group else {}),
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Case:
        """Inverse of `to_dict`."""
        weak = parse_weak(value["weak"], f"case {value['id']}") if value.get("weak") else None
        return cls(
            id=value["id"],
            image=Path(value["image"]),
            label=Path(value["label"]) if value.get("label") else None,
            regions=Path(value["regions"]) if value.get("regions") else None,
            weak=weak,
            domain=value.get("domain"),
            patient=value.get("patient") or "",
            dataset=value.get("dataset") or "",
            names={int(k): str(name) for k, name in value["names"].items()} if value.get("names") else None,
            tags=value.get("tags") or None,
            group=value.get("group") or "",
        )


def case_id(path: Path) -> str:
    """File name without its image suffix: `spine_01.nii.gz` gives `spine_01`.

    Raises:
        MedsegError: the file has none of `IMAGE_SUFFIXES`.
    """
    suffix = image_suffix(path)
    if suffix is None:
        raise MedsegError(f"{path} is not an image file medseg reads; known suffixes: {', '.join(IMAGE_SUFFIXES)}")
    return Path(path).name[: -len(suffix)]


def image_suffix(path: Path) -> str | None:
    """The image suffix of a path, in its own spelling; None where it has none. Hidden files (`._x.nii`) have none."""
    name = Path(path).name
    if name.startswith("."):
        return None
    return next((name[-len(s) :] for s in IMAGE_SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), None)


def patient_of(identifier: str, pattern: str | None) -> str:
    """The patient id inside a case id.

    Args:
        identifier: case id.
        pattern: regular expression; its first group (or the whole match) is the patient. None: the case id itself.

    Raises:
        MedsegError: the pattern is no regular expression.
    """
    if not pattern:
        return identifier
    try:
        match = re.search(pattern, identifier)
    except re.error as error:
        raise MedsegError(f"patient pattern {pattern!r} is not a regular expression: {error}") from error
    if match is None:
        return identifier
    return match.group(1) if match.groups() else match.group(0)


def load_cases(folders: Path | Sequence[Path], patient_pattern: str | None = None) -> list[Case]:
    """Read the cases of one or several data sets, in order of their file names.

    Each entry is a folder with `images/` and (optionally) `labels/`, `labels.csv` and `landmarks.csv`, a MONAI Label
    studies folder, or a JSON file written by `save_cases`. Case ids that occur in several folders get the folder's name
    in front. Patients keep their names: adding a data set must not change who was drawn for validation, and people of
    one name are better kept on one side than told apart wrongly.

    Raises:
        NotFoundError: an entry does not exist or holds no image.
        MedsegError: two cases have one name even so.
    """
    folders = [folders] if isinstance(folders, str | Path) else list(folders)
    different = {Path(folder).resolve(): Path(folder) for folder in folders}
    cases = [case for folder in different.values() for case in _load_folder(folder, patient_pattern)]
    count = Counter(case.id for case in cases)
    cases = [replace(case, id=f"{case.dataset}_{case.id}") if count[case.id] > 1 else case for case in cases]
    twice = [identifier for identifier, number in Counter(case.id for case in cases).items() if number > 1]
    if twice:
        raise MedsegError(f"two images are called {twice[0]!r}; rename one, or the folder of its data set")
    return cases


def save_cases(path: Path, cases: Iterable[Case]) -> Path:
    """Write cases as JSON; `load_cases` reads the file back."""
    return write_json(path, [case.to_dict() for case in cases])


def _load_folder(folder: Path, pattern: str | None) -> list[Case]:
    if folder.suffix == ".json" and folder.is_file():
        return _listed_cases(folder)
    if not folder.is_dir():
        raise NotFoundError(f"data folder {folder} does not exist; give a folder with images/ and labels/")
    cases = _folder_cases(folder, pattern)
    if not cases:
        where = folder / "images" if (folder / "images").is_dir() else folder
        raise NotFoundError(f"{where} holds no image; known suffixes: {', '.join(IMAGE_SUFFIXES)}")
    return cases


def _listed_cases(file: Path) -> list[Case]:
    try:
        cases = [Case.from_dict(value) for value in read_json(file)]
    except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
        raise UnusableInputError(
            f"{file} is no list of cases ({type(error).__name__}: {error}); expected [{{'id': ..., 'image': ...}}, ...]"
        ) from error
    if not cases:
        raise NotFoundError(f"{file} lists no case")
    return cases


def _files_by_id(folder: Path) -> dict[str, Path]:
    """Image files of a folder by case id, in order of their names."""
    if not folder.is_dir():
        return {}
    files: dict[str, Path] = {}
    for path in (path for path in sorted(folder.iterdir()) if path.is_file() and image_suffix(path)):
        if (other := files.setdefault(case_id(path), path)) is not path:
            raise MedsegError(f"{other.name} and {path.name} in {folder} have the same id; rename one of them")
    return files


def _folder_cases(folder: Path, pattern: str | None) -> list[Case]:
    """Cases of a plain folder (`images/`, `labels/`) or of a studies folder (images at its top, `labels/final/`).

    A plain folder that was served has corrected masks in `labels/final/`, which win over those beside the images; what
    the server's index says of an image wins over the tables (`labels.csv`, `landmarks.csv`).
    """
    plain = (folder / "images").is_dir()
    labels = {**(_files_by_id(folder / "labels") if plain else {}), **_files_by_id(folder / "labels" / "final")}
    regions = {**_files_by_id(folder / "regions"), **_files_by_id(folder / "labels" / "regions")}
    file = folder / "datastore_v2.json"
    try:
        index = read_json(file, default={}).get("objects", {})
    except json.JSONDecodeError as error:
        raise UnusableInputError(
            f"{file} is damaged ({error}); start the server once, it rebuilds the index"
        ) from error
    images = _files_by_id(folder / "images" if plain else folder)
    rows = read_tables(folder, images) if plain and images else {}
    names = read_names(folder) or None
    cases = []
    for identifier, path in images.items():
        info = index.get(identifier, {}).get("image", {}).get("info", {})
        row = rows.get(identifier, TableRow(""))
        weak = parse_weak(info["weak"], f"image {identifier}") if info.get("weak") else row.weak
        cases.append(
            Case(
                id=identifier,
                image=path,
                label=labels.get(identifier),
                regions=regions.get(identifier),
                weak=weak,
                domain=(weak.domain if weak else None) or row.domain,
                patient=info.get("patient") or row.patient or patient_of(identifier, pattern),
                dataset=folder.name,
                names=names,
            )
        )
    return cases

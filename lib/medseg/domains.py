"""Imaging domains as data: their names, labels and image properties, and how a case finds its domain.

A domain is a scanner, a sequence, a joint or an organ with its own label set. What is stated wins: the request, then
the image info or a table, then the file name, the DICOM tags and the data set; whoever finds nothing asks a classifier.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from medseg.cases import Case, image_suffix
from medseg.errors import MedsegError, NotFoundError

PATTERN = r"^(.+?)[_-]\d+$"
"""Group 1 is the part of a file name that may name a domain: `vb1_02` gives `vb1`."""

FEWEST = 2  # ours: a file name prefix that only one case has names that case, not a domain
MOST = 8  # ours: more prefixes than this name patients, not domains
TAGS = {"BodyPartExamined": "0018|0015", "SeriesDescription": "0008|103e", "StationName": "0008|1010"}


@dataclass(frozen=True)
class Domain:
    """One domain.

    Attributes:
        name: unique.
        labels: names of its structures in the order of its head's classes.
        values: value in its masks -> label name, for cases that carry no names of their own; `*` stands for all.
        aliases: file name prefixes and data sets that mean this domain.
        spacing: working voxel size in mm along the axes, the scale of the run included; None: each image's own.
        patch: size of its training patches in voxels; empty: the run's.
        slice_axis: axis of the canonical image that counts the slices.
    """

    name: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    spacing: tuple[float, ...] | None = None
    patch: tuple[int, ...] = ()
    slice_axis: int = -1

    @classmethod
    def from_dict(cls, name: str, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in value.items()}
        return cls(name=name, **known)

    def to_dict(self) -> dict[str, Any]:
        """JSON form without the name."""
        plain = {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(self).items()}
        del plain["name"]
        return plain

    def names_of(self, values: Sequence[int]) -> dict[int, str]:
        """Value -> label name for a mask without names of its own."""
        found = {value: self.values.get(str(value), self.values.get("*")) for value in values}
        return {value: name for value, name in found.items() if name is not None}


@dataclass(frozen=True)
class Resolution:
    """Which domain a case belongs to, what said so, and how sure that is in [0, 1]."""

    domain: str
    source: str
    confidence: float = 1.0


class DomainRegistry:
    """The domains of a model, in a fixed order.

    Args:
        domains: by name.
        pattern: regular expression for file names, see `PATTERN`.

    Raises:
        MedsegError: the pattern is no regular expression with a group.
    """

    def __init__(self, domains: Mapping[str, Domain], pattern: str = PATTERN) -> None:
        self.domains = dict(domains)
        self.pattern = _compiled(pattern)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(self.domains)

    def __getitem__(self, name: str) -> Domain:
        """A domain by name.

        Raises:
            NotFoundError: names the known ones.
        """
        if name not in self.domains:
            raise NotFoundError(f"there is no domain {name!r}; this model knows {', '.join(self.domains)}")
        return self.domains[name]

    def resolve(self, case: Case) -> Resolution | None:
        """The domain of a case by what is known of it; None where nothing known says it.

        Raises:
            NotFoundError: a domain is stated that the model does not know.
        """
        informed = case.weak.domain if case.weak else None
        if case.domain:
            return Resolution(self[case.domain].name, "image info" if case.domain == informed else "request")
        if informed:
            return Resolution(self[informed].name, "image info")
        for source, text in (("file name", file_prefix(case, self.pattern)), ("data set", case.dataset)):
            if found := self._called(text):
                return Resolution(found, source)
            if source == "file name" and (found := self._tagged(case)):
                return Resolution(found, "DICOM tags")
        return None

    def _called(self, text: str | None) -> str | None:
        """The domain of that name or alias."""
        if not text:
            return None
        if text in self.domains:
            return text
        return next((domain.name for domain in self.domains.values() if text in domain.aliases), None)

    def _tagged(self, case: Case) -> str | None:
        """The one domain whose name or alias is a word of the DICOM tags."""
        words = " ".join(dicom_tags(case.image).values()).lower()
        found = {
            domain.name
            for domain in self.domains.values()
            for text in (domain.name, *domain.aliases)
            if re.search(rf"(?<![a-z0-9]){re.escape(text.lower())}(?![a-z0-9])", words)
        }
        return found.pop() if len(found) == 1 else None


def file_prefix(case: Case, pattern: re.Pattern[str] | str = PATTERN) -> str | None:
    """The part of a case's file name that may name a domain."""
    name = Path(case.image).name
    match = re.search(pattern, name[: -len(image_suffix(Path(name)) or "") or None])
    return match.group(1) if match else None


def assign_domains(cases: Sequence[Case], pattern: str = PATTERN) -> dict[str, str]:
    """The domain of every training case, by case id.

    A stated domain counts as it is. Else it is the file name's prefix, where several cases of the data set share it and
    the data set has few of them; else the data set.
    """
    compiled = _compiled(pattern)
    known = {name: _prefixes([case for case in cases if case.dataset == name], compiled) for name in _sets(cases)}
    result = {}
    for case in cases:
        stated = case.domain or (case.weak.domain if case.weak else None)
        prefix = file_prefix(case, compiled)
        result[case.id] = stated or (prefix if prefix in known[case.dataset] else None) or case.dataset or "images"
    return result


def aliases_of(name: str, cases: Sequence[Case], pattern: str = PATTERN) -> tuple[str, ...]:
    """File name prefix and data set by which further cases of a domain are recognised.

    Args:
        name: of the domain.
        cases: its cases. Something counts as an alias if all of them share it.
        pattern: see `PATTERN`.
    """
    shared = ({file_prefix(case, pattern) for case in cases}, {case.dataset for case in cases})
    return tuple(text for found in shared if len(found) == 1 and (text := found.pop()) and text != name)


def dicom_tags(path: Path) -> dict[str, str]:
    """What a DICOM image or series says of itself; empty for other formats."""
    import SimpleITK as sitk

    file = next((f for f in sorted(path.iterdir()) if f.is_file()), path) if path.is_dir() else path
    if path.is_file() and path.suffix.lower() != ".dcm":
        return {}
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # no DICOM file; whoever reads the image says so
        return {}
    return {name: reader.GetMetaData(key).strip() for name, key in TAGS.items() if reader.HasMetaDataKey(key)}


def _sets(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(case.dataset for case in cases))


def _prefixes(cases: Sequence[Case], pattern: re.Pattern[str]) -> set[str]:
    """The file name prefixes of a data set that name domains."""
    pairs = {(prefix, case.patient) for case in cases if (prefix := file_prefix(case, pattern))}
    counts = Counter(prefix for prefix, _ in pairs)
    found = {prefix for prefix, count in counts.items() if count >= FEWEST}
    return found if len(found) <= MOST else set()


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise MedsegError(f"domain pattern {pattern!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise MedsegError(f"domain pattern {pattern!r} needs a group in brackets, as in {PATTERN!r}")
    return compiled

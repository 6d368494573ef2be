"""Imaging domains as data: their names, labels and image properties, and how a case finds its domain.

A domain is a scanner, a sequence, a joint or an organ with its own label set. What is stated wins: the request, then
the image info or a table, then the file name, the DICOM tags and the data set; whoever finds nothing asks a classifier,
and what the data set alone says is checked by it.
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

PEOPLE = re.compile(
    r"(p|pat|patient|s|sub|subj|subject|case|id|im|img|image|scan|series|exam|study|vol|volume)?[-_ ]?\d*",
    re.IGNORECASE,
)
"""What `PATTERN` finds and is no domain: words that number patients and files."""

FEWEST = 2  # ours: a file name prefix that only one case has names that case, not a domain
MOST = 8  # ours: more prefixes than this name patients, not domains
SURE = ("request", "image info", "inferred", "file name", "DICOM tags")
"""Sources that are taken at their word; of the others the classifier is asked."""

TAGS = {"BodyPartExamined": "0018|0015", "SeriesDescription": "0008|103e", "StationName": "0008|1010"}
ZSCORE = "zscore"
DIVIDING = ("BodyPartExamined", "SeriesDescription")
"""Tags whose values name domains of training cases."""


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
        normalisation: of the intensities, see `window_of`.
    """

    name: str
    labels: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    spacing: tuple[float, ...] | None = None
    patch: tuple[int, ...] = ()
    slice_axis: int = -1
    normalisation: str = ZSCORE

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
        if case.group in self.domains:
            return Resolution(case.group, "data set" if case.group == _fallback(case) else "inferred")
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
        words = " ".join(tags_of(case).values()).lower()
        found = {
            domain.name
            for domain in self.domains.values()
            for text in (domain.name, *domain.aliases)
            if re.search(rf"(?<![a-z0-9]){re.escape(text.lower())}(?![a-z0-9])", words)
        }
        return found.pop() if len(found) == 1 else None


def file_prefix(case: Case, pattern: re.Pattern[str] | str = PATTERN) -> str | None:
    """The part of a case's file name that may name a domain; none where it is a word for patients or files."""
    name = Path(case.image).name
    match = re.search(pattern, name[: -len(image_suffix(Path(name)) or "") or None])
    if match is None or (PATTERN in (pattern, getattr(pattern, "pattern", None)) and PEOPLE.fullmatch(match.group(1))):
        return None
    return match.group(1)


def assign_domains(cases: Sequence[Case], pattern: str = PATTERN) -> dict[str, str]:
    """The domain of every training case, by case id.

    A stated domain counts as it is, and so does what was found among all cases of the study (`Case.group`): a part of
    them need not show what the whole shows. Else it is the file name's prefix, the body part or the series description
    of the DICOM header, where several patients of the data set share it and the data set has few of them; else the data
    set. Whether a prefix names a domain or a patient cannot be known from names alone where each scan counts as a
    patient of its own: `build_registry` says what was inferred.
    """
    compiled = _compiled(pattern)
    result: dict[str, str] = {}
    for name in dict.fromkeys(case.dataset for case in cases):
        own = [case for case in cases if case.dataset == name]
        tags = {case.id: tags_of(case) for case in own}
        told: list[Mapping[str, str | None]] = [
            {case.id: stated_domain(case) or case.group for case in own},
            _shared(own, {case.id: file_prefix(case, compiled) for case in own}),
            *(_shared(own, {i: found.get(tag, "").lower() for i, found in tags.items()}) for tag in DIVIDING),
        ]
        for case in own:
            result[case.id] = next((text for found in told if (text := found.get(case.id))), _fallback(case))
    return {case.id: result[case.id] for case in cases}


def stated_domain(case: Case) -> str | None:
    """The domain that somebody named for a case."""
    return case.domain or (case.weak.domain if case.weak else None)


def aliases_of(
    name: str, cases: Sequence[Case], others: Sequence[Case] = (), pattern: str = PATTERN
) -> tuple[str, ...]:
    """File name prefix and data set by which further cases of a domain are recognised.

    Args:
        name: of the domain.
        cases: its cases. Something counts as an alias if all of them share it.
        others: all other cases. What one of them has is no alias.
        pattern: see `PATTERN`.
    """
    found = []
    for told in (lambda case: file_prefix(case, pattern), lambda case: case.dataset):
        shared, elsewhere = {told(case) for case in cases}, {told(case) for case in others}
        found += [text for text in shared - elsewhere if len(shared) == 1 and text and text != name]
    return tuple(found)


def window_of(normalisation: str) -> tuple[float, float] | None:
    """Ends of a window of intensities, `window:-160,240`; None for `zscore` of the whole image.

    Raises:
        MedsegError: neither, or a window without width.
    """
    if normalisation == ZSCORE:
        return None
    kind, _, ends = normalisation.partition(":")
    try:
        low, high = (float(end) for end in ends.split(","))
    except ValueError:
        low = high = 0.0
    if kind != "window" or not low < high:
        raise MedsegError(f"normalisation {normalisation!r} is unknown; write {ZSCORE}, or window:-160,240")
    return low, high


def normalisation_of(rules: str, domain: str) -> str:
    """The rule of a domain among those of a setting: `window:-160,240@ct;zscore` is a window for the domain ct alone.

    Raises:
        MedsegError: a rule is unknown.
    """
    found = {name: rule for rule, _, name in (entry.strip().partition("@") for entry in rules.split(";"))}
    for rule in found.values():
        window_of(rule)
    return found.get(domain, found.get("", ZSCORE))


def tags_of(case: Case) -> Mapping[str, str]:
    """What the DICOM header says of a case: what was kept of it, else what its file says."""
    return case.tags if case.tags is not None else dicom_tags(case.image)


def dicom_tags(path: Path) -> dict[str, str]:
    """What a DICOM image or series says of itself; empty for other formats."""
    import SimpleITK as sitk

    if path.suffix.lower() != ".dcm" and not path.is_dir():
        return {}
    file = next((f for f in sorted(path.iterdir()) if f.is_file()), path) if path.is_dir() else path
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # no DICOM file; whoever reads the image says so
        return {}
    return {name: reader.GetMetaData(key).strip() for name, key in TAGS.items() if reader.HasMetaDataKey(key)}


def _shared(cases: Sequence[Case], texts: Mapping[str, str | None]) -> dict[str, str | None]:
    """Of the texts of a data set's cases, by case id, those that several patients share; none where they are many."""
    pairs = {(text, case.patient) for case in cases if (text := texts[case.id])}
    counts = Counter(text for text, _ in pairs)
    shared = {text for text, count in counts.items() if count >= FEWEST}
    return {i: text for i, text in texts.items() if text in shared} if len(shared) <= MOST else {}


def _fallback(case: Case) -> str:
    """The domain of a case of which nothing else tells it."""
    return case.dataset or "images"


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise MedsegError(f"domain pattern {pattern!r} is not a regular expression: {error}") from error
    if not compiled.groups:
        raise MedsegError(f"domain pattern {pattern!r} needs a group in brackets, as in {PATTERN!r}")
    return compiled

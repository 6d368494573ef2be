"""The domain registry of a run, from its training cases: names, label sets, spacing and patch of each domain."""

from __future__ import annotations

import logging
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.domains import ZSCORE, Domain, aliases_of, assign_domains, normalisation_of, stated_domain
from medseg.errors import MedsegError
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.patches import automatic_scale
from medseg.transforms.grid import size_at, spacing_of, to_canonical
from medseg.transforms.io import read_image, read_mask

log = logging.getLogger(__name__)

LOOK = 4  # ours: images of a domain that are looked at for its spacing and size
COARSE = 1.5  # ours: an axis this much coarser than the others counts the slices
FEW = 3  # ours: masks of a domain from which on a stray label shows
MULTIPLE = 16  # the network halves its grid four times

Number = tuple[int, str | None]
"""A value in a mask, and its name where the case has one."""


def build_registry(config: MultiDomainConfig, cases: Sequence[Case]) -> dict[str, Any]:
    """The `domains` entry of the config: domains in order of their first case, each with what its cases tell.

    Domains of which no case has a mask are left out: there is nothing to make a head from.

    Raises:
        MedsegError: no case has a readable mask.
    """
    names = assign_domains(cases, config.domain_pattern)
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(names[case.id], []).append(case)
    found = {name: _labels(group) for name, group in groups.items()}
    found = _without_strays({name: counts for name, counts in found.items() if counts}, groups)
    if left_out := [name for name in groups if name not in found]:
        log.warning("domains without a mask, which are left out: %s", ", ".join(left_out))
    if not found:
        raise MedsegError(f"none of the {len(cases)} cases has a mask that can be read; save a label, then train")
    domains = []
    for name, labels in found.items():
        others = [case for case in cases if names[case.id] != name]
        aliases = aliases_of(name, groups[name], others, config.domain_pattern)
        domains.append(replace(_describe(config, name, groups[name], labels), aliases=aliases))
    _tell_inferred(groups)
    for domain in domains:
        alone = len({case.patient for case in groups[domain.name] if case.label is not None}) == 1
        note = f", {domain.normalisation}" if domain.normalisation != ZSCORE else ""
        note += "; a single labelled patient is little to learn a domain from" if alone else ""
        (log.warning if alone else log.info)(
            "domain %s: %d cases, labels %s%s", domain.name, len(groups[domain.name]), ", ".join(domain.labels), note
        )
    return {domain.name: domain.to_dict() for domain in domains}


def _tell_inferred(groups: Mapping[str, Sequence[Case]]) -> None:
    """Name the domains that nobody stated: a prefix may be a patient, which no name tells."""
    inferred = [
        name
        for name, group in groups.items()
        if not any(stated_domain(case) or name == (case.dataset or "images") for case in group)
    ]
    if len(inferred) > 1:
        log.warning(
            "domains %s were inferred from file names or DICOM headers; where these are patients, state the domains "
            "(labels.csv) or set domain_pattern",
            ", ".join(inferred),
        )


def _labels(cases: Sequence[Case]) -> Counter[Number]:
    """How many masks of a domain hold each value; what the names of its data set leave out is refused at loading."""
    counts: Counter[Number] = Counter()
    for case in cases:
        if case.label is None:
            continue
        try:
            values = torch.unique(read_mask(case.label).as_tensor())
        except MedsegError:
            continue  # the run itself reports damaged files by name
        known = case.names
        counts.update({(int(v), (known or {}).get(int(v))) for v in values if v > 0 and (not known or int(v) in known)})
    return counts


def _without_strays(
    found: Mapping[str, Counter[Number]], groups: Mapping[str, Sequence[Case]]
) -> dict[str, Counter[Number]]:
    """Take out labels that a domain has in fewer than half of its masks and another domain in most of its own.

    A structure of another joint in one file is a mistake; its case is refused when it is loaded.
    """
    masks = {name: max(1, sum(case.label is not None for case in groups[name])) for name in found}
    usual = {
        (name, label or value)
        for name, counts in found.items()
        for (value, label), count in counts.items()
        if 2 * count > masks[name]
    }
    result = {}
    for name, counts in found.items():
        elsewhere = {label for other, label in usual if other != name}
        strays = {n for n, count in counts.items() if 2 * count < masks[name] and (n[1] or n[0]) in elsewhere}
        result[name] = Counter({number: count for number, count in counts.items() if number not in strays})
        for value, label in strays:
            text = "label %s is rare in domain %s and belongs to another; its cases are refused"
            log.warning(text, label or value, name)
        rare = {n[1] or n[0] for n, count in result[name].items() if masks[name] == 1 or count < masks[name]}
        shared = {str(label) for label in rare & elsewhere}
        if shared and masks[name] < FEW and {n[1] or n[0] for n in result[name]} - elsewhere:
            text = "domain %s has %d labelled cases, and other domains have its %s, too; is a mask of another domain?"
            log.warning(text, name, masks[name], ", ".join(sorted(shared)))
    return result


def _describe(config: MultiDomainConfig, name: str, cases: Sequence[Case], counts: Counter[Number]) -> Domain:
    spacing, size, axis = _geometry(config, cases)
    labels = [label or str(value) for value, label in sorted(counts, key=lambda number: number[0])]
    patch = tuple(min(p, -(-n // MULTIPLE) * MULTIPLE) for p, n in zip(config.patch, size, strict=False))
    values = {str(value): label or str(value) for value, label in counts}
    if len(set(labels)) == 1 and len(labels) > 1:
        values = {"*": labels[0]}  # instances of one structure: another case may have more of them
    return Domain(
        name=name,
        labels=tuple(dict.fromkeys(labels)),
        values=values,
        spacing=spacing,
        patch=patch,
        slice_axis=axis,
        normalisation=normalisation_of(config.normalisation, name),
    )


def _geometry(config: MultiDomainConfig, cases: Sequence[Case]) -> tuple[tuple[float, ...] | None, list[int], int]:
    """Working spacing, median size on it with the slices last, and the axis that counts the slices."""
    images = []
    for case in cases:
        try:
            images.append(to_canonical(read_image(case.image)))
        except MedsegError:
            continue  # the run itself reports damaged files by name
        if len(images) == LOOK:
            break
    if not images:
        raise MedsegError(f"none of the {len(cases)} images of a domain can be read, the first is {cases[0].id}")
    own = [statistics.median(values) for values in zip(*(spacing_of(image) for image in images), strict=True)]
    wanted = tuple(config.spacing or own)
    axis = slice_axis(wanted) if config.view != "3d" and len(own) == 3 else len(own) - 1
    spacing = working_spacing(images[0], wanted, config.scale)
    sizes = [size_at(image, spacing) for image in images]
    size = [int(statistics.median(values)) for values in zip(*sizes, strict=True)]
    size = [*size[:axis], *size[axis + 1 :], size[axis]]
    return tuple(round(s, 4) for s in spacing), size, axis


def working_spacing(image: MetaTensor, spacing: Sequence[float], scale: float) -> tuple[float, ...]:
    """Spacing at a scale: 0.5 doubles it; 0 doubles it until an image like this one has at most a million voxels."""
    chosen = scale or automatic_scale(math.prod(size_at(image, spacing)), len(spacing))
    return tuple(s / chosen for s in spacing)


def slice_axis(spacing: Sequence[float]) -> int:
    """The axis along which slices follow each other: a clearly coarser one, else the last."""
    widest = max(range(len(spacing)), key=lambda axis: spacing[axis])
    others = [s for axis, s in enumerate(spacing) if axis != widest]
    return widest if spacing[widest] >= COARSE * max(others) else len(spacing) - 1

"""The names and numbers of the labels in one data set or a union of several."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.label_maps import NAMES_FILE, read_names
from medseg.methods.base import Method
from medseg.transforms.io import read_mask

log = logging.getLogger(__name__)

INSTANCES = 3  # ours: masks that differ in their highest value count instances from this many on


def name_labels(
    folders: Sequence[Path], cases: Sequence[Case], kind: type[Method] = Method
) -> tuple[list[Case], dict[str, int]]:
    """Give every case the names of its mask's values where they are needed, and number all names.

    A data set with a `labels.json` uses its names. Without one, the values of a single data set are `label_1`,
    `label_2`, ... as they stand, and those of several that are joined `<data set>_<value>`, because a 1 in one is not
    a 1 in the other. A method with `merges_instances` sees numbered instances of one structure as one label.

    Returns:
        The cases, and label name -> 1..N in order of the data sets and their values; {} where no mask tells any.
    """
    masked = {case.dataset for case in cases if case.label is not None}
    found = _values(case for case in cases if not case.names)
    given: dict[str, dict[int, str]] = {}
    for dataset, masks in found.items():
        values = sorted(set().union(*masks))
        merged = kind.merges_instances and are_instances(masks)
        if merged or len(masked) > 1:
            prefix = dataset if len(masked) > 1 else "label"
            given[dataset] = {value: f"{prefix}_{1 if merged else value}" for value in values}
        if merged:
            log.info("%s: values 1..%d count instances and become one label; name them in %s to keep them apart",
                     dataset, values[-1], NAMES_FILE)  # fmt: skip
    named = [replace(case, names=given[case.dataset]) if _lacks(case, given) else case for case in cases]
    return named, _numbers(folders, named, found if not given else {})


def find_labels(folders: Sequence[Path], cases: Sequence[Case]) -> dict[str, int]:
    """The labels of `name_labels`, for callers whose cases have their names."""
    return name_labels(folders, cases)[1]


def labels_of_masks(cases: Sequence[Case]) -> dict[str, int]:
    """`label_1..N`, N the highest value in any readable mask; empty where there is none."""
    return _bare_numbers(_values(cases).values())


def are_instances(masks: Sequence[set[int]]) -> bool:
    """Whether masks count instances of one structure: each holds 1..n without gaps, and n is not the same in all.

    Args:
        masks: values of each mask, without 0.
    """
    filled = [mask for mask in masks if mask]
    counts = {len(mask) for mask in filled}
    return len(counts) > 1 and max(counts) >= INSTANCES and all(max(mask) == len(mask) for mask in filled)


def _lacks(case: Case, given: Mapping[str, Mapping[int, str]]) -> bool:
    return not case.names and case.dataset in given


def _values(cases: Iterable[Case]) -> dict[str, list[set[int]]]:
    """Values above 0 of every readable mask, by data set."""
    found: dict[str, list[set[int]]] = {}
    for case in cases:
        if case.label is None:
            continue
        try:
            values = torch.unique(read_mask(case.label).as_tensor())
        except MedsegError:
            continue  # the run itself reports damaged files by name
        found.setdefault(case.dataset, []).append({int(value) for value in values} - {0})
    return found


def _numbers(folders: Sequence[Path], cases: Sequence[Case], bare: Mapping[str, list[set[int]]]) -> dict[str, int]:
    """Numbers of all names: those of `labels.json`, then those of the cases; of bare values where there is no name."""
    stated = [read_names(folder) for folder in folders if Path(folder).is_dir()]
    maps = [*stated, *(case.names for case in cases if case.names)]
    names = dict.fromkeys(name for names in maps for _, name in sorted(names.items()))
    return {name: index for index, name in enumerate(names, start=1)} or _bare_numbers(bare.values())


def _bare_numbers(found: Iterable[list[set[int]]]) -> dict[str, int]:
    highest = max((max(mask, default=0) for masks in found for mask in masks), default=0)
    return {f"label_{index}": index for index in range(1, highest + 1)}

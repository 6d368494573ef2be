"""Which cases a benchmark trains on, with and without their mask, and which it reports on.

Everything goes by patient and by list order or a hash of the patient's id, so the same call gives the same split on
every machine. Cases of a held-out patient are not learnt from, not even without their mask. Where the cases fall into
groups (`Method.group_cases`: data sets, domains), labels, held-out cases and folds are dealt to the groups in turn, so
that each of them is learnt from and reported on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeVar

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Method
from medseg.training.split import stable_hash

Item = TypeVar("Item")


@dataclass(frozen=True)
class BenchmarkSplit:
    """One fold: cases to learn from, cases to report on, and the ids of those learnt from that keep their label."""

    training: tuple[Case, ...]
    held_out: tuple[Case, ...]
    labelled: tuple[str, ...]


def split_cases(
    cases: Sequence[Case],
    labelled: int | None,
    held_out: int | float,
    folds: int = 1,
    kind: type[Method] = Method,
    groups: Mapping[str, str] | None = None,
) -> list[BenchmarkSplit]:
    """Split by patient.

    Args:
        cases: all cases in list order.
        labelled: the first so many training labelled cases keep it, in turn from every group; None: all.
        held_out: with one fold, how many labelled cases are reported on, taken in turn from every group; a float is a
            share of every group, rounded, at least one case. Whole patients are taken in the order of their hash, after
            setting aside the patients of the first `labelled`; a group's last patient is never taken.
        folds: more than 1: patients that are labelled are dealt out, every fold reports on its own and learns from the
            others.
        kind: tells which cases are labelled, and hides labels.
        groups: case id -> group, as `kind.group_cases` tells it of all cases with the settings of the run; None: with
            the default settings.

    Raises:
        MedsegError: the cases do not suffice; says how many there are.
    """
    groups = kind.group_cases(cases) if groups is None else groups
    masked = [case for case in cases if kind.is_labelled(case)]
    if labelled is not None and not 1 <= labelled <= len(masked):
        raise MedsegError(f"--labelled {labelled} is outside 1..{len(masked)}, the number of labelled cases")
    if folds == 1:
        reserved = {case.patient for case in first_cases(masked, labelled or 0, groups)}
        return [_fold(cases, labelled, _held_out_patients(masked, reserved, held_out, groups), kind, groups)]
    patients = [patient for group in _patients(masked, groups).values() for patient in group]
    if not 1 < folds <= len(patients):
        raise MedsegError(f"{folds} folds are outside 1..{len(patients)}, the number of patients that are labelled")
    return [_fold(cases, labelled, set(patients[fold::folds]), kind, groups) for fold in range(folds)]


def _grouped(cases: Sequence[Case], groups: Mapping[str, str]) -> dict[str, list[Case]]:
    """Cases by group, both in list order."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(groups[case.id], []).append(case)
    return found


def _patients(cases: Sequence[Case], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Patients by group in the order of their hash; one of several groups counts in the first."""
    seen: set[str] = set()
    found = {}
    for name, group in _grouped(cases, groups).items():
        found[name] = sorted({case.patient for case in group} - seen, key=stable_hash)
        seen.update(found[name])
    return found


def _in_turn(groups: Mapping[str, Sequence[Item]]) -> list[Item]:
    """One of each group, then the next of each group that has one."""
    rounds = zip_longest(*groups.values(), fillvalue=None)
    return [item for items in rounds for item in items if item is not None]


def first_cases(masked: Sequence[Case], count: int | None, groups: Mapping[str, str]) -> list[Case]:
    """The first so many cases, in turn from every group; None: all."""
    return _in_turn(_grouped(masked, groups))[:count]


def _held_out_patients(
    masked: Sequence[Case], reserved: set[str], held_out: int | float, groups: Mapping[str, str]
) -> set[str]:
    """Whole patients until the number is reached, or in every group the share; the last of a group always trains."""
    is_share, by_group = not isinstance(held_out, int), _grouped(masked, groups)
    most = {n: max(1, round(held_out * len(cases))) if is_share else int(held_out) for n, cases in by_group.items()}
    wanted = sum(most.values()) if is_share else int(held_out)
    queues = _spare_patients(masked, reserved, groups)
    chosen: set[str] = set()

    def reported(group: str | None = None) -> int:
        return sum(case.patient in chosen for case in (masked if group is None else by_group[group]))

    def wanting() -> list[str]:
        if not is_share and reported() >= wanted:
            return []
        return [name for name in queues if queues[name] and reported(name) < most[name]]

    while names := wanting():
        group = min(names, key=reported)  # the first of those with fewest cases
        chosen.add(queues[group].pop(0))
    one_of_several = is_share and len(by_group) > 1 and chosen  # a small group gives what it can spare
    if wanted < 1 or (reported() < wanted and not one_of_several):
        spare = sum(case.patient not in reserved for case in masked)
        raise MedsegError(
            f"{wanted} held-out cases cannot be taken from {len(masked)} labelled cases, of which "
            f"{len(masked) - spare} belong to patients that train, and each group keeps a patient; lower --labelled or "
            "the held-out number, or add cases with masks"
        )
    return chosen


def _spare_patients(masked: Sequence[Case], reserved: set[str], groups: Mapping[str, str]) -> dict[str, list[str]]:
    """Patients by group that need not train; where none is reserved, a group keeps its last."""
    spare = {}
    for name, patients in _patients(masked, groups).items():
        free = [patient for patient in patients if patient not in reserved]
        spare[name] = free if len(free) < len(patients) else free[:-1]
    return spare


def _fold(
    cases: Sequence[Case], labelled: int | None, held_out: set[str], kind: type[Method], groups: Mapping[str, str]
) -> BenchmarkSplit:
    pool = [case for case in cases if case.patient not in held_out]
    masked = [case for case in pool if kind.is_labelled(case)]
    if not masked or (labelled or 0) > len(masked):
        raise MedsegError(
            f"--labelled {labelled or 1} is more than the {len(masked)} labelled cases that are left to train on"
        )
    keep = {case.id for case in first_cases(masked, labelled, groups)}
    return BenchmarkSplit(
        training=tuple(case if case.id in keep else kind.hide_label(case) for case in pool),
        held_out=tuple(case for case in cases if case.patient in held_out and kind.is_labelled(case)),
        labelled=tuple(case.id for case in masked if case.id in keep),
    )

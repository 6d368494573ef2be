"""Which cases a benchmark trains on, with and without their mask, and which it reports on.

Everything goes by patient and by list order or a hash of the patient's id, so the same call gives the same split on
every machine. Cases of a held-out patient are not learnt from, not even without their mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Method
from medseg.training.split import stable_hash


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
) -> list[BenchmarkSplit]:
    """Split by patient.

    Args:
        cases: all cases in list order.
        labelled: the first so many training labelled cases keep it; None: all.
        held_out: with one fold, how many labelled cases are reported on (a float is a share of them). Whole
            patients are taken in the order of their hash, after setting aside the patients of the first `labelled`.
        folds: more than 1: patients that are labelled are dealt out, every fold reports on its own and learns from the
            others.
        kind: tells which cases are labelled, and hides labels.

    Raises:
        MedsegError: the cases do not suffice; says how many there are.
    """
    masked = [case for case in cases if kind.is_labelled(case)]
    if labelled is not None and not 1 <= labelled <= len(masked):
        raise MedsegError(f"--labelled {labelled} is outside 1..{len(masked)}, the number of labelled cases")
    if folds == 1:
        reserved = {case.patient for case in masked[: labelled or 0]}
        return [_fold(cases, labelled, _held_out_patients(masked, reserved, held_out), kind)]
    patients = sorted({case.patient for case in masked}, key=stable_hash)
    if not 1 < folds <= len(patients):
        raise MedsegError(f"{folds} folds are outside 1..{len(patients)}, the number of patients that are labelled")
    return [_fold(cases, labelled, set(patients[fold::folds]), kind) for fold in range(folds)]


def _held_out_patients(masked: Sequence[Case], reserved: set[str], held_out: int | float) -> set[str]:
    wanted = held_out if isinstance(held_out, int) else max(1, round(held_out * len(masked)))
    free = [case for case in masked if case.patient not in reserved]
    if not 1 <= wanted <= len(free) or (not reserved and wanted == len(masked)):
        raise MedsegError(
            f"{wanted} held-out cases cannot be taken from {len(masked)} labelled cases, of which "
            f"{len(masked) - len(free)} belong to patients that train; lower --labelled or the held-out number, "
            "or add cases with masks"
        )
    chosen: set[str] = set()
    for patient in sorted({case.patient for case in free}, key=stable_hash):
        if sum(case.patient in chosen for case in free) >= wanted:
            break
        chosen.add(patient)
    return chosen


def _fold(cases: Sequence[Case], labelled: int | None, held_out: set[str], kind: type[Method]) -> BenchmarkSplit:
    pool = [case for case in cases if case.patient not in held_out]
    masked = [case.id for case in pool if kind.is_labelled(case)]
    if not masked or (labelled or 0) > len(masked):
        raise MedsegError(
            f"--labelled {labelled or 1} is more than the {len(masked)} labelled cases that are left to train on"
        )
    keep = masked[:labelled]
    return BenchmarkSplit(
        training=tuple(case if case.id in keep else kind.hide_label(case) for case in pool),
        held_out=tuple(case for case in cases if case.patient in held_out and kind.is_labelled(case)),
        labelled=tuple(keep),
    )

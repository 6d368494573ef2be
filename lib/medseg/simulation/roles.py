"""Which cases play which part: test, validation, and the pool that is labelled in the course of the simulation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.simulation.request import SimulationRequest
from medseg.training.split import stable_hash

LARGEST_TEST, LARGEST_VALIDATION = 10, 8  # ours: both are predicted after every round
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")  # what the server takes


@dataclass(frozen=True)
class Roles:
    """The cases of a simulation; a patient has one role.

    Attributes:
        test: never in the studies folder; the learning curve is measured on them.
        validation: labelled from the beginning, never trained on; the gate decides on them.
        pool: the others, in list order.
    """

    test: tuple[Case, ...]
    validation: tuple[Case, ...]
    pool: tuple[Case, ...]

    def initial(self, count: int, seed: int) -> tuple[Case, ...]:
        """The cases of the pool that are labelled from the beginning, drawn by a hash of seed and id."""
        return tuple(sorted(self.pool, key=lambda case: stable_hash(f"{seed}/{case.id}"))[:count])


def assign_roles(request: SimulationRequest, labelled: Sequence[Case]) -> Roles:
    """Deal out the roles by the hash of the patient; the same call gives the same roles on every machine.

    Args:
        request: how many of each.
        labelled: the cases whose label is known.

    Raises:
        MedsegError: too few cases; says how many are needed.
    """
    for case in labelled:
        if not _ID.fullmatch(case.id) or ".." in case.id:
            raise MedsegError(f"case {case.id!r}: the server takes letters, digits, '.', '_' and '-'; rename its files")
    test = request.test if request.test is not None else _share(len(labelled), 0.2, LARGEST_TEST)
    validation = (
        request.validation if request.validation is not None else _share(len(labelled), 0.1, LARGEST_VALIDATION)
    )
    if test < 1 or validation < 1:
        raise MedsegError(f"there are {test} test and {validation} validation cases; each needs at least 1")
    tested, rest = _take(labelled, test)
    validated, pool = _take(rest, validation)
    needed = request.initial + request.rounds * request.per_round
    if len(pool) < needed:
        raise MedsegError(
            f"{request.initial} initial labels and {request.rounds} rounds of {request.per_round} need {needed} cases, "
            f"{len(pool)} of {len(labelled)} are left beside {len(tested)} test and {len(validated)} validation cases; "
            "lower --rounds, --test or --validation, or add labelled cases"
        )
    return Roles(tuple(tested), tuple(validated), tuple(pool))


def _share(count: int, share: float, most: int) -> int:
    return min(most, max(1, round(share * count)))


def _take(cases: Sequence[Case], count: int) -> tuple[list[Case], list[Case]]:
    """Whole patients in the order of their hash until `count` cases are reached, and the remaining cases."""
    chosen: set[str] = set()
    for patient in sorted({case.patient for case in cases}, key=stable_hash):
        if sum(case.patient in chosen for case in cases) >= count:
            break
        chosen.add(patient)
    return [c for c in cases if c.patient in chosen], [c for c in cases if c.patient not in chosen]

"""The frozen validation split.

The rule, by patient (a patient's cases are never on both sides):

1. A role once given stays for ever: the manifest only grows, so a case that validated never trains, and one that
   trained never validates.
2. A new labelled patient validates when the SHA-256 hash of the patient id, read as a number in [0, 1), is below
   `validation_fraction`; else it trains. The hash depends on nothing but the id, so every machine agrees.
3. Few labels: as long as fewer than `FEW` patients are labelled, rule 2 would often leave no validation case, or no
   training case. Then exactly one patient validates: the first time that two or more patients are labelled, the new one
   with the lowest hash. A single labelled patient trains, and its model is published without validation.
4. Unlabelled images of a patient who validates, or will once labelled (rule 2), are not learnt from either; a patient
   whose unlabelled images were learnt from never validates; and as long as nobody validates, that is with one label,
   no unlabelled image is learnt from, so that any of them can still validate.
5. An explicit list of validation ids replaces the rules 2 and 3.
6. A method that learns without any label (`Method.describes`) learns from every image; those that validate, or may,
   come without their labels, and what it learns from without a label may still validate.
7. In a union of data sets or domains (`Method.group_cases`), 2 and 3 hold in each of them, so that each validates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError
from medseg.files import read_json, write_json
from medseg.methods.base import Method, MethodConfig
from medseg.training.file_lock import file_lock

FEW = 5
TRAINING, VALIDATION = "training", "validation"


@dataclass(frozen=True)
class Split:
    """Cases to learn from (labelled and unlabelled) and labelled cases to validate on."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]

    @property
    def labelled(self) -> int:
        """Number of labelled training cases."""
        return sum(case.label is not None for case in self.training)


def stable_hash(text: str) -> float:
    """SHA-256 of a text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


class SplitManifest:
    """The roles of all patients seen so far, in a JSON file that only grows.

    Args:
        path: where the roles are kept.
        fraction: share of patients that validate.
        explicit: ids of the validation cases or patients; replaces the hash rule.
    """

    def __init__(self, path: Path, fraction: float = 0.2, explicit: Sequence[str] = ()) -> None:
        if not 0 <= fraction < 1:
            raise MedsegError(f"validation_fraction = {fraction} is outside [0, 1); 0.2 validates on a fifth")
        self.path = Path(path)
        self.fraction = fraction
        self.explicit = frozenset(explicit)

    def assign(self, cases: Sequence[Case], kind: type[Method] = Method, config: MethodConfig | None = None) -> Split:
        """Give every patient who is new a role, store it, and split the cases. Call it when a training starts.

        Args:
            cases: all cases of the study.
            kind: tells which cases are labelled, and what group they are in.
            config: settings of the run, for the groups.

        Raises:
            NotFoundError: an explicit validation id is none of the cases.
        """
        with file_lock(self.path.with_suffix(".lock")):
            roles: dict[str, str] = read_json(self.path, default={})
            known = dict(roles)
            labelled = {case.patient for case in cases if kind.is_labelled(case)}
            if self.explicit:
                roles.update(self._explicit_roles(cases, sorted(labelled - roles.keys(), key=stable_hash)))
            else:
                for patients in _patients_by_group(cases, kind, config):
                    own = roles if patients is None else {p: r for p, r in roles.items() if p in patients}
                    known_here = labelled if patients is None else labelled & patients
                    new = sorted(known_here - roles.keys(), key=stable_hash)
                    roles.update(self._hashed_roles(own, known_here, new))
            if kind.describes:
                training = without_labels(cases, {c.id for c in cases if self._reserved(c, roles)}, kind)
            else:
                alone = not self.explicit and self.fraction > 0 and VALIDATION not in roles.values()
                training = tuple(
                    case for case in cases if not self._reserved(case, roles) and (kind.is_labelled(case) or not alone)
                )
                if labelled:  # rule 4: whoever is learnt from, even without a label, never validates
                    roles.update({case.patient: TRAINING for case in training})
            if roles != known:
                write_json(self.path, roles)
        validation = (c for c in cases if roles.get(c.patient) == VALIDATION and kind.is_labelled(c))
        return Split(training, tuple(validation))

    def _reserved(self, case: Case, roles: dict[str, str]) -> bool:
        """Whether a case may not be learnt from, labelled or not."""
        if case.patient in roles:
            return roles[case.patient] == VALIDATION
        if self.explicit:
            return bool({case.id, case.patient} & self.explicit)
        return stable_hash(case.patient) < self.fraction

    def _explicit_roles(self, cases: Sequence[Case], new: Sequence[str]) -> dict[str, str]:
        chosen = {case.patient for case in cases if {case.id, case.patient} & self.explicit}
        unknown = self.explicit - {case.id for case in cases} - {case.patient for case in cases}
        if unknown:
            raise NotFoundError(f"validation list names {', '.join(sorted(unknown))}, which is no case of the data")
        return {patient: VALIDATION if patient in chosen else TRAINING for patient in new}

    def _hashed_roles(self, roles: dict[str, str], labelled: set[str], new: Sequence[str]) -> dict[str, str]:
        if self.fraction == 0:
            return dict.fromkeys(new, TRAINING)
        has_validation = VALIDATION in roles.values()
        if len(labelled) < FEW:
            wanted = 1 if not has_validation and len(labelled) >= 2 else 0
            return {patient: VALIDATION if rank < wanted else TRAINING for rank, patient in enumerate(new)}
        result = {patient: VALIDATION if stable_hash(patient) < self.fraction else TRAINING for patient in new}
        if new and not has_validation and VALIDATION not in result.values():
            result[new[0]] = VALIDATION
        if new and TRAINING not in {*roles.values(), *result.values()}:
            result[new[-1]] = TRAINING
        return result


def _patients_by_group(cases: Sequence[Case], kind: type[Method], config: MethodConfig | None) -> list[set[str] | None]:
    """Patients of each group (`Method.group_cases`); None stands for everybody where there is one group."""
    groups: dict[str, set[str]] = {}
    names = kind.group_cases(cases, config)
    for case in cases:
        groups.setdefault(names[case.id], set()).add(case.patient)
    return list(groups.values()) if len(groups) > 1 else [None]


def split_first(cases: Sequence[Case], labelled: int, fraction: float, kind: type[Method] = Method) -> Split:
    """Split for experiments with a given number of labels.

    The first `labelled` labelled cases in list order keep their label and train; of the others, patients whose hash is
    below `fraction` validate and never train (but rule 6 holds); the rest is the unlabelled pool, its labels hidden.

    Raises:
        MedsegError: fewer labels than asked for.
    """
    known = [case for case in cases if kind.is_labelled(case)]
    if not 1 <= labelled <= len(known):
        raise MedsegError(f"--labelled {labelled} is outside 1..{len(known)}, the number of labelled cases")
    first = {case.id for case in known[:labelled]}
    patients = {case.patient for case in known[:labelled]}
    validation = tuple(c for c in known if c.patient not in patients and stable_hash(c.patient) < fraction)
    kept = {case.patient for case in validation}
    used = cases if kind.describes else [case for case in cases if case.patient not in kept]
    return Split(without_labels(used, {case.id for case in cases} - first, kind), validation)


def with_groups(
    cases: Sequence[Case], kind: type[Method], config: MethodConfig | None = None, among: Sequence[Case] = ()
) -> list[Case]:
    """The cases with their `group` as the whole study tells it, so that no part of them is divided otherwise later.

    Args:
        cases: cases of a study.
        kind: tells the groups.
        config: settings of the run.
        among: all cases of the study; empty: `cases`.
    """
    names = kind.group_cases(among or cases, config)
    return [replace(case, group=names.get(case.id, case.group)) for case in cases]


def without_labels(cases: Sequence[Case], hidden: Collection[str], kind: type[Method]) -> tuple[Case, ...]:
    """The cases, those with an id in `hidden` without their labels."""
    return tuple(kind.hide_label(case) if case.id in hidden else case for case in cases)

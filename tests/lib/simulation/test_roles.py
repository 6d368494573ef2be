from __future__ import annotations

from pathlib import Path

import pytest

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.simulation.request import SimulationRequest
from medseg.simulation.roles import assign_roles


def make_cases(count: int, per_patient: int = 1) -> list[Case]:
    paths = (Path("i.nii.gz"), Path("l.nii.gz"))
    return [Case(f"c{i:02d}", *paths, patient=f"p{i // per_patient:02d}") for i in range(count)]


def make_request(**changes: object) -> SimulationRequest:
    values = {"method": "supervised", "data": (), "out": Path("out"), "rounds": 1, "per_round": 1, "initial": 2}
    return SimulationRequest(**{**values, **changes})


def test_roles_share_no_case_and_cover_all() -> None:
    roles = assign_roles(make_request(test=4, validation=3), make_cases(20))

    ids = [[case.id for case in group] for group in (roles.test, roles.validation, roles.pool)]
    assert [len(group) for group in ids] == [4, 3, 13]
    assert len({identifier for group in ids for identifier in group}) == 20


def test_a_patient_has_one_role() -> None:
    roles = assign_roles(make_request(test=4, validation=4), make_cases(30, per_patient=3))

    patients = [{case.patient for case in group} for group in (roles.test, roles.validation, roles.pool)]
    assert not patients[0] & patients[1]
    assert not patients[1] & patients[2]
    assert not patients[0] & patients[2]
    assert len(roles.test) == 6  # two whole patients


def test_roles_do_not_depend_on_the_order_of_the_cases() -> None:
    cases = make_cases(20)
    forward, backward = (assign_roles(make_request(), order) for order in (cases, cases[::-1]))

    assert {case.id for case in forward.test} == {case.id for case in backward.test}
    assert forward.initial(3, seed=1) == backward.initial(3, seed=1)


def test_initial_labels_differ_between_seeds() -> None:
    roles = assign_roles(make_request(), make_cases(40))

    drawn = [{case.id for case in roles.initial(4, seed)} for seed in range(3)]
    assert drawn[0] != drawn[1] != drawn[2]
    assert all(len(ids) == 4 for ids in drawn)
    assert drawn[0] <= {case.id for case in roles.pool}


def test_defaults_are_a_fifth_and_a_tenth_within_limits() -> None:
    sizes = {}
    for count in (10, 80):
        roles = assign_roles(make_request(), make_cases(count))
        sizes[count] = (len(roles.test), len(roles.validation))
    assert sizes == {10: (2, 1), 80: (10, 8)}


def test_too_few_cases_are_refused_with_the_number_needed() -> None:
    with pytest.raises(MedsegError, match="4 initial labels and 3 rounds of 2 need 10 cases, 5 of 8 are left"):
        assign_roles(make_request(initial=4, rounds=3, per_round=2, test=2, validation=1), make_cases(8))


def test_id_that_the_server_refuses_is_named() -> None:
    with pytest.raises(MedsegError, match="case 'a b'"):
        assign_roles(make_request(), [Case("a b", Path("i.nii.gz"), Path("l.nii.gz")), *make_cases(9)])

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.errors import MedsegError
from medseg.phantoms.study import FLAT, write_dataset
from medseg.simulation.request import SimulationRequest


def make_request(**changes: object) -> SimulationRequest:
    return SimulationRequest(**{"method": "supervised", "data": (), "out": Path("out"), **changes})


def test_settings_are_passed_as_the_server_reads_them() -> None:
    request = make_request(iterations=40, scale=0.5, settings={"patch": (16, 16, 8), "width": 4})

    assert request.method_settings() == {"iterations": "40", "scale": "0.5", "patch": "16,16,8", "width": "4"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": -1}, "--rounds is -1; give at least 0"),
        ({"per_round": 0}, "--per-round is 0; give at least 1"),
        ({"strategies": ()}, "--strategies is empty"),
        ({"strategies": ("random", "random")}, "name each strategy once"),
        ({"strategies": ("../x",)}, "there is no strategy"),
        ({"preset": "huge"}, "has no preset 'huge'"),
        ({"settings": {"widht": 4}}, "did you mean width"),
        ({"method": "none"}, "there is no method"),
    ],
)
def test_bad_requests_are_refused_with_the_value(changes: dict[str, object], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        make_request(**changes).check()


def test_cases_without_a_mask_are_left_out(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 5, labelled=3, options=FLAT)

    cases, labels = make_request(data=(tmp_path / "data",)).load()

    assert len(cases) == 3
    assert list(labels.values()) == [1]


def test_rounds_and_strategies_are_no_part_of_the_identity() -> None:
    small, large = make_request(rounds=1), make_request(rounds=5, strategies=("random", "first"), seeds=3)

    assert small.identity() == large.identity()
    assert small.identity() != make_request(iterations=7).identity()

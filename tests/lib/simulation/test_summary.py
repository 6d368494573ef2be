from __future__ import annotations

from pathlib import Path

import pytest

from medseg.cases import Case
from medseg.simulation.request import SimulationRequest
from medseg.simulation.roles import Roles
from medseg.simulation.summary import area_under, summarise


def make_rounds(qualities: list[float]) -> list[dict]:
    return [{"labels": 4 + 2 * i, "test": {"quality": quality}} for i, quality in enumerate(qualities)]


def test_area_is_the_mean_quality_over_the_labels() -> None:
    assert area_under([(4, 0.5), (6, 0.7), (10, 0.9)]) == pytest.approx((2 * 0.6 + 4 * 0.8) / 6)
    assert area_under([(4, 0.5)]) == 0.5


def test_summary_has_a_curve_per_strategy_and_seed_and_their_spread() -> None:
    request = SimulationRequest("supervised", (), Path("out"), ("random", "first"), rounds=1, seeds=2)
    case = Case("a", Path("a.nii.gz"))
    roles = Roles((case,), (), ())
    curves = {
        ("random", 0): make_rounds([0.4, 0.6]),
        ("random", 1): make_rounds([0.4, 0.8]),
        ("first", 0): make_rounds([0.5, 0.5]),
    }

    summary = summarise(request, roles, {"organ": 1}, curves)

    assert [(c["strategy"], c["seed"], round(c["area"], 3)) for c in summary["curves"]] == [
        ("random", 0, 0.5),
        ("random", 1, 0.6),
        ("first", 0, 0.5),
    ]
    assert summary["strategies"]["random"]["final"]["mean"] == pytest.approx(0.7)
    assert summary["strategies"]["random"]["final"]["sd"] == pytest.approx(0.02**0.5)
    assert summary["strategies"]["first"]["area"] == {"mean": 0.5, "sd": 0.0}
    assert summary["metric"] == "dice"
    assert summary["cases"]["test"] == ["a"]

from __future__ import annotations

import numpy as np
import pytest
import torch

from medseg.errors import UnusableInputError
from medseg.methods.dram.extents import (
    SCORE_TABLES,
    ExtentRule,
    extents_of_mask,
    extents_of_weak,
    measured_percent,
    parse_table,
)
from medseg.transforms.regions import region_names
from medseg.weak import WeakLabels

NAMES = region_names([1, 2, 3, 4, 5, 6])


def told(weak: dict[str, object], rule: ExtentRule | None = None) -> torch.Tensor:
    return extents_of_weak(WeakLabels.model_validate(weak), NAMES, rule or ExtentRule(), "image x").stacked()


def test_intervals_percentages_scores_and_missing_regions() -> None:
    low, high, weight = told({"extent": {"1": [10, 25], "left_upper": 40}, "scores": {"6": 2, "1": 5}})

    assert (float(low[1]), float(high[1])) == pytest.approx((0.10, 0.25))  # an extent wins over a score
    assert (float(low[3]), float(high[3])) == pytest.approx((0.3895, 0.4105))
    assert (float(low[6]), float(high[6])) == pytest.approx((0.05, 0.25))
    assert weight.nonzero()[:, 0].tolist() == [1, 3, 6]


def test_small_extents_have_small_tolerance_and_nothing_is_exactly_nothing() -> None:
    rule = ExtentRule()

    assert rule.exact(0.0) == (0, 0)
    assert rule.exact(0.5) == pytest.approx((0.0035, 0.0065))
    assert rule.exact(100.0)[1] == 1


def test_a_region_that_is_not_there() -> None:
    with pytest.raises(
        UnusableInputError, match=r"image x: there is no region '9' in the region mask; it has 1 \(left"
    ):
        told({"extent": {"9": 5}})


def test_one_region_by_number_and_by_name() -> None:
    assert told({"extent": {"1": 5, "left_lower": 5}})[2].nonzero()[:, 0].tolist() == [1]
    with pytest.raises(UnusableInputError, match=r"image x: '1' and 'Left lower' are one region, but say 5\.0 and 40"):
        told({"extent": {"1": 5, "Left lower": 40}})


@pytest.mark.parametrize(("percent", "score"), [(0, 0), (0.99, 0), (1, 1), (24.9, 2), (25, 3), (75, 5), (100, 5)])
def test_covid_scores(percent: float, score: int) -> None:
    assert ExtentRule().score_of(percent) == score


def test_tables_by_name_and_by_numbers() -> None:
    assert parse_table("emphysema") == SCORE_TABLES["emphysema"]
    assert parse_table("0,2,5,25,50,75,100")[1] == 2
    with pytest.raises(UnusableInputError, match="7 ascending per cents"):
        parse_table("0,5,3,25,50,75,100")


def test_measured_percent_by_hand() -> None:
    regions = np.array([1, 1, 1, 1, 2, 0], np.uint8)
    lesion = np.array([1, 0, 0, 0, 1, 1], bool)

    assert measured_percent(lesion, regions) == {1: 25.0, 2: 100.0}


def test_kinds_of_telling() -> None:
    percent = {1: 30.0, 2: 0.0}
    exact = extents_of_mask(percent, ExtentRule(), "exact", 0.3, "a").stacked()
    score = extents_of_mask(percent, ExtentRule(), "score", 0.3, "a").stacked()
    noisy = extents_of_mask(percent, ExtentRule(), "noisy", 0.3, "a").stacked()

    assert (float(exact[0, 1]), float(exact[1, 1])) == pytest.approx((0.2895, 0.3105))
    assert (float(score[0, 1]), float(score[1, 1])) == pytest.approx((0.25, 0.5))
    assert float(noisy[1, 1] - noisy[0, 1]) > 0.1
    assert float(noisy[1, 2]) == pytest.approx(0.01)
    assert torch.equal(noisy, extents_of_mask(percent, ExtentRule(), "noisy", 0.3, "a").stacked())
    assert not torch.equal(noisy, extents_of_mask(percent, ExtentRule(), "noisy", 0.3, "b").stacked())

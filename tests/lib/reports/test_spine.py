from __future__ import annotations

import numpy as np
import pytest

from medseg.phantoms.spines import make_spine
from medseg.reports.spine import AngleLines, SpinePicture, bland_altman, draw_spine_picture, limits_of_agreement


def test_limits_by_hand() -> None:
    bias, (low, high) = limits_of_agreement(np.array([3.0, 5, 7]), np.array([2.0, 2, 2]))

    assert bias == 3
    assert (low, high) == pytest.approx((3 - 1.96 * 2, 3 + 1.96 * 2))
    assert limits_of_agreement(np.array([4.0]), np.array([1.0])) == (3, (3, 3))


def test_one_panel_per_angle_with_bias_and_limits() -> None:
    figure = bland_altman({"max": ([3, 5, 7], [2, 2, 2]), "second": ([1, 2], [1, 2])})

    assert [axes.get_title() for axes in figure.axes] == ["max", "second"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["+3.0", "-0.9", "+6.9"]


def test_vertebrae_end_plates_and_lines_lie_where_they_were_found() -> None:
    spine = make_spine(1)
    lines = np.array([[[10.0, 20], [60, 30]], [[10, 200], [60, 190]]])
    picture = SpinePicture(
        spine.image, spine.corners, ["T1", "T2"], [AngleLines("max 41 deg", lines)], (1.0, 2.0), "case", ["a warning"]
    )

    figure = draw_spine_picture(picture)

    plain, drawn = figure.axes
    assert len(plain.lines) == 0
    assert len(drawn.lines) == 17 * 3 + 2
    assert np.allclose(drawn.lines[1].get_xydata(), spine.corners[0, :2])
    assert np.allclose(drawn.lines[-2].get_xydata(), lines[0])
    assert [text.get_text() for text in drawn.texts] == ["T1", "T2"]
    assert drawn.get_aspect() == 2.0
    assert figure.legends[0].get_texts()[0].get_text() == "max 41 deg"
    assert figure.get_suptitle() == "case\na warning"

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.methods.base import Measurement, Prediction
from medseg.methods.seg4reg.geometry import Limits
from medseg.methods.seg4reg.pictures import agreement_blocks, spine_figure
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.phantoms.spines import make_spine
from medseg.reports.page import Fold, Plot


@pytest.mark.parametrize(("vertebrae", "lines"), [(17, 2 * 3), (12, 0)])
def test_lines_are_drawn_only_where_the_count_is_believed(vertebrae: int, lines: int) -> None:
    spine = make_spine(2, (384, 1024))
    mask = (draw_spine(spine.corners[:vertebrae], (384, 1024)) == VERTEBRA).astype(np.uint8)
    image = MetaTensor(torch.from_numpy(spine.image)[None].float(), affine=torch.eye(3))
    prediction = Prediction(None, mask=MetaTensor(torch.from_numpy(mask)[None], affine=torch.eye(3)))

    figure = spine_figure(prediction, image, "case", Limits(), refine=False)

    assert figure is not None
    assert len(figure.axes[1].lines) == 3 * vertebrae + lines
    assert figure.axes[1].texts[0].get_text() == ("T1" if vertebrae == 17 else "1")


def test_the_reported_angles_and_those_of_the_mask_are_told_apart() -> None:
    spine = make_spine(2, (384, 1024))
    mask = (draw_spine(spine.corners, (384, 1024)) == VERTEBRA).astype(np.uint8)
    image = MetaTensor(torch.from_numpy(spine.image)[None].float(), affine=torch.eye(3))
    said = {
        f"cobb_{name}": Measurement(value, "deg") for name, value in (("max", 41.0), ("second", 20.0), ("third", 9.0))
    }
    drawn = MetaTensor(torch.from_numpy(mask)[None], affine=torch.eye(3))
    facts = {"cobb_source": "geometry and regression"}

    figure = spine_figure(
        Prediction(None, mask=drawn, measurements=said, facts=facts), image, "case", Limits(), refine=False
    )

    assert figure is not None
    reported = "reported: max 41.0, second 20.0, third 9.0 deg (from geometry and regression)"
    assert figure.get_suptitle() == f"case\n{reported}"
    (legend,) = figure.legends
    assert all("in the mask" in text.get_text() for text in legend.get_texts())


def test_no_mask_no_picture() -> None:
    image = MetaTensor(torch.zeros(1, 40, 80), affine=torch.eye(3))

    assert spine_figure(Prediction(None), image, "", Limits(), refine=False) is None


def test_agreement_of_an_arm() -> None:
    cases = {
        name: {"found_max": 40.0 + k, "true_max": 40.0, "found_second": 9.0, "true_second": 10.0, "smape": 2.5}
        for k, name in enumerate("ab")
    }

    plot, fold = agreement_blocks(cases)

    assert isinstance(plot, Plot)
    assert [axes.get_title() for axes in plot.figure.axes] == ["max", "second"]
    assert isinstance(fold, Fold)
    assert not isinstance(fold.content, Plot)
    assert [fold.content.rows[1][0], *map(float, fold.content.rows[1][1:3])] == ["b", 41, 40]
    assert "Left out" not in plot.caption
    assert agreement_blocks({"a": {"smape": 1.0}}) == []


def test_cases_without_an_answer_agree_with_nothing() -> None:
    one = {"found_max": 40.0, "true_max": 40.0}
    cases = {"a": one, "b": one, "c": {"found_max": 90.0, "true_max": 10.0, "missed": 1.0}}

    plot, fold = agreement_blocks(cases)

    assert isinstance(plot, Plot)
    points = plot.figure.axes[0].collections[0].get_offsets()
    assert len(points) == 2
    assert plot.caption.endswith("Left out: 1 of 3 cases for which the method gives no angles.")
    assert isinstance(fold, Fold)
    assert len(fold.content.rows) == 3

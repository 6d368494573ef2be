from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case, load_cases
from medseg.methods.seg4reg.targets import GAP, VERTEBRA, close_gaps, draw_spine, given_angles, read_truth
from medseg.metrics.quads import quads_of_mask
from medseg.phantoms.spines import make_spine
from medseg.transforms.io import read_image
from medseg.weak import WeakLabels


def spine_case(corners: np.ndarray, angles: dict[str, float] | None = None, unit: str = "px") -> Case:
    landmarks = {str(k): (float(x), float(y)) for k, (x, y) in enumerate(corners.reshape(-1, 2))}
    return Case("a", Path("a.png"), weak=WeakLabels(angles=angles or {}, landmarks=landmarks, landmark_unit=unit))


def picture(spacing: tuple[float, float] = (1.0, 1.0)) -> MetaTensor:
    return MetaTensor(torch.zeros(1, 192, 512), affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))


def test_corners_alone_give_the_angles() -> None:
    spine = make_spine(3)

    found = read_truth(spine_case(spine.corners), picture())

    assert found.learnt == pytest.approx(spine.angles)
    assert found.angles == pytest.approx(spine.angles)


def test_points_in_millimetres_of_flat_pixels_give_the_same_angles() -> None:
    spine = make_spine(3)
    case = spine_case(spine.corners * 0.3, unit="mm")

    found = read_truth(case, picture((0.15, 0.3)))  # twice as many pixels along x

    assert found.corners is not None
    assert np.allclose(found.corners, spine.corners * [2, 1])
    assert found.learnt == pytest.approx(spine.angles)


def test_swapped_corners_are_repaired_and_their_angles_recomputed() -> None:
    spine = make_spine(2)
    mixed = spine.corners.copy()
    mixed[8] = mixed[8][[2, 3, 0, 1]][[1, 0, 3, 2]]
    stored = read_truth(spine_case(mixed), picture()).angles

    found = read_truth(spine_case(mixed, {f"angle_{k + 1}": a for k, a in enumerate(stored)}), picture())

    assert found.angles[0] > 170
    assert found.learnt == pytest.approx(spine.angles)
    assert found.remarks == ("repaired: swapped corners in 1 vertebrae",)


def test_a_readers_own_angles_stay() -> None:
    spine = make_spine(2)
    mixed = spine.corners.copy()
    mixed[8] = mixed[8][[2, 3, 0, 1]][[1, 0, 3, 2]]

    found = read_truth(spine_case(mixed, {"max": 30.0, "second": 11.0, "third": 2.0}), picture())

    assert found.learnt.tolist() == [30, 11, 2]


def test_faulty_corners_take_the_angles_computed_from_them_along() -> None:
    corners = make_spine(2).corners
    corners[5] = corners[4] + 1
    stored = read_truth(spine_case(corners), picture()).angles

    found = read_truth(spine_case(corners, {f"angle_{k + 1}": a for k, a in enumerate(stored)}), picture())

    assert found.corners is None
    assert np.isnan(found.learnt).all()
    assert found.angles == pytest.approx(stored)
    assert "lie on each other" in found.remarks[0]


def test_names_of_angles() -> None:
    def angles(**named: float) -> list[float]:
        return given_angles(Case("a", Path("a"), weak=WeakLabels(angles=named))).tolist()

    assert angles(angle_1=30, angle_2=20, angle_3=10) == angles(max=30, second=20, third=10) == [30, 20, 10]
    assert angles(PT=12, MT=41, TL=25)[0] == 41
    assert np.isnan(angles(PT=12, MT=41, TL=25)[1:]).all()
    assert np.isnan(angles(MT=41)).all()


def test_drawn_vertebrae_stay_apart_even_where_they_touch() -> None:
    corners = make_spine(1, (384, 1024)).corners.copy()
    corners[4:, :, 1] -= (corners[4, :2, 1] - corners[3, 2:, 1]).mean() + 1  # the fifth touches the fourth

    classes = draw_spine(corners, (384, 1024))

    assert len(quads_of_mask(classes == VERTEBRA)) == 17
    assert set(np.unique(classes)) == {0, 1, 2}
    assert (classes == GAP).sum() > 500


def test_gaps_of_a_drawn_mask() -> None:
    spine = make_spine(1)
    mask = draw_spine(spine.corners, (192, 512)) == VERTEBRA

    classes = close_gaps(mask, quads_of_mask(mask).corners)

    assert ((classes == VERTEBRA) == mask).all()
    between = np.rint((spine.corners[:-1, 2:].mean(axis=1) + spine.corners[1:, :2].mean(axis=1)) / 2).astype(int)
    assert (classes[tuple(between.T)] == GAP).all()


def test_faulty_labels_of_the_challenge_are_found(data_dir: Path) -> None:
    cases = load_cases(data_dir / "spine_xray")
    image = read_image(cases[0].image)
    found: Counter[str] = Counter()
    for case in cases:
        truth = read_truth(case, image)  # all are 1024 pixels high, nothing else of the image counts
        kind = "good" if not truth.remarks else "repaired" if truth.corners is not None else "dropped"
        found[kind] += 1

    assert found == {"good": 438, "repaired": 18, "dropped": 10}
    assert len({c.patient for c in cases}) == 215  # seventeen pictures of one series are one patient

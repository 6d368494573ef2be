from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import UnusableInputError
from medseg.phantoms.chest import make_chest
from medseg.transforms.regions import SIDES, THIRDS, lungs_of_hu, name_regions, region_id, split_sides, split_thirds


def two_lungs(axis: int = 0, bridge: bool = False) -> np.ndarray:
    lungs = np.zeros((20, 14, 9), bool)
    lungs[2:8, 2:12] = lungs[12:18, 2:12] = True
    if bridge:
        lungs[8:12, 6:8] = True
    return lungs if axis == 0 else lungs.transpose(1, 0, 2)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("bridge", [False, True])
def test_sides_whether_lungs_touch_or_lie_along_the_other_axis(axis: int, bridge: bool) -> None:
    lungs = two_lungs(axis, bridge)

    sides = split_sides(lungs)
    sides = sides if axis == 0 else sides.transpose(1, 0, 2)

    assert np.unique(sides[2:8, 2:12]).tolist() == [1]
    assert np.unique(sides[12:18, 2:12]).tolist() == [2]
    assert np.array_equal(sides > 0, two_lungs(0, bridge))


def test_thirds_have_equal_height() -> None:
    regions = split_thirds(two_lungs())

    assert [np.unique(regions[3, 3, z]).item() for z in range(9)] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [np.unique(regions[14, 3, z]).item() for z in range(9)] == [4, 4, 4, 5, 5, 5, 6, 6, 6]


def test_an_empty_mask_gives_no_region() -> None:
    assert not split_thirds(np.zeros((4, 4, 4), bool)).any()


def test_lungs_of_a_phantom_in_hu() -> None:
    chest = make_chest(0, percent=[0, 5, 0, 10, 0, 0])

    found, true = lungs_of_hu(chest.image), chest.mask > 0

    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.9


def test_region_ids_by_number_and_name() -> None:
    present = {1: "left_lower", 4: "right_lower"}

    assert region_id("4", present, "row 1") == 4
    assert region_id("Left lower", present, "row 1") == 1
    with pytest.raises(UnusableInputError, match=r"row 1: there is no region '2'.*1 \(left_lower\), 4"):
        region_id("2", present, "row 1")


@pytest.mark.parametrize(
    ("scheme", "dtype", "names"),
    [
        ("auto", np.uint8, THIRDS),
        ("thirds", np.uint8, THIRDS),
        ("sides", np.uint8, SIDES),
        ("sides", bool, SIDES),
        ("dram", bool, THIRDS),
        ("dram", np.int16, {"right_upper": 3}),
    ],
)
def test_a_mask_with_one_id_obeys_the_scheme(scheme: str, dtype: type, names: dict[str, int]) -> None:
    mask = two_lungs() if dtype is bool else two_lungs().astype(dtype) * 3

    regions, found = name_regions(mask, scheme)

    assert {name: index for index, name in found.items()} == names
    assert sorted(np.unique(regions[regions > 0]).tolist()) == sorted(names.values())


def test_names_of_several_ids() -> None:
    regions = np.array([[[0, 1, 2]]], np.int32)

    assert name_regions(regions)[1] == {1: "left", 2: "right"}
    assert name_regions(regions, "lungmask")[1] == {1: "left_upper", 2: "left_lower"}
    assert name_regions(regions + 6 * (regions > 0))[1] == {7: "", 8: ""}

from __future__ import annotations

import numpy as np
import pytest

from medseg.errors import MedsegError
from medseg.phantoms.chest import make_chest, true_percent
from medseg.transforms.regions import split_thirds


def test_percentages_are_exact_to_one_voxel() -> None:
    wanted = [0, 3, 50, 12.5, 0, 100]

    chest = make_chest(1, percent=wanted)

    for index, percent in true_percent(chest).items():
        size = int((chest.regions == index).sum())
        assert abs(percent - wanted[index - 1]) <= 50.001 / size


def test_regions_are_the_thirds_of_the_lungs() -> None:
    chest = make_chest(2)

    assert np.array_equal(split_thirds(chest.mask > 0), chest.regions)


def test_same_seed_same_phantom() -> None:
    one, same, other = make_chest(3), make_chest(3), make_chest(4)

    assert np.array_equal(one.image, same.image)
    assert not np.array_equal(one.image, other.image)


def test_no_threshold_finds_the_lesions_alone() -> None:
    chest = make_chest(5, percent=[10, 0, 5, 0, 20, 0])
    lungs, lesion = chest.mask > 0, chest.mask == 2
    values = chest.image[lungs]
    best = 0.0
    for cut in np.quantile(values, np.linspace(0.5, 0.99, 50)):
        found = (chest.image > cut) & lungs
        best = max(best, (found & lesion).sum() / (found | lesion).sum())

    assert 0.3 < best < 0.8


def test_bad_arguments() -> None:
    with pytest.raises(MedsegError, match="at least 16 x 16 x 6"):
        make_chest(0, (8, 8, 8))
    with pytest.raises(MedsegError, match="6 numbers"):
        make_chest(0, percent=[101, 0, 0, 0, 0, 0])

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.cases import load_cases
from medseg.errors import MedsegError
from medseg.metrics.cobb import tilts
from medseg.phantoms.spines import make_spine, write_spines


def test_vertebrae_have_the_tilts_asked_for() -> None:
    wanted = np.linspace(-20, 30, 17)

    spine = make_spine(5, tilts=wanted)

    assert tilts(spine.corners) == pytest.approx(wanted)
    assert spine.angles[0] == pytest.approx(50)


def test_equal_seeds_give_equal_phantoms_inside_the_picture() -> None:
    one, same, other = make_spine(1), make_spine(1), make_spine(2)

    assert np.array_equal(one.image, same.image)
    assert not np.array_equal(one.image, other.image)
    assert one.image.shape == (192, 512)
    for spine in (one, other):
        assert spine.corners.min() > 0
        assert (spine.corners.max(axis=(0, 1)) < (192, 512)).all()


def test_vertebrae_are_brighter_than_what_is_around() -> None:
    spine = make_spine(4)
    inside = [spine.image[tuple(np.rint(centre).astype(int))] for centre in spine.corners.mean(axis=1)]

    assert np.mean(inside) > spine.image.mean() + 40


@pytest.mark.parametrize("tilts", [np.zeros(16), np.full(17, 70.0)])
def test_refuses_other_profiles(tilts: np.ndarray) -> None:
    with pytest.raises(MedsegError, match="needs 17 tilts within 60"):
        make_spine(0, tilts=tilts)


def test_a_written_set_is_read_with_its_angles_and_landmarks(tmp_path: Path) -> None:
    cases = load_cases(write_spines(tmp_path, 2))

    spine, weak = make_spine(1), cases[1].weak
    assert weak is not None
    assert (cases[1].patient, len(cases)) == ("p1", 2)
    assert list(weak.angles.values()) == pytest.approx(spine.angles, abs=1e-3)
    assert weak.landmarks["67"] == pytest.approx(tuple(spine.corners[16, 3]), abs=1e-3)

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.files import read_json
from medseg.phantoms.study import FLAT, write_dataset
from medseg.simulation.study import build_study, write_truth
from medseg.transforms.io import read_mask


def test_study_holds_all_images_and_only_the_first_labels(tmp_path: Path) -> None:
    cases = load_cases(write_dataset(tmp_path / "data", 3, options=FLAT))
    truth = write_truth(tmp_path / "truth", cases)
    build_study(tmp_path / "studies", cases, [cases[0].id], truth, {"organ": 1})

    found = load_cases(tmp_path / "studies")
    assert [case.id for case in found] == [case.id for case in cases]
    assert [case.label is not None for case in found] == [True, False, False]
    assert read_json(tmp_path / "studies" / "labels.json") == {"organ": 1}
    assert np.array_equal(read_mask(found[0].label), read_mask(cases[0].label))


def test_images_are_links_and_labels_are_copies(tmp_path: Path) -> None:
    cases = load_cases(write_dataset(tmp_path / "data", 1, options=FLAT))
    truth = write_truth(tmp_path / "truth", cases)
    build_study(tmp_path / "studies", cases, [cases[0].id], truth, {"organ": 1})

    (found,) = load_cases(tmp_path / "studies")
    assert os.path.samefile(found.image, cases[0].image)
    assert not os.path.samefile(found.label, truth[cases[0].id])


def test_truth_of_a_picture_mask_of_0_and_255_has_label_1(tmp_path: Path) -> None:
    mask = np.zeros((6, 4), np.uint8)
    mask[2:, 1:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")

    truth = write_truth(tmp_path / "truth", [Case("a", tmp_path / "mask.png", tmp_path / "mask.png")])

    assert truth["a"].name == "a.png"
    assert np.array_equal(np.array(Image.open(truth["a"])), mask // 255)


def test_mask_beyond_8_bits_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(tmp_path / "mask.png")

    with pytest.raises(MedsegError, match="case a holds label 300; at most 255"):
        write_truth(tmp_path / "truth", [Case("a", tmp_path / "mask.png", tmp_path / "mask.png")])

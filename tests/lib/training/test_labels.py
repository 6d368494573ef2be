from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.methods import method_class
from medseg.training.labels import find_labels, labels_of_masks
from medseg.transforms.io import write_volume


def mask_case(folder: Path, name: str, value: int) -> Case:
    mask = MetaTensor(torch.full((1, 4, 4), value, dtype=torch.uint8), affine=torch.eye(3))
    return Case(name, Path("x.png"), write_volume(folder / f"{name}.png", mask))


def test_names_come_from_the_folders(tmp_path: Path) -> None:
    write_json(tmp_path / "one" / "labels.json", {"lv": 1, "rv": 2})
    write_json(tmp_path / "two" / ".medseg" / "labels.json", {"rv": 2, "myo": 3})

    assert find_labels([tmp_path / "one", tmp_path / "two"], []) == {"lv": 1, "rv": 2, "myo": 3}


def test_folders_that_disagree_are_one_sentence(tmp_path: Path) -> None:
    write_json(tmp_path / "one" / "labels.json", {"lv": 1})
    write_json(tmp_path / "two" / "labels.json", {"lv": 2})

    with pytest.raises(MedsegError, match="numbers label 'lv' 2, another data set 1"):
        find_labels([tmp_path / "one", tmp_path / "two"], [])


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"a": "x"}'])
def test_broken_names_file_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)

    with pytest.raises(MedsegError, match=r"labels\.json must hold \{\"name\": 1"):
        find_labels([tmp_path], [])


def test_numbers_come_from_the_masks_where_nothing_is_named(tmp_path: Path) -> None:
    damaged = Case("d", Path("x.png"), tmp_path / "d.png")
    damaged.label.write_bytes(b"x")
    missing = Case("m", Path("x.png"), tmp_path / "nowhere.png")
    cases = [mask_case(tmp_path, "a", 1), damaged, missing, Case("u", Path("x.png")), mask_case(tmp_path, "b", 3)]

    assert find_labels([tmp_path], cases) == {"label_1": 1, "label_2": 2, "label_3": 3}


def test_empty_masks_tell_nothing(tmp_path: Path) -> None:
    assert labels_of_masks([mask_case(tmp_path, "a", 0)]) == {}
    with pytest.raises(
        MedsegError, match=r"no mask tells the labels that caml should learn; add masks or a labels\.json"
    ):
        method_class("caml").fit_labels({})

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError, UnusableInputError
from medseg.files import write_json
from medseg.methods import method_class
from medseg.training.labels import are_instances, find_labels, labels_of_masks, name_labels
from medseg.transforms.io import read_image, write_volume
from medseg.transforms.labels import read_label


def mask_case(folder: Path, name: str, value: int) -> Case:
    mask = MetaTensor(torch.full((1, 4, 4), value, dtype=torch.uint8), affine=torch.eye(3))
    return Case(name, Path("x.png"), write_volume(folder / f"{name}.png", mask))


def test_names_come_from_the_folders(tmp_path: Path) -> None:
    write_json(tmp_path / "one" / "labels.json", {"lv": 1, "rv": 2})
    write_json(tmp_path / "two" / ".medseg" / "labels.json", {"rv": 2, "myo": 3})

    assert find_labels([tmp_path / "one", tmp_path / "two"], []) == {"lv": 1, "rv": 2, "myo": 3}


def test_folders_that_number_a_name_differently_share_it(tmp_path: Path) -> None:
    write_json(tmp_path / "one" / "labels.json", {"lv": 1, "wall": 2})
    write_json(tmp_path / "two" / "labels.json", {"rv": 1, "lv": 2})

    assert find_labels([tmp_path / "one", tmp_path / "two"], []) == {"lv": 1, "wall": 2, "rv": 3}


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


def data_set(folder: Path, values: list[int], names: dict[str, object] | None = None, tag: str = "") -> Path:
    """A data set of pictures whose masks hold the values 1..n."""
    for index, value in enumerate(values):
        rows = torch.arange(16, dtype=torch.uint8).clamp_max(value).reshape(1, 4, 4)
        for kind in ("images", "labels"):
            write_volume(folder / kind / f"{tag}{index}.png", MetaTensor(rows, affine=torch.eye(3)))
    if names:
        write_json(folder / "labels.json", names)
    return folder


def merging(merges: bool) -> type:
    kind = method_class("supervised")
    return type("Kind", (kind,), {"merges_instances": merges})


def test_one_data_set_without_names_keeps_its_numbers(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "spine", [7, 5])
    cases, labels = name_labels([folder], load_cases(folder))

    assert list(labels.items()) == [(f"label_{n}", n) for n in range(1, 8)]
    assert all(case.names is None for case in cases)


def test_data_sets_without_names_keep_their_labels_apart(tmp_path: Path) -> None:
    folders = [data_set(tmp_path / "heart", [3, 3], tag="h"), data_set(tmp_path / "hip", [1], tag="p")]
    cases, labels = name_labels(folders, load_cases(folders))

    assert labels == {"heart_1": 1, "heart_2": 2, "heart_3": 3, "hip_1": 4}
    truth = read_label(cases[-1], read_image(cases[-1].image), labels)
    assert sorted(set(truth.flatten().tolist())) == [0, 4]


def test_one_name_in_two_data_sets_is_one_label(tmp_path: Path) -> None:
    folders = [
        data_set(tmp_path / "ankle", [2], {"tibia": 1, "talus": 2}, "a"),
        data_set(tmp_path / "knee", [2], {"femur": 1, "tibia": 2}, "k"),
    ]
    cases, labels = name_labels(folders, load_cases(folders))

    assert labels == {"tibia": 1, "talus": 2, "femur": 3}
    knee = read_label(cases[1], read_image(cases[1].image), labels).flatten()
    assert knee.tolist() == [0, 3, *[1] * 14]  # value 1 is the femur, 2 the tibia


def test_instances_are_one_label_for_methods_that_merge_them(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "spine", [7, 5])

    assert name_labels([folder], load_cases(folder), merging(False))[1]["label_7"] == 7
    cases, labels = name_labels([folder], load_cases(folder), merging(True))
    assert labels == {"label_1": 1}
    assert read_label(cases[0], read_image(cases[0].image), labels).flatten().tolist() == [0, *[1] * 15]


def test_names_may_join_values_for_every_method(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "spine", [3], {"body": [1, 2, 3]})
    cases, labels = name_labels([folder], load_cases(folder))

    assert labels == {"body": 1}
    assert read_label(cases[0], read_image(cases[0].image), labels).max() == 1


@pytest.mark.parametrize(
    ("masks", "instances"),
    [
        ([{1, 2, 3}, {1, 2}], True),
        ([{1, 2, 3}, {1, 2, 3}], False),  # every case has all organs
        ([{1, 2, 3, 5}, {1, 2}], False),  # organs that are not in the field of view leave gaps
        ([{1, 2}, {1}], False),
        ([set(), {1, 2, 3}, {1}], True),
    ],
)
def test_what_counts_as_instances(masks: list[set[int]], instances: bool) -> None:
    assert are_instances(masks) is instances


def test_value_without_a_name_is_refused(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "heart", [3], {"lv": 1, "rv": 2})
    (case,) = load_cases(folder)

    with pytest.raises(UnusableInputError, match="holds value 3, but the labels of its data set are lv, rv"):
        read_label(case, read_image(case.image), {"lv": 1, "rv": 2})
    assert read_label(case, read_image(case.image), {"lv": 1, "rv": 2}, strict=False).max() == 2


def test_unnamed_set_finds_its_labels_in_a_model_of_a_union(tmp_path: Path) -> None:
    (case,) = load_cases(data_set(tmp_path / "hip", [1]))

    assert read_label(case, read_image(case.image), {"heart_1": 1, "hip_1": 2}).max() == 2
    assert read_label(case, read_image(case.image), {"organ": 1}).max() == 1


def test_a_mask_that_lies_elsewhere_is_no_empty_mask(tmp_path: Path) -> None:
    far, near = torch.eye(4).double(), torch.eye(4).double()
    far[:3, 3] = -100.0
    image = MetaTensor(torch.zeros(1, 8, 8, 8), affine=far)
    marked = MetaTensor(torch.ones(1, 8, 8, 8, dtype=torch.uint8), affine=near)
    empty = MetaTensor(torch.zeros(1, 8, 8, 8, dtype=torch.uint8), affine=near)
    case, blank = (
        Case(name, Path("x.nii.gz"), write_volume(tmp_path / f"{name}.nii.gz", mask))
        for name, mask in (("a", marked), ("b", empty))
    )

    with pytest.raises(UnusableInputError, match="mask of a marks nothing inside its image"):
        read_label(case, image, {"organ": 1})
    assert not bool(read_label(blank, image, {"organ": 1}).any()), "an annotator may find nothing"

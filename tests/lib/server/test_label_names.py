from __future__ import annotations

import json
from pathlib import Path

import pytest
from filelock import FileLock

from medseg.errors import UnusableInputError
from medseg.server.label_names import FixedLabels, LabelRegistry, match


@pytest.fixture
def registry(tmp_path: Path) -> LabelRegistry:
    return LabelRegistry(tmp_path, FileLock(tmp_path / "lock"))


def test_fixed_labels_name_the_unknown_and_the_known() -> None:
    labels = FixedLabels({"liver": 1, "spleen": 2})
    assert labels.resolve([" LIVER", "background", "spleen"]) == {" LIVER": 1, "background": 0, "spleen": 2}
    assert (labels.name_of(2), labels.name_of(3)) == ("spleen", None)
    with pytest.raises(UnusableInputError, match=r"'tumour' is not known here; known names: 'liver', 'spleen'"):
        labels.resolve(["liver", "tumour"])


def test_a_name_that_fits_two_labels_is_not_guessed() -> None:
    assert match("AORTA", {"aorta": 1, "Aorta": 2}) is None
    assert match("Aorta", {"aorta": 1, "Aorta": 2}) == "Aorta"


def test_new_names_get_the_next_number_for_ever(registry: LabelRegistry, tmp_path: Path) -> None:
    assert registry.labels() == {}
    assert registry.resolve(["spleen", "liver"]) == {"spleen": 1, "liver": 2}
    assert registry.resolve(["kidney", "Liver"]) == {"kidney": 3, "Liver": 2}
    assert LabelRegistry(tmp_path, FileLock(tmp_path / "lock")).labels() == {"spleen": 1, "liver": 2, "kidney": 3}


def test_values_without_a_name_keep_their_number(registry: LabelRegistry) -> None:
    assert registry.name_of(2) == "label_2"
    assert registry.resolve(["label_2"]) == {"label_2": 2}
    assert registry.labels() == {"label_1": 1, "label_2": 2}
    assert registry.name_of(256) is registry.name_of(-1) is registry.name_of(0) is None


@pytest.mark.parametrize("content", ["", '{"liver": 1, "sp', "[]", '{"liver": 2}', '{"liver": "x"}'])
def test_a_damaged_file_is_rebuilt(registry: LabelRegistry, tmp_path: Path, content: str) -> None:
    registry.resolve(["liver", "spleen"])
    (tmp_path / "labels.json").write_text(content)
    assert registry.labels() == {"liver": 1, "spleen": 2}
    assert registry.resolve(["kidney"]) == {"kidney": 3}
    assert json.loads((tmp_path / "labels.json").read_text()) == {"liver": 1, "spleen": 2, "kidney": 3}


@pytest.mark.parametrize("name", ["image", "Label", "  "])
def test_reserved_names_are_refused(registry: LabelRegistry, name: str) -> None:
    with pytest.raises(UnusableInputError, match="reserved names"):
        registry.resolve(["liver", name])
    assert registry.labels() == {}


def test_no_more_labels_than_viewers_carry(registry: LabelRegistry) -> None:
    registry.resolve([f"x{i}" for i in range(255)])
    with pytest.raises(UnusableInputError, match="number 256; at most 255"):
        registry.resolve(["one more"])

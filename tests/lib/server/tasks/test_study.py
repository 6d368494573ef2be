from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.errors import MedsegError, NotFoundError
from medseg.methods import method_class
from medseg.server.settings import AppSettings
from medseg.server.tasks.study import fixed_labels


def test_labels_of_conf_win_over_those_of_the_study(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"scar": 2, "wall": 1}')

    assert fixed_labels(AppSettings(labels=("a", "b")), str(tmp_path)) == {"a": 1, "b": 2}
    assert fixed_labels(AppSettings(), str(tmp_path)) == {"wall": 1, "scar": 2}
    assert fixed_labels(AppSettings(), str(tmp_path / "elsewhere")) == {}


@pytest.mark.parametrize("text", ["{", "3", "[]", "[1, 2]", '{"a": 0}', '{"a": 1, "b": 3}', '{"a": "x"}', '["a", "a"]'])
def test_bad_labels_json_is_one_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)

    with pytest.raises(MedsegError, match=r"labels\.json"):
        fixed_labels(AppSettings(), str(tmp_path))


def test_values_that_nobody_named_become_labels(make_app: Any, tmp_path: Path) -> None:
    make_app()
    (tmp_path / "study" / "labels.json").unlink()
    mask = tmp_path / "study" / "labels" / "final" / "organ_001.nii.gz"
    image = nib.load(mask)
    data = np.asarray(image.dataobj).astype(np.uint8)
    data[0, 0, 0] = 3
    nib.save(nib.Nifti1Image(data, image.affine), mask)

    assert make_app().study.labels == {"label_1": 1, "label_2": 2, "label_3": 3}


def test_cases_know_mask_weak_labels_and_patient(make_app: Any) -> None:
    app = make_app(patient_pattern="(organ)_")
    app.datastore().update_image_info("organ_004", {"weak": {"extent": {"left": 30}, "domain": "ct"}})

    cases = {case.id: case for case in app.study.cases()}

    assert [bool(cases[f"organ_00{n}"].label) for n in range(5)] == [True, True, True, False, False]
    assert cases["organ_004"].weak.extent == {"left": 30}  # type: ignore[union-attr]
    assert cases["organ_004"].domain == "ct"
    assert {case.patient for case in cases.values()} == {"organ"}


def test_bad_weak_labels_of_another_program_do_not_stop_the_study(
    make_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    monkeypatch.setattr(app.study.datastore, "get_image_info", lambda _: {"weak": {"nonsense": 1}})

    assert [case.weak for case in app.study.cases()] == [None] * 5


def test_split_is_frozen_and_an_unknown_validation_id_is_named(make_app: Any) -> None:
    app = make_app(validation="organ_001")
    split = app.study.split(app.study.cases(), method_class("supervised"))
    assert [case.id for case in split.validation] == ["organ_001"]
    assert "organ_001" not in {case.id for case in split.training}
    roles = json.loads((app.study.folder / "split.json").read_text())
    assert roles["organ_001"] == "validation"

    with pytest.raises(NotFoundError, match="nobody"):
        make_app(validation="nobody").study.split(app.study.cases(), method_class("supervised"))


def test_unknown_images_are_not_found(make_app: Any) -> None:
    study = make_app().study

    for identifier in ("nope", ""):
        with pytest.raises(MedsegError):
            study.image(identifier)

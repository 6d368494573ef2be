from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import ConflictError


def score(app: Any, **options: Any) -> dict[str, Any]:
    reply: dict[str, Any] = app.scoring({"method": "supervised", **options})
    return reply


def test_scoring_needs_a_model(make_app: Any) -> None:
    app = make_app()

    assert app._scoring_methods["supervised"].due() == []
    with pytest.raises(ConflictError, match="no model yet"):
        score(app)


def test_unlabelled_images_are_scored_once(trained_app: Any) -> None:
    task = trained_app._scoring_methods["supervised"]
    assert task.due() == ["organ_003", "organ_004"]

    first, second = score(trained_app), score(trained_app)

    assert (first["scored"], first["up_to_date"], first["failed"]) == (2, 0, 0)
    assert (second["scored"], second["up_to_date"]) == (0, 2)
    assert task.due() == []
    stored = trained_app.study.scores("supervised").all()
    assert sorted(stored) == ["organ_003", "organ_004"]
    assert all(s.version == 1 and 0 <= (s.value or -1) <= 1 for s in stored.values())


def test_scores_are_deterministic(trained_app: Any) -> None:
    score(trained_app)
    before = trained_app.study.scores("supervised").all()

    assert score(trained_app, force=True)["scored"] == 2
    assert trained_app.study.scores("supervised").all() == before


def test_a_changed_image_and_a_new_one_are_due(trained_app: Any, tmp_path: Path) -> None:
    score(trained_app)
    changed = tmp_path / "study" / "organ_003.nii.gz"
    os.utime(changed, ns=(1, 1))
    (tmp_path / "study" / "organ_009.nii.gz").write_bytes(changed.read_bytes())
    trained_app.datastore().refresh()

    assert trained_app._scoring_methods["supervised"].due() == ["organ_003", "organ_009"]


def test_what_a_reader_says_of_an_image_makes_its_score_due(trained_app: Any, tmp_path: Path) -> None:
    score(trained_app)
    task, datastore = trained_app._scoring_methods["supervised"], trained_app.datastore()

    datastore.update_image_info("organ_003", {"weak": {"extent": {"1": 20.0}}})
    assert task.due() == ["organ_003"]
    assert score(trained_app)["scored"] == 1
    assert task.due() == []

    regions = tmp_path / "study" / "labels" / "regions"
    regions.mkdir(parents=True)
    (regions / "organ_004.nii.gz").write_bytes((tmp_path / "study" / "organ_004.nii.gz").read_bytes())
    datastore.refresh()
    assert task.due() == ["organ_004"]


def test_a_damaged_image_is_recorded_and_does_not_stop_the_others(trained_app: Any, tmp_path: Path) -> None:
    (tmp_path / "study" / "organ_003.nii.gz").write_bytes(b"x")

    result = score(trained_app)

    assert (result["scored"], result["failed"]) == (1, 1)
    failed = trained_app.study.scores("supervised").all()["organ_003"]
    assert failed.value is None
    assert "organ_003" in (failed.error or "")
    assert trained_app._scoring_methods["supervised"].due() == []


def test_the_datastore_is_not_written(trained_app: Any, tmp_path: Path) -> None:
    index = (tmp_path / "study" / "datastore_v2.json").read_bytes()

    score(trained_app)

    assert (tmp_path / "study" / "datastore_v2.json").read_bytes() == index

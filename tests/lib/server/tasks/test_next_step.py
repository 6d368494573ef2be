from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from medseg.server.tasks.next_step import next_step
from medseg.server.tasks.study import Study
from medseg.server.tasks.train_runs import TrainRuns


@pytest.fixture
def study(tmp_path: Any) -> Any:
    return SimpleNamespace(folder=tmp_path, labelled=lambda: [])


def step(study: Any, labelled: int = 0) -> str:
    study.labelled = lambda: [f"case_{n}" for n in range(labelled)]
    return next_step(cast(Study, study), "supervised")


def test_labels_come_first_then_the_training(study: Any) -> None:
    assert step(study, 0).startswith("no image is labelled; save at least 1 label (2,")
    assert step(study, 1) == "1 image is labelled; label 1 more, so that one can validate, then train it"
    assert step(study, 4) == "4 images are labelled; train it"


@pytest.mark.parametrize(
    ("method", "none", "one"),
    [
        ("caml", "no image is labelled; save at least 1 label (2,", "1 image is labelled; label 1 more"),
        ("multidomain", "no image is labelled; save at least 1 label (2,", "1 image is labelled; label 1 more"),
        ("dram", "it learns from extents or masks; once images have some, train it", "1 image is labelled; train it"),
        ("seg4reg", "it learns from angles or landmarks or masks; once images", "1 image is labelled; train it"),
        ("local_discrimination", "it learns from the images alone; train it", "it learns from the images alone; train"),
    ],
)
def test_only_who_needs_masks_is_told_to_label(study: Any, method: str, none: str, one: str) -> None:
    for labelled, said in enumerate((none, one)):
        study.labelled = lambda count=labelled: ["case"] * count
        assert next_step(cast(Study, study), method).startswith(said)


@pytest.mark.parametrize(
    ("state", "facts", "said"),
    [
        ("running", {}, "its first training is running; wait for it"),
        ("stopped", {}, "its training was stopped; train it again, which continues there"),
        ("failed", {"error": "the disk is full."}, "its training failed (the disk is full); mend that, then train"),
        ("done", {"decision": {"reason": "rejected: NaN"}}, "ended without one (rejected: NaN); train it again"),
    ],
)
def test_a_training_that_was_tried_tells_the_step(study: Any, state: str, facts: dict[str, Any], said: str) -> None:
    TrainRuns(study.folder / "supervised").record(state, **facts)

    assert said in step(study, 4)


def test_progress_of_the_first_training_is_told(study: Any) -> None:
    runs = TrainRuns(study.folder / "supervised")
    run = runs.open("mark")
    runs.record("running", run.path)
    (run.path / "progress.json").write_text('{"iteration": 40, "iterations": 200, "eta_seconds": 430.0}')

    assert step(study, 4) == "its first training is running at iteration 40 of 200, 7 min left; wait for it"

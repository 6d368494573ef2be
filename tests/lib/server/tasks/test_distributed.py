from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medseg.errors import ConflictError, MedsegError
from medseg.methods import method_class
from medseg.server.tasks import distributed
from medseg.server.tasks.distributed import job_from_dict, job_to_dict, most_processes, train_distributed
from medseg.training.run import TrainingJob
from medseg.training.run_folder import RunFolder


@pytest.fixture
def job(make_app: Any, tmp_path: Path) -> TrainingJob:
    app = make_app()
    split = app.study.split(app.study.cases(), method_class("supervised"))
    return TrainingJob(
        "supervised", app.settings.config("supervised"), app.study.labels, split.training, split.validation,
        tmp_path / "run", "cpu", False, (7,),
    )  # fmt: skip


def test_a_job_survives_json(job: TrainingJob) -> None:
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job


def test_a_failed_training_tells_the_runs_own_sentence(job: TrainingJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job.out.mkdir()
    (job.out / "progress.json").write_text('{"error": "loss became NaN"}')
    monkeypatch.setattr(distributed.sys, "executable", "/bin/false")

    with pytest.raises(MedsegError, match="loss became NaN"):
        train_distributed(job, 2)


def test_a_run_folder_in_use_is_told_before_any_process_starts(
    job: TrainingJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed.sys, "executable", "/bin/false")

    with RunFolder(job.out).locked(), pytest.raises(ConflictError, match="is in use by process"):
        train_distributed(job, 2)


@pytest.mark.parametrize(
    ("batches", "limit", "most"), [((2, 2), 3, 2), ((4, 4), 4, 4), ((6, 4), 8, 2), ((3,), 2, 1), ((1, 2), 2, 1)]
)
def test_processes_divide_every_batch(batches: tuple[int, ...], limit: int, most: int) -> None:
    assert most_processes(batches, limit) == most


@pytest.mark.slow
def test_two_processes_train_and_publish(make_app: Any) -> None:
    app = make_app()

    stats = app.train({"model": "supervised", "processes": 2, "device": "cpu", "patch": [32, 32, 16]})

    assert stats["decision"]["published"] is True
    (run,) = app._trainers["supervised"].runs.folders()
    assert json.loads((run / "metrics.json").read_text())["processes"] == 2

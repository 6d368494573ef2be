from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medseg.cases import load_cases
from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.files import read_json, write_json
from medseg.methods.supervised.method import Supervised
from medseg.phantoms.study import FLAT, write_dataset
from medseg.training import command
from medseg.training.command import TrainRequest, train_command
from medseg.training.run import TrainingJob
from medseg.training.split import SplitManifest, with_groups


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = replace(FLAT, shape=(24, 20))
    return write_dataset(tmp_path_factory.mktemp("flat") / "data", 9, labelled=7, options=options)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[TrainingJob]:
    """The jobs that would have been trained."""
    seen: list[TrainingJob] = []

    def remember(job: TrainingJob) -> dict[str, Any]:
        seen.append(job)
        return {}

    monkeypatch.setattr(command, "train", remember)
    return seen


def request(data: Path, out: Path, **more: Any) -> TrainRequest:
    return TrainRequest("supervised", (data,), out, device="cpu", **more)


def test_job_has_the_presets_settings_the_labels_and_the_frozen_split(
    data: Path, tmp_path: Path, jobs: list[TrainingJob]
) -> None:
    train_command(request(data, tmp_path, typed={"iterations": 5, "scale": None}))

    (job,) = jobs
    assert (job.method, job.device, job.labels, job.config.iterations) == ("supervised", "cpu", {"atrium": 1}, 5)
    assert job.config.scale == 0  # the cpu preset's, as a CPU was asked for
    expected = SplitManifest(tmp_path / "other.json", 0.2).assign(with_groups(load_cases(data), Supervised))
    assert (job.training, job.validation) == (expected.training, expected.validation)
    assert len(job.validation) >= 1
    assert read_json(tmp_path / "split.json") == read_json(tmp_path / "other.json")


def test_labelled_hides_the_other_masks(data: Path, tmp_path: Path, jobs: list[TrainingJob]) -> None:
    train_command(request(data, tmp_path, labelled=2))

    (job,) = jobs
    assert [case.id for case in job.training if case.label] == ["slice_000", "slice_001"]
    assert len(job.training) + len(job.validation) == 9
    roles = read_json(tmp_path / "split.json")
    assert {case.patient for case in job.validation} == {p for p, role in roles.items() if role == "validation"}


def test_list_of_validation_cases_replaces_the_rule(data: Path, tmp_path: Path, jobs: list[TrainingJob]) -> None:
    chosen = write_json(tmp_path / "validation.json", ["slice_003", "slice_008"])

    train_command(request(data, tmp_path / "run", split=chosen))

    (job,) = jobs
    assert [case.id for case in job.validation] == ["slice_003"]  # slice_008 has no mask, and is not learnt from either
    assert {"slice_003", "slice_008"} & {case.id for case in job.training} == set()
    write_json(chosen, ["slice_99"])
    with pytest.raises(NotFoundError, match=r"names slice_99, which is no case of the data"):
        train_command(request(data, tmp_path / "run", split=chosen))
    with pytest.raises(NotFoundError, match=r"none\.json does not exist"):
        train_command(request(data, tmp_path / "run", split=tmp_path / "none.json"))


def test_patients_share_a_side(data: Path, tmp_path: Path, jobs: list[TrainingJob]) -> None:
    pattern = r"slice_00(\d)"
    train_command(request(data, tmp_path, typed={"patient_pattern": pattern}))

    assert {case.patient for case in jobs[0].training} <= set("012345678")


def test_nothing_left_to_train_is_one_sentence(data: Path, tmp_path: Path, jobs: list[TrainingJob]) -> None:
    everything = write_json(tmp_path / "all.json", [case.id for case in load_cases(data)])

    with pytest.raises(MedsegError, match="no training case is left of 9; lower validation_fraction or add cases"):
        train_command(request(data, tmp_path, split=everything))
    assert jobs == []


def test_finished_run_is_only_replaced_on_request(data: Path, tmp_path: Path, jobs: list[TrainingJob]) -> None:
    run = tmp_path / "run"
    train_command(request(data, run))
    for name in ("metrics.json", "model.safetensors"):
        (run / name).touch()

    with pytest.raises(ConflictError, match=r"run holds a finished run; .*--resume .*--overwrite"):
        train_command(request(data, run))

    assert len(jobs) == 1
    train_command(request(data, run, resume=True))
    train_command(request(data, run, overwrite=True))
    assert [job.resume for job in jobs] == [False, True, False]


def test_unfinished_run_is_continued_or_replaced_on_request(
    data: Path, tmp_path: Path, jobs: list[TrainingJob]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "checkpoint.pt").touch()

    with pytest.raises(ConflictError, match=r"run holds an unfinished run; .*--resume.*--overwrite"):
        train_command(request(data, run))

    assert (run / "checkpoint.pt").exists()
    assert jobs == []
    train_command(request(data, run, resume=True))
    train_command(request(data, run, overwrite=True))
    assert [job.resume for job in jobs] == [True, False]


@pytest.mark.parametrize("labelled", [0, 1])
def test_a_method_that_learns_without_labels_starts_with_none_and_with_one(
    tmp_path: Path, jobs: list[TrainingJob], labelled: int
) -> None:
    data = write_dataset(tmp_path / "data", 6, labelled=labelled, options=replace(FLAT, shape=(24, 20)))

    train_command(TrainRequest("local_discrimination", (data,), tmp_path / "out", device="cpu"))

    (job,) = jobs
    assert len(job.training) == 6
    assert sum(case.label is not None for case in job.training) == labelled
    assert job.validation == ()


def test_a_given_validation_list_hides_labels_from_a_method_that_learns_without(
    data: Path, tmp_path: Path, jobs: list[TrainingJob]
) -> None:
    listed = write_json(tmp_path / "split.json", [load_cases(data)[0].id])

    train_command(TrainRequest("local_discrimination", (data,), tmp_path / "out", device="cpu", split=listed))

    (job,) = jobs
    assert len(job.training) == 9
    assert job.training[0].label is None
    assert job.validation[0].label is not None

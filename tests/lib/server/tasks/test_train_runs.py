from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from medseg.cases import Case
from medseg.files import read_json, write_json
from medseg.methods.supervised.config import SupervisedConfig
from medseg.server.tasks.train_runs import KEEP_RUNS, TrainRuns, fingerprint


@pytest.fixture
def runs(tmp_path: Path) -> TrainRuns:
    return TrainRuns(tmp_path / "caml")


def interrupt(run: Path, state: str = "running") -> None:
    (run / "checkpoint.pt").write_bytes(b"x")
    write_json(run / "progress.json", {"state": state, "iteration": 4, "iterations": 8, "epoch": 1, "epochs": 2})


def test_an_interrupted_run_goes_on(runs: TrainRuns) -> None:
    first = runs.open("mark")
    assert not first.resume
    interrupt(first.path)

    again = runs.open("mark")

    assert (again.path, again.resume) == (first.path, True)


@pytest.mark.parametrize("state", ["stopped", "done"])
def test_a_stopped_or_undecided_run_goes_on(runs: TrainRuns, state: str) -> None:
    first = runs.open("mark")
    interrupt(first.path, state)

    assert runs.open("mark").path == first.path


def test_a_run_that_lacked_memory_or_disk_goes_on(runs: TrainRuns) -> None:
    first = runs.open("mark")
    interrupt(first.path, "failed")
    write_json(first.path / "progress.json", {"state": "failed", "passing": True})

    assert runs.open("mark").path == first.path


def test_new_runs_start_anew_after_changes_failures_decisions_or_on_request(runs: TrainRuns) -> None:
    first = runs.open("mark")
    interrupt(first.path)

    assert runs.open("other").path != first.path
    assert runs.open("mark", resume=False).path != first.path

    failed = runs.open("failing")
    interrupt(failed.path, "failed")
    assert runs.open("failing").path != failed.path

    decided = runs.open("decided")
    interrupt(decided.path)
    runs.close(decided.path, {"published": True})
    assert not (decided.path / "checkpoint.pt").exists()
    assert runs.open("decided").path != decided.path


def test_a_run_without_checkpoint_is_not_continued(runs: TrainRuns) -> None:
    first = runs.open("mark")

    assert not runs.open("mark").resume
    assert runs.folders()[0] == first.path


def test_old_runs_are_thrown_away(runs: TrainRuns) -> None:
    for index in range(KEEP_RUNS + 3):
        runs.close(runs.open(f"mark {index}").path, {"published": False, "quality": index / 10, "labelled": index})

    assert len(runs.folders()) == KEEP_RUNS
    assert [point["labelled"] for point in runs.curve()] == list(range(3, KEEP_RUNS + 3))


def test_stats_before_and_during_and_after_a_run(runs: TrainRuns) -> None:
    assert runs.stats() == {}
    run = runs.open("mark").path
    interrupt(run)
    runs.record("running", run)
    running = runs.stats()
    assert (running["state"], running["epoch"], running["total_epochs"], running["iteration"]) == ("running", 1, 2, 4)
    assert running["best_metric"] == 0.0
    assert "total_time" not in running

    runs.record("done", run, decision={"quality": 0.9}, seconds=12.5)
    assert runs.stats()["best_metric"] == 0.9
    assert runs.stats()["total_time"] == "12.5"


def test_a_run_whose_process_is_gone_is_shown_as_stopped(runs: TrainRuns) -> None:
    run = runs.open("mark").path
    interrupt(run)
    runs.record("running", run)
    write_json(runs.last, {**read_json(runs.last), "pid": _dead_pid()})

    stats = runs.stats()

    assert stats["state"] == "stopped"
    assert "train again to continue" in stats["error"]


def test_fingerprint_sees_labels_settings_and_masks_but_not_the_budget(tmp_path: Path) -> None:
    image, label = tmp_path / "a.nii", tmp_path / "l.nii"
    image.write_bytes(b"1")
    label.write_bytes(b"1")
    config, cases = SupervisedConfig(), [Case("a", image, label)]
    mark = fingerprint(config, {"x": 1}, cases, [])

    assert mark == fingerprint(replace(config, iterations=7), {"x": 1}, cases, [])
    assert mark != fingerprint(replace(config, seed=7), {"x": 1}, cases, [])
    assert mark != fingerprint(config, {"y": 1}, cases, [])
    assert mark != fingerprint(config, {"x": 1}, [], cases)
    label.write_bytes(b"22")
    assert mark != fingerprint(config, {"x": 1}, cases, [])


def _dead_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid

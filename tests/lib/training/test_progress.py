from __future__ import annotations

import logging
from pathlib import Path

import pytest

from medseg.files import read_json
from medseg.training import progress as progress_module
from medseg.training.progress import Progress, duration
from medseg.training.run_folder import RunFolder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_eta_epoch_and_terms_follow_the_iterations(tmp_path: Path, clock: list[float]) -> None:
    progress = Progress(RunFolder(tmp_path), iterations=100, epoch_iterations=30)
    progress.start(20)  # resumed
    clock[0] += 10
    progress.iteration(40, {"dice": 0.123456})

    content = read_json(tmp_path / "progress.json")
    assert (content["state"], content["iteration"], content["iterations"]) == ("running", 40, 100)
    assert (content["epoch"], content["epochs"]) == (2, 4)
    assert content["eta_seconds"] == 30.0  # 20 iterations took 10 s, 60 are left
    assert content["terms"] == {"dice": 0.12346}
    assert progress.seconds(5.0) == 15.0


def test_file_is_written_at_most_once_a_second(tmp_path: Path, clock: list[float]) -> None:
    progress = Progress(RunFolder(tmp_path), 100, 30)
    progress.start(0)
    for done in range(1, 6):
        clock[0] += 0.3
        progress.iteration(done, {})

    assert read_json(tmp_path / "progress.json")["iteration"] == 4
    progress.epoch()
    assert read_json(tmp_path / "progress.json")["iteration"] == 5


def test_end_keeps_the_reason(tmp_path: Path) -> None:
    progress = Progress(RunFolder(tmp_path), 10, 5)
    progress.end("failed", "disk full")

    content = read_json(tmp_path / "progress.json")
    assert (content["state"], content["error"], content["eta_seconds"]) == ("failed", "disk full", None)


def test_epoch_line_holds_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(RunFolder(tmp_path), 100, 50)
    progress.start(0)
    clock[0] += 5
    progress.iteration(50, {"dice": 0.5})
    progress.update(validation={"quality": 0.75})
    progress.epoch()

    assert "epoch 1/2 iteration 50/100: dice 0.5000, validation 0.7500, 5 s left" in caplog.text


def test_speed_is_said_once_long_before_the_first_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress(RunFolder(tmp_path), 1010, 500)
    progress.reading(80)
    progress.start(0)
    for done in (10, 20):
        clock[0] += 4.2
        progress.iteration(done, {"dice": 0.5, "mutual": 0.25})

    assert caplog.messages == [
        "reading 80 images",
        "iteration 10/1010: dice 0.5000, mutual 0.2500, 0.42 s per iteration, 7 min left",
    ]


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (119, "119 s"), (430, "7 min"), (12240, "3.4 h")])
def test_duration_is_said_in_the_unit_people_use(seconds: float, said: str) -> None:
    assert duration(seconds) == said

"""The waiting times of a session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli import app
from medseg.errors import MedsegError
from medseg.phantoms.study import StudyOptions, write_dataset
from medseg.simulation.session import ARMS, SessionBench, bench_session

TINY = StudyOptions(shape=(24, 24, 16))


def test_a_session_needs_enough_masks(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 4, options=TINY)

    with pytest.raises(MedsegError, match="4 images have a mask"):
        bench_session(SessionBench((data,), tmp_path / "out"))


@pytest.mark.server
@pytest.mark.slow
def test_every_step_is_timed(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", 6, options=TINY)
    settings = ("iterations=4", "width=4", "patch=16,16,16")

    summary = bench_session(SessionBench((data,), tmp_path / "out", repeats=2, settings=settings, device="cpu"))

    assert tuple(summary["arms"]) == ARMS
    assert {arm: len(summary["arms"][arm]["values"]) for arm in ARMS[:4]} == {
        "first_infer": 1,
        "next_infer": 2,
        "save": 5,
        "next_sample": 2,
    }
    assert len(summary["arms"]["info_while_inferring"]["values"]) >= 1
    assert all(0 < value < 120 for arm in summary["arms"].values() for value in arm["values"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert (summary["complete"], summary["environment"]["device"], summary["labels"]) == (True, "cpu", {"atrium": 1})
    assert "iteration 4/4" in (tmp_path / "out" / "server.log").read_text()
    (config,) = (tmp_path / "out" / "models").glob("*/supervised/versions/1/config.json")
    assert json.loads(config.read_text())["config"]["epoch_iterations"] == 5  # defaults that --set does not name stay
    report = (tmp_path / "out" / "report.html").read_text()
    assert all(arm in report for arm in ARMS)


@pytest.mark.parametrize("word", ["--arms=full", "--seeds=2", "--iterations=5"])
def test_options_that_it_would_not_heed_are_refused(word: str, tmp_path: Path) -> None:
    words = ["bench", "session", "--data", str(tmp_path), "--out", str(tmp_path), word]

    answer = CliRunner().invoke(app, words)

    assert f"bench session has no {word.split('=')[0]}" in str(answer.exception)

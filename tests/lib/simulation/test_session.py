"""The waiting times of a session."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    settings = "iterations=4,epoch_iterations=2,width=4,patch=16,16,16,amp=off"

    summary = bench_session(SessionBench((data,), tmp_path / "out", repeats=2, settings=settings))

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

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medseg.errors import ConflictError
from medseg.training.run_folder import RunFolder


def test_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    with (
        folder.locked(),
        pytest.raises(ConflictError, match=rf"in use by process {os.getpid()}; wait for it"),
        RunFolder(tmp_path / "run").locked(),
    ):
        pytest.fail("two processes hold one run")


def test_lock_is_free_again_and_names_one_holder(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder(tmp_path).locked():
            assert (tmp_path / "run.lock").read_text() == str(os.getpid())


def test_forgetting_keeps_the_model_and_the_split(tmp_path: Path) -> None:
    names = {
        "checkpoint.pt",
        "checkpoint.pt.previous",
        "metrics.json",
        "model.safetensors",
        "config.json",
        "split.json",
    }
    for name in names:
        (tmp_path / name).touch()

    RunFolder(tmp_path).forget()
    RunFolder(tmp_path).forget()

    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "config.json", "split.json"}

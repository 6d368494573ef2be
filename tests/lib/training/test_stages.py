"""Stages of a training: whole-set work before each, another stream afterwards, and exact resumption inside one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medseg import methods
from medseg.cases import load_cases
from medseg.methods import method_class
from medseg.methods.base import Batch, StepOutput
from medseg.phantoms.study import FLAT, write_dataset
from medseg.training.run import TrainingJob, TrainingStoppedError, spans, train

SWITCH, TOTAL = 10, 24


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(methods.METHODS, "two_stage", "stages_method:TwoStage")
    method_class("two_stage").calls.clear()
    data = write_dataset(tmp_path / "data", 4, labelled=2, options=replace(FLAT, shape=(24, 24)))
    cases = tuple(load_cases(data))

    def make(out: str, resume: bool = False) -> TrainingJob:
        config = method_class("two_stage").config_class(
            iterations=TOTAL, epoch_iterations=4, validate_every=0, amp="off", pixels=64
        )
        return TrainingJob("two_stage", config, {"organ": 1}, cases, (), tmp_path / out, "cpu", resume)

    return make


def test_spans_cover_all_iterations() -> None:
    assert spans((0, 10, 20), 25) == [(0, 10), (10, 20), (20, 25)]
    assert spans((0, 10, 40), 25) == [(0, 10), (10, 25)]
    with pytest.raises(ValueError, match="ascend from 0"):
        spans((5, 10), 25)


def test_stages_are_entered_in_order_and_each_trains_its_own_part(job: Any, tmp_path: Path) -> None:
    metrics = train(job("run"))
    assert method_class("two_stage").calls == ["begin 0", f"begin {SWITCH}", "conclude"]
    assert float(load_file(tmp_path / "run" / "model.safetensors")["cases_seen"]) == 4
    assert [entry["iteration"] for entry in metrics["history"] if "loss_of_stage" in entry][-1] == TOTAL


@pytest.mark.parametrize("stop", [3, SWITCH, SWITCH + 5])
def test_a_run_stopped_in_any_stage_ends_with_the_same_weights(
    job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    train(job("calm"))
    kind = method_class("two_stage")
    original = kind.training_step

    def interrupted(self: Any, batch: Batch, iteration: int) -> StepOutput:
        if iteration == stop:
            raise KeyboardInterrupt
        return original(self, batch, iteration)

    monkeypatch.setattr(kind, "training_step", interrupted)
    with pytest.raises((KeyboardInterrupt, TrainingStoppedError)):
        train(job("stopped"))
    monkeypatch.setattr(kind, "training_step", original)
    train(job("stopped", resume=True))

    calm, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("calm", "stopped"))
    assert all(torch.equal(calm[key], resumed[key]) for key in calm)

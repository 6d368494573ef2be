"""A run that is stopped in either stage and resumed ends with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from medseg.methods.base import Batch, StepOutput
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.method import DRAM
from medseg.phantoms.chest import LABELS
from medseg.training.run import TrainingJob, train


@pytest.mark.parametrize("stop", [4, 10])
def test_stopped_runs_end_with_the_same_weights(
    stop: int, write_case: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = tuple(write_case(seed)[0] for seed in (0, 1))
    settings = {"masks": "extents", "width": 4, "scale": 1.0, "amp": "off", "refine_from": 0.3, "iterations": 12}
    config = DRAMConfig.from_dict({**settings, "epoch_iterations": 2, "validate_every": 0, "final_share": 0.5})

    def job(out: str, resume: bool = False) -> TrainingJob:
        return TrainingJob("dram", config, LABELS, cases, (), tmp_path / out, "cpu", resume)

    original = DRAM.training_step

    def interrupted(self: DRAM, batch: Batch, iteration: int) -> StepOutput:
        if iteration == stop:
            raise KeyboardInterrupt
        return original(self, batch, iteration)

    train(job("calm"))
    with monkeypatch.context() as patched:
        patched.setattr(DRAM, "training_step", interrupted)
        with pytest.raises(BaseException):  # noqa: B017, PT011 - ignite may pass it on or stop
            train(job("stopped"))
    train(job("stopped", resume=True))

    calm, resumed = (load_file(tmp_path / out / "model.safetensors") for out in ("calm", "stopped"))
    different: list[Any] = [key for key in calm if not torch.equal(calm[key], resumed[key])]
    assert config.final_start == 6
    assert different == []

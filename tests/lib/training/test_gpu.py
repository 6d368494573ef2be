"""Runs on a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medseg.cases import load_cases
from medseg.files import read_json
from medseg.methods import method_class
from medseg.training.run import TrainingJob, train

pytestmark = pytest.mark.gpu

SETTINGS = {"iterations": 12, "epoch_iterations": 3, "patch": "16,16,16", "width": 4, "validate_every": 0}


@pytest.mark.parametrize(("method", "amp"), [("supervised", "off"), ("caml", "bf16"), ("caml", "fp16")])
def test_resumed_run_ends_where_an_undisturbed_one_does(phantoms: Path, tmp_path: Path, method: str, amp: str) -> None:
    """Near enough, not to the bit: sums on a GPU have no fixed order."""
    settings = {**SETTINGS, "amp": amp, **({"ramp": 0} if method == "caml" else {})}
    config = method_class(method).config_class.from_dict(settings)
    cases = tuple(load_cases(phantoms))
    calm = TrainingJob(method, config, {"atrium": 1}, cases, (), tmp_path / "calm", "cuda")
    broken = replace(calm, out=tmp_path / "broken")

    train(calm)
    train(replace(broken, config=config.with_overrides({"iterations": 6})))
    metrics = train(replace(broken, resume=True))

    assert metrics["device"].startswith("cuda")
    assert metrics["peak_memory_mb"] > 0
    assert read_json(broken.out / "progress.json")["state"] == "done"
    one, other = (load_file(run.out / "model.safetensors") for run in (calm, broken))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-2, atol=1e-3, msg=lambda text, key=key: f"{key}: {text}")

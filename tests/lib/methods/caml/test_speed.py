from __future__ import annotations

import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.methods.caml import speed
from medseg.methods.caml.config import CAMLConfig
from medseg.methods.caml.correlation import CorrelationSettings, Correlator


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(speed, "PATCHES", {"cpu": (32, 32, 16)})
    monkeypatch.setattr(speed, "STEPS", {"cpu": (1, 2)})
    config = CAMLConfig(width=4, amp="off")
    return SimpleNamespace(config=config, labels={"organ": 1}, device="cpu", seed=0, iterations=100, out=Path())


@pytest.mark.parametrize("arm", [speed.time_ours, speed.time_host_bank])
def test_arms_report_seconds_of_every_measured_step(arm: Any, context: Any) -> None:
    result = arm(context)
    values = [case["seconds_per_step"] for case in result["cases"].values()]
    assert list(result["cases"]) == ["step_1", "step_2"]
    assert result["iterations"] == 2
    assert result["mean"] == pytest.approx(statistics.fmean(values))
    assert min(values) > 0
    assert result["seconds"] >= sum(values)
    assert result["peak_memory_mb"] > 50


def test_host_bank_keeps_every_voxel_and_draws_per_class() -> None:
    bank = speed.HostBank(cases=2, voxels=1000, dim=3, classes=2)
    bank.write(1, torch.full((400, 3), 7.0), torch.zeros(400, dtype=torch.long))
    drawn = bank.draw(300)
    assert drawn.shape == (600, 3)
    assert torch.cat(bank.features).shape == (1400, 3)


def test_host_correlation_is_the_cards_formula() -> None:
    """Few voxels, all of which are compared, against the formula written out."""
    torch.manual_seed(0)
    heads = Correlator(4, 2, CorrelationSettings(dim=8, cases=2))
    logits = torch.randn(2, 2, 4, 4, 4)
    outputs = dict.fromkeys(("logits_v", "logits_a"), logits)
    outputs |= {"embedding_v": torch.randn(2, 4, 4, 4, 4), "embedding_a": torch.randn(2, 4, 4, 4, 4)}
    bank = speed.HostBank(2, 600, 8, 2)
    state = torch.get_rng_state()
    label = logits[:1].argmax(1, keepdim=True)
    loss = speed.host_correlation(heads, outputs, label, torch.tensor([0]), bank)
    torch.set_rng_state(state)
    memory = bank.draw(256)
    v, a = (
        torch.softmax(predict(project(outputs[f"embedding_{b}"][1].flatten(1).T)) @ memory.T / 0.1, dim=1)
        for b, project, predict in (("v", heads.project_v, heads.predict_v), ("a", heads.project_a, heads.predict_a))
    )
    assert float(loss) == pytest.approx(float(-(a * torch.log(v + 1e-8)).sum(1).mean()), rel=1e-4)

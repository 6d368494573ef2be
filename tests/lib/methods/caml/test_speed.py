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


def test_steps_are_timed_with_the_storage_of_a_training(context: Any) -> None:
    weight = speed._method(context).network.student.encoder.levels[1].units[0][0].weight

    assert weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_host_bank_stays_full_and_draws_per_class() -> None:
    bank = speed.HostBank(cases=2, voxels=1000, dim=3, classes=2)
    bank.write(0, torch.full((1200, 3), 5.0), torch.ones(1200, dtype=torch.long))
    bank.write(1, torch.full((400, 3), 7.0), torch.zeros(400, dtype=torch.long))
    assert [len(slot) for slot in (*bank.features, *bank.classes)] == [1000] * 4
    assert (bank.features[0] == 5).all()
    assert (bank.features[1] == 7).all(dim=1).sum() == 400
    drawn = bank.draw(500)
    assert drawn.shape == (1000, 3)
    assert (drawn[:500] == 7).any()
    assert (drawn[500:] == 5).any()


def test_reference_is_timed_with_the_slots_of_a_trained_network(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    draw = speed.HostBank.draw

    def watched(bank: speed.HostBank, per_class: int) -> torch.Tensor:
        lengths.append(sum(map(len, bank.features)))
        return draw(bank, per_class)

    monkeypatch.setattr(speed.HostBank, "draw", watched)
    speed.time_host_bank(context)
    assert lengths == [speed.LABELLED_SCANS * round(0.95 * 32 * 32 * 16)] * 3


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

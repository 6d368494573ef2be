"""CAML on a GPU: half precision, and memory and time of a step at the paper's patch."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medseg.methods.base import Batch
from medseg.methods.caml import speed
from medseg.methods.caml.config import CAMLConfig
from medseg.methods.caml.method import CAML
from medseg.networks.precision import amp_dtype, autocast

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
MOST_MB = 8 * 1024
LEAST_GAIN = 5


def bright_boxes(config: CAMLConfig) -> Batch:
    """Noise with a bright box, which is the label."""
    label = torch.zeros(2, 1, *config.patch, dtype=torch.uint8)
    label[:, :, 8:24, 8:24, 4:12] = 1
    image = torch.randn(4, 1, *config.patch) * 0.3
    image[:2] += label
    image[2:, :, 4:20, 4:20, 4:12] += 1
    labelled = {"image": image[:2], "label": label, "slot": torch.arange(2)}
    batch = {"labelled": labelled, "unlabelled": {"image": image[2:]}}
    return {name: {key: value.to(CUDA) for key, value in stream.items()} for name, stream in batch.items()}


@pytest.mark.parametrize(("amp", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_step_in_half_precision_learns_with_finite_losses(amp: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    config = CAMLConfig.from_dict(
        {"dimension": 3, "channels": 1, "patch": "32,32,16", "width": 8, "amp": amp, "bank_cases": 2, "iterations": 60}
    )
    method = CAML(config, {"box": 1})
    method.network.to(CUDA).train()
    optimizer, scaler = method.optimizer(), torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)
    losses = []
    for iteration in range(60):
        optimizer.zero_grad(set_to_none=True)
        with autocast(amp, CUDA):
            output = method.training_step(bright_boxes(config), iteration)
        scaler.scale(output.loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert all(torch.isfinite(term) for term in output.terms.values())
        losses.append(float(output.terms["supervised"]))

    assert amp_dtype(amp, CUDA) is dtype
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.fixture
def context() -> Any:
    return SimpleNamespace(config=CAMLConfig(), labels={"organ": 1}, device="cuda", seed=0, iterations=5, out=Path())


def test_step_at_the_papers_patch_needs_less_than_eight_gigabytes(context: Any) -> None:
    assert speed.PATCHES["cuda"] == (112, 112, 80)

    assert speed.time_ours(context)["peak_memory_mb"] < MOST_MB


@pytest.mark.slow
def test_step_is_five_times_as_fast_as_with_the_bank_on_the_host(context: Any) -> None:
    assert speed.time_host_bank(context)["mean"] > LEAST_GAIN * speed.time_ours(context)["mean"]

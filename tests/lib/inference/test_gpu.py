"""Prediction on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.inference.model_folder import save_model
from medseg.inference.predictor import Predictor
from medseg.methods.supervised.config import SupervisedConfig
from medseg.methods.supervised.method import Supervised
from medseg.transforms.io import write_volume

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_gpu_predicts_and_scores_as_the_cpu_does(tmp_path: Path, amp: str) -> None:
    torch.manual_seed(0)
    image = write_volume(tmp_path / "a.nii.gz", MetaTensor(torch.rand(1, 40, 36, 20), affine=torch.eye(4)))
    config = SupervisedConfig.from_dict({"dimension": 3, "channels": 1, "patch": "16,16,16", "width": 8, "amp": amp})
    save_model(tmp_path / "model", Supervised(config, {"organ": 1}))
    case = Case("a", image)

    cpu, gpu = (Predictor.from_folder(tmp_path / "model", device) for device in ("cpu", "cuda"))
    expected, found = cpu.predict(case), gpu.predict(case)

    assert found.probabilities is not None
    assert expected.probabilities is not None
    assert found.probabilities.device.type == "cpu"
    assert next(gpu.method.network.parameters()).is_cuda
    difference = (found.probabilities.as_tensor() - expected.probabilities.as_tensor()).abs()
    assert float(difference.max()) < (1e-3 if amp == "off" else 5e-2)
    assert gpu.score(case).value == pytest.approx(cpu.score(case).value, abs=2e-2)

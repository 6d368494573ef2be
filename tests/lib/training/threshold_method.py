"""A method whose network is one number, for tests of what surrounds a method: mask = image > threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case
from medseg.inference.model_folder import save_model
from medseg.methods.base import Batch, Method, MethodConfig, Prediction, Sample, Score, StepOutput, Stream, Supervision
from medseg.transforms.io import read_image


class ThresholdNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.0))


class Threshold(Method):
    name = "threshold"
    title = "Threshold"
    supervision = frozenset({Supervision.MASKS})
    config_class = MethodConfig
    presets: ClassVar = {}
    arm_groups: ClassVar = {}
    dimension = 2
    predictions = 0

    def build_network(self) -> nn.Module:
        return ThresholdNetwork()

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        return [Stream("labelled", tuple(cases), 1)]

    def load(self, case: Case) -> Sample:
        return {"image": read_image(case.image)}

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return loaded

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        raise NotImplementedError

    def predict(self, loaded: Sample) -> Prediction:
        type(self).predictions += 1
        image = loaded["image"]
        hit = (image.as_tensor() > self.network.threshold).float()
        return Prediction(MetaTensor(torch.cat([1 - hit, hit]), affine=image.affine))

    def score(self, loaded: Sample) -> Score:
        return Score(0.0, "none")


def save_threshold(folder: Path, threshold: float, label: str = "organ") -> Path:
    """A run folder whose model has this threshold."""
    method = Threshold(MethodConfig(), {label: 1})
    method.network.threshold.data.fill_(threshold)
    save_model(folder, method)
    return folder

"""A method whose network is one number, for tests of what surrounds a method: mask = image > threshold."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.data import MetaTensor
from pixel_method import PixelMethod
from torch import nn

from medseg.inference.model_folder import save_model
from medseg.methods.base import Batch, MethodConfig, Prediction, Sample, StepOutput


class ThresholdNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(0.0))


class Threshold(PixelMethod):
    name = "threshold"
    title = "Threshold"
    predictions = 0

    def build_network(self) -> nn.Module:
        return ThresholdNetwork()

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        raise NotImplementedError

    def predict(self, loaded: Sample) -> Prediction:
        type(self).predictions += 1
        image = loaded["image"]
        hit = (image.as_tensor() > self.network.threshold).float()
        return Prediction(MetaTensor(torch.cat([1 - hit, hit]), affine=image.affine))


def save_threshold(folder: Path, threshold: float, label: str = "organ") -> Path:
    """A run folder whose model has this threshold."""
    method = Threshold(MethodConfig(), {label: 1})
    method.network.threshold.data.fill_(threshold)
    save_model(folder, method)
    return folder

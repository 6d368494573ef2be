"""A method that shares nothing with the others but the interface: logistic regression on the pixel's intensity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from monai.data import MetaTensor
from pixel_method import PixelMethod
from torch import nn

from medseg.cases import Case
from medseg.methods.base import (
    Arm,
    ArmGroup,
    Batch,
    Measurement,
    MethodConfig,
    Prediction,
    Preset,
    Sample,
    StepOutput,
    Stream,
)
from medseg.methods.supervised.method import Supervised


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    pixels: int = 256
    learning_rate: float = 1.0


class Toy(PixelMethod):
    name = "toy"
    title = "Logistic regression"
    config_class = ToyConfig
    config: ToyConfig
    presets: ClassVar = {"cpu": Preset({"iterations": 60}), "paper": Preset()}
    arm_groups: ClassVar = {"segmentation": ArmGroup((Arm("plain"),), "dice")}

    def build_network(self) -> nn.Module:
        return nn.Conv2d(1, 1, 1)

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        return [Stream("pixels", tuple(case for case in cases if case.label), 2)]

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        flat = {key: value.as_tensor().flatten().float() for key, value in loaded.items()}
        chosen = torch.randint(len(flat["image"]), (self.config.pixels,), generator=generator)
        return {key: value[chosen].reshape(1, 1, -1) for key, value in flat.items()}

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        pixels = batch["pixels"]
        logits = self.network(pixels["image"] / 255 - 0.5)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, pixels["label"])
        return StepOutput(loss, {"entropy": loss.detach()})

    def predict(self, loaded: Sample) -> Prediction:
        device = self.network.weight.device
        prob = torch.sigmoid(self.network(loaded["image"].as_tensor()[None].to(device) / 255 - 0.5))[0].cpu()
        area = Measurement(float((prob > 0.5).float().mean()) * 100, "%")
        probabilities = MetaTensor(torch.cat([1 - prob, prob]), affine=loaded["image"].affine)
        return Prediction(probabilities, measurements={"area": area})


class Sharded(Supervised):
    """The loss that two processes compute together: the mean of the losses of every other sample."""

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        halves = [
            super(Sharded, self).training_step(
                {name: {key: value[rank::2] for key, value in samples.items()} for name, samples in batch.items()},
                iteration,
            )
            for rank in (0, 1)
        ]
        loss = torch.stack([half.loss for half in halves]).mean()
        return StepOutput(loss, {"supervised": loss.detach()})

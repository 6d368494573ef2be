"""A method for benchmarks: several arms, in 2D and 3D, and one that fails on purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from monai.data import MetaTensor
from pixel_method import PixelMethod
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import (
    Arm,
    ArmGroup,
    Batch,
    MethodConfig,
    Prediction,
    Preset,
    Sample,
    StepOutput,
    Stream,
    Supervision,
)


@dataclass(frozen=True)
class TinyConfig(MethodConfig):
    """Settings of the tiny method."""

    dimension: int = 2
    bias: bool = True
    broken: bool = False


def half_a_second(context: Any) -> dict[str, Any]:
    """An arm that is a function: slower with every unlabelled case."""
    unlabelled = sum(case.label is None for case in context.training_cases)
    return {"seconds_per_step": 0.5 + unlabelled, "seconds": 7.0, "note": f"{context.method.name} on {context.device}"}


def trained_inside(context: Any) -> dict[str, Any]:
    """An arm that trains and evaluates by itself."""
    return {"cases": context.evaluate(context.train({"iterations": 2})), "iterations": 2}


class Tiny(PixelMethod):
    """A convolution of one voxel on the intensity."""

    name = "tiny"
    title = "Tiny"
    supervision = frozenset({Supervision.MASKS, Supervision.UNLABELLED})
    config_class = TinyConfig
    config: TinyConfig
    presets: ClassVar = {"cpu": Preset(config={"iterations": 4, "learning_rate": 0.5}, seeds=2, arms=("full", "plain"),
                                       labelled=2, held_out=3)}  # fmt: skip
    arm_groups: ClassVar = {
        "segmentation": ArmGroup(
            (
                Arm("plain", {"bias": False}),
                Arm("full"),
                Arm("broken", {"broken": True}),
                Arm("inside", run=trained_inside),
            ),
            metric="dice",
        ),
        "speed": ArmGroup((Arm("ours", run=half_a_second),), "seconds_per_step", higher_is_better=False, unit="s"),
    }
    seen: ClassVar[list[tuple[str, bool]]] = []

    @property
    def dimension(self) -> int:
        return self.config.dimension

    def build_network(self) -> nn.Module:
        kind = nn.Conv2d if self.config.dimension == 2 else nn.Conv3d
        return kind(1, 1 + len(self.labels), 1, bias=self.config.bias)

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        self.seen.extend((case.id, case.label is not None) for case in cases)
        return super().streams(cases)

    def load(self, case: Case) -> Sample:
        loaded = super().load(case)
        image = loaded["image"]
        return {**loaded, "image": MetaTensor(image.as_tensor() / 255, affine=image.affine)}

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        if self.config.broken:
            raise MedsegError("this arm is broken on purpose")
        logits = self.network(batch["labelled"]["image"])
        loss = nn.functional.cross_entropy(logits, batch["labelled"]["label"][:, 0].long())
        return StepOutput(loss, {"supervised": loss.detach()})

    def predict(self, loaded: Sample) -> Prediction:
        probabilities = torch.softmax(self.network(loaded["image"].as_tensor()[None])[0], dim=0)
        return Prediction(MetaTensor(probabilities, affine=loaded["image"].affine))

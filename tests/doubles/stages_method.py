"""A method of two stages: pseudo-labels from a frozen first stage teach the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn
from toy_method import Toy

from medseg.cases import Case
from medseg.methods.base import Batch, Sample, StepOutput, Stream, TrainingSet

SWITCH = 10


class TwoStage(Toy):
    """A teacher learns from masks; then a student learns from the frozen teacher's mean opinion of every case."""

    name = "two_stage"
    calls: ClassVar[list[str]] = []

    def build_network(self) -> nn.Module:
        network = nn.ModuleDict({"teacher": nn.Conv2d(1, 1, 1), "student": nn.Conv2d(1, 1, 1)})
        network.register_buffer("cases_seen", torch.zeros(()))
        return network

    def stages(self) -> tuple[int, ...]:
        return (0, SWITCH)

    def begin_stage(self, start: int, training: TrainingSet) -> None:
        self.calls.append(f"begin {start}")
        self.start = start
        if start:
            torch.rand(3)  # must not disturb the run's random numbers
            with torch.no_grad():
                self.opinion = {case.id: float(self._teach(training.load(case)).mean()) for case in training.cases}

    def _teach(self, loaded: Sample) -> torch.Tensor:
        return torch.sigmoid(self.network["teacher"](loaded["image"].as_tensor()[None] / 255 - 0.5))

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        chosen = tuple(cases) if getattr(self, "start", 0) else tuple(case for case in cases if case.label)
        return [Stream("pixels", chosen, 2)]

    def load(self, case: Case) -> Sample:
        return super().load(case) | {"case": case.id}

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        plain = {key: value for key, value in loaded.items() if key != "case"}
        drawn = super().sample({"image": plain["image"]} if self.start else plain, stream, generator)
        return drawn | {"opinion": torch.tensor(self.opinion[loaded["case"]])} if self.start else drawn

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        pixels = batch["pixels"]
        if not self.start:
            logits = self.network["teacher"](pixels["image"] / 255 - 0.5)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, pixels["label"])
        else:
            share = torch.sigmoid(self.network["student"](pixels["image"] / 255 - 0.5)).mean(dim=(1, 2, 3))
            loss = ((share - pixels["opinion"]) ** 2).mean()
        return StepOutput(loss + 0 * torch.rand(()), {"loss_of_stage": loss.detach()})

    def conclude(self, training: TrainingSet) -> None:
        self.calls.append("conclude")
        self.network.cases_seen += len(training.cases)

"""A method so small that a whole benchmark takes a second, and 2D and 3D phantoms for it."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medseg import methods
from medseg.benchmark.request import BenchmarkRequest
from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import (
    Arm,
    ArmGroup,
    Batch,
    Method,
    MethodConfig,
    Prediction,
    Preset,
    Sample,
    Score,
    StepOutput,
    Stream,
    Supervision,
)
from medseg.phantoms.study import StudyOptions, write_dataset
from medseg.transforms.io import read_image, read_mask


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


class Tiny(Method):
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
        return [Stream("labelled", tuple(case for case in cases if case.label is not None), 1)]

    def load(self, case: Case) -> Sample:
        image = read_image(case.image)
        loaded: Sample = {"image": MetaTensor(image.as_tensor() / 255, affine=image.affine)}
        return loaded if case.label is None else {**loaded, "label": read_mask(case.label)}

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {key: value.as_tensor() for key, value in loaded.items()}

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        if self.config.broken:
            raise MedsegError("this arm is broken on purpose")
        logits = self.network(batch["labelled"]["image"])
        loss = nn.functional.cross_entropy(logits, batch["labelled"]["label"][:, 0].long())
        return StepOutput(loss, {"supervised": loss.detach()})

    def predict(self, loaded: Sample) -> Prediction:
        probabilities = torch.softmax(self.network(loaded["image"].as_tensor()[None])[0], dim=0)
        return Prediction(MetaTensor(probabilities, affine=loaded["image"].affine))

    def score(self, loaded: Sample) -> Score:
        return Score(0.0, "none")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> type[Tiny]:
    """The tiny method, in the table of methods."""
    module = types.ModuleType("tiny_method")
    module.Tiny = Tiny  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tiny_method", module)
    monkeypatch.setitem(methods.METHODS, "tiny", "tiny_method:Tiny")
    monkeypatch.setattr(Tiny, "seen", [])
    return Tiny


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight 2D phantoms, all with masks."""
    options = StudyOptions(shape=(24, 20), spacings=((1.0, 1.0),), tilt=0.0, prefix="s")
    return write_dataset(tmp_path_factory.mktemp("pictures"), 8, options=options)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six oblique 3D phantoms with two labels, five of them with masks."""
    options = StudyOptions(shape=(20, 18, 12), labels=2, prefix="v")
    return write_dataset(tmp_path_factory.mktemp("volumes"), 6, labelled=5, options=options)


@pytest.fixture
def request_for(tiny: type[Tiny], tmp_path: Path) -> Callable[..., BenchmarkRequest]:
    """Build a request for the tiny method, in this process."""

    def build(data: Path, **changes: Any) -> BenchmarkRequest:
        settings: dict[str, Any] = {"device": "cpu", "isolate": False, **changes}
        return BenchmarkRequest("tiny", (data,), tmp_path / "out", **settings)

    return build

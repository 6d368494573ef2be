"""What the small methods of the tests share: they look at single pixels, so that a whole run takes a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from medseg.cases import Case
from medseg.methods.base import ArmGroup, Method, MethodConfig, Preset, Sample, Score, Stream, Supervision
from medseg.transforms.io import read_image, read_mask


class PixelMethod(Method):
    """Learns from masks, reads images as they are, knows nothing of acquisition."""

    supervision = frozenset({Supervision.MASKS})
    config_class = MethodConfig
    presets: ClassVar[Mapping[str, Preset]] = {}
    arm_groups: ClassVar[Mapping[str, ArmGroup]] = {}
    dimension = 2

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        return [Stream("labelled", tuple(case for case in cases if case.label is not None), 1)]

    def load(self, case: Case) -> Sample:
        loaded: Sample = {"image": read_image(case.image)}
        return loaded if case.label is None else {**loaded, "label": read_mask(case.label)}

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {key: value.as_tensor() for key, value in loaded.items()}

    def score(self, loaded: Sample) -> Score:
        return Score(0.5, "half sure")

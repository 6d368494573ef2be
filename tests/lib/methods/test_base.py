from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from monai.data import MetaTensor
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError
from medseg.methods import METHODS, method_class
from medseg.methods.base import Batch, Method, MethodConfig, Prediction, Sample, Score, StepOutput, Stream, Supervision


@dataclass(frozen=True)
class Config(MethodConfig):
    patch: tuple[int, ...] = (8, 8)
    pair: tuple[float, float] = (1.0, 2.0)
    spacing: tuple[float, ...] | None = None
    flag: bool = False
    kind: str = "a"


class Plain(Method):
    name = "plain"
    title = "Plain"
    supervision = frozenset({Supervision.MASKS})
    config_class = Config
    presets: ClassVar = {}
    arm_groups: ClassVar = {}
    dimension = 2

    def build_network(self) -> nn.Module:
        return nn.Conv2d(1, 2, 1)

    def streams(self, cases: Sequence[Case]) -> list[Stream]:
        return []

    def load(self, case: Case) -> Sample:
        return {}

    def sample(self, loaded: Sample, stream: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {}

    def training_step(self, batch: Batch, iteration: int) -> StepOutput:
        return StepOutput(torch.zeros(()), {})

    def predict(self, loaded: Sample) -> Prediction:
        return Prediction(None)

    def score(self, loaded: Sample) -> Score:
        return Score(0.0, "")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("iterations", "12", 12),
        ("iterations", 12.0, 12),
        ("learning_rate", "1e-3", 1e-3),
        ("patch", "32,16", (32, 16)),
        ("patch", [32, 16, 8], (32, 16, 8)),
        ("pair", "0.5,3", (0.5, 3.0)),
        ("spacing", "none", None),
        ("spacing", "1,1.5,2", (1.0, 1.5, 2.0)),
        ("flag", "yes", True),
        ("flag", "off", False),
        ("patient_pattern", "null", None),
        ("patient_pattern", r"^(p\d)", r"^(p\d)"),
        ("init", Path("a/b"), "a/b"),
    ],
)
def test_plain_values_become_the_fields_types(key: str, text: Any, value: Any) -> None:
    got = getattr(Config.from_dict({key: text}), key)

    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("iterations", "many", "setting iterations = 'many' is not of type int"),
        ("iterations", 1.5, "iterations = 1.5 is not of type int"),
        ("iterations", True, "iterations = True is not of type int"),
        ("iterations", None, "iterations = None is not of type int"),
        ("iterations", 0, "iterations = 0 must be at least 1"),
        ("epoch_iterations", 0, "epoch_iterations = 0 must be at least 1"),
        ("learning_rate", "nan", "learning_rate = nan must be a number from 0"),
        ("learning_rate", "inf", "learning_rate = inf must be a number from 0"),
        ("amp", "float16", "amp = 'float16' is unknown; choose one of auto, off, bf16, fp16"),
        ("cache_gb", -1, "cache_gb = -1.0 must be"),
        ("validation_fraction", 1, r"validation_fraction = 1.0 is outside \[0, 1\)"),
        ("patch", 32, "setting patch = 32 is not of type"),
        ("patch", "32,x", "setting patch = '32,x' is not of type"),
        ("pair", "1,2,3", "setting pair = '1,2,3' is not of type"),
        ("flag", "maybe", "setting flag = 'maybe' is not of type bool"),
        ("kind", 3, "setting kind = 3 is not of type str"),
    ],
)
def test_wrong_values_are_one_sentence(key: str, value: Any, words: str) -> None:
    with pytest.raises(MedsegError, match=words):
        Config.from_dict({key: value})


def test_a_check_that_fails_by_itself_is_still_one_sentence() -> None:
    @dataclass(frozen=True)
    class Careless(MethodConfig):
        parts: int = 2

        def __post_init__(self) -> None:
            super().__post_init__()
            _ = 8 % self.parts

    assert Careless.from_dict({"parts": 4}).parts == 4
    with pytest.raises(MedsegError, match=r"do not work together \(ZeroDivisionError: .*\): parts = 0, seed = 1"):
        Careless.from_dict({"parts": "0", "seed": 1})


def test_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(MedsegError, match=r"Config has no setting 'iteration'; did you mean .*iterations"):
        Config.from_dict({"iteration": 3})
    with pytest.raises(MedsegError, match="Config has no setting 7"):
        Config.from_dict({7: 3})


def test_overrides_are_checked_and_the_rest_stays() -> None:
    config = Config.from_dict({"patch": "4,4", "seed": 3})

    changed = config.with_overrides({"seed": "5"})

    assert (changed.seed, changed.patch, config.seed) == (5, (4, 4), 3)
    assert Config.from_dict(changed.to_dict()) == changed


@pytest.mark.parametrize("labels", [{"a": 0}, {"a": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 1}])
def test_labels_with_gaps_are_refused(labels: dict[str, int]) -> None:
    with pytest.raises(MedsegError, match=rf"labels must be numbered 1\.\.{len(labels)} without gaps"):
        Plain(Config(), labels)


def test_mask_is_the_likeliest_class_on_the_probabilities_grid() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64))
    probabilities = torch.tensor([[[0.2, 0.5]], [[0.7, 0.1]], [[0.1, 0.4]]])

    prediction = Prediction(MetaTensor(probabilities, affine=affine))

    assert prediction.mask is not None
    assert prediction.mask.tolist() == [[[1, 0]]]
    assert prediction.mask.dtype == torch.uint8
    assert torch.equal(prediction.mask.affine, affine)


def test_default_evaluation_measures_in_mm_and_quality_is_the_metric() -> None:
    method = Plain(Config(), {"a": 1})
    truth = torch.zeros(1, 8, 8, dtype=torch.int16)
    truth[0, 2:6, 2:6] = 1
    found = torch.zeros(1, 8, 8, dtype=torch.uint8)
    found[0, 3:6, 2:6] = 1  # one row of voxels, 5 mm thick, is missing
    affine = torch.diag(torch.tensor([5.0, 1.0, 1.0], dtype=torch.float64))
    prediction = Prediction(None, mask=MetaTensor(found, affine=affine))

    metrics = method.evaluate(prediction, Case("a", Path("a.nii")), MetaTensor(truth, affine=affine))

    assert metrics["dice"] == pytest.approx(2 * 12 / (12 + 16))
    assert metrics["hd95_mm"] == pytest.approx(5 * metrics["hd95_voxel"])
    assert method.quality(metrics) == metrics["dice"]
    assert {"hd95_px", "asd_px"} <= set(method.evaluate(prediction, Case("a", Path("a.PNG")), MetaTensor(truth)))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_the_table_keeps_the_interface(name: str) -> None:
    kind = method_class(name)

    assert kind.name == name
    assert {"cpu", "paper"} <= set(kind.presets)
    for preset in kind.presets.values():
        kind.config_class.from_dict(preset.config)
    assert kind.supervision
    for group in kind.arm_groups.values():
        for arm in group.arms:
            other = method_class(arm.method) if arm.method else kind
            other.config_class.from_dict(arm.overrides)
        assert any(arm.in_default for arm in group.arms)


def test_unknown_method_names_the_known_ones() -> None:
    with pytest.raises(NotFoundError, match="there is no method 'cmal'; known methods: caml, "):
        method_class("cmal")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": 2**70}, "seed = 1180591620717411303424 is above 4294967295"),
        ({"scale": 1e-9}, "scale = 1e-09 leaves nothing"),
        ({"patient_pattern": "("}, "not a regular expression"),
    ],
)
def test_settings_that_no_run_survives_are_refused_before_it(settings: dict[str, object], words: str) -> None:
    with pytest.raises(MedsegError, match=words):
        MethodConfig.from_dict(settings)

from __future__ import annotations

import math

import pytest

from medseg.errors import MedsegError
from medseg.methods.caml.config import CAMLConfig


def test_defaults_are_the_papers_form() -> None:
    config = CAMLConfig()
    assert (config.patch, config.width, config.labelled_batch, config.unlabelled_batch) == ((112, 112, 80), 16, 2, 2)
    assert (config.supervised_weight, config.mutual_weight, config.occ_weight) == (0.5, 1.0, 0.05)
    assert (config.mutual, config.cma, config.occ) == (True, True, True)
    assert (config.average, config.perturb, config.copy_paste, config.residual_assistant) == (0, "none", 0, False)


def test_round_trip() -> None:
    config = CAMLConfig(patch=(32, 32, 16), occ=False, average=0.9)
    assert CAMLConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 5, "heads": 3}, "heads = 3"),
        ({"norm": "layer"}, "norm = 'layer'"),
        ({"loss": "focal"}, "loss = 'focal'"),
        ({"perturb": "blur"}, "perturb = 'blur'"),
        ({"occ_temperature": 0}, "occ_temperature = 0"),
        ({"mutual_temperature": -1}, "mutual_temperature = -1"),
        ({"ramp": 1.5}, "ramp = 1.5"),
        ({"average": 1.0}, "average = 1.0"),
        ({"unlabelled_batch": 0}, "unlabelled_batch = 0"),
        ({"occ_bins": 0}, "occ_bins = 0"),
        ({"occ_bins": 9, "occ_rows": 8}, "occ_bins = 9"),
        ({"heads": 0}, "heads = 0 must be at least 1"),
        ({"width": 0}, "width = 0 must be at least 1"),
        ({"occ_dim": 0}, "occ_dim = 0"),
        ({"occ_memory": 0}, "occ_memory = 0"),
        ({"bank_capacity": 0}, "bank_capacity = 0"),
        ({"bank_cases": -1}, "bank_cases = -1"),
        ({"mutual_weight": math.nan}, "mutual_weight = nan must be a number from 0"),
        ({"anchor_weight": -1}, "anchor_weight = -1"),
        ({"supervised_weight": -2}, "supervised_weight = -2"),
        ({"occ_weight": math.inf}, "occ_weight = inf"),
        ({"occ_temperature": math.nan}, "occ_temperature = nan must be positive"),
        ({"amp": "float16"}, "amp = 'float16'"),
    ],
)
def test_bad_settings_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(MedsegError, match=message):
        CAMLConfig.from_dict(values)

"""What the network sees of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.domains import Domain, normalisation_of
from medseg.inference.model_folder import load_model, save_model
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.images import prepare
from medseg.transforms.io import read_image

CONFIG = MultiDomainConfig.from_dict({"dimension": 3})


def test_window_cuts_and_maps_to_one_range_whatever_else_is_in_the_image() -> None:
    values = torch.tensor([-1000.0, -160.0, 40.0, 240.0, 3000.0]).reshape(1, 5, 1, 1)
    image = MetaTensor(values, affine=torch.eye(4))
    window = Domain("ct", spacing=(1.0, 1.0, 1.0), normalisation="window:-160,240")

    assert prepare(image, window, CONFIG).flatten().tolist() == pytest.approx([-1, -1, 0, 1, 1])
    plain = prepare(image, Domain("mr", spacing=(1.0, 1.0, 1.0)), CONFIG).as_tensor()
    expected = (values - values.mean()) / values.std(unbiased=False)
    np.testing.assert_allclose(plain, expected, rtol=1e-5)


def test_domain_keeps_its_normalisation_in_the_model(make: Any, joints: list[Case], tmp_path: Path) -> None:
    method = make(normalisation="window:0,200@knee")
    save_model(tmp_path, method)

    loaded = load_model(tmp_path)

    rules = {name: domain.normalisation for name, domain in loaded.registry.domains.items()}
    assert rules == {"ankle": "zscore", "knee": "window:0,200", "shoulder": "zscore"}
    knee, ankle = (loaded.load(case)["image"].as_tensor() for case in (joints[3], joints[0]))
    raw = read_image(joints[3].image).as_tensor()
    torch.testing.assert_close(knee, raw.clamp(0, 200) / 100 - 1)
    assert float(ankle.mean()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(
    ("rules", "domain", "expected"),
    [
        ("zscore", "ct", "zscore"),
        ("window:1,2", "ct", "window:1,2"),
        ("window:1,2@ct", "mr", "zscore"),
        ("window:1,2@ct; window:3,4", "mr", "window:3,4"),
        ("window:1,2@ct; window:3,4", "ct", "window:1,2"),
    ],
)
def test_rule_of_a_domain_wins_over_that_of_all(rules: str, domain: str, expected: str) -> None:
    assert normalisation_of(rules, domain) == expected

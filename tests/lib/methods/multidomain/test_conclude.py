"""What is done after the last iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.cases import Case, load_cases
from medseg.methods.multidomain import conclude
from medseg.methods.multidomain.method import MultiDomain
from medseg.phantoms.joints import write_joints


def unequal(folder: Path) -> list[Case]:
    """Two cases of small ankles, and two of larger knees."""
    small = load_cases(write_joints(folder / "small", 2, (16, 16, 16)))
    large = load_cases(write_joints(folder / "large", 2, (32, 32, 16)))
    return [case for case in small if case.dataset == "ankle"] + [case for case in large if case.dataset == "knee"]


@pytest.mark.parametrize(
    ("domain_layers", "expected"),
    [
        (True, {"ankle": (2, 1, 16, 16, 16), "knee": (2, 1, 32, 32, 16)}),
        (False, {"pooled": (4, 1, 32, 32, 16)}),
    ],
)
def test_norms_of_a_small_domain_follow_its_own_patches_and_not_the_padding_of_a_larger_one(
    make: Any, tmp_path: Path, training_set: Any, monkeypatch: pytest.MonkeyPatch, domain_layers: bool, expected: Any
) -> None:
    cases = unequal(tmp_path)
    method: MultiDomain = make(
        cases, view="3d", patch=(32, 32, 16), domain_batch=2, width=2, norm_batches=1, domain_layers=domain_layers
    )
    seen: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(method.network, "with_features", lambda images, domain: seen.update({domain: images}))

    conclude.renew_statistics(method, training_set(method, cases))

    assert {name: tuple(images.shape) for name, images in seen.items()} == expected
    zeros = {name: float((images == 0).float().mean()) for name, images in seen.items()}
    assert max(zeros.values()) < 0.01 or not domain_layers

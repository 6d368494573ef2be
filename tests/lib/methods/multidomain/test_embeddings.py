"""The picture of the features, and its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.methods.multidomain.embeddings import (
    Embedding,
    common_size,
    draw_embeddings,
    embed_cases,
    nearest_centre_accuracy,
    principal_components,
)


def clusters(gap: float) -> Embedding:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=(20, 5)) + gap * k for k in range(3)]
    patients = tuple(f"{name}{i % 4}" for name in "abc" for i in range(20))
    return Embedding(np.concatenate(rows), tuple(name for name in "abc" for _ in range(20)), patients)


def test_domains_that_lie_apart_are_told_apart() -> None:
    assert nearest_centre_accuracy(clusters(20)) == 1
    assert nearest_centre_accuracy(clusters(0)) < 0.6


def test_slices_of_the_same_patient_do_not_vouch_for_a_domain() -> None:
    rng = np.random.default_rng(0)
    places = {"a0": 0.0, "a1": 30.0, "b0": 31.0, "b1": 1.0}  # each patient lies beside one of the other domain
    rows = [rng.normal(size=(5, 3)) * 0.1 + place for place in places.values()]
    patients = tuple(name for name in places for _ in range(5))
    mixed = Embedding(np.concatenate(rows), tuple(name[0] for name in patients), patients)

    assert nearest_centre_accuracy(mixed) == 0
    alone = Embedding(mixed.features[:5], mixed.domains[:5], mixed.patients[:5])
    assert np.isnan(nearest_centre_accuracy(alone))


def test_components_are_the_directions_of_largest_spread() -> None:
    rows = np.zeros((10, 4))
    rows[:, 2] = np.arange(10)
    rows[:, 0] = 0.1 * (np.arange(10) % 2)

    found = principal_components(rows)

    assert abs(np.corrcoef(found[:, 0], rows[:, 2])[0, 1]) == pytest.approx(1, abs=1e-3)
    assert found[:, 0].std() > 10 * found[:, 1].std()
    assert found.mean(axis=0) == pytest.approx([0, 0], abs=1e-9)


def test_every_scale_of_a_model_is_drawn(make: Any, joints: list[Case]) -> None:
    method = make()
    method.network.eval()

    scales = embed_cases(method, joints[::3])

    assert [scale.features.shape for scale in scales] == [(24, 8), (24, 16), (24, 32)]
    assert set(scales[0].domains) == {"ankle", "knee", "shoulder"}
    assert len(draw_embeddings(scales, "joints").axes) == 3
    common = embed_cases(method, joints[::3], "knee")
    assert common[0].features == pytest.approx(scales[0].features)  # slots are equal before training


SHAPES = {"ankle": (98, 44, 24), "knee": (64, 72, 24), "shoulder": (48, 40, 24)}


def test_noise_of_three_sizes_is_told_apart_no_better_than_by_chance(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make()
    method.network.eval()
    torch.manual_seed(0)
    cases = [Case(f"{name}_{i}", Path("x"), domain=name) for name in SHAPES for i in range(8)]
    monkeypatch.setattr(
        method, "load", lambda case: {"image": MetaTensor(torch.randn(1, *SHAPES[case.domain])), "domain": case.domain}
    )

    found = [nearest_centre_accuracy(scale) for scale in embed_cases(method, cases)]

    assert max(found) < 0.5  # a third is chance; all three are 1 where the smaller ones are padded
    assert common_size([shape[:2] for shape in SHAPES.values()]) == (48, 32)


def test_thin_images_are_widened_without_zeros(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    method = make()
    seen: list[torch.Tensor] = []
    thin = MetaTensor(torch.ones(1, 10, 40, 8))
    monkeypatch.setattr(method, "load", lambda case: {"image": thin, "domain": "knee"})
    real = method.network.with_features
    monkeypatch.setattr(method.network, "with_features", lambda x, domain: seen.append(x) or real(x, domain))

    embed_cases(method, [Case("a", Path("x"), domain="knee")])

    assert tuple(seen[0].shape) == (8, 1, 16, 32)
    assert bool((seen[0] == 1).all())

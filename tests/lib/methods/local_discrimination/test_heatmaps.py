from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import load_cases
from medseg.methods.base import TrainingSet
from medseg.methods.local_discrimination import landmarks
from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.heatmaps import Example, HeatMaps, blobs, trusted
from medseg.methods.local_discrimination.matching import Found
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.networks.vnet import VNet
from medseg.phantoms.landmarks import write_landmark_study


def test_blobs_are_distributions_around_their_points() -> None:
    points = torch.tensor([[[6.0, 9.5, 4.2], [3.3, 8.0, 5.0]]])

    found = blobs(points, (13, 20, 10))

    assert found.shape == (1, 2, 13, 20, 10)
    assert torch.allclose(found.flatten(2).sum(dim=2), torch.ones(1, 2))
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (13, 20, 10)), indexing="ij"), dim=-1).float()
    assert torch.allclose((found[..., None] * places).flatten(2, 4).sum(dim=2), points, atol=0.1)


def test_only_the_surest_finds_of_each_landmark_are_learnt_from() -> None:
    confidence = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.5]])

    weights = trusted(confidence)

    assert (weights > 0).tolist() == [[True, False], [False, True], [True, True]]
    assert weights[0, 0] > weights[2, 0]
    assert float(weights.mean()) == pytest.approx(1.0)


def test_a_network_that_predicts_for_all_is_nearer_than_the_finds_it_learnt_from(tmp_path: Path) -> None:
    cases = load_cases([write_landmark_study(tmp_path, 14, (48, 44), 2)])
    config = LocalDiscrimination.fit_config(LocalDiscriminationConfig.from_dict({"width": 8}), cases)
    method = LocalDiscrimination(config, {})
    rng = torch.Generator().manual_seed(0)
    samples = [method.load(case) for case in cases]
    truth = [torch.stack([sample["landmarks"][name] for name in config.landmarks]) for sample in samples]
    finds = [points + 3 * torch.randn(points.shape, generator=rng) for points in truth]
    examples = [Example(s["image"].as_tensor(), f, torch.ones(2)) for s, f in zip(samples, finds, strict=True)]
    torch.manual_seed(0)
    heat = HeatMaps(1, 2, 2, 8)

    heat.fit(examples[:12], VNet(1, 2, spatial_dims=2, width=8, norm="instance"), 200, 0)

    errors = [(heat.find(s["image"])[0] - t).norm(dim=1).mean() for s, t in zip(samples[12:], truth[12:], strict=True)]
    noise = torch.stack([(f - t).norm(dim=1).mean() for f, t in zip(finds, truth, strict=True)]).mean()
    assert float(torch.stack(errors).mean()) < 0.7 * float(noise)
    assert not any(parameter.requires_grad for parameter in heat.parameters())


def test_untrained_maps_are_not_asked() -> None:
    heat = HeatMaps(1, 2, 2, 4)

    heat.fit([Example(torch.zeros(1, 32, 32), torch.zeros(2, 2), torch.ones(2))], heat.net, 0, 0)

    assert not heat.ready


def test_confidence_falls_where_maps_and_windows_disagree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = load_cases([write_landmark_study(tmp_path, 4, (64, 56), 2)])
    cases = [cases[0], *(LocalDiscrimination.hide_label(case) for case in cases[1:])]
    monkeypatch.setattr(landmarks, "FEWEST", 3)
    settings = {"width": 4, "patch": (32, 32), "pyramid": (2, 1), "heat_iterations": 2}
    config = LocalDiscrimination.fit_config(LocalDiscriminationConfig.from_dict(settings), cases)
    method = LocalDiscrimination(config, {})
    image = method.load(cases[1])["image"]
    method.network.eval()
    with torch.no_grad():
        method.conclude(TrainingSet(tuple(cases), method.load))
    heat = landmarks.heat_maps_of(method)
    assert heat is not None
    assert heat.ready
    before = landmarks.match(method, image)

    def answer(shift: float) -> Found:
        monkeypatch.setattr(heat, "find", lambda _: (before.points + shift, torch.ones(2)))
        return landmarks.find(method, image)

    assert torch.equal(answer(0.0).confidence, before.confidence)
    assert torch.equal(answer(3.0).points, before.points + 3.0)
    assert bool((answer(8.0).confidence < 0.6 * before.confidence).all())


def test_an_image_larger_than_a_map_is_looked_at_coarsely() -> None:
    heat = HeatMaps(1, 1, 2, 2)
    image = torch.zeros(1, 400, 360)
    heat.fit([Example(image, torch.tensor([[10.0, 20.0]]), torch.ones(1))], heat.net, 1, 0)

    points, mass = heat.find(MetaTensor(image, affine=torch.eye(3)))

    assert float(heat.factor) == pytest.approx((400 * 360 / 2**15) ** 0.5)
    assert points.shape == (1, 2)
    assert 0 <= float(mass) <= 1


def test_few_unmarked_images_leave_it_to_the_templates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = load_cases([write_landmark_study(tmp_path, 3, (48, 44), 2)])
    cases = [cases[0], *(LocalDiscrimination.hide_label(case) for case in cases[1:])]
    config = LocalDiscrimination.fit_config(LocalDiscriminationConfig.from_dict({"width": 4, "pyramid": (1,)}), cases)
    method = LocalDiscrimination(config, {})

    with caplog.at_level("INFO"):
        method.conclude(TrainingSet(tuple(cases), method.load))

    heat = landmarks.heat_maps_of(method)
    assert heat is not None
    assert not heat.ready
    assert "no heat maps: 2 unmarked images are few, 8 are needed" in caplog.text

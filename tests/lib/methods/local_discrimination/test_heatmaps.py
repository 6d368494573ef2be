from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case, load_cases
from medseg.inference.model_folder import load_model, save_model
from medseg.methods.base import TrainingSet
from medseg.methods.local_discrimination import heatmaps, landmarks
from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.heatmaps import HeatMaps, blobs, centre, trusted
from medseg.methods.local_discrimination.matching import Found
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.networks.vnet import VNet
from medseg.phantoms.landmarks import write_landmark_study
from medseg.training.initial import load_initial


def picture(*grid: int) -> MetaTensor:
    noise = torch.randn(1, *grid, generator=torch.Generator().manual_seed(0))
    return MetaTensor(noise, affine=torch.eye(len(grid) + 1))


def trunk(axes: int = 2, width: int = 4) -> VNet:
    return VNet(1, 2, spatial_dims=axes, width=width, norm="instance")


def build(cases: Sequence[Case], **settings: Any) -> LocalDiscrimination:
    values = {"width": 4, "patch": (32, 32), "pyramid": (2, 1), "heat_iterations": 2, **settings}
    config = LocalDiscrimination.fit_config(LocalDiscriminationConfig.from_dict(values), cases)
    method = LocalDiscrimination(config, {})
    method.network.eval()
    return method


def trained(cases: Sequence[Case], **settings: Any) -> LocalDiscrimination:
    method = build(cases, **settings)
    with torch.no_grad():  # as the training does
        method.conclude(TrainingSet(tuple(cases), method.load))
    return method


def ready(method: LocalDiscrimination) -> bool:
    heat = landmarks.heat_maps_of(method)
    assert heat is not None
    return heat.ready


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return load_cases([write_landmark_study(tmp_path_factory.mktemp("study"), 9, (48, 44), 2)])


def one_marked(cases: Sequence[Case]) -> list[Case]:
    return [cases[0], *(LocalDiscrimination.hide_label(case) for case in cases[1:])]


def test_blobs_are_distributions_around_their_points() -> None:
    points = torch.tensor([[[6.0, 9.5, 4.2], [3.3, 8.0, 5.0]]])

    found = blobs(points, (13, 20, 10))

    assert found.shape == (1, 2, 13, 20, 10)
    assert torch.allclose(found.flatten(2).sum(dim=2), torch.ones(1, 2))
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in (13, 20, 10)), indexing="ij"), dim=-1).float()
    assert torch.allclose((found[..., None] * places).flatten(2, 4).sum(dim=2), points, atol=0.1)


@pytest.mark.parametrize("point", [(0.0, 30.0), (2.0, 63.0), (63.0, 63.0), (20.0, 41.0)])
def test_a_landmark_at_the_border_stays_inside(point: tuple[float, float]) -> None:
    chance = blobs(torch.tensor([[point]]), (64, 64))[0, 0]

    found, mass = centre(chance, torch.tensor(point))

    assert bool(((found >= 0) & (found <= 63)).all())
    assert torch.dist(found, torch.tensor(point)) < 2.0
    assert 0.9 < float(mass) <= 1.0001


def test_only_the_surest_finds_of_each_known_landmark_are_learnt_from() -> None:
    confidence = torch.tensor([[0.9, 0.1, 0.9], [0.2, 0.8, 0.9], [0.6, 0.5, 0.9]])

    weights = trusted(confidence, torch.tensor([True, True, False]))

    assert (weights > 0).tolist() == [[True, False, False], [False, True, False], [True, True, False]]
    assert weights[0, 0] > weights[2, 0]
    assert float(weights.mean()) == pytest.approx(1.0)


def test_a_network_that_predicts_for_all_is_nearer_than_the_finds_it_learnt_from(tmp_path: Path) -> None:
    cases = load_cases([write_landmark_study(tmp_path, 32, (48, 44), 2)])
    method = build(cases, width=8)
    rng = torch.Generator().manual_seed(0)
    samples = [method.load(case) for case in cases]
    truth = [torch.stack([sample["landmarks"][name] for name in method.config.landmarks]) for sample in samples]
    finds = [points + 3 * torch.randn(points.shape, generator=rng) for points in truth]
    heat = HeatMaps(1, 2, 2, 8)
    examples = [heat.example(s["image"], f, torch.ones(2)) for s, f in zip(samples, finds, strict=True)]

    torch.manual_seed(0)
    heat.fit(examples[:26], trunk(width=8), 200, 0)

    def error(points: Sequence[torch.Tensor], true: Sequence[torch.Tensor]) -> float:
        return float(torch.stack([(p - t).norm(dim=1).mean() for p, t in zip(points, true, strict=True)]).mean())

    learnt = error([heat.find(sample["image"], torch.full((2, 2), 22.0))[0] for sample in samples[26:]], truth[26:])
    average = error([torch.stack(finds[:26]).mean(dim=0)] * 6, truth[26:])
    assert learnt < 0.85 * average  # it looks at the image
    assert learnt < 0.65 * error(finds, truth)


def test_it_starts_from_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmaps, "RATE", 0.0)
    source, heat = trunk(), HeatMaps(1, 3, 2, 4)

    heat.fit([heat.example(picture(40, 40), torch.full((3, 2), 9.0), torch.ones(3))], source, 1, 0)

    assert heat.net is not None
    own, given = heat.net.state_dict(), source.state_dict()
    assert all(torch.equal(own[name], given[name]) for name in given if not name.startswith("head."))
    assert own["head.weight"].shape[0] == 3
    assert not any(parameter.requires_grad for parameter in heat.parameters())


def test_without_iterations_or_with_a_loss_that_is_none_there_are_no_maps(caplog: pytest.LogCaptureFixture) -> None:
    heat = HeatMaps(1, 2, 2, 4)
    example = heat.example(picture(32, 32), torch.zeros(2, 2), torch.ones(2))

    heat.fit([example], trunk(), 0, 0)
    heat.fit([heat.example(picture(32, 32), torch.zeros(2, 2), torch.full((2,), torch.nan))], trunk(), 1, 0)

    assert not heat.ready
    assert "heat maps: the loss is nan at iteration 1; left out" in caplog.text


@pytest.mark.parametrize("grid", [(400, 360), (10, 80, 72)])
def test_large_and_flat_images_are_looked_at_in_their_own_shape(grid: tuple[int, ...]) -> None:
    axes = len(grid)
    heat, image = HeatMaps(1, 1, axes, 2), picture(*grid)
    heat.look_at(grid)
    point = torch.tensor([[float(n // 3) for n in grid]])
    example = heat.example(image, point, torch.ones(1))
    heat.fit([example], trunk(axes, 2), 1, 0)

    points, mass = heat.find(image, point)

    assert float(heat.factor) == pytest.approx((torch.tensor(grid).prod().item() / 2**15) ** (1 / axes))
    assert example.image.shape[1:] == tuple(round(n / float(heat.factor)) for n in grid)
    assert torch.allclose((example.points + 0.5) * heat.factor - 0.5, point, atol=0.05 * max(grid))
    assert bool(((points >= -0.5) & (points <= torch.tensor(grid) - 0.5)).all())
    assert 0 <= float(mass) <= 1


def test_confidence_falls_where_maps_and_windows_disagree(cases: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    method = trained(one_marked(cases))
    image = method.load(cases[1])["image"]
    heat = landmarks.heat_maps_of(method)
    assert heat is not None
    before = landmarks.match(method, image)

    def answer(shift: float) -> Found:
        monkeypatch.setattr(heat, "find", lambda *_: (before.points + shift, torch.ones(2)))
        return landmarks.find(method, image)

    assert torch.equal(answer(0.0).confidence, before.confidence)
    assert torch.equal(answer(3.0).points, before.points + 3.0)
    assert bool((answer(4.0).confidence < 0.6 * before.confidence).all())


def test_of_two_peaks_the_one_near_the_templates_find_wins_and_a_clear_one_wins_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heat, image = HeatMaps(1, 1, 2, 2), picture(64, 64)
    both = blobs(torch.tensor([[[12.0, 12.0]]]), (64, 64)) + blobs(torch.tensor([[[50.0, 40.0]]]), (64, 64))
    clear = blobs(torch.tensor([[[12.0, 12.0]]]), (64, 64))
    near = torch.tensor([[46.0, 42.0]])

    def answer(chance: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(heat, "net", lambda _: torch.log(chance + 1e-9))
        return heat.find(image, near)[0][0]

    assert torch.dist(answer(both), torch.tensor([50.0, 40.0])) < 0.5
    assert torch.dist(answer(clear), torch.tensor([12.0, 12.0])) < 0.5


@pytest.mark.parametrize("marked", [1, 9])
def test_a_saved_model_answers_alike_and_nobody_starts_from_its_maps(
    cases: list[Case], tmp_path: Path, marked: int
) -> None:
    method = trained([*cases[:marked], *map(LocalDiscrimination.hide_label, cases[marked:])])
    save_model(tmp_path, method)
    sample = method.load(cases[8])

    again = load_model(tmp_path)

    assert ready(method)
    assert isinstance(again, LocalDiscrimination)
    assert again.predict(sample).markups == method.predict(sample).markups
    account = load_initial(build(one_marked(cases)).network, tmp_path)
    assert account.loaded
    assert not any("_heat" in name for name in (*account.loaded, *account.missing, *account.shape_differs))


def test_few_images_leave_it_to_the_templates(
    cases: list[Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        method = trained(one_marked(cases[:3]))
    save_model(tmp_path, method)

    assert not ready(method)
    assert "no heat maps: 3 images are few, 8 are needed" in caplog.text
    again = load_model(tmp_path)
    assert isinstance(again, LocalDiscrimination)
    assert not ready(again)

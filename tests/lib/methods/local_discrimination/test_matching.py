from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.landmarks import build_bank
from medseg.methods.local_discrimination.matching import (
    TemplateBank,
    find_landmarks,
    gaussian,
    highest,
    regularise,
    respond,
)
from medseg.methods.local_discrimination.method import TEMPLATES

POINTS = {0: (30.0, 40.0), 1: (70.0, 22.0), 2: (52.0, 60.0)}


def embedding(grid: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A map whose vectors differ from place to place, smooth over some voxels."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 16, *(max(2, n // 4) for n in grid), generator=rng)
    mode = "trilinear" if len(grid) == 3 else "bilinear"
    return F.normalize(F.interpolate(coarse, size=grid, mode=mode, align_corners=False)[0], dim=0)


def pyramid(image: torch.Tensor) -> list[torch.Tensor]:
    small = F.interpolate(image[None], scale_factor=0.5, mode="bilinear", align_corners=False, antialias=True)[0]
    return [F.normalize(small, dim=0), image]


def bank(maps: list[torch.Tensor], grid: tuple[int, ...]) -> TemplateBank:
    found = TemplateBank(len(POINTS), 2, 16, (2, 1), 2.0)
    found.clear(1)
    found.put(0, maps, {index: torch.tensor(point) for index, point in POINTS.items()}, grid)
    return found


@pytest.mark.parametrize("matching", ["window", "pooled"])
def test_template_as_query_gives_its_own_points(matching: str) -> None:
    grid = (96, 84)
    maps = pyramid(embedding(grid))

    found = find_landmarks(bank(maps, grid), maps, grid, 0.0, matching)

    assert torch.allclose(found.points, torch.tensor(list(POINTS.values())), atol=0.3)
    assert float(found.cycle.max()) < 0.2
    assert float(found.confidence.min()) > 0.9


def test_shifted_image_gives_shifted_points() -> None:
    grid, shift = (96, 84), 8
    whole = embedding((grid[0] + shift, grid[1]))
    templates = pyramid(whole[:, :96])

    found = find_landmarks(bank(templates, grid), pyramid(whole[:, shift:]), grid, 0.0)

    expected = torch.tensor(list(POINTS.values())) - torch.tensor([float(shift), 0.0])
    assert torch.allclose(found.points, expected, atol=0.6)


def test_unrelated_image_gives_low_confidence() -> None:
    grid = (96, 84)
    templates = bank(pyramid(embedding(grid)), grid)

    found = find_landmarks(templates, pyramid(embedding(grid, seed=9)), grid, 0.0)

    assert float(found.confidence.max()) < 0.5


def test_first_search_stays_near_the_template() -> None:
    grid = (96, 84)
    whole = embedding((grid[0] + 40, grid[1]))
    templates = pyramid(whole[:, :96])

    found = find_landmarks(bank(templates, grid), pyramid(whole[:, 40:]), grid, 0.1)

    away = (found.points - torch.tensor(list(POINTS.values()))).norm(dim=1)
    assert float(away.max()) < 0.1 * 96 + 12  # the finer levels may move some voxels on


def test_three_axes() -> None:
    grid = (32, 28, 24)
    maps = [embedding(grid)]
    found = TemplateBank(1, 3, 16, (1,), 1.5)
    found.clear(1)
    found.put(0, maps, {0: torch.tensor([12.0, 15.0, 9.0])}, grid)

    result = find_landmarks(found, maps, grid, 0.0)

    assert torch.allclose(result.points[0], torch.tensor([12.0, 15.0, 9.0]), atol=0.3)


def test_gaussian_window_keeps_a_constant_and_is_central() -> None:
    window = gaussian(4, 2.0, 2)

    assert float(window.sum()) == pytest.approx(1, abs=1e-6)
    assert int(window.argmax()) == 40
    assert float(window[4, 4] / window[4, 6]) == pytest.approx(math.exp(4 / 8), rel=1e-4)


def test_maximum_is_refined_below_a_voxel() -> None:
    x = torch.arange(20.0)
    scores = -0.005 * ((x[:, None] - 7.4) ** 2 + (x[None] - 11.0) ** 2)

    assert torch.allclose(highest(scores[None])[0], torch.tensor([7.4, 11.0]), atol=0.2)


def test_a_point_that_fits_no_affine_map_is_put_back() -> None:
    rng = torch.Generator().manual_seed(0)
    prior = torch.rand(12, 2, generator=rng)
    moved = prior @ torch.tensor([[1.05, 0.1], [-0.08, 0.95]]) + 0.02
    wild = moved.clone()
    wild[3] += 0.4

    found = regularise(wild, prior, torch.ones(12))

    assert torch.allclose(found, moved, atol=0.02)
    assert torch.equal(regularise(wild[:4], prior[:4], torch.ones(4)), wild[:4])


def test_autocast_does_not_blur_what_is_found() -> None:
    grid = (96, 84)
    maps = pyramid(embedding(grid))
    templates = bank(maps, grid)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = find_landmarks(templates, maps, grid, 0.0)

    full = find_landmarks(templates, maps, grid, 0.0)
    assert torch.equal(half.points, full.points)
    assert torch.equal(half.confidence, full.confidence)


def test_everything_stays_on_the_bank_s_device() -> None:
    """Points come from files, on the CPU; the device `meta` refuses to mix as a GPU does."""
    templates = TemplateBank(6, 2, 16, (1,), 2.0).to("meta")
    templates.clear(1)
    image = torch.empty(16, 48, 40, device="meta")
    points = torch.empty(6, 2, device="meta")

    templates.put(0, [image], {index: torch.tensor([10.0 + index, 20.0]) for index in range(6)}, (48, 40))
    scores = respond(templates, 0, image[None], torch.ones(1, 6, device="meta"), "window")

    assert templates.patches.is_meta
    assert highest(scores).is_meta
    assert regularise(points, points, scores.flatten(1).amax(dim=1)).is_meta


@pytest.mark.parametrize(("axes", "megabytes"), [(2, 1.9), (3, 8.5)])
def test_a_bank_is_as_large_as_stated_and_empty_until_it_is_filled(axes: int, megabytes: float) -> None:
    config = LocalDiscriminationConfig(dimension=axes, landmarks=("a",))
    found = build_bank(config).to("meta")

    assert found.patches.numel() == 0
    found.clear(TEMPLATES + 1)

    assert found.patches.numel() * found.patches.element_size() / 1e6 == pytest.approx(megabytes, abs=0.1)


def test_a_bank_takes_the_number_of_templates_from_its_file() -> None:
    grid = (96, 84)
    maps = pyramid(embedding(grid))
    filled, empty = bank(maps, grid), TemplateBank(len(POINTS), 2, 16, (2, 1), 2.0)

    empty.load_state_dict(filled.state_dict())

    assert torch.equal(find_landmarks(empty, maps, grid, 0.0).points, find_landmarks(filled, maps, grid, 0.0).points)

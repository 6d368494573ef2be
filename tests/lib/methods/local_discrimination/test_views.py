from __future__ import annotations

import pytest
import torch

from medseg.methods.local_discrimination.appearance import vary_appearance
from medseg.methods.local_discrimination.network import read_at
from medseg.methods.local_discrimination.views import (
    View,
    ViewSettings,
    draw_points,
    draw_views,
    lattice,
    partners,
)

GRIDS = [((120, 150), (64, 64)), ((40, 44, 36), (24, 24, 16))]


def ramp(grid: tuple[int, ...]) -> torch.Tensor:
    return torch.stack(torch.meshgrid(*(torch.arange(n).float() for n in grid), indexing="ij"))


def pair(grid: tuple[int, ...], patch: tuple[int, ...], seed: int, mirror: float = 0.5) -> list[View]:
    settings = ViewSettings(patch=patch, zoom=(0.7, 1.4), mirror=mirror, rotation=60.0)
    return draw_views(grid, torch.tensor(grid) / 2, settings, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("grid", "patch"), GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_matched_points_show_the_same_place(grid: tuple[int, ...], patch: tuple[int, ...], seed: int) -> None:
    views = pair(grid, patch, seed)
    rng = torch.Generator().manual_seed(seed)

    places, points, valid = draw_points(views, torch.ones(grid, dtype=torch.bool), 100, 4.0, rng)

    assert float(valid.float().mean()) > 0.3
    for view, found in zip(views, points, strict=True):
        shown = read_at(view.render(ramp(grid))[None], found[None])[0]
        assert float((shown - places)[valid].abs().max()) < 0.25


def test_mirrored_views_are_tracked() -> None:
    grid, patch = GRIDS[0]
    view = next(v for seed in range(20) for v in pair(grid, patch, seed) if torch.linalg.det(v.matrix) < 0)
    places = torch.tensor([[60.0, 70.0], [50.0, 80.0]])

    shown = read_at(view.render(ramp(grid))[None], view.from_image(places)[None])[0]

    assert torch.allclose(shown, places, atol=0.25)


def test_points_lie_inside_and_the_same_seed_gives_the_same() -> None:
    grid, patch = GRIDS[0]
    inside = torch.zeros(grid, dtype=torch.bool)
    inside[40:80, 50:90] = True

    first, second = (
        draw_points(pair(grid, patch, 3), inside, 50, 4.0, torch.Generator().manual_seed(1)) for _ in range(2)
    )

    places, _, valid = first
    assert int(valid.sum()) > 10
    assert bool(inside[tuple(places[valid].round().long().T)].all())
    assert torch.equal(places, second[0])


def test_partners_of_a_view_with_itself_are_the_same_pixels() -> None:
    grid, patch = GRIDS[0]
    view = pair(grid, patch, 0)[0]
    pixels = lattice(patch, 100)

    found, shown = partners([view, view], pixels, grid)

    assert pixels.shape == (100, 2)
    assert float((found - pixels).abs().max()) < 0.05
    assert bool(shown.any())


def test_patch_larger_than_the_image_works() -> None:
    grid, patch = (20, 30), (64, 64)
    views = pair(grid, patch, 0)

    _, _, valid = draw_points(views, torch.ones(grid, dtype=torch.bool), 40, 4.0, torch.Generator().manual_seed(0))

    assert views[0].render(torch.randn(1, *grid)).shape == (1, *patch)
    assert bool(valid.any())


@pytest.mark.parametrize("channels", [1, 3])
def test_appearance_changes_values_and_keeps_places(channels: int) -> None:
    view = torch.zeros(channels, 48, 48)
    view[:, 20:28, 20:28] = 3.0

    changed = vary_appearance(view, 1.0, torch.Generator().manual_seed(1), colour=channels == 3)

    edges = changed.mean(dim=0).diff(dim=0)[:, 22:26].mean(dim=1)
    assert not torch.allclose(changed, view, atol=0.1)
    assert abs(int(edges.argmax()) - 19) <= 1
    assert abs(int(edges.argmin()) - 27) <= 1
    assert torch.equal(vary_appearance(view, 0.0, torch.Generator(), colour=False), view)

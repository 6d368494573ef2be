from __future__ import annotations

from typing import Any

import pytest
import torch

from medseg.methods.local_discrimination.rendering import Ground, render_shape, take_out


def out_of(picture: torch.Tensor, **settings: Any) -> Ground:
    inside = settings.pop("inside", torch.ones(picture.shape[1:], dtype=torch.bool))
    return take_out(picture, inside, **{"share": 0.05, "polarity": "dark", **settings})


def lungs_in_a_body() -> torch.Tensor:
    """A bright body before a dark background, with a dark disc in it."""
    picture = torch.full((1, 60, 60), -2.0)
    picture[:, 6:54, 6:54] = 1.0
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    picture[:, (rows - 30) ** 2 + (columns - 30) ** 2 < 64] = -1.0
    return picture


def test_what_is_dark_and_thin_enough_is_taken_out_and_the_rest_stays() -> None:
    picture = lungs_in_a_body()

    ground = out_of(picture, thickness=16)

    assert float(ground.image[0, 30, 30]) == pytest.approx(1.0, abs=0.05)
    assert float(ground.image[0, 1, 1]) < -1.5, "the background touches the border"
    assert float(ground.depth) == pytest.approx(2.0, abs=0.3)


def test_thicker_things_stay() -> None:
    ground = out_of(lungs_in_a_body(), thickness=5)

    assert float(ground.image[0, 30, 30]) == pytest.approx(-1.0, abs=0.05)


def test_bright_things_are_taken_out_where_shapes_are_bright() -> None:
    dark = out_of(lungs_in_a_body(), thickness=16)
    bright = out_of(-lungs_in_a_body(), thickness=16, polarity="bright")

    assert torch.allclose(bright.image, -dark.image, atol=1e-5)


def test_texture_and_depth_are_those_inside_the_field() -> None:
    picture = torch.zeros(2, 60, 60)
    picture[:, 20:40, 20:40] = 1 + 0.1 * torch.randn(2, 20, 20, generator=torch.Generator().manual_seed(0))
    inside = picture[0] != 0

    ground = out_of(picture, thickness=4, inside=inside)

    assert float(ground.detail.abs().max()) > 0.02, "most of the picture is empty"
    assert float(ground.depth.max()) < 0.5, "the rim is no shape"
    assert ground.depth.shape == (2,)


def test_a_picture_without_any_shape_still_shows_what_is_drawn() -> None:
    flat = torch.linspace(0, 1, 40).expand(1, 40, 40)

    assert float(out_of(flat, thickness=4).depth) > 0.09 * float(flat.std())


def test_volumes_are_rendered_too() -> None:
    volume, mask = torch.randn(1, 12, 12, 12), torch.zeros(1, 12, 12, 12)
    mask[:, 4:8, 4:8, 4:8] = 1
    ground = out_of(volume, thickness=4, share=0.1, polarity="any")

    assert render_shape(mask, ground, "any", torch.Generator().manual_seed(0)).shape == volume.shape


def pictures(polarity: str, count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Rendered pictures of one shape over a ramp that is nowhere else, and which of them lie over the ramp."""
    mask = torch.zeros(1, 40, 40)
    mask[:, 10:30, 8:24] = 1
    ramp = torch.linspace(50, 60, 40).expand(1, 40, 40)
    ground = Ground(ramp, torch.zeros_like(ramp), torch.ones(1))
    found = [render_shape(mask, ground, polarity, torch.Generator().manual_seed(seed)) for seed in range(count)]
    stacked = torch.stack(found)
    return stacked, stacked.mean(dim=(1, 2, 3)) > 40


def test_most_pictures_lie_over_the_real_ground_and_some_over_textures() -> None:
    _, real = pictures("dark")

    assert 12 <= int(real.sum()) < 24


@pytest.mark.parametrize(("polarity", "sign"), [("dark", -1), ("bright", 1)])
def test_a_shape_differs_from_the_ground_as_its_polarity_says(polarity: str, sign: int) -> None:
    drawn, real = pictures(polarity)
    over = drawn[real] - torch.linspace(50, 60, 40)

    inside, outside = over[..., 12:28, 10:22].mean(dim=(1, 2, 3)), over[..., :8, :].mean(dim=(1, 2, 3))
    assert bool((sign * (inside - outside) > 0.05).float().mean() > 0.9)


def test_pictures_over_textures_have_unit_spread() -> None:
    drawn, real = pictures("dark")

    assert torch.allclose(drawn[~real].std(dim=(1, 2, 3)), torch.ones(int((~real).sum())), atol=0.01)

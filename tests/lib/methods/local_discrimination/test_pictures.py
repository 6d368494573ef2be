from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.methods.base import Markup
from medseg.methods.local_discrimination.pictures import embedding_colours, landmark_figure, shown


def test_equal_vectors_have_equal_colours_in_all_maps() -> None:
    vectors = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    numbers = torch.arange(20).reshape(4, 5) % 5
    first, second = (vectors[index].movedim(-1, 0) for index in (numbers, numbers.flip(0)))

    one, two = embedding_colours([first, second])

    assert one.shape == (3, 4, 5)
    assert (float(one.min()), float(one.max())) == (0.0, 1.0)
    assert torch.allclose(one, two.flip(1), atol=1e-6)
    colours = {tuple(round(c, 3) for c in one[:, 0, i].tolist()) for i in range(5)}
    assert len(colours) == 5


def test_a_map_of_one_vector_is_grey_and_volumes_work() -> None:
    (found,) = embedding_colours([torch.ones(8, 3, 4, 5)])

    assert found.shape == (3, 3, 4, 5)
    assert torch.allclose(found, torch.full_like(found, 0.5))


@pytest.mark.parametrize("axes", [2, 3])
def test_landmarks_stand_where_they_are(axes: int) -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0][-axes - 1 :], dtype=torch.float64))
    image = MetaTensor(torch.rand(1, *(20, 24, 8)[:axes]), affine=affine)
    points = ((8.0, 10.0, 4.0)[:axes], (20.0, 30.0, 4.0)[:axes])

    figure = landmark_figure(Markup("Fiducial", "l", points, ("a", "b"), (0.9, 0.1)), image, "x")

    (canvas,) = figure.axes
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for line in canvas.lines]
    assert drawn == [(4.0, 5.0), (10.0, 15.0)]
    assert [text.get_text() for text in canvas.texts] == ["a", "b"]


def test_colours_are_drawn_as_colours_and_volumes_as_grey() -> None:
    colour = MetaTensor(torch.full((3, 4, 5), 200.0), affine=torch.eye(3))

    assert shown(colour).shape == (4, 5, 3)
    assert shown(colour).dtype == np.uint8
    assert shown(MetaTensor(torch.rand(1, 4, 5, 6), affine=torch.eye(4))).shape == (4, 5, 6)

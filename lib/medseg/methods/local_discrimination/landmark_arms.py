"""Benchmark arms of one-shot landmarks: coordinate copy, template matching, and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Arm, Markup
from medseg.methods.local_discrimination.arms import needs_v_net, pretrain, told
from medseg.methods.local_discrimination.landmarks import is_marked, radial_errors
from medseg.methods.local_discrimination.points import to_world, voxels_of
from medseg.methods.local_discrimination.selection import typicality
from medseg.transforms.grid import resize
from medseg.transforms.io import read_image

PATCH_MM = 50.0  # card sec. 3: the best of 15, 30 and 50 mm
SEARCH_MM = 20.0  # card sec. 3
WORKING_MM = 0.6  # card sec. 3
THUMBNAIL = 32  # ours: side of the pictures by which typical templates are told

Places = Mapping[str, torch.Tensor]


def landmark_arms() -> tuple[Arm, ...]:
    """The three arms of the card, and the third without its heat maps."""
    return (
        Arm("template_matching", run=template_matching),
        Arm("coordinate_copy", run=coordinate_copy),
        Arm("one_shot", run=one_shot),
        Arm("one_shot_matches", run=partial(one_shot, heat_iterations=0)),
    )


def template_of(ctx: Any) -> Case:
    """The template of a seed: the most typical marked training image, the second most typical, and so on.

    Only pictures decide, no landmark: it is what a reader would be offered first. All arms of a seed have the same.
    """
    marked = [case for case in ctx.training_cases if is_marked(case)]
    if not marked:
        raise MedsegError("no training case has landmarks; one template is needed")
    size = (THUMBNAIL,) * ctx.config.dimension
    rows = [resize(_grey(read_image(case.image)), size).as_tensor().flatten().numpy() for case in marked]
    table = np.stack([(row - row.mean()) / max(float(row.std()), 1e-6) for row in rows]).astype(np.float64)
    order = np.argsort(-typicality(table), kind="stable")
    return marked[int(order[ctx.seed % len(marked)])]


def coordinate_copy(ctx: Any) -> dict[str, Any]:
    """Put every landmark where the template has it, relative to the image."""
    template = template_of(ctx)
    source = read_image(template.image)
    places = voxels_of(template, source, source)

    def find(image: MetaTensor) -> Places:
        ratio = torch.tensor(image.shape[1:]) / torch.tensor(source.shape[1:])
        return {name: (place + 0.5) * ratio - 0.5 for name, place in places.items()}

    return _judge(ctx, template, find)


def template_matching(ctx: Any) -> dict[str, Any]:
    """Normalised cross-correlation of a 50 mm patch, searched within 20 mm of the template's position (card sec. 3)."""
    template = template_of(ctx)
    unit = ctx.config.pixel_mm or 1.0
    source = _working(read_image(template.image), unit)
    places = voxels_of(template, read_image(template.image), source)
    radius, reach = round(PATCH_MM / WORKING_MM / 2), round(SEARCH_MM / WORKING_MM)

    def find(image: MetaTensor) -> Places:
        small = _working(image, unit)
        ratio = torch.tensor(small.shape[1:]) / torch.tensor(source.shape[1:])
        found = {}
        for name, place in places.items():
            start = ((place + 0.5) * ratio - 0.5).round().long()
            patch = _box(source.as_tensor()[0], place.round().long(), radius)
            area = _box(small.as_tensor()[0], start, radius + reach)
            scores = correlate(area, patch)
            best = torch.stack(torch.unravel_index(scores.argmax(), scores.shape))
            voxel = start + best - reach
            found[name] = (voxel + 0.5) * torch.tensor(image.shape[1:]) / torch.tensor(small.shape[1:]) - 0.5
        return found

    return _judge(ctx, template, find)


def one_shot(ctx: Any, heat_iterations: int | None = None) -> dict[str, Any]:
    """Embeddings learnt from the training images without their landmarks, then one template.

    The pretraining is the same for all templates; test images are in no pool.

    Args:
        ctx: `medseg.benchmark.arms.ArmContext`.
        heat_iterations: None: the preset's; 0: what the templates match, without heat maps.
    """
    needs_v_net(ctx)
    template = template_of(ctx)
    longer = {"iterations": ctx.config.landmark_iterations or ctx.config.iterations, "seed": 0}
    folder = pretrain(ctx, LANDMARK_SETTINGS | longer, "landmarks")
    others = tuple(ctx.method.hide_label(case) for case in ctx.training_cases if case.id != template.id)
    names = {"landmarks": tuple(template.weak.landmarks), "templates": 1} if template.weak else {}
    values = {**LANDMARK_SETTINGS, **names, "iterations": 1, "learning_rate": 0.0, "init": str(folder)}
    if heat_iterations is not None:
        values["heat_iterations"] = heat_iterations
    predictor = ctx.train(values, cases=(template, *others))
    filled = told(ctx.out / "model", folder) | {
        "iterations": 0,
        "heat_iterations": predictor.method.config.heat_iterations,
    }  # its one iteration at rate 0 is not the work
    return {"cases": ctx.evaluate(predictor), "labelled": [template.id], **filled}


LANDMARK_SETTINGS: dict[str, Any] = {
    "scale": 0.5,  # 0.6 mm per pixel on the cephalometric set
    "mirror": 0.0,  # ours: one study shows one side
    "zoom": (1.0, 3.0),  # ours: the levels of the pyramid are 1, 2 and 4
    "region_weight": 0.0,  # ours: regions draw together what landmarks must tell apart
    "mixup_weight": 0.0,  # ours: a third of the time for the same places
}


def correlate(area: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    """Normalised cross-correlation of a patch with every place of an area where it fits, in [-1, 1]."""
    axes = patch.ndim
    convolve = F.conv3d if axes == 3 else F.conv2d
    kernel = (patch - patch.mean())[None, None]
    field = (area - area.mean())[None, None]
    ones, count = torch.ones_like(kernel), kernel.numel()
    dot = convolve(field, kernel)[0, 0]
    mean = convolve(field, ones)[0, 0] / count
    square = convolve(field * field, ones)[0, 0] / count
    spread = (square - mean * mean).clamp_min(1e-9).sqrt() * count**0.5
    return dot / (spread * kernel.norm().clamp_min(1e-9))


def _judge(ctx: Any, template: Case, find: Any) -> dict[str, Any]:
    cases = {}
    for case in ctx.held_out_cases:
        original = read_image(case.image)
        image = _grey(original)
        found = find(image)
        world = {name: to_world(place[None], original)[0].tolist() for name, place in found.items()}
        markup = Markup("Fiducial", "landmarks", tuple(map(tuple, world.values())), tuple(world))
        cases[case.id] = radial_errors(markup, case, ctx.config.pixel_mm or 1.0)
    return {"cases": cases, "labelled": [template.id]}


def _working(image: MetaTensor, unit: float) -> MetaTensor:
    grey = _grey(image)
    return resize(grey, [max(16, round(n * unit / WORKING_MM)) for n in grey.shape[1:]])


def _grey(image: MetaTensor) -> MetaTensor:
    return MetaTensor(image.as_tensor().mean(dim=0, keepdim=True), affine=image.affine)


def _box(image: torch.Tensor, centre: torch.Tensor, radius: int) -> torch.Tensor:
    """The cube around a voxel; the border repeats outside."""
    index: Sequence[torch.Tensor] = [
        (torch.arange(-radius, radius + 1) + int(c)).clamp(0, n - 1) for c, n in zip(centre, image.shape, strict=True)
    ]
    return image[torch.meshgrid(*index, indexing="ij")]

"""Benchmark arms of segmentation without labels: Otsu, k-means, and the shape-guided segmentation.

The masks of the training cases serve as shapes, apart from their pictures: the shape-guided arm learns from pictures
without masks and from masks without pictures, as they would come from another modality.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.base import Arm
from medseg.methods.local_discrimination.arms import fine_tuning, simulate_vessels
from medseg.methods.local_discrimination.fields import body
from medseg.methods.local_discrimination.thresholds import is_thin, kmeans_mask, otsu_mask
from medseg.metrics.table import segmentation_metrics
from medseg.transforms.io import read_image, read_mask, write_volume

log = logging.getLogger(__name__)

Mask = NDArray[np.bool_]


def unsupervised_arms() -> tuple[Arm, ...]:
    """Two classical arms, and the shape-guided one with masks of other images or with simulated vessels as shapes."""
    return (
        Arm("otsu", run=partial(classical, find=lambda image, inside, thin, _: otsu_mask(image, inside, thin))),
        Arm("kmeans", run=partial(classical, find=kmeans_mask)),
        Arm("shape_guided", run=shape_guided),
        Arm("shape_unrefined", run=partial(shape_guided, refine=False), in_default=False),
        Arm("simulated_vessels", run=partial(shape_guided, simulated=True), in_default=False),
    )


def classical(ctx: Any, find: Callable[[Any, Mask, bool, int], Mask]) -> dict[str, Any]:
    """A threshold for each held-out image; the shapes only tell whether to look for thin or broad things."""
    thin = is_thin([target_mask(case, ctx.config.targets) for case in _shape_cases(ctx)])
    cases = {}
    for case in ctx.held_out_cases:
        image = read_image(case.image)
        mask = find(image.numpy().astype(np.float64), body(image).numpy(), thin, ctx.seed)
        cases[case.id] = judge(case, mask, ctx.config.targets)
    return {"cases": cases, "thin": thin}


def shape_guided(ctx: Any, refine: bool = True, simulated: bool = False) -> dict[str, Any]:
    """Learn from rendered shapes beside the pretraining, then train a fresh segmenter on what that finds.

    Args:
        ctx: `medseg.benchmark.arms.ArmContext`.
        refine: train the fresh segmenter, from the pretrained trunk, on the first masks of the training images.
        simulated: simulated vessel trees instead of the training cases' masks.
    """
    started = time.monotonic()
    shapes = simulate_vessels(ctx) if simulated else _write_shapes(ctx, ctx.out / "shapes")
    images = tuple(ctx.method.hide_label(case) for case in ctx.training_cases)
    values = {"shapes": str(shapes), "iterations": ctx.config.pretraining}
    predictor = ctx.train(values, "first", cases=images)
    if refine:
        guessed = _pseudo_labels(ctx, predictor, images)
        settings = fine_tuning(ctx, ctx.out / "first")
        predictor = ctx.train(settings, "refined", cases=guessed, method="supervised")
    cases = {}
    for case in ctx.held_out_cases:
        mask = predictor.predict(case).mask[0].numpy() == 1
        cases[case.id] = judge(case, mask & body(read_image(case.image)).numpy(), ctx.config.targets)
    return {"cases": cases, "iterations": ctx.iterations, "seconds": time.monotonic() - started}


def judge(case: Case, mask: Mask, targets: Sequence[int]) -> dict[str, float]:
    """Metrics of a binary mask against the union of the target labels."""
    truth = target_mask(case, targets)
    return segmentation_metrics(mask.astype(np.uint8), truth.astype(np.uint8), {"shape": 1}, (1.0,) * mask.ndim)


def target_mask(case: Case, targets: Sequence[int]) -> Mask:
    """Union of the target labels of a case's mask."""
    assert case.label is not None
    return np.isin(read_mask(case.label)[0].numpy(), list(targets))


def _shape_cases(ctx: Any) -> list[Case]:
    found = [case for case in ctx.training_cases if case.label is not None]
    if not found:
        raise MedsegError("no training case has a mask to take shapes from")
    return found


def _write_shapes(ctx: Any, folder: Path) -> Path:
    """The target of every training mask as a binary mask, under names that say nothing of a picture."""
    suffix = ".png" if ctx.config.dimension == 2 else ".nii.gz"
    for number, case in enumerate(_shape_cases(ctx)):
        mask = target_mask(case, ctx.config.targets)
        binary = MetaTensor(torch.from_numpy(mask.astype(np.uint8))[None], affine=torch.eye(mask.ndim + 1))
        write_volume(folder / f"shape_{number:03d}{suffix}", binary)
    return folder


def _pseudo_labels(ctx: Any, predictor: Any, cases: Sequence[Case]) -> tuple[Case, ...]:
    """Training cases with the first masks in place of the true ones."""
    suffix = ".png" if ctx.config.dimension == 2 else ".nii.gz"
    labelled = []
    for case in cases:
        mask = predictor.predict(case).mask
        inside = body(read_image(case.image))[None]
        if not bool((mask.as_tensor() * inside).any()):
            log.warning("nothing was found in %s; it does not take part in the refinement", case.id)
            continue
        path = ctx.out / "guessed" / f"{case.id}{suffix}"
        write_volume(path, MetaTensor((mask.as_tensor() * inside).to(torch.uint8), affine=mask.affine))
        labelled.append(replace(case, label=path))
    return tuple(labelled)

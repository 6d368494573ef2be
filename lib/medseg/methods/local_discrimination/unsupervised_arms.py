"""Benchmark arms of segmentation without labels: Otsu, k-means, and the shape-guided segmentation.

Shapes come from other images than the pictures: the masks of one camera with the pictures of the other cameras, or the
masks of one half of the patients with the pictures of the other half. A mask of a picture that is learnt from is never
shown, except in the arm `shape_control`.
"""

from __future__ import annotations

import logging
import shutil
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
from medseg.methods.local_discrimination.arms import (
    fine_tuning,
    needs_v_net,
    shapes_alone,
    simulate_vessels,
    told,
)
from medseg.methods.local_discrimination.fields import body
from medseg.methods.local_discrimination.pictures import shown
from medseg.methods.local_discrimination.thresholds import is_thin, kmeans_mask, otsu_mask
from medseg.metrics.table import segmentation_metrics
from medseg.reports.overlays import Overlay
from medseg.transforms.grid import spacing_of
from medseg.transforms.io import PICTURES, read_image, read_mask, write_volume

log = logging.getLogger(__name__)

ANSWER = "shape"  # name of the one label of these arms

Mask = NDArray[np.bool_]
Source = Callable[[Any], tuple[Path, tuple[Case, ...]]]


def unsupervised_arms() -> tuple[Arm, ...]:
    """Two classical arms, and the shape-guided one with shapes of several sources."""
    return (
        Arm("otsu", run=partial(classical, find=lambda image, inside, thin, _: otsu_mask(image, inside, thin))),
        Arm("kmeans", run=partial(classical, find=kmeans_mask)),
        Arm("shape_guided", run=partial(shape_guided, source=from_other_images)),
        Arm("shape_unrefined", run=partial(shape_guided, source=from_other_images, refine=False), in_default=False),
        Arm("simulated_vessels", run=partial(shape_guided, source=from_simulation), in_default=False),
        Arm("shape_control", run=partial(shape_guided, source=from_the_same_images), in_default=False),
    )


# -- where shapes come from --------------------------------------------------------------------------------------------


def from_other_images(ctx: Any) -> tuple[Path, tuple[Case, ...]]:
    """The folder `shapes` with all training pictures; without it, masks and pictures of different training images."""
    if ctx.config.shapes:
        return Path(ctx.config.shapes), ctx.training_cases
    chosen = other_images(ctx.training_cases, ctx.seed)
    used = {case.patient for case in chosen}
    return write_shapes(ctx.out / "shapes", chosen, ctx.config.targets), tuple(
        case for case in ctx.training_cases if case.patient not in used
    )


def from_the_same_images(ctx: Any) -> tuple[Path, tuple[Case, ...]]:
    """The masks of the very pictures, apart from them: a control that no user could repeat (card sec. 7)."""
    shapes = write_shapes(ctx.out / "shapes", _masked(ctx.training_cases), ctx.config.targets)
    return shapes, ctx.training_cases


def from_simulation(ctx: Any) -> tuple[Path, tuple[Case, ...]]:
    """Simulated vessel trees, and all training pictures."""
    return simulate_vessels(ctx), ctx.training_cases


def other_images(cases: Sequence[Case], seed: int) -> list[Case]:
    """Those cases whose masks serve as shapes, so that the pictures of the others may be learnt from.

    All masks of one camera, the next one with each seed; where nothing tells of several, those of half of the patients,
    drawn by the seed. A camera is told by the imaging domain, else by the file name up to its last `_`.

    Raises:
        MedsegError: masks of fewer than two patients.
    """
    masked = _masked(cases)
    cameras: dict[str, list[Case]] = {}
    for case in masked:
        cameras.setdefault(case.domain or case.id.rpartition("_")[0], []).append(case)
    if len(cameras) > 1:
        return cameras[sorted(cameras)[seed % len(cameras)]]
    patients = sorted({case.patient for case in masked})
    if len(patients) < 2:
        raise MedsegError("shapes of other images need masks of at least 2 patients, there is 1; give shapes=FOLDER")
    drawn = np.random.default_rng(seed).permutation(len(patients))[: len(patients) // 2]
    chosen = {patients[index] for index in drawn}
    return [case for case in masked if case.patient in chosen]


# -- arms --------------------------------------------------------------------------------------------------------------


def classical(ctx: Any, find: Callable[[Any, Mask, bool, int], Mask]) -> dict[str, Any]:
    """A threshold for each held-out image; the training masks only tell whether to look for thin or broad things."""
    thin = is_thin([target_mask(case, ctx.config.targets) for case in _masked(ctx.training_cases)])

    def answer(case: Case, image: MetaTensor, inside: Mask) -> Mask:
        return find(image.numpy().astype(np.float64), inside, thin, ctx.seed)

    return {"cases": _judge_all(ctx, answer), "thin": thin}


def shape_guided(ctx: Any, source: Source, refine: bool = True) -> dict[str, Any]:
    """Learn from rendered shapes, then train a segmenter from that trunk on what the first one finds.

    Args:
        ctx: `medseg.benchmark.arms.ArmContext`.
        source: gives the folder of shapes and the cases whose pictures are learnt from.
        refine: train the fresh segmenter, from the first one's trunk, on the first masks of the training pictures.
    """
    needs_v_net(ctx)
    shapes, pictured = source(ctx)
    ctx = replace(ctx, labels={ANSWER: 1})
    images = tuple(ctx.method.hide_label(case) for case in pictured)
    first, model = ctx.out / "first", ctx.out / "refined"
    predictor = unrefined = ctx.train(shapes_alone(ctx, str(shapes)), first.name, cases=images)
    guessed = _pseudo_labels(ctx, predictor, images) if refine else ()
    if guessed:
        predictor = ctx.train(fine_tuning(ctx, first), model.name, cases=guessed, method="supervised")
    elif refine:
        log.warning("nothing was found in any of %d training images; the first masks stay as they are", len(images))

    def answer(case: Case, image: MetaTensor, inside: Mask) -> Mask:
        return (predictor.predict(case).mask[0].numpy() == 1) & inside

    return {
        "cases": _judge_all(ctx, answer, unrefined if guessed else None),
        "labelled": [],
        "shapes": sorted(path.name for path in shapes.iterdir()),
        "pictures": sorted(case.id for case in pictured),
        "refined_on": len(guessed),
        **(told(model, first) if guessed else told(first) | {"iterations": 0}),
    }


def _judge_all(
    ctx: Any, answer: Callable[[Case, MetaTensor, Mask], Mask], first: Any = None
) -> dict[str, dict[str, float]]:
    """Metrics of the held-out cases, and their pictures, with the mask of a first predictor where there is one."""
    cases, pictures = {}, {}
    for case in ctx.held_out_cases:
        image = read_image(case.image)
        mask = answer(case, image, body(image).numpy())
        cases[case.id] = judge(case, mask, ctx.config.targets)
        layers = {"first mask": first.predict(case).mask[0].numpy()} if first and ctx.pictures else {}
        title = f"{case.id}, {ANSWER}: Dice {cases[case.id]['dice']:.4f}"
        pictures[case.id] = Overlay(
            image=shown(image),
            truth=target_mask(case, ctx.config.targets).astype(np.uint8),
            prediction=mask.astype(np.uint8),
            spacing=spacing_of(image),
            title=title,
            layers=layers,
        )
    ctx.keep(pictures)
    return cases


def judge(case: Case, mask: Mask, targets: Sequence[int]) -> dict[str, float]:
    """Metrics of a binary mask against the union of the target labels; distances in mm, of pictures in pixels."""
    assert case.label is not None
    truth = read_mask(case.label)
    union = np.isin(truth[0].numpy(), list(targets)).astype(np.uint8)
    picture = case.image.suffix.lower() in PICTURES
    spacing = None if picture else tuple(float(size) for size in truth.pixdim)
    return segmentation_metrics(mask.astype(np.uint8), union, {ANSWER: 1}, spacing)


def target_mask(case: Case, targets: Sequence[int]) -> Mask:
    """Union of the target labels of a case's mask."""
    assert case.label is not None
    return np.isin(read_mask(case.label)[0].numpy(), list(targets))


# -- files -------------------------------------------------------------------------------------------------------------


def _masked(cases: Sequence[Case]) -> list[Case]:
    found = [case for case in cases if case.label is not None]
    if not found:
        raise MedsegError("no training case has a mask to take shapes from")
    return found


def _suffix(dimension: int) -> str:
    return ".png" if dimension == 2 else ".nii.gz"


def write_shapes(folder: Path, cases: Sequence[Case], targets: Sequence[int]) -> Path:
    """The targets of every mask as a binary mask, and nothing else in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for case in cases:
        mask = target_mask(case, targets)
        binary = MetaTensor(torch.from_numpy(mask.astype(np.uint8))[None], affine=torch.eye(mask.ndim + 1))
        write_volume(folder / f"{case.id}{_suffix(mask.ndim)}", binary)
    return folder


def _pseudo_labels(ctx: Any, predictor: Any, cases: Sequence[Case]) -> tuple[Case, ...]:
    """Training cases with the first masks in place of the true ones."""
    labelled = []
    for case in cases:
        mask = predictor.predict(case).mask
        inside = body(read_image(case.image))[None]
        if not bool((mask.as_tensor() * inside).any()):
            log.warning("nothing was found in %s; it does not take part in the refinement", case.id)
            continue
        path = ctx.out / "guessed" / f"{case.id}{_suffix(ctx.config.dimension)}"
        write_volume(path, MetaTensor((mask.as_tensor() * inside).to(torch.uint8), affine=mask.affine))
        labelled.append(replace(case, label=path, names={1: ANSWER}))
    return tuple(labelled)

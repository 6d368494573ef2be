"""Benchmark arms that are no training: the constant predictor, and the time of one radiograph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.methods.seg4reg.judge import true_angles, true_mask
from medseg.methods.seg4reg.targets import read_truth
from medseg.metrics.smape import angle_errors
from medseg.networks.precision import autocast
from medseg.transforms.grid import to_grid
from medseg.transforms.io import read_image

SPEED_HEIGHT = 1024
REPEATS = 5


def constant(context: Any) -> dict[str, Any]:
    """The mean angles of the training cases as the answer to everything (Seg4Reg card sec. 3).

    Truth is what the other arms are judged by, so that all have the same cases.

    Args:
        context: a `medseg.benchmark.arms.ArmContext`.

    Raises:
        MedsegError: no angle is known among the training cases, or none among the held-out ones.
    """
    method = context.method(context.config, context.labels)
    learnt, judged = (_angles(method, cases) for cases in (context.training_cases, context.held_out_cases))
    if not learnt or not judged:
        bare = f"{len(context.held_out_cases)} held-out" if learnt else f"{len(context.training_cases)} training"
        raise MedsegError(
            f"none of the {bare} cases tells an angle; give angles, corners or masks with 16 to 18 vertebrae, "
            "or leave out the arm constant"
        )
    mean = np.nan_to_num(np.nanmean(list(learnt.values()), axis=0))
    errors = {name: angle_errors(mean, truth) for name, truth in judged.items()}
    return {"cases": errors, "mean_angles": mean.round(2).tolist()}


def time_inference(context: Any) -> dict[str, Any]:
    """Seconds for one radiograph of 1024 rows, from the pixels in memory to mask, angles and markups.

    The weights are untrained: time does not depend on them but for the geometry, which is measured on a true mask of 17
    vertebrae. Median of five after one to warm up, on all cores.
    """
    torch.manual_seed(0)
    config = context.config.with_overrides({"grid": (512, SPEED_HEIGHT)})
    method = context.method(config, context.labels)
    method.network.to(context.device).eval()
    case = context.held_out_cases[0]
    parts = [_time_once(method, case) for _ in range(REPEATS + 1)][1:]
    medians = {key: float(np.median([part[key] for part in parts])) for key in parts[0]}
    return {"cases": {}, "mean": sum(medians.values()), "seconds_by_part": medians}


def _time_once(method: Any, case: Case) -> dict[str, float]:
    """Seconds of loading, of the networks, of going back to the image's grid, and of geometry with markups there."""
    started = time.perf_counter()
    loaded = method.load(case.without_label())
    ready = time.perf_counter()
    with torch.no_grad(), autocast(method.config.amp, method.network.mean_angles.device):
        prediction = method.predict(loaded)
    seen = time.perf_counter()
    image = read_image(case.image)
    drawn = None if case.label is None else method.read_truth(case, image)
    truth = true_mask(read_truth(case, image), image, drawn)
    again = time.perf_counter()
    for found in (prediction.probabilities, prediction.uncertainty):
        to_grid(found, image)
    restored = time.perf_counter()
    if truth is not None:
        prediction.mask = MetaTensor(torch.from_numpy((truth > 0).astype(np.uint8))[None], affine=image.affine)
    method.finish(prediction, case)
    done = time.perf_counter()
    return {"load": ready - started, "networks": seen - ready, "grid": restored - again, "geometry": done - restored}


def _angles(method: Any, cases: Sequence[Case]) -> dict[str, NDArray[np.float64]]:
    """Case id -> true angles, for the cases of which one is known."""
    found = {}
    for case in cases:
        if method.is_labelled(case):
            image = read_image(case.image)
            mask = None if case.label is None else method.read_truth(case, image)
            found[case.id] = true_angles(read_truth(case, image), mask, method.limits)
    return {name: angles for name, angles in found.items() if not np.isnan(angles).all()}

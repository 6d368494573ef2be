"""Benchmark arms: fine-tuning from random and from pretrained weights at equal budget, and cold start.

Arms of one seed share one pretraining, which stands beside the runs; its cost is told in every arm that uses it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.errors import ConflictError, MedsegError
from medseg.files import read_json
from medseg.methods.base import V_NET, Arm
from medseg.methods.local_discrimination.selection import k_centre, typical_first
from medseg.phantoms.shapes import draw_vessels
from medseg.transforms.io import read_image, write_volume

log = logging.getLogger(__name__)

LABELS = (2, 5, 10)
SIMULATED = 30  # ours: simulated vessel trees
FIRST = 5  # labels of the cold-start arms
WAIT = 7200.0  # ours: longest wait, in seconds, for another run that pretrains


def segmentation_arms() -> tuple[Arm, ...]:
    """`random_2` ... `pretrained_10`; by name also `shaped_2` ..., pretrained with a shape prior (`shapes`)."""
    return tuple(
        Arm(f"{start}_{count}", run=partial(fine_tune, count=count, start=start), in_default=start != "shaped")
        for start in ("random", "pretrained", "shaped")
        for count in LABELS
    )


def cold_start_arms() -> tuple[Arm, ...]:
    """The first five labels by chance, by typicality, by k-centre."""
    return tuple(
        Arm(name, run=partial(cold_start, choose=choose))
        for name, choose in (("random", _by_chance), ("typicality", _typical), ("k_centre", _spread))
    )


def fine_tune(ctx: Any, count: int, start: str) -> dict[str, Any]:
    """Train `supervised` on `count` labels, drawn by the seed and the same for both starts.

    Args:
        ctx: `medseg.benchmark.arms.ArmContext`.
        count: labels.
        start: "random"; "pretrained": from the trunk that was pretrained on all training images without labels;
            "shaped": from a trunk that learnt shapes (the setting `shapes`, else simulated vessels) in their place.
    """
    needs_v_net(ctx)
    labelled = [case for case in ctx.training_cases if case.label is not None]
    if len(labelled) < count:
        raise MedsegError(f"this arm needs {count} labelled training cases, there are {len(labelled)}")
    chosen = _by_chance(labelled, None, ctx.seed)[:count]
    if start == "random":
        return _train_on(ctx, chosen, None)
    if start == "pretrained":
        return _train_on(ctx, chosen, pretrain(ctx, {"shapes": None}))
    shapes = ctx.config.shapes or str(simulate_vessels(ctx))
    return _train_on(ctx, chosen, pretrain(ctx, shapes_alone(ctx, shapes), "shaped"))


def shapes_alone(ctx: Any, shapes: str) -> dict[str, Any]:
    """Settings of a training on pictures of shapes and nothing else, which was better wherever masks are the aim."""
    iterations = ctx.config.shape_iterations or ctx.config.iterations
    return {"shapes": shapes, "shape_share": 1.0, "iterations": iterations}


def needs_v_net(ctx: Any) -> None:
    """Refuse, before anything is trained, another trunk than the one that `supervised` and landmarks need.

    Raises:
        MedsegError: another trunk.
    """
    if ctx.config.trunk != V_NET:
        raise MedsegError(
            f"trunk = {ctx.config.trunk}, but this arm needs trunk = {V_NET}, the V-Net; compare others by "
            "`medseg bench METHOD --set init=MODEL`"
        )


def simulate_vessels(ctx: Any) -> Path:
    """A folder of simulated vessel trees of the size of the first image, once for all arms of a seed.

    Raises:
        MedsegError: the images are volumes.
    """
    if ctx.config.dimension != 2:
        raise MedsegError("simulated vessels are pictures; give a folder of binary volumes by --set shapes=FOLDER")
    folder = (ctx.out / f"../../shared/vessels_seed{ctx.seed}").resolve()
    size = tuple(read_image(ctx.training_cases[0].image).shape[1:])
    for number in range(SIMULATED):
        file = folder / f"tree_{number:03d}.png"
        if not file.exists():
            tree = torch.from_numpy(draw_vessels(1000 * ctx.seed + number, size).astype(np.uint8))[None]
            write_volume(file, MetaTensor(tree, affine=torch.eye(3)))
    return Path(folder)


def cold_start(ctx: Any, choose: Callable[..., list[Case]]) -> dict[str, Any]:
    """Choose the first labels, then fine-tune from the pretrained trunk on them; all seeds share one pretraining."""
    needs_v_net(ctx)
    labelled = [case for case in ctx.training_cases if case.label is not None]
    if len(labelled) < FIRST:
        raise MedsegError(f"this arm needs {FIRST} labelled training cases, there are {len(labelled)}")
    folder = pretrain(ctx, {"seed": 0})
    chosen = choose(labelled, lambda: describe(ctx, folder, labelled), ctx.seed)[:FIRST]
    return _train_on(ctx, chosen, folder)


def pretrain(ctx: Any, overrides: Mapping[str, Any] | None = None, name: str = "pretraining") -> Path:
    """Pretrain on all training images without their labels, once for all arms with the same settings and seed.

    Returns:
        The model's folder; `metrics.json` in it tells seconds and iterations.
    """
    values = {"landmarks": (), "templates": 0, **(overrides or {})}
    cases = tuple(ctx.method.hide_label(case) for case in ctx.training_cases)
    values.setdefault("seed", ctx.seed)
    text = json.dumps([{**ctx.config.to_dict(), **values}, [case.id for case in cases]], sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    ctx.out.mkdir(parents=True, exist_ok=True)
    folder = f"../../shared/{name}_seed{values['seed']}_{key}"
    deadline = time.monotonic() + WAIT
    while True:
        try:
            ctx.train(values, folder, cases=cases)
            return Path(ctx.out / folder).resolve()
        except ConflictError:  # another run of this benchmark is at it
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)


def told(trained: Path, pretrained: Path | None = None) -> dict[str, Any]:
    """What a training and the pretraining before it cost and how they went, by their own `metrics.json`.

    Whichever arm happens to run first pretrains for all; what an arm reports must not depend on that.

    Returns:
        `seconds` and `iterations` of the training alone, `pretraining_seconds` and `pretraining_iterations` apart,
        `peak_memory_mb` the larger of both, and the `history` of both.
    """
    own = read_json(trained / "metrics.json", default={})
    before = read_json(pretrained / "metrics.json", default={}) if pretrained else {}
    peaks = [metrics["peak_memory_mb"] for metrics in (own, before) if "peak_memory_mb" in metrics]
    history = [
        {k if k == "iteration" else f"pretraining: {k}": v for k, v in e.items()} for e in before.get("history", ())
    ]
    return {
        "iterations": own.get("iterations", 0),
        "seconds": own.get("seconds"),
        "peak_memory_mb": max(peaks, default=None),
        "history": [*history, *own.get("history", ())],
        **{f"pretraining_{key}": before[key] for key in ("seconds", "iterations") if key in before},
    }


def describe(ctx: Any, folder: Path, cases: Sequence[Case]) -> np.ndarray:
    """Descriptors (n, d) of images by a pretrained model."""
    predictor = ctx.predictor(folder)
    return np.asarray([predictor.score(case).features for case in cases], dtype=np.float64)


def fine_tuning(ctx: Any, folder: Path | None) -> dict[str, Any]:
    """Settings of `supervised` that fit the pretrained trunk."""
    config = ctx.config
    return {
        "network": "vnet",
        "width": config.width,
        "norm": config.norm,
        "dropout": 0.0,  # ours: it slows the few iterations down, from either start
        "iterations": config.finetune_iterations,
        "labelled_batch": config.image_batch,
        "learning_rate": config.finetune_learning_rate,
        "lr_schedule": "poly",
        "init": str(folder) if folder else None,
    }


def _train_on(ctx: Any, chosen: Sequence[Case], folder: Path | None) -> dict[str, Any]:
    predictor = ctx.train(fine_tuning(ctx, folder), cases=tuple(chosen), method="supervised")
    labelled = sorted(case.id for case in chosen)
    return {"cases": ctx.evaluate(predictor), "labelled": labelled, **told(ctx.out / "model", folder)}


def _by_chance(cases: Sequence[Case], features: Any, seed: int) -> list[Case]:
    order = np.random.default_rng(seed).permutation(len(cases))
    return [cases[row] for row in order]


def _typical(cases: Sequence[Case], features: Callable[[], np.ndarray], seed: int) -> list[Case]:
    return [cases[pick.row] for pick in typical_first(features(), (), FIRST, seed)]


def _spread(cases: Sequence[Case], features: Callable[[], np.ndarray], seed: int) -> list[Case]:
    return [cases[pick.row] for pick in k_centre(features(), (), FIRST)]

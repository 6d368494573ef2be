from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.benchmark.arms import ArmContext
from medseg.cases import load_cases
from medseg.errors import MedsegError
from medseg.methods.local_discrimination.landmark_arms import correlate, template_of
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.methods.local_discrimination.thresholds import is_thin, kmeans_mask, otsu, otsu_mask
from medseg.metrics.table import mean_table
from medseg.phantoms.landmarks import write_landmark_study
from medseg.phantoms.shapes import draw_vessels
from medseg.transforms.io import write_volume

TINY = {
    "iterations": 2,
    "pretraining": 2,
    "patch": (32, 32),
    "width": 2,
    "embedding": 4,
    "regions": 2,
    "points": 16,
    "image_batch": 2,
    "norm": "instance",
    "amp": "off",
    "pyramid": (2, 1),
}


@pytest.fixture(scope="module")
def vessels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen pictures of dark simulated vessels."""
    folder = tmp_path_factory.mktemp("vessels")
    rng = np.random.default_rng(0)
    for index in range(14):
        tree = draw_vessels(index, (128, 128)).astype(np.float32)
        image = (160 - 60 * tree + 8 * rng.standard_normal(tree.shape)).clip(1, 255).round()
        for name, array in (("images", image), ("labels", tree)):
            tensor = MetaTensor(torch.from_numpy(array.astype(np.uint8))[None], affine=torch.eye(3))
            write_volume(folder / name / f"v{index:02d}.png", tensor)
    return folder


def context(folder: Path, out: Path, arm: str, seed: int = 0, held_out: int = 2, **settings: Any) -> ArmContext:
    cases = load_cases([folder])
    config = LocalDiscrimination.config_class.from_dict({**TINY, "seed": seed, **settings})
    return ArmContext(
        method=LocalDiscrimination,
        config=LocalDiscrimination.fit_config(config, cases),
        labels={"label_1": 1} if (folder / "labels").exists() else {},
        device="cpu",
        seed=seed,
        iterations=2,
        out=out / "runs" / arm,
        training_cases=tuple(cases[held_out:]),
        held_out_cases=tuple(cases[:held_out]),
    )


def run(group: str, arm: str, ctx: ArmContext) -> dict[str, Any]:
    arms = {a.name: a for a in LocalDiscrimination.arm_groups[group].arms}
    found: dict[str, Any] = arms[arm].run(ctx)  # type: ignore[misc]
    assert sorted(found["cases"]) == [case.id for case in ctx.held_out_cases]
    return found


def used(ctx: ArmContext) -> list[str]:
    found: list[str] = json.loads((ctx.out / "model" / "metrics.json").read_text())["labelled"]
    return found


def test_both_starts_learn_from_the_same_labels_and_share_one_pretraining(vessels: Path, tmp_path: Path) -> None:
    contexts = {arm: context(vessels, tmp_path, arm) for arm in ("random_2", "pretrained_2", "pretrained_5")}

    results = {arm: run("segmentation", arm, ctx) for arm, ctx in contexts.items()}

    assert used(contexts["random_2"]) == used(contexts["pretrained_2"])
    assert set(used(contexts["random_2"])) <= set(used(contexts["pretrained_5"]))
    assert len(list((tmp_path / "shared").iterdir())) == 1
    assert "pretraining_seconds" not in results["random_2"]
    assert results["pretrained_2"]["pretraining_iterations"] == 2
    assert {result["iterations"] for result in results.values()} == {2}


def test_a_shape_prior_may_take_part_in_the_pretraining(vessels: Path, tmp_path: Path) -> None:
    run("segmentation", "shaped_2", context(vessels, tmp_path, "shaped_2"))

    (folder,) = (tmp_path / "shared").glob("shaped_seed0_*")
    history = json.loads((folder / "metrics.json").read_text())["history"]
    assert len(list((tmp_path / "shared" / "vessels_seed0").iterdir())) == 30
    assert "shape" in history[0]


def test_pretraining_sees_no_mask_and_no_held_out_image(vessels: Path, tmp_path: Path) -> None:
    run("segmentation", "pretrained_2", context(vessels, tmp_path, "pretrained_2"))

    metrics = json.loads(next((tmp_path / "shared").iterdir()).joinpath("metrics.json").read_text())
    assert metrics["labelled"] == []
    assert sorted(metrics["unlabelled_ids"]) == [f"v{index:02d}" for index in range(2, 14)]


def test_too_few_labels_are_one_sentence(vessels: Path, tmp_path: Path) -> None:
    ctx = context(vessels, tmp_path, "random_10", held_out=6)

    with pytest.raises(MedsegError, match="needs 10 labelled training cases, there are 8"):
        run("segmentation", "random_10", ctx)


@pytest.mark.parametrize("arm", ["random", "typicality", "k_centre"])
def test_cold_start_chooses_five(vessels: Path, tmp_path: Path, arm: str) -> None:
    ctx = context(vessels, tmp_path, arm)

    chosen = run("cold_start", arm, ctx)["chosen"]

    assert len(set(chosen)) == 5
    assert set(used(ctx)) == set(chosen)


def test_classical_arms_find_dark_vessels_and_the_shape_guided_one_runs(vessels: Path, tmp_path: Path) -> None:
    results = {
        arm: run("unsupervised", arm, context(vessels, tmp_path, arm)) for arm in ("otsu", "kmeans", "shape_guided")
    }

    assert results["otsu"]["thin"]
    assert mean_table(results["otsu"]["cases"])["dice"] > 0.6
    assert mean_table(results["kmeans"]["cases"])["dice"] > 0.4
    assert len(list((tmp_path / "runs" / "shape_guided" / "shapes").iterdir())) == 12


def test_landmark_arms_share_a_template_and_seeds_change_it(tmp_path: Path) -> None:
    study = write_landmark_study(tmp_path / "study", 5, (80, 72), 6)
    contexts = {arm: context(study, tmp_path, arm) for arm in ("coordinate_copy", "template_matching", "one_shot")}
    values: dict[str, Any] = {"scale": 1.0, "pixel_mm": 1.0}

    results = {arm: run("landmarks", arm, ctx) for arm, ctx in contexts.items()}
    errors = {arm: mean_table(result["cases"])["radial_error_mm"] for arm, result in results.items()}

    assert len({result["template"] for result in results.values()}) == 1
    assert template_of(context(study, tmp_path, "x", seed=1, **values)).id != results["one_shot"]["template"]
    assert errors["template_matching"] < errors["coordinate_copy"]
    assert errors["one_shot"] == errors["one_shot"]


def test_coordinate_copy_gives_the_figure_of_the_card(data_dir: Path, tmp_path: Path) -> None:
    cases = load_cases([data_dir / "cephalometric"])
    template = next(case for case in cases if case.id.endswith("125"))
    others = tuple(case for case in cases if case.id != template.id)
    config = LocalDiscrimination.config_class.from_dict({"dimension": 2, "pixel_mm": 0.3})
    ctx = ArmContext(LocalDiscrimination, config, {}, "cpu", 0, 0, tmp_path, (template,), others)

    table = mean_table(run("landmarks", "coordinate_copy", ctx)["cases"])

    assert table["radial_error_mm"] == pytest.approx(9.96, abs=0.02)
    assert table["success_4mm"] == pytest.approx(0.148, abs=0.003)


def test_correlation_is_highest_where_the_patch_was_cut() -> None:
    area = torch.randn(40, 44, generator=torch.Generator().manual_seed(0))

    scores = correlate(3 * area + 7, area[10:21, 20:31])

    assert scores.shape == (30, 34)
    assert divmod(int(scores.argmax()), 34) == (10, 20)
    assert float(scores.max()) == pytest.approx(1, abs=1e-3)
    assert float(scores.abs().max()) <= 1.001


def test_otsu_splits_two_groups_and_broad_shapes_lose_the_border() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 500), rng.normal(10, 1, 100)])
    image = np.full((1, 60, 60), 200.0)
    image[0, 20:40, 20:40] = 50
    image[0, :8] = 50
    inside = np.ones((60, 60), dtype=bool)

    mask = otsu_mask(image, inside, thin=False)

    assert 3 < otsu(values) < 7
    assert mask[30, 30]
    assert not mask[2, 30]
    assert kmeans_mask(image, inside, thin=False, seed=0)[30, 30]
    assert not is_thin([mask])
    assert is_thin([draw_vessels(0, (128, 128))])

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medseg.benchmark.arms import ArmContext
from medseg.benchmark.recorder import load_overlay
from medseg.cases import load_cases
from medseg.errors import MedsegError
from medseg.methods.local_discrimination import arms, landmarks, unsupervised_arms
from medseg.methods.local_discrimination.landmark_arms import correlate, template_of
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.methods.local_discrimination.thresholds import is_thin, kmeans_mask, otsu, otsu_mask
from medseg.methods.local_discrimination.unsupervised_arms import judge, other_images, target_mask
from medseg.metrics.table import mean_table
from medseg.phantoms.landmarks import write_landmark_study
from medseg.phantoms.shapes import draw_vessels
from medseg.transforms.io import read_mask, write_volume

TINY = {
    "iterations": 2,
    "finetune_iterations": 2,
    "patch": (32, 32),
    "width": 2,
    "embedding": 4,
    "regions": 2,
    "points": 16,
    "image_batch": 2,
    "norm": "instance",
    "amp": "off",
    "pyramid": (2, 1),
    "heat_iterations": 2,
    "landmark_iterations": 4,
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
        pictures=out / "runs" / arm / "overlays.npz",
    )


def run(group: str, arm: str, ctx: ArmContext) -> dict[str, Any]:
    by_name = {a.name: a for a in LocalDiscrimination.arm_groups[group].arms}
    found: dict[str, Any] = by_name[arm].run(ctx)  # type: ignore[misc]
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
    assert all(result["labelled"] == sorted(used(contexts[arm])) for arm, result in results.items())
    assert len(list((tmp_path / "shared").iterdir())) == 1
    assert "pretraining_seconds" not in results["random_2"]
    assert {result["iterations"] for result in results.values()} == {2}


def test_costs_do_not_depend_on_who_pretrained(vessels: Path, tmp_path: Path) -> None:
    first, second = (
        run("segmentation", arm, context(vessels, tmp_path, arm)) for arm in ("pretrained_2", "pretrained_5")
    )

    (folder,) = (tmp_path / "shared").iterdir()
    pretraining = json.loads((folder / "metrics.json").read_text())
    own = json.loads((tmp_path / "runs" / "pretrained_5" / "model" / "metrics.json").read_text())
    assert first["pretraining_seconds"] == second["pretraining_seconds"] == pretraining["seconds"]
    assert first["pretraining_iterations"] == second["pretraining_iterations"] == 2
    assert second["seconds"] == own["seconds"]
    assert second["peak_memory_mb"] == max(own["peak_memory_mb"], pretraining["peak_memory_mb"])
    assert {"pretraining: patch", "supervised"} <= {key for entry in second["history"] for key in entry}


@pytest.mark.parametrize(
    ("group", "arm"),
    [
        ("segmentation", "random_2"),
        ("segmentation", "pretrained_2"),
        ("cold_start", "typicality"),
        ("landmarks", "one_shot"),
        ("unsupervised", "shape_guided"),
    ],
)
def test_arms_that_need_the_v_net_refuse_another_trunk_at_once(
    group: str, arm: str, vessels: Path, tmp_path: Path
) -> None:
    with pytest.raises(MedsegError, match="trunk = seg4reg, but this arm needs trunk = caml"):
        run(group, arm, context(vessels, tmp_path, arm, trunk="seg4reg"))

    assert list(tmp_path.iterdir()) == []


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

    chosen = run("cold_start", arm, ctx)["labelled"]

    assert len(set(chosen)) == 5
    assert set(used(ctx)) == set(chosen)


@pytest.mark.parametrize("arm", ["typicality", "k_centre"])
def test_cold_start_follows_the_embeddings(
    vessels: Path, tmp_path: Path, arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five far groups of descriptors, of which four hold one image: those four are always among the first five."""

    def describe(ctx: Any, folder: Path, cases: Any) -> np.ndarray:
        return np.stack([np.eye(12)[max(0, 4 - index)] * 10 + 0.01 * index for index in range(len(cases))])

    monkeypatch.setattr(arms, "describe", describe)
    ctx = context(vessels, tmp_path, arm)

    chosen = run("cold_start", arm, ctx)["labelled"]

    alone = [case.id for case in ctx.training_cases[:4]]
    assert set(alone) < set(chosen)


def test_classical_arms_find_dark_vessels(vessels: Path, tmp_path: Path) -> None:
    results = {arm: run("unsupervised", arm, context(vessels, tmp_path, arm)) for arm in ("otsu", "kmeans")}

    assert results["otsu"]["thin"]
    assert mean_table(results["otsu"]["cases"])["dice"] > 0.6
    assert mean_table(results["kmeans"]["cases"])["dice"] > 0.4
    drawn = load_overlay(tmp_path / "runs" / "otsu" / "overlays.npz", "v00")
    assert drawn is not None
    assert drawn.truth is not None
    assert 0.4 < drawn.prediction.sum() / drawn.truth.sum() < 2.5
    assert "hd95_px" in results["otsu"]["cases"]["v00"]
    assert not any(key.endswith("_mm") for key in results["otsu"]["cases"]["v00"])


def test_shapes_come_from_other_images_than_the_pictures(vessels: Path, tmp_path: Path) -> None:
    ctx = context(vessels, tmp_path, "shape_guided")

    result = run("unsupervised", "shape_guided", ctx)

    shapes = {name.removesuffix(".png") for name in result["shapes"]}
    assert (len(shapes), len(result["pictures"])) == (6, 6)
    assert shapes.isdisjoint(result["pictures"])
    metrics = json.loads((ctx.out / "first" / "metrics.json").read_text())
    assert sorted(metrics["unlabelled_ids"]) == result["pictures"]
    drawn = load_overlay(ctx.out / "overlays.npz", "v00")
    assert drawn is not None
    assert list(drawn.layers) == ["first mask"]
    assert drawn.layers["first mask"].shape == drawn.prediction.shape
    assert (result["refined_on"], result["pretraining_iterations"]) == (6, 2)


def test_one_camera_gives_shapes_for_the_others(vessels: Path) -> None:
    cases = [replace(case, id=f"{'ab'[i % 2]}_{i}", patient="") for i, case in enumerate(load_cases([vessels]))]

    assert {case.id[0] for case in other_images(cases, 0)} == {"a"}
    assert {case.id[0] for case in other_images(cases, 1)} == {"b"}
    assert {case.id[0] for case in other_images(cases, 2)} == {"a"}


def test_the_control_and_a_folder_of_shapes_use_every_picture(vessels: Path, tmp_path: Path) -> None:
    control = run("unsupervised", "shape_control", context(vessels, tmp_path, "shape_control"))
    folder = tmp_path / "given"
    write_volume(folder / "mine.png", read_mask(vessels / "labels" / "v00.png"))
    given = run("unsupervised", "shape_guided", context(vessels, tmp_path, "given", shapes=str(folder)))

    assert [name.removesuffix(".png") for name in control["shapes"]] == control["pictures"]
    assert given["shapes"] == ["mine.png"]
    assert len(given["pictures"]) == 12


def test_where_nothing_is_found_the_first_masks_stay(
    vessels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unsupervised_arms, "_pseudo_labels", lambda *_: ())
    ctx = context(vessels, tmp_path, "shape_guided")

    result = run("unsupervised", "shape_guided", ctx)

    assert result["refined_on"] == 0
    assert not (ctx.out / "refined").exists()


def test_judging_takes_the_union_of_the_targets_and_pixels_of_pictures(vessels: Path, tmp_path: Path) -> None:
    case = load_cases([vessels])[0]
    assert case.label is not None
    twice = read_mask(case.label)
    twice[:, 64:] *= 2
    write_volume(tmp_path / "twice.png", MetaTensor(twice.as_tensor().to(torch.uint8), affine=torch.eye(3)))
    both = target_mask(replace(case, label=tmp_path / "twice.png"), (1, 2))

    assert judge(replace(case, label=tmp_path / "twice.png"), both, (1, 2))["dice"] == 1.0
    assert judge(replace(case, label=tmp_path / "twice.png"), both, (1,))["dice"] < 0.9


def test_landmark_arms_share_a_template_and_seeds_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmarks, "FEWEST", 2)
    study = write_landmark_study(tmp_path / "study", 5, (80, 72), 6)
    contexts = {
        arm: replace(context(study, tmp_path, arm), metric="radial_error_mm")
        for arm in ("coordinate_copy", "template_matching", "one_shot", "one_shot_matches")
    }
    values: dict[str, Any] = {"scale": 1.0, "pixel_mm": 1.0}

    results = {arm: run("landmarks", arm, ctx) for arm, ctx in contexts.items()}
    errors = {arm: mean_table(result["cases"])["radial_error_mm"] for arm, result in results.items()}

    templates = [result["labelled"] for result in results.values()]
    assert all(template == templates[0] for template in templates)
    assert results["one_shot_matches"]["cases"] != results["one_shot"]["cases"]  # one has heat maps
    assert len(templates[0]) == 1
    assert [template_of(context(study, tmp_path, "x", seed=1, **values)).id] != templates[0]
    assert errors["template_matching"] < errors["coordinate_copy"]
    assert 0 < errors["one_shot"] < 60  # untrained: somewhere within the searched part of the image
    assert results["one_shot"]["pretraining_iterations"] == 4
    assert results["one_shot"]["iterations"] == 0
    assert results["one_shot"]["heat_iterations"] == 2
    assert len(list((tmp_path / "runs" / "one_shot" / "pictures").glob("*.png"))) == 2


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

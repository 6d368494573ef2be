from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medseg.cases import Case
from medseg.errors import UnusableInputError
from medseg.inference.predictor import Predictor
from medseg.methods.base import TrainingSet
from medseg.methods.dram.data import guess_window, lesion_label, lung_label
from medseg.methods.dram.derive import derive_extents
from medseg.methods.dram.method import DRAM
from medseg.phantoms.chest import LABELS, true_percent
from medseg.phantoms.study import write_grid
from medseg.training.data import CaseCache, readable
from medseg.transforms.io import read_image, read_mask
from medseg.weak import WeakLabels


def test_regions_and_extents_follow_from_a_mask(write_case: Callable, build: Callable[..., DRAM]) -> None:
    case, chest = write_case(0, percent=[0, 5, 30, 0, 12, 60])

    loaded = build(masks="extents").load(case)

    low, high, weight = loaded["extents"]
    assert weight.nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    for index, percent in true_percent(chest).items():
        assert float(low[index]) <= percent / 100 <= float(high[index])
    assert float(loaded["image"].min()) >= 0
    assert float(loaded["image"].max()) <= 1


def test_no_voxel_of_the_truth_reaches_a_weak_sample(
    write_case: Callable, build: Callable[..., DRAM], tmp_path: Path
) -> None:
    """Two masks with the same extents and other voxels give the same sample; and none is named `label`."""
    case, chest = write_case(1, percent=[20, 20, 20, 20, 20, 20])
    shuffled = chest.mask.copy()
    rng = np.random.default_rng(0)
    for index in range(1, 7):
        shuffled[chest.regions == index] = rng.permutation(chest.mask[chest.regions == index])
    other = replace(case, label=write_grid(tmp_path / "other.nii.gz", shuffled, chest.affine))
    method = build(masks="extents")

    one, two = method.load(case), method.load(other)
    drawn = [method.sample(loaded, "extents", torch.Generator().manual_seed(0)) for loaded in (one, two)]

    assert not np.array_equal(shuffled, chest.mask)
    assert "label" not in one
    for key, value in one.items():
        assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key]
    assert all(torch.equal(drawn[0][key], drawn[1][key]) for key in drawn[0])
    assert float(drawn[0]["label"].abs().sum()) == 0
    assert float(drawn[0]["has_mask"]) == 0
    assert "label" in build(masks="voxels").load(case)


def test_stated_extents_need_no_mask(write_case: Callable, build: Callable[..., DRAM]) -> None:
    case, _ = write_case(2, mask=False, regions=True, weak={"extent": {"left_upper": [10, 20]}, "source": "reader"})

    loaded = build().load(case)

    assert loaded["source"] == "reader"
    assert loaded["extents"][2].nonzero()[:, 0].tolist() == [3]
    assert "label" not in loaded


def test_lungs_are_found_in_hu_where_nobody_gave_regions(write_case: Callable, build: Callable[..., DRAM]) -> None:
    case, chest = write_case(3, mask=False, weak={"scores": {"left_lower": 1}}, percent=[3, 0, 0, 0, 0, 0])

    regions = build(margin=50).load(case)["regions"]

    agreement = (regions.as_tensor()[0].numpy() == chest.regions)[chest.regions > 0].mean()
    assert agreement > 0.85


def test_a_flip_never_swaps_region_ids(write_case: Callable, build: Callable[..., DRAM]) -> None:
    method = build()
    loaded = method.load(write_case(4)[0])
    marked = {**loaded, "image": loaded["regions"].float() / 10}
    for seed in range(4):
        drawn = method.sample(marked, "extents", torch.Generator().manual_seed(seed))
        # contrast changes the values but not which voxels are equal
        for index in range(1, 7):
            values = drawn["image"][drawn["regions"] == index]
            assert float(values.std()) < 0.04
        assert drawn["extents"][2].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_a_cut_region_loses_its_percentage(write_case: Callable, build: Callable[..., DRAM]) -> None:
    method = build(patch=(24, 24, 8), batch=2)
    loaded = method.load(write_case(5)[0])

    drawn = method.sample(loaded, "extents", torch.Generator().manual_seed(0))

    assert drawn["image"].shape[1:] == (24, 24, 8)
    counts = torch.bincount(drawn["regions"].flatten().long(), minlength=33)
    for index in range(1, 7):
        whole = int(counts[index]) == int(loaded["counts"][index])
        assert (float(drawn["extents"][2, index]) > 0) == whole
    assert float(drawn["extents"][2].sum()) < 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [("empty", "is empty; draw the lungs"), ("far", "lies on another grid"), ("axes", "has 2 axes, its image 3")],
)
def test_bad_region_masks(
    change: str, reason: str, write_case: Callable, build: Callable[..., DRAM], tmp_path: Path
) -> None:
    case, chest = write_case(6, regions=True)
    values, affine = chest.regions, chest.affine.copy()
    if change == "empty":
        values = np.zeros_like(values)
    if change == "far":
        affine[:3, 3] = 5000
    if change == "axes":
        values = values[:, :, 3]
    suffix = ".png" if change == "axes" else ".nii.gz"
    bad = replace(case, regions=write_grid(tmp_path / f"bad{suffix}", values, affine))

    with pytest.raises(UnusableInputError, match=reason):
        build().load(bad)


def test_extents_of_a_region_that_is_not_there(write_case: Callable, build: Callable[..., DRAM]) -> None:
    case, _ = write_case(7, mask=False, regions=True, weak={"extent": {"middle lobe": 5}})

    with pytest.raises(UnusableInputError, match="image case_7: there is no region 'middle lobe'"):
        build().load(case)


def test_what_is_said_of_unknown_lungs_is_refused_when_read(
    write_case: Callable, eight_bit: Callable[[Case], Case], build: Callable[..., DRAM], tmp_path: Path
) -> None:
    """Read, not drawn: training leaves the case out and goes on with the others."""
    case = eight_bit(write_case(3)[0])
    typed = replace(case, id="typed", label=None, weak=WeakLabels(extent={"left_lower": 5}))
    method = build(window=(0, 255))
    cache = CaseCache(method, 1.0)

    kept, skipped = readable(cache, [case, typed])

    assert kept == [case]
    assert (
        "image typed has extents but no region mask, and its lungs cannot be found without HU" in skipped[0]["reason"]
    )
    with pytest.raises(UnusableInputError, match="image case_3 has a mask without lungs but no region mask"):
        build({"lesion": 1}, window=(0, 255)).load(replace(case, label=lesion_only(case, tmp_path)))
    assert "extents" not in method.load(method.visible(typed))  # a prediction goes on without them


def lesion_only(case: Case, folder: Path) -> Path:
    assert case.label is not None
    mask = read_mask(case.label)
    return write_grid(
        folder / "lesion.nii.gz", (mask.as_tensor()[0].numpy() == 2).astype(np.uint8), mask.affine.numpy()
    )


def test_a_judged_prediction_does_not_know_the_readers_extents(
    write_case: Callable, build: Callable[..., DRAM]
) -> None:
    case, _ = write_case(4, regions=True, weak={"extent": {"left_lower": 95}, "angles": {"max": 1}, "source": "reader"})
    method = build()

    judged, typed = method.visible(case), method.visible(replace(case, label=None))

    assert judged.weak is not None
    assert (judged.weak.extent, judged.weak.angles) == ({}, {"max": 1})
    assert typed.weak == case.weak
    one, two = (Predictor(method).predict(c) for c in (case, replace(case, weak=None)))
    assert one.mask is not None
    assert two.mask is not None
    assert torch.equal(one.mask.as_tensor(), two.mask.as_tensor())


def test_lungs_of_a_bare_image_in_hu_with_a_wide_field_of_view(
    write_case: Callable, build: Callable[..., DRAM], tmp_path: Path
) -> None:
    case, chest = write_case(5, mask=False)
    wide = np.pad(chest.image, ((12, 12), (12, 12), (0, 0)), constant_values=-1000)
    true = np.pad(chest.mask > 0, ((12, 12), (12, 12), (0, 0)))
    case = replace(case, image=write_grid(tmp_path / "wide.nii.gz", wide, chest.affine))

    prediction = Predictor(build()).predict(case)

    assert prediction.mask is not None
    lungs = prediction.mask.as_tensor()[0].numpy() > 0
    assert 2 * (lungs & true).sum() / (lungs.sum() + true.sum()) > 0.9


def test_lesions_side_by_side_are_no_lungs(
    write_case: Callable, eight_bit: Callable[[Case], Case], build: Callable[..., DRAM]
) -> None:
    assert lung_label({"infection": 1, "lung": 2}) == 2
    assert lung_label({"label_1": 1, "label_2": 2}) == 1
    assert lung_label({"ggo": 1, "consolidation": 2}) is None
    assert lung_label({"ggo": 1, "consolidation": 2, "left lung": 3}) == 3
    assert lung_label({"lesion": 1}) is None
    labels = {"ggo": 1, "consolidation": 2}
    case = eight_bit(write_case(6)[0])
    with pytest.raises(UnusableInputError, match="a mask without lungs but no region mask"):
        build(labels, window=(0, 255)).load(case)
    given, _ = write_case(6, regions=True)
    method = build(labels)
    prediction = Predictor(method).predict(given)
    assert prediction.mask is not None
    assert int(prediction.mask.max()) <= 1  # no lung is called consolidation
    found = method.evaluate(prediction, given, read_mask(given.label))
    assert "lung_dice" not in found
    assert found["entropy"] >= 0


def test_the_lesion_among_the_labels() -> None:
    assert lesion_label({"infection": 1, "lung": 2}) == 1
    assert lesion_label({"label_1": 1, "label_2": 2}) == 2
    assert lesion_label({"a": 1, "b": 2}, "a") == 1
    with pytest.raises(UnusableInputError, match="lesion = 'c' is no label"):
        lesion_label({"a": 1}, "c")


def test_window_of_hu_and_of_eight_bits(write_case: Callable) -> None:
    image = read_image(write_case(8)[0].image)

    assert guess_window(image) == (-1000.0, 200.0)
    assert guess_window((image + 1000).clamp(0, 255)) == (0.0, 255.0)


def test_extents_derived_from_a_finished_mask(write_case: Callable) -> None:
    case, chest = write_case(9, regions=True, weak={"extent": {"1": 99}, "angles": {"max": 1}, "source": "reader"})

    weak = derive_extents(case, LABELS)

    assert weak is not None
    assert weak.source == "mask"
    assert weak.angles == {"max": 1}
    true = true_percent(chest)
    assert weak.extent["left_lower"] == pytest.approx(true[1], abs=1e-3)
    assert weak.extent["right_upper"] == pytest.approx(true[6], abs=1e-3)
    assert derive_extents(replace(case, regions=None), {"liver": 1, "spleen": 2}) is None


@pytest.mark.parametrize("scheme", ["auto", "sides"])
def test_derived_extents_are_of_the_studys_regions_and_lesion(
    write_case: Callable, build: Callable[..., DRAM], tmp_path: Path, scheme: str
) -> None:
    case, chest = write_case(9)
    affine = read_image(case.image).affine.numpy()
    lungs = write_grid(tmp_path / "lungs.nii.gz", (chest.regions > 0).astype(np.uint8), affine)
    other = write_grid(tmp_path / "two.nii.gz", np.where(chest.mask == 2, 3, chest.mask).astype(np.uint8), affine)
    case, labels = replace(case, regions=lungs, label=other), {"lung": 1, "consolidation": 2, "ggo": 3}
    method = build(labels, regions=scheme, lesion="ggo")

    weak = DRAM.derive_weak(case, labels, method.config)

    assert weak is not None
    assert sum(value > 0 for value in weak.extent.values()) > 0
    assert ("left" in weak.extent) == (scheme == "sides")
    read = method.load(replace(case, weak=weak))["extents"]
    assert torch.equal(read, method.load(case)["extents"])  # what follows from a mask yields to it
    later = build(labels, regions="thirds" if scheme == "sides" else "sides", lesion="ggo")
    assert torch.equal(later.load(replace(case, weak=weak))["extents"], later.load(case)["extents"])


def test_real_data_have_the_cards_regions(data_dir: Path, build: Callable[..., DRAM]) -> None:
    from medseg.cases import load_cases

    cases = [c for c in load_cases(data_dir / "covid_ct") if c.id in ("covid_04", "covid_05")]
    method = build({"label_1": 1, "label_2": 2}, window=(0, 255), scale=0.25, masks="extents")
    middles = [method.load(case)["extents"][:2].mean(dim=0)[1:7] for case in cases]

    # the card's figures: per volume 0.02 to 0.62, regions from 0 to 0.81
    assert float(middles[1].max()) == pytest.approx(0.81, abs=0.03)
    assert float(middles[1].mean()) == pytest.approx(0.62, abs=0.04)


def test_six_thirds_of_a_ct_in_hu(data_dir: Path) -> None:
    from medseg.transforms.io import read_mask
    from medseg.transforms.regions import lungs_of_hu

    folder = data_dir / "chest_ct_hu"
    found = lungs_of_hu(read_image(folder / "ct-64.nrrd").as_tensor()[0].numpy())
    thirds = read_mask(folder / "lm-64.nrrd").as_tensor()[0].numpy().astype(np.int64) % 256
    true = (thirds >= 9) & (thirds <= 14)

    assert 2 * (found & true).sum() / (found.sum() + true.sum()) > 0.85


def test_opacities_painted_into_a_real_ct(
    data_dir: Path, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet], tmp_path: Path
) -> None:
    """Ground glass of known percentage: what is measured, what is read, and what the start map makes of it."""
    percent = {9: 0.0, 10: 5.0, 11: 10.0, 12: 20.0, 13: 40.0, 14: 60.0}
    folder = data_dir / "chest_ct_hu"
    image, stored = read_image(folder / "ct-64.nrrd"), read_mask(folder / "lm-64.nrrd")
    values, affine = image.as_tensor()[0].numpy().copy(), image.affine.numpy()
    regions = (stored.as_tensor()[0].numpy().astype(np.int64) % 256).astype(np.uint8)  # the low byte names the third
    field = gaussian_filter(np.random.default_rng(0).normal(size=values.shape), 3)
    lesion = np.zeros(values.shape, np.uint8)
    for index, share in percent.items():
        voxels = np.flatnonzero(regions == index)
        count = round(len(voxels) * share / 100)
        lesion.flat[voxels[np.argsort(-field.flat[voxels])[:count]]] = 1
    values[lesion == 1] = np.maximum(values[lesion == 1], -450)
    files = {"image": values, "label": lesion, "regions": regions}
    case = Case("ct", **{key: write_grid(tmp_path / f"{key}.nii.gz", v, affine) for key, v in files.items()})

    weak = derive_extents(case, {"lesion": 1})
    method = build({"lesion": 1}, masks="extents", iterations=10, final_share=0.5, attention=False, crf=False)
    training = training_set(method, case)
    method.begin_stage(0, training)
    method.begin_stage(5, training)

    assert weak is not None
    assert {int(key): value for key, value in weak.extent.items()} == pytest.approx(percent, abs=0.02)
    loaded = training.load(case)
    low, high, _ = loaded["extents"]
    assert all(float(low[i]) <= p / 100 + 1e-4 and p / 100 - 1e-4 <= float(high[i]) for i, p in percent.items())
    painted = build({"lesion": 1}).load(case)["label"].as_tensor() == 1
    found, known = method.pseudo["ct"] == 1, method.pseudo["ct"] != 255
    iou = float((found & painted).sum() / ((found | painted) & known).sum())
    assert iou > 0.6  # random voxels of the same percentages: 0.3


def test_a_judged_prediction_knows_the_lungs_and_nothing_else(
    write_case: Callable, build: Callable[..., DRAM], tmp_path: Path
) -> None:
    case, chest = write_case(11, percent=[20, 20, 20, 20, 20, 20])
    method = build()
    other = replace(case, label=write_grid(tmp_path / "lungs.nii.gz", (chest.mask > 0).astype(np.uint8), chest.affine))

    shown, bare = method.load(method.visible(case)), method.load(method.visible(other))

    assert method.visible(case).label is None
    assert float(shown["extents"][2].sum()) == 0
    assert "label" not in shown
    assert torch.equal(shown["regions"], bare["regions"])
    assert np.array_equal(shown["regions"][0].numpy() > 0, method.load(case)["regions"][0].numpy() > 0)
    assert "regions" not in build(window=(0, 255)).load(replace(case, label=None))  # no HU
    assert method.visible(replace(case, regions=case.label)).organ is None
    assert build(lungs_given=False).visible(case).organ is None

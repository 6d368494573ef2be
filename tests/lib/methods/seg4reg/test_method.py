from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError, UnusableInputError
from medseg.inference.evaluation import evaluate_case
from medseg.inference.markups import markups_json
from medseg.inference.predictor import Predictor
from medseg.methods.base import Prediction, TrainingSet
from medseg.methods.seg4reg.config import Seg4RegConfig
from medseg.methods.seg4reg.method import Seg4Reg
from medseg.methods.seg4reg.report import path_measurements
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.phantoms.spines import make_spine, write_spines
from medseg.training.data import CaseCache, IterationDataset
from medseg.weak import WeakLabels

TINY = {"grid": (64, 128), "s_widths": (8, 12, 16, 16, 16), "r_width": 16, "amp": "off", "batch": 2}


def build(**settings: object) -> Seg4Reg:
    torch.manual_seed(0)
    return Seg4Reg(Seg4RegConfig.from_dict({**TINY, **settings}), {"vertebra": 1})


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return load_cases(write_spines(tmp_path_factory.mktemp("spines"), 3, shape=(80, 192)))


def told(spine_mask: np.ndarray, image: tuple[float, ...] | None = None, spacing: float = 1.0) -> Prediction:
    """A prediction whose mask is given."""
    affine = torch.diag(torch.tensor([spacing, spacing, 1.0], dtype=torch.float64))
    measurements = path_measurements({"image": None if image is None else np.array(image)})
    mask = MetaTensor(torch.from_numpy(spine_mask.astype(np.uint8))[None], affine=affine)
    return Prediction(probabilities=None, mask=mask, measurements=measurements)


def spine_mask(seed: int = 1, size: tuple[int, int] = (384, 1024), vertebrae: int = 17) -> np.ndarray:
    return draw_spine(make_spine(seed, size).corners[:vertebrae], size) == VERTEBRA


# -- training ----------------------------------------------------------------------------------------------------------


def test_overfits_two_phantoms(cases: list[Case]) -> None:
    method = build(augment=False, learning_rate=1e-2, iterations=36, warmup=0, triangle_start=0.3)
    data = IterationDataset(method, method.streams(cases[:2]), CaseCache(method, 1.0), seed=0)
    optimizer, scheduler = method.optimizer(), method.scheduler(method.optimizer())
    terms = []
    method.network.train()
    for iteration in range(36):
        optimizer.zero_grad()
        output = method.training_step(data[iteration], iteration)
        output.loss.backward()
        optimizer.step()
        terms.append({k: float(v) for k, v in output.terms.items()})

    assert scheduler.get_last_lr() == [1e-2]
    assert terms[-1]["segmentation"] < 0.55 * terms[0]["segmentation"]
    assert terms[-1]["angles_image"] < 0.5 * terms[0]["angles_image"]


def test_streams_group_cases_by_what_is_known(cases: list[Case]) -> None:
    bare = [replace(Seg4Reg.hide_label(case), id=f"{case.id}_bare") for case in cases]

    found = build().streams([*cases, *bare])

    assert [(s.name, len(s.cases), s.per_batch) for s in found] == [("labelled", 3, 2), ("unlabelled", 3, 2)]
    assert [s.name for s in build(triangle=False).streams([*cases, *bare])] == ["labelled"]
    with pytest.raises(MedsegError, match="at least 1 case with a mask, angles or the corners"):
        build().streams(bare)


def test_an_unlabelled_stream_trains(cases: list[Case]) -> None:
    method = build(iterations=4, triangle_start=0.0, unlabelled_batch=1)
    data = IterationDataset(
        method, method.streams([*cases[:2], Seg4Reg.hide_label(cases[2])]), CaseCache(method, 1.0), seed=0
    )

    output = method.training_step(data[0], 3)

    assert torch.isfinite(output.loss)
    assert float(output.terms["triangle"]) > 0


def test_labels_are_what_is_there(cases: list[Case], tmp_path: Path) -> None:
    method = build()
    corners, angles_only = cases[0], replace(cases[0], weak=WeakLabels(angles={"max": 30.0}))
    path = tmp_path / "mask.png"
    spine = make_spine(0, (80, 192))
    Image.fromarray((draw_spine(spine.corners, (80, 192)) == VERTEBRA).T.astype(np.uint8) * 255).save(path)
    mask_only = replace(cases[0], weak=None, label=path)

    assert {"image", "label", "angles", "tilts", "inside"} == set(method.load(corners))
    assert {"image", "angles"} == set(method.load(angles_only))
    assert method.load(angles_only)["angles"].isnan().tolist() == [False, True, True]
    assert {"image", "label", "angles", "inside"} == set(method.load(mask_only))
    assert {"image"} == set(method.load(Seg4Reg.hide_label(corners)))
    assert method.load(mask_only)["angles"].numpy() == pytest.approx(spine.angles, abs=8)
    both = method.load(replace(angles_only, label=path))["angles"].numpy()  # a reader's angle, and the mask's others
    assert both == pytest.approx([30, *method.load(mask_only)["angles"].tolist()[1:]])
    assert [Seg4Reg.is_labelled(c) for c in (corners, angles_only, mask_only, Seg4Reg.hide_label(corners))] == [
        True, True, True, False,
    ]  # fmt: skip


def test_samples_follow_their_generator(cases: list[Case]) -> None:
    method = build()
    loaded = method.load(cases[0])

    one, same, other = (method.sample(loaded, "labelled", torch.Generator().manual_seed(s)) for s in (1, 1, 2))

    assert one["image"].shape == (2, 64, 128)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["image"], other["image"])
    assert torch.equal(one["angles"], other["angles"])


def test_mean_angles_are_kept_with_the_model(cases: list[Case]) -> None:
    method = build()

    method.conclude(TrainingSet(tuple(cases), method.load))

    expected = np.mean([make_spine(i, (80, 192)).angles for i in range(3)], axis=0)
    assert method.network.state_dict()["mean_angles"].numpy() == pytest.approx(expected, abs=0.01)


# -- geometry and what is told -----------------------------------------------------------------------------------------


def test_a_good_mask_gives_angles_levels_and_lines(cases: list[Case]) -> None:
    spine = make_spine(2, (384, 1024))

    found = build(geometry_share=1.0).finish(told(spine_mask(2), (40, 20, 10), spacing=0.5), cases[0])

    assert [found.measurements[f"cobb_{n}"].value for n in ("max", "second", "third")] == pytest.approx(
        spine.angles, abs=1.5
    )
    assert found.measurements["vertebrae"].value == 17
    assert found.facts["end_vertebrae_max"] == "T10 to L5"
    assert "angle 1 is the largest" in str(found.facts["cobb_convention"])
    content = markups_json(found.markups)["markups"]
    assert [m["type"] for m in content] == ["Fiducial", *["Line", "Line", "Angle"] * 3]
    assert content[0]["controlPoints"][16]["label"] == "L5"
    assert content[0]["controlPoints"][0]["position"][1] == pytest.approx(spine.corners[0, :, 1].mean() / 2, abs=1.5)
    a, b, c = (np.array(p["position"]) for p in content[3]["controlPoints"])
    drawn = np.degrees(np.arccos((a - b) @ (c - b) / np.linalg.norm(a - b) / np.linalg.norm(c - b)))
    assert drawn == pytest.approx(found.measurements["cobb_geometry_max"].value, abs=0.01)
    json.dumps([found.facts, {k: m.value for k, m in found.measurements.items()}, content])


@pytest.mark.parametrize("vertebrae", [9, 13])
def test_half_a_spine_is_refused_with_its_reason(cases: list[Case], vertebrae: int) -> None:
    found = build().finish(told(spine_mask(vertebrae=vertebrae), (40, 20, 10)), cases[0])

    assert any(f"found {vertebrae} vertebrae where a whole spine has 17" in w for w in found.warnings)
    assert "cobb_geometry_max" not in found.measurements
    assert found.measurements["cobb_max"].value == 40
    assert found.facts["cobb_source"] == "regression"
    assert [m.kind for m in found.markups] == ["Fiducial"]


def test_a_picture_without_a_spine_gets_no_angles(cases: list[Case]) -> None:
    found = build().finish(told(np.zeros((100, 200), bool), (40, 20, 10)), cases[0])

    assert "cobb_max" not in found.measurements
    assert any("too few for a spine" in w for w in found.warnings)
    assert any("no angles are reported" in w for w in found.warnings)


def test_a_rotated_picture_and_disagreeing_paths_are_warned_of(cases: list[Case]) -> None:
    turned = build().finish(told(spine_mask().T), cases[0])
    differing = build().finish(told(spine_mask(), (80, 70, 60)), cases[0])

    assert any("lie side by side" in w for w in turned.warnings)
    assert any("paths to the angles differ by" in w for w in differing.warnings)
    assert differing.measurements["disagreement"].value > 30


def test_only_what_is_askew_to_the_spine_is_warned_of(cases: list[Case]) -> None:
    size = (400, 1024)
    corners = make_spine(0, size, tilts=np.linspace(-58, 58, 17)).corners
    steep = draw_spine(corners, size) == VERTEBRA
    middle, c, s = corners[8].mean(axis=0), np.cos(0.7), np.sin(0.7)
    corners[8] = middle + 0.6 * (corners[8] - middle) @ np.array([[c, s], [-s, c]])
    odd = draw_spine(corners, size) == VERTEBRA
    wide = np.pad(spine_mask(), ((400, 400), (0, 0)))

    found = [build().finish(told(mask), cases[0]).warnings for mask in (steep, odd, wide)]

    assert found[0] == ()
    assert [w for w in found[1] if w.startswith("askew")] == [
        "askew to the spine by more than 35 degrees: T9; check the mask there"
    ]
    assert [w.split(":")[0] for w in found[2]] == ["the picture is wider than high"]


def test_evaluation_of_a_perfect_and_of_an_empty_mask(cases: list[Case]) -> None:
    method, size = build(regress=False), (80, 192)
    case = cases[1]
    mask = draw_spine(make_spine(1, size).corners, size) == VERTEBRA
    method.network.mean_angles.copy_(torch.tensor([30.0, 20, 10]))

    good, empty = (method.evaluate(method.finish(told(m), case), case, None) for m in (mask, mask & False))

    assert (good["dice"], good["vertebra_dice"], good["count_failure"], good["missed"]) == (1, 1, 0, 0)
    assert method.quality(good) == pytest.approx(1 - good["smape"] / 100)
    assert (empty["dice"], empty["vertebra_dice"], empty["count_failure"], empty["missed"]) == (0, 0, 1, 1)
    truth = np.array(make_spine(1, size).angles)
    expected = np.abs(truth - [30, 20, 10]).sum() / (truth.sum() + 60) * 100
    assert empty["smape"] == pytest.approx(expected, abs=0.01)


# -- pictures as they come ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rgb", "16 bit", "landscape", "narrow", "constant"])
def test_pictures_of_all_kinds_are_predicted_on_their_own_grid(kind: str, tmp_path: Path) -> None:
    grey = make_spine(1, (80, 192)).image.T
    pictures = {
        "rgb": np.repeat(grey[..., None], 3, axis=2),
        "16 bit": grey.astype(np.uint16) * 200,
        "landscape": np.pad(grey, ((0, 0), (30, 250))),
        "narrow": grey[:, 20:61],
        "constant": np.full((150, 70), 7, np.uint8),
    }
    Image.fromarray(pictures[kind]).save(tmp_path / "a.png")
    predictor = Predictor(build())

    found = predictor.predict(Case("a", tmp_path / "a.png"))
    score = predictor.score(Case("a", tmp_path / "a.png"))

    assert found.mask is not None
    assert found.mask.shape == (1, *pictures[kind].shape[1::-1])
    assert found.probabilities is not None
    assert torch.isfinite(found.probabilities.as_tensor()).all()
    assert 0 <= score.value <= 1
    assert score.why


def test_a_wide_picture_is_cut_where_the_vertebrae_are(tmp_path: Path) -> None:
    method = build()
    assert method.network.segmenter is not None

    def see(image: torch.Tensor, gate: object = None) -> torch.Tensor:
        bright = image[:, :1] > 2
        return torch.cat([~bright, bright, bright & False], dim=1).float() * 20

    method.network.segmenter.forward = see  # type: ignore[method-assign]
    image = torch.zeros(2, 300, 128)
    image[:, 230:240, 40:80] = 3

    prob, _, _ = method.look(image)

    assert prob is not None
    assert torch.equal(prob > 0.5, image[:1] > 2)


def test_what_is_no_radiograph_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")

    with pytest.raises(UnusableInputError, match="32 are needed"):
        build().load(Case("a", tmp_path / "a.png"))


def test_pixel_shape_does_not_change_the_angles(tmp_path: Path) -> None:
    spine = make_spine(4, (384, 1024))
    stretched = draw_spine(spine.corners * [0.5, 1], (192, 1024)) == VERTEBRA
    prediction = told(stretched)
    assert prediction.mask is not None
    affine = torch.diag(torch.tensor([0.4, 0.2, 1.0], dtype=torch.float64))
    prediction.mask = MetaTensor(prediction.mask.as_tensor(), affine=affine)

    found = build(geometry_share=1.0).finish(prediction, Case("a", tmp_path / "a.dcm"))

    assert [found.measurements[f"cobb_{n}"].value for n in ("max", "second", "third")] == pytest.approx(
        spine.angles, abs=2.5
    )


def test_a_regressor_alone_makes_no_mask(cases: list[Case]) -> None:
    predictor = Predictor(build(segment=False))

    found = evaluate_case(predictor, cases[0])

    assert {"smape", "smape_image", "missed"} <= set(found)
    assert "dice" not in found
    assert predictor.predict(cases[0]).mask is None


@pytest.mark.parametrize(
    "settings", [{"segment": False, "regress": False}, {"grid": (100, 512)}, {"batch": 0}, {"lowest_count": 19}]
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(MedsegError, match=next(iter(settings))):
        Seg4RegConfig.from_dict(settings)

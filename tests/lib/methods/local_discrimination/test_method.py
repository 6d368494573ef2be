from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.methods.base import Batch, Measurement, Prediction, Sample, TrainingSet
from medseg.methods.local_discrimination import method as method_module
from medseg.methods.local_discrimination.config import LocalDiscriminationConfig
from medseg.methods.local_discrimination.method import LocalDiscrimination
from medseg.phantoms.landmarks import make_landmarks, write_landmark_study
from medseg.transforms.io import read_image, write_volume
from medseg.weak import WeakLabels

SMALL = {
    "patch": (48, 48),
    "width": 4,
    "embedding": 8,
    "regions": 4,
    "points": 48,
    "near": 4.0,
    "learning_rate": 0.01,
    "iterations": 60,
    "pyramid": (2, 1),
    "zoom": (1.0, 2.0),
    "mirror": 0.0,
    "region_weight": 0.5,
    "heat_iterations": 0,
    "amp": "off",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_landmark_study(tmp_path_factory.mktemp("study"), 6, (80, 72), 5)


def build(cases: list[Case], **settings: Any) -> LocalDiscrimination:
    torch.manual_seed(0)
    config = LocalDiscrimination.fit_config(LocalDiscriminationConfig.from_dict({**SMALL, **settings}), cases)
    assert isinstance(config, LocalDiscriminationConfig)
    return LocalDiscrimination(config, {})


def draw(method: LocalDiscrimination, samples: list[Sample], iteration: int) -> Batch:
    drawn = [
        method.sample(sample, "images", torch.Generator().manual_seed(1000 * iteration + index))
        for index, sample in enumerate(samples)
    ]
    return {"images": {key: torch.stack([d[key] for d in drawn]) for key in drawn[0]}}


def learn(method: LocalDiscrimination, cases: list[Case], steps: int) -> list[dict[str, float]]:
    method.streams(cases)
    method.begin_stage(0, TrainingSet(tuple(cases), method.load))
    samples = [method.load(case) for case in cases]
    optimizer, history = method.optimizer(), []
    method.network.train()
    for iteration in range(steps):
        output = method.training_step(draw(method, samples[:4], iteration), iteration)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        history.append({name: float(term) for name, term in output.terms.items()})
    method.network.eval()
    return history


def test_pretraining_tells_places_apart_and_landmarks_are_found_from_one_image(study: Path) -> None:
    cases = load_cases([study])
    unmarked = [LocalDiscrimination.hide_label(case) for case in cases[1:]]
    method = build([cases[0], *unmarked])
    before = method.retrieval(method.load(cases[5]))

    history = learn(method, [cases[0], *unmarked[:3]], 45)
    method.conclude(TrainingSet((cases[0], *unmarked[:3]), method.load))

    assert "region" not in history[0]
    assert history[-1]["patch"] < 0.9 * history[0]["patch"]
    assert method.retrieval(method.load(cases[5])) > max(0.08, 2 * before)  # chance: 1 of 48
    errors = []
    for case in cases[4:]:
        prediction = method.predict(method.load(LocalDiscrimination.hide_label(case)))
        errors.append(method.evaluate(prediction, case, None)["radial_error_mm"])
    copied = [
        torch.dist(torch.tensor(case.weak.landmarks[name]).float(), torch.tensor(cases[0].weak.landmarks[name]).float())
        for case in cases[4:]
        for name in case.weak.landmarks
    ]
    assert sum(errors) / len(errors) < 0.7 * float(torch.stack(copied).mean())


def test_every_image_is_learnt_from_and_landmarks_are_labels(study: Path) -> None:
    cases = load_cases([study])
    mixed = [cases[0], *(LocalDiscrimination.hide_label(case) for case in cases[1:])]
    method = build(mixed)

    assert [case.id for case in method.streams(mixed)[0].cases] == [case.id for case in cases]
    assert [LocalDiscrimination.is_labelled(case) for case in mixed] == [True, *[False] * 5]
    assert method.config.templates == 1
    assert method.config.landmarks == tuple(cases[0].weak.landmarks)
    assert len(method.config.landmarks) == 5


def test_templates_are_markups_with_confidence_and_unsure_ones_are_named(study: Path) -> None:
    cases = load_cases([study])
    method = build(cases, confident=1.0)
    method.network.eval()
    method.conclude(TrainingSet(tuple(cases), method.load))

    prediction = method.predict(method.load(cases[0]))

    (markup,) = prediction.markups
    assert markup.kind == "Fiducial"
    assert markup.labels == method.config.landmarks
    assert all(0 <= value <= 1 for value in markup.confidence)
    assert "landmarks are unsure" in prediction.warnings[0]


def test_template_itself_is_found_in_three_axes(tmp_path: Path) -> None:
    study = write_landmark_study(tmp_path, 2, (40, 36, 32), 3)
    cases = load_cases([study])
    method = build([cases[0]], patch=(32, 16, 16), pyramid=(1,), window=1.5)
    method.network.eval()
    method.conclude(TrainingSet((cases[0],), method.load))

    values = method.evaluate(method.predict(method.load(cases[0])), cases[0], None)

    assert values["radial_error_mm"] < 1.0
    assert values["success_4mm"] == 1.0


def test_templates_are_named_and_those_beyond_the_bank_too(
    study: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_module, "TEMPLATES", 2)
    cases = load_cases([study])[:3]

    with caplog.at_level(logging.INFO):
        method = build(cases)
        method.conclude(TrainingSet(tuple(cases), method.load))

    assert "first 2 images with landmarks are templates; no templates: subject_002" in caplog.text
    assert "templates of the landmarks: subject_000, subject_001" in caplog.text


def test_templates_that_were_asked_for_and_are_not_there_are_an_error(study: Path) -> None:
    cases = [LocalDiscrimination.hide_label(case) for case in load_cases([study])]
    method = build(cases, landmarks=("a",), templates=1)

    with pytest.raises(MedsegError, match="templates = 1, but no training image has landmarks"):
        method.streams(cases)


def test_a_list_of_cases_is_judged_by_one_figure(study: Path, tmp_path: Path) -> None:
    mixed = {"a": {"retrieval": 0.9, "success_4mm": 0.5}, "b": {"retrieval": 0.8}, "c": {"retrieval": 1.0, "dice": 0.4}}
    cases = load_cases([study])
    plain = build([LocalDiscrimination.hide_label(case) for case in cases])

    assert build(cases).qualities(mixed) == {"a": 0.5}
    assert build(cases).qualities({"b": mixed["b"]}) == {"b": 0.8}  # nobody can be judged by landmarks
    assert plain.qualities(mixed) == {"a": 0.9, "b": 0.8, "c": 1.0}
    prediction = plain.predict(plain.load(cases[0]))
    assert plain.evaluate(prediction, cases[0], None)["success_4mm"] == 0.0


def test_the_shape_s_mask_is_named_after_its_label_and_judged_by_all_targets(study: Path) -> None:
    case = load_cases([study])[0]
    config = build([case], targets=(2, 3)).config.with_overrides({"shapes": "x"})
    one, two = LocalDiscrimination(config, {"a": 1, "b": 2}), LocalDiscrimination(config, {"a": 1, "b": 2, "c": 3})
    mask = MetaTensor(torch.zeros(1, 80, 72, dtype=torch.uint8), affine=torch.eye(3))
    mask[:, 20:40] = 1
    truth = MetaTensor(torch.zeros(1, 80, 72), affine=torch.eye(3))
    truth[:, 20:30], truth[:, 30:40], truth[:, 60:] = 2, 3, 1

    for method, name, number in ((one, "b", 2), (two, "shape", 1)):
        measured = {"retrieval": Measurement(50.0, "%")}
        prediction = method.finish(Prediction(None, measurements=measured, mask=mask), case)
        assert prediction.labels == {name: number}
        assert int(prediction.mask.max()) == number
        assert method.evaluate(prediction, case, truth)["dice"] == 1.0


def test_weights_get_their_length_back_and_the_model_stays_the_same(study: Path) -> None:
    case = load_cases([study])[0]
    method = build([LocalDiscrimination.hide_label(case)])
    fresh = {name: value.clone() for name, value in method.network.state_dict().items()}
    for parameter in method.network.parameters():
        parameter.data.mul_(2.0)
    method.network.eval()
    image = method.load(case)["image"][None]
    before = method.network(image)

    method.conclude(TrainingSet((), method.load))

    name = "trunk.encoder.levels.1.units.0.0.weight"
    assert torch.allclose(method.network.state_dict()[name].norm(), fresh[name].norm())
    assert torch.allclose(method.network.state_dict()["trunk.head.weight"], 2 * fresh["trunk.head.weight"])
    assert float((method.network(image) - before).abs().max()) < 0.02 * float(before.abs().max())


def test_numbers_tell_cases_apart_that_end_alike() -> None:
    assert method_module._number("ward_a_img_001") != method_module._number("ward_b_img_001")
    assert 0 <= method_module._number("x") < 2**63


def test_landmark_outside_is_left_out_and_a_template_without_landmarks_is_none(
    study: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = load_cases([study])[0]
    outside = replace(case, weak=WeakLabels(landmarks={"a": (500.0, 3.0), "b": (20.0, 30.0)}))
    method = build([outside])

    with caplog.at_level(logging.WARNING):
        loaded = method.load(outside)
    method.conclude(TrainingSet((LocalDiscrimination.hide_label(outside), outside), method.load))
    prediction = method.predict(loaded)

    assert list(loaded["landmarks"]) == ["b"]
    assert "landmark a of subject_000 lies outside the image" in caplog.text
    assert prediction.markups[0].labels == ("b",)
    assert prediction.markups[0].points[0] == pytest.approx((20, 30), abs=1)


def test_one_image_grey_among_colour_and_tiny_images_work(tmp_path: Path) -> None:
    grey = make_landmarks(1, (70, 60)).image
    write_volume(tmp_path / "images" / "b.png", MetaTensor(torch.from_numpy(grey.round())[None], affine=torch.eye(3)))
    from PIL import Image

    Image.fromarray(torch.rand(20, 30, 3).mul(255).byte().numpy()).save(tmp_path / "images" / "a.png")
    cases = load_cases([tmp_path])
    method = build(cases)

    assert method.config.channels == 3
    assert method.load(cases[1])["image"].shape == (3, 70, 60)
    alone = learn(method, [cases[1]] * 2, 2)
    tiny = learn(method, [cases[0]] * 2, 2)
    assert all(value == value for terms in (*alone, *tiny) for value in terms.values())
    with pytest.raises(MedsegError, match="needs at least 1 image"):
        method.streams([])


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """A folder of binary discs."""
    yy, xx = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for index in range(3):
        disc = ((yy - 30 - index) ** 2 + (xx - 32) ** 2 < 144).to(torch.uint8)[None]
        write_volume(tmp_path / "shapes" / f"{index}.png", MetaTensor(disc, affine=torch.eye(3)))
    return tmp_path / "shapes"


def test_shapes_teach_a_mask_without_labels(study: Path, discs: Path, tmp_path: Path) -> None:
    yy, xx = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    cases = load_cases([study])
    method = build(cases, shapes=str(discs), shape_share=1.0)

    history = learn(method, cases, 30)
    dark = torch.ones(1, 64, 64)
    dark[0, ((yy - 32) ** 2 + (xx - 30) ** 2 < 150)] = -1.5
    dark = dark + 0.1 * torch.randn(dark.shape, generator=torch.Generator().manual_seed(0))
    mask = method.network(dark[None]).argmax(dim=1)[0]

    truth = dark[0] < -0.2
    assert history[-1]["shape"] < 0.7 * history[0]["shape"]
    assert float(2 * (mask.bool() & truth).sum() / (mask.sum() + truth.sum())) > 0.6
    with pytest.raises(MedsegError, match="holds no mask"):
        build(cases, shapes=str(tmp_path / "nothing")).streams(cases)


def test_places_come_first_and_then_shapes_alone(study: Path, discs: Path) -> None:
    cases = load_cases([study])[:4]
    method = build(cases, shapes=str(discs), shape_share=0.5, iterations=20)
    training = TrainingSet(tuple(cases), method.load)
    method.streams(cases)
    loaded = method.load(cases[0])
    before = method.retrieval(loaded)

    terms = {}
    for start in method.stages():
        method.begin_stage(start, training)
        drawn = method.sample(loaded, "images", torch.Generator().manual_seed(0))
        batch = {"images": {name: value[None] for name, value in drawn.items()}}
        terms[start] = set(method.training_step(batch, start).terms)

    assert set(terms) == {0, 10}
    assert {"patch", "mixup", "shape"} <= terms[0]
    assert terms[10] == {"shape"}
    assert method.retrieval(loaded) == pytest.approx(before, abs=0.02), "an image is still judged by its places"
    assert method.layers(loaded), "places were learnt, however few iterations a refresh makes of it"


def test_shapes_alone_learn_no_places(study: Path, discs: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = load_cases([study])[:4]
    method = build(cases, shapes=str(discs), shape_share=1.0)

    assert method.config.landmarks == ()
    assert "landmarks of 4 images are not looked at" in caplog.text
    assert method.layers(method.load(cases[0])) == {}
    assert method.score(method.load(cases[0])).features == ()


def test_the_answer_is_bounded_by_the_shares_of_the_shapes(study: Path, discs: Path) -> None:
    cases = load_cases([study])[:4]
    shares = {}
    for bound in (True, False):
        method = build(cases, shapes=str(discs), bound_shares=bound)
        method.network.eval()
        torch.nn.init.zeros_(method.network.trunk.head.weight)
        with torch.no_grad():
            method.network.trunk.head.bias.copy_(torch.tensor([0.0, 5.0]))
        probability = method.predict(method.load(cases[0])).probabilities
        assert probability is not None
        shares[bound] = float((probability[1] > 0.5).float().mean())

    assert shares[False] == 1.0
    assert shares[True] == pytest.approx(method.config.shares[1], abs=0.01)


def test_regions_are_learnt_before_the_turn_to_shapes(study: Path, discs: Path) -> None:
    cases = load_cases([study])[:4]
    method = build(cases, shapes=str(discs), shape_share=0.6, warmup=0.5, iterations=20)
    method.streams(cases)
    batch = draw(method, [method.load(case) for case in cases], 0)

    assert method.stages() == (0, 8)
    assert "region" not in method.training_step(batch, 3).terms
    assert "region" in method.training_step(batch, 4).terms


def test_at_the_turn_to_shapes_weights_get_their_length_back(study: Path, discs: Path) -> None:
    cases = load_cases([study])[:4]
    method = build(cases, shapes=str(discs), shape_share=0.5, iterations=20)
    method.streams(cases)
    name = "trunk.encoder.levels.1.units.0.0.weight"
    length = float(method.network.state_dict()[name].norm())
    for parameter in method.network.parameters():
        parameter.data.mul_(2.0)

    method.begin_stage(10, TrainingSet(tuple(cases), method.load))
    batch = draw(method, [method.load(case) for case in cases], 10)
    method.training_step(batch, 11)
    assert float(method.network.state_dict()[name].norm()) == pytest.approx(2 * length)
    method.training_step(batch, 10)
    assert float(method.network.state_dict()[name].norm()) == pytest.approx(length)


def test_samples_and_scores_repeat(study: Path) -> None:
    case = load_cases([study])[0]
    method = build([case])
    method.network.eval()
    loaded = method.load(case)

    first, second = (method.sample(loaded, "images", torch.Generator().manual_seed(3)) for _ in range(2))
    scores = [method.score(loaded) for _ in range(2)]

    assert all(torch.equal(first[key], second[key]) for key in first)
    assert scores[0] == scores[1]
    assert len(scores[0].features) == 8 * 64
    assert "not recognised again" in scores[0].why


def test_pixel_size_comes_from_the_table(study: Path, tmp_path: Path) -> None:
    folder = write_landmark_study(tmp_path, 2, (40, 40), 2)
    table = folder / "landmarks.csv"
    lines = table.read_text().splitlines()
    rows = [f"{lines[0]},mm_per_px", *(f"{line},0.3" for line in lines[1:])]
    table.write_text("\n".join(rows) + "\n")
    cases = load_cases([folder])

    assert build(cases, patch=(32, 32)).config.pixel_mm == 0.3
    assert build(load_cases([study])).config.pixel_mm == 1.0
    assert read_image(cases[0].image).shape == (1, 40, 40)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"form": "x"}, "form = 'x' is unknown"),
        ({"elastic": 0.5}, r"elastic = 0.5 is outside \[0, 0.25\]"),
        ({"pyramid": (1, 2)}, "the coarsest first"),
        ({"regions": 1}, "regions = 1 must be at least 2"),
        ({"zoom": (2.0, 1.0)}, "the smaller one first"),
        ({"trunk": "drma"}, "trunk = 'drma' has no network .* choose one of caml, dram, multidomain, seg4reg"),
        ({"trunk": "supervised"}, "trunk = 'supervised' has no network that can be pretrained"),
        ({"trunk": "local_discrimination"}, "trunk = 'local_discrimination' has no network"),
        ({"trunk": "dram", "width": 6}, "width = 6 be a multiple of 4"),
    ],
)
def test_bad_settings_are_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MedsegError, match=sentence):
        LocalDiscriminationConfig.from_dict(settings)

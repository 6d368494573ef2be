from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.data import default_collate

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.methods.base import TrainingSet
from medseg.methods.dram.config import DRAMConfig
from medseg.methods.dram.method import DRAM
from medseg.methods.dram.presets import ARM_GROUPS, PRESETS
from medseg.networks.precision import autocast
from medseg.weak import WeakLabels

WEAK = {"masks": "extents", "scale": 1.0}


def fit(method: DRAM, training: TrainingSet, iterations: int | None = None) -> list[float]:
    """What `training.run` does, without its files."""
    method.network.train()
    optimizer, losses = method.optimizer(), []
    for iteration in range(iterations or method.config.iterations):
        if iteration in method.stages():
            method.begin_stage(iteration, training)
        case = training.cases[iteration % len(training.cases)]
        drawn = method.sample(training.load(case), "extents", torch.Generator().manual_seed(iteration))
        optimizer.zero_grad()
        with autocast(method.config.amp, torch.device("cpu")):
            output = method.training_step({"extents": default_collate([drawn])}, iteration)
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.loss.detach()))
    method.network.eval()
    with torch.no_grad():
        method.conclude(training)
    return losses


def lesion_iou(method: DRAM, case: Case) -> float:
    from medseg.inference.evaluation import evaluate_case

    return evaluate_case(Predictor(method), case)["iou"]


@pytest.mark.parametrize(
    "arm", [arm for arm in ARM_GROUPS["segmentation"].arms if not arm.in_default], ids=lambda arm: arm.name
)
def test_arms_that_run_when_named_train_and_predict(
    arm: object, write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    case, _ = write_case(0)
    method = build(**{**WEAK, "iterations": 6, "refine_from": 0.5, "amp": "bf16", **arm.overrides})  # type: ignore[attr-defined]

    losses = fit(method, training_set(method, case))
    prediction = Predictor(method).predict(case)

    assert all(value == value for value in losses)
    assert prediction.mask is not None
    assert prediction.mask.shape[1:] == (40, 32, 12)
    assert int(prediction.mask.max()) <= 2
    assert {"iou", "dice", "iou_image", "extent_error"} <= method.evaluate(prediction, case, method_truth(case)).keys()


def method_truth(case: Case):  # type: ignore[no-untyped-def]
    from medseg.transforms.io import read_mask

    assert case.label is not None
    return read_mask(case.label)


def test_arms_of_the_card() -> None:
    names = [arm.name for arm in ARM_GROUPS["segmentation"].arms if arm.in_default]

    assert names == [
        "threshold", "cam", "gradcam", "regression", "regression_rank", "attention", "crf", "attention_crf", "full",
        "supervised",
    ]  # fmt: skip
    weak = [arm for arm in ARM_GROUPS["segmentation"].arms if arm.name != "supervised"]
    for preset in PRESETS.values():
        assert all({**preset.config, **arm.overrides}["masks"] == "extents" for arm in weak)


@pytest.mark.parametrize(("central", "iterations"), [(False, 44), (True, 80)])
def test_the_chain_beats_threshold_and_plain_regression_on_phantoms(
    central: bool, iterations: int, write_case: Callable, build: Callable[..., DRAM],
    training_set: Callable[..., TrainingSet],
) -> None:  # fmt: skip
    """Vessels, spots and noise are as bright as the lesions. These lie at the pleura, where the soft candidates look
    for them, or away from it. Regions are given, so that lungs do not decide."""
    hard = {"distractors": 30, "noise": 150.0, "regions": True, "central": central}
    cases = [write_case(seed, **hard)[0] for seed in (10, 11, 12)]
    held_out = write_case(13, percent=[8, 0, 20, 0, 30, 5], **hard)[0]
    found = {}
    for arm, steps in (("threshold", 1), ("regression", iterations), ("full", iterations)):
        overrides = next(a.overrides for a in ARM_GROUPS["segmentation"].arms if a.name == arm)
        method = build(**{**WEAK, "iterations": steps, "learning_rate": 4e-3, **overrides})
        fit(method, training_set(method, *cases))
        found[arm] = lesion_iou(method, held_out)

    assert found["full"] > found["threshold"]
    assert found["full"] > found["regression"] + 0.02
    assert found["full"] > 0.4


def test_attention_and_crf_join_late_and_the_final_network_last(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(**WEAK, iterations=10, final_share=0.4, refine_from=0.5)
    training = training_set(method, write_case(0)[0])
    method.begin_stage(0, training)
    drawn = method.sample(training.load(training.cases[0]), "extents", torch.Generator().manual_seed(0))
    batch = {"extents": default_collate([drawn])}

    terms = [method.training_step(batch, iteration).terms for iteration in (0, 3, 6)]

    assert method.stages() == (0, 6)
    assert set(terms[0]) == {"lungs", "regression", "entropy"}
    assert {"attention_regression", "attention_ce", "crf_regression", "crf_ce"} < set(terms[1])
    assert set(terms[2]) == {"final", "lungs"}


def test_gradient_of_the_refined_maps_reaches_every_part(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(**WEAK, refine_from=0.0, regression_weight=0.0, entropy_weight=0.0, lung_weight=0.0)
    training = training_set(method, write_case(1)[0])
    method.begin_stage(0, training)
    drawn = method.sample(training.load(training.cases[0]), "extents", torch.Generator().manual_seed(0))

    method.training_step({"extents": default_collate([drawn])}, 0).loss.backward()

    network = method.network
    assert network.attention is not None
    assert network.crf is not None
    assert network.backbone.head is not None
    for parameter in (network.attention.query.weight, network.attention.gate, network.crf.weights, network.crf.strength,
                      network.backbone.head.weight):  # fmt: skip
        assert parameter.grad is not None
        assert float(parameter.grad.abs().sum()) > 0


def test_equivariance_has_a_term_and_a_gradient(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    alone = {"regression_weight": 0.0, "entropy_weight": 0.0, "lung_weight": 0.0, "attention": False, "crf": False}
    method = build(**WEAK, **alone, final=False, candidates=0, equivariance_weight=1.0)
    training = training_set(method, write_case(1)[0])
    drawn = method.sample(training.load(training.cases[0]), "extents", torch.Generator().manual_seed(0))
    head = method.network.backbone.head
    assert head is not None
    torch.manual_seed(3)

    output = method.training_step({"extents": default_collate([drawn])}, 0)
    output.loss.backward()

    assert set(output.terms) == {"equivariance"}
    assert float(output.terms["equivariance"]) > 0
    assert head.weight.grad is not None
    assert float(head.weight.grad[0].abs().sum()) > 0
    with torch.no_grad():  # a map that is the same everywhere is equivariant
        head.weight.zero_()
        assert float(method.training_step({"extents": default_collate([drawn])}, 0).loss) == pytest.approx(0, abs=1e-9)


def test_nothing_but_a_threshold_trains_without_a_term(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(**WEAK, head="threshold", attention=False, crf=False, final=False, lung_weight=0.0, iterations=1)

    assert fit(method, training_set(method, write_case(0)[0])) == [0.0]
    assert float(method.network.cut) != 0.5


def test_pseudo_labels_are_frozen_and_come_back_the_same(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(**WEAK, iterations=8, final_share=0.5)
    training = training_set(method, *(write_case(seed)[0] for seed in (0, 1)))
    fit(method, training, 5)  # one step into the final stage
    kept = {key: value.clone() for key, value in method.pseudo.items()}
    before = {k: v.clone() for k, v in method.network.backbone.state_dict().items()}

    method.network.train()
    optimizer = method.optimizer()
    for iteration in (5, 6, 7):
        drawn = method.sample(training.load(training.cases[0]), "extents", torch.Generator().manual_seed(iteration))
        optimizer.zero_grad()
        method.training_step({"extents": default_collate([drawn])}, iteration).loss.backward()
        optimizer.step()
    method.begin_stage(method.stages()[1], training)

    assert kept.keys() == {"case_0", "case_1"}
    assert all(torch.equal(kept[key], method.pseudo[key]) for key in kept)
    assert all(torch.equal(before[k], v) for k, v in method.network.backbone.state_dict().items())
    for case in training.cases:
        low, high, weight = training.load(case)["extents"]
        regions, label = training.load(case)["regions"].as_tensor(), kept[case.id]
        for index in weight.nonzero()[:, 0].tolist():
            inside = label[regions == index]
            sure, asked = float((inside == 1).float().mean()), float((inside != 0).float().mean())
            if asked < 1:  # else the region was left out
                assert sure <= float(high[index]) + 0.01
                assert asked >= float(low[index]) - 0.01


def test_true_masks_take_the_place_of_pseudo_labels(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(masks="voxels", iterations=4, final_share=0.5)
    masked, _ = write_case(0)
    weak, _ = write_case(1, mask=False, regions=True, weak={"extent": {"1": 10}})
    training = training_set(method, masked, weak)

    assert [case.id for case in method.streams(training.cases)[0].cases] == ["case_0", "case_1"]
    fit(method, training)
    draws = [method.sample(training.load(c), "extents", torch.Generator().manual_seed(0)) for c in training.cases]
    assert [float(d["has_mask"]) for d in draws] == [1.0, 0.0]
    assert int((draws[1]["pseudo"] == 1).sum()) > 0


def test_prediction_tells_extents_and_residuals(write_case: Callable, build: Callable[..., DRAM]) -> None:
    case, _ = write_case(2, mask=False, regions=True, weak={"extent": {"left_lower": [90, 95]}, "source": "reader"})
    method = build(attention=False, crf=False, final=False)
    predictor = Predictor(method)

    followed = predictor.predict(case)
    plain = Predictor(build(attention=False, crf=False, final=False, follow_extents=False)).predict(case)
    derived = predictor.predict(replace(case, weak=WeakLabels(extent={"left_lower": (90, 95)}, source="mask")))

    assert followed.measurements["extent_left_lower"].unit == "%"
    assert followed.measurements["residual_left_lower"].value < -10  # before the cut obeyed
    assert followed.mask is not None
    assert plain.mask is not None
    assert derived.mask is not None
    loaded = method.load(case)
    inside = loaded["regions"].as_tensor() == 1
    shares = [float((method.read(method.load(c)).decided[inside[0]] > 0.5).float().mean()) for c in (case,)]
    assert shares[0] == pytest.approx(0.9, abs=0.02)
    assert torch.equal(plain.mask.as_tensor(), derived.mask.as_tensor())


def test_an_image_alone_without_hu_is_segmented_with_the_learnt_lungs(
    write_case: Callable, eight_bit: Callable[[Case], Case], build: Callable[..., DRAM],
    training_set: Callable[..., TrainingSet],
) -> None:  # fmt: skip
    case, chest = write_case(3)
    case = eight_bit(case)
    alone = {"attention": False, "crf": False, "final": False, "window": (0, 255)}
    method = build(**WEAK, **alone, iterations=40, learning_rate=2e-2, lung_weight=5.0)
    fit(method, training_set(method, case))

    prediction = Predictor(method).predict(case.without_label())

    assert "regions" not in method.load(case.without_label())
    assert prediction.mask is not None
    lungs = prediction.mask.as_tensor()[0].numpy() > 0
    true = chest.mask > 0
    assert 2 * (lungs & true).sum() / (lungs.sum() + true.sum()) > 0.85
    assert len([name for name in prediction.measurements if name.startswith("extent_")]) == 7


def test_scores_prefer_images_without_extents_and_say_why(write_case: Callable, build: Callable[..., DRAM]) -> None:
    method = build()
    bare, _ = write_case(4, mask=False, regions=True)
    far = replace(bare, weak=WeakLabels(extent={"1": 99.0}, source="reader"))
    fits = replace(bare, weak=WeakLabels(extent={"1": (0.0, 100.0)}, source="reader"))

    none, wrong, right = (Predictor(method).score(case) for case in (bare, far, fits))

    assert none.value > right.value
    assert wrong.value > right.value
    assert none.why.startswith("no extents yet")
    assert "extents differ from the reader's by up to" in wrong.why
    assert all(0 <= part <= 1 for score in (none, wrong, right) for part in score.parts.values())


def test_labelled_by_mask_or_extents_and_hidden(write_case: Callable) -> None:
    bare, _ = write_case(5, mask=False)
    weak = replace(bare, weak=WeakLabels(scores={"1": 2}, angles={"max": 3}))

    assert not DRAM.is_labelled(bare)
    assert DRAM.is_labelled(weak)
    assert not DRAM.is_labelled(DRAM.hide_label(weak))
    hidden = DRAM.hide_label(weak).weak
    assert hidden is not None
    assert hidden.angles == {"max": 3}


def test_quality_of_extents_alone(build: Callable[..., DRAM]) -> None:
    assert build().quality({"dice": 0.7, "extent_error": 50.0}) == 0.7
    assert build().quality({"extent_error": 12.0}) == pytest.approx(0.88)


def test_nothing_to_learn_from(write_case: Callable, build: Callable[..., DRAM]) -> None:
    with pytest.raises(MedsegError, match="needs extents per region or masks, got neither for any of 1 images"):
        build().streams([write_case(0, mask=False)[0]])


def test_the_bias_starts_at_the_median_extent_without_candidates(
    write_case: Callable, build: Callable[..., DRAM], training_set: Callable[..., TrainingSet]
) -> None:
    method = build(**WEAK, candidates=0)
    case, _ = write_case(0, percent=[10, 10, 10, 10, 10, 10])

    method.begin_stage(0, training_set(method, case))

    assert method.network.backbone.head is not None
    assert method.network.backbone.head.bias is not None
    assert float(torch.sigmoid(method.network.backbone.head.bias[0])) == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"head": "other"}, "head = 'other' is unknown; choose one of dense, cam"),
        ({"batch": 2}, "batch = 2 needs a patch"),
        ({"score_table": "0,1"}, "7 ascending per cents"),
        ({"window": (5, 1)}, "two ascending numbers"),
        ({"final_share": 1.0}, r"outside \[0, 1\)"),
    ],
)
def test_bad_settings(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(MedsegError, match=reason):
        DRAMConfig.from_dict(settings)

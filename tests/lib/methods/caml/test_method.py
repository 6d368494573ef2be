from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.data import MetaTensor

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.losses.segmentation import SegmentationLoss
from medseg.methods import method_class
from medseg.methods.base import Batch
from medseg.methods.caml.config import CAMLConfig
from medseg.methods.caml.method import CAML
from medseg.methods.supervised.config import SupervisedConfig
from medseg.networks.precision import autocast
from medseg.phantoms.organs import make_organ, organ_labels
from medseg.phantoms.study import StudyOptions, write_dataset

GRIDS = {3: (32, 32, 16), 2: (32, 48)}


def build(labels: int = 1, dimension: int = 3, **settings: Any) -> CAML:
    values: dict[str, Any] = {
        "dimension": dimension,
        "channels": 1,
        "patch": GRIDS[dimension],
        "width": 8,
        "iterations": 100,
        "bank_cases": 2,
        "occ_rows": 256,
    }
    torch.manual_seed(0)
    method = CAML(CAMLConfig(**{**values, **settings}), organ_labels(labels))
    method.network.train()
    return method


def phantom_batch(labels: int = 1, dimension: int = 3, unlabelled: int = 2) -> Batch:
    organs = [make_organ(seed, GRIDS[dimension], labels) for seed in range(2 + unlabelled)]
    images = torch.stack([torch.from_numpy(o.image)[None] for o in organs])
    images = (images - images.mean()) / images.std()
    masks = torch.stack([torch.from_numpy(o.mask)[None] for o in organs])
    batch = {"labelled": {"image": images[:2], "label": masks[:2], "slot": torch.arange(2)}}
    return batch | ({"unlabelled": {"image": images[2:]}} if unlabelled else {})


def step(method: CAML, batch: Batch, optimizer: torch.optim.Optimizer, iteration: int) -> dict[str, torch.Tensor]:
    optimizer.zero_grad()
    with autocast(method.config.amp, torch.device("cpu")):
        output = method.training_step(batch, iteration)
    output.loss.backward()
    optimizer.step()
    return {"loss": output.loss.detach(), **output.terms}


SWITCHES = [
    {"mutual": False, "cma": False, "occ": False},
    {"cma": False, "occ": False},
    {"occ": False},
    {"cma": False},
    {},
    {"average": 0.9},
    {"perturb": "intensity"},
    {"anchor_weight": 0.1},
    {"copy_paste": 1.0},
    {"copy_paste": 1.0, "average": 0.9, "perturb": "intensity", "loss": "dice_ce"},
    {"residual_assistant": True, "norm": "instance"},
    {"normalise": False, "symmetric": False, "detach_target": False, "mutual_detach": True, "norm": "group"},
]


@pytest.mark.parametrize(("switches", "amp"), [*((s, "bf16") for s in SWITCHES), ({}, "off")], ids=str)
def test_every_switch_trains(switches: dict[str, Any], amp: str) -> None:
    method = build(amp=amp, drop_batch=0.0, **switches)
    optimizer = method.optimizer()
    before = {name: p.detach().clone() for name, p in method.network.named_parameters() if p.requires_grad}
    for iteration in range(2):  # zero-initialised layers pass gradients on from the second step
        terms = step(method, phantom_batch(), optimizer, 90 + iteration)
    assert all(math.isfinite(float(value)) for value in terms.values())
    expected = {"loss", "supervised"}
    expected |= {"mutual"} if switches.get("mutual", True) else set()
    expected |= {"correlation"} if switches.get("occ", True) else set()
    expected |= {"anchor"} if switches.get("anchor_weight") else set()
    expected |= {"copy_paste"} if switches.get("copy_paste") else set()
    assert set(terms) == expected
    after = dict(method.network.named_parameters())
    still = [name for name, value in before.items() if torch.equal(value, after[name])]
    assert not still
    assert any("space" in name for name in after) == switches.get("cma", True)


@pytest.mark.parametrize(("labels", "dimension"), [(3, 3), (1, 2), (2, 2)])
def test_many_classes_and_two_axes(labels: int, dimension: int) -> None:
    method = build(labels, dimension)
    terms = step(method, phantom_batch(labels, dimension), method.optimizer(), 99)
    assert all(math.isfinite(float(value)) for value in terms.values())
    with torch.no_grad():
        logits = method.network.eval()(phantom_batch(labels, dimension)["unlabelled"]["image"])
    assert logits.shape == (2, labels + 1, *GRIDS[dimension])


def test_loss_is_the_weighted_sum_of_its_terms() -> None:
    method = build(copy_paste=0.3, ramp=0.5, anchor_weight=0.2)
    terms = step(method, phantom_batch(), method.optimizer(), 25)
    ramp = math.exp(-5 * 0.25)
    weights = {"supervised": 0.5, "mutual": ramp, "correlation": 0.05 * ramp, "anchor": 0.2, "copy_paste": 0.3 * ramp}
    assert method.weights(25) == pytest.approx(weights)
    assert float(terms["loss"]) == pytest.approx(sum(w * float(terms[k]) for k, w in weights.items()), rel=1e-5)


def test_supervised_term_uses_labelled_crops_only() -> None:
    method = build(mutual=False, occ=False, cma=False, dropout=0.0, norm="instance")
    batch = phantom_batch()
    term = method.training_step(batch, 0).terms["supervised"]
    loss, image, label = SegmentationLoss(), batch["labelled"]["image"], batch["labelled"]["label"]
    expected = loss(method.network.student(image), label) + loss(method.network.assistant(image), label)
    assert float(term) == pytest.approx(expected.item(), rel=1e-5)


def test_without_unlabelled_cases_the_labelled_ones_train() -> None:
    method = build(copy_paste=1.0)
    terms = step(method, phantom_batch(unlabelled=0), method.optimizer(), 99)
    assert set(terms) == {"loss", "supervised", "mutual", "correlation"}
    assert math.isfinite(float(terms["loss"]))


def test_a_step_depends_on_the_random_state_alone() -> None:
    results = []
    for _ in range(2):
        method = build(perturb="intensity", copy_paste=1.0)
        torch.manual_seed(11)
        step(method, phantom_batch(), method.optimizer(), 50)
        results.append(method.network.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_a_resumed_run_equals_an_undisturbed_one() -> None:
    """Weights, bank and average are in the network's state, the ramp follows the iteration."""
    method = build(average=0.9, ramp=1.0)
    optimizer = method.optimizer()
    for iteration in range(2):
        step(method, phantom_batch(), optimizer, iteration)
    network = {k: v.clone() for k, v in method.network.state_dict().items()}
    momentum, state = optimizer.state_dict(), torch.get_rng_state()
    other = build(average=0.9, ramp=1.0)
    other.network.load_state_dict(network)
    other_optimizer = other.optimizer()
    other_optimizer.load_state_dict(
        {
            **momentum,
            "state": {k: {"momentum_buffer": v["momentum_buffer"].clone()} for k, v in momentum["state"].items()},
        }
    )
    torch.set_rng_state(state)
    expected = step(method, phantom_batch(), optimizer, 2)
    torch.set_rng_state(state)
    resumed = step(other, phantom_batch(), other_optimizer, 2)
    assert {k: float(v) for k, v in expected.items()} == {k: float(v) for k, v in resumed.items()}
    pairs = zip(method.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_overfits_a_phantom_batch() -> None:
    method = build(iterations=40, learning_rate=0.1, dropout=0.1, attention_dropout=0.1)
    batch, optimizer = phantom_batch(unlabelled=1), method.optimizer()
    for iteration in range(40):
        step(method, batch, optimizer, iteration)
    with torch.no_grad():
        predicted = method.network.eval()(batch["labelled"]["image"]).argmax(1, keepdim=True)
    truth = batch["labelled"]["label"]
    dice = 2 * ((predicted == 1) & (truth == 1)).sum() / ((predicted == 1).sum() + (truth == 1).sum())
    assert float(dice) > 0.8


def test_streams_are_two_and_two(tmp_path: Path) -> None:
    cases = load_cases(write_dataset(tmp_path, 5, labelled=3, options=StudyOptions(shape=(40, 40, 20))))
    method = CAML(CAML.fit_config(CAMLConfig(patch=(32, 32, 16), width=4), cases), organ_labels())
    streams = method.streams(cases)
    assert [(s.name, len(s.cases), s.per_batch) for s in streams] == [("labelled", 3, 2), ("unlabelled", 2, 2)]
    assert method.config.bank_cases == 3  # type: ignore[attr-defined]
    assert sorted(method.slots.values()) == [0, 1, 2]
    assert [s.name for s in method.streams(cases[:3])] == ["labelled"]
    with pytest.raises(MedsegError, match="at least 1 labelled case, got 0 among 2"):
        method.streams(cases[3:])


def test_samples_of_labelled_cases_know_their_slot(tmp_path: Path) -> None:
    cases = load_cases(write_dataset(tmp_path, 3, labelled=2, options=StudyOptions(shape=(40, 40, 20))))
    method = CAML(CAML.fit_config(CAMLConfig(patch=(32, 32, 16), width=4), cases), organ_labels())
    loaded = [method.load(case) for case in cases]  # cases are read before the streams are known
    method.streams(cases)
    drawn = method.sample(loaded[1], "labelled", torch.Generator().manual_seed(0))
    assert set(drawn) == {"image", "label", "slot"}
    assert int(drawn["slot"]) == method.slots[cases[1].id] == 1
    unlabelled = method.sample(loaded[2], "unlabelled", torch.Generator().manual_seed(0))
    assert set(unlabelled) == {"image"}
    assert unlabelled["image"].shape == (1, 32, 32, 16)


def loaded_phantom(seed: int = 5) -> dict[str, Any]:
    organ = make_organ(seed, (40, 37, 20))
    image = torch.from_numpy(organ.image)[None]
    return {
        "image": MetaTensor((image - image.mean()) / image.std(), affine=torch.eye(4)),
        "case": Case("x", Path("x")),
    }


def test_prediction_and_score_of_a_whole_image() -> None:
    method = build(norm="instance")
    method.network.eval()
    loaded = loaded_phantom()
    with torch.no_grad():
        prediction = method.predict(loaded)
        first, second = method.score(loaded), method.score(loaded)
    assert prediction.probabilities is not None
    assert prediction.probabilities.shape == (2, 40, 37, 20)
    assert first == second
    assert 0 < first.value <= 1
    assert f"{first.value:.2f}" in first.why
    assert len(first.features) == 8
    assert set(first.parts) == {"divergence", "divergence_95", "entropy", "entropy_95"}


def test_score_does_not_depend_on_the_window_batch() -> None:
    values = []
    for size in (1, 3):
        method = build(norm="instance", window_batch=size)
        with torch.no_grad():
            for name, parameter in method.network.named_parameters():
                if ".space." in name or ".batch." in name:
                    parameter.fill_(0.02)
            method.network.eval()
            values.append(method.score(loaded_phantom()).value)
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_an_image_without_foreground_scores_highest() -> None:
    method = build()
    with torch.no_grad():
        method.network.student.head.bias.copy_(torch.tensor([50.0, -50.0]))
        score = method.score(loaded_phantom()) if method.network.eval() else None
    assert score is not None
    assert score.value == 1.0
    assert "finds" in score.why


def test_presets_and_arms_are_valid_settings() -> None:
    for preset in CAML.presets.values():
        config = CAMLConfig().with_overrides(preset.config)
        group = CAML.arm_groups["segmentation"]
        assert set(preset.arms) <= {arm.name for arm in group.arms}
        for arm in group.arms:
            kind = method_class(arm.method or "caml").config_class
            known = {f.name for f in dataclasses.fields(kind)}
            kind.from_dict({k: v for k, v in config.to_dict().items() if k in known} | dict(arm.overrides))
    assert [arm.name for arm in CAML.arm_groups["segmentation"].arms if arm.in_default] == [
        "supervised",
        "mutual",
        "cma",
        "occ",
        "full",
    ]
    assert {"width", "norm", "dropout", "loss"} <= {f.name for f in dataclasses.fields(SupervisedConfig)}

"""The multi-domain method over joint phantoms."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.inference.model_folder import load_model, save_model
from medseg.inference.predictor import Predictor
from medseg.methods.multidomain.classifier import Guess
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.networks.domain_norm import domain_slots, slot_key
from medseg.transforms.io import read_mask, write_volume

Make = Callable[..., MultiDomain]
LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}
EVERYTHING = {"contrast_weight": 0.1, "prior_weight": 0.1, "adversarial_weight": 0.01}


def test_domains_and_their_labels_come_from_the_cases(make: Make) -> None:
    method = make()

    assert method.registry.names == ("ankle", "knee", "shoulder")
    assert method.labels_by_head() == {
        "ankle": ("tibia", "talus"), "knee": ("femur", "tibia"), "shoulder": ("humerus",)
    }  # fmt: skip
    assert method.global_numbers("knee") == [0, 3, 1]  # femur, tibia: the tibia is the ankle's
    assert method.patch_of("knee") == (32, 32)


@pytest.mark.parametrize("domain_layers", [True, False])
def test_every_domain_is_seen_equally_often_whatever_its_cases(
    make: Make, joints: list[Case], domain_layers: bool
) -> None:
    few = [joints[0], *joints[3:]]
    streams = make(few, domain_layers=domain_layers).streams(few)

    assert [(s.name, len(s.cases), s.per_batch) for s in streams] == [
        ("ankle", 1, 4),
        ("knee", 3, 4),
        ("shoulder", 3, 4),
    ]


def test_pooled_network_takes_all_domains_as_one_batch(make: Make, joints: list[Case], draw_batch: Any) -> None:
    method = make(domain_layers=False)
    sizes = []
    method.network.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))

    terms = method.training_step(draw_batch(method, joints), 0).terms

    assert sizes == [9]
    assert set(terms) == {"segmentation_pooled", "classifier"}


@pytest.mark.parametrize(
    "settings",
    [{}, {"view": "2.5d"}, {"view": "3d", "patch": (16, 16, 16), "domain_batch": 2}, {"domain_layers": False},
     EVERYTHING, {"network": "attention"}, {"domain_layers": False, "norm": "instance"}],
)  # fmt: skip
def test_a_step_trains_and_a_prediction_holds_only_the_domains_labels(
    make: Make, joints: list[Case], settings: dict[str, object], draw_batch: Any, training_set: Any
) -> None:
    method = make(**settings)
    method.begin_stage(0, training_set(method, joints))
    method.network.train()
    batch = draw_batch(method, joints)
    for iteration in (0, 30):  # of the prior's stage, and after it
        if iteration:
            method.begin_stage(method.stages()[-1], training_set(method, joints))
        method.network.train()
        output = method.training_step(batch, iteration)
        output.loss.backward()
        assert math.isfinite(float(output.loss))
    method.network.eval()
    method.conclude(training_set(method, joints))
    prediction = Predictor(method).predict(joints[-1])

    assert prediction.probabilities is not None
    assert tuple(prediction.probabilities.shape) == (5, 32, 32, 6)
    torch.testing.assert_close(prediction.probabilities.as_tensor().sum(0), torch.ones(32, 32, 6))
    assert prediction.facts["domain"] == "shoulder"
    if method.config.domain_layers:
        assert prediction.labels == {"humerus": 4}
        assert float(prediction.probabilities[1:4].abs().max()) == 0
        assert set(torch.unique(prediction.mask.as_tensor()).tolist()) <= {0, 4}


def test_loss_of_one_domain_does_not_reach_the_others(make: Make, joints: list[Case], draw_batch: Any) -> None:
    method = make()
    method.network.train()
    batch = {"knee": draw_batch(method, joints)["knee"]}
    idle = {n: [v.clone() for s in domain_slots(method.network, n) for v in s.state_dict().values()]
            for n in ("ankle", "shoulder")}  # fmt: skip

    method.training_step(batch, 0).loss.backward()

    assert method.network.heads[slot_key("knee")].weight.grad is not None
    for name, before in idle.items():
        assert method.network.heads[slot_key(name)].weight.grad is None
        now = [v for slot in domain_slots(method.network, name) for v in slot.state_dict().values()]
        assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))


def test_it_learns_phantoms_of_opposite_contrast(
    make: Make, joints: list[Case], draw_batch: Any, training_set: Any
) -> None:
    method = make(width=8, learning_rate=5e-3, augmentation="none")
    optimizer = method.optimizer()
    method.network.train()
    losses = []
    for iteration in range(70):
        output = method.training_step(draw_batch(method, joints, iteration), iteration)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(sum(float(v) for k, v in output.terms.items() if k.startswith("segmentation")) / 3)
    method.network.eval()
    method.conclude(training_set(method, joints))
    predictor = Predictor(method)
    dice = []
    for case in (joints[0], joints[3], joints[6]):
        prediction = predictor.predict(case)
        truth = method.read_truth(case, prediction.mask)
        dice.append(method.evaluate(prediction, case, truth)["dice"])

    assert losses[-1] < 0.5 * losses[0]
    assert min(dice) > 0.7

    unnamed = [replace(case, id="x", dataset="", image=_copy(case, Path(case.image).parent)) for case in joints[::3]]
    found = [predictor.predict(case) for case in unnamed]
    assert [p.facts["domain"] for p in found] == ["ankle", "knee", "shoulder"]  # by the classifier
    assert all(p.facts["domain_from"] == "classifier" and p.warnings for p in found)


def _copy(case: Case, folder: Path) -> Path:
    """The image under a name that says nothing."""
    target = folder.parent / f"{case.dataset}-copy" / "scan.nii.gz"
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(case.image.read_bytes())
    return target


def test_domain_of_the_request_wins_and_an_unknown_one_is_refused(make: Make, joints: list[Case]) -> None:
    predictor = Predictor(make())

    asked = predictor.predict(replace(joints[0], domain="knee"))

    assert (asked.facts["domain"], asked.facts["domain_from"]) == ("knee", "request")
    assert asked.labels == {"tibia": 1, "femur": 3}
    with pytest.raises(NotFoundError, match="no domain 'hip'; this model knows ankle, knee, shoulder"):
        predictor.predict(replace(joints[0], domain="hip"))


@pytest.mark.parametrize(
    ("confidence", "distance", "words"),
    [
        (0.9, 0.9, r"^domain knee was recognised automatically \(0.90\)"),
        (0.7, 0.9, r"^the domain of this image is unknown; segmented as knee \(0.70, by the classifier\)"),
        (0.9, 1.1, r"^the domain of this image is unknown; segmented as knee"),
    ],
)
def test_guess_that_is_unsure_or_far_from_what_was_learnt_is_flagged_or_refused(
    make: Make, joints: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    confidence: float, distance: float, words: str,
) -> None:  # fmt: skip
    image = tmp_path / "scan.nii.gz"
    image.write_bytes(joints[0].image.read_bytes())
    method = make()
    monkeypatch.setattr(method, "guess_domain", lambda *_: Guess("knee", confidence, distance))

    [warning] = Predictor(method).predict(Case("scan", image)).warnings

    assert re.match(words, warning)
    method.config = replace(method.config, unknown="refuse")
    refusal = pytest.raises(UnusableInputError, match=r"domain of scan is unknown \(nearest: knee.*state one of ankle")
    with refusal if "unknown" in words else contextlib.nullcontext():
        Predictor(method).predict(Case("scan", image))


def test_threads_with_different_domains_match_serial_calls(make: Make, joints: list[Case]) -> None:
    method = make()
    for scale, name in enumerate(method.registry.names, start=1):
        for slot in domain_slots(method.network.backbone, name):
            torch.nn.init.constant_(slot.weight, scale)
    method.network.eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        serial = {name: method.network(image, name) for name in method.registry.names}
        jobs = [*method.registry.names] * 10
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda name: method.network(image, name).detach(), jobs))

    for name, result in zip(jobs, found, strict=True):
        torch.testing.assert_close(result, serial[name])


def test_label_of_another_joint_in_a_mask_is_refused(make: Make, joints: list[Case], tmp_path: Path) -> None:
    mask = read_mask(joints[0].label)
    mask[0, :3, :3, :2] = 3
    label = write_volume(tmp_path / "mixed.nii.gz", mask)
    mixed = replace(joints[0], label=label, names={1: "tibia", 2: "talus", 3: "humerus"})

    method = make([mixed, *joints[1:]])

    assert method.registry["ankle"].labels == ("tibia", "talus")
    with pytest.raises(UnusableInputError, match="holds label 'humerus', but domain ankle has tibia, talus"):
        method.load(mixed)


@pytest.mark.parametrize("count", [1, 2])
def test_label_that_the_names_of_a_data_set_leave_out_is_refused_however_few_masks(
    make: Make, joints: list[Case], tmp_path: Path, count: int
) -> None:
    mask = read_mask(joints[0].label)
    mask[0, :3, :3, :2] = 3
    mixed = replace(joints[0], label=write_volume(tmp_path / "mixed.nii.gz", mask))

    method = make([mixed, *joints[1:count], *joints[3:]])

    assert method.registry["ankle"].labels == ("tibia", "talus")
    with pytest.raises(UnusableInputError, match="holds value 3, but the labels of its data set are tibia, talus"):
        method.load(mixed)


def test_label_that_another_domain_has_is_told_where_few_masks_cannot_settle_it(
    make: Make, joints: list[Case], caplog: pytest.LogCaptureFixture
) -> None:
    make([joints[0], *joints[3:]])
    assert "domain ankle has 1 labelled cases, and other domains have its tibia, too" in caplog.text


def test_domain_with_one_case_trains(make: Make, joints: list[Case], draw_batch: Any) -> None:
    few = [*joints[:3], joints[3]]
    method = make(few)
    method.network.train()

    assert method.registry.names == ("ankle", "knee")
    assert math.isfinite(float(method.training_step(draw_batch(method, few), 0).loss))


def test_domain_without_a_mask_is_left_out(make: Make, joints: list[Case]) -> None:
    method = make([*joints[:3], *(case.without_label() for case in joints[3:6])])
    assert method.registry.names == ("ankle",)
    with pytest.raises(MedsegError, match="none of the 3 cases has a mask"):
        make([case.without_label() for case in joints[:3]])


def test_model_survives_the_disk_and_another_list_of_domains_is_refused(
    make: Make, joints: list[Case], tmp_path: Path, training_set: Any
) -> None:
    method = make(**EVERYTHING)
    method.network.eval()
    method.conclude(training_set(method, joints))
    save_model(tmp_path / "a", method)
    again = load_model(tmp_path / "a")
    one, two = (Predictor(m).predict(joints[4]).probabilities.as_tensor() for m in (method, again))

    torch.testing.assert_close(one, two)
    save_model(tmp_path / "b", make(joints[:6], **EVERYTHING))
    (tmp_path / "b" / "model.safetensors").write_bytes((tmp_path / "a" / "model.safetensors").read_bytes())
    with pytest.raises(UnusableInputError, match=r"does not fit its config\.json"):
        load_model(tmp_path / "b")


def test_prior_learns_from_true_masks_and_is_fixed_afterwards(
    make: Make, joints: list[Case], draw_batch: Any, training_set: Any
) -> None:
    method = make(prior_weight=0.1, prior_share=0.25)
    batch = draw_batch(method, joints)
    assert method.stages() == (0, 10)
    method.network.train()
    first = method.training_step(batch, 0)
    first.loss.backward()
    assert "prior_reconstruction" in first.terms
    assert "shape" not in first.terms
    assert all(p.grad is not None for p in method.network.prior.encoder.parameters() if p.ndim > 1)

    method.network.zero_grad(set_to_none=True)
    method.begin_stage(10, training_set(method, joints))
    method.network.train()
    before = {k: v.clone() for k, v in method.network.prior.state_dict().items()}
    output = method.training_step(batch, 39)
    output.loss.backward()

    assert float(output.terms["shape"]) > 0
    assert all(p.grad is None for p in method.network.prior.parameters())
    assert all(torch.equal(v, before[k]) for k, v in method.network.prior.state_dict().items())


def test_prior_for_scores_alone_learns_and_no_loss_listens_to_it(
    make: Make, joints: list[Case], draw_batch: Any, training_set: Any
) -> None:
    method, without = make(prior_score=True, prior_share=0.25), make()
    batch = draw_batch(method, joints)
    method.network.train()
    first = method.training_step(batch, 0).terms
    method.begin_stage(10, training_set(method, joints))
    method.network.train()
    later = method.training_step(batch, 39).terms
    method.network.eval()
    method.conclude(training_set(method, joints))

    assert (method.stages(), without.stages()) == ((0, 10), (0,))
    assert (without.network.prior, MultiDomain.app_settings) == (None, {"prior_score": True})
    assert set(first) - set(later) == {"prior_reconstruction"}
    assert not {"shape", "adversary"} & set(later)
    assert bool(method.network.prior.learnt)
    assert 0 < Predictor(method).score(joints[0]).parts["prior_error"] <= 1


def test_contrast_falls_towards_its_floor(make: Make, joints: list[Case], draw_batch: Any) -> None:
    method = make(contrast_weight=1.0, learning_rate=3e-2)
    batch, optimizer = draw_batch(method, joints), method.optimizer()
    method.network.train()
    above = []
    for iteration in range(30):
        output = method.training_step(batch, iteration)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        above.append(float(output.terms["contrast_above_floor"]))

    assert 0 <= above[-1] < 0.1 * above[0]


def test_score_is_relative_to_the_domain(make: Make, joints: list[Case], training_set: Any) -> None:
    method = make(prior_weight=0.1)
    method.network.eval()
    method.conclude(training_set(method, joints))
    scores = [Predictor(method).score(case) for case in joints[::3]]

    assert [s.group for s in scores] == ["ankle", "knee", "shoulder"]
    assert all(0.2 < s.value < 0.8 for s in scores)  # training images are usual in their domain
    assert set(scores[0].parts) == {"entropy", "distance", "prior_error"}
    noisy = {**method.load(joints[0])}
    noisy["views"] = noisy["views"] + 3 * torch.randn(noisy["views"].shape)
    method.network.eval()
    with torch.no_grad():
        assert method.score(noisy).parts["distance"] > scores[0].parts["distance"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"view": "4d"}, "view = '4d' is unknown; choose one of 2d, 2.5d, 3d"),
        ({"network": "resnet"}, "network = 'resnet' is unknown"),
        ({"network": "flexible", "view": "3d"}, "flexible works on slices"),
        ({"prior_share": 1.0}, r"prior_share = 1.0 is outside \[0, 1\)"),
        ({"contrast_weight": -1}, "contrast_weight = -1.0 must be a number from 0"),
        ({"flip_axes": (2,)}, "flip_axes"),
        ({"width": 0}, "at least 1"),
        ({"network": "attention", "patch": (24, 24)}, r"patch = \(24, 24\) must hold multiples of 16"),
        ({"network": "attention", "encoder_rate": 0.3}, "encoder_rate has no effect on network=attention"),
        ({"contrast_weight": 0.1, "domain_layers": False}, "contrast_weight needs domains that are told apart"),
        ({"norm": "instance"}, "norm = instance belongs to no domain; set domain_layers=false and network=unet"),
        ({"norm": "layer"}, "norm = 'layer' is unknown; choose one of batch, instance"),
        ({"normalisation": "window:3,1"}, "normalisation 'window:3,1' is unknown; write zscore, or window:-160,240"),
        ({"normalisation": "zscore;minmax@ct"}, "normalisation 'minmax' is unknown"),
        ({"contrast_temperature": 0}, "contrast_temperature = 0.0 must be above 0"),
    ],
)
def test_wrong_settings_are_one_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(MedsegError, match=words):
        MultiDomainConfig.from_dict(settings)


def test_a_domain_costs_less_than_one_per_cent_and_its_head(joints: list[Case]) -> None:
    config = MultiDomain.fit_config(MultiDomainConfig.from_dict({"width": 16, "patch": (32, 32)}), joints)
    network = MultiDomain(config, LABELS).network.backbone
    own = sum(p.numel() for slot in domain_slots(network, "knee") for p in slot.parameters())
    theta = sum(p.numel() for name, p in network.named_parameters() if ".slots." not in name)

    assert own / theta < 0.01

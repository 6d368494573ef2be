"""A domain that is added to a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError, UnusableInputError
from medseg.inference.model_folder import save_model
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.methods.multidomain.terms import one_hot
from medseg.networks.domain_norm import domain_slots, slot_key
from medseg.phantoms.joints import write_joints
from medseg.training.initial import load_initial
from medseg.transforms.io import read_image, read_mask, write_volume

LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}


@pytest.fixture
def old(make: Any, joints: list[Case], training_set: Any, tmp_path: Path) -> Path:
    """A model of ankle and knee, whose slots differ."""
    torch.manual_seed(0)
    few = joints[:6]
    config = MultiDomain.fit_config(MultiDomainConfig.from_dict({**SMALL, "iterations": 40}), few)
    method = MultiDomain(config, {"tibia": 1, "talus": 2, "femur": 3})
    for scale, name in enumerate(method.registry.names, start=2):
        for slot in domain_slots(method.network.backbone, name):
            torch.nn.init.constant_(slot.weight, scale)
    method.network.eval()
    method.conclude(training_set(method, few))
    save_model(tmp_path / "old", method)
    return tmp_path / "old"


SMALL = {"patch": (32, 32), "width": 4, "domain_batch": 4, "amp": "off", "norm_batches": 2}


def test_classifier_and_prior_of_the_old_domains_stay_while_only_the_new_one_is_shown(
    make: Any, joints: list[Case], training_set: Any, draw_batch: Any, tmp_path: Path
) -> None:
    few = joints[:6]
    settings = {**SMALL, "iterations": 40, "prior_weight": 0.1}
    before = MultiDomain(MultiDomain.fit_config(MultiDomainConfig.from_dict(settings), few), LABELS)
    fit(before, few, draw_batch, range(4))
    before.begin_stage(10, training_set(before, few))
    before.conclude(training_set(before, few))
    save_model(tmp_path / "old", before)
    method = extend(make, tmp_path / "old", prior_weight=0.1, freeze_share=0.5)
    assert method.stages() == (0, 10, 20)

    method.begin_stage(0, training_set(method, joints))
    kept = {key: value.clone() for key, value in method.network.state_dict().items() if not is_new(key)}
    fit(method, joints, draw_batch, range(3))

    now = method.network.state_dict()
    changed = {key.split(".slots.")[0] for key, value in kept.items() if not torch.equal(value, now[key])}
    assert not changed
    assert error_of(method, before, joints[:3]) == pytest.approx(0, abs=1e-6)
    assert any(p.grad is not None for p in method.network.prior.own_layers("shoulder")[0].parameters())


def test_old_domains_are_recognised_after_a_new_one_was_added_without_them(
    make: Any, joints: list[Case], training_set: Any, draw_batch: Any, tmp_path: Path
) -> None:
    held_out = load_cases(write_joints(tmp_path / "held_out", 5, (32, 32, 6)))
    held_out = [case for case in held_out if case.id.endswith(("03", "04"))]
    before = MultiDomain(MultiDomain.fit_config(MultiDomainConfig.from_dict(SMALL), joints[:6]), LABELS)
    fit_classifier(before, joints[:6], draw_batch)
    before.conclude(training_set(before, joints[:6]))
    save_model(tmp_path / "old", before)
    method = extend(make, tmp_path / "old", cases=joints[6:])
    new = training_set(method, joints[6:])
    place = method.network.get_buffer("classifier.centre_d_ankle").clone()
    method.begin_stage(12, new)
    fit(method, joints[6:], draw_batch, range(12, 14))
    method.conclude(new)

    guesses = [method.guess_domain(read_image(case.image)) for case in held_out]
    assert [guess.domain for guess in guesses] == [case.dataset for case in held_out]
    assert all(guess.distance < 1 for guess in guesses)
    assert torch.equal(method.network.get_buffer("classifier.centre_d_ankle"), place)


def fit(method: MultiDomain, cases: list[Case], draw_batch: Any, iterations: range) -> None:
    """A short training."""
    optimizer = method.optimizer()
    method.network.train()
    for iteration in iterations:
        optimizer.zero_grad(set_to_none=True)
        method.training_step(draw_batch(method, cases, iteration), iteration).loss.backward()
        optimizer.step()
    method.network.eval()


def fit_classifier(method: MultiDomain, cases: list[Case], draw_batch: Any) -> None:
    """The classifier's part of a training alone; it shares no weight with the rest."""
    optimizer = torch.optim.AdamW(method.network.classifier.parameters(), lr=5e-3)
    for iteration in range(60):
        batch = draw_batch(method, cases, iteration)
        views, domains = (torch.cat([part[key] for part in batch.values()]) for key in ("view", "domain"))
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(method.network.classifier(views), domains).backward()
        optimizer.step()
    method.network.eval()


def is_new(key: str) -> bool:
    """Whether a tensor belongs to the new domain, or is no part of what was inherited."""
    return "d_shoulder" in key


def error_of(method: MultiDomain, before: MultiDomain, cases: list[Case]) -> float:
    """How much worse the prior makes old masks again than it did."""
    found = []
    for which in (method, before):
        which.network.prior.eval()
        errors = []
        for case in cases:
            label = which.local_label(which.load(case)["label"].as_tensor(), case.dataset)
            prob = one_hot(label.movedim(-1, 0), 3)
            with torch.no_grad():
                errors.append(float((which.network.prior(prob, case.dataset).softmax(1) - prob).square().mean()))
        found.append(sum(errors))
    return found[0] - found[1]


def test_label_of_another_old_domain_is_no_new_label(joints: list[Case], old: Path, tmp_path: Path) -> None:
    mask = read_mask(joints[3].label)
    mask[0, :3, :3, :2] = 3
    names = {1: "femur", 2: "tibia", 3: "talus"}
    mixed = replace(joints[3], label=write_volume(tmp_path / "mixed.nii.gz", mask), names=names)
    settings = {**SMALL, "init": str(old)}

    fitted = MultiDomain.fit_config(MultiDomainConfig.from_dict(settings), [mixed, *joints[6:]])

    assert fitted.domains["knee"]["labels"] == ["femur", "tibia"]
    with pytest.raises(UnusableInputError, match="holds label 'talus', but domain knee has femur, tibia"):
        MultiDomain(fitted, LABELS).load(mixed)


def extend(make: Any, old: Path, **settings: object) -> MultiDomain:
    method: MultiDomain = make(init=str(old / "model.safetensors"), **settings)
    load_initial(method.network, old)
    return method


def test_new_slot_starts_from_the_nearest_and_old_slots_are_kept(
    make: Any, joints: list[Case], training_set: Any, old: Path
) -> None:
    method = extend(make, old)
    assert method.registry.names == ("ankle", "knee", "shoulder")
    assert method.config.added == ("shoulder",)

    method.begin_stage(0, training_set(method, joints))

    weights = {n: float(domain_slots(method.network.backbone, n)[0].weight[0]) for n in method.registry.names}
    assert weights["ankle"] == 2
    assert weights["knee"] == 3
    assert weights["shoulder"] in (2, 3)


def test_first_only_the_new_domain_learns_and_then_all(
    make: Any, joints: list[Case], training_set: Any, draw_batch: Any, old: Path
) -> None:
    method = extend(make, old, freeze_share=0.5)
    assert method.stages() == (0, 20)
    whole = training_set(method, joints)

    method.begin_stage(0, whole)
    assert [stream.name for stream in method.streams(joints)] == ["shoulder"]
    method.network.train()
    method.training_step(draw_batch(method, joints), 0).loss.backward()
    assert all(p.grad is None for p in method.network.shared_parameters())
    assert method.network.heads[slot_key("shoulder")].weight.grad is not None

    method.begin_stage(20, whole)
    assert [stream.name for stream in method.streams(joints)] == ["ankle", "knee", "shoulder"]
    assert all(p.requires_grad for p in method.network.shared_parameters())


def test_slot_is_copied_once_so_that_a_resumed_run_keeps_what_it_learnt(
    make: Any, joints: list[Case], training_set: Any, old: Path
) -> None:
    method = extend(make, old)
    whole = training_set(method, joints)
    method.begin_stage(0, whole)
    slot = domain_slots(method.network.backbone, "shoulder")[0]
    torch.nn.init.constant_(slot.weight, 7)

    method.begin_stage(0, whole)

    assert float(slot.weight[0]) == 7


def test_without_old_cases_the_shared_filters_stay_and_so_do_the_old_domains(
    make: Any, joints: list[Case], training_set: Any, old: Path
) -> None:
    method = extend(make, old, cases=joints[6:])
    method.begin_stage(12, training_set(method, joints[6:]))

    assert method.registry.names == ("ankle", "knee", "shoulder")
    assert not any(p.requires_grad for p in method.network.shared_parameters())


def test_labels_of_the_old_domains_must_be_known(joints: list[Case], old: Path) -> None:
    config = MultiDomainConfig.from_dict({**SMALL, "init": str(old)})
    fitted = MultiDomain.fit_config(config, joints[6:])

    with pytest.raises(MedsegError, match="have labels femur, talus, tibia, which this run does not have"):
        MultiDomain(fitted, {"humerus": 1})

"""A domain that is added to a trained model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medseg.cases import Case, load_cases
from medseg.domains import PATTERN, Domain, aliases_of, assign_domains
from medseg.errors import MedsegError, UnusableInputError
from medseg.files import read_json, write_json
from medseg.inference.model_folder import save_model
from medseg.methods.multidomain.adopt import find_heirs
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


def test_run_that_adds_a_domain_learns_more_slowly(make: Any, old: Path) -> None:
    rates = {
        name: {round(group["lr"], 9) for group in method.optimizer().param_groups}
        for name, method in (
            ("added", extend(make, old, learning_rate=3e-3)),
            ("chosen", extend(make, old, learning_rate=3e-3, added_rate=0.5)),
            ("new", make(learning_rate=3e-3)),
        )
    }

    assert rates == {"added": {1e-3}, "chosen": {1.5e-3}, "new": {3e-3}}


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


def inferred(name: str, labels: list[str], aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    return Domain(name, tuple(labels), aliases=aliases).to_dict()


def scans(*names: str, domain: str | None = None) -> list[Case]:
    return [Case(name, Path(f"{name}.nii.gz"), Path("m"), dataset="study", domain=domain) for name in names]


@pytest.mark.parametrize(
    ("before", "cases", "heirs"),
    [
        ({"vb1": (), "study": ("vb3",)}, ("vb1_1", "vb1_2", "vb3_1", "vb3_2"), {"vb3": "study"}),  # its second case
        ({"study": ()}, ("vb1_1", "vb1_2", "vb2_1", "vb2_2"), {"vb1": "study", "vb2": "study"}),
        ({"vb1": (), "vb3": ()}, ("vb1_1", "vb1_2", "vb3_1"), {"study": "vb3"}),  # one was taken away
        ({"study": ()}, ("vb3_1", "vb3_2", "plain"), {}),  # the old domain still has a case
        ({"vb1": ("study",)}, ("vb3_1", "vb3_2"), {}),  # a new domain in a data set of the same name
        ({"ankle": ()}, ("vb3_1", "vb3_2"), {}),
    ],
)
def test_domain_that_gets_another_name_goes_on_under_it(
    before: dict[str, tuple[str, ...]], cases: tuple[str, ...], heirs: dict[str, str]
) -> None:
    known = {name: inferred(name, ["body"], aliases) for name, aliases in before.items()}
    data = scans(*cases)
    names = assign_domains(data)
    groups = {name: [case for case in data if names[case.id] == name] for name in dict.fromkeys(names.values())}
    found = {
        name: inferred(name, ["body"], aliases_of(name, own, [case for case in data if case not in own]))
        for name, own in groups.items()
    }

    assert find_heirs(known, found, data, PATTERN) == heirs
    assert find_heirs(known, {"vb9": inferred("vb9", ["body"])}, scans("a", domain="vb9"), PATTERN) == {}


def renamed(old: Path, names: dict[str, str]) -> Path:
    """The model under other names of its domains, as an earlier run with fewer cases would have called them."""
    about = read_json(old / "config.json")
    about["config"]["domains"] = {names.get(k, k): v for k, v in about["config"]["domains"].items()}
    write_json(old / "config.json", about)
    weights = load_file(old / "model.safetensors")
    for after, before in ((slot_key(after), slot_key(before)) for before, after in names.items()):
        weights = {key.replace(before, after): value for key, value in weights.items()}
    save_file(weights, old / "model.safetensors")
    return old


def test_heir_starts_with_all_that_belonged_to_the_old_name(joints: list[Case], old: Path, training_set: Any) -> None:
    folder = renamed(old, {"knee": "study"})
    one_study = [replace(case, dataset="study") for case in joints[:6]]
    settings = {**SMALL, "iterations": 40, "init": str(folder)}
    config = MultiDomain.fit_config(MultiDomainConfig.from_dict(settings), one_study)
    method = MultiDomain(config, {"tibia": 1, "talus": 2, "femur": 3})
    load_initial(method.network, folder, inherit=method.inherit)

    assert method.registry.names == ("ankle", "knee")
    assert (method.config.heirs, method.config.added) == ({"knee": "study"}, ())
    weights = load_file(folder / "model.safetensors")
    own = method.network.state_dict()
    for key in ("heads.{}.weight", "classifier.centre_{}", "classifier.rows.{}.weight", "usual_{}"):
        assert torch.equal(own[key.format("d_knee")], weights[key.format("d_study")])
    assert float(domain_slots(method.network.backbone, "knee")[0].weight[0]) == 3
    method.begin_stage(0, training_set(method, one_study))
    assert method.missing_domains(one_study) == ()
    assert all(p.requires_grad for p in method.network.shared_parameters())


@pytest.mark.parametrize("domain_layers", [True, False])
def test_label_that_is_new_in_an_old_domain_leaves_the_others_as_they_were(
    joints: list[Case], tmp_path: Path, domain_layers: bool
) -> None:
    settings = {**SMALL, "iterations": 40, "prior_weight": 0.1, "domain_layers": domain_layers}
    few = joints[:3]
    before = MultiDomain(MultiDomain.fit_config(MultiDomainConfig.from_dict(settings), few), {"talus": 1, "tibia": 2})
    save_model(tmp_path / "old", before)
    mask = read_mask(few[0].label)
    mask[0, :3, :3, :2] = 3
    names = {1: "tibia", 2: "talus", 3: "calcaneus"}
    wider = replace(few[0], label=write_volume(tmp_path / "wider.nii.gz", mask), names=names)
    init = {**settings, "init": str(tmp_path / "old")}
    config = MultiDomain.fit_config(MultiDomainConfig.from_dict(init), [wider, *few[1:]])
    torch.manual_seed(5)
    method = MultiDomain(config, {"calcaneus": 1, "tibia": 2, "talus": 3})
    load_initial(method.network, tmp_path / "old", inherit=method.inherit)

    assert config.domains["ankle"]["labels"] == ["tibia", "talus", "calcaneus"]
    image = torch.randn(2, 1, 32, 32)
    rows = [[0, *(which.global_numbers("ankle")[1:])] for which in (before, method)]
    with torch.no_grad():
        was, now = (which.network.eval()(image, "ankle") for which in (before, method))
        names_of = [{number: name for name, number in which.labels.items()} for which in (before, method)]
        place = [{table.get(number, "background"): i for i, number in enumerate(numbers)}
                 for table, numbers in zip(names_of, rows, strict=True)]  # fmt: skip
        for name in ("background", "tibia", "talus"):
            torch.testing.assert_close(now[:, place[1][name]], was[:, place[0][name]])
    head = slot_key("ankle" if domain_layers else "pooled")
    own, given = method.network.state_dict(), before.network.state_dict()
    for key, axis in ((f"prior.inputs.{head}.weight", 1), (f"prior.outputs.{head}.bias", 0)):
        for name in ("background", "tibia", "talus"):
            picks = own[key].select(axis, place[1][name]), given[key].select(axis, place[0][name])
            assert torch.equal(*picks)

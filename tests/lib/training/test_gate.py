from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import threshold_method
import torch
from monai.data import MetaTensor
from PIL import Image
from safetensors.torch import save_file
from threshold_method import Threshold, save_threshold

from medseg import methods
from medseg.cases import Case
from medseg.errors import MedsegError, NotFoundError, UnusableInputError
from medseg.inference import model_folder
from medseg.training import judge
from medseg.training.gate import gate
from medseg.training.registry import ModelRegistry
from medseg.transforms.io import write_volume
from medseg.weak import WeakLabels


@pytest.fixture(autouse=True)
def _threshold_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose network is one number: mask = image > threshold."""
    monkeypatch.setitem(methods.METHODS, "threshold", "threshold_method:Threshold")


def save_run(folder: Path, threshold: float, label: str = "organ") -> Path:
    return save_threshold(folder, threshold, label)


def make_cases(folder: Path, count: int = 2, domain: str | None = None) -> list[Case]:
    """Ramps 0..63 along x; the truth is where the ramp exceeds 31."""
    folder.mkdir()
    ramp = np.tile(np.arange(64, dtype=np.uint8), (8, 1))
    cases = []
    for index in range(count):
        name = f"{domain or 'c'}{index}"
        image, label = folder / f"{name}.png", folder / f"{name}_mask.png"
        Image.fromarray(ramp).save(image)
        Image.fromarray((ramp > 31).astype(np.uint8)).save(label)
        cases.append(Case(name, image, label, domain=domain))
    return cases


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    return ModelRegistry(tmp_path / "models", tracking_uri="off")


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    return make_cases(tmp_path / "data")


def pass_gate(registry: ModelRegistry, run: Path, cases: list[Case], eps: float = 0.0):
    return gate(registry, "threshold", run, cases, "cpu", eps)


def test_first_model_is_published_with_its_quality(registry: ModelRegistry, cases: list[Case], tmp_path: Path) -> None:
    decision = pass_gate(registry, save_run(tmp_path / "run", 47), cases)

    assert decision.published
    assert decision.version == 1
    assert decision.candidate["quality"] == pytest.approx(2 * 16 / (16 + 32))  # 16 of 32 columns found
    assert decision.incumbent is None
    assert registry.champion("threshold").metrics["quality"] == decision.candidate["quality"]
    assert set(registry.champion("threshold").metrics["validation"]["cases"]) == {"c0", "c1"}


def test_better_candidate_replaces_the_champion(registry: ModelRegistry, cases: list[Case], tmp_path: Path) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 47), cases)
    decision = pass_gate(registry, save_run(tmp_path / "b", 39), cases)

    assert (decision.published, decision.version) == (True, 2)
    assert decision.candidate["quality"] == pytest.approx(2 * 24 / (24 + 32))
    assert decision.incumbent["quality"] == pytest.approx(2 * 16 / (16 + 32))
    assert decision.incumbent["version"] == 1
    assert registry.champion("threshold").number == 2
    kept = registry.champion("threshold").metrics
    assert kept["incumbent"]["cases"]["c0"]["dice"] == pytest.approx(2 * 16 / (16 + 32))
    assert "better, 0.8571 against 0.6667 of version 1 on 2 validation cases" in decision.reason


@pytest.mark.parametrize("threshold", [47.25, 50])  # whole intensities: 47.25 makes the masks of 47
def test_gate_keeps_an_incumbent_that_is_equal_or_better(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, threshold: float
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 47), cases)
    decision = pass_gate(registry, save_run(tmp_path / "b", threshold), cases)

    assert not decision.published
    assert decision.version is None
    assert decision.reason.startswith("rejected: not better")
    assert registry.champion("threshold").number == 1
    assert [v.number for v in registry.versions("threshold")] == [1]
    (rejection,) = registry.rejections("threshold")
    assert rejection["metrics"]["validation"]["cases"]["c1"]["dice"] == decision.candidate["cases"]["c1"]["dice"]


def test_gain_below_eps_is_not_enough(registry: ModelRegistry, cases: list[Case], tmp_path: Path) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 47), cases)
    run = save_run(tmp_path / "b", 46)  # 0.6939 against 0.6667

    assert not pass_gate(registry, run, cases, eps=0.03).published
    assert pass_gate(registry, run, cases, eps=0.02).published


def test_eps_out_of_range_is_refused(registry: ModelRegistry, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(MedsegError, match=r"eps is 1\.5"):
        pass_gate(registry, tmp_path, cases, eps=1.5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("has_champion", [False, True])
def test_weights_that_are_not_finite_are_rejected(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, value: float, has_champion: bool
) -> None:
    if has_champion:
        pass_gate(registry, save_run(tmp_path / "a", 47), cases)
    decision = pass_gate(registry, save_run(tmp_path / "b", value), cases)

    assert not decision.published
    assert decision.reason == "rejected: weight threshold holds NaN or infinity."
    assert (registry.champion("threshold") is not None) == has_champion


def test_metrics_that_are_not_finite_are_rejected(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save_run(tmp_path / "a", 40)
    monkeypatch.setattr(Threshold, "quality", lambda self, metrics: float("nan"))
    decision = pass_gate(registry, run, cases)

    assert decision.reason == "rejected: the candidate's metrics are not finite."
    assert decision.to_dict()["candidate"]["quality"] is None
    assert registry.versions("threshold") == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign", "config"])
def test_damaged_candidate_is_rejected_with_a_reason(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, damage: str
) -> None:
    run = save_run(tmp_path / "a", 40)
    weights = run / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:40])
    elif damage == "missing":
        weights.unlink()
    elif damage == "foreign":
        save_file({"other": torch.zeros(1)}, weights)
    else:
        (run / "config.json").write_text("{")
    decision = pass_gate(registry, run, cases)

    assert not decision.published
    assert decision.reason.startswith("rejected: ")
    assert len(registry.rejections("threshold")) == 1


def test_without_validation_cases_the_newest_model_is_served(registry: ModelRegistry, tmp_path: Path) -> None:
    decisions = [pass_gate(registry, save_run(tmp_path / f"{t}", t), []) for t in (40, 60)]

    assert [decision.version for decision in decisions] == [1, 2]
    assert "not validated" in decisions[0].reason
    assert "not validated: there is no labelled validation case yet" in decisions[1].reason
    assert registry.champion("threshold").number == 2
    assert "not validated" in registry.champion("threshold").note


def test_validated_champion_stays_where_there_is_nothing_to_compare_on(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 40), cases)
    unlabelled = [case.without_label() for case in cases]
    decision = pass_gate(registry, save_run(tmp_path / "b", 35), unlabelled)

    assert not decision.published
    assert "no validation case to compare with version 1" in decision.reason


def test_unvalidated_champion_is_measured_once_there_are_cases(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), [])
    decision = pass_gate(registry, save_run(tmp_path / "b", 47), cases)

    assert not decision.published
    assert decision.incumbent["quality"] == pytest.approx(2 * 28 / (28 + 32))


def test_changed_labels_are_published_without_comparison(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), cases)
    decision = pass_gate(registry, save_run(tmp_path / "b", 47, label="atrium"), cases)

    assert decision.published
    assert "labels changed from organ=1 to atrium=1, not compared with version 1" in decision.reason


def test_a_method_may_say_that_two_models_do_not_compare(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = lambda _, new, old: "" if new["seed"] == old["seed"] else f"seed {old['seed']} became {new['seed']}"  # noqa: E731
    monkeypatch.setattr(Threshold, "incomparable", classmethod(seeds))
    pass_gate(registry, save_run(tmp_path / "a", 35), cases)
    other = save_run(tmp_path / "b", 47)
    about = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**about, "config": {**about["config"], "seed": 7}}))

    worse, published = pass_gate(registry, save_run(tmp_path / "c", 46), cases), pass_gate(registry, other, cases)

    assert worse.reason.startswith("rejected: not better")
    assert published.published
    assert "seed 0 became 7, not compared with version 1; validation quality 0.6667" in published.reason


def test_a_new_label_does_not_open_the_gate_for_a_worse_model(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), cases)
    worse = save_run(tmp_path / "b", 47)
    config = json.loads((worse / "config.json").read_text())
    (worse / "config.json").write_text(json.dumps({**config, "labels": {"organ": 1, "misspelt": 2}}))
    decision = pass_gate(registry, worse, cases)

    assert not decision.published
    assert decision.incumbent is not None
    assert decision.reason.startswith("rejected: not better")


def test_a_run_that_is_already_served_is_not_rejected_for_being_no_better_than_itself(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    run = save_run(tmp_path / "a", 47)
    first, again = pass_gate(registry, run, cases), pass_gate(registry, run, cases)

    assert (again.published, again.version) == (True, first.version)
    assert again.reason == "version 1 is this very model and is served already"
    assert registry.rejections("threshold") == []


def test_champion_that_does_not_load_any_more_gives_way(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), cases)
    folder = registry.champion("threshold").folder
    (folder / "model.safetensors").write_bytes(b"rubbish")
    (folder / "validation.json").unlink()
    decision = pass_gate(registry, save_run(tmp_path / "b", 47), cases)

    assert decision.published
    assert "version 1 does not run any more" in decision.reason


def test_champion_stays_where_memory_does_not_suffice_to_measure_it(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), [])
    run = save_run(tmp_path / "b", 47)
    load = Threshold.load

    def exhausted(self, case):
        if self.network.threshold.item() == 35:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return load(self, case)

    monkeypatch.setattr(Threshold, "load", exhausted)
    decision = pass_gate(registry, run, cases)

    assert not decision.published
    assert "version 1 could not be measured: CUDA out of memory" in decision.reason


def fail_at(monkeypatch: pytest.MonkeyPatch, threshold: float, error: Exception, domain: str | None = None) -> None:
    """The model with this threshold fails on the cases of a domain, or on all."""
    load = Threshold.load

    def failing(self, case):
        if self.network.threshold.item() == threshold and (domain is None or case.domain == domain):
            raise error
        return load(self, case)

    monkeypatch.setattr(Threshold, "load", failing)


def test_a_gpu_that_fails_while_the_champion_is_measured_opens_no_gate(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), [])
    fail_at(monkeypatch, 35, RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    decision = pass_gate(registry, save_run(tmp_path / "b", 47), cases)

    assert (decision.published, registry.champion("threshold").number) == (False, 1)
    assert decision.reason == (
        "rejected: version 1 could not be measured: cuDNN error: CUDNN_STATUS_EXECUTION_FAILED; there is nothing to "
        "compare with, train again."
    )


def test_a_champion_that_cannot_be_read_just_now_stays(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), [])
    load_file = model_folder.load_file

    def read(path):
        if path.parent == registry.champion("threshold").folder:
            raise OSError("Stale file handle")
        return load_file(path)

    monkeypatch.setattr(model_folder, "load_file", read)

    assert "could not be measured" in pass_gate(registry, save_run(tmp_path / "b", 47), cases).reason


@pytest.fixture
def joints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """One case of the hip, three of the knee; groups are domains."""
    by_domain = classmethod(lambda cls, cases, config=None: {case.id: case.domain or "" for case in cases})
    monkeypatch.setattr(Threshold, "group_cases", by_domain)
    return [*make_cases(tmp_path / "hip", 1, "hip"), *make_cases(tmp_path / "knee", 3, "knee")]


@pytest.mark.parametrize(("threshold", "published"), [(31, True), (31.5, True), (32, False)])
def test_a_new_domain_is_served_only_if_the_old_ones_keep_their_quality(
    registry: ModelRegistry, joints: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    threshold: float, published: bool
) -> None:  # fmt: skip
    pass_gate(registry, save_run(tmp_path / "a", 31.25), joints[:1])  # knows the hip alone, perfectly
    fail_at(monkeypatch, 31.25, NotFoundError("there is no domain 'knee'"), "knee")
    decision = pass_gate(registry, save_run(tmp_path / "b", threshold), joints)

    assert decision.published is published
    assert decision.incumbent["quality"] == 0.5  # missed in the knee
    assert decision.incumbent["groups"] == {"hip": 1.0, "knee": 0.0}
    assert "against 0.5000 of version 1 on 4 validation cases in 2 groups that count alike; knee new to it" in (
        decision.reason
    )
    fall = "rejected: hip from 1.0000 to 0.9841 would fall by more than 0.01, although the mean rises; 0.9841 against"
    assert (fall in decision.reason) is not published


def test_a_champion_that_refuses_a_case_of_a_group_that_it_knows_was_not_measured(
    registry: ModelRegistry, joints: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), [])
    load = Threshold.load

    def refuse_one(self, case):
        if self.network.threshold.item() == 35 and case.id == "knee1":
            raise UnusableInputError("knee1 cannot be read")
        return load(self, case)

    monkeypatch.setattr(Threshold, "load", refuse_one)
    decision = pass_gate(registry, save_run(tmp_path / "b", 47), joints)

    assert not decision.published
    assert "version 1 could not be measured: it refuses validation case knee1 (knee1 cannot be read)" in decision.reason


def test_files_that_vanish_during_the_gate_do_not_count_as_refused(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), [])
    load = Threshold.load

    def lose(self, case):
        if self.network.threshold.item() == 35:
            case.image.unlink(missing_ok=True)
        return load(self, case)

    monkeypatch.setattr(Threshold, "load", lose)

    assert "version 1 could not be measured" in pass_gate(registry, save_run(tmp_path / "b", 47), cases).reason


def test_groups_are_told_among_all_cases_of_the_study(
    registry: ModelRegistry, joints: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[set[str]] = []

    def group_cases(cls, cases, config=None):
        seen.append({case.id for case in cases})
        return {case.id: case.domain for case in cases}

    monkeypatch.setattr(Threshold, "group_cases", classmethod(group_cases))
    gate(registry, "threshold", save_run(tmp_path / "a", 35), joints[:2], among=joints)

    assert seen == [{"hip0", "knee0", "knee1", "knee2"}]


def test_lost_champion_files_do_not_block_the_loop(registry: ModelRegistry, cases: list[Case], tmp_path: Path) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), cases)
    (registry.champion("threshold").folder / "model.safetensors").unlink()

    assert pass_gate(registry, save_run(tmp_path / "b", 47), cases).version == 2


@pytest.mark.parametrize("damage", ["image", "mask", "axes"])
def test_unusable_validation_case_is_left_out_for_both(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, damage: str
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 47), cases)
    if damage == "axes":
        volume = write_volume(tmp_path / "volume.nii.gz", MetaTensor(torch.ones(1, 4, 4, 4), affine=torch.eye(4)))
        cases[0] = replace(cases[0], label=volume)
    else:
        (cases[0].image if damage == "image" else cases[0].label).write_bytes(b"no image")
    decision = pass_gate(registry, save_run(tmp_path / "b", 39), cases)

    assert decision.published
    assert "Validation case c0 was left out" in decision.reason
    assert set(decision.candidate["cases"]) == set(decision.incumbent["cases"]) == {"c1"}


def test_champions_metrics_are_reused_only_while_files_weak_labels_and_code_are_the_same(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_gate(registry, save_run(tmp_path / "a", 35), cases)

    def predictions(threshold: float) -> int:
        before = Threshold.predictions
        pass_gate(registry, save_run(tmp_path / f"run{threshold}", threshold), cases)
        return Threshold.predictions - before

    assert predictions(47) == 2  # the candidate's alone
    mask = np.array(Image.open(cases[0].label))
    mask[:, 40] = 0
    Image.fromarray(mask).save(cases[0].label)
    assert predictions(48) == 4  # the mask was corrected: both models again
    assert predictions(49) == 2
    regions = cases[1].label
    cases[1] = replace(cases[1], regions=regions)
    assert predictions(50) == 4
    cases[1] = replace(cases[1], weak=WeakLabels(extent={"1": 5.0}))
    assert predictions(51) == 4
    monkeypatch.setattr(judge, "code_hash", lambda: "newer")
    assert predictions(52) == 4
    assert predictions(53) == 2


def test_rollback_is_what_the_next_candidate_is_compared_with(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    for threshold in (47, 35):
        pass_gate(registry, save_run(tmp_path / f"{threshold}", threshold), cases)
    registry.rollback("threshold", 1)
    decision = pass_gate(registry, save_run(tmp_path / "b", 40), cases)

    assert decision.incumbent["version"] == 1
    assert decision.version == 3


def test_champion_moved_during_the_gate_is_compared_again(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for threshold in (47, 35):
        pass_gate(registry, save_run(tmp_path / f"{threshold}", threshold), cases)
    publish = ModelRegistry.publish

    def publish_after_rollback(self, method, run, metrics, note=""):
        number = publish(self, method, run, metrics, note)
        if self.champion("threshold").number == 2:
            self.rollback("threshold", 1)
        return number

    monkeypatch.setattr(ModelRegistry, "publish", publish_after_rollback)
    decision = pass_gate(registry, save_run(tmp_path / "b", 33), cases)

    assert decision.incumbent["version"] == 1
    assert (decision.version, registry.champion("threshold").number) == (3, 3)


CRASH = """
import os, sys
from pathlib import Path
from medseg import methods
from medseg.cases import Case, load_cases
from medseg.training.gate import gate
from medseg.training.registry import ModelRegistry

methods.METHODS["threshold"] = "threshold_method:Threshold"
ModelRegistry.promote = lambda *args, **kwargs: os._exit(7)
root, run, cases = map(Path, sys.argv[1:])
gate(ModelRegistry(root, tracking_uri="off"), "threshold", run, load_cases(cases))
"""


def test_crash_between_write_and_publish_keeps_the_champion_and_can_be_repeated(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
) -> None:
    from medseg.cases import save_cases

    pass_gate(registry, save_run(tmp_path / "a", 47), cases)
    run, listed = save_run(tmp_path / "b", 39), save_cases(tmp_path / "cases.json", cases)
    crashed = subprocess.run(
        [sys.executable, "-c", CRASH, registry.root, run, listed],
        env={**os.environ, "PYTHONPATH": str(Path(threshold_method.__file__).parent)},
        check=False,
    )

    assert crashed.returncode == 7
    assert registry.champion("threshold").number == 1
    assert [v.number for v in registry.versions("threshold")] == [1, 2]
    assert pass_gate(registry, run, cases).version == 2
    assert registry.champion("threshold").number == 2

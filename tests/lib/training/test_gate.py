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
from medseg.errors import MedsegError
from medseg.training.gate import gate
from medseg.training.registry import ModelRegistry
from medseg.transforms.io import write_volume


@pytest.fixture(autouse=True)
def _threshold_method(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose network is one number: mask = image > threshold."""
    monkeypatch.setitem(methods.METHODS, "threshold", "threshold_method:Threshold")


def save_run(folder: Path, threshold: float, label: str = "organ") -> Path:
    return save_threshold(folder, threshold, label)


def make_cases(folder: Path, count: int = 2) -> list[Case]:
    """Ramps 0..63 along x; the truth is where the ramp exceeds 31."""
    folder.mkdir()
    ramp = np.tile(np.arange(64, dtype=np.uint8), (8, 1))
    cases = []
    for index in range(count):
        image, label = folder / f"c{index}.png", folder / f"c{index}_mask.png"
        Image.fromarray(ramp).save(image)
        Image.fromarray((ramp > 31).astype(np.uint8)).save(label)
        cases.append(Case(f"c{index}", image, label))
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
    assert "version 1 could not be measured (CUDA out of memory)" in decision.reason


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


def test_champions_metrics_are_reused_only_while_the_files_are_the_same(
    registry: ModelRegistry, cases: list[Case], tmp_path: Path
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

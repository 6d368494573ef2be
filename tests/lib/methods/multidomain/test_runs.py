"""The delivered paths together: all arms of the benchmark, and a run that is killed and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medseg.benchmark.request import BenchmarkRequest
from medseg.benchmark.runner import run_benchmark
from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json
from medseg.inference.model_folder import load_model
from medseg.methods.multidomain.config import MultiDomainConfig
from medseg.methods.multidomain.method import MultiDomain
from medseg.phantoms.joints import write_joints
from medseg.training.run import TrainingJob, train

LABELS = {"tibia": 1, "talus": 2, "femur": 3, "humerus": 4}
TINY = {"patch": (16, 16), "width": 2, "domain_batch": 2, "amp": "off", "norm_batches": 1}


def test_all_arms_of_the_benchmark_are_compared_on_every_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medseg.benchmark.runner.write_report", lambda *_: None)  # half of the time, tested elsewhere
    data = write_joints(tmp_path / "joints", 2, (24, 24, 4))
    settings = {key: ",".join(map(str, v)) if isinstance(v, tuple) else str(v) for key, v in TINY.items()}
    request = BenchmarkRequest(
        method="multidomain", data=tuple(data), out=tmp_path / "out", preset="cpu", iterations=6, labelled=3,
        held_out=3, seeds=1, device="cpu", jobs=1, isolate=False, settings=settings,
    )  # fmt: skip

    summary = run_benchmark(request)

    assert not summary.get("failed")
    names = ["individual", "individual_steps", "transfer", "shared", "domain_layers", "contrastive", "prior", "full"]
    assert list(summary["arms"]) == names
    for arm in summary["arms"].values():
        assert sorted(case.split("_")[0] for case in arm["cases"]) == ["ankle", "knee", "shoulder"]

    def terms(arm: str) -> set[str]:
        """What the loss of an arm was made of."""
        result = read_json(tmp_path / "out" / "runs" / f"{arm}_seed0" / "result.json")
        return {key for entry in result["history"] for key in entry} - {"iteration", "loss", "classifier"}

    own = {f"segmentation_{name}" for name in ("ankle", "knee", "shoulder")}
    contrast, prior = {"contrast", "contrast_above_floor"}, {"shape"}
    assert terms("shared") == {"segmentation_pooled"}
    assert terms("domain_layers") == own
    assert terms("contrastive") == own | contrast
    assert terms("prior") == own | prior
    assert terms("full") == own | contrast | prior
    assert len({tuple(arm["cases"].values()) for arm in summary["arms"].values()}) > 1
    assert [summary["tests"]["tested"], *(t["tested"] for t in summary["further_tests"])] == ["full", "domain_layers"]
    assert sorted(summary["tests"]["against"]["shared"]["groups"]) == ["ankle", "knee", "shoulder"]


def test_run_that_is_killed_while_the_prior_learns_ends_as_if_it_was_not(
    joints: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**TINY, "iterations": 6, "epoch_iterations": 1, "prior_weight": 0.1, "prior_share": 0.5}

    def run(name: str, resume: bool = False) -> dict[str, torch.Tensor]:
        config = MultiDomainConfig.from_dict(settings)
        train(TrainingJob("multidomain", config, LABELS, tuple(joints[::2]), (), tmp_path / name, "cpu", resume))
        return load_model(tmp_path / name).network.state_dict()

    whole = run("whole")
    step = MultiDomain.training_step

    def killed(self: MultiDomain, batch: Any, iteration: int) -> Any:
        if iteration == 2:
            raise MedsegError("killed")
        return step(self, batch, iteration)

    with monkeypatch.context() as patch:
        patch.setattr(MultiDomain, "training_step", killed)
        with pytest.raises(MedsegError, match="killed"):
            run("resumed")
    resumed = run("resumed", resume=True)

    assert [key for key, value in whole.items() if not torch.equal(value, resumed[key])] == []
    assert float(resumed["prior.learnt"]) == 1

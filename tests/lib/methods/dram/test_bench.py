"""`medseg bench dram` from the request to the files, a few iterations on phantoms."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseg.benchmark.request import BenchmarkRequest
from medseg.benchmark.runner import run_benchmark
from medseg.files import write_json
from medseg.methods.dram import cost
from medseg.methods.dram.presets import ARM_GROUPS
from medseg.phantoms.chest import LABELS, make_chest
from medseg.phantoms.study import write_grid

METRICS = {"iou", "dice", "iou_image", "dice_image", "extent_error", "false_positive_extent", "entropy", "lung_dice"}


@pytest.fixture
def bench(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the benchmark on four phantoms, one of them held out."""
    for seed in range(4):
        chest = make_chest(seed, (24, 20, 9), [0, 20, 40, 5, 0, 30])
        write_grid(tmp_path / "data" / "images" / f"c{seed}.nii.gz", chest.image, chest.affine)
        write_grid(tmp_path / "data" / "labels" / f"c{seed}.nii.gz", chest.mask, chest.affine)
    write_json(tmp_path / "data" / "labels.json", LABELS)

    def run(settings: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        given = {"iterations": 4, "seeds": 1, "held_out": 1, "scale": 1.0, "isolate": False, "device": "cpu", **changes}
        values = {"width": 4, "amp": "bf16", "epoch_iterations": 4, **(settings or {})}
        return run_benchmark(BenchmarkRequest("dram", (tmp_path / "data",), tmp_path / "out", settings=values, **given))

    return run


def test_all_arms_as_typed(bench: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    summary = bench()

    arms = [arm.name for arm in ARM_GROUPS["segmentation"].arms if arm.in_default]
    assert summary["failed"] == {}
    assert list(summary["arms"]) == arms
    assert summary["metric"] == "iou"
    assert summary["complete"]
    for arm in arms:
        found = summary["arms"][arm]
        assert found["metrics"].keys() >= METRICS, arm
        assert found["iterations"] == 4
        assert 0 <= found["mean"] <= 1
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["arms"].keys() == summary["arms"].keys()
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    (full,) = (tmp_path / "out" / "runs").glob("full_*")
    with np.load(full / "overlays.npz") as kept:
        about = json.loads(str(kept["about"]))
        (case,) = about
        assert about[case]["layers"] == ["map", "attention", "crf", "pseudo-label", "final"]
        for layer in about[case]["layers"]:
            assert kept[f"layer {layer}/{case}"].shape[:2] == kept[f"truth/{case}"].shape[:2]


def test_the_arms_differ_in_what_they_are_named_for_and_share_the_rest() -> None:
    arms = {arm.name: dict(arm.overrides) for arm in ARM_GROUPS["segmentation"].arms}

    assert not any("learning_rate" in overrides or "iterations" in overrides for overrides in arms.values())
    assert {**arms["cam"], "rule": "rank"} == {**arms["cam_rank"], "rule": "rank"}  # trained alike, cut otherwise
    assert arms["no_candidates"] == {"candidates": 0}


def test_extents_told_in_three_ways(bench: Callable[..., dict[str, Any]]) -> None:
    summary = bench(task="extents")

    assert list(summary["arms"]) == ["exact", "score", "noisy"]
    assert summary["failed"] == {}
    assert len({arm["mean"] for arm in summary["arms"].values()}) > 1


def test_cost_of_the_crf(bench: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "measure", lambda size, field, device: (size**3 / 1e6, size**3 / 1e3))

    summary = bench(task="crf_cost")

    assert summary["failed"] == {}
    assert summary["metric"] == "seconds"
    assert list(summary["arms"]) == ["windowed", "pairwise"]
    assert summary["arms"]["windowed"]["extra"]["microseconds_per_voxel_96"] == pytest.approx(1.0)
    assert "seconds_96" not in summary["arms"]["pairwise"]["extra"]

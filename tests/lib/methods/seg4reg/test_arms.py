"""All arms of the benchmark, for two iterations each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medseg.benchmark.recorder import load_overlay, picture_file
from medseg.benchmark.request import BenchmarkRequest
from medseg.benchmark.runner import run_benchmark
from medseg.errors import MedsegError
from medseg.methods.seg4reg.presets import ARM_GROUPS
from medseg.methods.seg4reg.targets import VERTEBRA, draw_spine
from medseg.phantoms.spines import make_spine, write_spines

TINY = {"grid": "64,128", "s_widths": "8,8,8,8,8", "r_width": "16", "amp": "off", "batch": "2", "validate_every": "0"}
SHAPE = (96, 256)


def request_for(data: Path, out: Path, **changes: object) -> BenchmarkRequest:
    common: dict[str, object] = {"device": "cpu", "isolate": False, "preset": "cpu", "iterations": 2, "seeds": 1}
    return BenchmarkRequest("seg4reg", (data,), out, settings=TINY, **{**common, **changes})  # type: ignore[arg-type]


def write_masks(folder: Path, count: int) -> Path:
    """Pictures and masks, no table; vertebrae are two pixels apart at least."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed in range(count):
        spine = make_spine(seed, (192, 512))
        mask = (draw_spine(spine.corners, (192, 512)) == VERTEBRA).astype(np.uint8)
        Image.fromarray(spine.image.T).save(folder / "images" / f"a{seed}.png")
        Image.fromarray(mask.T * 255).save(folder / "labels" / f"a{seed}.png")
    return folder


def test_every_arm_runs_on_the_same_cases(tmp_path: Path) -> None:
    data = write_spines(tmp_path / "data", 6, shape=SHAPE)

    summary = run_benchmark(request_for(data, tmp_path / "out", held_out=2))

    names = [arm.name for arm in ARM_GROUPS["angles"].arms if arm.in_default]
    assert summary["failed"] == {}
    assert list(summary["arms"]) == names
    cases = [set(arm["cases"]) for arm in summary["arms"].values()]
    assert all(found == cases[0] for found in cases)
    assert len(cases[0]) == 2
    assert "smape_geometry" not in summary["arms"]["regressor"]["metrics"]
    assert {"dice", "count_failure", "smape_mask"} <= set(summary["arms"]["full"]["metrics"])
    full = tmp_path / "out" / "runs" / "full_seed0"
    for case in cases[0]:
        overlay = load_overlay(full / "overlays.npz", case)
        assert overlay is not None
        assert overlay.truth is not None  # drawn from the corners
        assert overlay.truth.sum() > 0
        assert Image.open(picture_file(full, case)).size[1] > 400
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_masks_alone_are_enough_for_the_constant_and_the_mask_route(tmp_path: Path) -> None:
    data = write_masks(tmp_path / "data", 4)

    summary = run_benchmark(request_for(data, tmp_path / "out", held_out=2, arms=("constant", "mask_route")))

    assert summary["failed"] == {}
    constant, route = (summary["arms"][name] for name in ("constant", "mask_route"))
    assert set(constant["cases"]) == set(route["cases"])
    assert 0 < constant["mean"] < 100
    assert constant["cases"] == pytest.approx(
        route["cases"], abs=0.5
    )  # nothing learnt: the training mean is the answer


@pytest.mark.parametrize("write", [write_spines, write_masks])
def test_time_is_told_part_by_part(write: Callable[..., Path], tmp_path: Path) -> None:
    data = write(tmp_path / "data", 4)

    summary = run_benchmark(request_for(data, tmp_path / "out", held_out=2, arms=("inference",)))

    arm = summary["arms"]["inference"]
    parts = arm["extra"]["seconds_by_part"]
    assert list(parts) == ["load", "networks", "grid", "geometry"]
    assert arm["mean"] == pytest.approx(sum(parts.values()))
    assert min(parts.values()) > 0


def test_a_constant_of_nothing_is_one_sentence(tmp_path: Path) -> None:
    data = write_masks(tmp_path / "data", 4)
    for file in (data / "labels").iterdir():
        Image.fromarray(np.zeros((512, 192), np.uint8)).save(file)

    with pytest.raises(MedsegError, match=r"none of the \d training cases tells an angle"):
        run_benchmark(request_for(data, tmp_path / "out", held_out=2, arms=("constant",)))

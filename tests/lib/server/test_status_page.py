from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from medseg.server.status_page import HEIGHT, MARGIN, WIDTH, curve_points, render_status, when


@pytest.fixture
def state() -> dict[str, Any]:
    """A study with one method that trains for the first time."""
    training = {
        "state": "running",
        "iteration": 40,
        "iterations": 200,
        "epoch": 1,
        "total_epochs": 4,
        "eta_seconds": 430.0,
        "skipped": [{"case": "organ_011", "reason": "organ_011.nii.gz cannot be read"}],
    }
    method = {"version": None, "next_step": "its first training is running; wait for it"}
    return {
        "study": "heart",
        "labels": {"atrium": 1},
        "loop": {"labelled": 4, "unlabelled": 8, "running": ["train"], "methods": {"caml": method}},
        "training": {"caml": training},
        "versions": {"caml": []},
        "curve": {"caml": []},
        "jobs": {"train": [], "scoring": []},
        "leases": [],
        "saved": [],
        "problems": [],
    }


def test_page_speaks_in_sentences(state: dict[str, Any]) -> None:
    page = render_status(state)

    assert "No model yet: its first training is running; wait for it" in page
    assert "epoch 1 of 4, 7 min left" in " ".join(page.split()).replace(" , ", ", ")
    assert "Left out: organ_011, organ_011.nii.gz cannot be read</p>" in page
    assert page.count("none since the server started") == 2


def test_remarks_on_saved_labels_stand_on_the_page(state: dict[str, Any]) -> None:
    saved = {"image": "organ_003", "tag": "final_bob", "author": "bob", "saved": "2026-01-02T03:04:05+00:00"}

    page = render_status({**state, "saved": [{**saved, "remarks": ["2 stray <pieces>", "'atrium' is missing"]}]})

    row = f'<td>organ_003, final_bob</td><td>bob</td><td class="n">{when(saved["saved"])}</td>'
    assert f"{row}<td>2 stray &lt;pieces&gt;; &#39;atrium&#39; is missing</td>" in page
    assert "Saved last" not in render_status(state)


def test_curve_points_lie_inside_the_picture() -> None:
    points = curve_points(
        [
            {"labelled": 4, "quality": 0.0, "published": True},
            {"labelled": 8, "quality": 1.0, "published": False},
            {"labelled": 8, "quality": None, "published": True},
        ]
    )

    assert [(p["x"], p["y"]) for p in points] == [(WIDTH / 2, HEIGHT - MARGIN), (WIDTH - MARGIN, MARGIN)]
    assert curve_points([]) == []


def test_times_of_versions_and_jobs_are_on_one_clock() -> None:
    local = datetime.fromtimestamp(1_800_000_000)

    assert when(local.isoformat(sep=" ")) == when(local.astimezone(UTC).isoformat()) == f"{local:%Y-%m-%d %H:%M}"
    assert when(None) == ""

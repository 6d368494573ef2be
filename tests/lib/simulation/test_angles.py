"""The reader who types angles, against a server that only writes down what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from monailabel.client.client import MONAILabelUtils

from medseg.cases import load_cases
from medseg.errors import MedsegError
from medseg.phantoms.spines import make_spine, write_spines
from medseg.simulation.angles import (
    measure,
    read_next,
    readable_cases,
    reads_angles,
    run_angles,
    stored_angles,
    type_angles,
)
from medseg.simulation.request import SimulationRequest
from medseg.simulation.run import run_simulation


class FakeAnnotator:
    def __init__(self, offers: list[str], answers: dict[str, list[float]] | None = None) -> None:
        self.offers, self.answers = offers, answers or {}
        self.scored = 0
        self.server = SimpleNamespace(url="http://x")
        self.client = SimpleNamespace(infer=self._infer)

    def next_image(self, strategy: str) -> dict[str, Any]:
        return {"id": self.offers.pop(0)} if self.offers else {}

    def score(self) -> float:
        self.scored += 1
        return 0.0

    def _infer(self, method: str, image: str, params: dict[str, Any], file: str) -> tuple[None, dict[str, Any]]:
        keys = ("cobb_max", "cobb_second", "cobb_third")
        found = self.answers.get(Path(file).stem, [])
        return None, {"measurements": {k: {"value": v} for k, v in zip(keys, found, strict=False)}}


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def put(
        method: str, url: str, selector: str, fields: dict[str, str], files: object
    ) -> tuple[int, bytes, None, None]:
        image = selector.split("image=")[1]
        seen[image] = json.loads(fields["info"])["weak"]["angles"]
        return (422, b"angle 999 is outside 0..180", None, None) if image == "bad" else (200, b"{}", None, None)

    monkeypatch.setattr(MONAILabelUtils, "http_multipart", staticmethod(put))
    return seen


def test_offered_images_are_read_and_repeated_offers_passed_over(typed: dict[str, Any]) -> None:
    known = {name: [30.0, 20.0, 10.0] for name in "abcde"}
    annotator = FakeAnnotator(["d", "a", "d", "c", "b"])

    new = read_next(annotator, "seg4reg", 2, known, read={"a"})  # type: ignore[arg-type]

    assert new == {"d", "c"}
    assert annotator.scored == 1
    assert annotator.offers == ["b"]
    assert typed["d"] == {"angle_1": 30, "angle_2": 20, "angle_3": 10}


def test_nothing_fresh_ends_the_round(typed: dict[str, Any]) -> None:
    known = {name: [30.0, 20.0, 10.0] for name in "ab"}

    assert read_next(FakeAnnotator([]), "random", 2, known, read=set()) == set()  # type: ignore[arg-type]
    assert read_next(FakeAnnotator(["a"] * 9), "random", 2, known, read={"a"}) == set()  # type: ignore[arg-type]


def test_a_refusal_is_one_sentence(typed: dict[str, Any]) -> None:
    with pytest.raises(MedsegError, match="refused the angles of bad: angle 999"):
        type_angles(FakeAnnotator([]), "bad", [999, 1, 1])  # type: ignore[arg-type]


def test_error_over_the_test_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "other.png"):
        (tmp_path / name).touch()
    annotator = FakeAnnotator([], {"a": [40, 20, 20]})

    error = measure(annotator, "seg4reg", tmp_path, {"a": [50, 20, 10], "b": [1, 1, 1]})  # type: ignore[arg-type]

    assert error == pytest.approx((100 * 20 / 160 + 100) / 2)


def test_images_with_three_angles_are_readable(tmp_path: Path) -> None:
    cases = load_cases(write_spines(tmp_path, 2, shape=(64, 128)))

    assert [case.id for case in readable_cases(cases)] == ["spine_000", "spine_001"]
    assert stored_angles(cases[1]) == pytest.approx(make_spine(1, (64, 128)).angles, abs=1e-3)
    request = SimulationRequest("seg4reg", (tmp_path,), tmp_path / "out")
    assert reads_angles(request)
    assert not reads_angles(SimulationRequest("supervised", (tmp_path,), tmp_path / "out"))
    with pytest.raises(MedsegError, match="need 10 cases, 0 of 2 are left"):
        run_angles(request)


@pytest.mark.server
@pytest.mark.slow
def test_patients_keep_to_one_part_and_readings_teach(tmp_path: Path) -> None:
    data = write_spines(tmp_path / "data", 8, shape=(64, 128))
    table = data / "labels.csv"
    rows = table.read_text().splitlines()
    table.write_text("\n".join([rows[0], *(row.replace(f",p{k},", f",p{k // 2},") for k, row in enumerate(rows[1:]))]))
    settings = {"grid": "64,128", "s_widths": "8,8,8,8,8", "r_width": "16", "amp": "off", "batch": "2"}
    request = SimulationRequest(
        "seg4reg", (data,), tmp_path / "out", rounds=1, per_round=1, initial=1, validation=1, test=1, iterations=2,
        settings=settings, device="cpu",
    )  # fmt: skip

    summary = run_simulation(request)

    patients = {case.id: case.patient for case in load_cases(data)}
    parts = [{patients[i] for i in summary[name]} for name in ("test", "validation")]
    assert len(summary["test"]) == len(summary["validation"]) == 2
    assert parts[0].isdisjoint(parts[1])
    [rounds] = summary["curves"].values()
    assert [entry["readings"] for entry in rounds] == [3, 4]
    index = json.loads((tmp_path / "out" / "random-0" / "studies" / "datastore_v2.json").read_text())["objects"]
    infos = {name: entry["image"]["info"] for name, entry in index.items()}
    assert {name: info["patient"] for name, info in infos.items()} == {
        name: patient for name, patient in patients.items() if name not in summary["test"]
    }
    assert sum("weak" in info for info in infos.values()) == 4

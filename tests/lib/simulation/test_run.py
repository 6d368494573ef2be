from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from medseg.errors import ConflictError, MedsegError
from medseg.files import read_json, write_json
from medseg.phantoms.study import StudyOptions, write_dataset
from medseg.simulation.curve import Curve
from medseg.simulation.run import SimulationRequest, run_simulation

TINY = StudyOptions(shape=(24, 24, 16), spacings=((1.0, 1.0, 1.0),), tilt=0.0)

SCRIPT = """
import sys
from pathlib import Path
from medseg.simulation.run import SimulationRequest, run_simulation
settings = {"patch": "16,16,16", "width": 4, "spacing": "1,1,1"}
run_simulation(SimulationRequest("supervised", (Path(sys.argv[1]),), Path(sys.argv[2]), ("supervised",), rounds=1,
    per_round=1, initial=2, validation=1, test=1, preset=None, iterations=20, settings=settings, device="cpu"))
"""


def make_request(folder: Path, **changes: object) -> SimulationRequest:
    values: dict[str, object] = {
        "method": "supervised",
        "data": (folder / "data",),
        "out": folder / "out",
        "strategies": ("supervised",),
        "rounds": 1,
        "per_round": 1,
        "initial": 2,
        "validation": 1,
        "test": 1,
        "preset": None,
        "iterations": 20,
        "settings": {"patch": "16,16,16", "width": 4, "spacing": "1,1,1"},
        "device": "cpu",
    }
    return SimulationRequest(**{**values, **changes})


def servers_of(folder: Path) -> list[psutil.Process]:
    """Processes of MONAI Label, server or job, that work below a folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = " ".join(process.info["cmdline"] or [])
        text = words + str((process.info["environ"] or {}).get("MONAI_LABEL_STUDIES", ""))
        if "monailabel" in words and str(folder) in text and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def wait_for(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.1)


@pytest.mark.server
@pytest.mark.slow
def test_killed_simulation_leaves_no_server_and_continues_to_a_report(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    write_dataset(folder / "data", 6, options=TINY)
    progress = folder / "out" / "supervised-0" / "progress.json"
    first = subprocess.Popen([sys.executable, "-c", SCRIPT, folder / "data", folder / "out"], env=dict(os.environ))
    try:
        wait_for(lambda: read_json(progress, default={}).get("present", {}).get("chosen"), 300)
    finally:
        first.send_signal(signal.SIGKILL)  # in the middle of round 1
        first.wait()
    wait_for(lambda: not servers_of(folder), 60)
    before = read_json(progress)

    summary = run_simulation(make_request(folder))

    (curve,) = summary["curves"]
    assert [entry["labels"] for entry in curve["rounds"]] == [2, 3]
    assert curve["rounds"][0] == before["rounds"][0]
    assert curve["rounds"][1]["chosen"] == before["present"]["chosen"]
    (choice,) = curve["rounds"][1]["chosen"]
    assert choice["id"] in summary["cases"]["pool"]
    assert "entropy" in choice["why"] or "finds nothing" in choice["why"]
    served = [entry["validation"]["champion"] for entry in curve["rounds"]]
    assert served[1] >= served[0]
    assert curve["rounds"][1]["published"] == (served[1] > served[0])
    assert set(curve["rounds"][0]["test"]["cases"]) == set(summary["cases"]["test"])

    studies = {path.name for path in (folder / "out" / "supervised-0" / "studies").glob("*.nii.gz")}
    assert not studies & {f"{identifier}.nii.gz" for identifier in summary["cases"]["test"]}
    assert read_json(folder / "out" / "summary.json") == summary
    report = (folder / "out" / "report.html").read_text()
    assert choice["why"] in report
    assert report.count("data:image/png") >= 3
    assert servers_of(folder) == []

    again = time.monotonic()
    assert run_simulation(make_request(folder)) == summary
    assert time.monotonic() - again < 8  # no server was started
    with pytest.raises(ConflictError, match="holds a simulation with iterations = 20, asked for is 30"):
        run_simulation(make_request(folder, iterations=30))


@pytest.mark.server
def test_server_that_does_not_start_is_one_sentence_with_its_log(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 6, options=TINY)
    app = tmp_path / "app"
    app.mkdir()
    (app / "main.py").write_text("raise RuntimeError('the app is broken')\n")

    with pytest.raises(MedsegError, match=r"the app is broken.*; the server's log is .*supervised-0/server\.log$"):
        run_simulation(make_request(tmp_path, app=app))
    assert servers_of(tmp_path) == []


def test_missing_app_is_named(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 6, options=TINY)

    with pytest.raises(MedsegError, match=r"nowhere holds no app \(main\.py\)"):
        run_simulation(make_request(tmp_path, app=tmp_path / "nowhere"))


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    from medseg.training.file_lock import file_lock

    write_dataset(tmp_path / "data", 6, options=TINY)
    with file_lock(tmp_path / "out" / ".lock"), pytest.raises(ConflictError, match=r"\.lock was held by another"):
        run_simulation(make_request(tmp_path))


def test_other_cases_are_another_simulation(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 6, options=TINY)
    write_json(tmp_path / "out" / "request.json", {"method": "caml"})

    with pytest.raises(ConflictError, match="holds a simulation with method = 'caml'"):
        run_simulation(make_request(tmp_path))


def test_sigterm_stops_on_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []

    def run(curve: Curve) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            left.append(curve.strategy)

    write_dataset(tmp_path / "data", 6, options=TINY)
    monkeypatch.setattr(Curve, "run", run)
    with pytest.raises(SystemExit) as ended:
        run_simulation(make_request(tmp_path))

    assert ended.value.code == 128 + signal.SIGTERM
    assert left == ["supervised"]

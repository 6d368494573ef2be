"""`medseg bench session`: how long an annotator waits at each step, measured over HTTP against a real server."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from medseg.cases import Case, image_suffix, load_cases
from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.simulation.annotator import Annotator
from medseg.simulation.server_process import ServerOptions, ServerProcess, default_app
from medseg.transforms.io import read_mask

ARMS = ("first_infer", "next_infer", "save", "next_sample", "info_while_inferring")
LABELLED = 3  # ours: enough for a first training with a validation case
INFO_EVERY = 0.1  # ours: seconds between two questions while a prediction runs


@dataclass(frozen=True)
class SessionBench:
    """What is measured.

    Attributes:
        data: folder with `images/` and `labels/`.
        out: folder for `summary.json`, the study and the server's log.
        repeats: images that are predicted after the first one.
        settings: `--conf set` of the method: the model only has to be there, not to be good.
        method: the method.
    """

    data: Sequence[Path]
    out: Path
    repeats: int = 5
    settings: str = "iterations=10,epoch_iterations=5,amp=off"
    method: str = "supervised"


def bench_session(bench: SessionBench) -> dict[str, Any]:
    """Run a session and write `summary.json`: `{"metric": "seconds", "arms": {arm: {"mean", "sd", "values"}}}`.

    Raises:
        MedsegError: too few images with a mask, or the server failed.
    """
    cases = [case for case in load_cases(list(bench.data)) if case.label is not None]
    if len(cases) < LABELLED + 2:
        raise MedsegError(f"{len(cases)} images have a mask; a session needs {LABELLED + 2}")
    study = _make_study(bench.out / "study", cases)
    conf = {"models": bench.method, "set": bench.settings, "tracking_uri": "off", "auto_scoring": "false"}
    conf["model_dir"] = str(bench.out / "models")
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    options = ServerOptions(app=default_app(), studies=study, log=bench.out / "server.log", conf=conf)
    with ServerProcess(options) as server:
        annotator = Annotator(server, bench.method, _labels(cases[0]))
        try:
            _session(annotator, {case.id: case for case in cases}, bench.repeats, seconds)
        finally:
            annotator.close()
    arms = {arm: _describe(values) for arm, values in seconds.items() if values}
    summary = {"metric": "seconds", "unit": "s", "higher_is_better": False, "images": len(cases), "arms": arms}
    write_json(bench.out / "summary.json", summary)
    return summary


def _session(annotator: Annotator, cases: dict[str, Case], repeats: int, seconds: dict[str, list[float]]) -> None:
    for case in list(cases.values())[:LABELLED]:
        _timed(seconds["save"], lambda case=case: annotator.submit(case.id, Path(str(case.label))))  # type: ignore[misc]
    annotator.train({})
    seconds["first_infer"].append(annotator.pre_annotation(next(iter(cases)))[1])
    for _ in range(repeats):
        sample = _timed(seconds["next_sample"], lambda: annotator.next_image("first"))
        if not sample:
            break
        image = str(sample["id"])
        seconds["next_infer"].append(annotator.pre_annotation(image)[1])
        _timed(seconds["save"], lambda image=image: annotator.submit(image, Path(str(cases[image].label))))  # type: ignore[misc]
    _ask_meanwhile(annotator, next(iter(cases)), repeats, seconds["info_while_inferring"])


def _ask_meanwhile(annotator: Annotator, image: str, repeats: int, seconds: list[float]) -> None:
    """Ask for `/info/` while predictions run: once at the start of each, which may be short, then again and again."""
    for _ in range(repeats):
        worker = threading.Thread(target=annotator.pre_annotation, args=(image,))
        worker.start()
        while True:
            _timed(seconds, lambda: requests.get(f"{annotator.server.url}/info/", timeout=120).raise_for_status())
            worker.join(INFO_EVERY)
            if not worker.is_alive():
                break


def _timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - started)
    return result


def _make_study(folder: Path, cases: Sequence[Case]) -> Path:
    """The images alone, as a studies folder; the labels come during the session."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for case in cases:
        (folder / f"{case.id}{image_suffix(case.image)}").symlink_to(Path(case.image).resolve())
    return folder


def _labels(case: Case) -> dict[str, int]:
    assert case.label is not None
    return {f"label_{value}": value for value in range(1, max(1, int(read_mask(case.label).max())) + 1)}


def _describe(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.fmean(values), 3),
        "sd": round(statistics.stdev(values), 3) if len(values) > 1 else 0.0,
        "median": round(statistics.median(values), 3),
        "values": [round(value, 3) for value in values],
    }

"""`medseg bench session`: how long an annotator waits at each step, measured over HTTP against a real server."""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from medseg.benchmark.summary import environment
from medseg.cases import Case, image_suffix, load_cases
from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.methods import method_class
from medseg.reports.bars import Column, compare_arms
from medseg.reports.page import Page, Plot, write_page
from medseg.reports.tables import make_table
from medseg.simulation.annotator import Annotator
from medseg.simulation.server_process import ServerOptions, ServerProcess, default_app
from medseg.simulation.study import write_truth
from medseg.training.device import pick_device
from medseg.training.labels import name_labels

ARMS = ("first_infer", "next_infer", "save", "next_sample", "info_while_inferring")
SETTINGS = "iterations=10,epoch_iterations=5,amp=off"  # ours: the model only has to be there, not to be good
LABELLED = 3  # ours: enough for a first training with a validation case
INFO_EVERY = 0.1  # ours: seconds between two questions while a prediction runs


@dataclass(frozen=True)
class SessionBench:
    """What is measured.

    Attributes:
        data: folders with images and masks.
        out: folder for `summary.json`, `report.html`, the study and the server's log.
        repeats: images that are predicted after the first one.
        settings: assignments `key=value` over `SETTINGS`, for the method.
        method: the method.
        device: of the server; None: its own choice.
    """

    data: Sequence[Path]
    out: Path
    repeats: int = 5
    settings: Sequence[str] = ()
    method: str = "supervised"
    device: str | None = None


def bench_session(bench: SessionBench) -> dict[str, Any]:
    """Run a session; `summary.json` (`{"metric": "seconds", "arms": {arm: {"mean", "sd", ...}}}`) and `report.html`.

    Raises:
        MedsegError: too few images with a mask, or the server failed.
    """
    masked = [case for case in load_cases(list(bench.data)) if case.label is not None]
    if len(masked) < LABELLED + 2:
        raise MedsegError(f"{len(masked)} images have a mask; a session needs {LABELLED + 2}")
    kind = method_class(bench.method)
    cases, found = name_labels(bench.data, masked, kind)
    labels = kind.fit_labels(found)
    truth = write_truth(bench.out / "truth", cases, labels)
    settings = ",".join([SETTINGS, *bench.settings])  # the last one of a key counts
    conf = {"models": bench.method, "set": settings, "tracking_uri": "off", "auto_scoring": "false"}
    conf |= {"model_dir": str(bench.out / "models"), "labels": ",".join(sorted(labels, key=lambda name: labels[name]))}
    conf |= {"device": bench.device} if bench.device else {}
    shutil.rmtree(bench.out / "models", ignore_errors=True)  # an older session's model would be predicted with
    seconds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    study = _make_study(bench.out / "study", cases)
    options = ServerOptions(app=default_app(), studies=study, log=bench.out / "server.log", conf=conf)
    with ServerProcess(options) as server:
        annotator = Annotator(server, bench.method, labels)
        try:
            _session(annotator, truth, bench.repeats, seconds)
        finally:
            annotator.close()
    summary = {
        "method": bench.method,
        "metric": "seconds",
        "unit": "s",
        "higher_is_better": False,
        "arms": {arm: _describe(values) for arm, values in seconds.items() if values},
        "failed": {},
        "complete": all(seconds.values()),
        "images": len(cases),
        "labels": labels,
        "settings": settings,
        "environment": environment(str(pick_device(bench.device))),
    }
    write_json(bench.out / "summary.json", summary)
    _write_report(bench.out / "report.html", summary)
    return summary


def _session(annotator: Annotator, truth: dict[str, Path], repeats: int, seconds: dict[str, list[float]]) -> None:
    def save(image: str) -> None:
        _timed(seconds["save"], lambda: annotator.submit(image, truth[image]))

    unseen = list(truth)[-1]
    for image in list(truth)[:LABELLED]:
        save(image)
    annotator.train({})
    seconds["first_infer"].append(annotator.pre_annotation(unseen)[1])  # the server has never opened it
    for _ in range(repeats):
        sample = _timed(seconds["next_sample"], lambda: annotator.next_image("first"))
        if not sample:
            break
        seconds["next_infer"].append(annotator.pre_annotation(str(sample["id"]))[1])
        save(str(sample["id"]))
    _ask_meanwhile(annotator, unseen, repeats, seconds["info_while_inferring"])


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


def _describe(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(statistics.fmean(values), 3),
        "sd": round(statistics.stdev(values), 3) if len(values) > 1 else 0.0,
        "median": round(statistics.median(values), 3),
        "values": [round(value, 3) for value in values],
    }


def _write_report(path: Path, summary: Mapping[str, Any]) -> None:
    arms, machine = summary["arms"], summary["environment"]
    facts = {
        "method": f"{summary['method']}; the model only has to be there, not to be good",
        "settings": summary["settings"],
        "images": str(summary["images"]),
        "machine": f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, torch {machine['torch']}",
    }
    page = Page("How long an annotator waits", "Seconds over HTTP against a real server, step by step.", facts)
    rows = [[name, arm["mean"], arm["sd"], arm["median"], len(arm["values"])] for name, arm in arms.items()]
    columns = {
        name: Column(arm["mean"], arm["sd"], {str(n): value for n, value in enumerate(arm["values"])})
        for name, arm in arms.items()
    }
    plot = Plot(compare_arms(columns, "seconds", "s", higher_is_better=False), "Every dot is one request.")
    page.section("Steps", plot, make_table(["step", "mean", "sd", "median", "n"], rows))
    write_page(path, page)

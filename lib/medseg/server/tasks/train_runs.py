"""Run folders of one method: which run a train request continues, what `/info/` tells of it, and what is thrown away.

    <model_dir>/<study>/<method>/runs/<id>/
        run.json         fingerprint of settings and data
        cases.json       the training and validation cases, as the run saw them
        progress.json, checkpoint.pt, model.safetensors, config.json, metrics.json      by `medseg.training.run`
        decision.json    what the gate said; a run with this file is over
    <model_dir>/<study>/<method>/last.json     state of the last train request: running, done, failed; its sentence

A train request continues the newest run if that has no decision, did not fail, and has the same settings, images and
labels; else it starts anew. So a training that was killed or stopped goes on, and one whose labels changed does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medseg.cases import Case
from medseg.files import read_json, write_json
from medseg.methods.base import MethodConfig
from medseg.stamps import case_stamp
from medseg.training.processes import alive
from medseg.training.run import FREE_SETTINGS

KEEP_RUNS = 5  # ours: the published weights are in the registry; runs are kept for their curves


def fingerprint(
    config: MethodConfig, labels: dict[str, int], training: Sequence[Case], validation: Sequence[Case]
) -> str:
    """Hash of all that must be equal for a run to be continued: settings, labels, files, weak labels, roles, groups."""
    settings = {key: value for key, value in config.to_dict().items() if key not in FREE_SETTINGS}
    cases = [
        [case.id, role, case.group, case_stamp(case)]
        for role, group in (("training", training), ("validation", validation))
        for case in group
    ]
    text = json.dumps([settings, labels, cases], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class OpenRun:
    """The folder a train request works in, and whether it continues what is there."""

    path: Path
    resume: bool


class TrainRuns:
    """The runs of one method in one study.

    Args:
        folder: `<model_dir>/<study>/<method>`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.runs = self.folder / "runs"
        self.last = self.folder / "last.json"

    def folders(self) -> list[Path]:
        """Run folders, oldest first."""
        return sorted(path for path in self.runs.iterdir() if path.is_dir()) if self.runs.is_dir() else []

    def open(self, mark: str, resume: bool = True) -> OpenRun:
        """The run a request works in.

        Args:
            mark: `fingerprint` of the request.
            resume: False starts anew in any case.
        """
        newest = self.folders()[-1:]
        if resume and newest and self._continues(newest[0], mark):
            return OpenRun(newest[0], resume=True)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
        path = self.runs / stamp
        path.mkdir(parents=True)
        write_json(path / "run.json", {"fingerprint": mark, "created": _now()})
        return OpenRun(path, resume=False)

    def close(self, run: Path, decision: dict[str, Any]) -> None:
        """The gate has decided: the run is over, its checkpoint is no longer needed, old runs go."""
        write_json(run / "decision.json", decision)
        for name in ("checkpoint.pt", "checkpoint.pt.previous"):
            (run / name).unlink(missing_ok=True)
        for old in self.folders()[:-KEEP_RUNS]:
            shutil.rmtree(old, ignore_errors=True)

    def record(self, state: str, run: Path | None = None, **facts: Any) -> None:
        """Write the state of the present request."""
        about = {"state": state, "run": run.name if run else None, "pid": os.getpid(), "updated": _now(), **facts}
        write_json(self.last, about)

    def stats(self) -> dict[str, Any]:
        """What `/info/` tells under `train_stats`; {} before the first training.

        `epoch`, `total_epochs`, `best_metric` in [0, 1] and, once it is over, `total_time` are what viewers read.
        """
        last = read_json(self.last, default={})
        if not last:
            return {}
        progress = read_json(self.runs / last["run"] / "progress.json", default={}) if last.get("run") else {}
        state, error = last["state"], last.get("error") or progress.get("error")
        if state == "running" and not alive(int(last["pid"])):
            state = "stopped"
            error = error or "the training process ended before it was done; train again to continue it"
        validation = progress.get("validation") or {}
        quality = (last.get("decision") or {}).get("quality") or validation.get("quality") or 0.0
        stats = {
            key: progress.get(key)
            for key in ("iteration", "iterations", "terms", "eta_seconds", "validation", "skipped")
        }
        stats |= {
            "state": state,
            "error": error,
            "run": last.get("run"),
            "decision": last.get("decision"),
            "updated": max(last["updated"], progress.get("updated") or ""),
            "epoch": int(progress.get("epoch") or 0),
            "total_epochs": max(int(progress.get("epochs") or 1), 1),
            "best_metric": min(max(float(quality), 0.0), 1.0),
        }
        if state != "running":
            stats["total_time"] = str(last.get("seconds", 0))
        return stats

    def curve(self) -> list[dict[str, Any]]:
        """One point per decided run that is kept: labelled cases, quality, whether it was published."""
        decisions = [read_json(run / "decision.json") for run in self.folders()]
        return [decision for decision in decisions if decision]

    def _continues(self, run: Path, mark: str) -> bool:
        started = (run / "checkpoint.pt").exists() or (run / "model.safetensors").exists()
        progress = read_json(run / "progress.json", default={})
        failed = progress.get("state") == "failed" and not progress.get("passing")
        same = read_json(run / "run.json", default={}).get("fingerprint") == mark
        return started and same and not failed and not (run / "decision.json").exists()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

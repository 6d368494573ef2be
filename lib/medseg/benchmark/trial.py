"""One trial of a benchmark: one arm, one seed, one fold. Trained, evaluated with its final model, and kept.

    python -m medseg.benchmark.trial OUT/runs/full_seed0

A trial is a folder with `trial.json`; its process adds `result.json`, or `failure.json` with one sentence.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.benchmark.arms import ArmContext, ArmResult
from medseg.benchmark.recorder import OVERLAYS, evaluate_recorded
from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.methods.base import Arm, MethodConfig
from medseg.networks.measure import peak_mb
from medseg.sources import code_hash
from medseg.training.device import pick_device
from medseg.training.processes import alive
from medseg.training.run import TrainingJob, explain, train

log = logging.getLogger(__name__)

NOT_COMPARED = ("workers", "cache_gb", "validate_every")
"""Settings that change how fast a run is and not what it gives."""


@dataclass(frozen=True)
class Trial:
    """One run of a benchmark.

    Attributes:
        method: the benchmark's method; `group` and `arm` are names within it.
        trained: the method that the arm trains.
        config: its settings, seed included.
        fold: 0 where there is one hold-out set.
        training: labelled and unlabelled cases.
        held_out: cases to report on.
        device: "cpu", "cuda:0".
        out: folder of this trial.
        overlays: keep slices of the predictions for the report.
    """

    method: str
    group: str
    arm: str
    trained: str
    config: dict[str, Any]
    labels: dict[str, int]
    fold: int
    training: tuple[Case, ...]
    held_out: tuple[Case, ...]
    device: str
    out: Path
    overlays: bool = False

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        return self.out.name

    @property
    def pictures(self) -> Path | None:
        """Where slices of the predictions go; None where the report shows none of this trial."""
        return self.out / OVERLAYS if self.overlays else None

    @property
    def seed(self) -> int:
        """Seed of the trial."""
        return int(self.config["seed"])

    def identity(self) -> dict[str, Any]:
        """What a kept result must agree with. Files count by name and size, so a moved data set stays the same.

        The code does not belong to it: an interrupted benchmark can be finished after an update. The result tells it.
        """
        return {
            "method": f"{self.method} {self.group} {self.arm}, trains {self.trained}",
            "config": {k: v for k, v in self.config.items() if k not in NOT_COMPARED},
            "labels": self.labels,
            "training": [_stamp(case) for case in self.training],
            "held_out": [_stamp(case) for case in self.held_out],
            "device": self.device.partition(":")[0],
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        cases = {k: [case.to_dict() for case in getattr(self, k)] for k in ("training", "held_out")}
        return {**self.__dict__, **cases, "out": str(self.out), "identity": self.identity()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Trial:
        """Inverse of `to_dict`."""
        cases = {k: tuple(Case.from_dict(case) for case in value[k]) for k in ("training", "held_out")}
        rest = {k: v for k, v in value.items() if k != "identity"}
        return cls(**{**rest, **cases, "out": Path(value["out"])})

    def result(self) -> dict[str, Any] | None:
        """The kept result, if the trial is finished."""
        found: dict[str, Any] | None = read_json(self.out / "result.json")
        return found


def run_trial(trial: Trial, parent: int | None = None) -> dict[str, Any]:
    """Run a trial and write `result.json`. A training that was interrupted continues from its checkpoint.

    Args:
        trial: what to run.
        parent: process that asked for it; the trial ends when that process is gone.
    """
    (trial.out / "failure.json").unlink(missing_ok=True)
    kind = method_class(trial.trained)
    config = kind.config_class.from_dict(trial.config)
    arm = _arm(trial)
    result = _call_arm(trial, arm, config) if arm.run else _train_and_evaluate(trial, config, parent)
    trained = [hash_ for metrics in _trainings(trial.out) for hash_ in metrics.get("code", [])]
    result["code"] = list(dict.fromkeys([*trained, code_hash()]))
    write_json(trial.out / "result.json", result)
    return result


def _train_and_evaluate(trial: Trial, config: MethodConfig, parent: int | None) -> dict[str, Any]:
    watch = (parent,) if parent else ()
    job = TrainingJob(
        trial.trained, config, trial.labels, trial.training, (), trial.out, trial.device, resume=True, watch_pids=watch
    )
    metrics = train(job)
    predictor = Predictor.from_folder(trial.out, trial.device)
    headline = method_class(trial.method).arm_groups[trial.group].metric
    started = time.monotonic()

    def after(case: Case, values: dict[str, float]) -> None:
        if parent and not alive(parent):
            raise MedsegError(
                f"evaluation of {trial.name} stopped because process {parent}, which asked for it, is gone"
            )
        log.info("%s: %s %s %.4f", trial.name, case.id, headline, values.get(headline, float("nan")))

    found = evaluate_recorded(predictor, trial.held_out, headline, trial.pictures, after)
    seconds = time.monotonic() - started
    return {
        "cases": found.cases,
        "mean": None,
        "missed": found.missed,
        "iterations": metrics["iterations"],
        "seconds": metrics["seconds"],
        "peak_memory_mb": metrics["peak_memory_mb"],
        "evaluation_seconds_per_case": round(seconds / len(found.cases), 3),
        "skipped": metrics["skipped"],
        "history": metrics["history"],
        "extra": {},
    }


def _call_arm(trial: Trial, arm: Arm, config: MethodConfig) -> dict[str, Any]:
    """Run an arm that is a function."""
    assert arm.run is not None
    kind = method_class(trial.trained)
    context = ArmContext(
        method=kind,
        config=kind.fit_config(config, trial.training),
        labels=trial.labels,
        device=trial.device,
        seed=trial.seed,
        iterations=config.iterations,
        out=trial.out,
        training_cases=trial.training,
        held_out_cases=trial.held_out,
        metric=method_class(trial.method).arm_groups[trial.group].metric,
        pictures=trial.pictures,
    )
    started = time.monotonic()
    result = ArmResult.of(arm.run(context))
    seconds = result.seconds
    if seconds is None:  # as for the other arms that of the training alone, an interrupted call's included
        trained = [metrics["seconds"] for metrics in _trainings(trial.out)]
        seconds = sum(trained) if trained else time.monotonic() - started
    metric = method_class(trial.method).arm_groups[trial.group].metric
    cases = {k: dict(v) if isinstance(v, Mapping) else {metric: float(v)} for k, v in result.cases.items()}
    peak = result.peak_memory_mb
    return {
        "cases": cases,
        "mean": result.mean if result.mean is not None else result.extra.get(metric),
        "missed": int(sum(values.get("missed", 0) for values in cases.values())),
        "iterations": result.iterations,
        "seconds": seconds,
        "peak_memory_mb": peak if peak is not None else peak_mb(pick_device(trial.device)),
        "skipped": [],
        "history": [dict(entry) for entry in result.history],
        "labelled": None if result.labelled is None else list(result.labelled),
        "extra": dict(result.extra),
    }


def _arm(trial: Trial) -> Arm:
    arms = method_class(trial.method).arm_groups[trial.group].arms
    return next(arm for arm in arms if arm.name == trial.arm)


def _trainings(out: Path) -> list[dict[str, Any]]:
    """`metrics.json` of every model that was trained in a trial's folder."""
    return [read_json(path) for path in sorted(out.rglob("metrics.json"))]


def _stamp(case: Case) -> list[Any]:
    """A case as it counts for the identity of a trial: id, patient, sizes of its files, other labels."""
    label = case.label.stat().st_size if case.label is not None else None
    weak = case.weak.model_dump(mode="json") if case.weak else None
    size = case.image.stat().st_size if case.image.exists() else None
    regions = [case.regions.stat().st_size] if case.regions is not None else []
    return [case.id, case.patient, size, label, weak, case.domain, *regions]


def main(folder: str) -> int:
    """Run the trial of a folder in this process.

    Returns:
        0, or 1 after writing `failure.json`.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("ignite").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence")  # MONAI's sliding window on new torch
    out = Path(folder)
    trial = Trial.from_dict(read_json(out / "trial.json"))
    try:
        run_trial(trial, parent=os.getppid())
    except Exception as error:
        if not isinstance(error, MedsegError):
            log.exception("trial %s failed", trial.name)
        config = method_class(trial.trained).config_class.from_dict(trial.config)
        failure = {"error": explain(error, config), "kind": type(error).__name__}
        write_json(out / "failure.json", failure)
        return 1
    return 0


def same_identity(
    first: Mapping[str, Any], second: Mapping[str, Any], defaults: Mapping[str, Any] | None = None
) -> list[str]:
    """Names of what differs between two identities as they read in JSON; empty: the same trial.

    Args:
        first: of a trial.
        second: the kept one.
        defaults: settings that a trial had before they existed.
    """
    one, two, before = (json.loads(json.dumps(value, default=str)) for value in (first, second, defaults or {}))
    changed = [key for key in one if key != "config" and one[key] != two.get(key)]
    known = {key: value for key, value in before.items() if key in one["config"]}
    configs = one["config"], {**known, **two.get("config", {})}
    changed += [
        f"{key} {configs[1].get(key)} -> {configs[0].get(key)}"
        for key in {**configs[0], **configs[1]}
        if configs[0].get(key) != configs[1].get(key)
    ]
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""From a request to the list of trials."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from medseg.benchmark.arms import arm_config, choose_arms
from medseg.benchmark.request import BenchmarkRequest
from medseg.benchmark.split import BenchmarkSplit, first_cases, split_cases
from medseg.benchmark.trial import Trial
from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.methods import method_class
from medseg.methods.base import Arm, ArmGroup, MethodConfig
from medseg.training.device import pick_device, usable_cores
from medseg.training.labels import name_labels
from medseg.training.settings import build_config, find_preset
from medseg.training.split import with_groups

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Benchmark:
    """A planned benchmark: its request, the chosen arms, the folds, all trials, and the group of every case."""

    request: BenchmarkRequest
    group_name: str
    group: ArmGroup
    arms: tuple[str, ...]
    folds: tuple[BenchmarkSplit, ...]
    trials: tuple[Trial, ...]
    groups: Mapping[str, str] = field(default_factory=dict)

    def of_arm(self, arm: str) -> dict[int, list[tuple[Trial, dict[str, Any]]]]:
        """Finished trials of an arm: seed -> the trials of all folds. A seed with an unfinished fold is left out."""
        seeds: dict[int, list[tuple[Trial, dict[str, Any]]]] = {}
        for trial in self.trials:
            if trial.arm == arm and (result := trial.result()) is not None:
                seeds.setdefault(trial.seed, []).append((trial, result))
        return {seed: found for seed, found in seeds.items() if len(found) == len(self.folds)}


def plan_benchmark(request: BenchmarkRequest) -> Benchmark:
    """All trials of a request, seed by seed, so that an interrupted benchmark already compares the arms."""
    kind = method_class(request.method)
    request = complete(request)
    group_name, group, arms = choose_arms(kind, request)
    common = build_config(request.method, request.preset, typed=request.settings)
    cases, found = name_labels(request.data, load_cases(request.data, common.patient_pattern), kind)
    cases = with_groups(cases, kind, common)
    groups = {case.id: case.group for case in cases}
    wanted = _feasible(request, cases, groups)
    folds = split_cases(cases, request.labelled, wanted, request.folds or 1, kind, groups)
    labels, device = kind.fit_labels(found), str(pick_device(request.device))
    request = replace(request, jobs=request.jobs or _jobs(group, device))
    trials = [
        _trial(request, group_name, arm, arm_config(kind, arm, request, seed), (labels, device, fold, folds))
        for seed in range(common.seed, common.seed + (request.seeds or 1))
        for arm in arms
        for fold in range(len(folds))
    ]
    trials = [replace(trial, overlays=trial.seed == common.seed) for trial in trials]
    _log_plan(request, folds, trials)
    return Benchmark(request, group_name, group, tuple(arm.name for arm in arms), tuple(folds), tuple(trials), groups)


def complete(request: BenchmarkRequest) -> BenchmarkRequest:
    """The request with the preset's values where it names none.

    Raises:
        NotFoundError: an unknown preset.
        MedsegError: no seed, or no job at a time.
    """
    preset = find_preset(request.method, request.preset)
    names = ("labelled", "seeds", "folds")
    values = {name: getattr(preset, name) for name in names if getattr(request, name) is None}
    request = replace(request, **values)
    if (request.seeds or 0) < 1 or (request.jobs is not None and request.jobs < 1):
        raise MedsegError(f"{request.seeds} seeds and {request.jobs} jobs: both must be at least 1")
    return request


def _jobs(group: ArmGroup, device: str) -> int:
    """Runs at a time, where the request leaves it open."""
    return 1 if group.timed or device != "cpu" else usable_cores()


def _feasible(request: BenchmarkRequest, cases: Sequence[Case], groups: Mapping[str, str]) -> int | float:
    """The asked-for number of held-out cases; the preset's is lowered for a data set that is too small for it."""
    if request.held_out is not None:
        return request.held_out
    wanted = find_preset(request.method, request.preset).held_out
    masked = [case for case in cases if method_class(request.method).is_labelled(case)]
    first = {case.patient for case in first_cases(masked, request.labelled or 0, groups)}
    free = sum(case.patient not in first for case in masked)
    if isinstance(wanted, int) and (wanted > free or wanted == len(masked)) and free > 1:
        log.warning("the preset holds out %d cases, but only %d are free; %d are held out", wanted, free, free // 2)
        return free // 2
    return wanted


def _trial(request: BenchmarkRequest, group: str, arm: Arm, config: MethodConfig, where: tuple[Any, ...]) -> Trial:
    labels, device, fold, folds = where
    name = f"{arm.name}_seed{config.seed}" + (f"_fold{fold}" if len(folds) > 1 else "")
    return Trial(
        method=request.method,
        group=group,
        arm=arm.name,
        trained=arm.method or request.method,
        config=config.to_dict(),
        labels=labels,
        fold=fold,
        training=folds[fold].training,
        held_out=folds[fold].held_out,
        device=device,
        out=request.out / "runs" / name,
    )


def _log_plan(request: BenchmarkRequest, folds: Sequence[BenchmarkSplit], trials: Sequence[Trial]) -> None:
    for number, fold in enumerate(folds, start=1):
        counts = len(fold.labelled), len(fold.training) - len(fold.labelled), len(fold.held_out)
        log.info("fold %d of %d: %d labelled, %d unlabelled, %d held-out cases", number, len(folds), *counts)
    arms = ", ".join(dict.fromkeys(trial.arm for trial in trials))
    log.info(
        "benchmark of %s: %s; %d runs on %s, %d at a time",
        request.method, arms, len(trials), trials[0].device, request.jobs or 1,
    )  # fmt: skip

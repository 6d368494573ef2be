"""The summary of a benchmark: means over cases and seeds, spread, paired differences, and what it was made with."""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medseg import __version__
from medseg.benchmark.paired import all_tests
from medseg.benchmark.plan import Benchmark
from medseg.benchmark.ratios import arm_ratios, mean_over_seeds
from medseg.benchmark.remarks import case_remarks, code_remarks
from medseg.benchmark.trial import Trial
from medseg.benchmark.unions import summarise_groups
from medseg.errors import MedsegError
from medseg.metrics.statistics import bootstrap_ci
from medseg.metrics.table import mean_table
from medseg.sources import code_hash
from medseg.training.device import usable_cores


def summarise(benchmark: Benchmark, failed: Mapping[str, str]) -> dict[str, Any]:
    """The content of `summary.json` from all trials that are finished.

    Returns:
        `metric`, `unit`, `higher_is_better`, `arms` (see `summarise_arm`), `failed` (arm -> reason), `differences` of
        every arm from the first one (paired by case, with a 95% bootstrap interval over cases), `tests` of one arm
        against each of the others (see `paired_tests`), `further_tests` where the group names more arms to test,
        `ratios` that the group declares (see `arm_ratios`), `remarks` on what keeps arms from being compared plainly,
        `complete`, and what the benchmark was made with.
    """
    metric = benchmark.group.metric
    arms, tables = {}, {}
    for name in benchmark.arms:
        seeds = benchmark.of_arm(name)
        if name not in failed and seeds:
            arms[name] = summarise_arm(seeds, metric, name)
            arms[name] |= summarise_groups(arms[name]["cases_by_seed"], benchmark.groups)
            tables[name] = mean_over_seeds([_cases(found) for found in seeds.values()])
    values = {name: arm["cases"] for name, arm in arms.items()}
    tests = all_tests(values, benchmark.group.tested, patients(benchmark.trials), benchmark.groups)
    expected = len({trial.seed for trial in benchmark.trials})
    return {
        "metric": metric,
        "unit": benchmark.group.unit,
        "higher_is_better": benchmark.group.higher_is_better,
        "arms": arms,
        "differences": differences(values),
        "tests": tests[0] if tests else {},
        "further_tests": tests[1:],
        "ratios": arm_ratios(benchmark.group, tables),
        "remarks": [*code_remarks(_codes(benchmark)), *case_remarks(values)],
        "failed": dict(failed),
        "complete": all(name in arms and arms[name]["seeds"] == expected for name in benchmark.arms),
        **_made_with(benchmark),
    }


def summarise_arm(seeds: Mapping[int, Sequence[tuple[Trial, dict[str, Any]]]], metric: str, arm: str) -> dict[str, Any]:
    """One arm.

    Args:
        seeds: seed -> trial and result of every fold.
        metric: the headline metric.
        arm: named in errors.

    Returns:
        `mean` over seeds of the mean over cases, `sd` over seeds (0 with one seed), `cases` (mean over seeds),
        `cases_by_seed`, `mean_by_seed`, `ci95` over cases, `metrics` (all metrics, mean over cases and seeds),
        `missed` structures per seed, `iterations`, `seconds` of one seed's training (all folds), `peak_memory_mb`,
        `labelled_by_seed` where the arm takes its own choice of the fold's labelled cases, `extra` of the last seed and
        `extra_by_seed`.
    """
    by_seed = {seed: _cases(found) for seed, found in seeds.items()}
    values = {s: {c: m[metric] for c, m in table.items() if metric in m} for s, table in by_seed.items()}
    means = {seed: _mean(seeds[seed], values[seed], metric, arm) for seed in seeds}
    names = list(dict.fromkeys(case for table in values.values() for case in table))
    cases = {case: float(np.mean([table[case] for table in values.values() if case in table])) for case in names}
    flat = {f"{seed}/{case}": metrics for seed, table in by_seed.items() for case, metrics in table.items()}
    results = [result for found in seeds.values() for _, result in found]
    return {
        "mean": float(np.mean(list(means.values()))),
        "sd": float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else 0.0,
        "cases": cases,
        "iterations": max(result["iterations"] for result in results),
        "seconds": round(sum(result["seconds"] for result in results) / len(seeds), 2),
        "peak_memory_mb": max(result["peak_memory_mb"] for result in results),
        "seeds": len(seeds),
        "mean_by_seed": {str(seed): mean for seed, mean in means.items()},
        "ci95": list(bootstrap_ci(list(cases.values()))) if cases else None,
        "cases_by_seed": {str(seed): table for seed, table in values.items()},
        "metrics": mean_table(flat),
        "missed": sum(result["missed"] for result in results) / len(seeds),
        "evaluation_seconds_per_case": _optional_mean([r.get("evaluation_seconds_per_case") for r in results]),
        "skipped": results[0]["skipped"],
        "extra": results[-1]["extra"],
        "extra_by_seed": {str(seed): _extra(found) for seed, found in seeds.items()},
        "labelled_by_seed": {str(seed): ids for seed, found in seeds.items() if (ids := _labelled(found)) is not None},
    }


def differences(arms: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Difference of every arm from the first one, paired by case (values are means over seeds)."""
    names = list(arms)
    result = {}
    for name in names[1:]:
        pairs = [arms[name][case] - arms[names[0]][case] for case in arms[name] if case in arms[names[0]]]
        if pairs:
            result[name] = {
                "from": names[0],
                "mean": float(np.mean(pairs)),
                "ci95": list(bootstrap_ci(pairs)),
                "cases_higher": sum(pair > 0 for pair in pairs),
                "cases": len(pairs),
            }
    return result


def patients(trials: Sequence[Trial]) -> dict[str, str]:
    """Patient of every held-out case."""
    return {case.id: case.patient for trial in trials for case in trial.held_out}


def environment(device: str) -> dict[str, Any]:
    """Versions and hardware that figures depend on."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "medseg": __version__,
        "code": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "gpu": gpu,
        "processor": platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
    }


def _made_with(benchmark: Benchmark) -> dict[str, Any]:
    request, folds = benchmark.request, benchmark.folds
    first = next(trial for trial in benchmark.trials)
    return {
        "method": request.method,
        "task": benchmark.group_name,
        "preset": request.preset,
        "seeds": list(dict.fromkeys(trial.seed for trial in benchmark.trials)),
        "labels": first.labels,
        "labelled": [list(fold.labelled) for fold in folds],
        "unlabelled": [len(fold.training) - len(fold.labelled) for fold in folds],
        "held_out": [[case.id for case in fold.held_out] for fold in folds],
        "settings": {trial.arm: trial.config for trial in benchmark.trials if trial.seed == first.seed},
        "environment": environment(first.device),
    }


def _codes(benchmark: Benchmark) -> dict[str, list[str]]:
    """Sources that made each finished run."""
    results = {trial.name: trial.result() for trial in benchmark.trials}
    return {name: result.get("code", []) for name, result in results.items() if result is not None}


def _cases(found: Sequence[tuple[Trial, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """Cases of all folds of one seed."""
    return {case: metrics for _, result in found for case, metrics in result["cases"].items()}


def _labelled(found: Sequence[tuple[Trial, dict[str, Any]]]) -> list[list[str]] | None:
    """Labelled cases of every fold of one seed; None where the arm takes what the fold has."""
    chosen = [result["labelled"] for _, result in found if result.get("labelled") is not None]
    return chosen if len(chosen) == len(found) else None


def _extra(found: Sequence[tuple[Trial, dict[str, Any]]]) -> Any:
    """What an arm gave beside its metrics in one seed; a list where there are several folds."""
    extras = [result["extra"] for _, result in found]
    return extras[0] if len(extras) == 1 else extras


def _mean(found: Sequence[tuple[Trial, dict[str, Any]]], values: Mapping[str, float], metric: str, arm: str) -> float:
    """The arm's own mean where it gives one, else the mean over cases."""
    own = [result["mean"] for _, result in found if result["mean"] is not None]
    if not own and not values:
        known = ", ".join(dict.fromkeys(key for metrics in _cases(found).values() for key in metrics)) or "none"
        raise MedsegError(f"arm {arm} gave no value of {metric!r}; metrics it gave: {known}")
    mean = float(np.mean(own)) if own else float(np.mean(list(values.values())))
    if not math.isfinite(mean):
        raise MedsegError(f"arm {arm} has {metric} = {mean}; a metric must be finite")
    return mean


def _optional_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 3) if known else None

"""Runs a method's arms at equal budget and writes the summary and the report.

Every arm sees the same labelled cases, the same unlabelled pool, the same held-out cases, the same number of iterations
and the same seeds; what is reported is its final model, nothing is selected on the held-out cases. Trials are kept in
`OUT/runs`, so a call that was interrupted continues, and a call with more seeds or arms adds only those.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from medseg.benchmark.plan import Benchmark, plan_benchmark
from medseg.benchmark.report import write_report
from medseg.benchmark.request import BenchmarkRequest
from medseg.benchmark.summary import summarise
from medseg.benchmark.trial import Trial, run_trial, same_identity
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.methods import method_class
from medseg.training.device import usable_cores
from medseg.training.run import TrainingStoppedError, explain

log = logging.getLogger(__name__)


def run_benchmark(request: BenchmarkRequest) -> dict[str, Any]:
    """Run a benchmark, or what of it is not yet in `request.out`.

    Returns:
        The content of `OUT/summary.json`: `metric`, `arms` with `mean` (over seeds of the mean over cases), `sd` (over
        seeds), `cases` (mean over seeds), `iterations`, `seconds` and `peak_memory_mb`, and more; see `summarise`.
        Arms that failed stand under `failed` with the reason.

    Raises:
        NotFoundError: an unknown method, preset, task or arm.
        MedsegError: the cases do not suffice, `out` holds a benchmark with other settings, or every arm failed.
    """
    benchmark = plan_benchmark(request)
    pending = [trial for trial in benchmark.trials if not _is_finished(trial)]
    done = len(benchmark.trials) - len(pending)
    log.info("%d of %d runs are already done in %s", done, len(benchmark.trials), request.out)
    failed: dict[str, str] = {}
    summary = _write(benchmark, failed)
    for trial, failure in _attempts(pending, benchmark.request, failed):
        if failure:
            failed.setdefault(trial.arm, failure)
            log.error("run %s failed: %s", trial.name, failure)
        done += 1
        summary = _write(benchmark, failed)
        log.info("%d of %d runs done%s", done, len(benchmark.trials), _standing(summary))
    for remark in summary["remarks"]:
        log.warning("%s", remark)
    write_report(request.out / "report.html", benchmark, summary)
    if not summary["arms"]:
        arm, sentence = next(iter(failed.items()))
        raise MedsegError(f"no arm of the benchmark ended well; {arm}: {sentence}")
    return summary


def _is_finished(trial: Trial) -> bool:
    """Whether the trial's result is there; a folder of other settings is never mixed in or overwritten."""
    kept = read_json(trial.out / "trial.json")
    if kept is None:
        return False
    defaults = method_class(trial.trained).config_class().to_dict()
    changed = same_identity(trial.identity(), kept["identity"], defaults)
    if changed:
        raise MedsegError(
            f"{trial.out} was made with other settings or data ({'; '.join(changed[:4])}); choose another --out, or "
            "delete that folder to run it again"
        )
    return trial.result() is not None


def _attempts(
    trials: Sequence[Trial], request: BenchmarkRequest, failed: dict[str, str]
) -> Iterator[tuple[Trial, str | None]]:
    """Run the trials, `request.jobs` at a time; gives each with the sentence of its failure, or None."""
    jobs = request.jobs or 1
    if jobs == 1 or not request.isolate:  # one process has one random state
        for trial in trials:
            yield trial, _attempt(trial, request, failed)
        return
    pool = ThreadPoolExecutor(max_workers=jobs)
    try:
        running = {pool.submit(_attempt, trial, request, failed): trial for trial in trials}
        for future in as_completed(running):
            yield running[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _attempt(trial: Trial, request: BenchmarkRequest, failed: dict[str, str]) -> str | None:
    """Run one trial; the sentence of its failure, or None."""
    if trial.arm in failed:
        return failed[trial.arm]
    log.info("run %s: %s, %d iterations", trial.name, trial.trained, trial.config["iterations"])
    write_json(trial.out / "trial.json", trial.to_dict())
    if request.isolate:
        return _run_in_child(trial, max(1, usable_cores() // (request.jobs or 1)))
    try:
        run_trial(trial)
    except TrainingStoppedError:
        raise
    except Exception as error:
        log.debug("run %s failed", trial.name, exc_info=True)
        return explain(error, method_class(trial.trained).config_class.from_dict(trial.config))
    return None


def _run_in_child(trial: Trial, threads: int) -> str | None:
    """A process of its own: its peak memory is the run's, and an out-of-memory kill ends one run only."""
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}  # more threads than cores slow each other tenfold
    process = subprocess.Popen([sys.executable, "-m", "medseg.benchmark.trial", str(trial.out)], env=environment)
    try:
        code = process.wait()
    except BaseException:
        process.terminate()  # the run writes a checkpoint, from which the next call continues
        process.wait()
        raise
    if code == 0:
        return None
    failure = read_json(trial.out / "failure.json", default={})
    if failure.get("kind") == "TrainingStoppedError":
        raise TrainingStoppedError(failure["error"])
    return str(failure.get("error", _killed(code)))


def _killed(code: int) -> str:
    if code == -9:
        return "the run was killed (signal 9), most likely for want of memory; lower patch, width or cache_gb"
    return f"the run ended with exit code {code} and left no reason; see the log above"


def _standing(summary: dict[str, Any]) -> str:
    """The arms' means so far, for the log."""
    means = ", ".join(f"{name} {arm['mean']:.4f}" for name, arm in summary["arms"].items())
    return f"; {summary['metric']}: {means}" if means else ""


def _write(benchmark: Benchmark, failed: dict[str, str]) -> dict[str, Any]:
    summary = summarise(benchmark, failed)
    write_json(benchmark.request.out / "summary.json", summary)
    return summary

"""Training on several GPUs: the same job, run by torchrun in one process per GPU.

torchrun --standalone --nproc-per-node 4 -m medseg.server.tasks.distributed RUN/job.json
"""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.methods import method_class
from medseg.training.run import TrainingJob, train
from medseg.training.run_folder import RunFolder

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"  # torchrun's default, the host's name, does not resolve on every machine


def most_processes(batches: Iterable[int], limit: int) -> int:
    """The largest number of processes, up to a limit, among which every batch divides."""
    whole = math.gcd(*batches)
    return next(number for number in range(limit, 0, -1) if whole % number == 0)


def train_distributed(job: TrainingJob, processes: int) -> None:
    """Run a job in several processes and wait for it.

    Raises:
        ConflictError: another process holds the run folder.
        MedsegError: it failed; the sentence is the one of the run's own progress.
    """
    with RunFolder(job.out).locked():
        pass  # found out here one can wait for the holder; inside, it is a failure of all processes
    watched = replace(job, watch_pids=(*job.watch_pids, os.getpid()))
    path = write_json(job.out / "job.json", job_to_dict(watched))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", ADDRESS]
    command += ["--nproc-per-node", str(processes), "-m", "medseg.server.tasks.distributed", str(path)]
    logger.info("starting %d processes: %s", processes, " ".join(command))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            logger.info("%s", line.rstrip())
    if process.returncode:
        error = read_json(RunFolder(job.out).progress, default={}).get("error")
        raise MedsegError(
            error or f"training in {processes} processes ended with code {process.returncode}; see the log"
        )


def job_to_dict(job: TrainingJob) -> dict[str, Any]:
    """JSON form of a job."""
    return {
        "method": job.method,
        "config": job.config.to_dict(),
        "labels": job.labels,
        "training": [case.to_dict() for case in job.training],
        "validation": [case.to_dict() for case in job.validation],
        "out": str(job.out),
        "device": (job.device or "cpu").partition(":")[0],  # each process has its own GPU
        "resume": job.resume,
        "watch_pids": list(job.watch_pids),
        "init_may_miss": job.init_may_miss,
    }


def job_from_dict(value: dict[str, Any]) -> TrainingJob:
    """Inverse of `job_to_dict`."""
    return TrainingJob(
        method=value["method"],
        config=method_class(value["method"]).config_class.from_dict(value["config"]),
        labels=value["labels"],
        training=tuple(Case.from_dict(case) for case in value["training"]),
        validation=tuple(Case.from_dict(case) for case in value["validation"]),
        out=Path(value["out"]),
        device=value["device"],
        resume=value["resume"],
        watch_pids=tuple(value["watch_pids"]),
        init_may_miss=value["init_may_miss"],
    )


def main(path: Path) -> int:
    """Entry of each process: train; 2 and one sentence where it fails."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(job_from_dict(read_json(path)))
    except MedsegError as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

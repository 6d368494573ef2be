"""Training over any Method: cases from the datastore, one run folder, the gate, a new version."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from monailabel.interfaces.tasks.train import TrainTask

from medseg.cases import Case, save_cases
from medseg.errors import ConflictError, MedsegError
from medseg.files import read_json
from medseg.methods import method_class
from medseg.methods.base import Method, MethodConfig
from medseg.networks.precision import amp_dtype
from medseg.server.tasks.device import device_choices, resolve_device
from medseg.server.tasks.distributed import most_processes, train_distributed
from medseg.server.tasks.next_step import NO_LABEL, needs_masks
from medseg.server.tasks.study import Study
from medseg.server.tasks.train_runs import OpenRun, TrainRuns, fingerprint
from medseg.training.gate import gate
from medseg.training.processes import gone
from medseg.training.run import TrainingJob, TrainingStoppedError, train
from medseg.training.split import Split
from medseg.training.version_store import read_config

logger = logging.getLogger(__name__)

SERVER_PID = "MEDSEG_SERVER_PID"
"""Environment variable by which the server tells its jobs whom to watch; MONAI Label passes jobs its environment."""

LOCK_WAIT_SECONDS = 60.0  # ours: an orphaned training notices within an iteration that its server is gone

FOREIGN = frozenset({"model", "client_id", "local_rank", "multi_gpu", "gpus", "name", "method"})
"""Request keys that MONAI Label or viewers add and that are no settings."""


@dataclass(frozen=True)
class TrainRequest:
    """A train request, checked."""

    config: MethodConfig
    device: str
    processes: int
    resume: bool
    labelled: int | None
    refresh: bool = False


class MedsegTrain(TrainTask):
    """Trains one method on everything the datastore knows.

    Request keys: `device`, `processes` (of torchrun, one GPU each), `resume` (default true), `labelled` (use only the
    first N labelled training images), `refresh` (no pretraining: the served model with today's labels, for example with
    one more template, see `Method.refresh`), and every setting of the method's config, for example `iterations`.
    """

    def __init__(self, study: Study, method: str) -> None:
        super().__init__(method_class(method).title)
        self.study, self.method = study, method
        self.runs = TrainRuns(study.folder / method)

    def config(self) -> dict[str, Any]:
        """What viewers offer to change."""
        config = self.study.settings.config(self.method)
        return {
            "iterations": config.iterations,
            "seed": config.seed,
            "learning_rate": config.learning_rate,
            "device": device_choices(self.study.settings.device),
            "resume": True,
        }

    def stats(self) -> dict[str, Any]:
        """Progress of the present or last training."""
        return self.runs.stats()

    def check(self, request: Mapping[str, Any]) -> TrainRequest:
        """Read a request. Called before a job is queued, so that mistakes are answered and not buried in its log.

        Raises:
            MedsegError: unknown setting, bad value, nothing to learn from, or batches that do not divide among the
                processes asked for.
        """
        options = {key: value for key, value in request.items() if key not in FOREIGN}
        device = resolve_device(options.pop("device", None), self.study.settings.device)
        resume = str(options.pop("resume", True)).lower() not in ("false", "0", "no", "off")
        labelled = _count(options.pop("labelled", None), "labelled")
        processes = _count(options.pop("processes", None), "processes")
        named = sorted(method_class(self.method).config_class.files & options.keys())
        if named:  # a file name from the network; people set it when they start the server
            raise MedsegError(
                f"{named[0]} cannot be set by a request, because it names a file; start the server with "
                "--conf init champion, or with --conf set"
            )
        refresh = str(options.pop("refresh", False)).lower() in ("true", "1", "yes", "on")
        init = self._init()
        config = self.study.settings.config(self.method, {**options, **({"init": init} if init else {})})
        if refresh:
            config, resume = self._refreshed({key: getattr(config, key) for key in options}), False
        if not self.study.datastore.list_images():
            raise ConflictError(f"study {self.study.key} holds no image; add images to it, then train")
        if needs_masks(self.method) and not self.study.labelled():
            raise ConflictError(NO_LABEL)
        amp_dtype(config.amp, torch.device(device))
        return TrainRequest(config, device, self._processes(processes, device, config), resume, labelled, refresh)

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Train, then let the gate decide.

        Returns:
            The decision, with the run's state; written to `last.json` as well.

        Raises:
            MedsegError: one sentence; `last.json` holds it too.
        """
        started = time.monotonic()
        self.runs.record("running")
        try:
            decision = self._train(self.check(request))
        except Exception as error:
            self._record_failure(error, time.monotonic() - started)
            raise
        self.runs.record("done", self._newest(), decision=decision, seconds=round(time.monotonic() - started, 1))
        return {**self.stats(), "decision": decision}

    # -- details -----------------------------------------------------------------------------------------------------

    def _train(self, request: TrainRequest) -> dict[str, Any]:
        kind = method_class(self.method)
        cases, skipped = self.study.usable_cases(kind)
        cases = self.study.grouped(cases, kind, request.config)
        everything = self.study.split(cases, kind, request.config)
        split = _first_labelled(everything, request.labelled, kind)
        mark = fingerprint(request.config, self.study.labels, split.training, split.validation)
        run = self.runs.open(mark, request.resume)
        self.runs.record("running", run.path)
        seen = {case.id: case for case in (*split.training, *split.validation)}  # some are both, see `training.split`
        save_cases(run.path / "cases.json", seen.values())
        logger.info(
            "training %s on %d labelled and %d unlabelled images, %d validate; %s run %s",
            self.method, split.labelled, len(split.training) - split.labelled, len(split.validation),
            "resuming" if run.resume else "new", run.path.name,
        )  # fmt: skip
        self._run(request, split, run)
        if reason := gone(watched_pids()):
            raise TrainingStoppedError(f"training is done but nothing is published because {reason}; train again")
        logger.info("comparing the candidate with the current model")
        result = gate(
            self.study.registry, self.method, run.path, split.validation, request.device, self.study.settings.gate_eps,
            among=cases, ties=request.refresh,
        )  # fmt: skip
        decision = {
            "published": result.published,
            "version": result.version,
            "reason": result.reason,
            "quality": result.candidate.get("quality") if result.candidate else None,
            "incumbent": result.incumbent.get("quality") if result.incumbent else None,
            "labelled": split.labelled,
            "validation": len(split.validation),
            "skipped": skipped,
        }
        self.runs.close(run.path, decision)
        logger.info("%s", result.reason)
        return decision

    def _run(self, request: TrainRequest, split: Split, run: OpenRun) -> None:
        job = TrainingJob(
            method=self.method,
            config=request.config,
            labels=method_class(self.method).fit_labels(self.study.labels),
            training=split.training,
            validation=split.validation,
            out=run.path,
            device=request.device,
            resume=run.resume,
            watch_pids=watched_pids(),
            init_may_miss=True,  # the word of `--conf init` stands for all models, of which not all can start from it
        )
        deadline = time.monotonic() + LOCK_WAIT_SECONDS
        while True:
            try:
                if request.processes > 1:
                    train_distributed(job, request.processes)
                else:
                    train(job)
                return
            except ConflictError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
                job = replace(job, resume=True)  # whoever held the run has written a newer checkpoint

    def _record_failure(self, error: Exception, seconds: float) -> None:
        sentence = str(error) if isinstance(error, MedsegError) else f"training failed: {type(error).__name__}: {error}"
        state = "stopped" if isinstance(error, TrainingStoppedError) else "failed"
        run = read_json(self.runs.last, default={}).get("run")
        self.runs.record(state, self.runs.runs / run if run else None, error=sentence, seconds=round(seconds, 1))

    def _newest(self) -> Path | None:
        folders = self.runs.folders()
        return folders[-1] if folders else None

    def _processes(self, asked: int | None, device: str, config: MethodConfig) -> int:
        """As many processes as were asked for; else as many of the allowed GPUs as the batches divide among."""
        wanted = asked or self._gpus(device)
        if wanted == 1:
            return 1
        kind, cases = method_class(self.method), self.study.cases()
        streams = kind(kind.fit_config(config, cases), kind.fit_labels(self.study.labels)).streams(cases)
        batches = {stream.name: stream.per_batch for stream in streams}
        fitting = most_processes(batches.values(), wanted)
        if fitting == wanted:
            return wanted
        each = " and ".join(f"{count} {name}" for name, count in batches.items())
        sentence = f"a batch of {each} samples does not divide among {wanted} processes, only among {fitting}"
        if asked:
            raise MedsegError(f"{sentence}; ask for {fitting}, or set the batches to multiples of {wanted}")
        logger.warning("%s, so %d of %d GPUs train %s", sentence, fitting, wanted, self.method)
        return fitting

    def _gpus(self, device: str) -> int:
        """GPUs that the settings allow a training."""
        if device != "cuda":
            return 1
        wanted = self.study.settings.gpus
        there = torch.cuda.device_count()
        return there if wanted == "all" else min(int(wanted), there)

    def _refreshed(self, asked: Mapping[str, Any]) -> MethodConfig:
        """The served model's settings and those asked for; what follows from labels is open again.

        Its one iteration learns nothing.
        """
        kind = method_class(self.method)
        if kind.refresh is None:
            raise MedsegError(f"{self.method} keeps nothing that a refresh could renew; train it")
        champion = self.study.registry.champion(self.method)
        if champion is None:
            raise ConflictError(f"{self.method} has no model to refresh yet; train it first")
        settings = read_config(champion.folder)["config"]
        still = {"iterations": 1, "learning_rate": 0.0, "init": str(champion.folder / "model.safetensors")}
        return kind.config_class.from_dict({**settings, **asked, **still}).with_overrides(kind.refresh)

    def _init(self) -> str | None:
        """Weights to start from: those of `--conf init`, which may name the champion of this or of another method."""
        word, _, other = (self.study.settings.init or "").partition(":")
        if word != "champion":
            return self.study.settings.init
        champion = self.study.registry.champion(method_class(other).name if other else self.method)
        if champion is None:
            logger.warning("%s has no model yet; %s starts from random weights", other or self.method, self.method)
            return None
        return str(champion.folder / "model.safetensors")


def _first_labelled(split: Split, count: int | None, kind: type[Method]) -> Split:
    """Hide the labels of all but the first `count` labelled training cases."""
    if count is None:
        return split
    labelled = [case.id for case in split.training if kind.is_labelled(case)]
    if not 1 <= count <= len(labelled):
        raise MedsegError(f"labelled is {count}; this study has {len(labelled)} labelled images that may train")
    kept = set(labelled[:count])
    training: tuple[Case, ...] = tuple(case if case.id in kept else kind.hide_label(case) for case in split.training)
    return Split(training, split.validation)


def _count(value: Any, name: str) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not str(value).isdigit() or int(value) < 1:
        raise MedsegError(f"{name} is {value!r}; give a whole number from 1")
    return int(value)


def watched_pids() -> tuple[int, ...]:
    """The server that started this job, where one did; a job without its server has nobody to answer to."""
    server = os.environ.get(SERVER_PID)
    return (int(server),) if server else ()

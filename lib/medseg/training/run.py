"""One training run, from cases to a model folder.

    python -m medseg train caml --data DIR --out OUT                                              one device
    torchrun --standalone --nproc-per-node 2 -m medseg train caml --data DIR --out OUT            two GPUs
    torchrun --nnodes 2 --nproc-per-node 2 --rdzv-endpoint HOST:29500 -m medseg train ... \\
        --set labelled_batch=4 --set unlabelled_batch=4                                           two machines

The loop is ignite's; a method only gives `training_step`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.files import read_json, write_json
from medseg.inference.evaluation import Evaluation, evaluate
from medseg.inference.model_folder import describe, save_model
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.methods.base import Batch, Method, MethodConfig, StepOutput, TrainingSet
from medseg.networks.measure import peak_mb
from medseg.networks.precision import amp_dtype, autocast
from medseg.networks.vnet import prefer_channels_last
from medseg.sources import code_hash
from medseg.stamps import case_stamps, changed_cases
from medseg.training.checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from medseg.training.data import CaseCache, IterationDataset, iteration_loader, readable
from medseg.training.device import pick_device, process_group
from medseg.training.initial import load_initial
from medseg.training.processes import gone, stop_signals
from medseg.training.progress import Progress
from medseg.training.run_folder import RunFolder

log = logging.getLogger(__name__)

READ_TERMS_EVERY = 10
"""Iterations between two readings of the loss: reading waits for the GPU."""

FREE_SETTINGS = ("iterations", "workers", "cache_gb", "validate_every", "epoch_iterations", "stride")
"""Settings that may change when a run resumes; `stride` is of inference only."""


class TrainingStoppedError(MedsegError):
    """The run was asked to stop; its checkpoint is written and `--resume` continues it."""


class _InterruptedError(Exception):
    """Leaves a validation that nobody waits for any more."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything that defines a run.

    Attributes:
        method: name in the table of methods.
        config: settings.
        labels: label name -> index.
        training: labelled and unlabelled cases to learn from.
        validation: labelled cases that never train.
        out: run folder.
        device: "cpu", "cuda", "cuda:1"; None: a GPU where there is one.
        resume: continue from the checkpoint in `out`, if there is one.
        watch_pids: the run stops, with a checkpoint, when one of these processes is gone.
        init_may_miss: a model in `init` of which nothing fits is a warning instead of an error.
    """

    method: str
    config: MethodConfig
    labels: dict[str, int]
    training: tuple[Case, ...]
    validation: tuple[Case, ...]
    out: Path
    device: str | None = None
    resume: bool = False
    watch_pids: tuple[int, ...] = ()
    init_may_miss: bool = False


class TrainingStep(nn.Module):
    """A method's training step as a module, so that DDP sees forward and loss as one call."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.network = method.network
        self._step = method.training_step

    def forward(self, batch: Batch, iteration: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss and terms of one batch."""
        output: StepOutput = self._step(batch, iteration)
        return output.loss, output.terms


def train(job: TrainingJob) -> dict[str, Any]:
    """Run a job to its end.

    Returns:
        The content of `metrics.json`.

    Raises:
        MedsegError: one sentence that says what was wrong; `progress.json` holds it too.
        ConflictError: another process holds the run folder.
        TrainingStoppedError: asked to stop (signal, or a watched process is gone).
    """
    folder = RunFolder(job.out)
    device = pick_device(job.device)
    with process_group(device):
        lock = folder.locked() if idist.get_rank() == 0 else contextlib.nullcontext()
        with lock:
            run = Run(job, folder, device)
            try:
                return run.execute()
            except TrainingStoppedError as error:
                run.report_end("stopped", str(error))
                raise
            except Exception as error:
                sentence = explain(error, job.config)
                run.report_end("failed", sentence, passing=is_passing(error))
                if isinstance(error, MedsegError):
                    raise
                raise MedsegError(sentence) from error


class Run:
    """State of one run while it executes."""

    def __init__(self, job: TrainingJob, folder: RunFolder, device: torch.device) -> None:
        self.job, self.folder, self.device = job, folder, device
        self.main = idist.get_rank() == 0
        config = job.config
        self.progress = Progress(folder, config.iterations, config.epoch_iterations) if self.main else None
        self.history: list[dict[str, Any]] = []
        self.wish: str | None = None  # why this process wants to end; the others do not know of it yet
        self.stop_reason: str | None = None  # why all processes end, at the same iteration
        self.seconds_before = 0.0
        self.code = [code_hash()]  # of every start that took part, oldest first
        self.files = case_stamps(job.training)
        self.done = self.end = 0  # iterations done, and where the current stage ends

    def execute(self) -> dict[str, Any]:
        """Prepare, loop, save, validate."""
        if self.job.resume and (finished := self._finished()):
            return finished
        if self.main and not self.job.resume:
            self.folder.forget()
        if self.progress:
            self.progress.write()
        self._prepare()
        start = self._restore() if self.job.resume else 0
        began = time.monotonic()
        with stop_signals(self.stop):
            self._loop(start)
        self._complete()
        seconds = self.seconds_before + time.monotonic() - began
        return self._conclude(seconds)

    def stop(self, reason: str) -> None:
        """Ask to end, with a checkpoint, at the next iteration at which all processes can agree on it."""
        self.wish = self.wish or reason

    def report_end(self, state: str, error: str, passing: bool = False) -> None:
        """Leave the reason where people look; `passing`: the same run may well go on later."""
        if self.progress:
            self.progress.end(state, error, passing)

    # -- preparation -----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        job = self.job
        kind = method_class(job.method)
        config = kind.fit_config(job.config, job.training)
        torch.manual_seed(config.seed)
        self.method = kind(config, job.labels)
        if not (job.resume and load_checkpoint(self.folder.checkpoint)):  # which holds all weights
            self.method.initialise()
            if config.init:
                load_initial(self.method.network, Path(config.init), job.init_may_miss, self.method.inherit)
        self.cache = CaseCache(self.method, config.cache_gb / (config.workers + 1))  # every worker has its own
        used = {case.id for stream in self.method.streams(job.training) for case in stream.cases}
        if len(self.method.stages()) > 1:  # a later stage may use what the first one does not
            used = {case.id for case in job.training}
        tick = self._reading(len(used) + len(job.validation))
        training, skipped = readable(self.cache, [case for case in job.training if case.id in used], tick)
        validation, skipped_validation = readable(CaseCache(self.method, 0.0), job.validation, tick)
        self.training, self.validation = tuple(training), tuple(validation)
        self.skipped = skipped + skipped_validation
        if self.progress:
            self.progress.update(skipped=self.skipped)
        labelled = sum(map(kind.is_labelled, job.training))
        if labelled and not any(map(kind.is_labelled, training)):
            raise UnusableInputError(
                f"none of the {labelled} labelled cases can be used; the first: {skipped[0]['reason']}"
            )
        self._build()

    def _reading(self, total: int) -> Callable[[], None]:
        """What happens after every image that is read before the first iteration."""
        told = self.progress.reading(total) if self.progress else lambda: None

        def tick() -> None:
            told()
            if reason := gone(self.job.watch_pids):
                raise TrainingStoppedError(f"training stopped while it read images because {reason}")

        return tick

    def _build(self) -> None:
        config = self.method.config
        self.method.network.to(self.device).train()
        prefer_channels_last(self.method.network)
        self.optimizer = self.method.optimizer()
        self.scheduler = self.method.scheduler(self.optimizer)
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=amp_dtype(config.amp, self.device) is torch.float16
        )
        step: nn.Module = TrainingStep(self.method)
        if idist.get_world_size() > 1:
            if self.device.type == "cuda":
                step = nn.SyncBatchNorm.convert_sync_batchnorm(step)
            devices = [self.device.index] if self.device.type == "cuda" else None
            step = nn.parallel.DistributedDataParallel(step, device_ids=devices, find_unused_parameters=True)
        self.step = step

    def _enter_stage(self, start: int) -> None:
        """Let the method prepare a stage; its data are drawn anew, because streams may have changed."""
        state = random_state()
        self.method.begin_stage(start, self._training_set())
        self.method.network.train()
        set_random_state(state)  # a resumed run prepares the stage twice
        streams = self.method.streams(self.training)
        for stream in streams:
            log.info("stream %s: %d cases, %d samples per batch", stream.name, len(stream.cases), stream.per_batch)
        shard = (idist.get_rank(), idist.get_world_size())
        self.dataset = IterationDataset(self.method, streams, self.cache, self.method.config.seed, shard)

    def _training_set(self) -> TrainingSet:
        return TrainingSet(self.training, self.cache.get)

    # -- the loop --------------------------------------------------------------------------------------------------

    def _loop(self, start: int) -> None:
        config = self.method.config
        self.done = start
        if self.progress:
            self.progress.start(start)
        if start < config.iterations and idist.get_rank() > 0:
            # dropout must differ between processes; the first one's state is in the checkpoint
            torch.manual_seed(config.seed + idist.get_rank() + 1000 * start)
        for begin, end in spans(self.method.stages(), config.iterations):
            if start < end and not self.stop_reason:
                self._enter_stage(begin)
                self._run_span(max(begin, start), end)
        self._end_if_asked()

    def _run_span(self, start: int, end: int) -> None:
        """Iterations `start` to `end`, with the batches of the current stage."""
        config = self.method.config
        self.end = end
        engine = Engine(self._update)
        epochs = -(-config.iterations // config.epoch_iterations)
        engine.load_state_dict({"iteration": start, "max_epochs": epochs, "epoch_length": config.epoch_iterations})
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
        loader = iteration_loader(self.dataset, start, config.workers)
        engine.run(loader, max_epochs=epochs, epoch_length=config.epoch_iterations)

    def _update(self, engine: Engine, batch: Batch) -> dict[str, torch.Tensor]:
        """One optimisation step; `engine.state.iteration` is already the number of this step, from 1."""
        batch = {
            name: {key: value.to(self.device, non_blocking=True) for key, value in sample.items()}
            for name, sample in batch.items()
        }
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.method.config.amp, self.device):
            loss, terms = self.step(batch, engine.state.iteration - 1)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return {"loss": loss.detach(), **terms}

    def _after_iteration(self, engine: Engine) -> None:
        done, config = engine.state.iteration, self.method.config
        self.done = done
        epoch_ends = done % config.epoch_iterations == 0 or done >= config.iterations
        if epoch_ends or done % READ_TERMS_EVERY == 0:
            self._read_terms(done, engine.state.output)  # type: ignore[arg-type]
        elif self.progress:
            self.progress.iteration(done, {})
        if epoch_ends:
            self._after_epoch(done)
        if (
            idist.get_world_size() == 1 or epoch_ends or done % READ_TERMS_EVERY == 0
        ):  # asking the others waits for them
            self._watch()
        if self.stop_reason and done < config.iterations and not epoch_ends:
            self._save_checkpoint(done)
        if self.stop_reason or done >= self.end:
            engine.terminate()

    def _read_terms(self, done: int, output: dict[str, torch.Tensor]) -> None:
        values = torch.stack([value.float().mean() for value in output.values()])
        if idist.get_world_size() > 1:
            values = idist.all_reduce(values) / idist.get_world_size()  # type: ignore[assignment]
        terms = dict(zip(output, values.tolist(), strict=True))
        wrong = [name for name, value in terms.items() if value != value or abs(value) == float("inf")]
        if wrong:
            raise self._diverged(", ".join(wrong), done)
        self.history.append({"iteration": done, **terms})
        if self.progress:
            self.progress.iteration(done, terms)

    def _diverged(self, what: str, done: int) -> MedsegError:
        return MedsegError(
            f"{what} became NaN or infinite near iteration {done}; lower learning_rate "
            f"(now {self.method.config.learning_rate:g}) or set amp=off, then start anew"
        )

    def _after_epoch(self, done: int) -> None:
        config = self.method.config
        epoch = -(-done // config.epoch_iterations)
        if config.validate_every and epoch % config.validate_every == 0 and done < config.iterations:
            self._validate(done)
        self._save_checkpoint(done)
        if self.progress:
            self.progress.epoch()

    def _validate(self, done: int) -> Evaluation | None:
        """Evaluate on the validation cases, on the first process; the others wait."""
        result = None
        if self.main and self.validation:
            state = random_state()
            with contextlib.suppress(_InterruptedError):
                result = evaluate(Predictor(self.method, str(self.device)), self.validation, self._interrupt)
            self.method.network.train()
            set_random_state(state)  # watching a run must not change it
        if result:
            summary = {"iteration": done, "quality": result.quality, **result.mean}
            self.history.append({"iteration": done, "validation": result.quality})
            assert self.progress is not None
            self.progress.update(validation=summary)
        if idist.get_world_size() > 1:
            idist.barrier()
        return result

    def _interrupt(self, *_: object) -> None:
        if self._wants_to_end():
            raise _InterruptedError

    def _wants_to_end(self) -> bool:
        """Whether a signal came or nobody is left whom this process works for."""
        if reason := gone(self.job.watch_pids):
            self.stop(reason)
        return self.wish is not None

    def _watch(self) -> None:
        """Ask all processes whether one wants to end: they must do so at the same iteration, or they wait for ever."""
        asked = self._wants_to_end()
        if idist.get_world_size() > 1:
            flag = torch.tensor(float(asked), device=self.device)
            asked = float(idist.all_reduce(flag)) > 0
        if asked:
            self.stop_reason = self.wish or "another process of the run was asked to stop"

    def _end_if_asked(self) -> None:
        if self.stop_reason:
            raise TrainingStoppedError(
                f"training stopped at iteration {self.done} of {self.method.config.iterations} because "
                f"{self.stop_reason}; its checkpoint is kept, resume continues it"
            )

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def _request(self) -> str:
        """Hash of what was asked for."""
        return self._hash(self.job.config, self.job.training)

    def _fingerprint(self) -> str:
        """Hash of what must not change between a checkpoint and its resumption: settings and cases as they are used."""
        return self._hash(self.method.config, self.training)

    def _hash(self, config: MethodConfig, training: Sequence[Case]) -> str:
        settings = {k: v for k, v in config.to_dict().items() if k not in FREE_SETTINGS}
        cases = [(case.id, case.label is not None) for case in training]
        text = json.dumps([self.job.method, settings, self.job.labels, cases], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _refuse_differences(self, same: bool, files: dict[str, str]) -> None:
        """Nothing that was made from something else is continued or passed off as what is asked for.

        Args:
            same: whether settings and cases agree.
            files: `case_stamps` of what was learnt from; empty in what earlier versions left.
        """
        way_out = "start anew without --resume or choose another --out"
        if not same:
            raise MedsegError(f"the run in {self.folder.path} was made with other settings or other cases; {way_out}")
        if changed := changed_cases(files, self.files):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise MedsegError(
                f"the run in {self.folder.path} learnt from {changed[0]}{more} before its files or weak labels were "
                f"changed; {way_out}"
            )

    def _save_checkpoint(self, done: int) -> None:
        state = self.method.network.state_dict()
        if not all(bool(torch.isfinite(value).all()) for value in state.values()):
            raise self._diverged("the weights", done)  # the loss of this step may still have been finite
        if not self.main:
            return
        save_checkpoint(
            self.folder.checkpoint,
            {
                "iteration": done,
                "network": state,
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random_state(),
                "fingerprint": self._fingerprint(),
                "files": self.files,
                "code": self.code,
                "history": self.history,
                "seconds": self.progress.seconds(self.seconds_before) if self.progress else 0.0,
                "description": describe(self.method),
            },
        )

    def _restore(self) -> int:
        """Load the newest checkpoint; 0 where there is none."""
        content = load_checkpoint(self.folder.checkpoint)
        if content is None:
            return 0
        self._refuse_differences(content["fingerprint"] == self._fingerprint(), content.get("files", {}))
        self.method.network.load_state_dict(content["network"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        self.scaler.load_state_dict(content["scaler"])
        set_random_state(content["random"])
        self.history = list(content["history"])
        self.seconds_before = float(content["seconds"])
        self.code = list(dict.fromkeys([*content.get("code", ["unknown"]), *self.code]))
        log.info("resuming at iteration %d", content["iteration"])
        self._tell_changes(content["description"]["config"]["iterations"])
        return int(content["iteration"])

    def _tell_changes(self, iterations: int) -> None:
        """What may change when a run resumes, and still makes it another one than the same request from the start."""
        asked = self.method.config.iterations
        if iterations != asked:
            log.warning(
                "iterations changed from %d to %d: schedules and stages that follow the budget are stretched from here "
                "on, so this is not the run that %d iterations from the start would be", iterations, asked, asked,
            )  # fmt: skip
        if len(self.code) > 1:
            log.warning("the run began with other sources of medseg (%s) than these (%s)", *self.code[-2:])

    def _finished(self) -> dict[str, Any] | None:
        """The metrics of a run that is already complete."""
        metrics: dict[str, Any] | None = read_json(self.folder.metrics)
        if metrics and self.folder.weights.exists() and metrics["iterations"] >= self.job.config.iterations:
            request = self._request()
            self._refuse_differences(metrics.get("request", request) == request, metrics.get("files", {}))
            log.info("%s is already complete", self.folder.path)
            return metrics
        return None

    # -- the end ---------------------------------------------------------------------------------------------------

    def _complete(self) -> None:
        """The method's own last work."""
        self.method.network.eval()
        with torch.no_grad():
            self.method.conclude(self._training_set())
        self.method.network.train()

    def _conclude(self, seconds: float) -> dict[str, Any]:
        peak = peak_mb(self.device)
        evaluation = self._validate(self.method.config.iterations)
        self._watch()
        self._end_if_asked()
        metrics = {
            "method": self.job.method,
            "iterations": self.method.config.iterations,
            "seconds": round(seconds, 2),
            "peak_memory_mb": round(peak, 1),
            "device": str(self.device),
            "processes": idist.get_world_size(),
            "labelled": [case.id for case in self.training if case.label is not None],
            "unlabelled": sum(case.label is None for case in self.training),
            "unlabelled_ids": [case.id for case in self.training if case.label is None],
            "skipped": self.skipped,
            "validation": evaluation.to_dict() if evaluation else None,
            "request": self._request(),
            "files": self.files,
            "code": self.code,
            "history": self.history,
        }
        if self.main:
            save_model(self.folder.path, self.method)
            write_json(self.folder.metrics, metrics)
            assert self.progress is not None
            self.progress.end("done")
        if idist.get_world_size() > 1:
            idist.barrier()
        return metrics


def spans(stages: Sequence[int], iterations: int) -> list[tuple[int, int]]:
    """First iteration and end of every stage.

    Raises:
        ValueError: the stages do not ascend from 0.
    """
    if not stages or stages[0] != 0 or list(stages) != sorted(set(stages)):
        raise ValueError(f"stages {tuple(stages)} must ascend from 0")
    begins = [start for start in stages if start < iterations]
    return list(zip(begins, [*begins[1:], iterations], strict=True))


def is_passing(error: Exception) -> bool:
    """Whether a failure is the machine's: memory that others hold, a full disk. The last checkpoint is good then."""
    return _lacks_memory(error) or isinstance(error, OSError)


def _lacks_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def explain(error: Exception, config: MethodConfig) -> str:
    """One sentence for any failure of a run."""
    if isinstance(error, MedsegError):
        return str(error)
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    if _lacks_memory(error):
        patch = getattr(config, "patch", None)
        return (
            f"out of memory at patch {patch}; lower patch, width or the batch, or set cache_gb below {config.cache_gb}"
        )
    return f"training failed: {type(error).__name__}: {reason}"

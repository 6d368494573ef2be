"""`medseg train`: from folders and typed settings to a training job."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseg.cases import Case, load_cases
from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.files import read_json, write_json
from medseg.methods import method_class
from medseg.methods.base import MethodConfig
from medseg.training.device import pick_device
from medseg.training.labels import name_labels
from medseg.training.run import TrainingJob, train
from medseg.training.run_folder import RunFolder
from medseg.training.settings import build_config
from medseg.training.split import Split, SplitManifest, split_first, with_groups, without_labels

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainRequest:
    """What was typed after `medseg train`; None where nothing was.

    Attributes:
        typed: settings of the method from options and `--set`.
        overwrite: replace the finished run in `out`.
        split: JSON file with the ids of the validation cases; replaces the hash rule (used by the server).
    """

    method: str
    data: tuple[Path, ...]
    out: Path
    preset: str | None = None
    labelled: int | None = None
    typed: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    config: Path | None = None
    resume: bool = False
    overwrite: bool = False
    watch_pids: tuple[int, ...] = ()
    split: Path | None = None


def train_command(request: TrainRequest) -> dict[str, Any]:
    """Prepare and run.

    Returns:
        The content of `metrics.json`.

    Raises:
        ConflictError: `out` holds a run, finished or not, and neither `resume` nor `overwrite` says what to do with it.
        MedsegError: bad data or settings.
    """
    folder, decided = RunFolder(request.out), request.resume or request.overwrite
    if not decided and folder.finished:
        raise ConflictError(
            f"--out {request.out} holds a finished run; choose another --out, continue that run with --resume "
            "(more --iterations), or replace it with --overwrite"
        )
    if not decided and folder.checkpoint.exists():
        raise ConflictError(
            f"--out {request.out} holds an unfinished run; continue it with --resume, begin anew with --overwrite, or "
            "choose another --out"
        )
    preset = request.preset or ("paper" if pick_device(request.device).type == "cuda" else "cpu")
    config = build_config(request.method, preset, request.config, request.typed)
    kind = method_class(request.method)
    cases, found = name_labels(request.data, load_cases(request.data, config.patient_pattern), kind)
    split = _split(request, config, with_groups(cases, kind, config))
    if not split.training:
        raise MedsegError(f"no training case is left of {len(cases)}; lower validation_fraction or add cases")
    unlabelled = len(split.training) - split.labelled
    log.info("%d labelled, %d unlabelled, %d validation cases", split.labelled, unlabelled, len(split.validation))
    return train(
        TrainingJob(
            method=request.method,
            config=config,
            labels=kind.fit_labels(found),
            training=split.training,
            validation=split.validation,
            out=request.out,
            device=request.device,
            resume=request.resume,
            watch_pids=request.watch_pids,
        )
    )


def _split(request: TrainRequest, config: MethodConfig, cases: list[Case]) -> Split:
    kind = method_class(request.method)
    if request.split is not None:
        if not request.split.exists():
            raise NotFoundError(f"list of validation cases {request.split} does not exist")
        validation = set(read_json(request.split))
        if unknown := validation - {case.id for case in cases}:
            raise NotFoundError(f"{request.split} names {', '.join(sorted(unknown))}, which is no case of the data")
        used = cases if kind.describes else [case for case in cases if case.id not in validation]
        return Split(
            training=without_labels(used, validation, kind),
            validation=tuple(case for case in cases if case.id in validation and kind.is_labelled(case)),
        )
    if request.labelled is not None:
        split = split_first(cases, request.labelled, config.validation_fraction, kind)
        write_json(
            RunFolder(request.out).split,
            {
                **{case.patient: "training" for case in split.training},
                **{c.patient: "validation" for c in split.validation},
            },
        )
        return split
    return SplitManifest(RunFolder(request.out).split, config.validation_fraction).assign(cases, kind, config)

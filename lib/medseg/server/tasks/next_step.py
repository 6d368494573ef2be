"""What has to happen before a method has its first model: said to whoever asks it for a prediction, and on the page."""

from __future__ import annotations

from typing import Any

from medseg.methods import method_class
from medseg.methods.base import Supervision
from medseg.server.tasks.study import Study
from medseg.server.tasks.train_runs import TrainRuns
from medseg.training.progress import duration

NO_LABEL = (
    "no image is labelled; save at least 1 label (2, so that the model can be validated on the second), then train it"
)


def teachers(method: str) -> set[Supervision]:
    """What can teach a method by itself; a domain tells only where to learn, unlabelled images only help."""
    return set(method_class(method).supervision - {Supervision.DOMAIN, Supervision.UNLABELLED})


def needs_masks(method: str) -> bool:
    """Whether a method learns from nothing but masks (and what helps beside them)."""
    return teachers(method) == {Supervision.MASKS}


def next_step(study: Study, method: str) -> str:
    """The next step towards a first model, as a clause: `4 images are labelled; train it`."""
    after_training = _of_last_training(TrainRuns(study.folder / method).stats())
    if after_training:
        return after_training
    labelled = len(study.labelled())
    if needs_masks(method) and labelled == 0:
        return NO_LABEL
    if needs_masks(method) and labelled == 1:
        return "1 image is labelled; label 1 more, so that one can validate, then train it"
    if method_class(method).describes or not teachers(method):
        return "it learns from the images alone; train it"
    if labelled == 0:
        return f"it learns from {' or '.join(sorted(teachers(method)))}; once images have some, train it"
    return f"{labelled} image{'s are' if labelled != 1 else ' is'} labelled; train it"


def _of_last_training(stats: dict[str, Any]) -> str:
    """What the last training, as `TrainRuns.stats` tells it, leaves to do; empty before the first one."""
    state = stats.get("state")
    at = f" at iteration {stats['iteration']} of {stats['iterations']}" if stats.get("iterations") else ""
    if state == "running":
        left = f", {duration(stats['eta_seconds'])} left" if stats.get("eta_seconds") else ""
        return f"its first training is running{at}{left}; wait for it"
    if state == "stopped":
        return f"its training was stopped{at}; train it again, which continues there"
    if state == "failed":
        return f"its training failed ({str(stats['error']).rstrip('.')}); mend that, then train it again"
    if state == "done":
        reason = (stats.get("decision") or {}).get("reason") or "the candidate was not published"
        return f"its training ended without one ({reason.rstrip('.')}); train it again"
    return ""

"""The gate: the only door through which a trained model becomes the one that is served.

Candidate and current champion are measured on the same frozen validation cases. Rules, in this order:

1. A candidate that cannot be loaded, holds a weight that is not finite, fails on a validation case or measures a value
   that is not finite is rejected.
2. Without a champion the candidate is published, with its metrics where there are validation cases.
3. A champion that cannot be loaded or run any more, or that has a label which the candidate lacks or numbers otherwise,
   cannot be compared: the candidate is published, and the note says so. A rollback stays possible. Where the champion
   fails for want of memory or disk, it stays. Labels that only the candidate knows are compared: the champion misses
   them.
4. Without validation cases nothing can be compared: the candidate is published as "not validated", unless the champion
   was validated when it was published; then the champion stays.
5. Otherwise the candidate is published if its mean quality (`Method.quality`) is higher than the champion's by more
   than `eps`.

Validation images that cannot be read are left out for both models and named. A rejected candidate is written down with
its metrics (`ModelRegistry.reject`) and is no version. The champion's measurements are used again while the validation
files, byte by byte, and the software stay the same.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from medseg import __version__
from medseg.cases import Case
from medseg.errors import ConflictError, MedsegError
from medseg.files import read_json, write_json
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.methods.base import Method
from medseg.training.file_lock import file_lock
from medseg.training.registry import ModelRegistry, Version
from medseg.training.version_store import CONFIG, WEIGHTS, finite, read_config
from medseg.transforms.io import read_image, read_mask

logger = logging.getLogger(__name__)

GATE_SECONDS = 3600.0  # ours: longest wait for another gate of the same method, which may evaluate many volumes
_ATTEMPTS = 3  # a person may move the champion while the gate measures; then it is compared again
_STORED = "validation.json"


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        published: whether the candidate is served now.
        version: its number; None where it was rejected.
        reason: one sentence for people.
        candidate: `quality`, `mean`, `cases`, `missed` of the candidate; None where it was not measured.
        incumbent: the same of the champion it met, and its `version`.
    """

    published: bool
    version: int | None
    reason: str
    candidate: dict[str, Any] | None = None
    incumbent: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        found: dict[str, Any] = finite(asdict(self))
        return found


@dataclass(frozen=True)
class _Verdict:
    publish: bool
    reason: str
    candidate: dict[str, Any] | None = None
    incumbent: dict[str, Any] | None = None


def gate(
    registry: ModelRegistry,
    method_name: str,
    candidate_run: Path,
    validation: Sequence[Case],
    device: str = "cpu",
    eps: float = 0.0,
) -> Decision:
    """Publish a candidate if it is better than the champion.

    Args:
        registry: where the champion is and the candidate goes.
        method_name: the method's name.
        candidate_run: folder with the candidate's `model.safetensors` and `config.json`.
        validation: frozen validation cases; those without a mask are ignored.
        device: where to run the models.
        eps: by how much the mean quality must be higher, in [0, 1].

    Raises:
        MedsegError: `eps` is no such number.
        ConflictError: the champion was moved again and again meanwhile.
    """
    if not 0 <= eps < 1:
        raise MedsegError(f"eps is {eps}; give the least gain in quality, in 0..1")
    with file_lock(registry.root / registry.study / method_name / ".gate.lock", GATE_SECONDS):
        cases, unreadable = _readable(validation, method_class(method_name))
        for _ in range(_ATTEMPTS):
            served, champion = registry.champion_number(method_name), registry.champion(method_name)
            if champion is not None and registry.serves(method_name, candidate_run):
                # A run that was killed between publish and its own end meets itself here.
                reason = f"version {champion.number} is this very model and is served already"
                return Decision(True, champion.number, reason, champion.metrics.get("validation"))
            judge = _Judge(cases, device, eps)
            verdict = judge.compare(candidate_run, champion)
            reason = " ".join([verdict.reason, *unreadable])
            try:
                decision = _carry_out(registry, method_name, candidate_run, served, verdict, reason)
            except ConflictError as error:
                logger.info("%s", error)
                continue
            if decision.version is not None and verdict.candidate is not None:
                mark = judge.mark(read_config(candidate_run).get("labels", {}))
                _store(registry.version(method_name, decision.version), mark, verdict.candidate)
            logger.info("gate of %s: %s", method_name, decision.reason)
            return decision
    raise ConflictError(f"the champion of {method_name} was moved {_ATTEMPTS} times during the gate; train once more")


def _carry_out(
    registry: ModelRegistry, method: str, run: Path, served: int | None, verdict: _Verdict, reason: str
) -> Decision:
    metrics = {
        "quality": verdict.candidate["quality"] if verdict.candidate else None,
        "validation": verdict.candidate,
        "incumbent": verdict.incumbent,
    }
    if not verdict.publish:
        registry.reject(method, run, metrics, reason)
        return Decision(False, None, reason, verdict.candidate, verdict.incumbent)
    number = registry.publish(method, run, metrics, reason)
    registry.promote(method, number, expected=served)
    return Decision(True, number, f"version {number} published: {reason}", verdict.candidate, verdict.incumbent)


class _Judge:
    """Compares two models on the same cases."""

    def __init__(self, cases: Sequence[Case], device: str, eps: float) -> None:
        self.cases, self.device, self.eps = cases, device, eps
        self.fingerprint = _fingerprint(cases, device) if cases else ""

    def mark(self, labels: dict[str, int]) -> str:
        """What measurements on these labels depend on."""
        return f"{self.fingerprint} {json.dumps(labels, sort_keys=True)}"

    def compare(self, run: Path, champion: Version | None) -> _Verdict:
        """Apply the rules."""
        flaw = _flaw(run)
        if flaw:
            return _Verdict(False, f"rejected: {flaw}.")
        try:
            candidate = self._measure(run)
        except Exception as error:  # a model that fails on an image must not be served
            return _Verdict(False, f"rejected: the candidate fails on the validation cases ({_first_line(error)}).")
        if candidate and not _is_finite(candidate):
            return _Verdict(False, "rejected: the candidate's metrics are not finite.", candidate)
        if champion is None:
            return _Verdict(True, f"first model, {_quality(candidate)}.", candidate)
        labels, before = (read_config(folder).get("labels", {}) for folder in (run, champion.folder))
        if not before.items() <= labels.items():
            old, new = (_label_names(folder) for folder in (champion.folder, run))
            why = f"the labels changed from {old} to {new}, not compared with version {champion.number}"
            return _Verdict(True, f"{why}; {_quality(candidate)}.", candidate)
        if candidate is None:
            return _unvalidated(champion)
        return self._against(champion, candidate, labels)

    def _against(self, champion: Version, candidate: dict[str, Any], labels: dict[str, int]) -> _Verdict:
        try:
            incumbent = self._champion_metrics(champion, labels)
        except (OSError, MemoryError, torch.OutOfMemoryError) as error:  # says nothing of the champion
            why = f"version {champion.number} could not be measured ({_first_line(error)})"
            return _Verdict(False, f"rejected: {why}, so there is nothing to compare with; train again.", candidate)
        except Exception as error:
            why = f"version {champion.number} does not run any more ({_first_line(error)})"
            return _Verdict(True, f"{why}; {_quality(candidate)}.", candidate)
        gain = candidate["quality"] - incumbent["quality"]
        figures = f"{candidate['quality']:.4f} against {incumbent['quality']:.4f} of version {champion.number}"
        figures += f" on {len(self.cases)} validation case{'s' * (len(self.cases) > 1)}"
        if gain > self.eps:
            return _Verdict(True, f"better, {figures}.", candidate, incumbent)
        limit = f" (at least {self.eps:g} is asked for)" if self.eps else ""
        return _Verdict(False, f"rejected: not better, {figures}{limit}.", candidate, incumbent)

    def _champion_metrics(self, champion: Version, labels: dict[str, int]) -> dict[str, Any]:
        """The champion's metrics on the candidate's labels: one that it does not know yet counts as missed."""
        stored = read_json(champion.folder / _STORED, default={})
        if stored.get("fingerprint") == self.mark(labels):
            return {"version": champion.number, **stored["metrics"]}
        metrics = self._measure(champion.folder, labels)
        assert metrics is not None
        if not _is_finite(metrics):
            raise MedsegError("its metrics are not finite")
        _store(champion, self.mark(labels), metrics)
        return {"version": champion.number, **metrics}

    def _measure(self, folder: Path, labels: dict[str, int] | None = None) -> dict[str, Any] | None:
        predictor = Predictor.from_folder(folder, self.device)  # also where there is no case: it has to load
        predictor.method.labels = dict(labels or predictor.method.labels)
        return evaluate(predictor, self.cases).to_dict() if self.cases else None


def _unvalidated(champion: Version) -> _Verdict:
    if champion.metrics.get("quality") is not None:
        why = f"there is no validation case to compare with version {champion.number}, which was validated"
        return _Verdict(False, f"rejected: {why}.")
    return _Verdict(True, "not validated: there is no labelled validation case yet, the newest model is served.")


def _readable(validation: Sequence[Case], kind: type[Method]) -> tuple[list[Case], list[str]]:
    """The labelled cases whose files can be read, and a sentence about each of the others."""
    usable, remarks = [], []
    for case in validation:
        if not kind.is_labelled(case):
            continue
        try:
            image, mask = read_image(case.image), read_mask(case.label) if case.label else None
            if mask is not None and image.ndim != mask.ndim:
                raise MedsegError(f"its mask has {mask.ndim - 1} axes and its image {image.ndim - 1}")
            usable.append(case)
        except Exception as error:  # any reader's error: one bad file must not stop the loop
            remarks.append(f"Validation case {case.id} was left out: {_first_line(error)}.")
    for remark in remarks:
        logger.warning("%s", remark)
    return usable, remarks


def _flaw(run: Path) -> str | None:
    """Why a run folder's weights cannot be a model; None where they can."""
    if not (run / WEIGHTS).is_file() or not (run / CONFIG).is_file():
        return f"{run} lacks {WEIGHTS} or {CONFIG}"
    try:
        with safe_open(run / WEIGHTS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  not a dict
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    return f"weight {name} holds NaN or infinity"
    except Exception as error:  # safetensors has its own exception type for each version
        return f"{WEIGHTS} is damaged ({_first_line(error)})"
    return None


def _is_finite(metrics: dict[str, Any]) -> bool:
    values = [metrics["quality"], *metrics["mean"].values()]
    return all(math.isfinite(value) for value in values)


def _fingerprint(cases: Sequence[Case], device: str) -> str:
    """Changes with the content of any validation file, and with the software that measures."""
    digest = hashlib.sha256(f"{__version__} {torch.__version__} {torch.device(device).type}".encode())
    for case in sorted(cases, key=lambda case: case.id):
        digest.update(f"{case.id} {case.weak.model_dump_json() if case.weak else ''}".encode())
        for path in (path for path in (case.image, case.label) if path is not None):
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _store(version: Version, fingerprint: str, metrics: dict[str, Any]) -> None:
    """Keep a version's measurements for the next gate. The version may have been pruned meanwhile."""
    if version.folder.is_dir():
        write_json(version.folder / _STORED, {"fingerprint": fingerprint, "metrics": finite(metrics)})


def _quality(metrics: dict[str, Any] | None) -> str:
    return f"validation quality {metrics['quality']:.4f}" if metrics else "not validated"


def _label_names(folder: Path) -> str:
    return ", ".join(f"{name}={index}" for name, index in read_config(folder).get("labels", {}).items()) or "none"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")

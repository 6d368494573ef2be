"""Measures two models on the same validation cases and says whether the one may replace the other.

The rules stand in `medseg.training.gate`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.inference.evaluation import evaluate
from medseg.inference.predictor import Predictor
from medseg.methods.base import Method
from medseg.sources import code_hash
from medseg.training.comparison import LARGEST_FALL, Comparison, compare_groups, group_means, mean_over_groups
from medseg.training.registry import Version
from medseg.training.version_store import CONFIG, WEIGHTS, finite, read_config
from medseg.transforms.io import read_image, read_mask

logger = logging.getLogger(__name__)

_STORED = "validation.json"


class _UnusableError(Exception):
    """The champion can never be compared again."""


@dataclass(frozen=True)
class Verdict:
    """Whether to publish the candidate, why, and what both measured."""

    publish: bool
    reason: str
    candidate: dict[str, Any] | None = None
    incumbent: dict[str, Any] | None = None


class Judge:
    """Compares two models on the same cases; the candidate's method tells their groups, and how good a value is."""

    def __init__(
        self, cases: Sequence[Case], device: str, eps: float, among: Sequence[Case] = (), ties: bool = False
    ) -> None:
        self.cases, self.device, self.eps, self.ties = cases, device, eps, ties
        self.among = list({case.id: case for case in (*among, *cases)}.values())
        self.fingerprint = _fingerprint(cases, device) if cases else ""

    def mark(self, labels: dict[str, int]) -> str:
        """What measurements on these labels depend on."""
        return f"{self.fingerprint} {json.dumps(labels, sort_keys=True)}"

    def compare(self, run: Path, champion: Version | None) -> Verdict:
        """Apply the rules."""
        flaw = _flaw(run)
        if flaw:
            return Verdict(False, f"rejected: {flaw}.")
        try:
            predictor = Predictor.from_folder(run, self.device)  # also where there is no case: it has to load
            self.method = predictor.method
            self.groups = self.method.group_cases(self.among, self.method.config)
            candidate = self._rate(evaluate(predictor, self.cases).to_dict()) if self.cases else None
            self.method.network.to("cpu")  # the GPU is the champion's now
        except Exception as error:  # a model that fails on an image must not be served
            return Verdict(False, f"rejected: the candidate fails on the validation cases ({_first_line(error)}).")
        if candidate and not _is_finite(candidate):
            return Verdict(False, "rejected: the candidate's metrics are not finite.", candidate)
        if champion is None:
            return Verdict(True, f"first model, {_quality(candidate)}.", candidate)
        new, old = (read_config(folder) for folder in (run, champion.folder))
        if why := self._difference(new, old):
            sentence = f"{why}, not compared with version {champion.number}; {_quality(candidate)}."
            return Verdict(True, sentence, candidate)
        if candidate is None:
            return _unvalidated(champion)
        return self._against(champion, candidate, new.get("labels", {}))

    def _difference(self, new: dict[str, Any], old: dict[str, Any]) -> str:
        """Why two models do not compare, by what their folders say; "": they do."""
        labels, before = (about.get("labels", {}) for about in (new, old))
        if not before.items() <= labels.items():
            return f"the labels changed from {_label_names(before)} to {_label_names(labels)}"
        return self.method.incomparable(new.get("config", {}), old.get("config", {}))

    def _against(self, champion: Version, candidate: dict[str, Any], labels: dict[str, int]) -> Verdict:
        try:
            incumbent = self._champion_metrics(champion, labels)
        except _UnusableError as error:
            why = f"version {champion.number} does not run any more ({_first_line(error)})"
            return Verdict(True, f"{why}; {_quality(candidate)}.", candidate)
        except Exception as error:  # a GPU that fails once says nothing of the champion
            why = f"version {champion.number} could not be measured: {_first_line(error)}"
            return Verdict(False, f"rejected: {why}; there is nothing to compare with, train again.", candidate)
        found = compare_groups(self._qualities(candidate), self._qualities(incumbent), self.groups)
        figures = f"{candidate['quality']:.4f} against {incumbent['quality']:.4f} of version {champion.number}"
        figures += f" on {len(self.cases)} validation case{'s' * (len(self.cases) > 1)}{_in_groups(found)}"
        if self.ties and found.gain == 0:
            return Verdict(True, f"as good with today's labels, {figures}.", candidate, incumbent)
        if found.gain <= self.eps:
            limit = f" (at least {self.eps:g} is asked for)" if self.eps else ""
            return Verdict(False, f"rejected: not better, {figures}{limit}.", candidate, incumbent)
        if found.fallen:
            return Verdict(False, f"rejected: {_falls(found)}; {figures}.", candidate, incumbent)
        return Verdict(True, f"better, {figures}.", candidate, incumbent)

    def _champion_metrics(self, champion: Version, labels: dict[str, int]) -> dict[str, Any]:
        """The champion's metrics on the candidate's labels: one that it does not know yet counts as missed."""
        stored = read_json(champion.folder / _STORED, default={})
        if stored.get("fingerprint") == self.mark(labels):
            metrics = stored["metrics"]
        else:
            metrics = self._measure_champion(champion.folder, labels)
            store_metrics(champion, self.mark(labels), metrics)
        return {"version": champion.number, **self._rate(metrics)}  # groups may be others than when it was stored

    def _measure_champion(self, folder: Path, labels: dict[str, int]) -> dict[str, Any]:
        try:
            predictor = Predictor.from_folder(folder, self.device)
        except MedsegError as error:
            if isinstance(error.__cause__, OSError | MemoryError):  # the disk's fault, or that of others
                raise
            raise _UnusableError(str(error)) from error
        predictor.method.labels = dict(labels)
        try:
            metrics = evaluate(predictor, self.cases, go_on=True).to_dict()
        except MedsegError as error:  # it refuses every single case
            skipped = [{"case": case.id, "reason": str(error)} for case in self.cases]
            metrics = {"cases": {}, "mean": {}, "missed": 0, "skipped": skipped}
        self._check_refusals(metrics)
        if not _is_finite(self._rate(metrics)):
            raise _UnusableError("its metrics are not finite")
        return metrics

    def _check_refusals(self, metrics: dict[str, Any]) -> None:
        """A model refuses what it does not know, whole groups; anything else is a failure that may pass.

        Raises:
            MedsegError: it refused a case of a group that it knows, or one that cannot be read any more.
        """
        refused = {entry["case"]: entry["reason"] for entry in metrics["skipped"]}
        known = {self.groups[case] for case in metrics["cases"]}
        strange = [case for case in refused if self.groups[case] in known]
        if strange:
            raise MedsegError(f"it refuses validation case {strange[0]} ({_first_line(refused[strange[0]])})")
        _, remarks = readable_cases([case for case in self.cases if case.id in refused], type(self.method))
        if remarks:
            raise MedsegError(remarks[0])

    def _qualities(self, metrics: dict[str, Any]) -> dict[str, float]:
        return self.method.qualities(metrics["cases"])

    def _rate(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Metrics with `quality`, the mean over groups; cases without metrics are missed."""
        refused = [case.id for case in self.cases if case.id not in metrics["cases"]]
        qualities = {**dict.fromkeys(refused, 0.0), **self._qualities(metrics)}
        means = group_means(qualities, self.groups)
        return {**metrics, "quality": mean_over_groups(means), **({"groups": means} if len(means) > 1 else {})}


def _in_groups(found: Comparison) -> str:
    """What the figures are means of, where there are several groups."""
    if len(found.candidate) < 2:
        return ""
    new = f"; {', '.join(found.unknown)} new to it" if found.unknown else ""
    return f" in {len(found.candidate)} groups that count alike{new}"


def _falls(found: Comparison) -> str:
    """The groups that lose too much, with their figures."""
    each = [f"{name} from {found.champion[name]:.4f} to {found.candidate[name]:.4f}" for name in found.fallen]
    return f"{', '.join(each)} would fall by more than {LARGEST_FALL:g}, although the mean rises"


def _unvalidated(champion: Version) -> Verdict:
    if champion.metrics.get("quality") is not None:
        why = f"there is no validation case to compare with version {champion.number}, which was validated"
        return Verdict(False, f"rejected: {why}.")
    return Verdict(True, "not validated: there is no labelled validation case yet, the newest model is served.")


def readable_cases(validation: Sequence[Case], kind: type[Method]) -> tuple[list[Case], list[str]]:
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
    """Changes with the content of any validation file, with weak labels, and with the software that measures."""
    digest = hashlib.sha256(f"{code_hash()} {torch.__version__} {torch.device(device).type}".encode())
    for case in sorted(cases, key=lambda case: case.id):
        weak = case.weak.model_dump_json() if case.weak else ""
        digest.update(f"{case.id} {case.domain} {case.names} {weak}".encode())
        for role in ("image", "label", "regions", "organ"):
            path = getattr(case, role)
            if path is not None:
                digest.update(role.encode())
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def store_metrics(version: Version, fingerprint: str, metrics: dict[str, Any]) -> None:
    """Keep a version's measurements for the next gate. The version may have been pruned meanwhile."""
    if version.folder.is_dir():
        write_json(version.folder / _STORED, {"fingerprint": fingerprint, "metrics": finite(metrics)})


def _quality(metrics: dict[str, Any] | None) -> str:
    return f"validation quality {metrics['quality']:.4f}" if metrics else "not validated"


def _label_names(labels: dict[str, int]) -> str:
    return ", ".join(f"{name}={index}" for name, index in labels.items()) or "none"


def _first_line(error: BaseException | str) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")

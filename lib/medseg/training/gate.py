"""The gate: the only door through which a trained model becomes the one that is served.

Candidate and current champion are measured on the same frozen validation cases. Rules, in this order:

1. A candidate that cannot be loaded, holds a weight that is not finite, fails on a validation case or measures a value
   that is not finite is rejected.
2. Without a champion the candidate is published, with its metrics where there are validation cases.
3. A champion that cannot be loaded any more, that has a label which the candidate lacks or numbers otherwise, or of
   which the method says so (`Method.incomparable`) cannot be compared: the candidate is published, and the note says
   so. A rollback stays possible. Where the champion loads and cannot be measured (want of memory or disk, a failing
   GPU, anything unforeseen), it stays. Labels that only the candidate knows are compared: the champion misses them.
4. Without validation cases nothing can be compared: the candidate is published as "not validated", unless the champion
   was validated when it was published; then the champion stays.
5. Otherwise the candidate is published if its quality is higher than the champion's by more than `eps`, and no group
   that the champion knows falls by more than `comparison.LARGEST_FALL`. Quality is the mean of `Method.quality` in each
   group (`Method.group_cases`: domains, data sets), each group counting alike. Where the champion refuses all cases of
   a group (a domain that is new), they count as missed.

Validation images that cannot be read are left out for both models and named. A rejected candidate is written down with
its metrics (`ModelRegistry.reject`) and is no version. The champion's measurements are used again while the validation
files, byte by byte, their weak labels and the software stay the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medseg.cases import Case
from medseg.errors import ConflictError, MedsegError
from medseg.methods import method_class
from medseg.training.file_lock import file_lock
from medseg.training.judge import Judge, Verdict, readable_cases, store_metrics
from medseg.training.registry import ModelRegistry
from medseg.training.version_store import finite, read_config

logger = logging.getLogger(__name__)

GATE_SECONDS = 3600.0  # ours: longest wait for another gate of the same method, which may evaluate many volumes
_ATTEMPTS = 3  # a person may move the champion while the gate measures; then it is compared again


@dataclass(frozen=True)
class Decision:
    """What the gate decided.

    Attributes:
        published: whether the candidate is served now.
        version: its number; None where it was rejected.
        reason: one sentence for people.
        candidate: `quality`, `mean`, `cases`, `missed` of the candidate, and `groups`, the mean of each, if several;
            None where it was not measured.
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


def gate(
    registry: ModelRegistry,
    method_name: str,
    candidate_run: Path,
    validation: Sequence[Case],
    device: str = "cpu",
    eps: float = 0.0,
    among: Sequence[Case] = (),
    ties: bool = False,
) -> Decision:
    """Publish a candidate if it is better than the champion.

    Args:
        registry: where the champion is and the candidate goes.
        method_name: the method's name.
        candidate_run: folder with the candidate's `model.safetensors` and `config.json`.
        validation: frozen validation cases; those without a mask are ignored.
        device: where to run the models.
        eps: by how much the quality must be higher, in [0, 1].
        ties: an equal quality is enough, for a candidate that has the champion's weights and knows more labels.
        among: all cases of the study: what group a case is in may follow from the others; empty: `validation`.

    Raises:
        MedsegError: `eps` is no such number.
        ConflictError: the champion was moved again and again meanwhile.
    """
    if not 0 <= eps < 1:
        raise MedsegError(f"eps is {eps}; give the least gain in quality, in 0..1")
    with file_lock(registry.root / registry.study / method_name / ".gate.lock", GATE_SECONDS):
        cases, unreadable = readable_cases(validation, method_class(method_name))
        for _ in range(_ATTEMPTS):
            served, champion = registry.champion_number(method_name), registry.champion(method_name)
            if champion is not None and registry.serves(method_name, candidate_run):
                # A run that was killed between publish and its own end meets itself here.
                reason = f"version {champion.number} is this very model and is served already"
                return Decision(True, champion.number, reason, champion.metrics.get("validation"))
            judge = Judge(cases, device, eps, among, ties)
            verdict = judge.compare(candidate_run, champion)
            reason = " ".join([verdict.reason, *unreadable])
            try:
                decision = _carry_out(registry, method_name, candidate_run, served, verdict, reason)
            except ConflictError as error:
                logger.info("%s", error)
                continue
            if decision.version is not None and verdict.candidate is not None:
                mark = judge.mark(read_config(candidate_run).get("labels", {}))
                store_metrics(registry.version(method_name, decision.version), mark, verdict.candidate)
            logger.info("gate of %s: %s", method_name, decision.reason)
            return decision
    raise ConflictError(f"the champion of {method_name} was moved {_ATTEMPTS} times during the gate; train once more")


def _carry_out(
    registry: ModelRegistry, method: str, run: Path, served: int | None, verdict: Verdict, reason: str
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

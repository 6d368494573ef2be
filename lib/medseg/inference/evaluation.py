"""Per-case metrics of a model on cases with masks, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.metrics.table import mean_table
from medseg.transforms.io import read_image


@dataclass(frozen=True)
class Evaluation:
    """Metrics of each case, their means, and what is missing.

    Attributes:
        cases: case id -> metric -> value.
        mean: means over cases.
        quality: mean key quality figure, in [0, 1].
        missed: structures of which nothing was predicted.
        skipped: case id -> why it could not be evaluated.
    """

    cases: dict[str, dict[str, float]]
    mean: dict[str, float]
    quality: float
    missed: int
    skipped: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `cases`, `mean` and `missed` are the contract of `medseg evaluate`."""
        skipped = [{"case": case, "reason": reason} for case, reason in self.skipped.items()]
        return {
            "cases": self.cases,
            "mean": self.mean,
            "quality": self.quality,
            "missed": self.missed,
            "skipped": skipped,
        }


def evaluate(
    predictor: Predictor,
    cases: Sequence[Case],
    progress: Callable[[Case, dict[str, float]], object] | None = None,
    *,
    go_on: bool = False,
) -> Evaluation:
    """Predict and measure every case that is labelled.

    Args:
        predictor: the model.
        cases: those that are not labelled, by `Method.is_labelled`, are left out.
        progress: called after each case, with {} after one that is left out.
        go_on: leave out a case whose files cannot be used, with the reason, instead of ending.

    Raises:
        MedsegError: no case is labelled, none can be used, or (without `go_on`) one cannot.
    """
    known = [case for case in cases if predictor.method.is_labelled(case)]
    if not known:
        raise MedsegError(f"none of the {len(cases)} cases has a label to compare with; add masks under labels/")
    table, skipped = {}, {}
    for case in known:
        try:
            table[case.id] = evaluate_case(predictor, case)
        except MedsegError as error:
            skipped[case.id] = str(error)
            if not go_on or len(skipped) == len(known):
                raise
        if progress:
            progress(case, table.get(case.id, {}))
    qualities = list(predictor.method.qualities(table).values())
    return Evaluation(
        cases=table,
        mean=mean_table(table),
        quality=math.fsum(qualities) / max(len(qualities), 1),
        missed=int(sum(metrics.get("missed", 0) for metrics in table.values())),
        skipped=skipped,
    )


def evaluate_case(predictor: Predictor, case: Case) -> dict[str, float]:
    """Metrics of one case on its image's own grid."""
    prediction = predictor.predict(case)
    if case.label is None:
        return predictor.method.evaluate(prediction, case, None)
    truth = predictor.method.read_truth(case, read_image(case.image))
    return predictor.method.evaluate(prediction, case, truth)

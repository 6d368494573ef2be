"""Per-case metrics of a model on cases with masks, and their means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.metrics.table import mean_table
from medseg.transforms.io import read_image


@dataclass(frozen=True)
class Evaluation:
    """Metrics of each case, their mean over cases, the mean key quality in [0, 1], and the structures missed."""

    cases: dict[str, dict[str, float]]
    mean: dict[str, float]
    quality: float
    missed: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `cases`, `mean` and `missed` are the contract of `medseg evaluate`."""
        return {"cases": self.cases, "mean": self.mean, "quality": self.quality, "missed": self.missed}


def evaluate(
    predictor: Predictor, cases: Sequence[Case], progress: Callable[[Case, dict[str, float]], object] | None = None
) -> Evaluation:
    """Predict and measure every case that is labelled.

    Args:
        predictor: the model.
        cases: those that are not labelled, by `Method.is_labelled`, are left out.
        progress: called after each case.

    Raises:
        MedsegError: no case is labelled.
    """
    known = [case for case in cases if predictor.method.is_labelled(case)]
    if not known:
        raise MedsegError(f"none of the {len(cases)} cases has a label to compare with; add masks under labels/")
    table = {}
    for case in known:
        table[case.id] = evaluate_case(predictor, case)
        if progress:
            progress(case, table[case.id])
    qualities = [predictor.method.quality(metrics) for metrics in table.values()]
    return Evaluation(
        cases=table,
        mean=mean_table(table),
        quality=math.fsum(qualities) / len(qualities),
        missed=int(sum(metrics.get("missed", 0) for metrics in table.values())),
    )


def evaluate_case(predictor: Predictor, case: Case) -> dict[str, float]:
    """Metrics of one case on its image's own grid."""
    prediction = predictor.predict(case)
    if case.label is None:
        return predictor.method.evaluate(prediction, case, None)
    truth = predictor.method.read_truth(case, read_image(case.image))
    return predictor.method.evaluate(prediction, case, truth)

"""Next sample: a ranking of the unlabelled images, minus those that others hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from monailabel.interfaces.tasks.strategy import Strategy

from medseg.acquisition.cold_start import COLD_START
from medseg.acquisition.score_store import StoredScore
from medseg.acquisition.strategies import (
    Candidate,
    Scored,
    by_score,
    diverse,
    first,
    random_order,
    stratified,
    weakest_first,
)
from medseg.methods import method_class
from medseg.methods.base import Supervision
from medseg.server.tasks.study import Study
from medseg.training.registry import Version

logger = logging.getLogger(__name__)

Rank = Callable[[Sequence[Candidate], Sequence[Sequence[float]]], list[Scored]]


class MedsegStrategy(Strategy):
    """A query strategy with leases.

    The reply holds the image's `id`, the reason (`why`), the value it was ranked by (`score`) and how long it is held
    for the client (`lease_minutes`); {} where no image is left. Request key: `client_id`.

    Args:
        study: the study.
        name: the strategy's name.
        description: for `/info/`.
        rank: orders candidates; its second argument holds the features of labelled images.
        method: whose scores it ranks by; None where it needs none.
    """

    def __init__(self, study: Study, name: str, description: str, rank: Rank, method: str | None = None) -> None:
        super().__init__(description)
        self.study, self.name, self.method = study, name, method
        self._rank = rank

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Choose and lease an image."""
        client = str(request.get("client_id") or "")
        lease = self.study.leases.take(self.ranking(), client, self.name)
        if lease is None:
            logger.info("%s: no image left for %r", self.name, client)
            return {}
        return {
            "id": lease.image,
            "why": lease.why,
            "score": lease.value,
            "lease_minutes": self.study.settings.lease_minutes,
        }

    def ranking(self) -> list[Scored]:
        """All unlabelled images, best first.

        Images whose weak labels teach as much as a mask go last, because who enters those would get them again for
        ever; after them come the images that could not be scored, which most likely nobody can open.
        """
        methods = [self.method] if self.method else list(self.study.settings.models)
        failures = self.study.failures() | (self.study.failures(self.method) if self.method else {})
        ranked = [replace(s, value=None, why=failures[s.id]) if s.id in failures else s for s in self._order()]
        return sorted(ranked, key=lambda scored: (scored.id in failures, self.study.is_taught(scored.id, methods)))

    def _order(self) -> list[Scored]:
        """All unlabelled images in the strategy's own order, best first."""
        pool = self.study.unlabelled()
        if self.method is None:
            return self._rank([Candidate(identifier) for identifier in pool], ())
        champion = self.study.registry.champion(self.method)
        version = champion.number if champion else -1
        scores = {k: s for k, s in self.study.scores(self.method).all().items() if s.version == version}
        ranked = self._rank([_candidate(i, scores.get(i)) for i in pool], self._covered(scores))
        if champion is not None:
            return ranked
        return [Scored(s.id, s.value, "no model yet, random order") for s in ranked]

    def _covered(self, scores: Mapping[str, StoredScore]) -> list[tuple[float, ...]]:
        """Features of images that were scored by the present model and labelled since, or are held by an annotator."""
        taken = {*self.study.labelled(), *(lease.image for lease in self.study.leases.active())}
        return [scores[i].features for i in sorted(taken) if i in scores and scores[i].features]


class StratifiedStrategy(MedsegStrategy):
    """Random order spread over domains, or over patients in a study of one domain.

    Args:
        study: the study.
        seed: of the stable random order.
    """

    def __init__(self, study: Study, seed: int) -> None:
        super().__init__(study, "stratified", "random, spread over domains or patients", lambda pool, _: [])
        self._seed = seed

    def _order(self) -> list[Scored]:
        strata = self.study.strata()
        pool = [Candidate(identifier, stratum=strata.get(identifier, "")) for identifier in self.study.unlabelled()]
        return stratified(pool, [strata.get(identifier, "") for identifier in self.study.labelled()], self._seed)


class WeakestStrategy(MedsegStrategy):
    """Domains in turn, beginning with the one on whose validation images the champion is worst.

    Args:
        study: the study.
        method: whose champion and scores are looked at.
        seed: of the stable random order.
    """

    def __init__(self, study: Study, method: str, seed: int) -> None:
        description = f"domains in turn, the one that {method} is worst at first"
        super().__init__(study, f"{method}_weakest", description, lambda pool, _: by_score(pool, seed), method)
        self._seed = seed

    def _order(self) -> list[Scored]:
        assert self.method is not None
        champion = self.study.registry.champion(self.method)
        version = champion.number if champion else -1
        scores = {k: s for k, s in self.study.scores(self.method).all().items() if s.version == version}
        strata = self.study.domains(self.method) | {k: s.group for k, s in scores.items() if s.group}
        pool = [
            replace(_candidate(identifier, scores.get(identifier)), stratum=strata.get(identifier, ""))
            for identifier in self.study.unlabelled()
        ]
        held = [strata.get(lease.image, "") for lease in self.study.leases.active()]
        return weakest_first(pool, self._standing(champion, strata), held, self._seed)

    def _standing(self, champion: Version | None, strata: Mapping[str, str]) -> dict[str, float]:
        """Mean quality of the champion on the validation images of each domain."""
        validation = (champion.metrics.get("validation") if champion else None) or {}
        metric = method_class(self.method or "").metric
        found: dict[str, list[float]] = {}
        for identifier, values in validation.get("cases", {}).items():
            if metric in values:
                found.setdefault(strata.get(identifier, ""), []).append(values[metric])
        return {name: sum(values) / len(values) for name, values in found.items()}


def make_strategies(study: Study) -> dict[str, MedsegStrategy]:
    """`<method>`: highest score first; `<method>_diverse`: spread over the pool; `<method>_weakest` of a method with
    domains: the weakest domain first; `random`; `stratified`; `first`.

    With a method that describes images without labels also `typicality` and `k_centre`, for the first labels.
    """
    seed, weight = study.settings.seed, study.settings.diversity
    found = {}
    for method in study.settings.models:
        found[method] = MedsegStrategy(
            study, method, f"what {method} is most unsure of", lambda pool, _: by_score(pool, seed), method
        )
        name = f"{method}_diverse"
        found[name] = MedsegStrategy(
            study, name, f"unsure of by {method} and unlike what is labelled", partial(_diverse, weight, seed), method
        )
        if Supervision.DOMAIN in method_class(method).supervision:
            found[f"{method}_weakest"] = WeakestStrategy(study, method, seed)
    describing = next((method for method in study.settings.models if method_class(method).describes), None)
    for name, (description, rank) in COLD_START.items() if describing else ():
        found[name] = MedsegStrategy(study, name, description, partial(_cold_start, rank, seed), describing)
    found["random"] = MedsegStrategy(study, "random", "stable random order", lambda pool, _: random_order(pool, seed))
    found["stratified"] = StratifiedStrategy(study, seed)
    found["first"] = MedsegStrategy(study, "first", "order of names", lambda pool, _: first(pool))
    return found


def _diverse(weight: float, seed: int, pool: Sequence[Candidate], covered: Sequence[Sequence[float]]) -> list[Scored]:
    return diverse(pool, covered, weight, seed)


def _cold_start(
    rank: Callable[..., list[Scored]], seed: int, pool: Sequence[Candidate], covered: Sequence[Sequence[float]]
) -> list[Scored]:
    return rank(pool, covered, seed)


def _candidate(identifier: str, score: StoredScore | None) -> Candidate:
    if score is None or score.value is None:
        return Candidate(identifier)
    return Candidate(identifier, score.value, score.why, score.features, group=score.group)

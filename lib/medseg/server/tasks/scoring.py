"""Acquisition scores over any Method, for the unlabelled images whose score is missing or out of date.

A method that describes images (`Method.describes`) describes the labelled ones as well, whichever model was served when
they were labelled: what they cover is asked for no more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.tasks.scoring import ScoringMethod

from medseg.acquisition.score_store import StoredScore
from medseg.errors import MedsegError
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.server.tasks.device import resolve_device
from medseg.server.tasks.infer import ChampionCache
from medseg.server.tasks.study import Study
from medseg.server.tasks.train import watched_pids
from medseg.training.file_lock import file_lock
from medseg.training.processes import alive

logger = logging.getLogger(__name__)

SAVE_SECONDS = 5.0  # ours: what a killed job loses at most


class MedsegScoring(ScoringMethod):
    """Scores unlabelled images with a method's champion.

    The scores go to the study's score store, not into the datastore: jobs that write the datastore's index lose updates
    of the server. Request keys: `device`, `force` (score again what is up to date).
    """

    def __init__(self, study: Study, method: str) -> None:
        super().__init__(f"what {method_class(method).title} is unsure of")
        self.study, self.method = study, method
        self.cache = ChampionCache(study, method)

    def due(self) -> list[str]:
        """Images of the pool without a current score; empty while there is no model."""
        champion = self.cache.champion()
        if champion is None:
            return []
        return self.study.scores(self.method).outdated(self.study.stamps(self._pool()), champion.number)

    def state(self) -> tuple[int | None, frozenset[str]]:
        """The present model version and the images of the pool: while they stay, there is little new to score."""
        champion = self.cache.champion()
        return (champion.number if champion else None), frozenset(self._pool())

    def _pool(self) -> list[str]:
        """Ids of the images to score."""
        labelled = self.study.labelled() if method_class(self.method).describes else []
        return sorted({*self.study.unlabelled(), *labelled})

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Score what is due.

        Returns:
            Number of images scored, skipped because they are up to date, and failed; seconds.

        Raises:
            ConflictError: there is no model yet, or another process scores.
        """
        started = time.monotonic()
        champion = self.cache.require()
        store = self.study.scores(self.method)
        with file_lock(store.path.with_suffix(".lock"), timeout=1.0):
            stamps = self.study.stamps(self._pool())
            due = list(stamps) if request.get("force") else store.outdated(stamps, champion.number)
            logger.info("scoring %d of %d images with %s version %d", len(due), len(stamps), self.method,
                        champion.number)  # fmt: skip
            failed = 0
            if due:
                device = resolve_device(request.get("device"), self.study.settings.device)
                failed = self._score_all(due, stamps, Predictor.from_folder(champion.folder, device), champion.number)
        seconds = round(time.monotonic() - started, 2)
        done = len(due) - failed
        logger.info("scored %d images, %d up to date, %d failed, %.1f s", done, len(stamps) - len(due), failed, seconds)
        return {"scored": done, "up_to_date": len(stamps) - len(due), "failed": failed, "seconds": seconds}

    def _score_all(self, due: list[str], stamps: Mapping[str, str], predictor: Predictor, version: int) -> int:
        store, keep = self.study.scores(self.method), self.study.datastore.list_images()
        waiting: list[StoredScore] = []
        failed, saved = 0, time.monotonic()
        for index, identifier in enumerate(due, start=1):
            score = self._score(identifier, stamps[identifier], predictor, version)
            failed += score.error is not None
            waiting.append(score)
            logger.info("%d/%d %s: %s", index, len(due), identifier, score.error or score.why)
            if time.monotonic() - saved > SAVE_SECONDS:
                store.update(waiting, keep)
                waiting, saved = [], time.monotonic()
            if not all(alive(pid) for pid in watched_pids()):
                logger.warning("the server is gone; scoring stops after %d of %d images", index, len(due))
                break
        store.update(waiting, keep)
        return failed

    def _score(self, identifier: str, stamp: str, predictor: Predictor, version: int) -> StoredScore:
        """One image; a failure is recorded as such, so that it does not stop the others or come back for ever."""
        try:
            score = predictor.score(self.study.case(identifier))
        except MedsegError as error:
            return StoredScore(identifier, version, stamp, None, error=str(error))
        except Exception as error:
            logger.exception("scoring %s failed", identifier)
            return StoredScore(identifier, version, stamp, None, error=f"{type(error).__name__} while scoring")
        return StoredScore(
            identifier, version, stamp, score.value, score.why, dict(score.parts), score.features, group=score.group
        )

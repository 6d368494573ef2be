"""Acquisition scores on disk: one JSON file per method, replaced atomically.

The scoring job writes, the server reads at every "next sample". A score belongs to a model version and to the image as
it was, with its regions and weak labels; what is up to date is not computed again. One process writes at a time (the
caller holds a lock).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medseg.files import read_json, write_json

DECIMALS = 5  # ours: scores and features are compared, not computed with; keeps the file small


@dataclass(frozen=True)
class StoredScore:
    """One image's score.

    Attributes:
        id: image id.
        version: number of the model version that made it.
        stamp: what was known of the image, see `medseg.stamps.case_stamp`.
        value: higher is labelled first; None where the image could not be scored.
        why: one phrase for the annotator.
        parts: the numbers the value is made of.
        features: embedding for diversity; empty where the method has none.
        error: why there is no value.
        group: values are comparable within it, see `Score.group`.
    """

    id: str
    version: int
    stamp: str
    value: float | None
    why: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)
    features: tuple[float, ...] = ()
    error: str | None = None
    group: str = ""


class ScoreStore:
    """The scores of one method.

    Args:
        path: the JSON file; it is made on the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._read: tuple[object, dict[str, StoredScore]] = (None, {})

    def all(self) -> dict[str, StoredScore]:
        """Scores by image id. The file is read again only when it changed."""
        try:
            status = self.path.stat()
        except OSError:
            return {}
        changed = (status.st_mtime_ns, status.st_ino)  # a replaced file is a new inode, also within one clock tick
        if changed != self._read[0]:
            content = read_json(self.path, default={})
            self._read = (changed, {key: _from_json(key, value) for key, value in content.items()})
        return dict(self._read[1])

    def is_current(self, identifier: str, version: int, stamp: str) -> bool:
        """Whether the image has a score (or a recorded failure) of this model version and stamp."""
        found = self.all().get(identifier)
        return found is not None and found.version == version and found.stamp == stamp

    def outdated(self, stamps: Mapping[str, str], version: int) -> list[str]:
        """Image ids without a current score, in the order given.

        Args:
            stamps: image id -> stamp of what is known of it now.
            version: number of the present model version.
        """
        known = self.all()
        return [
            key
            for key, stamp in stamps.items()
            if key not in known or known[key].version != version or known[key].stamp != stamp
        ]

    def update(self, scores: Iterable[StoredScore], keep: Iterable[str] | None = None) -> None:
        """Add or replace scores in one atomic write.

        Args:
            scores: new scores.
            keep: ids that may stay in the store; None: all.
        """
        merged = self.all() | {score.id: score for score in scores}
        allowed = set(merged) if keep is None else set(keep)
        write_json(self.path, {key: _to_json(score) for key, score in sorted(merged.items()) if key in allowed})


def _to_json(score: StoredScore) -> dict[str, Any]:
    value = asdict(score)
    del value["id"]
    value["value"] = None if score.value is None else round(score.value, DECIMALS)
    value["parts"] = {key: round(float(part), DECIMALS) for key, part in score.parts.items()}
    value["features"] = [round(float(feature), DECIMALS) for feature in score.features]
    return value


def _from_json(identifier: str, value: dict[str, Any]) -> StoredScore:
    return StoredScore(id=identifier, **{**value, "features": tuple(value.get("features", ()))})

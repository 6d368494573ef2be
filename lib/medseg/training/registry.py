"""Model registry: numbered versions of each method's model, and a pointer to the one that is served.

The truth is in files, `root/<study>/<method>/` (see `medseg.training.version_store`); MLflow mirrors it (see
`medseg.training.tracking`). Every write first changes the files and then brings MLflow in line, so an MLflow that is
down costs a warning, and the next write catches up. Reading touches the files alone and never imports MLflow.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.errors import ConflictError, MedsegError, NotFoundError
from medseg.files import read_json
from medseg.training.tracking import MlflowMirror, TrackedRun
from medseg.training.version_store import CONFIG, METRICS, WEIGHTS, VersionStore, finite, now, read_config

logger = logging.getLogger(__name__)

KEEP_VERSIONS = 10  # ours: a rollback reaches back ten rounds; a version costs the size of its weights
KEEP_REJECTIONS = 100  # ours: they hold no weights
ANY = -1  # `promote(expected=ANY)`: whatever the champion is
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]*")


@dataclass(frozen=True)
class Version:
    """A published model.

    Attributes:
        study: what the model was trained for; empty where the registry serves one study.
        method: the method's name.
        number: 1, 2, 3, ... within study and method; never given twice.
        folder: holds `model.safetensors` and `config.json`.
        metrics: what was known when it was published, and the training's own metrics under `training`.
        created: ISO time.
        champion: whether this version is the one being served.
        note: a sentence, for example "not validated".
    """

    study: str
    method: str
    number: int
    folder: Path
    metrics: dict[str, Any]
    created: str
    champion: bool
    note: str


class ModelRegistry:
    """Versions of every method's model below one folder.

    Args:
        root: folder of the registry.
        study: separates models of different studies; part of the name in MLflow, `<study>.<method>`, and so it should
            be unique among those who share one MLflow server.
        tracking_uri: any MLflow tracking server; None: `sqlite:///<root>/mlflow.db`; "off": no MLflow.
        keep: number of newest versions that stay; the champion stays as well.

    Raises:
        MedsegError: the study's name cannot be a folder and part of a registered model's name.
    """

    def __init__(self, root: Path, study: str = "", tracking_uri: str | None = None, keep: int = KEEP_VERSIONS) -> None:
        if keep < 1:
            raise MedsegError(f"keep is {keep}; a registry keeps at least 1 version")
        self.root = Path(root).absolute()
        self.study = _checked("study", study) if study else ""
        self.keep = keep
        self._mirror = None if tracking_uri == "off" else MlflowMirror(self.root, tracking_uri)

    def champion(self, method: str) -> Version | None:
        """The version being served; None before the first one is published."""
        number = self.champion_number(method)
        if number is None:
            return None
        if not (self._store(method).path(number) / WEIGHTS).is_file():
            logger.warning("champion %d of %s has lost its files; roll back to another version", number, method)
            return None
        return self._version(method, number)

    def champion_number(self, method: str) -> int | None:
        """What the pointer says, even if that version's files are lost."""
        return self._store(method).champion()

    def serves(self, method: str, run: Path) -> bool:
        """Whether the champion's weights are those of a run folder."""
        number = self.champion_number(method)
        return number is not None and self._store(method).holds(number, run)

    def versions(self, method: str | None = None) -> list[Version]:
        """The versions that are kept, oldest first; of all methods where none is named."""
        if method is None:
            return [version for name in self.methods() for version in self.versions(name)]
        return [self._version(method, number) for number in self._store(method).numbers()]

    def methods(self) -> list[str]:
        """Names of the methods that have versions in this study."""
        return sorted(path.parent.name for path in (self.root / self.study).glob("*/versions"))

    def version(self, method: str, number: int) -> Version:
        """One version.

        Raises:
            NotFoundError: it was never published or is pruned; names those that exist.
        """
        kept = self._store(method).numbers()
        if number not in kept:
            raise NotFoundError(
                f"{method} has no version {number}; versions kept: {', '.join(map(str, kept)) or 'none'}"
            )
        return self._version(method, number)

    def publish(self, method: str, run: Path, metrics: dict[str, Any], note: str = "") -> int:
        """Make a new version of a run folder's model; it does not become the champion.

        The same model is published once: after a crash between publishing and promoting, publishing the run again
        finds the version that is there, renews its metrics and returns its number.

        Args:
            method: the method's name.
            run: folder with `model.safetensors`, `config.json` and optionally `metrics.json`.
            metrics: kept as `metrics.json`, with the run's own metrics under `training`.
            note: a sentence for people.

        Raises:
            NotFoundError: the run folder lacks weights or configuration.
        """
        for name in (WEIGHTS, CONFIG):
            if not (run / name).is_file():
                raise NotFoundError(f"{run} holds no {name}; train first, then publish its folder")
        store = self._store(method)
        with store.lock():
            number = store.add(run, finite({**metrics, "training": read_json(run / METRICS, default={})}), note)
            store.prune(self.keep)
        self.reconcile(method)
        return number

    def promote(self, method: str, version: int, expected: int | None = ANY) -> Version:
        """Serve this version from now on.

        Args:
            method: the method's name.
            version: its number.
            expected: promote only if this is the present champion (None: there is none).

        Raises:
            NotFoundError: no such version.
            ConflictError: the champion is not the expected one.
        """
        store = self._store(method)
        with store.lock():
            current = store.champion()
            if expected not in (ANY, current):
                raise ConflictError(f"the champion of {method} is version {current}, not {expected}; compare again")
            self.version(method, version)
            store.point_to(version)
        self.reconcile(method)
        return self._version(method, version)

    def rollback(self, method: str, version: int) -> Version:
        """Serve an earlier version again. Later versions stay; the gate compares with this one from now on.

        Raises:
            NotFoundError: no such version.
        """
        return self.promote(method, version)

    def reject(self, method: str, run: Path, metrics: dict[str, Any], reason: str) -> None:
        """Record that a candidate was turned down: a file here and a run tagged `rejected` in MLflow, no version."""
        record = {"created": now(), "reason": reason, "run": str(run), "metrics": metrics, "config": read_config(run)}
        store = self._store(method)
        with store.lock():
            store.add_rejection(finite(record), KEEP_REJECTIONS)
        self.reconcile(method)

    def rejections(self, method: str) -> list[dict[str, Any]]:
        """Candidates that were turned down, oldest first: `created`, `reason`, `run`, `metrics`, `config`."""
        return list(self._store(method).rejections().values())

    def reconcile(self, method: str) -> bool:
        """Bring MLflow in line with the files. Every write ends with it; failing is a warning, never an error."""
        if self._mirror is None:
            return True
        store = self._store(method)
        known = {number: store.read(number) for number in store.numbers()}
        published = [
            TrackedRun(str(number), about["metrics"], about["config"], about["note"], store.path(number))
            for number, about in known.items()
        ]
        rejected = [
            TrackedRun(key, record["metrics"], record["config"], record["reason"])
            for key, record in store.rejections().items()
        ]
        name = f"{self.study}.{method}" if self.study else method
        return self._mirror.reconcile(name, published, rejected, store.champion())

    def _store(self, method: str) -> VersionStore:
        return VersionStore(self.root / self.study / _checked("method", method))

    def _version(self, method: str, number: int) -> Version:
        store = self._store(method)
        about = store.read(number)
        return Version(
            study=self.study,
            method=method,
            number=number,
            folder=store.path(number),
            metrics=about["metrics"],
            created=about["created"],
            champion=store.champion() == number,
            note=about["note"],
        )


def _checked(kind: str, name: str) -> str:
    if not _NAME.fullmatch(name):
        raise MedsegError(
            f"{kind} {name!r} cannot name a model; use letters, digits and '_', after the first one also '.', '-', ' '"
        )
    return name

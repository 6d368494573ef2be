"""MLflow beside the model registry: runs with parameters and metrics, registered versions, the alias `champion`.

MLflow is a mirror. `MlflowMirror.reconcile` compares what MLflow knows with what the registry's files say and adds what
is missing, so it can be called again after any failure. A version that is pruned keeps its entry and its metrics here.

Registered models are called `<study>.<method>`. MLflow numbers their versions itself; ours is the tag `medseg_version`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from medseg.errors import MedsegError
from medseg.training.file_lock import file_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

ALIAS = "champion"
VERSION_TAG, REJECTED_TAG = "medseg_version", "rejected"
_CONNECT_SECONDS = 3.0  # ours: a publish waits no longer for a tracking server that is down
_BATCH = 100  # MLflow takes at most 100 parameters in one request
_VALUE_LENGTH = 500  # ours: no parameter of ours is longer; every MLflow store takes this much


@dataclass(frozen=True)
class TrackedRun:
    """What MLflow shall know of a candidate.

    Attributes:
        key: version number, or the time stamp of a rejected candidate; unique within study, method and kind.
        metrics: nested numbers; per-case tables (`cases`) stay in the registry's files.
        config: content of `config.json`.
        note: the gate's words.
        folder: the version's folder; None for a rejected candidate.
    """

    key: str
    metrics: dict[str, Any]
    config: dict[str, Any]
    note: str
    folder: Path | None = None


class MlflowMirror:
    """Mirror of a registry.

    Args:
        root: the registry's folder; holds `mlflow.db` and its artifacts where no server is given.
        tracking_uri: MLflow tracking server or database; None: SQLite in `root`.
    """

    def __init__(self, root: Path, tracking_uri: str | None = None) -> None:
        self.root = root
        self.uri = tracking_uri or f"sqlite:///{root}/mlflow.db"
        self.remote = urlparse(self.uri).scheme in ("http", "https")

    def reconcile(
        self, name: str, published: Sequence[TrackedRun], rejected: Sequence[TrackedRun], champion: int | None
    ) -> bool:
        """Add what MLflow lacks, and move the alias to the champion.

        Returns:
            False where MLflow could not be brought in line; the reason is logged.
        """
        try:
            self._check_reachable()
            # One at a time: two processes that create the same SQLite database at once spoil it.
            with file_lock(self.root / ".mlflow.lock"):
                book = _Book(self._client(), name, self.root, self.remote)
                for run in rejected:
                    book.run(run, REJECTED_TAG)
                numbers = book.version_numbers()
                for run in published:
                    if run.key not in numbers:
                        numbers[run.key] = book.register(run)
                book.point_alias_to(numbers.get(str(champion)))
        except Exception as error:  # whatever a tracking server does wrong, the model is published
            reason = " ".join(str(error).split())[:300]
            logger.warning("MLflow at %s is behind for %s, the next write catches up: %s", self.uri, name, reason)
            return False
        return True

    def _check_reachable(self) -> None:
        if not self.remote:
            return
        address = urlparse(self.uri)
        port = address.port or (443 if address.scheme == "https" else 80)
        try:
            socket.create_connection((address.hostname or "", port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            raise MedsegError(f"no connection to {address.hostname}:{port} ({error})") from error

    def _client(self) -> MlflowClient:
        """Import MLflow, which takes seconds, and connect."""
        # MLflow sends usage data when it is imported, unless told not to; its only switch is the environment.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        # By default it tries a request 8 times with growing pauses; a publish must not wait for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # only the command line prints
        imported = "mlflow" in sys.modules
        from mlflow import MlflowClient

        if imported:  # somebody imported it before us, perhaps with usage data on
            from mlflow.telemetry.client import set_telemetry_client

            set_telemetry_client()
        for noisy in ("mlflow", "alembic"):  # they tell of every table they create
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if self.uri.startswith("sqlite:///"):
            Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)


class _Book:
    """The entries of one registered model."""

    def __init__(self, client: MlflowClient, name: str, root: Path, remote: bool) -> None:
        self.client, self.name, self.remote = client, name, remote
        experiment = client.get_experiment_by_name(name)
        if experiment is not None:
            self.experiment = experiment.experiment_id
        else:  # without a place of its own, a local MLflow would write artifacts into the current folder
            place = None if remote else (root / "mlflow-artifacts").as_uri()
            self.experiment = client.create_experiment(name, artifact_location=place)
        if not client.search_registered_models(filter_string=f"name = '{name}'"):
            client.create_registered_model(name)

    def version_numbers(self) -> dict[str, str]:
        """Our version number -> MLflow's."""
        found = self.client.search_model_versions(f"name = '{self.name}'")
        return {entry.tags[VERSION_TAG]: str(entry.version) for entry in found if VERSION_TAG in entry.tags}

    def run(self, run: TrackedRun, tag: str) -> str:
        """The finished MLflow run of a candidate, made where it is missing; its id."""
        found = self.client.search_runs([self.experiment], f"tags.{tag} = '{run.key}'", max_results=1)
        if found and found[0].info.status == "FINISHED":
            return str(found[0].info.run_id)
        if found:  # of a writer that died on the way
            identifier = found[0].info.run_id
        else:
            label = f"version {run.key}" if tag == VERSION_TAG else f"rejected {run.key}"
            tags = {tag: run.key, "note": run.note}
            identifier = self.client.create_run(self.experiment, tags=tags, run_name=label).info.run_id
        self._log(identifier, run)
        self.client.set_terminated(identifier)
        return str(identifier)

    def register(self, run: TrackedRun) -> str:
        """Register a version; MLflow's number for it."""
        assert run.folder is not None
        identifier = self.run(run, VERSION_TAG)
        source = str(run.folder)
        if self.remote:  # a server takes no path of another machine; it keeps a copy of the model
            self.client.log_artifacts(identifier, source, "model")
            source = f"runs:/{identifier}/model"
        entry = self.client.create_model_version(
            self.name,
            source,
            run_id=identifier,
            tags={VERSION_TAG: run.key},
            description=run.note,
            await_creation_for=0,  # our metrics are there already; nothing has to become ready
        )
        return str(entry.version)

    def point_alias_to(self, version: str | None) -> None:
        """Move the alias; take it away where there is no champion."""
        aliases = self.client.get_registered_model(self.name).aliases
        present = str(aliases[ALIAS]) if ALIAS in aliases else None
        if version is None and present is not None:
            self.client.delete_registered_model_alias(self.name, ALIAS)
        elif version is not None and version != present:
            self.client.set_registered_model_alias(self.name, ALIAS, version)

    def _log(self, identifier: str, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.utils.time import get_current_time_millis

        params = [Param(key, str(value)[:_VALUE_LENGTH]) for key, value in _flat(run.config)]
        time = get_current_time_millis()
        metrics = [
            Metric(key, float(value), time, 0)
            for key, value in _flat(run.metrics)
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        for start in range(0, len(params), _BATCH):
            self.client.log_batch(identifier, params=params[start : start + _BATCH])
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(identifier, metrics=metrics[start : start + _BATCH])


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of nested dicts with dotted names of characters that MLflow takes; without per-case tables and lists."""
    for key, item in value.items():
        name = prefix + re.sub(r"[^A-Za-z0-9_\- ]", "_", str(key))
        if isinstance(item, dict):
            if key != "cases":
                yield from _flat(item, f"{name}.")
        elif item is not None:
            yield name, item

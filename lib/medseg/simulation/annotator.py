"""The simulated annotator: works with a server through MONAI Label's own client and answers with the true mask."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from monailabel.client.client import MONAILabelClient, MONAILabelClientException, MONAILabelUtils

from medseg.simulation.server_process import ServerProcess

logger = logging.getLogger(__name__)
logging.getLogger(MONAILabelClient.__module__).setLevel(logging.WARNING)  # it tells of the files of every request

CLIENT = "simulated-annotator"
POLL_SECONDS = 1.0
_ENDED = ("DONE", "ERROR", "STOPPED")
_Reply = TypeVar("_Reply")


class Annotator:
    """Talks to one server.

    Args:
        server: the running server.
        method: the model to ask for pre-annotations and to train.
        labels: label name -> index in the true masks.

    Raises (all methods): MedsegError: the server refused or failed; one sentence with its reason and the log's path.
    """

    def __init__(self, server: ServerProcess, method: str, labels: Mapping[str, int]) -> None:
        self.server, self.method, self.labels = server, method, dict(labels)
        self._folder = tempfile.TemporaryDirectory(prefix="medseg-simulation-")
        self.client = MONAILabelClient(server.url, tmpdir=self._folder.name, client_id=CLIENT)

    def close(self) -> None:
        """Remove temporary files."""
        self._folder.cleanup()

    def info(self) -> dict[str, Any]:
        """The server's description of itself."""
        found: dict[str, Any] = self._call("info", self.client.info)
        return found

    def next_image(self, strategy: str) -> dict[str, Any]:
        """The next image to label, with the reason under `why`; {} when there is none left."""
        found: dict[str, Any] = self._call(f"strategy {strategy}", lambda: self.client.next_sample(strategy, {}))
        return found or {}

    def pre_annotation(self, image: str) -> tuple[Path | None, float]:
        """The model's mask of an image (a temporary file, overwritten by the next one), and the seconds it took."""
        started = time.monotonic()
        file, _ = self._call("infer", lambda: self.client.infer(self.method, image, {}))
        return Path(file) if file else None, time.monotonic() - started

    def submit(self, image: str, mask: Path) -> dict[str, Any]:
        """Save a mask as the final label, with the names of its values, as Slicer does."""
        ordered = sorted(self.labels, key=lambda name: self.labels[name])
        params = {"label_info": [{"name": name, "idx": self.labels[name]} for name in ordered]}
        reply: dict[str, Any] = self._call(
            f"saving the label of {image}", lambda: self.client.save_label(image, str(mask), params=params)
        )
        return reply

    def score(self) -> float:
        """Bring the acquisition scores up to date; seconds."""
        started = time.monotonic()
        name = next((name for name in self.info().get("scoring", {}) if name.startswith(self.method)), None)
        if name is None:
            return 0.0
        self._await("/scoring/")  # one that the server started by itself
        self._http("POST", f"/scoring/{name}")
        record = self._await("/scoring/")
        if record.get("status") != "DONE":
            raise self.server.failure(f"scoring ended as {record.get('status')}: {_last_words(record)}")
        return time.monotonic() - started

    def train(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """Train and wait.

        Returns:
            The gate's decision as `/info/` tells it, and the seconds.
        """
        started = time.monotonic()
        self._call("train", lambda: self.client.train_start(self.method, dict(parameters)))
        while True:
            record = self._call("train status", self.client.train_status)
            if record.get("status") in _ENDED:
                break
            time.sleep(POLL_SECONDS)
        stats = self.train_stats()
        if record["status"] != "DONE" or not stats.get("decision"):
            reason = stats.get("error") or _last_words(record)
            raise self.server.failure(f"training ended as {record['status']}: {reason}")
        return stats["decision"], time.monotonic() - started

    def train_stats(self) -> dict[str, Any]:
        """What `/info/` tells of the last training of the method."""
        found: dict[str, Any] = self.info().get("train_stats", {}).get(self.method) or {}
        return found

    def _await(self, selector: str) -> dict[str, Any]:
        """The record of the last job, once it has ended; {} where there was none."""
        while True:
            record = self._http("GET", selector)
            if not record or record.get("status") in _ENDED:
                return record
            time.sleep(POLL_SECONDS)

    def _http(self, method: str, selector: str) -> dict[str, Any]:
        """A request that the client class has no function for; {} where the server knows of no job."""

        def call() -> dict[str, Any]:
            status, body, _, _ = MONAILabelUtils.http_method(
                method, self.server.url, selector, {} if method == "POST" else None
            )
            if status == 404 and method == "GET":
                return {}
            if status != 200:
                raise MONAILabelClientException(1, f"Status: {status}; Response: {body.decode(errors='replace')}")
            found = json.loads(body)
            return found if isinstance(found, dict) else {}

        return self._call(selector, call)

    def _call(self, what: str, call: Callable[[], _Reply]) -> _Reply:
        try:
            return call()
        except MONAILabelClientException as error:
            raise self.server.failure(f"the server refused {what}: {_detail(error)}") from error
        except OSError as error:
            state = "does not answer" if self.server.alive() else "has ended"
            raise self.server.failure(f"the server {state} ({what}: {error})") from error


def _detail(error: MONAILabelClientException) -> str:
    """The server's sentence inside the client's exception."""
    text = str(error.args[1] if len(error.args) > 1 else error)
    match = re.search(r"Response: (.*)", text, re.DOTALL)
    body = match.group(1).strip() if match else text
    if body[:2] in ("b'", 'b"'):
        body = body[2:-1]
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return body[:300]
    return str(detail)[:300]


def _last_words(record: Mapping[str, Any]) -> str:
    lines = [line for line in record.get("details", []) if line.strip()]
    return lines[-1].strip()[:300] if lines else "no reason was given"

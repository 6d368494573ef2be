"""`medseg simulate`: which strategy needs the fewest labels on this data, found with a real server over HTTP.

Each strategy and seed starts from a fresh studies folder and a fresh model folder. Round 0 trains on initial labels;
in every further round the server chooses images, the simulated annotator answers with their true masks, and the server
trains again. The gate decides on frozen validation cases; the learning curve is measured on test cases of other
patients, which the server never sees. Where the data have angles and no masks, the annotator types angles instead, see
`medseg.simulation.angles`.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medseg.errors import ConflictError
from medseg.files import read_json, write_json
from medseg.simulation.angles import reads_angles, run_angles
from medseg.simulation.curve import Curve, Setting
from medseg.simulation.report import write_report
from medseg.simulation.request import SimulationRequest
from medseg.simulation.roles import Roles, assign_roles
from medseg.simulation.study import write_truth
from medseg.simulation.summary import summarise
from medseg.training.device import pick_device
from medseg.training.file_lock import file_lock

__all__ = ["SimulationRequest", "run_simulation"]

logger = logging.getLogger(__name__)

HTTP_SECONDS = 900.0  # ours: the client of MONAI Label waits for ever; a prediction on a CPU may take minutes


def run_simulation(request: SimulationRequest) -> dict[str, Any]:
    """Run all strategies and seeds, one after the other, and write `summary.json` and `report.html`.

    What is finished in `request.out` is kept, what was killed continues. Both files are renewed after every curve.

    Returns:
        The summary.

    Raises:
        MedsegError: bad request, too few cases, or a server that failed; one sentence with the log's path.
        ConflictError: `request.out` holds another simulation, or is in use.
    """
    request.check()
    if reads_angles(request):
        with file_lock(Path(request.out) / ".lock", timeout=1.0), _ended_by_sigterm(), _http_timeout():
            return run_angles(request)
    cases, labels = request.load()
    roles = assign_roles(request, cases)
    device = str(pick_device(request.device))
    out = Path(request.out)
    with file_lock(out / ".lock", timeout=1.0), _ended_by_sigterm(), _http_timeout():
        _claim(request, roles)
        truth = write_truth(out / "truth", (*roles.pool, *roles.validation), labels)
        setting = Setting(request, roles, truth, labels, device)
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        summary: dict[str, Any] = {}
        for seed in range(request.seeds):  # seeds outside: after the first one, all strategies can be compared
            for strategy in request.strategies:
                curve = Curve(setting, strategy, seed)
                curve.run()
                found[(strategy, seed)] = curve.rounds[: request.rounds + 1]
                summary = summarise(request, roles, labels, found)
                write_json(out / "summary.json", summary)
        write_report(out / "report.html", summary, {case.id: case for case in roles.test})
    return summary


def _claim(request: SimulationRequest, roles: Roles) -> None:
    """Refuse a folder whose curves were made with other settings: they could not be compared."""
    path = Path(request.out) / "request.json"
    wanted = {
        **request.identity(),
        "test": [case.id for case in roles.test],
        "validation": [case.id for case in roles.validation],
        "pool": [case.id for case in roles.pool],
    }
    there = read_json(path)
    if there is None:
        write_json(path, wanted)
    elif there != wanted:
        key = next(key for key in {**there, **wanted} if there.get(key) != wanted.get(key))
        raise ConflictError(
            f"{request.out} holds a simulation with {key} = {there.get(key)!r}, asked for is {wanted.get(key)!r}; "
            "choose another --out or remove the folder"
        )


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Make SIGTERM an exception, so that the server is stopped on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _http_timeout() -> Iterator[None]:
    """MONAI Label's client sets no timeout of its own and takes Python's."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(HTTP_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)

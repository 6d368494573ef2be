"""`medseg simulate` where the data have angles and no masks: a reader who types angles, over HTTP.

Asks a real server for the next image, types its angles into the image's info, trains, and lets the server measure the
test images, which it never gets angles for.

OUT/<strategy>-<seed>/      studies/, models/ and server.log of one curve
OUT/test/                   the test images
OUT/summary.json            rounds of all curves
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.client.client import MONAILabelClientException, MONAILabelUtils

from medseg.cases import Case, load_cases
from medseg.errors import ConflictError, MedsegError
from medseg.files import write_json, write_text
from medseg.methods import method_class
from medseg.methods.base import Supervision
from medseg.metrics.smape import smape
from medseg.simulation.annotator import Annotator
from medseg.simulation.curve import WITHOUT_SCORES
from medseg.simulation.request import SimulationRequest
from medseg.simulation.roles import Roles, assign_roles
from medseg.simulation.server_process import ServerOptions, ServerProcess, default_app
from medseg.simulation.study import build_study

logger = logging.getLogger(__name__)

MEASURED = ("cobb_max", "cobb_second", "cobb_third")
STORED = ("angle_1", "angle_2", "angle_3")
LABELS = {"vertebra": 1}


def reads_angles(request: SimulationRequest) -> bool:
    """Whether the reader types angles: the method learns from them, the data have some, and no mask."""
    if Supervision.ANGLES not in method_class(request.method).supervision:
        return False
    cases = load_cases(request.data, request.settings.get("patient_pattern"))
    return bool(readable_cases(cases)) and not any(case.label is not None for case in cases)


def run_angles(request: SimulationRequest) -> dict[str, Any]:
    """Run all strategies and seeds, one after the other, and write `summary.json` after every round.

    Returns:
        The summary: `test` and `validation` (ids), and per curve its rounds: number of readings, mean SMAPE on the test
        images, the gate's decision, seconds of the training.

    Raises:
        MedsegError: too few images with three angles, or the server refused something.
        ConflictError: a curve is there already; these are not continued.
    """
    cases = readable_cases(load_cases(request.data, request.settings.get("patient_pattern")))
    roles, out = assign_roles(request, cases), Path(request.out)
    tested = build_study(out / "test", roles.test, [], {}, LABELS)
    parts = {name: [case.id for case in getattr(roles, name)] for name in ("test", "validation")}
    curves: dict[str, list[dict[str, Any]]] = {}
    summary = {"method": request.method, "labels": "angles", "metric": "smape", **parts, "curves": curves}
    for seed in range(request.seeds):
        for strategy in request.strategies:
            curve = out / f"{strategy}-{seed}"
            if curve.exists():
                raise ConflictError(f"{curve} is there; curves of angles are not continued: remove it, or choose --out")
            rounds = curves[curve.name] = []
            for entry in _rounds(request, roles, curve, tested, strategy, seed):
                rounds.append(entry)
                write_json(out / "summary.json", summary)
    return summary


def _rounds(
    request: SimulationRequest, roles: Roles, folder: Path, tested: Path, strategy: str, seed: int
) -> Iterator[dict[str, Any]]:
    """The rounds of one curve, with a server of its own."""
    known = {case.id: stored_angles(case) for case in (*roles.pool, *roles.validation)}
    truth = {case.id: stored_angles(case) for case in roles.test}
    studies = build_study(folder / "studies", (*roles.pool, *roles.validation), [], {}, LABELS)
    read = {case.id for case in (*roles.validation, *roles.initial(request.initial, seed))}
    app = (request.app or default_app()).absolute()
    with ServerProcess(
        ServerOptions(app, studies, folder / "server.log", _conf(request, roles, folder, seed), request.port)
    ) as server:
        annotator = Annotator(server, request.method, LABELS)
        try:
            for image in sorted(read):
                type_angles(annotator, image, known[image])
            for number in range(request.rounds + 1):
                if number:
                    read |= read_next(annotator, strategy, request.per_round, known, read)
                decision, seconds = annotator.train({"seed": seed})
                error = measure(annotator, request.method, tested, truth)
                logger.info("%s, seed %d, round %d: %d readings, SMAPE %.2f", strategy, seed, number, len(read), error)
                yield {"round": number, "readings": len(read), "smape": error, "decision": decision,
                       "seconds": round(seconds, 1)}  # fmt: skip
        finally:
            annotator.close()


def _conf(request: SimulationRequest, roles: Roles, folder: Path, seed: int) -> dict[str, str]:
    """Settings of the server, which reads the images' patients from a table."""
    table = io.StringIO()
    csv.writer(table).writerows([("image", "patient"), *((c.id, c.patient) for c in (*roles.pool, *roles.validation))])
    write_text(folder / "patients.csv", table.getvalue())
    settings = request.method_settings()
    settings.pop("patient_pattern", None)
    return {
        "models": request.method,
        "model_dir": str((folder / "models").absolute()),
        "weak_labels": str((folder / "patients.csv").absolute()),
        "validation": ",".join(case.id for case in roles.validation),
        "seed": str(seed),
        "auto_scoring": "false",  # the reader asks for it where the strategy needs it, and waits
        "tracking_uri": "off",
        **({"preset": request.preset} if request.preset else {}),
        **({"device": request.device} if request.device else {}),
        **{f"{request.method}.{key}": value for key, value in settings.items()},
    }


def read_next(
    annotator: Annotator, strategy: str, count: int, known: Mapping[str, Sequence[float]], read: set[str]
) -> set[str]:
    """Ask for images and type their angles until `count` new ones are read, or none is left; the ids of the new ones.

    To the server an image without a mask stays unlabelled. Those with angles come last, so that one which was read is
    offered again only when all others are; it is passed over.

    Args:
        annotator: talks to the server.
        strategy: whose next image is read.
        count: images of one round.
        known: angles of all images that the server has.
        read: ids read before.
    """
    if strategy not in WITHOUT_SCORES:
        annotator.score()
    new: list[str] = []
    for _ in known:
        image = str(annotator.next_image(strategy).get("id", ""))
        if image in known and image not in read and image not in new:
            new.append(image)
            type_angles(annotator, image, known[image])
        if len(new) == count or not image:
            break
    return set(new)


def type_angles(annotator: Annotator, image: str, angles: Sequence[float]) -> None:
    """Put angles in degrees, in the challenge's order, into an image's info.

    Raises:
        MedsegError: the server refused them.
    """
    weak = {"angles": dict(zip(STORED, map(float, angles), strict=True)), "source": "reader", "by": "simulated reader"}
    selector = f"/datastore/image/info?image={MONAILabelUtils.urllib_quote_plus(image)}"
    try:
        status, body, _, _ = MONAILabelUtils.http_multipart(
            "PUT", annotator.server.url, selector, {"info": json.dumps({"weak": weak})}, {}
        )
    except MONAILabelClientException as error:
        raise MedsegError(f"the server refused the angles of {image}: {error}") from error
    if status != 200:
        raise MedsegError(f"the server refused the angles of {image}: {body.decode(errors='replace')[:300]}")


def measure(annotator: Annotator, method: str, folder: Path, known: Mapping[str, Sequence[float]]) -> float:
    """Mean SMAPE of the server's answers on image files that it has no angles for; no answer costs 100."""
    errors = []
    for file in sorted(path for path in folder.iterdir() if path.stem in known):
        _, result = annotator.client.infer(method, "", {}, file=str(file))
        found = (result or {}).get("measurements", {})
        answer = [found[key]["value"] for key in MEASURED] if all(key in found for key in MEASURED) else [0.0] * 3
        errors.append(smape(answer, known[file.stem]))
    return float(np.mean(errors))


def readable_cases(cases: Sequence[Case]) -> list[Case]:
    """Those with three angles."""
    return [case for case in cases if case.weak is not None and all(name in case.weak.angles for name in STORED)]


def stored_angles(case: Case) -> list[float]:
    """The three angles of a case in degrees."""
    assert case.weak is not None
    return [case.weak.angles[name] for name in STORED]

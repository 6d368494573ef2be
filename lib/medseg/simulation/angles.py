"""A simulated reader who types angles instead of drawing masks, over HTTP.

    python -m medseg.simulation.angles --data DIR --out OUT [--rounds 2 --per-round 4 --initial 8 --iterations 100]

Asks a real server for the next image, types its angles into the image's info, trains, and lets the server measure the
test images. Writes `OUT/angles.json`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer
from monailabel.client.client import MONAILabelClientException, MONAILabelUtils

from medseg.cases import Case, load_cases
from medseg.errors import MedsegError
from medseg.files import write_json
from medseg.metrics.smape import smape
from medseg.simulation.annotator import Annotator
from medseg.simulation.server_process import ServerOptions, ServerProcess, default_app
from medseg.simulation.study import build_study
from medseg.training.split import stable_hash

logger = logging.getLogger(__name__)

MEASURED = ("cobb_max", "cobb_second", "cobb_third")
STORED = ("angle_1", "angle_2", "angle_3")


@dataclass(frozen=True)
class AngleRequest:
    """What is simulated.

    Attributes:
        data: folder with images and angles (`labels.csv`).
        out: the studies folder, the models and the result go here.
        method: learns from angles and measures `MEASURED`.
        strategy: whose next image is read.
        rounds: after the first training.
        per_round: images read per round.
        initial: images read before the first training.
        validation: images read before it that the gate decides on.
        test: images that the server never gets angles for.
        settings: of the method.
    """

    data: Path
    out: Path
    method: str = "seg4reg"
    strategy: str = "random"
    rounds: int = 2
    per_round: int = 4
    initial: int = 8
    validation: int = 4
    test: int = 6
    settings: Mapping[str, str] = field(default_factory=dict)


def simulate_angles(request: AngleRequest) -> list[dict[str, Any]]:
    """Run the rounds; one entry each: number of readings, mean SMAPE on the test images, the gate's decision.

    Raises:
        MedsegError: too few images with three angles, or the server refused something.
    """
    cases = readable_cases(load_cases(request.data))
    known = {case.id: stored_angles(case) for case in cases}
    order = sorted(known, key=stable_hash)
    needed = request.test + request.validation + request.initial + request.rounds * request.per_round
    if len(order) < needed:
        raise MedsegError(f"{needed} images with three angles are needed, {request.data} has {len(order)}")
    test, rest = order[: request.test], order[request.test :]
    first = rest[: request.validation + request.initial]
    studies = build_study(request.out / "studies", [c for c in cases if c.id not in test], [], {}, {"vertebra": 1})
    tested = build_study(request.out / "test", [c for c in cases if c.id in test], [], {}, {"vertebra": 1})
    conf = {"models": request.method, "model_dir": str((request.out / "models").absolute()), "auto_scoring": "false"}
    conf |= {"validation": ",".join(rest[: request.validation]), "tracking_uri": "off"}
    conf |= {f"{request.method}.{key}": value for key, value in request.settings.items()}
    rounds: list[dict[str, Any]] = []
    with ServerProcess(ServerOptions(default_app(), studies, request.out / "server.log", conf)) as server:
        annotator = Annotator(server, request.method, {"vertebra": 1})
        try:
            for image in first:
                type_angles(annotator, image, known[image])
            read = set(first)
            for number in range(request.rounds + 1):
                if number:
                    read |= read_next(annotator, request, {image: known[image] for image in rest}, read)
                decision, seconds = annotator.train({})
                error = measure(annotator, request.method, tested, {image: known[image] for image in test})
                rounds.append({"round": number, "readings": len(read), "smape": error, "decision": decision,
                               "seconds": round(seconds, 1)})  # fmt: skip
                logger.info("round %d: %d readings, SMAPE %.2f", number, len(read), error)
                write_json(request.out / "angles.json", rounds)
        finally:
            annotator.close()
    return rounds


def read_next(
    annotator: Annotator, request: AngleRequest, known: Mapping[str, Sequence[float]], read: set[str]
) -> set[str]:
    """Ask for images and type their angles until `per_round` new ones are read; the ids of the new ones.

    To the server an image without a mask stays unlabelled, so one that was read may be offered again; then the first
    image that was not read is taken.

    Args:
        annotator: talks to the server.
        request: strategy and number per round.
        known: angles of all images that the server has.
        read: ids read before.
    """
    new: list[str] = []
    while len(new) < request.per_round:
        offered = str(annotator.next_image(request.strategy).get("id", ""))
        left = [image for image in known if image not in read and image not in new]
        if not left:
            break
        image = offered if offered in left else left[0]
        new.append(image)
        type_angles(annotator, image, known[image])
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


def main(
    data: Path,
    out: Path,
    strategy: str = "random",
    rounds: int = 2,
    per_round: int = 4,
    initial: int = 8,
    iterations: int = 100,
) -> None:
    """Simulate with Seg4Reg+ at the CPU's grid."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    settings = {"iterations": str(iterations), "grid": "256,512", "batch": "4"}
    simulate_angles(AngleRequest(data, out, "seg4reg", strategy, rounds, per_round, initial, settings=settings))


if __name__ == "__main__":
    typer.run(main)

"""One learning curve: a fresh study and server, and the rounds of labelling and training with one strategy and seed.

OUT/<strategy>-<seed>/
    studies/            what the server works on
    models/             the server's models
    server.log
    progress.json       finished rounds, and what is known of the present one; a killed simulation continues from it
    predictions/        masks of the first test cases after each round
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.data import MetaTensor

from medseg.cases import Case
from medseg.errors import MedsegError
from medseg.files import read_json, write_json
from medseg.inference.evaluation import evaluate
from medseg.inference.model_folder import load_model
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.methods.base import Method, Prediction, Supervision
from medseg.metrics.overlap import overlap_metrics
from medseg.simulation.annotator import Annotator
from medseg.simulation.request import SimulationRequest
from medseg.simulation.roles import Roles
from medseg.simulation.server_process import ServerOptions, ServerProcess, default_app
from medseg.simulation.severity import severity_of, type_severity
from medseg.simulation.study import build_study
from medseg.training.registry import ModelRegistry, Version
from medseg.transforms.io import read_mask, write_volume

logger = logging.getLogger(__name__)

DRAWN_CASES = 2  # ours: test cases whose masks are kept for the report
WITHOUT_SCORES = ("random", "stratified", "first")


@dataclass(frozen=True)
class Setting:
    """What all curves of a simulation share.

    Attributes:
        request: what was asked.
        roles: who is tested, validates, and is labelled.
        truth: case id -> true mask.
        labels: label name -> index.
        device: where the test cases are predicted.
    """

    request: SimulationRequest
    roles: Roles
    truth: Mapping[str, Path]
    labels: Mapping[str, int]
    device: str


class Curve:
    """The rounds of one strategy and seed."""

    def __init__(self, setting: Setting, strategy: str, seed: int) -> None:
        self.setting, self.strategy, self.seed = setting, strategy, seed
        self.request = setting.request
        self.folder = Path(self.request.out).absolute() / f"{strategy}-{seed}"
        self._progress = self.folder / "progress.json"
        state = read_json(self._progress, default={})
        self.rounds: list[dict[str, Any]] = state.get("rounds", [])
        self._present: dict[str, Any] = state.get("present", {})

    @property
    def finished(self) -> bool:
        """Whether all rounds are done."""
        return len(self.rounds) > self.request.rounds or bool(self.rounds and self.rounds[-1].get("exhausted"))

    def run(self) -> None:
        """Run the rounds that are missing."""
        if self.finished:
            logger.info("%s, seed %d: finished before", self.strategy, self.seed)
            return
        pool, validation = self.setting.roles.pool, self.setting.roles.validation
        initial = self.setting.roles.initial(self.request.initial, self.seed)
        studies = self.folder / "studies"
        if not self.rounds and not self._present:
            labelled = [case.id for case in (*initial, *validation)]
            build_study(studies, (*pool, *validation), labelled, self.setting.truth, self.setting.labels)
            self._save()
        with ServerProcess(self._options(studies)) as server:
            annotator = Annotator(server, self.request.method, self.setting.labels)
            try:
                self._check_offer(annotator.info())
                self._type_severity(annotator)
                while not self.finished:
                    self._round(annotator)
            finally:
                annotator.close()

    def _options(self, studies: Path) -> ServerOptions:
        request, method = self.request, self.request.method
        settings = request.method_settings()
        conf = {
            "models": method,
            "labels": ",".join(sorted(self.setting.labels, key=lambda name: self.setting.labels[name])),
            "model_dir": str(self.folder / "models"),
            "validation": ",".join(case.id for case in self.setting.roles.validation),
            "seed": str(self.seed),
            "auto_scoring": "false",  # the annotator asks for it where the strategy needs it, and waits
            "tracking_uri": "off",  # the summary tells everything, and MLflow costs seconds in every round
        }
        if "patient_pattern" in settings:
            conf["patient_pattern"] = settings.pop("patient_pattern")
        conf |= {f"{method}.{key}": value for key, value in settings.items()}
        conf |= {"preset": request.preset} if request.preset else {}
        conf |= {"device": request.device} if request.device else {}
        app = (request.app or default_app()).absolute()
        return ServerOptions(app, studies, self.folder / "server.log", conf, request.port)

    def _check_offer(self, info: Mapping[str, Any]) -> None:
        for kind, name in (("trainers", self.request.method), ("strategies", self.strategy)):
            known = info.get(kind, {})
            if name not in known:
                what = "method" if kind == "trainers" else "strategy"
                raise MedsegError(f"the server offers no {what} {name!r}; it offers {', '.join(known)}")

    def _type_severity(self, annotator: Annotator) -> None:
        """Regions and extents of all images, once, for methods that learn from extents."""
        kind = method_class(self.request.method)
        if Supervision.EXTENTS not in kind.supervision or self._present.get("severity") or self.rounds:
            return
        folder = self.folder / "regions"
        folder.mkdir(parents=True, exist_ok=True)
        for case in self.setting.roles.pool:
            found = severity_of(case, self.setting.truth[case.id], self.setting.labels, kind, folder)
            if found is not None:
                type_severity(annotator, case.id, *found)
        self._present["severity"] = True
        self._save()

    # -- one round ---------------------------------------------------------------------------------------------------

    def _round(self, annotator: Annotator) -> None:
        number = len(self.rounds)
        present = self._present
        present.setdefault("chosen", [])
        present.setdefault("seconds", {})
        if number > 0:
            self._label(annotator, present)
        labels = self.request.initial + sum(len(r["chosen"]) for r in self.rounds) + len(present["chosen"])
        exhausted = number > 0 and not present["chosen"]
        if not exhausted:
            present["decision"] = present.get("decision") or self._train(annotator, labels, present)
            self._save()
        record = self._record(number, labels, present)
        self.rounds.append({**record, "exhausted": True} if exhausted else record)
        self._present = {}
        self._save()
        logger.info(
            "%s, seed %d, round %d: %d labels, test %.4f, validation %.4f (%s)",
            self.strategy, self.seed, number, labels, record["test"]["quality"], record["validation"]["champion"] or 0,
            "published" if record["published"] else "not published",
        )  # fmt: skip

    def _label(self, annotator: Annotator, present: dict[str, Any]) -> None:
        if self.strategy not in WITHOUT_SCORES and not present["chosen"]:
            present["seconds"]["score"] = round(annotator.score(), 3)
        while len(present["chosen"]) < self.request.per_round:
            entry = present.get("open") or self._choose(annotator)
            if not entry:
                return
            present["open"] = entry  # killed from here on, the same label is submitted again
            self._save()
            reply = annotator.submit(entry["id"], self.setting.truth[entry["id"]])
            present["chosen"].append({**entry, "remarks": reply.get("remarks", [])})
            del present["open"]
            self._save()

    def _choose(self, annotator: Annotator) -> dict[str, Any]:
        """The next image, and how good its pre-annotation is; {} where none is left."""
        sample = annotator.next_image(self.strategy)
        if not sample:
            return {}
        mask, seconds = annotator.pre_annotation(sample["id"])
        return {
            "id": sample["id"],
            "why": sample.get("why", ""),
            "score": sample.get("score"),
            "pre_annotation_dice": self._agreement(mask, sample["id"]) if mask else None,
            "infer_seconds": round(seconds, 3),
        }

    def _agreement(self, mask: Path, identifier: str) -> float | None:
        """Mean Dice of a pre-annotation over the labels: how much was left for the annotator to do."""
        predicted = read_mask(mask)[0].numpy()
        true = read_mask(self.setting.truth[identifier])[0].numpy()
        if predicted.shape != true.shape:  # a mask on another grid than its image; the server resamples it
            return None
        values = [overlap_metrics(predicted == i, true == i)["dice"] for i in self.setting.labels.values()]
        return round(sum(values) / len(values), 4)

    def _train(self, annotator: Annotator, labels: int, present: dict[str, Any]) -> dict[str, Any]:
        """Train, unless the training of this round was decided before the simulation was killed."""
        stats = annotator.train_stats()
        decision: dict[str, Any] = stats.get("decision") or {}
        if stats.get("state") == "done" and decision.get("labelled") == labels:
            return decision
        started = time.monotonic()
        decision, _ = annotator.train({"seed": self.seed})
        present["seconds"]["train"] = round(time.monotonic() - started, 3)
        if decision.get("labelled") != labels:
            raise annotator.server.failure(
                f"the server trained on {decision.get('labelled')} labelled images instead of {labels}"
            )
        return decision

    def _record(self, number: int, labels: int, present: Mapping[str, Any]) -> dict[str, Any]:
        """The round as the summary tells it."""
        decision = present.get("decision") or {}
        champion = self._champion()
        started = time.monotonic()
        before = self.rounds[-1] if self.rounds else None
        same = before is not None and before["version"] == champion.number
        test = before["test"] if before is not None and same else self._test(champion, number)
        chosen = present["chosen"]
        infer = [entry["infer_seconds"] for entry in chosen]
        return {
            "round": number,
            "labels": labels,
            "version": champion.number,
            "published": bool(decision.get("published")),
            "reason": decision.get("reason", "no image was left to label"),
            "test": test,
            "validation": {"champion": champion.metrics.get("quality"), "candidate": decision.get("quality")},
            "chosen": chosen,
            "seconds": {
                **present["seconds"],
                "infer": round(sum(infer) / len(infer), 3) if infer else None,
                "test": None if same else round(time.monotonic() - started, 3),
            },
        }

    def _champion(self) -> Version:
        """The model that the server serves, read from its model folder."""
        pointers = list((self.folder / "models").glob(f"*/{self.request.method}/champion.json"))
        if len(pointers) != 1:
            raise MedsegError(f"{self.folder / 'models'} holds {len(pointers)} served models of {self.request.method}")
        study = pointers[0].parent.parent
        registry = ModelRegistry(study.parent, study.name, tracking_uri="off")
        champion = registry.champion(self.request.method)
        if champion is None:
            raise MedsegError(f"{study} has lost the files of the served model; remove {self.folder} and start again")
        return champion

    def _test(self, champion: Version, number: int) -> dict[str, Any]:
        """Metrics on the test cases, which the server has never seen; masks of the first ones are kept."""
        keep = {case.id: self.prediction(number, case.id) for case in self.setting.roles.test[:DRAWN_CASES]}
        model = load_model(champion.folder, self.setting.device)
        return evaluate(KeepingPredictor(model, self.setting.device, keep), self.setting.roles.test).to_dict()

    def prediction(self, number: int, identifier: str) -> Path:
        """Where the mask of a test case after a round is kept, without its suffix."""
        return self.folder / "predictions" / f"round_{number:02d}_{identifier}"

    def _save(self) -> None:
        write_json(self._progress, {"rounds": self.rounds, "present": self._present, "pid": os.getpid()})


class KeepingPredictor(Predictor):
    """A predictor that writes the masks of some cases.

    Args:
        method: the model.
        device: where it runs.
        keep: case id -> path of its mask without suffix.
    """

    def __init__(self, method: Method, device: str, keep: Mapping[str, Path]) -> None:
        super().__init__(method, device)
        self.keep = keep

    def predict(self, case: Case) -> Prediction:
        """Predict as usual."""
        prediction = super().predict(case)
        if case.id in self.keep and prediction.mask is not None:
            path = self.keep[case.id]
            mask = MetaTensor(prediction.mask.as_tensor().cpu(), affine=prediction.mask.affine)
            write_volume(path.with_name(path.name + (".png" if mask.ndim == 3 else ".nii.gz")), mask)
        return prediction

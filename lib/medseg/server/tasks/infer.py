"""Inference over any Method: the champion's prediction on the image's own grid, for viewers."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from medseg.cases import Case, image_suffix
from medseg.errors import ConflictError, MedsegError, UnusableInputError
from medseg.files import read_json, write_json
from medseg.inference.markups import markups_json
from medseg.inference.predictor import Predictor
from medseg.methods import method_class
from medseg.methods.base import Prediction
from medseg.server.tasks.device import device_choices, resolve_device
from medseg.server.tasks.next_step import next_step
from medseg.server.tasks.study import Study
from medseg.training.registry import Version
from medseg.transforms.io import PICTURES, write_volume
from medseg.weak import parse_weak

logger = logging.getLogger(__name__)

EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha", ".png")
DTYPES = ("uint8", "uint16", "int16", "int32", "float32")
AUTOMATIC = "automatic"  # choice of a domain in viewers: what is known of the image, else recognised
UNCERTAINTY_KEPT = 32  # ours: newest uncertainty maps on disk


@dataclass(frozen=True)
class Loaded:
    """A model version in memory."""

    version: int
    device: str
    predictor: Predictor


class ChampionCache:
    """The champion's predictor, loaded again when another version is promoted.

    The pointer file is read at every request. A new model is loaded beside the old one and then takes its place in one
    assignment, so a request runs on one model from start to end.
    """

    def __init__(self, study: Study, method: str) -> None:
        self.study, self.method = study, method
        self._loaded: dict[str, Loaded] = {}
        self._lock = threading.Lock()

    def champion(self) -> Version | None:
        """The version being served, by its pointer file."""
        return self.study.registry.champion(self.method)

    def require(self) -> Version:
        """The version being served.

        Raises:
            ConflictError: there is no model yet; says what to do.
        """
        champion = self.champion()
        if champion is None:
            raise ConflictError(f"{self.method} has no model yet: {next_step(self.study, self.method)}")
        return champion

    def get(self, device: str) -> Loaded:
        """The champion on a device.

        Raises:
            ConflictError: there is no model yet.
        """
        champion = self.require()
        found = self._loaded.get(device)
        if found is not None and found.version == champion.number:
            return found
        with self._lock:
            found = self._loaded.get(device)
            if found is None or found.version != champion.number:
                logger.info("loading %s version %d on %s", self.method, champion.number, device)
                found = Loaded(champion.number, device, Predictor.from_folder(champion.folder, device))
                self._loaded[device] = found
        return found


class MedsegInfer(InferTask):
    """Pre-annotation with a method's champion.

    Request keys besides the image: `device`, `result_extension`, `result_dtype`, `result_compress`, `uncertainty`
    (true: the map is kept for `GET /medseg/uncertainty`, and its address is in the result), `domain` and `weak` (what
    is known of the image; win over the datastore's).
    """

    def __init__(self, study: Study, method: str, cache: ChampionCache | None = None) -> None:
        self.study, self.method = study, method
        self.cache = cache or ChampionCache(study, method)
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=study.labels,
            dimension=method_class(method).axes,
            description=method_class(method).title,
            config={"device": device_choices(study.settings.device), "uncertainty": False},
        )

    def is_valid(self) -> bool:
        """Whether a model is there; `/info/` shows only those."""
        return self.cache.champion() is not None

    def info(self) -> dict[str, Any]:
        """What viewers read, with the champion's own labels, dimension and version."""
        champion = self.cache.champion()
        about = read_json(champion.folder / "config.json", default={}) if champion else {}
        domains = list(about.get("config", {}).get("domains") or ())
        return {
            "type": self.type.value,
            "labels": about.get("labels", self.labels),
            "dimension": about.get("config", {}).get("dimension") or self.dimension,
            "description": self.description,
            "config": {**self.config(), **({"domain": [AUTOMATIC, *domains]} if domains else {})},
            "version": champion.number if champion else None,
            "quality": champion.metrics.get("quality") if champion else None,
        }

    def get_path(self, validate: bool = True) -> str | None:
        """The champion's weights."""
        champion = self.cache.champion()
        return str(champion.folder / "model.safetensors") if champion else None

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Predict.

        Returns:
            Path of the mask's file, or of markups where the method makes no mask (None: there is neither), which the
            caller removes; and the result.

        Raises:
            MedsegError: no model, unreadable image, unknown device or format.
        """
        started = time.perf_counter()
        case = self._case(request)
        loaded = self.cache.get(resolve_device(request.get("device"), self.study.settings.device))
        ready = time.perf_counter()
        prediction = self._predict(loaded, case)
        predicted = time.perf_counter()
        result = self._result(prediction, loaded, request.get("image_id"))
        if is_true(request.get("uncertainty")) and prediction.uncertainty is not None:
            result["uncertainty"] = self._keep_uncertainty(prediction.uncertainty, case.id)
        file = self._write(prediction, case, request)  # last: whatever fails before leaves no file behind
        ended = time.perf_counter()
        latencies = {"load": ready - started, "infer": predicted - ready, "write": ended - predicted}
        result["latencies"] = {k: round(v, 3) for k, v in {**latencies, "total": ended - started}.items()}
        logger.info("%s version %d on %s: %.2f s", self.method, loaded.version, case.id, ended - started)
        return file, result

    # -- details -----------------------------------------------------------------------------------------------------

    def _case(self, request: Mapping[str, Any]) -> Case:
        image = Path(request["image"])
        identifier = request.get("image_id")
        case = self.study.case(identifier).without_label() if identifier else Case(id="uploaded", image=image)
        return _as_requested(case, request)

    def _predict(self, loaded: Loaded, case: Case) -> Prediction:
        try:
            return loaded.predictor.predict(case)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise ConflictError(
                f"{loaded.device} has too little free memory for image {case.id}; wait for the training to end, or "
                'send "device": "cpu"'
            ) from error

    def _write(self, prediction: Prediction, case: Case, request: Mapping[str, Any]) -> str | None:
        if prediction.mask is None:  # Slicer's client fails on a reply without a file
            return _write_markups(prediction) if prediction.markups else None
        extension = _extension(request.get("result_extension"), case.image)
        dtype = _choice(request.get("result_dtype"), DTYPES, "result_dtype") or "uint8"
        highest = int(prediction.mask.max())
        if dtype == "uint8" and highest > 255:
            raise MedsegError(f"the mask holds label {highest}; ask for result_dtype uint16")
        mask = MetaTensor(
            torch.from_numpy(prediction.mask.as_tensor().cpu().numpy().astype(np.dtype(dtype))),
            affine=prediction.mask.affine,
        )
        with result_file(extension) as name:
            write_volume(Path(name), mask)
            if request.get("result_compress") is False and extension in (".nrrd", ".mha"):
                sitk.WriteImage(sitk.ReadImage(name), name, useCompression=False)
        return name

    def _result(self, prediction: Prediction, loaded: Loaded, identifier: str | None) -> dict[str, Any]:
        measurements = {k: {"value": float(m.value), "unit": m.unit} for k, m in prediction.measurements.items()}
        result: dict[str, Any] = {
            "label_names": loaded.predictor.method.labels if prediction.labels is None else prediction.labels,
            "model": self.method,
            "version": loaded.version,
            "measurements": measurements,
            "warnings": list(prediction.warnings),
            **prediction.facts,
            "centroids": {},
        }
        if prediction.uncertainty is not None and prediction.mask is not None:
            result["mean_uncertainty"] = round(float(prediction.uncertainty.mean()), 5)
        lease = self.study.leases.of(identifier) if identifier else None
        if lease is not None:
            result["why"], result["strategy"] = lease.why, lease.strategy
        return result

    def _keep_uncertainty(self, uncertainty: MetaTensor, identifier: str) -> dict[str, Any]:
        path = self.uncertainty_file(identifier)
        write_volume(path, MetaTensor(uncertainty.as_tensor().float().cpu(), affine=uncertainty.affine))
        newest = sorted(path.parent.glob("*"), key=lambda file: file.stat().st_mtime)
        for old in newest[:-UNCERTAINTY_KEPT]:
            old.unlink(missing_ok=True)
        return {
            "url": f"/medseg/uncertainty?model={self.method}&image={identifier}",
            "mean": round(float(uncertainty.mean()), 5),
            "max": round(float(uncertainty.max()), 5),
        }

    def uncertainty_file(self, identifier: str) -> Path:
        """Where the last uncertainty map of an image is kept."""
        return self.study.folder / "uncertainty" / f"{self.method}-{identifier}.nii.gz"


class MarkupInfer(MedsegInfer):
    """The same champion, answering with points and lines instead of a mask.

    3D Slicer loads a reply that ends in `.json` as markups, whatever the model's type; `detection` models are offered
    beside the segmentation models.
    """

    def __init__(self, segmentation: MedsegInfer) -> None:
        super().__init__(segmentation.study, segmentation.method, segmentation.cache)
        self.type = InferType.DETECTION
        self.description = f"{method_class(self.method).title}: points and lines"
        self._config.pop("uncertainty", None)

    def _write(self, prediction: Prediction, case: Case, request: Mapping[str, Any]) -> str | None:
        if not prediction.markups:  # an empty file would look like a failure of the viewer
            reasons = "; ".join(prediction.warnings) or "the model found no points or lines in it"
            raise UnusableInputError(f"image {case.id} has no markups: {reasons}")
        return _write_markups(prediction)


def _write_markups(prediction: Prediction) -> str:
    with result_file(".mrk.json") as name:
        write_json(Path(name), markups_json(prediction.markups))
    return name


@contextlib.contextmanager
def result_file(suffix: str) -> Iterator[str]:
    """A new file, which whoever asked for the inference removes; where writing it fails, it is removed at once."""
    handle, name = tempfile.mkstemp(prefix="medseg-", suffix=suffix)
    os.close(handle)
    try:
        yield name
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _as_requested(case: Case, request: Mapping[str, Any]) -> Case:
    """What a request says of the image wins over what the datastore knows: `domain`, and `weak` labels."""
    if request.get("weak"):
        weak = parse_weak(request["weak"], f"request for {case.id}, key weak")
        case = replace(case, weak=weak, domain=weak.domain or case.domain)
    domain = request.get("domain")
    if isinstance(domain, list | tuple):  # viewers send the whole drop-down list where nothing was chosen
        domain = domain[0] if domain else None
    return replace(case, domain=str(domain)) if isinstance(domain, str) and domain not in ("", AUTOMATIC) else case


def _extension(asked: Any, image: Path) -> str:
    own = (image_suffix(image) or ".nii.gz").lower()
    extension = asked or (".png" if own in PICTURES else own)
    if asked and asked not in EXTENSIONS:
        raise UnusableInputError(f"result_extension {asked!r} cannot be written; choose one of {', '.join(EXTENSIONS)}")
    return extension if extension in EXTENSIONS else ".nii.gz"


def _choice(asked: Any, known: tuple[str, ...], name: str) -> str | None:
    if asked and asked not in known:
        raise UnusableInputError(f"{name} {asked!r} is unknown; choose one of {', '.join(known)}")
    return asked or None


def is_true(value: Any) -> bool:
    """What a request says with `true`, `1`, `"yes"` or a list that begins so (a form's way)."""
    if isinstance(value, list | tuple):
        value = value[0] if value else False
    return str(value).lower() in ("true", "1", "yes", "on")

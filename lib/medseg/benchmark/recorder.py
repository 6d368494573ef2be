"""Keeps a few slices of every held-out prediction, so that the report can draw any case without predicting again."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medseg.cases import Case
from medseg.files import write_atomically
from medseg.inference.evaluation import Evaluation, evaluate
from medseg.inference.predictor import Predictor
from medseg.methods.base import Method, Prediction
from medseg.reports.overlays import Overlay, cut_overlay
from medseg.reports.style import png_base64
from medseg.transforms.grid import spacing_of, to_canonical
from medseg.transforms.io import read_image

LARGEST_PICTURE = 640
"""Pixels along the longer axis of a picture that are kept."""

SLICES = 3
"""Slices of a volume that are kept."""

OVERLAYS = "overlays.npz"
"""Name of the file in a trial's folder."""

PARTS = ("image", "truth", "prediction", "uncertainty")


class RecordingPredictor(Predictor):
    """A predictor that remembers the slices of the cases it predicted."""

    def __init__(self, method: Method, device: str = "cpu") -> None:
        super().__init__(method, device)
        self.slices: dict[str, Overlay] = {}

    def predict(self, case: Case) -> Prediction:
        """Predict as usual; the prediction stays at hand until the next one."""
        self._last = super().predict(case)
        return self._last

    def record(self, case: Case, title: str) -> None:
        """Keep slices of the case that was predicted last, if its prediction has a mask."""
        if self._last.mask is None:
            return
        image = read_image(case.image)
        truth = self.method.shown_truth(case, image)
        truth = None if truth is None else to_canonical(truth)
        mask, uncertainty = to_canonical(self._last.mask), self._last.uncertainty
        image = to_canonical(image)
        whole = Overlay(
            image=_picture(image.as_tensor().numpy()),
            truth=None if truth is None else truth.as_tensor()[0].numpy().astype(np.uint8),
            prediction=mask.as_tensor()[0].cpu().numpy().astype(np.uint8),
            uncertainty=None if uncertainty is None else to_canonical(uncertainty).as_tensor()[0].cpu().numpy(),
            spacing=spacing_of(image),
            title=title,
            layers={k: to_canonical(v).as_tensor()[0].numpy() for k, v in self.layers(case).items()},
        )
        self.slices[case.id] = thin_picture(cut_overlay(whole, SLICES))


def evaluate_recorded(
    predictor: Predictor,
    cases: Sequence[Case],
    metric: str,
    file: Path | None,
    progress: Callable[[Case, dict[str, float]], object] = lambda case, values: None,
) -> Evaluation:
    """Evaluate a model and keep slices of every case for the report.

    Args:
        predictor: the model.
        cases: held-out cases.
        metric: named with its value in the title of every picture.
        file: where the slices go (`save_overlays`); None keeps none.
        progress: called after each case.
    """
    recording = RecordingPredictor(predictor.method, str(predictor.device))

    def after(case: Case, values: dict[str, float]) -> None:
        progress(case, values)
        if file is not None:
            recording.record(case, f"{case.id}, {metric} {values.get(metric, float('nan')):.4f}")

    found = evaluate(recording, cases, after)
    if file is not None:
        save_overlays(file, recording.slices)
        _save_pictures(recording, cases, {k: v[metric] for k, v in found.cases.items() if metric in v}, file.parent)
    return found


def picture_file(folder: Path, case: str) -> Path:
    """Where a trial keeps the method's own picture of a case."""
    return folder / "pictures" / f"{case}.png"


def _save_pictures(predictor: Predictor, cases: Sequence[Case], values: Mapping[str, float], folder: Path) -> None:
    """The method's own pictures of the best, the median and the worst case, where it draws some."""
    if type(predictor.method).picture is Method.picture:
        return
    ranked = sorted(values, key=lambda case: values[case])
    middle = len(ranked) // 2
    shown = {ranked[place] for place in (0, middle, -1 - middle, -1)} if ranked else set()
    for case in cases:
        if case.id in shown:
            figure = predictor.method.picture(predictor.predict(case), read_image(case.image), case.id)
            if figure is not None:
                _write_png(picture_file(folder, case.id), figure)


def _write_png(path: Path, figure: Figure) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(base64.b64decode(png_base64(figure)))

    write_atomically(path, write)


def thin_picture(overlay: Overlay) -> Overlay:
    """Every second, third, ... pixel of a large picture: a report shows no more, and hundreds of them must fit."""
    step = -(-max(overlay.prediction.shape[:2]) // LARGEST_PICTURE)
    if overlay.prediction.ndim != 2 or step == 1:
        return overlay

    def thin(values: NDArray[Any] | None) -> Any:
        return None if values is None else values[::step, ::step]

    thinned = {part: thin(getattr(overlay, part)) for part in PARTS}
    return replace(overlay, **thinned, layers={name: thin(values) for name, values in overlay.layers.items()})


def save_overlays(path: Path, overlays: dict[str, Overlay]) -> Path:
    """Write overlays as one compressed NumPy file."""
    arrays: dict[str, NDArray[Any]] = {}
    about = {}
    for case, overlay in overlays.items():
        for part in PARTS:
            values = getattr(overlay, part)
            if values is not None:
                arrays[f"{part}/{case}"] = values.astype(np.float16) if part == "uncertainty" else values
        arrays |= {f"layer {name}/{case}": values.astype(np.float16) for name, values in overlay.layers.items()}
        facts = {"spacing": list(overlay.spacing), "title": overlay.title, "places": overlay.places}
        about[case] = {**facts, "layers": list(overlay.layers)}
    arrays["about"] = np.array(json.dumps(about))

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    return write_atomically(path, write)


def load_overlay(path: Path, case: str) -> Overlay | None:
    """One overlay of `save_overlays`; None where it is not there."""
    if not Path(path).exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        about = json.loads(str(arrays["about"]))
        if case not in about:
            return None
        parts = {part: arrays.get(f"{part}/{case}") for part in PARTS}
        layers = {name: arrays[f"layer {name}/{case}"].astype(np.float32) for name in about[case].get("layers", [])}
    overlay = Overlay(parts["image"], parts["truth"], parts["prediction"], parts["uncertainty"])
    entry = about[case]
    places = tuple(entry["places"]) if entry["places"] is not None else None
    return replace(overlay, spacing=tuple(entry["spacing"]), title=entry["title"], places=places, layers=layers)


def _picture(image: NDArray[Any]) -> NDArray[Any]:
    """(C, *grid) as one grey volume, or as (x, y, 3) colours of a picture."""
    if image.shape[0] == 3 and image.ndim == 3:
        return np.moveaxis(image, 0, -1).astype(np.uint8)
    return image[0].astype(np.float32)

"""Inference with clicks: the champion's prediction, corrected where an annotator clicked.

Registered twice for each method, because viewers have two ways to click. `<method>_deepedit` takes clicks on every
label at once and answers with all labels; `<method>_deepgrow` takes clicks on one label and on what is not that label,
and answers with this label alone.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from monai.data import MetaTensor
from monailabel.interfaces.tasks.infer_v2 import InferType

from medseg.cases import Case
from medseg.errors import MedsegError, UnusableInputError
from medseg.inference.clicks import correct
from medseg.methods import method_class
from medseg.methods.base import Prediction
from medseg.server.label_names import BACKGROUND, match
from medseg.server.tasks.infer import Loaded, MedsegInfer
from medseg.stamps import case_stamp
from medseg.transforms.io import read_image

KEPT = 2  # ours: predictions kept for the next click; a probability map of a CT is large
MOST_CLICKS = 200  # ours: each costs a pass over the image


class ClickInfer(MedsegInfer):
    """The same champion, corrected by clicks.

    Request keys besides those of `MedsegInfer`: a label's name -> list of voxel indices on the image's grid, and
    `background`; or, for one label, `label`, `foreground` and `background`.

    Args:
        segmentation: the method's own infer task.
        single: answer with one label, as viewers want it of `deepgrow` models.
    """

    def __init__(self, segmentation: MedsegInfer, single: bool) -> None:
        super().__init__(segmentation.study, segmentation.method, segmentation.cache)
        self.single = single
        self.type = InferType.DEEPGROW if single else InferType.DEEPEDIT
        scope = "one label" if single else "all labels"
        self.description = f"{method_class(self.method).title}: corrected by clicks on {scope}"
        self._config.pop("uncertainty", None)
        self._predictions: dict[tuple[Any, ...], Prediction] = {}
        self._lock = threading.Lock()
        self._request = threading.local()

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Predict and correct.

        Raises:
            UnusableInputError: a click lies outside the image, or the label is not known.
        """
        self._request.value = request
        return super().__call__(request)

    def _predict(self, loaded: Loaded, case: Case) -> Prediction:
        """The kept prediction of this image, or a new one, with the request's clicks."""
        request = self._request.value
        labels = loaded.predictor.method.labels
        clicks, label = clicks_of(request, labels)
        prediction = self._base(loaded, case)
        if prediction.probabilities is None or prediction.mask is None:
            raise MedsegError(f"{self.method} gives no probabilities, so that clicks cannot correct it")
        if clicks:
            prediction = corrected(prediction, read_image(case.image), clicks)
        if not self.single or label is None:
            return prediction
        assert prediction.mask is not None
        chosen = (prediction.mask.as_tensor() == label).to(torch.uint8)
        return replace(prediction, mask=MetaTensor(chosen, affine=prediction.mask.affine))

    def _base(self, loaded: Loaded, case: Case) -> Prediction:
        key = (loaded.version, loaded.device, case.id, case_stamp(case.without_label()))
        with self._lock:
            found = self._predictions.get(key)
            if found is None:
                found = super()._predict(loaded, case)
                self._predictions[key] = found
                for old in list(self._predictions)[:-KEPT]:
                    del self._predictions[old]
        return found


def corrected(prediction: Prediction, image: MetaTensor, clicks: Mapping[int, list[list[int]]]) -> Prediction:
    """A prediction with clicks: its mask changes where they change the most probable class, and nowhere else.

    A method may decide its mask in a way of its own (the largest piece, organs before lesions). The probabilities are
    made to agree with it first, so that a click corrects what the annotator sees. Measurements, points and lines were
    of the uncorrected mask.
    """
    assert prediction.probabilities is not None
    assert prediction.mask is not None
    shown = prediction.mask.as_tensor().long()
    prob = prediction.probabilities.as_tensor().float()
    best, index = prob.max(dim=0, keepdim=True)
    agreeing = prob.scatter(0, index, prob.gather(0, shown)).scatter(0, shown, best)
    start = MetaTensor(agreeing, affine=prediction.probabilities.affine)
    after = correct(start, image, clicks)
    changed = after.as_tensor().argmax(dim=0, keepdim=True)
    same = changed == agreeing.argmax(dim=0, keepdim=True)
    mask = MetaTensor(torch.where(same, shown, changed).to(torch.uint8), affine=prediction.mask.affine)
    return replace(prediction, probabilities=after, mask=mask, measurements={}, markups=())


def clicks_of(request: Mapping[str, Any], labels: Mapping[str, int]) -> tuple[dict[int, list[list[int]]], int | None]:
    """The clicks of a request by label value, and the value of the label that is asked for.

    Raises:
        UnusableInputError: unknown label, foreground of no label, or clicks that are no lists of numbers.
    """
    label = _asked(request, labels)
    found: dict[int, list[list[int]]] = {}
    for name, points in request.items():
        value = 0 if name == BACKGROUND else labels.get(name)
        if name == "foreground":
            value = label
        if value is None or not isinstance(points, list) or not points:
            continue
        found.setdefault(value, []).extend(_points(name, points))
    if sum(map(len, found.values())) > MOST_CLICKS:
        raise UnusableInputError(f"more than {MOST_CLICKS} clicks; correct the rest with the brush, and save")
    return found, label


def _asked(request: Mapping[str, Any], labels: Mapping[str, int]) -> int | None:
    """The label that a request is about; with `foreground`, a model's only label need not be named."""
    asked = request.get("label")
    if isinstance(asked, str) and asked:
        return _value(asked, labels)
    if "foreground" not in request:
        return None
    if len(labels) != 1:
        raise UnusableInputError(
            f'clicks on the foreground do not tell of which label; send "label" with one of {", ".join(labels)}'
        )
    return next(iter(labels.values()))


def _value(name: str, labels: Mapping[str, int]) -> int:
    known = match(name, labels)
    if known is None or known not in labels:
        raise UnusableInputError(f"label {name!r} is not one of the model's: {', '.join(labels)}")
    return labels[known]


def _points(name: str, points: list[Any]) -> list[list[int]]:
    try:
        return [[round(float(coordinate)) for coordinate in point] for point in points]
    except (TypeError, ValueError) as error:
        raise UnusableInputError(f"clicks on {name!r} are no lists of voxel indices: {str(points)[:80]}") from error

"""Image in, prediction on the image's own grid out."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import torch
from monai.data import MetaTensor

from medseg.cases import Case
from medseg.inference.model_folder import load_model
from medseg.methods.base import Method, Prediction, Score
from medseg.networks.precision import autocast
from medseg.transforms.grid import to_grid
from medseg.transforms.io import read_image


class Predictor:
    """Runs a method on whole images. Calls from several threads wait for each other: they share one network.

    Args:
        method: its network is moved to `device` and put into eval mode for every call.
        device: "cpu", "cuda" or "cuda:1".
    """

    def __init__(self, method: Method, device: str = "cpu") -> None:
        self.method = method
        self.device = torch.device(device)
        self.method.network.to(self.device)
        self._lock = threading.Lock()

    @classmethod
    def from_folder(cls, folder: Path, device: str = "cpu") -> Predictor:
        """Load a model folder."""
        return cls(load_model(folder, device), device)

    def predict(self, case: Case) -> Prediction:
        """Predict one case on its image's own grid, the method's last step included."""
        loaded = self.method.load(self.method.visible(case))
        with self._lock, self._inference():
            prediction = self.method.predict(loaded)
        return self.method.finish(restore(prediction, read_image(case.image)), case)

    def layers(self, case: Case) -> dict[str, MetaTensor]:
        """The method's maps of one case by name, (1, *grid) on its image's own grid."""
        loaded = self.method.load(self.method.visible(case))
        with self._lock, self._inference():
            maps = self.method.layers(loaded)
        image = read_image(case.image) if maps else None
        affine = loaded["image"].affine
        return {
            name: to_grid(MetaTensor(value[None].float().cpu(), affine=affine), image)
            for name, value in maps.items()
            if image is not None
        }

    def score(self, case: Case) -> Score:
        """Acquisition score of one case."""
        loaded = self.method.load(case.without_label())
        with self._lock, self._inference():
            return self.method.score(loaded)

    def _inference(self) -> _Inference:
        return _Inference(self.method, self.device)


class _Inference:
    """Eval mode, no gradient and autocast for a block; the network's mode is restored afterwards."""

    def __init__(self, method: Method, device: torch.device) -> None:
        self.network = method.network
        self.was_training = method.network.training
        self.contexts = (torch.no_grad(), autocast(method.config.amp, device))

    def __enter__(self) -> None:
        self.network.eval()
        for context in self.contexts:
            context.__enter__()

    def __exit__(self, *error: object) -> None:
        for context in reversed(self.contexts):
            context.__exit__(*error)
        self.network.train(self.was_training)


def restore(prediction: Prediction, image: MetaTensor) -> Prediction:
    """Move a prediction from the network's grid to the image's; the mask is decided there, after resampling."""
    if prediction.probabilities is None:
        if prediction.mask is None:
            return prediction
        return replace(prediction, mask=to_grid(prediction.mask, image, mode="nearest"))
    probabilities = to_grid(prediction.probabilities, image)
    uncertainty = to_grid(prediction.uncertainty, image) if prediction.uncertainty is not None else None
    return replace(prediction, probabilities=probabilities, uncertainty=uncertainty, mask=None)

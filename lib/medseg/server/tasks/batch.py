"""Pre-annotation of many images at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monailabel.interfaces.tasks.batch_infer import BatchInferTask


class MedsegBatchInfer(BatchInferTask):
    """MONAI Label's batch task, one image after the other where there is no second GPU.

    Upstream divides by the number of GPUs, also when there is none; and its default request asks for several GPUs.
    """

    def get_images(self, request: Mapping[str, Any], datastore: Any) -> list[str]:
        """Ids to infer: those named, or all, labelled or unlabelled ones. Labelled means finished: `label_tag` is where
        the masks go, not what is looked for."""
        images = request.get("images", "all")
        if not isinstance(images, str):
            return list(images)
        choices = {"labeled": datastore.get_labeled_images, "unlabeled": datastore.get_unlabeled_images}
        return list(choices.get(str(getattr(images, "value", images)), datastore.list_images)())

    def __call__(self, request: Mapping[str, Any], datastore: Any, infer: Callable[..., Any]) -> dict[str, Any]:
        """Infer and save the masks under `label_tag` (default `original`)."""
        several = torch.cuda.device_count() > 1
        changes: dict[str, Any] = {"multi_gpu": several and bool(request.get("multi_gpu", True))}
        if not several:
            changes["max_workers"] = 1  # the images share one model, and its calls wait for each other
        result: dict[str, Any] = super().__call__({**request, **changes}, datastore, infer)
        return result
